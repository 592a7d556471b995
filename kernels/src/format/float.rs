//! Plain floats: F32, F16 and BF16, little-endian, one element a block.
//!
//! An element is kept as bytes, so that a tensor may start at any address.

use super::Float;
use crate::simd::{LANES, Simd};
use aios_contract::DType;

/// IEEE 754 single precision.
pub(crate) struct F32;
/// IEEE 754 half precision.
pub(crate) struct F16;
/// The upper half of single precision.
pub(crate) struct Bf16;

impl Float for F32 {
    const DTYPE: DType = DType::F32;
    type Element = [u8; 4];

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[[u8; 4]; LANES]) -> S::F {
        simd.load(&x.map(f32::from_le_bytes))
    }
}

impl Float for F16 {
    const DTYPE: DType = DType::F16;
    type Element = [u8; 2];

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[[u8; 2]; LANES]) -> S::F {
        simd.load_f16(&x.map(u16::from_le_bytes))
    }
}

impl Float for Bf16 {
    const DTYPE: DType = DType::BF16;
    type Element = [u8; 2];

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[[u8; 2]; LANES]) -> S::F {
        simd.load_bf16(&x.map(u16::from_le_bytes))
    }
}
