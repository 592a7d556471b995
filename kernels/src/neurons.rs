//! Matrices stored column after column, so that the columns of inputs that are zero need not be
//! read: the down projection of a feed-forward part, whose columns belong to neurons (SPEC D12).
//!
//! The canonical order of a product (N4) sums integers within a block and runs through the blocks
//! of a row by fma. What lies in memory column by column can be summed in any order within a block,
//! and a quant that is 0 adds nothing, so that the bits are those of [`crate::matmul`].
//!
//! ```text
//! matrix:  stripes, of two parts of the rows each (the last one may have one)
//! stripe:  for each block of columns: the scales of each part, then for each column a line a part
//! part:    128 rows of nibbles, or 64 rows of bytes
//! line:    64 bytes: byte 16l + 4j + i is row 16j + 4l + i; the upper nibble that 64 rows on
//! scales:  16 rows side by side, everywhere: f16 d, f16 m or dmin; then for super-blocks the
//!          scale of each group, i8, and the min of each group
//! ```

mod active;
mod pack;
mod product;
#[cfg(test)]
mod tests;

pub use active::ActiveNeurons;
pub use pack::{NotFiniteScale, finite_scales, pack_neurons};
pub use product::neurons;

use aios_contract::DType;

/// Bytes of a line.
const LINE: usize = 64;
/// Parts of a stripe.
const STRIPE_PARTS: usize = 2;

/// The shape of a matrix that is stored column after column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeuronShape {
    dtype: DType,
    rows: usize,
    cols: usize,
    /// Rows of a part.
    part_rows: usize,
    /// Bytes of the scales of a part's block.
    scale_bytes: usize,
    /// Columns that share a scale of their own: a whole block of 32, or a group of a super-block.
    group: usize,
}

impl NeuronShape {
    /// The shape of a matrix of `rows` rows of `cols` columns; `None` for formats in which it would
    /// take more bytes column by column than it is worth, and where the number of bytes is too
    /// large.
    pub fn new(dtype: DType, rows: usize, cols: usize) -> Option<Self> {
        let (part_rows, bytes_a_row, group) = match dtype {
            DType::Q4_0 => (128, 2, 32),
            DType::Q4_1 => (128, 4, 32),
            DType::Q8_0 => (64, 2, 32),
            DType::Q4_K => (128, 4 + 2 * 8, 32),
            DType::Q6_K => (64, 2 + 16, 16),
            _ => return None,
        };
        if rows == 0 || cols == 0 || !cols.is_multiple_of(dtype.block_len()) {
            return None;
        }
        let scale_bytes = bytes_a_row * part_rows;
        let shape = Self { dtype, rows, cols, part_rows, scale_bytes, group };
        let block = scale_bytes + LINE * dtype.block_len();
        let blocks = shape.parts().checked_mul(shape.blocks())?;
        blocks.checked_mul(block).filter(|bytes| *bytes < isize::MAX as usize).map(|_| shape)
    }

    /// Bytes of such a matrix.
    pub const fn bytes(&self) -> usize {
        self.parts() * self.blocks() * self.block_bytes()
    }

    /// Its dtype.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Its columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that a product reads of it for these inputs: scales of the blocks that are not
    /// skipped, and the lines of the columns that are not.
    pub const fn read_bytes(&self, active: &ActiveNeurons) -> usize {
        self.parts() * (active.blocks() * self.scale_bytes + active.count() * LINE)
    }

    const fn parts(&self) -> usize {
        self.rows.div_ceil(self.part_rows)
    }

    const fn stripes(&self) -> usize {
        self.parts().div_ceil(STRIPE_PARTS)
    }

    const fn blocks(&self) -> usize {
        self.cols / self.dtype.block_len()
    }

    /// Bytes of a part's block, scales and lines.
    const fn block_bytes(&self) -> usize {
        self.scale_bytes + LINE * self.dtype.block_len()
    }

    /// Parts of stripe `stripe`.
    const fn stripe_parts(&self, stripe: usize) -> usize {
        let left = self.parts() - stripe * STRIPE_PARTS;
        if left < STRIPE_PARTS { left } else { STRIPE_PARTS }
    }

    /// Where stripe `stripe` begins.
    const fn stripe_start(&self, stripe: usize) -> usize {
        stripe * STRIPE_PARTS * self.blocks() * self.block_bytes()
    }
}

/// A matrix that is stored column after column.
#[derive(Clone, Copy, Debug)]
pub struct Neurons<'a> {
    shape: NeuronShape,
    bytes: &'a [u8],
}

impl<'a> Neurons<'a> {
    /// A matrix over `bytes`; `None` if they are not as many as the shape needs.
    pub fn new(shape: NeuronShape, bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() == shape.bytes()).then_some(Self { shape, bytes })
    }

    /// Its shape.
    pub const fn shape(&self) -> NeuronShape {
        self.shape
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What a product with these inputs reads of it, in the order in which it lies in memory: the
    /// scales of blocks that are not skipped, and the lines of the columns that are not.
    pub fn reads(self, active: &ActiveNeurons) -> impl Iterator<Item = &'a [u8]> {
        let shape = self.shape;
        let len = shape.dtype.block_len();
        let groups = len / shape.group;
        (0..shape.stripes()).flat_map(move |stripe| {
            let parts = shape.stripe_parts(stripe);
            let blocks = self.stripe(stripe).chunks_exact(parts * shape.block_bytes());
            blocks.enumerate().flat_map(move |(b, block)| {
                let (scales, lines) = block.split_at(parts * shape.scale_bytes);
                let quads = (groups * b..groups * (b + 1)).flat_map(|group| active.group(group));
                let mut columns: Vec<usize> =
                    quads.flat_map(|quad| quad.columns).map(|column| column as usize).collect();
                // The last quad of a group may repeat a column.
                columns.dedup();
                let read = !columns.is_empty() || !active.skips;
                let line =
                    move |column| &lines[(column - b * len) * parts * LINE..][..parts * LINE];
                read.then_some(scales).into_iter().chain(columns.into_iter().map(line))
            })
        })
    }

    /// A stripe's bytes.
    fn stripe(&self, stripe: usize) -> &'a [u8] {
        let start = self.shape.stripe_start(stripe);
        let len = self.shape.stripe_parts(stripe) * self.shape.blocks() * self.shape.block_bytes();
        &self.bytes[start..start + len]
    }
}
