//! Writing GGUF version 3: the header first, then the tensors' data in the order declared, which
//! may be streamed, so that a file may be far larger than memory.

use std::io::{self, Write};

use aios_contract::DType;

use super::error::{Fault, Field, GgufError, TensorPart};
use super::value::{Array, Metadata, Value};
use super::{
    HEADER_BYTES_MAX, KEY_BYTES_MAX, MAGIC, NESTING_MAX, TENSOR_NAME_BYTES_MAX, TensorInfo, reader,
    sorted_unique,
};

const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name, 1 to 64 bytes.
    pub name: String,
    /// The dimensions, 1 to 4 of them, none of them zero; the first one is the length of a row.
    pub shape: Vec<u64>,
    /// How the elements are stored.
    pub dtype: DType,
}

impl From<&TensorInfo> for TensorSpec {
    fn from(info: &TensorInfo) -> Self {
        Self { name: info.name.clone(), shape: info.shape.clone(), dtype: info.dtype }
    }
}

impl TensorSpec {
    /// The size of the tensor's data in bytes.
    ///
    /// # Errors
    /// [`GgufError::Malformed`] for a shape that no file may contain.
    pub fn bytes(&self) -> Result<u64, GgufError> {
        reader::check_dimension_count(self.shape.len() as u64)
            .and_then(|()| reader::tensor_bytes(&self.shape, self.dtype))
            .map_err(|fault| fault.at(self.field(TensorPart::Shape)))
    }

    fn field(&self, part: TensorPart) -> Field {
        Field::Tensor { name: self.name.clone(), part }
    }
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What was asked for is nothing that a GGUF file can hold.
    #[error(transparent)]
    Invalid(#[from] GgufError),
    /// The header would be longer than readers accept.
    #[error("the header would take {bytes} bytes, at most {HEADER_BYTES_MAX} are allowed")]
    HeaderTooLong {
        /// Its length.
        bytes: u64,
    },
    /// Data came for a tensor other than the next one declared.
    #[error("data for tensor {name:?}, but the next one declared is {}", or_none(.expected))]
    NotNext {
        /// The tensor that data came for.
        name: String,
        /// The next one declared, if any is left.
        expected: Option<String>,
    },
    /// A tensor got less data than it takes, or none.
    #[error("tensor {name:?} got {written} of {bytes} bytes")]
    Incomplete {
        /// The tensor.
        name: String,
        /// The bytes that were written.
        written: u64,
        /// The bytes that it takes.
        bytes: u64,
    },
    /// A tensor got more data than it takes; nothing of the last chunk was written.
    #[error("tensor {name:?} takes {bytes} bytes, {excess} more came")]
    TooMuch {
        /// The tensor.
        name: String,
        /// The bytes that it takes.
        bytes: u64,
        /// The bytes beyond that.
        excess: u64,
    },
    /// Data came before any tensor was started.
    #[error("data came before a tensor was started")]
    NotStarted,
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn or_none(name: &Option<String>) -> String {
    name.as_ref().map_or("none".to_owned(), |name| format!("{name:?}"))
}

/// Writes one file: [`Writer::new`] with all metadata and tensors, then for each tensor in order
/// [`Writer::start`] and any number of [`Writer::append`] (or [`Writer::tensor`], which is both),
/// then [`Writer::finish`].
///
/// What it writes, [`super::Gguf::parse`] reads. The output gets many small writes; hand it a
/// [`io::BufWriter`] if they are costly.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    alignment: u64,
    /// Name and size in bytes of every tensor.
    tensors: Vec<(String, u64)>,
    /// How many tensors were started; the last of them is the one being written.
    started: usize,
    /// Bytes of that tensor written so far, with its padding once that is written.
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Checks everything, then writes the header and pads it. The alignment is that of the key
    /// `general.alignment`, or 32.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] or [`WriteError::HeaderTooLong`] before anything is written, and
    /// [`WriteError::Io`].
    pub fn new(
        mut out: W,
        metadata: &Metadata,
        tensors: &[TensorSpec],
    ) -> Result<Self, WriteError> {
        let alignment = reader::alignment(metadata)?;
        sorted_unique(tensors, |spec| &spec.name)
            .map_err(|name| GgufError::DuplicateTensor { name: name.to_owned() })?;
        let header = header(metadata, tensors, alignment)?;
        if header.len() > HEADER_BYTES_MAX {
            return Err(WriteError::HeaderTooLong { bytes: header.len() as u64 });
        }
        out.write_all(&header)?;
        pad(&mut out, header.len() as u64, alignment)?;
        let sized = |spec: &TensorSpec| Ok((spec.name.clone(), spec.bytes()?));
        let tensors = tensors.iter().map(sized).collect::<Result<_, GgufError>>()?;
        Ok(Self { out, alignment, tensors, started: 0, written: 0 })
    }

    /// Starts the data of `name`, which must be the next tensor declared.
    ///
    /// # Errors
    /// [`WriteError::NotNext`], [`WriteError::Incomplete`] if the tensor before it lacks data, and
    /// [`WriteError::Io`].
    pub fn start(&mut self, name: &str) -> Result<(), WriteError> {
        self.end_tensor()?;
        let next = self.tensors.get(self.started).map(|(next, _)| next);
        if next.is_none_or(|next| next != name) {
            let expected = next.cloned();
            return Err(WriteError::NotNext { name: name.to_owned(), expected });
        }
        self.started += 1;
        self.written = 0;
        Ok(())
    }

    /// Writes the next bytes of the tensor last started.
    ///
    /// # Errors
    /// [`WriteError::NotStarted`], [`WriteError::TooMuch`] and [`WriteError::Io`].
    pub fn append(&mut self, data: &[u8]) -> Result<(), WriteError> {
        let Some((name, bytes)) = self.current() else { return Err(WriteError::NotStarted) };
        // A tensor that was padded has no room left.
        let room = bytes.saturating_sub(self.written);
        if data.len() as u64 > room {
            let excess = data.len() as u64 - room;
            return Err(WriteError::TooMuch { name: name.clone(), bytes: *bytes, excess });
        }
        self.out.write_all(data)?;
        self.written += data.len() as u64;
        Ok(())
    }

    /// Writes all data of `name`, which must be the next tensor declared.
    ///
    /// # Errors
    /// Those of [`Self::start`] and [`Self::append`]. Too little data is reported by the next call.
    pub fn tensor(&mut self, name: &str, data: &[u8]) -> Result<(), WriteError> {
        self.start(name)?;
        self.append(data)
    }

    /// Ends the file, flushes the output and gives it back.
    ///
    /// # Errors
    /// [`WriteError::Incomplete`] if a tensor lacks data, and [`WriteError::Io`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.end_tensor()?;
        if let Some((name, bytes)) = self.tensors.get(self.started) {
            return Err(WriteError::Incomplete { name: name.clone(), written: 0, bytes: *bytes });
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Name and size of the tensor being written.
    fn current(&self) -> Option<&(String, u64)> {
        self.tensors.get(self.started.checked_sub(1)?)
    }

    /// Pads the tensor being written, if there is one. The last one is padded too, because some
    /// readers count the padding of every tensor as part of the file.
    fn end_tensor(&mut self) -> Result<(), WriteError> {
        let Some((name, bytes)) = self.current() else { return Ok(()) };
        if self.written < *bytes {
            let (name, written, bytes) = (name.clone(), self.written, *bytes);
            return Err(WriteError::Incomplete { name, written, bytes });
        }
        pad(&mut self.out, self.written, self.alignment)?;
        // A second call has nothing left to pad.
        self.written = self.written.next_multiple_of(self.alignment);
        Ok(())
    }
}

/// Writes zeros up to the next multiple of `alignment` after `len` bytes.
fn pad(out: &mut impl Write, len: u64, alignment: u64) -> io::Result<()> {
    let missing = len.next_multiple_of(alignment) - len;
    io::copy(&mut io::Read::take(io::repeat(0), missing), out).map(drop)
}

fn header(
    metadata: &Metadata,
    tensors: &[TensorSpec],
    alignment: u64,
) -> Result<Vec<u8>, GgufError> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (index, (key, value)) in (0u64..).zip(metadata.iter()) {
        reader::check_name(key, KEY_BYTES_MAX).map_err(|fault| fault.at(Field::Key { index }))?;
        put_string(&mut out, key);
        put_value(&mut out, value)
            .map_err(|fault| fault.at(Field::Metadata { key: key.to_owned() }))?;
    }
    let mut offset = 0u64;
    for (index, spec) in (0u64..).zip(tensors) {
        reader::check_name(&spec.name, TENSOR_NAME_BYTES_MAX)
            .map_err(|fault| fault.at(Field::TensorName { index }))?;
        put_string(&mut out, &spec.name);
        out.extend((spec.shape.len() as u32).to_le_bytes());
        out.extend(spec.shape.iter().flat_map(|dim| dim.to_le_bytes()));
        out.extend(spec.dtype.gguf_code().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let end = offset.checked_add(spec.bytes()?);
        offset = end
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| Fault::Overflow.at(spec.field(TensorPart::Data)))?;
    }
    // A reader adds the offsets to the end of the header.
    if offset.checked_add(out.len() as u64 + alignment).is_none()
        && let Some(last) = tensors.last()
    {
        return Err(Fault::Overflow.at(last.field(TensorPart::Data)));
    }
    Ok(out)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) -> Result<(), Fault> {
    out.extend(value.kind().code().to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v, 1)?,
    }
    Ok(())
}

/// Writes an array that is nested `depth` deep, 1 being an array of scalars.
fn put_array(out: &mut Vec<u8>, array: &Array, depth: usize) -> Result<(), Fault> {
    out.extend(array.kind().code().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::String(v) => v.iter().for_each(|text| put_string(out, text)),
        Array::Nested(_) if depth == NESTING_MAX => {
            return Err(Fault::TooDeep { limit: NESTING_MAX });
        }
        Array::Nested(v) => v.iter().try_for_each(|array| put_array(out, array, depth + 1))?,
    }
    Ok(())
}
