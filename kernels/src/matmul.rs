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
//! 1. Weights in panels ([`panels`]): 16 rows lie interleaved so that a vector lane owns a row; the
//!    sums need no reduction across lanes, and unpacking serves several activation rows.
//! 2. Weights as they stand in the file: with one activation row ([`rows`]) a weight row is
//!    unpacked block by block, in the order in which it lies in memory; with more, a few panels
//!    at a time are packed first.
//! 3. Several matrices that share an input run in one fork-join.

mod gather;
mod inner;
pub(crate) mod lanes;
mod panels;
mod rows;
mod tiles;

pub use gather::dot_rows;
pub use inner::{Inner, inner};

use crate::act::{QuantRows, ScaleBlock};
use crate::format::{self, Float, Format32, Format256, Visitor};
use crate::isa::{Isa, Op};
use crate::layers::add;
use crate::panel::{PANEL_ROWS, pack_panel, packed_bytes};
use crate::pool::{Ahead, Pool};
use crate::shared::Shared;
use crate::simd::{LANES, Simd};
use crate::tiles::Line;
use aios_contract::DType;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Weight bytes that a piece of work should have at least, for few activation rows and for many.
const FEW_BYTES: usize = 8 << 10;
const MANY_BYTES: usize = 32 << 10;
/// From this many activation rows on there are many, and arithmetic takes the time, not memory.
const MANY: usize = 17;
/// The most activation rows whose products read weights past the caches.
const PAST_ROWS: usize = 2;
/// Weight bytes that are packed at a time where the weights are rows.
const PACKED_BYTES: usize = 192 << 10;

/// How a matrix's blocks lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Row after row, as in the file.
    Rows,
    /// In panels.
    Panels,
}

/// A weight matrix of `rows` rows of `cols` elements.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
    layout: Layout,
    /// Whether products of few activation rows read it past the caches.
    past: bool,
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
        Ok(Self { dtype, rows, cols, bytes, layout: Layout::Rows, past: false })
    }

    /// A matrix over `bytes`, panel after panel as [`crate::pack`] makes them.
    ///
    /// # Errors
    /// If the format is not packed, or the length is not that of the panels.
    pub fn packed(
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, MatrixError> {
        if cols == 0 || packed_bytes(dtype, rows, cols) != Some(bytes.len()) {
            return Err(MatrixError { dtype, rows, cols, bytes: bytes.len() });
        }
        Ok(Self { dtype, rows, cols, bytes, layout: Layout::Panels, past: false })
    }

    /// The same, to be read past the caches or not: where few activation rows are multiplied with
    /// panels, these are asked for non-temporally, so that what else the caches hold may stay.
    #[must_use]
    pub const fn read_past(self, past: bool) -> Self {
        Self { past, ..self }
    }

    /// Whether a product with `n` activation rows reads it past the caches.
    pub const fn is_read_past(&self, n: usize) -> bool {
        self.past && n <= PAST_ROWS && matches!(self.layout, Layout::Panels)
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

    /// Rows `start..start + len` as a matrix of their own; in panels `start` is a multiple of 16.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn row_range(&self, start: usize, len: usize) -> Self {
        let row = self.row_bytes();
        let end = match self.layout {
            Layout::Rows => start + len,
            Layout::Panels => {
                assert!(start.is_multiple_of(PANEL_ROWS) && start + len <= self.rows);
                (start + len).next_multiple_of(PANEL_ROWS)
            }
        };
        Self { rows: len, bytes: &self.bytes[start * row..end * row], ..*self }
    }

    /// Units of 16 rows in which products are shared out.
    const fn units(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Bytes of a row, wherever they lie.
    fn row_bytes(&self) -> usize {
        let rows = match self.layout {
            Layout::Rows => self.rows,
            Layout::Panels => self.rows.next_multiple_of(PANEL_ROWS),
        };
        self.bytes.len() / rows.max(1)
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
    /// Added to each row of the result.
    pub bias: Option<&'a [f32]>,
    /// The result, \[n\]\[rows\].
    pub out: &'a mut [f32],
}

/// Computes every product in one fork-join. A thread that is done before the others asks memory
/// for what it will read of the weights `next`, those of the next call in their order.
///
/// # Panics
/// If a shape does not fit, or the quantised input that a matrix needs is missing.
pub fn matmul(
    isa: Isa,
    pool: &Pool,
    input: Input<'_>,
    products: &mut [Product<'_>],
    next: &[Option<Matrix<'_>>],
) {
    let n = input.rows();
    assert!(products.len() <= MOST && n > 0);
    let mut jobs: [Option<Job<'_>>; MOST] = [const { None }; MOST];
    let (mut units, mut bytes) = (0, 0);
    for (product, job) in products.iter_mut().zip(&mut jobs) {
        let weights = product.weights;
        *job = Some(Job::new(isa, input, product, units));
        units += weights.units();
        bytes += weights.bytes.len();
    }
    let task = |run: Range<usize>| {
        for job in jobs.iter().flatten() {
            let (start, end) = (run.start.max(job.first), run.end.min(job.end()));
            if start < end {
                job.run(start - job.first..end - job.first);
            }
        }
    };
    pool.share(units, least(n, units, bytes), &task, &|thread| ahead(pool, thread, n, next));
}

/// Products that one call may share a join between: q, k, v and a spare.
const MOST: usize = 4;

/// Units that a thread should take at least, of `units` that have `bytes` bytes.
pub(crate) fn least(n: usize, units: usize, bytes: usize) -> usize {
    let least = if n < MANY { FEW_BYTES } else { MANY_BYTES };
    (least * units).div_ceil(bytes.max(1)).max(1)
}

/// What a thread reads first of the product of `next` with `n` activation rows.
pub(crate) fn ahead(pool: &Pool, thread: usize, n: usize, next: &[Option<Matrix<'_>>]) -> Ahead {
    if n >= MANY {
        return Ahead::NONE;
    }
    let matrices = || next.iter().flatten();
    let mut unit = pool.own(matrices().map(Matrix::units).sum(), thread).start;
    for matrix in matrices() {
        if unit < matrix.units() {
            return Ahead::new(&matrix.bytes[unit * PANEL_ROWS * matrix.row_bytes()..]);
        }
        unit -= matrix.units();
    }
    Ahead::NONE
}

/// A product, shared out in units of 16 rows numbered from `first`.
struct Job<'a> {
    isa: Isa,
    input: Input<'a>,
    weights: Matrix<'a>,
    bias: Option<&'a [f32]>,
    first: usize,
    out: Shared<'a, f32>,
}

impl<'a> Job<'a> {
    /// # Panics
    /// As [`matmul`].
    fn new(isa: Isa, input: Input<'a>, product: &'a mut Product<'_>, first: usize) -> Self {
        let Product { weights, bias, out } = product;
        let n = input.rows();
        assert_eq!((weights.cols, out.len()), (input.len, n * weights.rows));
        assert!(bias.is_none_or(|bias| bias.len() == weights.rows), "the bias fits the rows");
        let fits = |rows: Option<&QuantRows>| rows.is_some_and(|rows| rows.fit(isa, n, input.len));
        let quantised = match scale_block(weights.dtype) {
            None => true,
            Some(ScaleBlock::B32) => fits(input.q32),
            Some(ScaleBlock::B256) => fits(input.q256),
        };
        assert!(input.exact || quantised, "{} needs quantised activations", weights.dtype);
        assert!(!input.exact || weights.layout == Layout::Rows, "exact products take rows");
        Self { isa, input, weights: *weights, bias: *bias, first, out: Shared::new(out) }
    }

    fn end(&self) -> usize {
        self.first + self.weights.units()
    }

    /// Computes some of its units, which are counted from its own first one.
    fn run(&self, units: Range<usize>) {
        let Self { isa, input, weights, .. } = *self;
        let start = units.start * PANEL_ROWS;
        let rows = (units.end * PANEL_ROWS).min(weights.rows) - start;
        let piece = Piece { isa, job: self, input, start, rows };
        format::visit(weights.dtype, piece);
        if let Some(bias) = self.bias {
            for column in 0..input.rows() {
                add(isa, piece.out(column, 0, rows), &bias[start..start + rows]);
            }
        }
    }
}

/// Some rows of a product.
#[derive(Clone, Copy)]
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

impl<'a, 'b> Piece<'a, 'b> {
    /// Hands the piece's weights to `panels` as panels, packing some at a time where they are
    /// rows; a single activation row goes to `rows` instead.
    fn quantised(self, x: &QuantRows, rows: fn(&Self), panels: fn(&Self, &[u8], &mut [Line])) {
        let weights = self.weights();
        let lines = self.isa.run(ScratchLen { x, len: self.input.len });
        let panels = |piece: &Self, bytes: &[u8]| {
            LINES.with_borrow_mut(|scratch| {
                scratch.resize(lines.max(scratch.len()), Line([0; LANES]));
                panels(piece, bytes, &mut scratch[..lines]);
            });
        };
        if weights.layout == Layout::Panels {
            return panels(&self, weights.bytes);
        }
        if self.input.rows() == 1 {
            return rows(&self);
        }
        let row_bytes = weights.row_bytes();
        let run = (PACKED_BYTES / row_bytes).next_multiple_of(PANEL_ROWS);
        SCRATCH.with_borrow_mut(|scratch| {
            for start in (0..self.rows).step_by(run) {
                let count = run.min(self.rows - start);
                let len = count.next_multiple_of(PANEL_ROWS) * row_bytes;
                scratch.resize(len.div_ceil(64).max(scratch.len()), [0; 64]);
                let packed = &mut scratch.as_flattened_mut()[..len];
                let part = weights.row_range(start, count);
                for (rows, panel) in (part.bytes.chunks(PANEL_ROWS * row_bytes))
                    .zip(packed.chunks_exact_mut(PANEL_ROWS * row_bytes))
                {
                    pack_panel(weights.dtype, row_bytes, rows, panel);
                }
                panels(&Self { start: self.start + start, rows: count, ..self }, packed);
            }
        });
    }
}

thread_local! {
    /// Memory for packing, and for unpacked weights or sums, which is kept from call to call.
    static SCRATCH: RefCell<Vec<[u8; 64]>> = const { RefCell::new(Vec::new()) };
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Lines of memory that an instruction set wants for unpacked weights or sums.
struct ScratchLen<'a> {
    x: &'a QuantRows,
    len: usize,
}

impl Op for ScratchLen<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        match self.x.tiled() {
            true => tiles::scratch_len(self.x),
            false => panels::scratch_len(simd, self.x.rows(), self.len),
        }
    }
}

impl Visitor for Piece<'_, '_> {
    type Output = ();

    fn float<F: Float>(self) {
        rows::floats(&self);
    }
    fn blocks32<F: Format32>(self) {
        let Some(x) = self.input.q32.filter(|_| !self.input.exact) else {
            return rows::floats(&self);
        };
        self.quantised(
            x,
            |piece| piece.isa.run(Rows32::<F>(piece, PhantomData)),
            |piece, bytes, scratch| {
                piece.isa.run(Panels32::<F>(piece, bytes, scratch, PhantomData));
            },
        );
    }
    fn blocks256<F: Format256>(self) {
        let Some(x) = self.input.q256.filter(|_| !self.input.exact) else {
            return rows::floats(&self);
        };
        self.quantised(
            x,
            |piece| piece.isa.run(Rows256::<F>(piece, PhantomData)),
            |piece, bytes, scratch| {
                piece.isa.run(Panels256::<F>(piece, bytes, scratch, PhantomData));
            },
        );
    }
}

/// A piece whose weights have the format `F`: as rows for one activation row, or as panels.
struct Rows32<'a, F>(&'a Piece<'a, 'a>, PhantomData<F>);
struct Rows256<'a, F>(&'a Piece<'a, 'a>, PhantomData<F>);
struct Panels32<'a, F>(&'a Piece<'a, 'a>, &'a [u8], &'a mut [Line], PhantomData<F>);
struct Panels256<'a, F>(&'a Piece<'a, 'a>, &'a [u8], &'a mut [Line], PhantomData<F>);

/// The quantised activations, which [`matmul`] has checked to be there.
fn checked(rows: Option<&QuantRows>) -> &QuantRows {
    rows.expect("checked before the work was shared out")
}

impl<F: Format32> Op for Rows32<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        rows::rows32::<F, S>(simd, self.0, checked(self.0.input.q32));
    }
}

impl<F: Format256> Op for Rows256<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        rows::rows256::<F, S>(simd, self.0, checked(self.0.input.q256));
    }
}

impl<F: Format32> Op for Panels32<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(piece, bytes, scratch, _) = self;
        let x = checked(piece.input.q32);
        if S::TILES && x.tiled() {
            tiles::tiles32::<F, S>(simd, piece, bytes, x, scratch);
        } else {
            panels::panels32::<F, S>(simd, piece, bytes, x, bytemuck::cast_slice_mut(scratch));
        }
    }
}

impl<F: Format256> Op for Panels256<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(piece, bytes, scratch, _) = self;
        let x = checked(piece.input.q256);
        if S::TILES && x.tiled() {
            tiles::tiles256::<F, S>(simd, piece, bytes, x, scratch);
        } else {
            panels::panels256::<F, S>(simd, piece, bytes, x, bytemuck::cast_slice_mut(scratch));
        }
    }
}

#[cfg(test)]
mod tests;
