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
        assert!(len > 0 && x.len().is_multiple_of(len));
        let rows = x.len() / len;
        let writer = self.writer(rows, len);
        pool.for_each(rows, &|row| {
            // SAFETY: each row is one piece, and `for_each` gives a piece to one thread.
            unsafe { writer.quantize(isa, row, 0, &x[row * len..(row + 1) * len]) };
        });
    }

    /// Starts `rows` rows of `len` elements, which are then quantised in parts.
    ///
    /// # Panics
    /// As [`Self::quantize`].
    pub(crate) fn writer(&mut self, rows: usize, len: usize) -> Writer<'_> {
        assert!(len > 0 && len.is_multiple_of(self.block.len()));
        (self.rows, self.len, self.stride) = (rows, len, len.next_multiple_of(256));
        let groups = rows * self.stride / GROUP;
        Writer {
            block: self.block,
            len,
            stride: self.stride,
            quads: Shared::new(&mut self.quads[..rows * self.stride / 4]),
            scales: Shared::new(&mut self.scales[..rows * len / self.block.len()]),
            halves: Shared::new(&mut self.groups.halves[..groups]),
            sums: Shared::new(&mut self.groups.sums[..groups]),
            floats: Shared::new(&mut self.groups.floats[..groups]),
            negatives: Shared::new(&mut self.groups.negatives[..groups]),
            shifts: Shared::new(&mut self.groups.shifts[..groups]),
        }
    }
}

/// Quantises parts of rows, on several threads at once.
pub(crate) struct Writer<'a> {
    block: ScaleBlock,
    len: usize,
    stride: usize,
    quads: Shared<'a, i32>,
    scales: Shared<'a, f32>,
    halves: Shared<'a, i32>,
    sums: Shared<'a, i16>,
    floats: Shared<'a, f32>,
    negatives: Shared<'a, i32>,
    shifts: Shared<'a, i32>,
}

impl Writer<'_> {
    /// Quantises `x`, whole blocks that are the elements of `row` from `start` on.
    ///
    /// # Safety
    /// No two threads quantise the same block at a time.
    pub(crate) unsafe fn quantize(&self, isa: Isa, row: usize, start: usize, x: &[f32]) {
        let Self { len, stride, .. } = *self;
        let block = self.block.len();
        // Who quantises the last part also fills up the row.
        let padded = if start + x.len() == len { stride - start } else { x.len() };
        let (group, groups) = ((row * stride + start) / GROUP, padded / GROUP);
        // SAFETY: the ranges are those of whole blocks, each of which the caller leaves to one
        // thread; they are alive in this call only.
        let call = unsafe {
            Quantize {
                block: self.block,
                x,
                q: bytemuck::cast_slice_mut(
                    self.quads.range((row * stride + start) / 4, padded / 4),
                ),
                scales: self.scales.range((row * len + start) / block, x.len() / block),
                halves: self.halves.range(group, groups),
                sums: self.sums.range(group, groups),
                floats: self.floats.range(group, groups),
                negatives: self.negatives.range(group, groups),
                shifts: self.shifts.range(group, groups),
            }
        };
        isa.run(call);
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
        halves.fill(0);
        shifts.fill(0);
        let parts = x.chunks(256).zip(q.chunks_mut(256));
        let groups = halves.chunks_mut(8).zip(shifts.chunks_mut(8));
        let scales = scales.chunks_mut(256 / block.len());
        for (((x, q), (halves, shifts)), scales) in parts.zip(groups).zip(scales) {
            let (groups, _) = x.as_chunks::<GROUP>();
            let factors = match block {
                ScaleBlock::B32 => factors32(groups, scales),
                ScaleBlock::B256 => factors256(groups, &mut scales[0], shifts),
            };
            round(simd, groups, &factors, q, halves);
        }
        let lists = halves.iter_mut().zip(sums).zip(floats).zip(negatives).zip(shifts);
        for ((((halves, sum), float), negative), shift) in lists {
            let parts: [i16; 2] = bytemuck::cast(*halves);
            let total = parts[0] + parts[1];
            *halves = bytemuck::cast(parts.map(|part| part << *shift));
            *sum = total << *shift;
            *float = f32::from(total);
            *negative = -i32::from(total);
        }
    }
}

/// The largest magnitude of some elements, and whether they are all finite. Magnitudes are in the
/// order of their bits, and behind those of all numbers lie infinity's and NaN's.
#[inline(always)]
fn largest(x: &[f32; GROUP]) -> (f32, bool) {
    let bits = x.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
    let largest = f32::from_bits(bits);
    (largest, largest.is_finite())
}

/// Rounds the elements of at most 8 groups, times their group's factor, to the nearest integer,
/// ties to even, and sums the halves of the groups. Quants of a group without a factor are 0.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "quants are within ±127, 16 of them ±2032")]
fn round<S: Simd>(
    simd: S,
    groups: &[[f32; GROUP]],
    factors: &[f32; 8],
    q: &mut [i8],
    halves: &mut [i32],
) {
    let mut rounded = [0; 256];
    let (vectors, _) = rounded.as_chunks_mut::<LANES>();
    for (((x, factor), half), to) in
        groups.iter().zip(factors).zip(halves).zip(vectors.as_chunks_mut::<2>().0)
    {
        if *factor > 0.0 {
            let factor = simd.splat(*factor);
            let (x, _) = x.as_chunks::<LANES>();
            let first = simd.round_to_int(simd.mul(simd.load(&x[0]), factor));
            let second = simd.round_to_int(simd.mul(simd.load(&x[1]), factor));
            simd.store_int(first, &mut to[0]);
            simd.store_int(second, &mut to[1]);
            *half = bytemuck::cast([simd.reduce_int(first) as i16, simd.reduce_int(second) as i16]);
        }
    }
    for (q, rounded) in q.iter_mut().zip(&rounded[..GROUP * groups.len()]) {
        *q = *rounded as i8;
    }
}

/// What the elements of each group are multiplied with; its scale is the largest magnitude over
/// 127. A group that is not finite gets quants 0 and scale NaN, which reaches every result that it
/// enters.
#[inline(always)]
fn factors32(groups: &[[f32; GROUP]], scales: &mut [f32]) -> [f32; 8] {
    let mut factors = [0.0; 8];
    for ((group, scale), factor) in groups.iter().zip(scales).zip(&mut factors) {
        let (a, finite) = largest(group);
        (*scale, *factor) = match finite {
            false => (f32::NAN, 0.0),
            true if a < TINY => (0.0, 0.0),
            true => (a / 127.0, 127.0 / a),
        };
    }
    factors
}

/// As [`factors32`] for a super-block, whose scale is the largest magnitude over 508. Each 32
/// elements have steps of the scale times 1, 2 or 4, whatever reaches their largest magnitude;
/// those that are below a sixteenth of the block's have the steps of the largest.
#[inline(always)]
fn factors256(groups: &[[f32; GROUP]], scale: &mut f32, shifts: &mut [i32]) -> [f32; 8] {
    let (mut tops, mut factors) = ([0.0; 8], [0.0; 8]);
    let (mut a, mut finite) = (0.0, true);
    for (top, group) in tops.iter_mut().zip(groups) {
        let (largest, all) = largest(group);
        *top = largest;
        a = if largest > a { largest } else { a };
        finite &= all;
    }
    if !finite || a < TINY {
        *scale = if finite { 0.0 } else { f32::NAN };
        return factors;
    }
    let inverse = 508.0 / a;
    for ((factor, top), shift) in factors.iter_mut().zip(tops).zip(shifts) {
        let step;
        (*shift, step) = match top {
            top if top > 0.5 * a || top < 0.0625 * a => (2, 0.25),
            top if top > 0.25 * a => (1, 0.5),
            _ => (0, 1.0),
        };
        *factor = inverse * step;
    }
    *scale = a / 508.0;
    factors
}

#[cfg(test)]
mod tests;
