//! Products of chosen rows: the same chains as of all rows (SPEC N4), for rows that lie apart.

use super::rows::{dot_floats, row32, row256};
use super::{Input, Layout, Matrix, checked, scale_block};
use crate::act::{QuantRows, ScaleBlock};
use crate::dequantize::dequantize;
use crate::format::{self, Float, Format32, Format256, Visitor};
use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{Simd, prefetch_line};
use std::marker::PhantomData;

/// Rows of a piece of work.
const PIECE_ROWS: usize = 48;
/// How many rows ahead of their use weights are asked for.
const AHEAD_ROWS: usize = 3;

/// `out[i]` = row `rows[i]` of `weights` · the input, which is one row: the bits are those that
/// [`super::matmul`] gives.
///
/// # Panics
/// If the weights are panels, a row is not there, or the lengths or the input do not fit.
pub fn dot_rows(
    isa: Isa,
    pool: &Pool,
    input: Input<'_>,
    weights: Matrix<'_>,
    rows: &[u32],
    out: &mut [f32],
) {
    assert!(weights.layout == Layout::Rows && weights.cols == input.len);
    assert!(rows.len() == out.len() && input.rows() == 1);
    assert!(rows.iter().all(|row| (*row as usize) < weights.rows));
    let fits = |rows: Option<&QuantRows>| rows.is_some_and(|rows| rows.fit(isa, 1, input.len));
    assert!(match scale_block(weights.dtype).filter(|_| !input.exact) {
        None => true,
        Some(ScaleBlock::B32) => fits(input.q32),
        Some(ScaleBlock::B256) => fits(input.q256),
    });
    let out = Shared::new(out);
    pool.for_each(rows.len().div_ceil(PIECE_ROWS), &|piece| {
        let start = piece * PIECE_ROWS;
        let rows = &rows[start..rows.len().min(start + PIECE_ROWS)];
        // SAFETY: each piece has its own range, and a piece is given to one thread.
        let out = unsafe { out.range(start, rows.len()) };
        format::visit(weights.dtype, Chosen { isa, input, weights, rows, out });
    });
}

/// Some of the rows.
struct Chosen<'a> {
    isa: Isa,
    input: Input<'a>,
    weights: Matrix<'a>,
    rows: &'a [u32],
    out: &'a mut [f32],
}

impl<'a> Chosen<'a> {
    fn row(&self, row: u32) -> &'a [u8] {
        let len = self.weights.row_bytes();
        &self.weights.bytes[row as usize * len..(row as usize + 1) * len]
    }

    /// Calls `product` for each row, and asks for the memory of those that follow.
    #[inline(always)]
    fn each(self, product: impl Fn(&'a [u8]) -> f32) {
        for i in 0..self.rows.len() {
            if let Some(next) = self.rows.get(i + AHEAD_ROWS) {
                let bytes = self.row(*next);
                (0..bytes.len().div_ceil(64)).for_each(|line| prefetch_line(bytes, 0, line));
            }
            self.out[i] = product(self.row(self.rows[i]));
        }
    }

    fn floats(self) {
        let mut floats = vec![0.0; self.weights.cols];
        for i in 0..self.rows.len() {
            dequantize(self.isa, self.weights.dtype, self.row(self.rows[i]), &mut floats)
                .expect("a row of a checked matrix has the bytes of its elements");
            let x = self.input.x;
            self.out[i] = self.isa.run(FloatRow { w: &floats, x });
        }
    }
}

/// A row of floats.
struct FloatRow<'a> {
    w: &'a [f32],
    x: &'a [f32],
}

impl Op for FloatRow<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let [[sum]] = dot_floats(simd, &[self.w], &[self.x]);
        sum
    }
}

/// Rows of the format `F`.
struct Rows32<'a, F>(Chosen<'a>, PhantomData<F>);
struct Rows256<'a, F>(Chosen<'a>, PhantomData<F>);

impl Visitor for Chosen<'_> {
    type Output = ();

    fn float<F: Float>(self) {
        self.floats();
    }
    fn blocks32<F: Format32>(self) {
        match self.input.exact {
            true => self.floats(),
            false => self.isa.run(Rows32::<F>(self, PhantomData)),
        }
    }
    fn blocks256<F: Format256>(self) {
        match self.input.exact {
            true => self.floats(),
            false => self.isa.run(Rows256::<F>(self, PhantomData)),
        }
    }
}

impl<F: Format32> Op for Rows32<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (x, _) = checked(self.0.input.q32).single().as_chunks();
        self.0.each(|row| row32::<F, S, 0>(simd, format::blocks(row), x));
    }
}

impl<F: Format256> Op for Rows256<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (x, _) = checked(self.0.input.q256).single().as_chunks();
        self.0.each(|row| row256::<F, S, 0>(simd, format::blocks(row), x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::{Product, matmul};
    use crate::testing::{Noise, assert_same, weights};
    use aios_contract::DType;

    #[test]
    fn chosen_rows_have_the_bits_of_the_whole_product() {
        let pool = Pool::new(2).expect("threads");
        for dtype in DType::ALL {
            let mut noise = Noise::new(31);
            let rows = 200;
            let len = if dtype.block_len() == 256 { 512 } else { 96 };
            let bytes = weights(dtype, rows * len, &mut noise, |noise| noise.word() as u8);
            let matrix = Matrix::new(dtype, rows, len, &bytes).expect("a matrix");
            let x = noise.floats(len);
            for isa in Isa::available() {
                let mut q32 = QuantRows::with_capacity(ScaleBlock::B32, 1, len);
                let mut q256 = QuantRows::with_capacity(ScaleBlock::B256, 1, len);
                q32.quantize(isa, &pool, &x, len);
                if len.is_multiple_of(256) {
                    q256.quantize(isa, &pool, &x, len);
                }
                let both = (Some(&q32), Some(&q256));
                for exact in [false, true] {
                    let input = Input { x: &x, len, q32: both.0, q256: both.1, exact };
                    let mut whole = vec![0.0; rows];
                    let product = Product { weights: matrix, bias: None, out: &mut whole };
                    matmul(isa, &pool, input, &mut [product], &[]);
                    let chosen: Vec<u32> = (0..150).map(|i| i * 67 % 200).collect();
                    let mut out = vec![0.0; chosen.len()];
                    dot_rows(isa, &pool, input, matrix, &chosen, &mut out);
                    let wanted: Vec<f32> = chosen.iter().map(|row| whole[*row as usize]).collect();
                    assert_same(&wanted, &out, &|| format!("{dtype} {isa:?} exact {exact}"));
                }
            }
        }
    }
}
