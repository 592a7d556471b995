//! Activations, as floats and quantised to i8 (SPEC N5).

use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{LANES, Simd};
use crate::tiles::{self, Line};
use tiled::{QuantizeTiled, t32, t256};

pub(crate) mod tiled;

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
    pub(crate) const fn words(self) -> usize {
        match self {
            Self::B32 => b32::WORDS,
            Self::B256 => b256::WORDS,
        }
    }

    /// Lines that 256 quants of 16 rows take where products are made of tiles.
    const fn tile_lines(self) -> usize {
        match self {
            Self::B32 => t32::LINES,
            Self::B256 => t256::LINES,
        }
    }
}

/// What products need of 256 quants of a row, in words. Formats with blocks of 32 take the fields
/// of [`b32`], those with super-blocks the fields of [`b256`].
pub(crate) const QUADS: usize = 64;

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

/// From this many rows on products are made of tiles, where the processor has them: unpacking
/// weights for tiles takes longer. A Xeon's passes of the 1.5B's Q4_K_M file then give 1.06 times
/// as many tokens a second as AVX-512 with VNNI does, at 16 rows 1.16, at 512 about 1.6 times.
pub(crate) const TILED: usize = 12;

/// Rows of activations quantised to i8, in buffers that are reused.
///
/// Rows are in groups of almost the same width, and lie interleaved in them: a group holds for
/// each 256 elements a tile, in which word w of its row c is at w · width + c. So a product with
/// all rows of a group reads one stream, at constant distances. From `TILED` rows on they lie as
/// module `tiled` says, if the processor multiplies tiles.
#[derive(Debug)]
pub struct QuantRows {
    block: ScaleBlock,
    /// Rows of the last [`Self::quantize`].
    rows: usize,
    /// Groups that they are in.
    groups: usize,
    /// Elements of a row.
    len: usize,
    /// Whether they lie for tiles.
    tiled: bool,
    /// \[groups\]\[len / 256\]\[words\]\[width\], zeros behind `len`; or for tiles
    /// \[groups\]\[len / 256\]\[lines\].
    lines: Vec<Line>,
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
        let (tiles, groups) = (len.div_ceil(256), rows.div_ceil(tiles::COLUMNS));
        let words = rows * tiles * block.words();
        let lines = match rows {
            TILED.. => words.div_ceil(LANES).max(groups * tiles * block.tile_lines()),
            _ => words.div_ceil(LANES),
        };
        let lines = bytemuck::zeroed_vec(lines);
        Self { block, rows: 0, groups: 0, len: 0, tiled: false, lines }
    }

    /// Whether these are `rows` rows of `len` elements in groups that `isa` can take at once.
    pub(crate) fn fit(&self, isa: Isa, rows: usize, len: usize) -> bool {
        let taken = match self.tiled {
            true => isa.tiles().is_some(),
            false => rows <= self.groups * isa.columns(),
        };
        taken && rows == self.rows && len == self.len
    }

    /// Whether they lie for tiles.
    #[inline(always)]
    pub(crate) const fn tiled(&self) -> bool {
        self.tiled
    }

    /// Tile `tile` of group `group`, for tiles.
    #[inline(always)]
    pub(crate) fn tile(&self, group: usize, tile: usize) -> &[Line] {
        let lines = self.block.tile_lines();
        &self.lines[(group * self.len.div_ceil(256) + tile) * lines..][..lines]
    }

    /// How many rows there are.
    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    /// How many groups there are.
    pub(crate) const fn group_count(&self) -> usize {
        self.groups
    }

    fn words(&self) -> &[i32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// How many elements share a scale.
    pub(crate) const fn block(&self) -> ScaleBlock {
        self.block
    }

    /// Elements of a row.
    pub(crate) const fn columns(&self) -> usize {
        self.len
    }

    /// The largest scale of the only row, NaN if one is no number.
    ///
    /// # Panics
    /// If there are several rows.
    pub fn largest_scale(&self) -> f32 {
        let fields = match self.block {
            ScaleBlock::B32 => b32::SCALES..b32::WORDS,
            ScaleBlock::B256 => b256::SCALE..b256::WORDS,
        };
        let mut largest = 0.0_f32;
        for tile in self.single().chunks_exact(self.block.words()) {
            for word in &tile[fields.clone()] {
                let scale = f32::from_bits(word.cast_unsigned());
                // A comparison with NaN is false, so that a NaN is kept once it is there.
                largest = if scale > largest || scale.is_nan() { scale } else { largest };
            }
        }
        largest
    }

    /// The words of a row.
    const fn row_words(&self) -> usize {
        self.len.div_ceil(256) * self.block.words()
    }

    /// The groups, in the order of their rows.
    #[inline(always)]
    pub(crate) fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        let (row, words) = (self.row_words(), self.words());
        (0..self.groups).map(move |group| {
            let [first, end] = bounds(self.rows, self.groups, group);
            Group { first, width: end - first, tiles: &words[first * row..end * row] }
        })
    }

    /// The tiles of the only row.
    ///
    /// # Panics
    /// If there are several.
    #[inline(always)]
    pub(crate) fn single(&self) -> &[i32] {
        assert_eq!(self.rows, 1);
        &self.words()[..self.row_words()]
    }

    /// Quantises rows of `len` elements, \[rows\]\[len\] in `x`, for products by `isa`.
    ///
    /// # Panics
    /// If `len` is not a multiple of the block or the buffers are too small.
    pub fn quantize(&mut self, isa: Isa, pool: &Pool, x: &[f32], len: usize) {
        /// Tiles of a group that a piece of work has, if there are so many.
        const RUN: usize = 2;
        assert!(len > 0 && x.len().is_multiple_of(len));
        let rows = x.len() / len;
        let writer = self.writer(isa, rows, len);
        let tiles = len.div_ceil(256);
        // One row is soon done: sharing it out would take longer.
        let run = if rows == 1 { tiles } else { RUN };
        let runs = tiles.div_ceil(run);
        pool.for_each(writer.groups * runs, &|piece| {
            let start = piece % runs * run;
            let part = 256 * start..len.min(256 * (start + run));
            let row = |row: usize| &x[row * len..][part.clone()];
            // SAFETY: these tiles are one piece, and `for_each` gives a piece to one thread.
            unsafe { writer.group(isa, piece / runs, start, &row) };
        });
    }

    /// Starts `rows` rows of `len` elements, which are then quantised in parts.
    ///
    /// # Panics
    /// As [`Self::quantize`].
    pub(crate) fn writer(&mut self, isa: Isa, rows: usize, len: usize) -> Writer<'_> {
        assert!(len > 0 && len.is_multiple_of(self.block.len()));
        self.tiled = isa.tiles().is_some() && rows >= TILED;
        let width = if self.tiled { tiles::COLUMNS } else { isa.columns() };
        (self.rows, self.len, self.groups) = (rows, len, rows.div_ceil(width));
        let (block, tiled, groups) = (self.block, self.tiled, self.groups);
        let (row_words, row_tiles) = (self.row_words(), len.div_ceil(256));
        let used = match tiled {
            true => groups * row_tiles * block.tile_lines() * LANES,
            false => rows * row_words,
        };
        let words = &mut bytemuck::cast_slice_mut(&mut self.lines)[..used];
        Writer { block, tiled, rows, groups, row_words, row_tiles, words: Shared::new(words) }
    }
}

/// Rows `start..end` of group `group`, of `rows` rows in `groups` groups.
#[inline(always)]
const fn bounds(rows: usize, groups: usize, group: usize) -> [usize; 2] {
    [group * rows / groups, (group + 1) * rows / groups]
}

/// Quantises parts of rows, on several threads at once.
pub(crate) struct Writer<'a> {
    block: ScaleBlock,
    tiled: bool,
    rows: usize,
    groups: usize,
    row_words: usize,
    row_tiles: usize,
    words: Shared<'a, i32>,
}

impl Writer<'_> {
    /// Quantises the tiles from `tile` on, for all rows; `part` gives the elements of a row that
    /// are in them.
    ///
    /// # Safety
    /// No two threads quantise the same tile at a time.
    pub(crate) unsafe fn quantize<'x>(
        &self,
        isa: Isa,
        tile: usize,
        part: &dyn Fn(usize) -> &'x [f32],
    ) {
        for group in 0..self.groups {
            // SAFETY: the caller promises the same.
            unsafe { self.group(isa, group, tile, part) };
        }
    }

    /// As [`Self::quantize`], for a group of rows.
    ///
    /// # Safety
    /// No two threads quantise the same tile of a group at a time.
    unsafe fn group<'x>(
        &self,
        isa: Isa,
        group: usize,
        tile: usize,
        part: &dyn Fn(usize) -> &'x [f32],
    ) {
        let [first, end] = match self.tiled {
            true => [group, group + 1].map(|group| self.rows.min(group * tiles::COLUMNS)),
            false => bounds(self.rows, self.groups, group),
        };
        let mut rows: [&[f32]; WIDEST] = [&[]; WIDEST];
        for (slot, row) in rows.iter_mut().zip(first..end) {
            *slot = part(row);
        }
        let rows = &rows[..end - first];
        let count = rows[0].len().div_ceil(256);
        let (start, words) = if self.tiled {
            let words = self.block.tile_lines() * LANES;
            ((group * self.row_tiles + tile) * words, words)
        } else {
            let words = self.block.words() * rows.len();
            (first * self.row_words + tile * words, words)
        };
        // SAFETY: these are the words of the tiles, which the caller leaves to one thread.
        let out = unsafe { self.words.range(start, count * words) };
        if self.tiled {
            let out = bytemuck::cast_slice_mut(out);
            isa.run(QuantizeTiled { block: self.block, rows, out });
        } else {
            isa.run(Quantize { block: self.block, rows, out });
        }
    }
}

/// The most rows of a group, on any instruction set and for tiles.
const WIDEST: usize = tiles::COLUMNS;

/// Quantises some tiles of a group of rows.
struct Quantize<'a> {
    block: ScaleBlock,
    /// The elements of each row that are in the tiles.
    rows: &'a [&'a [f32]],
    out: &'a mut [i32],
}

impl Op for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        const { assert!(S::COLUMNS <= WIDEST) };
        let Self { block, rows, out } = self;
        let width = rows.len();
        for (t, tile) in out.chunks_exact_mut(block.words() * width).enumerate() {
            for (c, row) in rows.iter().enumerate() {
                let x = &row[256 * t..row.len().min(256 * (t + 1))];
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
    let (mut q, mut scales, mut halves) = ([0_i8; 256], [0.0_f32; 8], [0; 8]);
    let (groups, _) = x.as_chunks();
    let factors = factors32(groups, &mut scales);
    round(simd, groups, &factors, &mut q, &mut halves);
    for g in 0..8 {
        let parts: [i16; 2] = bytemuck::cast(halves[g]);
        let sum = parts[0] + parts[1];
        words[b32::STARTS + g] = -16 * i32::from(sum);
        words[b32::FLOATS + g] = f32::from(sum).to_bits() as i32;
        words[b32::SCALES + g] = scales[g].to_bits() as i32;
    }
    words[..QUADS].copy_from_slice(bytemuck::cast_slice(&q));
    words
}

/// The words of a super-block.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "the bits of floats")]
fn tile256<S: Simd>(simd: S, x: &[f32]) -> [i32; b256::WORDS] {
    let mut words = [0; b256::WORDS];
    let (mut q, mut shifts, mut halves) = ([0_i8; 256], [0; 8], [0; 8]);
    let (groups, _) = x.as_chunks();
    let mut scale = 0.0_f32;
    let factors = factors256(groups, &mut scale, &mut shifts);
    round(simd, groups, &factors, &mut q, &mut halves);
    words[b256::SCALE] = scale.to_bits() as i32;
    let mut sums = [0_i16; 8];
    for g in 0..8 {
        let (parts, shift): ([i16; 2], i32) = (bytemuck::cast(halves[g]), shifts[g]);
        words[b256::STARTS + 2 * g] = -32 * i32::from(parts[0]);
        words[b256::STARTS + 2 * g + 1] = -32 * i32::from(parts[1]);
        words[b256::SHIFTS + g] = shift;
        words[b256::HALVES + g] = bytemuck::cast(parts.map(|part| part << shift));
        sums[g] = (parts[0] + parts[1]) << shift;
    }
    words[b256::PAIRS..b256::SCALE].copy_from_slice(bytemuck::cast_slice(&sums));
    words[..QUADS].copy_from_slice(bytemuck::cast_slice(&q));
    words
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
pub(crate) mod row;
#[cfg(test)]
mod tests;
