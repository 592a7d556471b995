//! Reading a header. Every count is checked against the bytes that are left before anything is
//! allocated for it, and every fault is reported with the field it was found in.

use aios_contract::DType;

use super::error::{Fault, Field, GgufError, TensorPart};
use super::value::{Array, Kind, Metadata, Value, wrong};
use super::{
    ALIGNMENT_DEFAULT, ALIGNMENT_KEY, Gguf, HEADER_BYTES_MAX, KEY_BYTES_MAX, MAGIC, NESTING_MAX,
    TENSOR_DIMS_MAX, TENSOR_NAME_BYTES_MAX, TensorInfo, sorted_unique,
};

/// The least that a metadata entry takes: length and one byte of key, type code, one byte of value.
const ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;
/// The least that a tensor's record takes: length and one byte of name, number of dimensions, one
/// dimension, type code, offset.
const RECORD_BYTES_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A tensor's record as the file has it: the offset counts from the start of the tensor data, which
/// is known only after the last record.
struct Record {
    name: String,
    shape: Vec<u64>,
    dtype: DType,
    bytes: u64,
    offset: u64,
}

pub(super) fn parse(file: &[u8]) -> Result<Gguf, GgufError> {
    let mut cursor = Cursor::new(file);
    let version = version(&mut cursor)?;
    let tensor_count =
        cursor.count(RECORD_BYTES_MIN).map_err(|fault| fault.at(Field::TensorCount))?;
    let entry_count =
        cursor.count(ENTRY_BYTES_MIN).map_err(|fault| fault.at(Field::MetadataCount))?;
    let metadata = metadata(&mut cursor, entry_count)?;
    let alignment = alignment(&metadata)?;
    // The metadata has used up bytes that the check of the tensor count still hoped for.
    cursor
        .room_for(tensor_count as u64, RECORD_BYTES_MIN)
        .map_err(|fault| fault.at(Field::TensorCount))?;
    let records = records(&mut cursor, tensor_count, alignment)?;
    // Both numbers are far below 2^63, so the sum cannot overflow.
    let data_start = cursor.offset().next_multiple_of(alignment);
    let tensors = place(records, data_start, file.len() as u64)?;
    let by_name = sorted_unique(&tensors, |tensor| &tensor.name)
        .map_err(|name| GgufError::DuplicateTensor { name: name.to_owned() })?;
    refuse_overlaps(&tensors)?;
    Ok(Gguf { version, alignment, metadata, tensors, data_start, by_name })
}

/// Reads magic and version.
fn version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let found = &cursor.bytes[..cursor.bytes.len().min(4)];
    if found.iter().rev().eq(MAGIC.iter()) {
        return Err(GgufError::BigEndian);
    }
    if cursor.take(4) != Ok(MAGIC.as_slice()) {
        return Err(GgufError::NotGguf { found: found.to_vec() });
    }
    let version = cursor.u32().map_err(|fault| fault.at(Field::Version))?;
    match version {
        2 | 3 => Ok(version),
        // The magic reads the same in both byte orders, a small version number does not.
        _ if matches!(version.swap_bytes(), 1..=0xffff) && version > 0xffff => {
            Err(GgufError::BigEndian)
        }
        _ => Err(GgufError::UnsupportedVersion { version }),
    }
}

fn metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Metadata, GgufError> {
    let mut entries = Vec::with_capacity(count);
    for index in 0..count as u64 {
        let key =
            cursor.name(KEY_BYTES_MAX).map_err(|fault| fault.at(Field::Key { index }))?.to_owned();
        match value(cursor) {
            Ok(value) => entries.push((key, value)),
            Err(fault) => return Err(fault.at(Field::Metadata { key })),
        }
    }
    Metadata::from_entries(entries)
}

fn value(cursor: &mut Cursor<'_>) -> Result<Value, Fault> {
    Ok(match cursor.kind()? {
        Kind::U8 => Value::U8(u8::from_le_bytes(cursor.array()?)),
        Kind::I8 => Value::I8(i8::from_le_bytes(cursor.array()?)),
        Kind::U16 => Value::U16(u16::from_le_bytes(cursor.array()?)),
        Kind::I16 => Value::I16(i16::from_le_bytes(cursor.array()?)),
        Kind::U32 => Value::U32(cursor.u32()?),
        Kind::I32 => Value::I32(i32::from_le_bytes(cursor.array()?)),
        Kind::F32 => Value::F32(f32::from_le_bytes(cursor.array()?)),
        Kind::U64 => Value::U64(cursor.u64()?),
        Kind::I64 => Value::I64(i64::from_le_bytes(cursor.array()?)),
        Kind::F64 => Value::F64(f64::from_le_bytes(cursor.array()?)),
        Kind::Bool => Value::Bool(truth(cursor.array::<1>()?[0])?),
        Kind::String => Value::String(cursor.string()?.to_owned()),
        Kind::Array => Value::Array(array(cursor, 1)?),
    })
}

/// Reads an array that is nested `depth` deep, 1 being an array of scalars.
fn array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Array, Fault> {
    let kind = cursor.kind()?;
    let count = cursor.count(kind.bytes_min())?;
    Ok(match kind {
        Kind::U8 => Array::U8(numbers(cursor, count, u8::from_le_bytes)?),
        Kind::I8 => Array::I8(numbers(cursor, count, i8::from_le_bytes)?),
        Kind::U16 => Array::U16(numbers(cursor, count, u16::from_le_bytes)?),
        Kind::I16 => Array::I16(numbers(cursor, count, i16::from_le_bytes)?),
        Kind::U32 => Array::U32(numbers(cursor, count, u32::from_le_bytes)?),
        Kind::I32 => Array::I32(numbers(cursor, count, i32::from_le_bytes)?),
        Kind::F32 => Array::F32(numbers(cursor, count, f32::from_le_bytes)?),
        Kind::U64 => Array::U64(numbers(cursor, count, u64::from_le_bytes)?),
        Kind::I64 => Array::I64(numbers(cursor, count, i64::from_le_bytes)?),
        Kind::F64 => Array::F64(numbers(cursor, count, f64::from_le_bytes)?),
        Kind::Bool => {
            let bytes = cursor.take(count as u64)?;
            Array::Bool(elements(count, bytes.iter().map(|&byte| truth(byte)))?)
        }
        Kind::String => {
            Array::String(elements(count, (0..count).map(|_| Ok(cursor.string()?.to_owned())))?)
        }
        Kind::Array if depth == NESTING_MAX => return Err(Fault::TooDeep { limit: NESTING_MAX }),
        Kind::Array => {
            Array::Nested(elements(count, (0..count).map(|_| array(cursor, depth + 1)))?)
        }
    })
}

/// Reads `count` numbers of `N` bytes, which [`Cursor::count`] found to be there.
fn numbers<T, const N: usize>(
    cursor: &mut Cursor<'_>,
    count: usize,
    decode: fn([u8; N]) -> T,
) -> Result<Vec<T>, Fault> {
    let bytes = cursor.take((count * N) as u64)?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|&chunk| decode(chunk)).collect())
}

/// Collects into exactly the room that `count` elements take: collecting fallible elements
/// directly would grow the vector by doubling.
fn elements<T>(
    count: usize,
    source: impl Iterator<Item = Result<T, Fault>>,
) -> Result<Vec<T>, Fault> {
    let mut list = Vec::with_capacity(count);
    for element in source {
        list.push(element?);
    }
    Ok(list)
}

fn truth(byte: u8) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fault::InvalidBool { byte }),
    }
}

/// The file's alignment: a power of two from 8 up, as the format demands.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let value = match metadata.get(ALIGNMENT_KEY) {
        None => ALIGNMENT_DEFAULT,
        Some(&Value::U32(value)) => value.into(),
        Some(other) => return Err(wrong(ALIGNMENT_KEY, "a u32", other)),
    };
    if value >= 8 && value.is_power_of_two() {
        return Ok(value);
    }
    Err(Fault::BadAlignment { value }.at(Field::Metadata { key: ALIGNMENT_KEY.to_owned() }))
}

fn records(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment: u64,
) -> Result<Vec<Record>, GgufError> {
    let mut records = Vec::with_capacity(count);
    for index in 0..count as u64 {
        let name = cursor
            .name(TENSOR_NAME_BYTES_MAX)
            .map_err(|fault| fault.at(Field::TensorName { index }))?
            .to_owned();
        records.push(record(cursor, name, alignment)?);
    }
    Ok(records)
}

/// Reads what follows the name: shape, type and offset.
fn record(cursor: &mut Cursor<'_>, name: String, alignment: u64) -> Result<Record, GgufError> {
    let at = |part| {
        let name = &name;
        move |fault: Fault| fault.at(Field::Tensor { name: name.clone(), part })
    };
    let shape = shape(cursor).map_err(at(TensorPart::Shape))?;
    let dtype = dtype(cursor).map_err(at(TensorPart::DType))?;
    let bytes = tensor_bytes(&shape, dtype).map_err(at(TensorPart::Shape))?;
    let offset = cursor.u64().map_err(at(TensorPart::Data))?;
    if !offset.is_multiple_of(alignment) {
        return Err(at(TensorPart::Data)(Fault::Misaligned { offset, alignment }));
    }
    Ok(Record { name, shape, dtype, bytes, offset })
}

fn shape(cursor: &mut Cursor<'_>) -> Result<Vec<u64>, Fault> {
    let count = cursor.u32()?;
    check_dimension_count(count.into())?;
    elements(count as usize, (0..count).map(|_| cursor.u64()))
}

pub(super) fn check_dimension_count(count: u64) -> Result<(), Fault> {
    if count == 0 || count > TENSOR_DIMS_MAX {
        return Err(Fault::DimensionCount { count, limit: TENSOR_DIMS_MAX });
    }
    Ok(())
}

/// Checks the length of a key or a tensor's name: 1 to `limit` bytes.
pub(super) fn check_name(name: &str, limit: u64) -> Result<(), Fault> {
    match name.len() as u64 {
        0 => Err(Fault::Empty),
        len if len > limit => Err(Fault::TooLong { len, limit }),
        _ => Ok(()),
    }
}

fn dtype(cursor: &mut Cursor<'_>) -> Result<DType, Fault> {
    let code = cursor.u32()?;
    DType::from_gguf(code).ok_or(Fault::UnknownDType { code })
}

/// The bytes that a tensor of this shape, of 1 to 4 dimensions, takes. The number of elements must
/// fit 64 bits too, so that nothing downstream has to fear for it.
pub(super) fn tensor_bytes(shape: &[u64], dtype: DType) -> Result<u64, Fault> {
    if let Some(axis) = shape.iter().position(|&dim| dim == 0) {
        return Err(Fault::ZeroDimension { axis });
    }
    let row_len = shape[0];
    if !row_len.is_multiple_of(dtype.block_len() as u64) {
        return Err(Fault::PartialBlock { row_len, dtype });
    }
    let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let blocks = elements.ok_or(Fault::Overflow)? / dtype.block_len() as u64;
    blocks.checked_mul(dtype.block_bytes() as u64).ok_or(Fault::Overflow)
}

/// Turns offsets into ranges of the file.
fn place(
    records: Vec<Record>,
    data_start: u64,
    file_len: u64,
) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = Vec::with_capacity(records.len());
    for Record { name, shape, dtype, bytes, offset } in records {
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        let fault = match (start, end) {
            (Some(start), Some(end)) if end <= file_len => {
                tensors.push(TensorInfo { name, shape, dtype, range: start..end });
                continue;
            }
            (_, Some(end)) => Fault::OutOfRange { end, file_len },
            (_, None) => Fault::Overflow,
        };
        return Err(fault.at(Field::Tensor { name, part: TensorPart::Data }));
    }
    Ok(tensors)
}

/// Sorts the ranges, so that only neighbours need comparing.
fn refuse_overlaps(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_unstable_by_key(|tensor| tensor.range.start);
    match order.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        None => Ok(()),
        Some(pair) => {
            Err(GgufError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() })
        }
    }
}

/// A position in the header. Reads either succeed or leave a fault that says what is wrong.
struct Cursor<'a> {
    /// The part of the file in which the header must lie.
    bytes: &'a [u8],
    at: usize,
    file_len: u64,
}

impl<'a> Cursor<'a> {
    fn new(file: &'a [u8]) -> Self {
        let bytes = &file[..file.len().min(HEADER_BYTES_MAX)];
        Self { bytes, at: 0, file_len: file.len() as u64 }
    }

    fn offset(&self) -> u64 {
        self.at as u64
    }

    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// What to report where `needed` bytes, `None` being more than 64 bits can count, go beyond the
    /// part in which the header must lie: `fault` of the bytes left if the file ends before them.
    fn beyond(&self, needed: Option<u64>, fault: impl FnOnce(u64) -> Fault) -> Fault {
        let left = self.file_len - self.offset();
        match needed {
            Some(needed) if needed <= left => {
                Fault::HeaderTooLong { limit: HEADER_BYTES_MAX as u64 }
            }
            _ => fault(left),
        }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        if len > self.remaining() {
            let offset = self.offset();
            return Err(self.beyond(Some(len), |remaining| Fault::Truncated {
                offset,
                needed: len,
                remaining,
            }));
        }
        let bytes = &self.bytes[self.at..][..len as usize];
        self.at += len as usize;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N as u64)?;
        Ok(*bytes.first_chunk().expect("take gives as many bytes as asked for"))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    fn kind(&mut self) -> Result<Kind, Fault> {
        let code = self.u32()?;
        Kind::from_code(code).ok_or(Fault::UnknownType { code })
    }

    /// Reads a count of entries that take at least `bytes_min` bytes each, and makes sure that the
    /// rest of the header could hold them.
    fn count(&mut self, bytes_min: u64) -> Result<usize, Fault> {
        let count = self.u64()?;
        self.room_for(count, bytes_min)
    }

    /// `count`, if the rest of the header could hold as many entries of at least `bytes_min` bytes.
    fn room_for(&self, count: u64, bytes_min: u64) -> Result<usize, Fault> {
        if count > self.remaining() / bytes_min {
            return Err(self.beyond(count.checked_mul(bytes_min), |remaining| {
                Fault::CountTooLarge { count, bytes_min, remaining }
            }));
        }
        Ok(count as usize)
    }

    fn string(&mut self) -> Result<&'a str, Fault> {
        let len = self.u64()?;
        let start = self.offset();
        let bytes = self.take(len)?;
        str::from_utf8(bytes)
            .map_err(|error| Fault::InvalidUtf8 { offset: start + error.valid_up_to() as u64 })
    }

    /// Reads a key or a tensor's name of 1 to `limit` bytes.
    fn name(&mut self, limit: u64) -> Result<&'a str, Fault> {
        let name = self.string()?;
        check_name(name, limit)?;
        Ok(name)
    }
}
