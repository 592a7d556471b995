//! Weights as floats, one row or several at a time, in the order of operations of SPEC.md.

use crate::format::{self, Float, Format32, Format256, Visitor};
use crate::isa::{Isa, Op};
use crate::simd::Simd;
use aios_contract::DType;
use std::marker::PhantomData;

/// Slices whose lengths do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The elements are not a whole number of blocks.
    #[error("{elements} elements are not a whole number of {dtype} blocks of {}", dtype.block_len())]
    PartialBlock {
        /// The weights' dtype.
        dtype: DType,
        /// The number asked for.
        elements: usize,
    },
    /// The weights have the wrong number of bytes.
    #[error("{elements} elements of {dtype} take {expected} bytes, but {found} were given")]
    Bytes {
        /// The weights' dtype.
        dtype: DType,
        /// The number asked for.
        elements: usize,
        /// The bytes that these take.
        expected: usize,
        /// The bytes that were given.
        found: usize,
    },
}

/// Writes the elements of `bytes`, weights of type `dtype` as they stand in a file, to `out`.
/// The bits are the same on every `isa`; a NaN stays one, but its payload may change.
///
/// # Errors
/// [`ShapeError`] unless `out` is a whole number of blocks (any number of them, so several rows
/// are fine) and `bytes` holds just these. `out` is then unchanged.
pub fn dequantize(isa: Isa, dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), ShapeError> {
    let elements = out.len();
    let expected = dtype.row_bytes(elements).ok_or(ShapeError::PartialBlock { dtype, elements })?;
    if bytes.len() != expected {
        return Err(ShapeError::Bytes { dtype, elements, expected, found: bytes.len() });
    }
    format::visit(dtype, Rows { isa, bytes, out });
    Ok(())
}

/// Rows of a format yet to be chosen; their lengths agree.
struct Rows<'a> {
    isa: Isa,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

/// The same with the format `F`, of one of the three kinds.
struct FloatRows<'a, F>(Rows<'a>, PhantomData<F>);
struct Rows32<'a, F>(Rows<'a>, PhantomData<F>);
struct Rows256<'a, F>(Rows<'a>, PhantomData<F>);

impl Visitor for Rows<'_> {
    type Output = ();

    fn float<F: Float>(self) {
        self.isa.run(FloatRows::<F>(self, PhantomData));
    }
    fn blocks32<F: Format32>(self) {
        self.isa.run(Rows32::<F>(self, PhantomData));
    }
    fn blocks256<F: Format256>(self) {
        self.isa.run(Rows256::<F>(self, PhantomData));
    }
}

impl<F: Float> Op for FloatRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        format::convert::<F, S>(simd, format::blocks(self.0.bytes), self.0.out);
    }
}

impl<F: Format32> Op for Rows32<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        format::dequantize32::<F, S>(simd, format::blocks(self.0.bytes), self.0.out);
    }
}

impl<F: Format256> Op for Rows256<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        format::dequantize256::<F, S>(simd, format::blocks(self.0.bytes), self.0.out);
    }
}
