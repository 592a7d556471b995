//! Exact duplicates: bytes that are stored, and read, more than once.

use super::files::GgufFile;
use super::similarity;
use super::{HeadroomError, Progress, step};
use aios_contract::{Placement, Role, TensorName};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;

/// Sizes of the blocks that are compared, in bytes; each is a whole number of those before it.
pub const BLOCK_BYTES: [usize; 2] = [4 << 10, 64 << 10];

/// What a file holds more than once, or shares with others.
#[derive(Clone, Debug, Serialize)]
pub struct Duplicates {
    /// Blocks that occur again in the model's own file, for each size.
    pub blocks: Vec<Repeats>,
    /// Tensors that are another tensor once more.
    pub tensors: usize,
    /// Rows of the head that are another row once more.
    pub head_rows: HeadRows,
    /// Whether the head is the embedding. This saves memory; a token reads the head as always.
    pub tied_head: bool,
    /// The cosine, without its sign, of head and embedding where both are stored.
    pub head_embedding_cosine: Option<f64>,
    /// What other files share with the model.
    pub others: Vec<Shared>,
}

/// Blocks of one size, counted from the start of each tensor; what is left at a tensor's end is
/// not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Repeats {
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Blocks.
    pub blocks: usize,
    /// Of these, blocks that occurred before.
    pub repeated: usize,
    /// Their bytes in matrices of layers, which a token reads.
    pub read_bytes: u64,
}

/// Equal rows of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeadRows {
    /// Rows.
    pub rows: usize,
    /// Of these, rows that occurred before.
    pub repeated: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What another file shares with the model.
#[derive(Clone, Debug, Serialize)]
pub struct Shared {
    /// The other file's name.
    pub name: String,
    /// The model's blocks that occur in it, for each size; their bytes are those that one token of
    /// the model reads.
    pub blocks: Vec<Repeats>,
    /// The model's tensors that occur in it.
    pub tensors: usize,
}

/// 128 bits of a SHA-256: among the 2^40 blocks of a terabyte, the chance of a false match is below
/// 2^-48.
type Digest = u128;

/// The digests of a tensor.
struct Prints {
    /// Whether a token reads it, and reads it as a matrix of a layer.
    read: bool,
    whole: Digest,
    /// Digests of blocks, for each of [`BLOCK_BYTES`].
    blocks: [Vec<Digest>; 2],
}

pub(super) fn measure(
    file: &GgufFile,
    others: &[GgufFile],
    progress: &mut Progress<'_>,
) -> Result<Duplicates, HeadroomError> {
    let prints = fingerprint(file, progress)?;
    let blocks = (0..BLOCK_BYTES.len()).map(|size| repeats(&prints, size));
    let mut seen = HashSet::new();
    let tensors = prints.iter().filter(|tensor| !seen.insert(tensor.whole)).count();
    let head = file.matrix(Role::Head, 0);
    let embedding = file.matrix(Role::TokenEmbedding, 0);
    Ok(Duplicates {
        blocks: blocks.collect(),
        tensors,
        head_rows: head.or(embedding).map_or(HeadRows { rows: 0, repeated: 0, bytes: 0 }, |head| {
            equal_rows(head.data, head.rows)
        }),
        tied_head: head.is_none(),
        head_embedding_cosine: head.zip(embedding).and_then(|(a, b)| similarity::whole(a, b)),
        others: (others.iter())
            .map(|other| shared(&prints, other, progress))
            .collect::<Result<_, _>>()?,
    })
}

fn fingerprint(file: &GgufFile, progress: &mut Progress<'_>) -> Result<Vec<Prints>, HeadroomError> {
    let count = file.tensors().count();
    let mut prints = Vec::with_capacity(count);
    for (done, (info, data)) in file.tensors().enumerate() {
        step(progress, "looking for duplicates", done, count)?;
        let layer = |name: TensorName| name.role.placement() == Placement::Layer;
        let read = info.rows() > 1 && TensorName::parse(&info.name).is_some_and(layer);
        prints.push(Prints { read, ..prints_of(data) });
    }
    Ok(prints)
}

/// Larger blocks are digests of the digests of the smaller ones that they are made of.
fn prints_of(data: &[u8]) -> Prints {
    let [small, large] = BLOCK_BYTES;
    let pieces: Vec<Digest> = data.par_chunks(small).map(digest).collect();
    let of = |pieces: &[Digest]| {
        digest(&pieces.iter().flat_map(|piece| piece.to_le_bytes()).collect::<Vec<u8>>())
    };
    let full = &pieces[..data.len() / small];
    let blocks = [full.to_vec(), full.chunks_exact(large / small).map(of).collect()];
    Prints { read: false, whole: of(&pieces), blocks }
}

fn digest(bytes: &[u8]) -> Digest {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    Digest::from_le_bytes(half)
}

/// The blocks of one size that occurred before.
fn repeats(prints: &[Prints], size: usize) -> Repeats {
    let mut seen = HashSet::new();
    count(prints, size, |block| !seen.insert(block))
}

/// Counts the blocks of one size that `is_copy` says are copies; it is asked in order.
fn count(prints: &[Prints], size: usize, mut is_copy: impl FnMut(Digest) -> bool) -> Repeats {
    let block_bytes = BLOCK_BYTES[size];
    let mut found = Repeats { block_bytes, blocks: 0, repeated: 0, read_bytes: 0 };
    for tensor in prints {
        let copies = tensor.blocks[size].iter().filter(|block| is_copy(**block)).count();
        found.blocks += tensor.blocks[size].len();
        found.repeated += copies;
        found.read_bytes += if tensor.read { (copies * block_bytes) as u64 } else { 0 };
    }
    found
}

fn shared(
    prints: &[Prints],
    other: &GgufFile,
    progress: &mut Progress<'_>,
) -> Result<Shared, HeadroomError> {
    let theirs = fingerprint(other, progress)?;
    let blocks = (0..BLOCK_BYTES.len()).map(|size| {
        let known: HashSet<Digest> =
            theirs.iter().flat_map(|tensor| &tensor.blocks[size]).copied().collect();
        count(prints, size, |block| known.contains(&block))
    });
    let wholes: HashSet<Digest> = theirs.iter().map(|tensor| tensor.whole).collect();
    Ok(Shared {
        name: other.name(),
        blocks: blocks.collect(),
        tensors: prints.iter().filter(|tensor| wholes.contains(&tensor.whole)).count(),
    })
}

/// Rows of `data` that occurred before.
fn equal_rows(data: &[u8], rows: usize) -> HeadRows {
    let row_bytes = (data.len() / rows.max(1)).max(1);
    let digests: Vec<Digest> = data.par_chunks_exact(row_bytes).map(digest).collect();
    let mut seen = HashSet::with_capacity(digests.len());
    let repeated = digests.iter().filter(|row| !seen.insert(**row)).count();
    HeadRows { rows, repeated, bytes: repeated as u64 * row_bytes as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes in which no block of 4 KB repeats.
    fn bytes(seed: u32, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(4) as u32).map(|i| (i ^ (seed << 24)).to_le_bytes());
        words.flatten().take(len).collect()
    }

    #[test]
    fn planted_blocks_are_found() {
        let [small, large] = BLOCK_BYTES;
        let mut first = bytes(1, 3 * large + 100);
        // A small block once more, and a large one, which is 16 small ones.
        first.copy_within(..small, 2 * large);
        let mut second = bytes(2, 2 * large);
        second[large..].copy_from_slice(&first[large..2 * large]);
        let prints: Vec<Prints> = [(&first, true), (&second, false)]
            .map(|(data, read)| Prints { read, ..prints_of(data) })
            .into();
        let of = |size| repeats(&prints, size);
        let small_bytes = small as u64;
        let want =
            Repeats { block_bytes: small, blocks: 80, repeated: 17, read_bytes: small_bytes };
        assert_eq!(of(0), want);
        let want = Repeats { block_bytes: large, blocks: 5, repeated: 1, read_bytes: 0 };
        assert_eq!(of(1), want);
        assert_ne!(prints[0].whole, prints_of(&first[..3 * large]).whole);
    }

    #[test]
    fn equal_rows_are_counted() {
        let rows = [[1u8; 34], [2; 34], [1; 34], [1; 34], [3; 34]].concat();
        assert_eq!(equal_rows(&rows, 5), HeadRows { rows: 5, repeated: 2, bytes: 68 });
        assert_eq!(equal_rows(&[], 0), HeadRows { rows: 0, repeated: 0, bytes: 0 });
    }
}
