//! Activations, as floats and quantised to i8 (SPEC N5).

use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{LANES, Simd};

/// Below this largest magnitude a block counts as zero, so that its inverse stays finite.
const TINY: f32 = 1e-30;
/// Elements of a super-block that share a factor.
const GROUP: usize = 32;

/// How many elements share a quantisation scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleBlock {
    /// 32, for weight formats with blocks of 32.
    B32,
    /// 256, for weight formats with super-blocks; each 32 of them have a factor 1, 2 or 4.
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
    /// \[rows\]\[stride / 4\]: four quants in a word, zeros behind `len`.
    quads: Vec<i32>,
    /// \[rows\]\[len / block\].
    scales: Vec<f32>,
    /// What products need of each 32 quants, \[rows\]\[stride / 32\].
    groups: Groups,
}

/// Sums and factors of groups of 32 quants.
#[derive(Debug, Default)]
struct Groups {
    /// Two i16 in a word: the sums of the group's halves, times its factor.
    halves: Vec<i32>,
    /// An i16: the sum of the group, times its factor.
    sums: Vec<i16>,
    /// The sum of the group as a float, and its negative as an integer.
    floats: Vec<f32>,
    negatives: Vec<i32>,
    /// The binary logarithm of the factor.
    shifts: Vec<i32>,
}

impl Groups {
    fn with_capacity(groups: usize) -> Self {
        Self {
            halves: vec![0; groups],
            sums: vec![0; groups],
            floats: vec![0.0; groups],
            negatives: vec![0; groups],
            shifts: vec![0; groups],
        }
    }
}

/// One quantised row.
#[derive(Clone, Copy)]
pub(crate) struct QuantRow<'a> {
    /// Quants, four in a word, zero-padded to a multiple of 256.
    pub quads: &'a [i32],
    /// A scale a block.
    pub scales: &'a [f32],
    /// For each 32 quants two i16 in a word: the sums of the halves times the factor.
    pub halves: &'a [i32],
    /// For each 64 quants two i16 in a word: the sums of 32, times their factors.
    pub pairs: &'a [i32],
    /// For each 32 quants their sum.
    pub floats: &'a [f32],
    /// For each 32 quants their sum, negated.
    pub negatives: &'a [i32],
    /// For each 32 quants the binary logarithm of their factor.
    pub shifts: &'a [i32],
}

impl<'a> QuantRow<'a> {
    /// The quants as bytes.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &'a [i8] {
        bytemuck::cast_slice(self.quads)
    }
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
            quads: vec![0; rows * stride / 4],
            scales: vec![0.0; rows * len.div_ceil(block.len())],
            groups: Groups::with_capacity(rows * stride / GROUP),
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
        let groups = self.stride / GROUP;
        let group = index * groups..(index + 1) * groups;
        QuantRow {
            quads: &self.quads[index * self.stride / 4..(index + 1) * self.stride / 4],
            scales: &self.scales[index * scales..(index + 1) * scales],
            halves: &self.groups.halves[group.clone()],
            pairs: &bytemuck::cast_slice(&self.groups.sums)[group.start / 2..group.end / 2],
            floats: &self.groups.floats[group.clone()],
            negatives: &self.groups.negatives[group.clone()],
            shifts: &self.groups.shifts[group],
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
        let (block, stride, blocks) = (self.block, self.stride, len / self.block.len());
        let groups = stride / GROUP;
        let quads = Shared::new(&mut self.quads[..rows * stride / 4]);
        let scales = Shared::new(&mut self.scales[..rows * blocks]);
        let halves = Shared::new(&mut self.groups.halves[..rows * groups]);
        let sums = Shared::new(&mut self.groups.sums[..rows * groups]);
        let floats = Shared::new(&mut self.groups.floats[..rows * groups]);
        let negatives = Shared::new(&mut self.groups.negatives[..rows * groups]);
        let shifts = Shared::new(&mut self.groups.shifts[..rows * groups]);
        pool.for_each(rows, &|row| {
            // SAFETY: each row is one piece, and `for_each` gives a piece to one thread.
            let call = unsafe {
                Quantize {
                    block,
                    x: &x[row * len..(row + 1) * len],
                    q: bytemuck::cast_slice_mut(quads.range(row * stride / 4, stride / 4)),
                    scales: scales.range(row * blocks, blocks),
                    halves: halves.range(row * groups, groups),
                    sums: sums.range(row * groups, groups),
                    floats: floats.range(row * groups, groups),
                    negatives: negatives.range(row * groups, groups),
                    shifts: shifts.range(row * groups, groups),
                }
            };
            isa.run(call);
        });
    }
}

struct Quantize<'a> {
    block: ScaleBlock,
    x: &'a [f32],
    q: &'a mut [i8],
    scales: &'a mut [f32],
    halves: &'a mut [i32],
    sums: &'a mut [i16],
    floats: &'a mut [f32],
    negatives: &'a mut [i32],
    shifts: &'a mut [i32],
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block, x, q, scales, halves, sums, floats, negatives, shifts } = self;
        q[x.len()..].fill(0);
        shifts.fill(0);
        match block {
            ScaleBlock::B32 => {
                let (x, _) = x.as_chunks::<GROUP>();
                let (q, _) = q.as_chunks_mut::<GROUP>();
                for ((x, q), scale) in x.iter().zip(q).zip(scales) {
                    *scale = quantize32(simd, x, q);
                }
            }
            ScaleBlock::B256 => {
                let (x, _) = x.as_chunks::<256>();
                let (q, _) = q.as_chunks_mut::<256>();
                let (parts, _) = shifts.as_chunks_mut::<8>();
                for (((x, q), shifts), scale) in x.iter().zip(q).zip(parts).zip(scales) {
                    *scale = quantize256(simd, x, q, shifts);
                }
            }
        }
        let (q, _) = q.as_chunks::<GROUP>();
        for (group, q) in q.iter().enumerate() {
            let parts = [half_sum(&q[..16]), half_sum(&q[16..])];
            let (sum, shift) = (parts[0] + parts[1], shifts[group]);
            halves[group] = bytemuck::cast([parts[0] << shift, parts[1] << shift]);
            sums[group] = sum << shift;
            floats[group] = f32::from(sum);
            negatives[group] = -i32::from(sum);
        }
    }
}

/// The sum of 16 quants, within ±2032.
#[inline(always)]
fn half_sum(q: &[i8]) -> i16 {
    q.iter().fold(0, |sum, q| sum + i16::from(*q))
}

/// The largest magnitude of some elements, and whether they are all finite.
#[inline(always)]
fn largest<S: Simd>(simd: S, x: &[f32]) -> (f32, bool) {
    let (x, _) = x.as_chunks::<LANES>();
    let mut largest = simd.splat(0.0);
    let mut poison = simd.splat(0.0);
    for x in x {
        let x = simd.load(x);
        largest = simd.max(simd.abs(x), largest);
        poison = simd.fma(x, simd.splat(0.0), poison);
    }
    (simd.reduce_max(largest), !simd.reduce_add(poison).is_nan())
}

/// x · factor rounded to the nearest integer, ties to even.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "quants are within ±127")]
fn round<S: Simd>(simd: S, x: &[f32], factor: f32, q: &mut [i8]) {
    let (x, _) = x.as_chunks::<LANES>();
    let (q, _) = q.as_chunks_mut::<LANES>();
    let factor = simd.splat(factor);
    for (x, q) in x.iter().zip(q) {
        let mut rounded = [0; LANES];
        simd.store_int(simd.round_to_int(simd.mul(simd.load(x), factor)), &mut rounded);
        for (q, rounded) in q.iter_mut().zip(rounded) {
            *q = rounded as i8;
        }
    }
}

/// Quantises a block and returns its scale: the largest magnitude over 127. A block that is not
/// finite gets quants 0 and scale NaN, which reaches every result that it enters.
#[inline(always)]
fn quantize32<S: Simd>(simd: S, x: &[f32; 32], q: &mut [i8; 32]) -> f32 {
    let (a, finite) = largest(simd, x);
    if !finite || a < TINY {
        q.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    round(simd, x, 127.0 / a, q);
    a / 127.0
}

/// Quantises a super-block and returns its scale, the largest magnitude over 508. Each 32
/// elements have steps of the scale times 1, 2 or 4, whatever reaches their largest magnitude;
/// those that are below a sixteenth of the block's have the steps of the largest.
#[inline(always)]
fn quantize256<S: Simd>(simd: S, x: &[f32; 256], q: &mut [i8; 256], shifts: &mut [i32; 8]) -> f32 {
    let (groups, _) = x.as_chunks::<GROUP>();
    let mut tops = [0.0; 8];
    let (mut a, mut finite) = (0.0, true);
    for (top, group) in tops.iter_mut().zip(groups) {
        let (largest, all) = largest(simd, group);
        *top = largest;
        a = if largest > a { largest } else { a };
        finite &= all;
    }
    if !finite || a < TINY {
        q.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    let inverse = 508.0 / a;
    let (q, _) = q.as_chunks_mut::<GROUP>();
    for (((x, q), top), shift) in groups.iter().zip(q).zip(tops).zip(shifts) {
        let factor;
        (*shift, factor) = match top {
            top if top > 0.5 * a || top < 0.0625 * a => (2, 0.25),
            top if top > 0.25 * a => (1, 0.5),
            _ => (0, 1.0),
        };
        round(simd, x, inverse * factor, q);
    }
    a / 508.0
}

#[cfg(test)]
mod tests;
