//! Matrices that another model in this process has, too, are read from there (SPEC W13, W14).

use super::{Model, repack};
use aios_contract::DType;
use aios_residency::plan::hex;
use aios_residency::{BlockId, BlockStore};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

/// The version of a file of digests.
const SCHEMA: u32 = 1;
/// No file of digests is longer, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What sharing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Matrices that are read from another model's memory.
    pub matrices: usize,
    /// Bytes of these that are not read from this model's files, that of panels counted, too.
    pub bytes: u64,
    /// Bytes that were read to digest them; 0 if the digests were kept.
    pub digested: u64,
}

/// Digests of the matrices of a file, kept so that the file is read for them once.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    schema: u32,
    /// The state of the model's files (SPEC L2).
    stamp: String,
    /// SHA-256 of every matrix that passes read, in their order, hexadecimal.
    sha256: Vec<String>,
}

/// The digest of a matrix, and its blocks: as it stands in the file, and repacked.
struct Content {
    digest: [u8; 32],
    stored: BlockId,
    packed: Option<BlockId>,
    shape: (DType, usize, usize),
}

impl Content {
    /// The digest of the panels, which are a function of the matrix and its shape.
    fn packed_digest(&self) -> [u8; 32] {
        let (dtype, rows, cols) = self.shape;
        let mut digest = Sha256::new_with_prefix(self.digest);
        digest.update(format!("panels {dtype} {rows} {cols}"));
        digest.finalize().into()
    }
}

impl Model {
    /// Has matrices that are in `store` read from there, and puts the others into it. Their digests
    /// are kept in `folder`, if there is one; without kept ones the files are read whole.
    pub(super) fn share(&mut self, store: &BlockStore, folder: Option<&Path>) -> Shared {
        let mut shared = Shared::default();
        let contents = self.contents(folder, &mut shared.digested);
        for content in contents {
            let stored = (content.stored, content.digest);
            let packed = content.packed.map(|id| (id, content.packed_digest()));
            for (id, digest) in std::iter::once(stored).chain(packed) {
                if store.share(&mut self.blocks, id, &digest) {
                    shared.bytes += self.blocks.block(id).bytes() as u64;
                    shared.matrices += usize::from(id == content.packed.unwrap_or(id));
                }
            }
        }
        shared
    }

    /// Every matrix that passes read, each once.
    fn contents(&mut self, folder: Option<&Path>, digested: &mut u64) -> Vec<Content> {
        let (blocks, weights) = (&self.blocks, &self.weights);
        let mut contents: Vec<Content> = Vec::new();
        for tensor in std::iter::once(&weights.embedding).chain(weights.factors()) {
            let shape = (tensor.dtype, tensor.total_rows, tensor.cols);
            let same = contents.iter_mut().find(|of| blocks.is_same(of.stored, tensor.id));
            match same {
                // A tied head may be repacked while the embedding is not.
                Some(same) => same.packed = same.packed.or(tensor.panels),
                None => contents.push(Content {
                    digest: [0; 32],
                    stored: tensor.id,
                    packed: tensor.panels,
                    shape,
                }),
            }
        }
        let identity = repack::identify(blocks.mappings(), &self.header_bytes).ok();
        let path = identity.as_ref().zip(folder).map(|((name, stamp), folder)| {
            let name = name.trim_end_matches(".panels");
            folder.join(format!("{name}-{}.digests", &hex(stamp)[..12]))
        });
        let stamp = identity.map(|(_, stamp)| hex(&stamp)).unwrap_or_default();
        let kept = path.as_ref().and_then(|path| read(path, &stamp, contents.len()));
        let digests = kept.unwrap_or_else(|| {
            let digest = |content: &Content| {
                let bytes = blocks.resolve(content.stored);
                *digested += bytes.len() as u64;
                Sha256::digest(bytes).into()
            };
            let digests: Vec<[u8; 32]> = contents.iter().map(digest).collect();
            if let Some(path) = &path {
                keep(path, &stamp, &digests);
            }
            digests
        });
        contents.iter_mut().zip(digests).for_each(|(content, digest)| content.digest = digest);
        contents
    }
}

/// The digests that are kept for `count` matrices; `None` if there are none of this state.
fn read(path: &Path, stamp: &str, count: usize) -> Option<Vec<[u8; 32]>> {
    if fs::metadata(path).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let sound = kept.schema == SCHEMA && kept.stamp == stamp && kept.sha256.len() == count;
    if sound { kept.sha256.iter().map(|text| unhex(text)).collect() } else { None }
}

/// Keeps digests. A file that cannot be written costs the time to digest again, and nothing else.
fn keep(path: &Path, stamp: &str, digests: &[[u8; 32]]) {
    let sha256 = digests.iter().map(|digest| hex(digest)).collect();
    let kept = Kept { schema: SCHEMA, stamp: stamp.to_owned(), sha256 };
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = (|| -> std::io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(&part, serde_json::to_vec(&kept)?)?;
        fs::rename(&part, path)
    })();
    if let Err(error) = written {
        // It may not even be there.
        let _ = fs::remove_file(&part);
        tracing::info!("digests are not kept: {error}");
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(digest)
}
