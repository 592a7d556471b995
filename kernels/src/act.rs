//! Activations, as floats and quantised to i8 (SPEC N5).

use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{LANES, Simd};

/// Below this largest magnitude a block counts as zero, so that its inverse stays finite.
const TINY: f32 = 1e-30;

/// How many elements share a quantisation scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleBlock {
    /// 32, for weight formats with blocks of 32.
    B32,
    /// 256, for weight formats with super-blocks.
    B256,
}

impl ScaleBlock {
    /// Elements that share a scale.
    #[expect(clippy::len_without_is_empty, reason = "no block is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::B32 => 32,
            Self::B256 => 256,
        }
    }
}

/// Rows of activations quantised to i8, in buffers that are reused.
#[derive(Debug)]
pub struct QuantRows {
    block: ScaleBlock,
    /// Rows of the last [`Self::quantize`].
    rows: usize,
    /// Elements of a row, and that rounded up to 256.
    len: usize,
    stride: usize,
    /// \[rows\]\[stride\], zeros behind `len`.
    q: Vec<i8>,
    /// \[rows\]\[len / block\].
    scales: Vec<f32>,
    /// \[rows\]\[stride / 16\]: sums of 16 quants.
    sums: Vec<i16>,
    /// \[rows\]\[stride / 32\]: sums of 32 quants.
    block_sums: Vec<i32>,
}

/// One quantised row.
#[derive(Clone, Copy)]
pub(crate) struct QuantRow<'a> {
    /// Quants, zero-padded to a multiple of 256.
    pub q: &'a [i8],
    /// A scale a block.
    pub scales: &'a [f32],
    /// A sum for each 16 quants.
    pub sums: &'a [i16],
    /// A sum for each 32.
    pub block_sums: &'a [i32],
}

impl QuantRows {
    /// Empty buffers for at most `rows` rows of at most `len` elements.
    pub fn with_capacity(block: ScaleBlock, rows: usize, len: usize) -> Self {
        let stride = len.next_multiple_of(256);
        Self {
            block,
            rows: 0,
            len: 0,
            stride: 0,
            q: vec![0; rows * stride],
            scales: vec![0.0; rows * len.div_ceil(block.len())],
            sums: vec![0; rows * stride / 16],
            block_sums: vec![0; rows * stride / 32],
        }
    }

    /// Whether these are at least `rows` rows of `len` elements.
    pub(crate) const fn holds(&self, rows: usize, len: usize) -> bool {
        rows <= self.rows && len == self.len
    }

    /// Row `index` of the last [`Self::quantize`].
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> QuantRow<'_> {
        let scales = self.len / self.block.len();
        let sums = self.stride / 16;
        QuantRow {
            q: &self.q[index * self.stride..(index + 1) * self.stride],
            scales: &self.scales[index * scales..(index + 1) * scales],
            sums: &self.sums[index * sums..(index + 1) * sums],
            block_sums: &self.block_sums[index * sums / 2..(index + 1) * sums / 2],
        }
    }

    /// Quantises rows of `len` elements, \[rows\]\[len\] in `x`.
    ///
    /// # Panics
    /// If `len` is not a multiple of the block or the buffers are too small.
    pub fn quantize(&mut self, isa: Isa, pool: &Pool, x: &[f32], len: usize) {
        assert!(len > 0 && len.is_multiple_of(self.block.len()) && x.len().is_multiple_of(len));
        self.len = len;
        self.stride = len.next_multiple_of(256);
        let rows = x.len() / len;
        self.rows = rows;
        let (block, stride, blocks) = (self.block.len(), self.stride, len / self.block.len());
        let q = Shared::new(&mut self.q[..rows * stride]);
        let scales = Shared::new(&mut self.scales[..rows * blocks]);
        let sums = Shared::new(&mut self.sums[..rows * stride / 16]);
        let block_sums = Shared::new(&mut self.block_sums[..rows * stride / 32]);
        pool.for_each(rows, &|row| {
            // SAFETY: each row is one piece, and `for_each` gives a piece to one thread.
            let (q, scales, sums, block_sums) = unsafe {
                (
                    q.range(row * stride, stride),
                    scales.range(row * blocks, blocks),
                    sums.range(row * stride / 16, stride / 16),
                    block_sums.range(row * stride / 32, stride / 32),
                )
            };
            isa.run(Quantize {
                block,
                x: &x[row * len..(row + 1) * len],
                q,
                scales,
                sums: &mut *sums,
            });
            for (sum, [a, b]) in block_sums.iter_mut().zip(sums.as_chunks().0) {
                *sum = i32::from(*a) + i32::from(*b);
            }
        });
    }
}

struct Quantize<'a> {
    block: usize,
    x: &'a [f32],
    q: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i16],
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block, x, q, scales, sums } = self;
        let (used, padding) = q.split_at_mut(x.len());
        padding.fill(0);
        sums[x.len() / 16..].fill(0);
        let blocks = x.chunks_exact(block).zip(used.chunks_exact_mut(block));
        let blocks = blocks.zip(sums.chunks_exact_mut(block / 16));
        for (((x, q), sums), scale) in blocks.zip(scales) {
            *scale = quantize_block(simd, x, q, sums);
        }
    }
}

/// Quantises a block and returns its scale: the largest magnitude over 127. A block that is not
/// finite gets quants 0 and scale NaN, which reaches every result that it enters.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "quants are within ±127, sums within ±2032")]
fn quantize_block<S: Simd>(simd: S, x: &[f32], q: &mut [i8], sums: &mut [i16]) -> f32 {
    let (x, _) = x.as_chunks::<LANES>();
    let (q, _) = q.as_chunks_mut::<LANES>();
    let mut largest = simd.splat(0.0);
    let mut poison = simd.splat(0.0);
    for x in x {
        let x = simd.load(x);
        largest = simd.max(simd.abs(x), largest);
        poison = simd.fma(x, simd.splat(0.0), poison);
    }
    let largest = simd.reduce_max(largest);
    let finite = !simd.reduce_add(poison).is_nan();
    if !finite || largest < TINY {
        q.as_flattened_mut().fill(0);
        sums.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    let inverse = simd.splat(127.0 / largest);
    for ((x, q), sum) in x.iter().zip(q).zip(sums) {
        let mut rounded = [0; LANES];
        simd.store_int(simd.round_to_int(simd.mul(simd.load(x), inverse)), &mut rounded);
        let mut total = 0;
        for (q, rounded) in q.iter_mut().zip(rounded) {
            *q = rounded as i8;
            total += rounded;
        }
        *sum = total as i16;
    }
    largest / 127.0
}

#[cfg(test)]
mod tests;
