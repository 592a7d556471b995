//! What products share whose lanes own a row each.

use crate::simd::{LANES, Simd};

/// Additions of products of weights up to `max` that fit 16 bits: a pair is at most 2 · 127 · max.
pub(crate) const fn additions(signed: bool, max: u8) -> usize {
    match (signed, max) {
        (true, _) | (false, 64..) => 1,
        (false, 32..=63) => 2,
        (false, 16..=31) => 4,
        (false, 0..=15) => 8,
    }
}

/// A float whose bits are a word, in all lanes.
#[inline(always)]
pub(crate) fn float<S: Simd>(simd: S, word: i32) -> S::F {
    simd.splat(f32::from_bits(word.cast_unsigned()))
}

/// A half-precision number for each lane.
#[inline(always)]
pub(crate) fn half<S: Simd>(simd: S, bits: &[[u8; 2]; LANES]) -> S::F {
    simd.load_f16(&bits.map(u16::from_le_bytes))
}

/// Adds products of weights that are unsigned, or `biased` by 128.
#[inline(always)]
pub(crate) fn add_weights<S: Simd>(simd: S, biased: bool, sums: S::P, w: S::B, x: i32) -> S::P {
    if biased { simd.add_biased(sums, w, x) } else { simd.add_products(sums, w, x) }
}
