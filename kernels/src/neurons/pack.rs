//! Making matrices that are stored column after column.

use super::{LINE, NeuronShape, STRIPE_PARTS};
use crate::format::{self, Float, Format32, Format256, Super, Visitor};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{LANES, Scalar};
use aios_contract::DType;
use half::f16;

/// A scale that is infinite or not a number: what it is multiplied with may not be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} of the matrix has a scale that is not finite")]
pub struct NotFiniteScale {
    /// The row.
    pub row: usize,
}

/// Rearranges a matrix, `rows` as they stand in a file, into `out`.
///
/// # Errors
/// [`NotFiniteScale`].
///
/// # Panics
/// If the lengths are not those of the shape.
pub fn pack_neurons(
    pool: &Pool,
    shape: NeuronShape,
    rows: &[u8],
    out: &mut [u8],
) -> Result<(), NotFiniteScale> {
    let row_bytes = shape.dtype.row_bytes(shape.cols).expect("a shape has whole blocks");
    assert!(rows.len() == shape.rows * row_bytes && out.len() == shape.bytes());
    finite_scales(shape.dtype, row_bytes, rows)?;
    let out = Shared::new(out);
    pool.for_each(shape.stripes(), &|stripe| {
        let len = shape.stripe_parts(stripe) * shape.blocks() * shape.block_bytes();
        // SAFETY: each stripe is one piece, and a piece is given to one thread.
        let out = unsafe { out.range(shape.stripe_start(stripe), len) };
        format::visit(shape.dtype, Stripe { shape, stripe, rows, row_bytes, out });
    });
    Ok(())
}

/// Whether all scales and minima of rows of `row_bytes` bytes are finite.
///
/// # Errors
/// [`NotFiniteScale`], with the first row that has one that is not.
///
/// # Panics
/// If a row is not whole blocks of a quantised format.
pub fn finite_scales(dtype: DType, row_bytes: usize, rows: &[u8]) -> Result<(), NotFiniteScale> {
    assert!(!dtype.is_float() && row_bytes.is_multiple_of(dtype.block_bytes()));
    let mut rows = rows.chunks_exact(row_bytes);
    match rows.position(|bytes| !format::visit(dtype, Finite(bytes))) {
        None => Ok(()),
        Some(row) => Err(NotFiniteScale { row }),
    }
}

/// A row whose scales are looked at, by scalar code: it is done once.
struct Finite<'a>(&'a [u8]);

fn finite(scales: [u16; 2]) -> bool {
    scales.iter().all(|bits| f16::from_bits(*bits).is_finite())
}

impl Visitor for Finite<'_> {
    type Output = bool;

    fn float<F: Float>(self) -> bool {
        unreachable!("callers have checked that the dtype is quantised");
    }
    fn blocks32<F: Format32>(self) -> bool {
        let mut w = [0; 32];
        let mut blocks = format::blocks::<F::Block>(self.0).iter();
        blocks.all(|block| finite(F::unpack(Scalar, block, &mut w)))
    }
    fn blocks256<F: Format256>(self) -> bool {
        let mut unpacked = Super::ZERO;
        format::blocks::<F::Block>(self.0).iter().all(|block| {
            F::unpack(Scalar, block, &mut unpacked);
            finite(unpacked.d)
        })
    }
}

/// A stripe that is made.
struct Stripe<'a> {
    shape: NeuronShape,
    stripe: usize,
    rows: &'a [u8],
    row_bytes: usize,
    out: &'a mut [u8],
}

impl Stripe<'_> {
    /// Calls `put` for each block of each row of the stripe, with the row's number within its part,
    /// the block as it stands in the file, the scales of its part, and the lines with its part's
    /// number and how many parts there are.
    fn each(self, mut put: impl FnMut(usize, &[u8], &mut [u8], &mut [u8], [usize; 2])) {
        let Self { shape, stripe, rows, row_bytes, out } = self;
        out.fill(0);
        let (parts, block_bytes) = (shape.stripe_parts(stripe), shape.dtype.block_bytes());
        let blocks = out.chunks_exact_mut(parts * shape.block_bytes());
        for (b, out) in blocks.enumerate() {
            let (scales, lines) = out.split_at_mut(parts * shape.scale_bytes);
            for (part, scales) in scales.chunks_exact_mut(shape.scale_bytes).enumerate() {
                let first = (stripe * STRIPE_PARTS + part) * shape.part_rows;
                for row in first..shape.rows.min(first + shape.part_rows) {
                    let block = &rows[row * row_bytes + b * block_bytes..][..block_bytes];
                    put(row - first, block, scales, lines, [part, parts]);
                }
            }
        }
    }
}

/// Puts the quants of a row into the lines of its part.
fn put_quants(
    shape: NeuronShape,
    row: usize,
    quants: &[u8],
    signed: bool,
    lines: &mut [u8],
    [part, parts]: [usize; 2],
) {
    let within = row % LINE;
    let (vector, lane) = (within / LANES, within % LANES);
    let at = LANES * (lane / 4) + 4 * vector + lane % 4;
    for (column, q) in quants.iter().enumerate() {
        let byte = &mut lines[(column * parts + part) * LINE + at];
        if shape.part_rows == LINE {
            *byte = if signed { q.wrapping_add(128) } else { *q };
        } else {
            *byte |= q << (4 * (row / LINE));
        }
    }
}

/// Puts a half-precision number of a row into field `field` of the scales.
fn put_half(shape: NeuronShape, field: usize, row: usize, bits: u16, scales: &mut [u8]) {
    let at = 2 * (field * shape.part_rows + row);
    scales[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

impl Visitor for Stripe<'_> {
    type Output = ();

    fn float<F: Float>(self) {
        unreachable!("a shape is of a quantised format");
    }
    fn blocks32<F: Format32>(self) {
        let shape = self.shape;
        self.each(|row, block, scales, lines, part| {
            let mut w = [0; 32];
            let block = &format::blocks::<F::Block>(block)[0];
            let [d, m] = F::unpack(Scalar, block, &mut w);
            put_half(shape, 0, row, d, scales);
            if F::HAS_MIN {
                put_half(shape, 1, row, m, scales);
            }
            put_quants(shape, row, &w, F::SIGNED, lines, part);
        });
    }
    #[expect(clippy::cast_possible_truncation, reason = "panels keep scales in i8 too")]
    fn blocks256<F: Format256>(self) {
        let shape = self.shape;
        let step = if F::PAIRED { 2 } else { 1 };
        self.each(|row, block, scales, lines, part| {
            let mut unpacked = Super::ZERO;
            F::unpack(Scalar, &format::blocks::<F::Block>(block)[0], &mut unpacked);
            put_half(shape, 0, row, unpacked.d[0], scales);
            let mut front = 2 * shape.part_rows;
            if F::HAS_MIN {
                put_half(shape, 1, row, unpacked.d[1], scales);
                front *= 2;
            }
            let groups = 16 / step;
            for g in 0..groups {
                let mut put = |at: usize, value: i16| {
                    scales[front + at * shape.part_rows + row] = (value as i8).cast_unsigned();
                };
                put(g, unpacked.scales[step * g]);
                if F::HAS_MIN {
                    put(groups + g, unpacked.mins[step * g]);
                }
            }
            put_quants(shape, row, &unpacked.w, F::SIGNED, lines, part);
        });
    }
}
