//! What blocks of positions give for a query, and how it is merged.

use super::MAX_HEAD_LEN;
use crate::isa::Op;
use crate::math;
use crate::simd::{LANES, Simd};

/// What a block, or several merged, give for a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partial {
    /// The largest score.
    pub(super) max: f32,
    /// Σ e^(s − max); 0 if there was no position to see.
    pub(super) sum: f32,
    /// Σ e^(s − max) · v.
    pub(super) out: [f32; MAX_HEAD_LEN],
}

impl Partial {
    pub(super) const EMPTY: Self = Self { max: 0.0, sum: 0.0, out: [0.0; MAX_HEAD_LEN] };
}

/// Merges a block's result into a state: with M the larger maximum and a, b = e^(max − M),
/// sum = fma(sum, a, sum_b · b) and out likewise. The first block is taken as it is.
pub(super) struct Merge<'a> {
    pub(super) state: &'a mut Partial,
    pub(super) block: &'a Partial,
    /// Elements of the output.
    pub(super) len: usize,
}

impl Op for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { state, block, len } = self;
        if block.sum == 0.0 {
            return;
        }
        let len = len.next_multiple_of(LANES);
        if state.sum == 0.0 {
            (state.max, state.sum) = (block.max, block.sum);
            state.out[..len].copy_from_slice(&block.out[..len]);
            return;
        }
        let max = if state.max > block.max { state.max } else { block.max };
        let mut exponents = [0.0; LANES];
        (exponents[0], exponents[1]) = (state.max - max, block.max - max);
        let mut factors = [0.0; LANES];
        simd.store(math::exp(simd, simd.load(&exponents)), &mut factors);
        let (a, b) = (factors[0], factors[1]);
        state.max = max;
        state.sum = state.sum.mul_add(a, block.sum * b);
        for (out, value) in state.out[..len].iter_mut().zip(&block.out) {
            *out = out.mul_add(a, value * b);
        }
    }
}
