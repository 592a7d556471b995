//! A model's files as they stand on the disk: what is measured is their bytes, not the panels that
//! an executor may read instead.

use super::{HeadroomError, Progress, step};
use aios_contract::{DType, Role, TensorName};
use aios_engine::gguf::{Gguf, SplitSet, TensorInfo};
use aios_kernels::{Isa, dequantize};
use aios_residency::{MapError, Mapping};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Bytes that are digested between two looks at whether to go on.
const PIECE_BYTES: usize = 64 << 20;

/// A GGUF file, or the parts of a split one.
#[derive(Debug)]
pub(crate) struct GgufFile {
    pub path: PathBuf,
    parts: Vec<(Mapping, Gguf)>,
}

/// A matrix of a layer or of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub dtype: DType,
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    pub data: &'a [u8],
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self, HeadroomError> {
        let part = |path: &Path| -> Result<(Mapping, Gguf), HeadroomError> {
            let mapping = Mapping::open(path)?;
            let header = Gguf::parse(mapping.bytes())
                .map_err(|source| HeadroomError::Gguf { path: path.to_owned(), source })?;
            Ok((mapping, header))
        };
        let wrong = |source| HeadroomError::Gguf { path: path.to_owned(), source };
        let mut parts = vec![part(path)?];
        if let Some(split) = SplitSet::of(path, &parts[0].1).map_err(wrong)? {
            for number in 2..=split.count() {
                let next = part(&split.path(number)).map_err(|error| match error {
                    HeadroomError::Map(MapError::Missing { .. }) => wrong(split.missing(number)),
                    other => other,
                })?;
                split.check_part(number, &next.1).map_err(wrong)?;
                parts.push(next);
            }
        }
        Ok(Self { path: path.to_owned(), parts })
    }

    /// Its name without folders.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(mapping, _)| mapping.bytes().len() as u64).sum()
    }

    /// SHA-256 of the parts one after another.
    pub fn sha256(&self, progress: &mut Progress<'_>) -> Result<[u8; 32], HeadroomError> {
        let mut digest = Sha256::new();
        let pieces = || self.parts.iter().flat_map(|(map, _)| map.bytes().chunks(PIECE_BYTES));
        let count = pieces().count();
        for (done, piece) in pieces().enumerate() {
            step(progress, "digesting the model", done, count)?;
            digest.update(piece);
        }
        Ok(digest.finalize().into())
    }

    /// Every tensor and its bytes, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorInfo, &[u8])> {
        self.parts.iter().flat_map(|(mapping, header)| {
            let of = move |info| Some((info, TensorInfo::data(info, mapping.bytes())?));
            header.tensors.iter().filter_map(of)
        })
    }

    /// The matrix of that role and layer, if the file has one of at least two rows.
    pub fn matrix(&self, role: Role, layer: usize) -> Option<Matrix<'_>> {
        let name = role.gguf_name(layer);
        self.parts.iter().find_map(|(mapping, header)| {
            let info = header.tensor(&name)?;
            let matrix = Matrix {
                dtype: info.dtype,
                rows: usize::try_from(info.rows()).ok()?,
                cols: usize::try_from(*info.shape.first()?).ok()?,
                data: info.data(mapping.bytes())?,
            };
            (matrix.rows > 1).then_some(matrix)
        })
    }

    /// The bytes of all tensors of a role.
    pub fn role_bytes(&self, role: Role) -> u64 {
        let has = |info: &TensorInfo| TensorName::parse(&info.name).is_some_and(|n| n.role == role);
        self.tensors().filter(|(info, _)| has(info)).map(|(info, _)| info.bytes()).sum()
    }
}

impl<'a> Matrix<'a> {
    /// Its elements.
    pub const fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// The bytes of the elements `first..first + count`, both whole numbers of blocks.
    pub fn bytes_of(&self, first: usize, count: usize) -> &'a [u8] {
        let bytes = |elements: usize| elements / self.dtype.block_len() * self.dtype.block_bytes();
        &self.data[bytes(first)..bytes(first + count)]
    }

    /// Those elements as floats.
    ///
    /// # Panics
    /// If they are not there, or no whole number of blocks.
    pub fn floats(&self, isa: Isa, first: usize, count: usize, to: &mut Vec<f32>) {
        to.resize(count, 0.0);
        dequantize(isa, self.dtype, self.bytes_of(first, count), to)
            .expect("a whole number of blocks of a checked tensor");
    }
}
