//! Weights repacked into panels, kept in a file of their own beside a digest of their source.

use super::{Model, Tensor, kept};
use aios_contract::TensorName;
use aios_kernels::{Matrix, PANEL_ROWS, Pool, pack, packed_bytes};
use aios_residency::{
    BlockId, BlockTable, MapError, Mapping, Origin, PanelError, PanelWriter, Panels, open_panels,
};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Bytes of panels that are made before they are written.
const CHUNK_BYTES: usize = 16 << 20;

/// A model's repacked weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repacked {
    /// Their file.
    pub path: PathBuf,
    /// Its size: what the speed costs on the disk. In memory it stands for the model's own
    /// matrices, which are not read then.
    pub bytes: u64,
    /// Whether it has been made just now.
    pub made: bool,
    /// The SHA-256 of the model file, or of its parts one after another.
    pub source_sha256: [u8; 32],
}

/// Why a model's weights are not repacked.
#[derive(Debug, thiserror::Error)]
pub enum RepackError {
    /// No matrix has a format that is repacked.
    #[error("no matrix has a format that is repacked")]
    Nothing,
    /// The file could not be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// What was written could not be read again.
    #[error(transparent)]
    Read(#[from] PanelError),
    /// The caller stopped it.
    #[error("repacking was stopped")]
    Stopped,
}

/// A matrix and the size of its panels.
struct Piece {
    tensor: Tensor,
    bytes: usize,
}

pub(super) fn repack(
    model: &mut Model,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Repacked, RepackError> {
    let pieces = pieces(model);
    if pieces.is_empty() {
        return Err(RepackError::Nothing);
    }
    let lengths: Vec<u64> = pieces.iter().map(|piece| piece.bytes as u64).collect();
    let write = |path: &Path| {
        let path = path.to_owned();
        |source| RepackError::Write { path, source }
    };
    let (name, stamp) =
        identify(model.blocks.mappings(), &model.header_bytes).map_err(write(model.path()))?;
    let path = folder.join(name);
    let (opened, made) = match open_panels(&path, &stamp, &lengths) {
        Ok(opened) => (opened, false),
        Err(reason) => {
            if !matches!(reason, PanelError::Map(MapError::Missing { .. })) {
                tracing::info!("repacking once more: {reason}");
            }
            make(&model.blocks, &pieces, (&path, &lengths, stamp), progress)?;
            (open_panels(&path, &stamp, &lengths)?, true)
        }
    };
    kept::note(&path, model.path());
    let Panels { mapping, ranges, digest: source_sha256 } = opened;
    let bytes = mapping.bytes().len() as u64;
    let number = model.blocks.add_mapping(mapping);
    let mut placed: Vec<(BlockId, BlockId)> = Vec::with_capacity(pieces.len());
    for (piece, range) in pieces.iter().zip(ranges) {
        let name: TensorName = model.blocks.block(piece.tensor.id).name;
        let id = model.blocks.insert(name, piece.tensor.dtype, number, range);
        placed.push((piece.tensor.id, id.expect("ranges of a mapping that was just checked")));
    }
    let Model { weights, blocks, .. } = model;
    for tensor in weights.factors_mut() {
        let same = placed.iter().find(|(id, _)| blocks.is_same(*id, tensor.id));
        tensor.panels = same.map(|(_, panels)| *panels);
    }
    Ok(Repacked { path, bytes, made, source_sha256 })
}

/// The matrices that are repacked, each once, in the order in which a pass reads them.
fn pieces(model: &Model) -> Vec<Piece> {
    let Model { weights, blocks, .. } = model;
    let mut pieces: Vec<Piece> = Vec::new();
    for tensor in weights.factors() {
        let bytes = packed_bytes(tensor.dtype, tensor.total_rows, tensor.cols);
        let known = pieces.iter().any(|piece| blocks.is_same(piece.tensor.id, tensor.id));
        if let Some(bytes) = bytes.filter(|_| !known && tensor.total_rows >= PANEL_ROWS) {
            pieces.push(Piece { tensor: tensor.clone(), bytes });
        }
    }
    pieces
}

/// The file's name, which depends on the headers alone, and the stamp, which also depends on the
/// state of the files on the disk.
pub(super) fn identify(parts: &[Mapping], header_bytes: &[u64]) -> io::Result<(String, [u8; 32])> {
    let mut headers = Sha256::new();
    let mut stamp = Sha256::new();
    for (part, &end) in parts.iter().zip(header_bytes) {
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(part.bytes().len());
        headers.update(&part.bytes()[..end]);
        headers.update((part.bytes().len() as u64).to_le_bytes());
        let changed = fs::metadata(part.path())?.modified()?.duration_since(UNIX_EPOCH);
        stamp.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
    }
    let headers = headers.finalize();
    stamp.update(headers);
    let hex: String = headers[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("{hex}.panels"), stamp.finalize().into()))
}

/// Writes the file.
fn make(
    blocks: &BlockTable,
    pieces: &[Piece],
    (path, lengths, stamp): (&Path, &[u64], [u8; 32]),
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), RepackError> {
    let wrong = |source| RepackError::Write { path: path.to_owned(), source };
    let pool = Pool::new(aios_kernels::allowed_processors().len()).map_err(wrong)?;
    let total: u64 = lengths.iter().sum();
    let mut done = 0;
    let mut writer = PanelWriter::create(path, lengths).map_err(wrong)?;
    let mut panels = Vec::new();
    for Piece { tensor, .. } in pieces {
        writer.start_piece().map_err(wrong)?;
        let whole: Matrix<'_> = tensor.whole(blocks).expect("checked when the model was loaded");
        let row_bytes = whole.bytes().len() / whole.rows();
        let rows = (CHUNK_BYTES / row_bytes).next_multiple_of(PANEL_ROWS);
        for chunk in whole.bytes().chunks(rows * row_bytes) {
            let count = (chunk.len() / row_bytes).next_multiple_of(PANEL_ROWS);
            panels.resize(count * row_bytes, 0);
            pack(&pool, tensor.dtype, row_bytes, chunk, &mut panels);
            writer.write(&panels).map_err(wrong)?;
            done += panels.len() as u64;
            if !progress(done, total) {
                return Err(RepackError::Stopped);
            }
        }
    }
    let mut digest = Sha256::new();
    blocks.mappings().iter().for_each(|mapping| digest.update(mapping.bytes()));
    let origin = Origin { stamp, digest: digest.finalize().into() };
    writer.finish(&origin).map_err(wrong)
}
