//! Which inputs of a product are not zero.

use super::NeuronShape;
use crate::act::{QUADS, QuantRows, ScaleBlock, b32, b256};

/// A block's scale is 0 or at least this, or no block is skipped: with smaller ones a sum might
/// underflow to −0, to which +0 is not the same as nothing (SPEC D13).
const SCALE_LEAST: f32 = f32::from_bits((127 - 100) << 23);

/// Four inputs of a group that are not zero, and their quants in a word. The last four of a group
/// may repeat a column, with quants that are zero.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quad {
    pub columns: [u32; 4],
    pub x: i32,
}

/// The inputs of a product that are not zero once quantised, in buffers that are reused.
#[derive(Debug, Default)]
pub struct ActiveNeurons {
    quads: Vec<Quad>,
    /// For each group where its quads begin; then where the last one's end.
    starts: Vec<u32>,
    count: usize,
    blocks: usize,
    /// Whether blocks whose scale is 0 may be left out.
    pub(super) skips: bool,
}

impl ActiveNeurons {
    /// Inputs that are not zero.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Blocks that are not skipped.
    pub const fn blocks(&self) -> usize {
        self.blocks
    }

    /// The quads of a group.
    #[inline(always)]
    pub(super) fn group(&self, group: usize) -> &[Quad] {
        &self.quads[self.starts[group] as usize..self.starts[group + 1] as usize]
    }

    /// The quad that comes so many after the first of group `group`.
    #[inline(always)]
    pub(super) fn later(&self, group: usize, ahead: usize) -> Option<&Quad> {
        self.quads.get(self.starts[group] as usize + ahead)
    }

    /// # Panics
    /// Unless these are of an input of a matrix of this shape.
    pub(super) fn check(&self, shape: NeuronShape) {
        assert_eq!(self.starts.len(), shape.cols() / shape.group + 1, "inputs of such a matrix");
    }

    /// Finds those of the only row of `x`, for products with a matrix of this shape.
    ///
    /// # Panics
    /// If `x` has several rows, or is not quantised for such a matrix.
    pub fn fill(&mut self, shape: NeuronShape, x: &QuantRows) {
        let block =
            if shape.dtype().block_len() == 32 { ScaleBlock::B32 } else { ScaleBlock::B256 };
        assert!(x.block() == block && x.columns() == shape.cols());
        let words = block.words();
        let (group, cols) = (shape.group, shape.cols());
        self.quads.resize(cols.div_ceil(4) + cols / group, Quad::default());
        self.starts.clear();
        self.starts.push(0);
        (self.count, self.blocks, self.skips) = (0, 0, true);
        let mut used = 0;
        let mut skipped = 0;
        for (t, tile) in x.single().chunks_exact(words).enumerate() {
            let q: &[i8] = bytemuck::cast_slice(&tile[..QUADS]);
            let own = cols.min(256 * (t + 1)) - 256 * t;
            let scales = match block {
                ScaleBlock::B32 => &tile[b32::SCALES..b32::SCALES + own / 32],
                ScaleBlock::B256 => &tile[b256::SCALE..=b256::SCALE],
            };
            for scale in scales {
                let scale = f32::from_bits(scale.cast_unsigned());
                skipped += usize::from(scale == 0.0);
                // A scale that is no number is none of these, and no block of it is skipped.
                self.skips &= !(scale > 0.0 && scale < SCALE_LEAST);
            }
            self.blocks += scales.len();
            for (g, q) in q[..own].chunks_exact(group).enumerate() {
                let first = 256 * t + g * group;
                let found = compact(q, first as u32, &mut self.quads[used..]);
                self.count += found;
                used += found.div_ceil(4);
                self.starts.push(used as u32);
            }
        }
        self.quads.truncate(used);
        if self.skips {
            self.blocks -= skipped;
        }
    }
}

/// Puts those of `q` that are not 0 into quads, and returns how many they are. There is no branch
/// that depends on a quant, because none could be foretold.
#[inline(always)]
fn compact(q: &[i8], first: u32, quads: &mut [Quad]) -> usize {
    let (mut columns, mut found) = ([first; 36], [0_i8; 36]);
    let mut count = 0;
    for (i, q) in q.iter().enumerate() {
        (columns[count], found[count]) = (first + i as u32, *q);
        count += usize::from(*q != 0);
    }
    // What was written behind the last one is not one.
    for at in count..count.next_multiple_of(4) {
        (columns[at], found[at]) = (columns[count - 1], 0);
    }
    let (columns, found) = (columns.as_chunks::<4>().0, found.as_chunks::<4>().0);
    for ((quad, columns), x) in quads[..count.div_ceil(4)].iter_mut().zip(columns).zip(found) {
        *quad = Quad { columns: *columns, x: bytemuck::cast(*x) };
    }
    count
}
