//! The rotation of heads that are kept as codes: signs, then Walsh-Hadamard transforms, which
//! spread what is in one element over all of them (SPEC N11). Inner products stay what they are,
//! up to rounding, so that a rotated query meets rotated keys.

use super::MAX_HEAD_LEN;
use crate::isa::Op;
use crate::simd::{F32s, LANES, Simd};

/// A sign for each element of a head: bit 0 of SplitMix64's output for the element's number.
const SIGNS: [f32; MAX_HEAD_LEN] = {
    let mut signs = [1.0; MAX_HEAD_LEN];
    let mut i = 0;
    while i < MAX_HEAD_LEN {
        let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) & 1 == 1 {
            signs[i] = -1.0;
        }
        i += 1;
    }
    signs
};

/// Rotates a head, or back.
pub(super) struct Turn<'a> {
    pub(super) head: &'a mut [f32],
    pub(super) back: bool,
}

impl Op for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { head, back } = self;
        if back {
            transform(head);
            sign(head);
        } else {
            sign(head);
            transform(head);
        }
    }
}

#[inline(always)]
fn sign(head: &mut [f32]) {
    for (x, sign) in head.iter_mut().zip(&SIGNS) {
        *x *= sign;
    }
}

/// Butterflies at distance `H` within a vector.
#[inline(always)]
fn within<const H: usize>(x: &mut F32s) {
    for i in (0..LANES).filter(|i| i & H == 0) {
        (x[i], x[i + H]) = (x[i] + x[i + H], x[i] - x[i + H]);
    }
}

/// Orthonormal transforms of blocks as long as the largest power of two that divides the length,
/// which is a multiple of 16.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "heads have at most 256 elements")]
fn transform(head: &mut [f32]) {
    let len = 1 << head.len().trailing_zeros();
    let scale = 1.0 / (len as f32).sqrt();
    let (groups, _) = head.as_chunks_mut::<LANES>();
    for group in groups {
        within::<1>(group);
        within::<2>(group);
        within::<4>(group);
        within::<8>(group);
    }
    for block in head.chunks_exact_mut(len) {
        let mut half = LANES;
        while half < len {
            for pair in block.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|x| *x *= scale);
    }
}
