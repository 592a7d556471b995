//! What can be wrong with a GGUF file: always the field, and what about it.

use std::fmt::{self, Write as _};

use aios_contract::DType;

use super::split::SplitFault;
use super::value::Type;

/// Longest piece of a file's own text that an error message repeats, in characters.
const ECHO_CHARS_MAX: usize = 80;

/// Why a file was refused, or why a metadata value could not be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GgufError {
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with \"{}\" instead of \"GGUF\"", found.escape_ascii())]
    NotGguf {
        /// The first bytes of the file, four at most.
        found: Vec<u8>,
    },
    /// The file was written for a big-endian machine.
    #[error("the file is big-endian; convert it to a little-endian GGUF file")]
    BigEndian,
    /// A version of the format other than 2 and 3.
    #[error("GGUF version {version} is not supported (2 and 3 are); convert the file again")]
    UnsupportedVersion {
        /// The version in the header.
        version: u32,
    },
    /// One field of the header cannot be right.
    #[error("{field}: {fault}")]
    Malformed {
        /// The field.
        field: Field,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A metadata key occurs twice.
    #[error("metadata key {} occurs twice", echo(key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name occurs twice, in one file or across the parts of a split one.
    #[error("tensor {} occurs twice", echo(name))]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// Two tensors share bytes.
    #[error("the data of tensors {} and {} overlap", echo(first), echo(second))]
    Overlap {
        /// The tensor whose data starts first.
        first: String,
        /// The tensor that starts before the first one ends.
        second: String,
    },
    /// A key that the reader of the metadata cannot do without is absent.
    #[error("metadata key {} is missing", echo(key))]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value has another type than its key calls for.
    #[error("metadata key {}: expected {expected}, found {found}", echo(key))]
    WrongType {
        /// The key.
        key: String,
        /// What the key calls for, in words.
        expected: &'static str,
        /// The type in the file.
        found: Type,
    },
    /// A metadata integer is negative where only a count, size or index makes sense.
    #[error("metadata key {}: {value} is negative", echo(key))]
    Negative {
        /// The key.
        key: String,
        /// The value in the file.
        value: i64,
    },
    /// The parts of a split file do not belong together.
    #[error("split file: {0}")]
    Split(#[from] SplitFault),
}

/// A place in a GGUF header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// The version number.
    Version,
    /// The number of tensors.
    TensorCount,
    /// The number of metadata entries.
    MetadataCount,
    /// The key of a metadata entry.
    Key {
        /// The entry's index in the file, from 0.
        index: u64,
    },
    /// The type code or the value of a metadata entry.
    Metadata {
        /// The entry's key.
        key: String,
    },
    /// The name of a tensor.
    TensorName {
        /// The tensor's index in the file, from 0.
        index: u64,
    },
    /// Some part of a tensor's record.
    Tensor {
        /// The tensor's name.
        name: String,
        /// Which part of the record.
        part: TensorPart,
    },
}

/// Part of a tensor's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorPart {
    /// The number of dimensions and the dimensions.
    Shape,
    /// The type code.
    DType,
    /// The offset of the data and, with the size, the range it spans.
    Data,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file ends inside the field.
    #[error(
        "the file ends too early: {needed} bytes needed at offset {offset}, {remaining} left; \
         fetch the file again"
    )]
    Truncated {
        /// Where the field's bytes should start.
        offset: u64,
        /// How many bytes it takes.
        needed: u64,
        /// How many bytes there are.
        remaining: u64,
    },
    /// A count is larger than what the rest of the file could hold.
    #[error(
        "{count} entries of at least {bytes_min} bytes each are announced, {remaining} bytes left"
    )]
    CountTooLarge {
        /// The announced count.
        count: u64,
        /// The least that one entry takes in the file.
        bytes_min: u64,
        /// How many bytes there are.
        remaining: u64,
    },
    /// The header goes on beyond what any real model needs.
    #[error("the header is longer than {limit} bytes")]
    HeaderTooLong {
        /// The longest header that is read.
        limit: u64,
    },
    /// A string is not UTF-8.
    #[error("invalid UTF-8 at offset {offset}")]
    InvalidUtf8 {
        /// Offset of the first bad byte in the file.
        offset: u64,
    },
    /// A key or a name is empty.
    #[error("it is empty")]
    Empty,
    /// A key or a name is longer than the format allows.
    #[error("it is {len} bytes long, at most {limit} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// A metadata type code that the format does not define.
    #[error("unknown metadata type {code}")]
    UnknownType {
        /// The code.
        code: u32,
    },
    /// A truth value other than 0 and 1.
    #[error("{byte} is not a truth value")]
    InvalidBool {
        /// The byte in the file.
        byte: u8,
    },
    /// Arrays are nested too deep.
    #[error("arrays are nested more than {limit} deep")]
    TooDeep {
        /// The deepest nesting that is read.
        limit: usize,
    },
    /// An alignment that is not a power of two from 8 up.
    #[error("alignment {value} is not a power of two of at least 8")]
    BadAlignment {
        /// The alignment in the file.
        value: u64,
    },
    /// A tensor has no dimensions or too many.
    #[error("{count} dimensions, 1 to {limit} are allowed")]
    DimensionCount {
        /// The number of dimensions.
        count: u64,
        /// The most that are allowed.
        limit: u64,
    },
    /// A dimension is zero.
    #[error("dimension {axis} is zero")]
    ZeroDimension {
        /// Which dimension, from 0.
        axis: usize,
    },
    /// The size or the end of a tensor does not fit 64 bits.
    #[error("its size overflows")]
    Overflow,
    /// A tensor type that the engine does not read.
    #[error(
        "tensor type code {code} is not supported; quantise the model to a supported type such \
         as Q4_K"
    )]
    UnknownDType {
        /// The code.
        code: u32,
    },
    /// A row is not a whole number of blocks.
    #[error("rows of {row_len} elements are not whole blocks of {} ({dtype})", dtype.block_len())]
    PartialBlock {
        /// Elements in a row.
        row_len: u64,
        /// The tensor's type.
        dtype: DType,
    },
    /// A tensor's data does not start on the file's alignment.
    #[error("offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The offset, relative to the start of the tensor data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor's data ends after the file does.
    #[error(
        "its data would end at byte {end} of a file of {file_len}; the file is incomplete, fetch \
         it again"
    )]
    OutOfRange {
        /// Where the data would end.
        end: u64,
        /// The length of the file.
        file_len: u64,
    },
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version => f.write_str("version"),
            Self::TensorCount => f.write_str("tensor count"),
            Self::MetadataCount => f.write_str("metadata count"),
            Self::Key { index } => write!(f, "key of metadata entry {index}"),
            Self::Metadata { key } => write!(f, "metadata key {}", echo(key)),
            Self::TensorName { index } => write!(f, "name of tensor {index}"),
            Self::Tensor { name, part } => write!(f, "tensor {}, {part}", echo(name)),
        }
    }
}

impl fmt::Display for TensorPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "shape",
            Self::DType => "type",
            Self::Data => "data",
        })
    }
}

impl Fault {
    /// The error that says where this fault is.
    pub(super) fn at(self, field: Field) -> GgufError {
        GgufError::Malformed { field, fault: self }
    }
}

/// Text from a file made fit for a terminal: control, format and other invisible characters,
/// double quotes and backslashes become escapes such as `\n` and `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a> {
    text: &'a str,
    chars_max: usize,
}

impl<'a> Escaped<'a> {
    /// All of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text, chars_max: usize::MAX }
    }

    /// The first `chars_max` characters of `text`, followed by `…` if there are more.
    pub fn shortened(text: &'a str, chars_max: usize) -> Self {
        Self { text, chars_max }
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.text.chars();
        for c in chars.by_ref().take(self.chars_max) {
            match c {
                // Only double quotes ever surround the text.
                '\'' => f.write_char(c)?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// `text` as a message quotes it: escaped, shortened, in quotation marks.
pub(super) fn echo(text: &str) -> impl fmt::Display {
    format!("\"{}\"", Escaped::shortened(text, ECHO_CHARS_MAX))
}
