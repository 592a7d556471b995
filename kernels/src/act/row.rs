//! A quantised row gathered from its tiles, for tests.

use super::{QuantRows, ScaleBlock, b32, b256, bounds};

/// One quantised row.
pub(crate) struct QuantRow {
    /// Quants, zero-padded to a multiple of 256.
    pub(crate) bytes: Vec<i8>,
    /// A scale a block.
    pub(crate) scales: Vec<f32>,
    /// For each 32 quants the binary logarithm of their factor.
    pub(crate) shifts: Vec<i32>,
    /// For each 32 quants the sums of the halves times the factor; empty in blocks of 32.
    pub(crate) halves: Vec<[i16; 2]>,
    /// For each 32 quants their sum times the factor; empty in blocks of 32.
    pub(crate) sums: Vec<i16>,
    /// For each 32 quants their sum; empty in super-blocks.
    pub(crate) floats: Vec<f32>,
    /// For each 32 quants, or each 16 in super-blocks, their sum as products start with it.
    pub(crate) starts: Vec<i32>,
}

impl QuantRows {
    /// Where word `w` of tile `t` of row `index` is.
    pub(crate) fn place(&self, index: usize, t: usize, w: usize) -> usize {
        let of = |group| bounds(self.rows, self.groups, group);
        let [first, end] = (0..self.groups).map(of).find(|[_, end]| *end > index).expect("a row");
        let width = end - first;
        first * self.row_words() + (t * self.block.words() + w) * width + index - first
    }

    /// Row `index`.
    pub(crate) fn row(&self, index: usize) -> QuantRow {
        let tiles = self.len.div_ceil(256);
        let field = |start: usize, len: usize| -> Vec<i32> {
            let words = (0..tiles).flat_map(|t| (start..start + len).map(move |w| (t, w)));
            words.map(|(t, w)| self.words()[self.place(index, t, w)]).collect()
        };
        let floats = |words: Vec<i32>| -> Vec<f32> {
            words.into_iter().map(|word| f32::from_bits(word.cast_unsigned())).collect()
        };
        let bytes = bytemuck::cast_slice(&field(0, 64)).to_vec();
        match self.block {
            ScaleBlock::B32 => QuantRow {
                bytes,
                scales: floats(field(b32::SCALES, 8)),
                shifts: vec![0; 8 * tiles],
                halves: Vec::new(),
                sums: Vec::new(),
                floats: floats(field(b32::FLOATS, 8)),
                starts: field(b32::STARTS, 8),
            },
            ScaleBlock::B256 => QuantRow {
                bytes,
                scales: floats(field(b256::SCALE, 1)),
                shifts: field(b256::SHIFTS, 8),
                halves: bytemuck::cast_slice(&field(b256::HALVES, 8)).to_vec(),
                sums: bytemuck::cast_slice(&field(b256::PAIRS, 4)).to_vec(),
                floats: Vec::new(),
                starts: field(b256::STARTS, 16),
            },
        }
    }
}
