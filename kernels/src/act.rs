//! Activations, as floats and quantised to i8 (SPEC N5).

use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{LANES, Simd};
use std::borrow::Cow;

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

    /// Words that 256 quants of a row take with what products need of them.
    const fn words(self) -> usize {
        match self {
            Self::B32 => b32::WORDS,
            Self::B256 => b256::WORDS,
        }
    }
}

/// What products need of 256 quants of a row, in words. Formats with blocks of 32 take the fields
/// of [`b32`], those with super-blocks the fields of [`b256`].
const QUADS: usize = 64;

/// Fields of 256 quants in blocks of 32, and the words of all.
pub(crate) mod b32 {
    /// For each 32 quants their sum times −16.
    pub(crate) const STARTS: usize = super::QUADS;
    /// For each 32 quants the bits of their sum as a float.
    pub(crate) const FLOATS: usize = STARTS + 8;
    /// For each 32 quants the bits of their scale.
    pub(crate) const SCALES: usize = FLOATS + 8;
    pub(crate) const WORDS: usize = SCALES + 8;
}

/// Fields of a super-block, and the words of all.
pub(crate) mod b256 {
    /// For each 16 quants their sum times −32.
    pub(crate) const STARTS: usize = super::QUADS;
    /// For each 32 quants the binary logarithm of their factor.
    pub(crate) const SHIFTS: usize = STARTS + 16;
    /// For each 32 quants two i16 in a word: the sums of the halves times the factor.
    pub(crate) const HALVES: usize = SHIFTS + 8;
    /// For each 64 quants two i16 in a word: the sums of 32, times their factors.
    pub(crate) const PAIRS: usize = HALVES + 8;
    /// The bits of the scale.
    pub(crate) const SCALE: usize = PAIRS + 4;
    pub(crate) const WORDS: usize = SCALE + 1;
}

/// Rows of activations quantised to i8, in buffers that are reused.
///
/// Rows are in groups of almost the same width, and lie interleaved in them: a group holds for
/// each 256 elements a tile, in which word w of its row c is at w · width + c. So a product with
/// all rows of a group reads one stream, at constant distances.
#[derive(Debug)]
pub struct QuantRows {
    block: ScaleBlock,
    /// Rows of the last [`Self::quantize`].
    rows: usize,
    /// Groups that they are in.
    groups: usize,
    /// Elements of a row.
    len: usize,
    /// \[groups\]\[len / 256\]\[words\]\[width\], zeros behind `len`.
    words: Vec<i32>,
}

/// A group of rows.
pub(crate) struct Group<'a> {
    /// The first row.
    pub first: usize,
    /// How many there are.
    pub width: usize,
    /// Its tiles.
    pub tiles: &'a [i32],
}

impl QuantRows {
    /// Empty buffers for at most `rows` rows of at most `len` elements.
    pub fn with_capacity(block: ScaleBlock, rows: usize, len: usize) -> Self {
        let words = vec![0; rows * len.div_ceil(256) * block.words()];
        Self { block, rows: 0, groups: 0, len: 0, words }
    }

    /// Whether these are `rows` rows of `len` elements in groups that `isa` can take at once.
    pub(crate) fn fit(&self, isa: Isa, rows: usize, len: usize) -> bool {
        rows == self.rows && len == self.len && rows <= self.groups * isa.columns()
    }

    /// The words of a row.
    const fn row_words(&self) -> usize {
        self.len.div_ceil(256) * self.block.words()
    }

    /// The groups, in the order of their rows.
    #[inline(always)]
    pub(crate) fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        let row = self.row_words();
        (0..self.groups).map(move |group| {
            let [first, end] = self.bounds(group);
            Group { first, width: end - first, tiles: &self.words[first * row..end * row] }
        })
    }

    /// The rows of a group: the first, and the first behind it.
    #[inline(always)]
    const fn bounds(&self, group: usize) -> [usize; 2] {
        [group * self.rows / self.groups, (group + 1) * self.rows / self.groups]
    }

    /// The tiles of the only row.
    ///
    /// # Panics
    /// If there are several.
    #[inline(always)]
    pub(crate) fn single(&self) -> &[i32] {
        assert_eq!(self.rows, 1);
        &self.words[..self.row_words()]
    }

    /// The tiles of row `index` by itself: as they lie if it is the only one, else gathered.
    pub(crate) fn words_of(&self, index: usize) -> Cow<'_, [i32]> {
        if self.rows == 1 {
            return Cow::Borrowed(self.single());
        }
        let group = self.groups().find(|group| index < group.first + group.width);
        let group = group.expect("a row that is there");
        let own = group.tiles.chunks_exact(group.width).map(|words| words[index - group.first]);
        Cow::Owned(own.collect())
    }

    /// What the quants of row `index` stand for: scale · quant · factor, which f64 holds exactly.
    pub(crate) fn values(&self, index: usize) -> Vec<f64> {
        let words = self.words_of(index);
        let float = |word: i32| f64::from(f32::from_bits(word.cast_unsigned()));
        let mut values = Vec::with_capacity(self.len.next_multiple_of(256));
        for tile in words.chunks_exact(self.block.words()) {
            let quants: &[i8] = bytemuck::cast_slice(&tile[..QUADS]);
            for (g, quants) in quants.chunks_exact(GROUP).enumerate() {
                let (scale, shift) = match self.block {
                    ScaleBlock::B32 => (tile[b32::SCALES + g], 0),
                    ScaleBlock::B256 => (tile[b256::SCALE], tile[b256::SHIFTS + g]),
                };
                let scale = float(scale);
                values.extend(quants.iter().map(|q| scale * f64::from(i32::from(*q) << shift)));
            }
        }
        values.truncate(self.len);
        values
    }

    /// Quantises rows of `len` elements, \[rows\]\[len\] in `x`, for products by `isa`.
    ///
    /// # Panics
    /// If `len` is not a multiple of the block or the buffers are too small.
    pub fn quantize(&mut self, isa: Isa, pool: &Pool, x: &[f32], len: usize) {
        /// Tiles of a row that a piece of work has, if there are so many.
        const RUN: usize = 2;
        assert!(len > 0 && len.is_multiple_of(self.block.len()) && x.len().is_multiple_of(len));
        self.len = len;
        self.rows = x.len() / len;
        self.groups = self.rows.div_ceil(isa.columns());
        let (rows, tiles, row) = (self.rows, len.div_ceil(256), self.row_words());
        let mut memory = std::mem::take(&mut self.words);
        let words = Shared::new(&mut memory[..rows * row]);
        // One row is soon done: sharing it out would take longer.
        let run = if rows == 1 { tiles } else { RUN };
        let runs = tiles.div_ceil(run);
        pool.for_each(self.groups * runs, &|piece| {
            let [first, end] = self.bounds(piece / runs);
            let width = end - first;
            let start = piece % runs * run;
            let count = run.min(tiles - start);
            let tile = self.block.words() * width;
            // SAFETY: these words belong to one piece, and `for_each` gives a piece to one thread.
            let out = unsafe { words.range(first * row + start * tile, count * tile) };
            isa.run(Quantize { block: self.block, x: &x[first * len..], len, width, start, out });
        });
        self.words = memory;
    }
}

/// Quantises some tiles of a group of rows.
struct Quantize<'a> {
    block: ScaleBlock,
    /// The group's rows and whatever follows.
    x: &'a [f32],
    len: usize,
    width: usize,
    /// The first tile.
    start: usize,
    out: &'a mut [i32],
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block, x, len, width, start, out } = self;
        let words = block.words();
        for (t, tile) in out.chunks_exact_mut(words * width).enumerate() {
            let from = 256 * (start + t);
            let to = (from + 256).min(len);
            for c in 0..width {
                let x = &x[c * len + from..c * len + to];
                match block {
                    ScaleBlock::B32 => scatter(&tile32(simd, x), tile, width, c),
                    ScaleBlock::B256 => scatter(&tile256(simd, x), tile, width, c),
                }
            }
        }
    }
}

/// Puts the words of row `c` of a group into its tile.
#[inline(always)]
fn scatter(words: &[i32], tile: &mut [i32], width: usize, c: usize) {
    if width == 1 {
        tile.copy_from_slice(words);
    } else {
        for (word, slots) in words.iter().zip(tile.chunks_exact_mut(width)) {
            slots[c] = *word;
        }
    }
}

/// The words of at most 256 elements in blocks of 32, zeros behind them.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "the bits of floats")]
fn tile32<S: Simd>(simd: S, x: &[f32]) -> [i32; b32::WORDS] {
    let mut words = [0; b32::WORDS];
    let mut q = [0; 256];
    for (g, (x, q)) in x.as_chunks().0.iter().zip(q.as_chunks_mut().0).enumerate() {
        words[b32::SCALES + g] = quantize32(simd, x, q).to_bits() as i32;
        let sum = half_sum(&q[..16]) + half_sum(&q[16..]);
        words[b32::STARTS + g] = -16 * i32::from(sum);
        words[b32::FLOATS + g] = f32::from(sum).to_bits() as i32;
    }
    words[..QUADS].copy_from_slice(bytemuck::cast_slice(&q));
    words
}

/// The words of a super-block.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "the bits of floats")]
fn tile256<S: Simd>(simd: S, x: &[f32]) -> [i32; b256::WORDS] {
    let mut words = [0; b256::WORDS];
    let mut q = [0; 256];
    let mut shifts = [0; 8];
    let x = x.first_chunk().expect("rows are whole super-blocks");
    words[b256::SCALE] = quantize256(simd, x, &mut q, &mut shifts).to_bits() as i32;
    let mut sums = [0_i16; 8];
    for (g, q) in q.as_chunks::<GROUP>().0.iter().enumerate() {
        let parts = [half_sum(&q[..16]), half_sum(&q[16..])];
        let shift = shifts[g];
        words[b256::STARTS + 2 * g] = -32 * i32::from(parts[0]);
        words[b256::STARTS + 2 * g + 1] = -32 * i32::from(parts[1]);
        words[b256::SHIFTS + g] = shift;
        words[b256::HALVES + g] = bytemuck::cast([parts[0] << shift, parts[1] << shift]);
        sums[g] = (parts[0] + parts[1]) << shift;
    }
    words[b256::PAIRS..b256::SCALE].copy_from_slice(bytemuck::cast_slice(&sums));
    words[..QUADS].copy_from_slice(bytemuck::cast_slice(&q));
    words
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
pub(crate) mod row;
#[cfg(test)]
mod tests;
