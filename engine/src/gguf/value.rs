//! Metadata: typed values under unique keys, in the order of the file.

use std::fmt;

use super::error::{Escaped, GgufError};

/// How many elements of an array, and characters of a string, printing a [`Value`] shows.
const SHOWN_ELEMENTS_MAX: usize = 4;
const SHOWN_CHARS_MAX: usize = 200;

/// The kind of a metadata value, or of the elements of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the type it is named after")]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// One row of the table: (kind, GGUF type code, name, the least bytes a value takes in a file).
type Row = (Kind, u32, &'static str, u64);

const TABLE: [Row; 13] = [
    (Kind::U8, 0, "u8", 1),
    (Kind::I8, 1, "i8", 1),
    (Kind::U16, 2, "u16", 2),
    (Kind::I16, 3, "i16", 2),
    (Kind::U32, 4, "u32", 4),
    (Kind::I32, 5, "i32", 4),
    (Kind::F32, 6, "f32", 4),
    (Kind::Bool, 7, "bool", 1),
    (Kind::String, 8, "string", 8),
    (Kind::Array, 9, "array", 12),
    (Kind::U64, 10, "u64", 8),
    (Kind::I64, 11, "i64", 8),
    (Kind::F64, 12, "f64", 8),
];

impl Kind {
    const fn row(self) -> &'static Row {
        let row = &TABLE[self as usize];
        assert!(row.0 as usize == self as usize);
        row
    }

    /// The kind with GGUF type code `code`.
    pub fn from_code(code: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    /// The type code in a file.
    pub const fn code(self) -> u32 {
        self.row().1
    }

    /// The least number of bytes that a value of this kind takes in a file.
    pub(super) const fn bytes_min(self) -> u64 {
        self.row().3
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.row().2)
    }
}

/// The type of a metadata value as errors and tools print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A single value; never of kind [`Kind::Array`].
    Scalar(Kind),
    /// An array with elements of this kind.
    Array(Kind),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(kind) => write!(f, "{kind}"),
            Self::Array(kind) => write!(f, "array of {kind}"),
        }
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds the type it is named after")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array; all elements are of one kind.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds elements of the type it is named after")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    /// Arrays of arrays, each with its own kind of elements.
    Nested(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Runs `$body` with `$v` bound to the payload of whichever variant `$self` is.
macro_rules! each_variant {
    ($self:expr, $enum:ident, $array:ident, $v:ident => $body:expr) => {
        match $self {
            $enum::U8($v) => $body,
            $enum::I8($v) => $body,
            $enum::U16($v) => $body,
            $enum::I16($v) => $body,
            $enum::U32($v) => $body,
            $enum::I32($v) => $body,
            $enum::F32($v) => $body,
            $enum::Bool($v) => $body,
            $enum::String($v) => $body,
            $enum::$array($v) => $body,
            $enum::U64($v) => $body,
            $enum::I64($v) => $body,
            $enum::F64($v) => $body,
        }
    };
}

impl Value {
    /// The kind of the value, which is what a file's type code says.
    pub fn kind(&self) -> Kind {
        match self {
            Self::U8(_) => Kind::U8,
            Self::I8(_) => Kind::I8,
            Self::U16(_) => Kind::U16,
            Self::I16(_) => Kind::I16,
            Self::U32(_) => Kind::U32,
            Self::I32(_) => Kind::I32,
            Self::F32(_) => Kind::F32,
            Self::Bool(_) => Kind::Bool,
            Self::String(_) => Kind::String,
            Self::Array(_) => Kind::Array,
            Self::U64(_) => Kind::U64,
            Self::I64(_) => Kind::I64,
            Self::F64(_) => Kind::F64,
        }
    }

    /// The type of the value, with the kind of the elements if it is an array.
    pub fn type_of(&self) -> Type {
        match self {
            Self::Array(array) => Type::Array(array.kind()),
            _ => Type::Scalar(self.kind()),
        }
    }

    /// The value as a signed 128-bit integer, if it is of an integer kind.
    fn integer(&self) -> Option<i128> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::I8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::U64(v) => Some(v.into()),
            Self::I64(v) => Some(v.into()),
            _ => None,
        }
    }
}

impl Array {
    /// The kind of the elements.
    pub fn kind(&self) -> Kind {
        match self {
            Self::U8(_) => Kind::U8,
            Self::I8(_) => Kind::I8,
            Self::U16(_) => Kind::U16,
            Self::I16(_) => Kind::I16,
            Self::U32(_) => Kind::U32,
            Self::I32(_) => Kind::I32,
            Self::F32(_) => Kind::F32,
            Self::Bool(_) => Kind::Bool,
            Self::String(_) => Kind::String,
            Self::Nested(_) => Kind::Array,
            Self::U64(_) => Kind::U64,
            Self::I64(_) => Kind::I64,
            Self::F64(_) => Kind::F64,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        each_variant!(self, Self, Nested, v => v.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as 128-bit integers, if they are of an integer kind.
    fn integers(&self) -> Option<Vec<i128>> {
        fn widen<T: Copy + Into<i128>>(values: &[T]) -> Option<Vec<i128>> {
            Some(values.iter().map(|&v| v.into()).collect())
        }
        match self {
            Self::U8(v) => widen(v),
            Self::I8(v) => widen(v),
            Self::U16(v) => widen(v),
            Self::I16(v) => widen(v),
            Self::U32(v) => widen(v),
            Self::I32(v) => widen(v),
            Self::U64(v) => widen(v),
            Self::I64(v) => widen(v),
            _ => None,
        }
    }
}

/// Prints the value on one line, strings quoted and escaped; what is long is shortened.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        each_variant!(self, Self, Array, v => v.show(f))
    }
}

/// Prints the number of elements and the first few of them, escaped.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn first<T: Show>(elements: &[T], f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for (i, element) in elements.iter().take(SHOWN_ELEMENTS_MAX).enumerate() {
                f.write_str(if i == 0 { "" } else { ", " })?;
                element.show(f)?;
            }
            f.write_str(if elements.len() > SHOWN_ELEMENTS_MAX { ", …]" } else { "]" })
        }
        write!(f, "{} {} [", self.len(), self.kind())?;
        each_variant!(self, Self, Nested, v => first(v, f))
    }
}

/// Printing with file text escaped.
trait Show {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

macro_rules! show_as_display {
    ($($type:ty),*) => {$(
        impl Show for $type {
            fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    )*};
}
show_as_display!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bool, Array);

impl Show for String {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", Escaped::shortened(self, SHOWN_CHARS_MAX))
    }
}

macro_rules! value_from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }
        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Self {
                Self::Array(Array::$variant(values))
            }
        }
    )*};
}
value_from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64,
    i64 => I64, f32 => F32, f64 => F64, bool => Bool, String => String);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Self {
        Self::Array(value)
    }
}

/// The metadata of a file: values under unique keys, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Indices into `entries`, sorted by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// Metadata without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Metadata with these entries, in this order.
    ///
    /// # Errors
    /// [`GgufError::DuplicateKey`] if a key occurs twice.
    pub fn from_entries(entries: Vec<(String, Value)>) -> Result<Self, GgufError> {
        let by_key = super::sorted_unique(&entries, |entry| &entry.0)
            .map_err(|key| GgufError::DuplicateKey { key: key.to_owned() })?;
        Ok(Self { entries, by_key })
    }

    /// Sets `key` to `value`: in place if the key is there, else at the end.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.find(&key) {
            Ok(at) => self.entries[self.by_key[at] as usize].1 = value,
            Err(at) => {
                let index = u32::try_from(self.entries.len()).expect("metadata fits memory");
                self.by_key.insert(at, index);
                self.entries.push((key, value));
            }
        }
    }

    /// Where `key` is, or belongs, in `by_key`.
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.by_key.binary_search_by(|&i| self.entries[i as usize].0.as_str().cmp(key))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let at = self.find(key).ok()?;
        Some(&self.entries[self.by_key[at] as usize].1)
    }

    /// All entries in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The integer under `key`, which may be of any integer kind.
    ///
    /// # Errors
    /// [`GgufError::WrongType`], or [`GgufError::Negative`] for a negative number.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wide = value.integer().ok_or_else(|| wrong(key, "a non-negative integer", value))?;
        non_negative(key, wide).map(Some)
    }

    /// The array of integers under `key`, which may be of any integer kind.
    ///
    /// # Errors
    /// [`GgufError::WrongType`], or [`GgufError::Negative`] for a negative element.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let integers = if let Value::Array(array) = value { array.integers() } else { None };
        let wide = integers.ok_or_else(|| wrong(key, "an array of integers", value))?;
        wide.into_iter().map(|v| non_negative(key, v)).collect::<Result<_, _>>().map(Some)
    }
}

/// The pairs of accessors for values that need no conversion.
macro_rules! typed_access {
    ($($name:ident, $require:ident -> $type:ty, $expected:literal,
        $pattern:pat => $result:expr;)*) => {
        impl Metadata {$(
            #[doc = concat!("The value under `key`, which must be ", $expected, ".")]
            ///
            /// # Errors
            /// [`GgufError::WrongType`].
            pub fn $name(&self, key: &str) -> Result<Option<$type>, GgufError> {
                match self.get(key) {
                    None => Ok(None),
                    Some($pattern) => Ok(Some($result)),
                    Some(other) => Err(wrong(key, $expected, other)),
                }
            }
        )*}
        required! {$($name, $require -> $type;)*}
    };
}

/// The accessors that insist on the key.
macro_rules! required {
    ($($name:ident, $require:ident -> $type:ty;)*) => {
        impl Metadata {$(
            #[doc = concat!("As [`Self::", stringify!($name), "`], for a key that must be there.")]
            ///
            /// # Errors
            /// [`GgufError::MissingKey`], and those of the method named.
            pub fn $require(&self, key: &str) -> Result<$type, GgufError> {
                self.$name(key)?.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
            }
        )*}
    };
}

typed_access! {
    str, require_str -> &str, "a string", Value::String(v) => v;
    f32, require_f32 -> f32, "an f32", Value::F32(v) => *v;
    bool, require_bool -> bool, "a bool", Value::Bool(v) => *v;
    strings, require_strings -> &[String], "an array of strings",
        Value::Array(Array::String(v)) => v;
    f32s, require_f32s -> &[f32], "an array of f32", Value::Array(Array::F32(v)) => v;
    i32s, require_i32s -> &[i32], "an array of i32", Value::Array(Array::I32(v)) => v;
    bools, require_bools -> &[bool], "an array of bools", Value::Array(Array::Bool(v)) => v;
}
required! {
    u64, require_u64 -> u64;
    u64s, require_u64s -> Vec<u64>;
}

pub(super) fn wrong(key: &str, expected: &'static str, found: &Value) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), expected, found: found.type_of() }
}

fn non_negative(key: &str, wide: i128) -> Result<u64, GgufError> {
    // Every integer kind fits 65 bits, so what is no u64 is a negative i64.
    u64::try_from(wide).map_err(|_| GgufError::Negative { key: key.to_owned(), value: wide as i64 })
}
