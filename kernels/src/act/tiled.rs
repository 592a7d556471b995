//! Quantised activations as products of tiles take them (SPEC L5).
//!
//! A group is 16 rows, and a tile 256 elements of them in lines of 64 bytes. The last group's
//! missing rows have quants of any value and scales of 0; what becomes of them is not used.
//!
//! In super-blocks an element counts q · 2^shift, up to ±508, which no byte holds. So there are
//! two planes, whose bytes are high = ⌊q · 2^shift / 4⌋ and low = q · 2^shift − 4 · high, which
//! is 0 to 3: no sum needs the shifts any more.

use super::{QUADS, ScaleBlock, b32, b256, tile32, tile256};
use crate::isa::Op;
use crate::simd::{LANES, Simd};
use crate::tiles::{COLUMNS, Line};

/// Lines of a tile in blocks of 32.
pub(crate) mod t32 {
    /// From line 0 on, for each 32 elements 8 lines: 32 quants of each row.
    /// Then for each 32 elements a line of the rows' sums as floats.
    pub(crate) const FLOATS: usize = super::QUADS;
    /// For each 32 elements a line of the rows' scales.
    pub(crate) const SCALES: usize = FLOATS + 8;
    pub(crate) const LINES: usize = SCALES + 8;
}

/// Lines of a tile of a super-block.
pub(crate) mod t256 {
    /// From line 0 on, for each 64 elements 16 lines: a row's 64 bytes of the high plane.
    /// Then likewise the low plane.
    pub(crate) const LOW: usize = super::QUADS;
    /// For each 64 elements a line: as [`b256::PAIRS`](super::b256::PAIRS), of each row.
    pub(crate) const PAIRS: usize = LOW + super::QUADS;
    /// For each 32 elements a line: as [`b256::HALVES`](super::b256::HALVES), of each row.
    pub(crate) const HALVES: usize = PAIRS + 4;
    /// The rows' scales.
    pub(crate) const SCALE: usize = HALVES + 8;
    pub(crate) const LINES: usize = SCALE + 1;
}

/// Quantises some tiles of a group of rows.
pub(super) struct QuantizeTiled<'a> {
    pub(super) block: ScaleBlock,
    /// The elements of each row that are in the tiles.
    pub(super) rows: &'a [&'a [f32]],
    pub(super) out: &'a mut [Line],
}

impl Op for QuantizeTiled<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block, rows, out } = self;
        for (t, tile) in out.chunks_exact_mut(block.tile_lines()).enumerate() {
            if rows.len() < COLUMNS {
                let first = match block {
                    ScaleBlock::B32 => t32::FLOATS,
                    ScaleBlock::B256 => t256::PAIRS,
                };
                tile[first..].fill(Line([0; LANES]));
            }
            for (c, row) in rows.iter().enumerate() {
                let x = &row[256 * t..row.len().min(256 * (t + 1))];
                match block {
                    ScaleBlock::B32 => place32(&tile32(simd, x), tile, c),
                    ScaleBlock::B256 => place256(&tile256(simd, x), tile, c),
                }
            }
        }
    }
}

/// Puts the words of row `c` into its tile.
#[inline(always)]
fn place32(words: &[i32; b32::WORDS], tile: &mut [Line], c: usize) {
    let (quants, _) = words[..QUADS].as_chunks::<8>();
    for (j, quants) in quants.iter().enumerate() {
        let line = &mut tile[8 * j + c / 2].0;
        line[c % 2 * 8..][..8].copy_from_slice(quants);
    }
    for j in 0..8 {
        tile[t32::FLOATS + j].0[c] = words[b32::FLOATS + j];
        tile[t32::SCALES + j].0[c] = words[b32::SCALES + j];
    }
}

/// As [`place32`] for a super-block.
#[inline(always)]
fn place256(words: &[i32; b256::WORDS], tile: &mut [Line], c: usize) {
    let quants: &[i8] = bytemuck::cast_slice(&words[..QUADS]);
    for (step, quants) in quants.as_chunks::<64>().0.iter().enumerate() {
        let (mut high, mut low) = ([0; 64], [0; 64]);
        for half in 0..2 {
            let shift = words[b256::SHIFTS + 2 * step + half];
            for i in 32 * half..32 * half + 32 {
                high[i] = quants[i] >> (2 - shift);
                low[i] = (quants[i] << shift) & 3;
            }
        }
        tile[16 * step + c] = bytemuck::cast(high);
        tile[t256::LOW + 16 * step + c] = bytemuck::cast(low);
    }
    for g in 0..4 {
        tile[t256::PAIRS + g].0[c] = words[b256::PAIRS + g];
    }
    for g in 0..8 {
        tile[t256::HALVES + g].0[c] = words[b256::HALVES + g];
    }
    tile[t256::SCALE].0[c] = words[b256::SCALE];
}
