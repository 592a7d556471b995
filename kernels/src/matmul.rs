//! Matrix products y = W·x for one or many activation rows (SPEC N4).
//!
//! The plain algorithm: for every output, one chain of fused multiply-adds over the blocks of
//! the weight row, in order; within a block the products are summed as integers, whose order
//! cannot matter. With d the block's scale, m its minimum, dx the activations' scale, isum the
//! integer sum of products and msum that of minima:
//!
//! ```text
//! t = d · isum;  with minima: t = fma(m, msum, t)   (m is −dmin for super-blocks)
//! y = fma(dx, t, y)
//! ```
//!
//! The departures from it:
//! 1. Few activation rows ([`rows`]): a weight row is unpacked block by block and multiplied
//!    with every activation row while it is in registers; the weights are read once, in order.
//! 2. Many ([`tile`]): 16 weight rows are unpacked at a time and turned so that a vector lane
//!    owns a row; the sums need no reduction across lanes and the unpacking serves all columns.
//! 3. Several matrices that share an input run in one fork-join.

mod rows;
mod tile;

use crate::act::{QuantRows, ScaleBlock};
use crate::format::{self, Float, Format32, Format256, Visitor};
use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::Simd;
use aios_contract::DType;
use std::marker::PhantomData;

/// From this many activation rows on, tiles are faster than row products: for blocks of 32, whose
/// row products are dear, and for super-blocks.
const TILE32_FROM: usize = 3;
const TILE256_FROM: usize = 4;
/// Weight bytes that a piece of work should have at least.
const PIECE_BYTES: usize = 32 << 10;
/// Pieces a thread, so that threads which run at different speeds end together.
const PIECES_PER_THREAD: usize = 8;

/// A weight matrix of `rows` rows of `cols` elements as it stands in the file.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

/// A matrix whose bytes do not fit its shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {rows} x {cols} matrix of {dtype} does not fit {bytes} bytes")]
pub struct MatrixError {
    /// Its dtype.
    pub dtype: DType,
    /// Its rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// The bytes given.
    pub bytes: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix over `bytes`, row after row.
    ///
    /// # Errors
    /// If a row is not a whole number of blocks, or the length is not that of the rows.
    pub fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, MatrixError> {
        let needed = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        if cols == 0 || needed != Some(bytes.len()) {
            return Err(MatrixError { dtype, rows, cols, bytes: bytes.len() });
        }
        Ok(Self { dtype, rows, cols, bytes })
    }

    /// Its dtype.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its rows: elements of the product.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Its columns: elements of the input.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Rows `start..start + len` as a matrix of their own.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn row_range(&self, start: usize, len: usize) -> Self {
        let row = self.bytes.len() / self.rows.max(1);
        Self { rows: len, bytes: &self.bytes[start * row..(start + len) * row], ..*self }
    }
}

/// How activations are quantised for weights of this dtype; `None` if they stay floats.
pub fn scale_block(dtype: DType) -> Option<ScaleBlock> {
    match dtype.block_len() {
        1 => None,
        32 => Some(ScaleBlock::B32),
        _ => Some(ScaleBlock::B256),
    }
}

/// The input of a product: the same rows as floats and quantised.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Floats, \[n\]\[len\].
    pub x: &'a [f32],
    /// Elements of a row.
    pub len: usize,
    /// Quantised for formats with blocks of 32, where a matrix needs it.
    pub q32: Option<&'a QuantRows>,
    /// Quantised for formats with super-blocks, where a matrix needs it.
    pub q256: Option<&'a QuantRows>,
    /// Compute with dequantised weights and `x` itself instead (SPEC N4, exact mode).
    pub exact: bool,
}

impl Input<'_> {
    /// Rows.
    pub const fn rows(&self) -> usize {
        self.x.len() / self.len
    }
}

/// One product of several that share an input.
pub struct Product<'a> {
    /// The weights, \[rows\]\[len of the input\].
    pub weights: Matrix<'a>,
    /// The result, \[n\]\[rows\].
    pub out: &'a mut [f32],
}

/// Computes every product in one fork-join.
///
/// # Panics
/// If a shape does not fit, or the quantised input that a matrix needs is missing.
pub fn matmul(isa: Isa, pool: &Pool, input: Input<'_>, products: &mut [Product<'_>]) {
    /// Products that one call may share a join between: q, k, v and a spare.
    const MOST: usize = 4;
    let n = input.rows();
    assert!(products.len() <= MOST && n > 0);
    let total: usize = products.iter().map(|p| p.weights.bytes.len()).sum();
    let piece_bytes = (total / (PIECES_PER_THREAD * pool.threads())).max(PIECE_BYTES);
    let mut jobs: [Option<Job<'_>>; MOST] = [const { None }; MOST];
    let mut pieces = 0;
    for (product, job) in products.iter_mut().zip(&mut jobs) {
        let weights = product.weights;
        assert_eq!((weights.cols, product.out.len()), (input.len, n * weights.rows));
        let row_bytes = (weights.bytes.len() / weights.rows.max(1)).max(1);
        let rows = (piece_bytes / row_bytes).next_multiple_of(16).max(16);
        let first = pieces;
        pieces += weights.rows.div_ceil(rows);
        let fits = |rows: Option<&QuantRows>| rows.is_some_and(|rows| rows.holds(n, input.len));
        let quantised = match scale_block(weights.dtype) {
            None => true,
            Some(ScaleBlock::B32) => fits(input.q32),
            Some(ScaleBlock::B256) => fits(input.q256),
        };
        assert!(input.exact || quantised, "{} needs quantised activations", weights.dtype);
        *job = Some(Job { weights, rows, first, out: Shared::new(product.out) });
    }
    pool.for_each(pieces, &|piece| {
        let job = jobs.iter().flatten().rev().find(|job| job.first <= piece);
        if let Some(job) = job {
            let start = (piece - job.first) * job.rows;
            let rows = job.rows.min(job.weights.rows - start);
            format::visit(job.weights.dtype, Piece { isa, job, input, start, rows });
        }
    });
}

/// A product, shared out in pieces of `rows` rows numbered from `first`.
struct Job<'a> {
    weights: Matrix<'a>,
    rows: usize,
    first: usize,
    out: Shared<'a, f32>,
}

/// Some rows of a product.
struct Piece<'a, 'b> {
    isa: Isa,
    job: &'b Job<'a>,
    input: Input<'b>,
    start: usize,
    rows: usize,
}

impl Piece<'_, '_> {
    /// Where activation row `column`'s results for weight rows `row..row + len` of this piece go.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the ranges are disjoint, as the comment says")]
    fn out(&self, column: usize, row: usize, len: usize) -> &mut [f32] {
        // SAFETY: a piece is given to one thread, its rows belong to no other piece, and its
        // code holds one of these ranges at a time.
        unsafe { self.job.out.range(column * self.job.weights.rows + self.start + row, len) }
    }

    fn weights(&self) -> Matrix<'_> {
        self.job.weights.row_range(self.start, self.rows)
    }
}

/// A piece whose weights have the format `F`, of one of the two quantised kinds.
struct Piece32<'a, 'b, F>(Piece<'a, 'b>, &'b QuantRows, PhantomData<F>);
struct Piece256<'a, 'b, F>(Piece<'a, 'b>, &'b QuantRows, PhantomData<F>);

impl Visitor for Piece<'_, '_> {
    type Output = ();

    fn float<F: Float>(self) {
        rows::floats(&self);
    }
    fn blocks32<F: Format32>(self) {
        match self.input.q32.filter(|_| !self.input.exact) {
            None => rows::floats(&self),
            Some(x) => self.isa.run(Piece32::<F>(self, x, PhantomData)),
        }
    }
    fn blocks256<F: Format256>(self) {
        match self.input.q256.filter(|_| !self.input.exact) {
            None => rows::floats(&self),
            Some(x) => self.isa.run(Piece256::<F>(self, x, PhantomData)),
        }
    }
}

impl<F: Format32> Op for Piece32<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(piece, x, _) = self;
        if piece.input.rows() < TILE32_FROM {
            rows::rows32::<F, S>(simd, &piece, x);
        } else {
            tile::tile32::<F, S>(simd, &piece, x);
        }
    }
}

impl<F: Format256> Op for Piece256<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(piece, x, _) = self;
        if piece.input.rows() < TILE256_FROM {
            rows::rows256::<F, S>(simd, &piece, x);
        } else {
            tile::tile256::<F, S>(simd, &piece, x);
        }
    }
}

#[cfg(test)]
mod tests;
