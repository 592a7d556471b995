//! The GGUF file format, versions 2 and 3, little-endian: a reader for bytes that nobody vouches
//! for, and a writer. SPEC.md states the rules (G1 to G24) that the reader enforces.
//!
//! Everything here works on byte slices; opening and mapping files is `aios-residency`'s part.
//!
//! A header is at most [`HEADER_BYTES_MAX`] long, and parsing it allocates at most a fixed multiple
//! of its length (SPEC.md, G4).

mod error;
mod reader;
mod split;
mod value;
mod writer;

use std::ops::Range;

use aios_contract::DType;

pub use error::{Escaped, Fault, Field, GgufError, TensorPart};
pub use split::{SplitFault, SplitSet};
pub use value::{Array, Kind, Metadata, Type, Value};
pub use writer::{TensorSpec, WriteError, Writer};

/// The first four bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The key that sets the alignment of tensor data.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment of tensor data, in bytes, if no key sets it.
pub const ALIGNMENT_DEFAULT: u64 = 32;
/// The longest header that is read. Real ones stay under 20 MB; the cap bounds what a file of any
/// size can make the reader allocate.
pub const HEADER_BYTES_MAX: usize = 128 << 20;
/// The longest metadata key, in bytes.
pub const KEY_BYTES_MAX: u64 = 65_535;
/// The longest tensor name, in bytes.
pub const TENSOR_NAME_BYTES_MAX: u64 = 64;
/// The most dimensions of a tensor.
pub const TENSOR_DIMS_MAX: u64 = 4;
/// The deepest nesting of metadata arrays, 1 being an array of scalars.
pub const NESTING_MAX: usize = 4;

/// The header of a GGUF file. [`Gguf::parse`] vouches for all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// The alignment of tensor data in bytes: a power of two from 8 up.
    pub alignment: u64,
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors in the order of the file; names are unique and ranges do not overlap.
    pub tensors: Vec<TensorInfo>,
    /// Where the tensor data starts, in bytes from the start of the file. In a file without tensors
    /// this may lie past the end.
    pub data_start: u64,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
}

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name: not empty, unique in the file, not fit for a terminal unless [`Escaped`].
    pub name: String,
    /// The dimensions, 1 to 4 of them, none of them zero. The first one is the length of a row and
    /// varies fastest.
    pub shape: Vec<u64>,
    /// How the elements are stored; a row is a whole number of blocks.
    pub dtype: DType,
    /// The bytes of the file that hold the data. They lie inside the file.
    pub range: Range<u64>,
}

impl Gguf {
    /// Reads the header of a file, given all of the file's bytes. Tensor data is not touched.
    ///
    /// # Errors
    /// One [`GgufError`] that names the first field found wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        reader::parse(bytes)
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let name_at = |&i: &u32| self.tensors[i as usize].name.as_str();
        let at = self.by_name.binary_search_by(|i| name_at(i).cmp(name)).ok()?;
        self.tensors.get(self.by_name[at] as usize)
    }
}

impl TensorInfo {
    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.shape[1..].iter().product()
    }

    /// The size of the data in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The tensor's data in `file`, the bytes that the header was parsed from; `None` if they are
    /// others and too short.
    pub fn data<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.range.start).ok()?;
        file.get(start..usize::try_from(self.range.end).ok()?)
    }
}

/// The indices of `items` sorted by name, or the name that occurs twice.
fn sorted_unique<T>(items: &[T], name: impl Fn(&T) -> &str) -> Result<Vec<u32>, &str> {
    // A header of at most `HEADER_BYTES_MAX` holds far fewer than 2^32 names.
    let mut order: Vec<u32> = (0..items.len() as u32).collect();
    order.sort_unstable_by_key(|&i| name(&items[i as usize]));
    match order
        .windows(2)
        .find(|pair| name(&items[pair[0] as usize]) == name(&items[pair[1] as usize]))
    {
        Some(pair) => Err(name(&items[pair[0] as usize])),
        None => Ok(order),
    }
}
