//! Making a sketch: once for a model, in f64, with every norm rounded up (SPEC D5).

use super::layout::{CODES, Codes, DIRECTIONS, Front, RefinedFront, SketchShape, levels};
use super::spread::Spread;
use super::terms::terms;
use super::{DEFECT_MAX, Limits, SMALLEST};
use crate::dequantize::dequantize;
use crate::isa::Isa;
use crate::panel::PANEL_ROWS;
use aios_contract::DType;
use half::bf16;

/// σ over the root of the mean square: between what is best for a normal distribution where upper
/// bits of codes stand alone, 0.073, and for whole ones, 0.094.
const STEP: f64 = 0.0775;
/// Factors that are larger than what rounds off in sums of f64, or of a root.
const UP: f64 = 1.0 + 1e-9;

/// Sketches the rows of a matrix.
#[derive(Debug)]
pub struct SketchBuilder {
    isa: Isa,
    dtype: DType,
    shape: SketchShape,
    spread: Spread,
    /// V, \[columns\]\[32\].
    directions: Vec<[f64; DIRECTIONS]>,
    /// R·V, \[32\]\[padded columns\].
    rotated: Vec<Vec<f64>>,
    scales: [f64; DIRECTIONS],
}

/// What a panel cannot be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} of the output matrix has a number that is not finite or too large")]
pub struct NotFinite {
    /// The row, within those given.
    pub row: usize,
}

impl SketchBuilder {
    /// Sketches of rows of `dtype`, with the products of `directions` and their `scales`, which
    /// are positive, and the spread of `seed`.
    ///
    /// # Panics
    /// If there are not as many directions' elements as columns.
    pub fn new(
        dtype: DType,
        shape: SketchShape,
        directions: &[[f32; DIRECTIONS]],
        scales: &[f32; DIRECTIONS],
        seed: u64,
    ) -> Self {
        assert_eq!(directions.len(), shape.cols);
        let spread = Spread::new(shape.cols, seed);
        let directions: Vec<_> = directions.iter().map(|row| row.map(f64::from)).collect();
        let padded = spread.padded_len();
        let mut scratch = vec![0.0; padded];
        let rotate = |j: usize| {
            let mut column: Vec<f64> = directions.iter().map(|row| row[j]).collect();
            column.resize(padded, 0.0);
            spread.apply(&mut column, &mut scratch);
            column
        };
        let rotated = (0..DIRECTIONS).map(rotate).collect();
        Self {
            isa: Isa::detect(),
            dtype,
            shape,
            spread,
            directions,
            rotated,
            scales: scales.map(f64::from),
        }
    }

    /// The products of a row of floats with the directions, each over its scale.
    fn products(&self, row: &[f32]) -> [f64; DIRECTIONS] {
        let mut sums = [0.0; DIRECTIONS];
        for (x, directions) in row.iter().zip(&self.directions) {
            for (sum, direction) in sums.iter_mut().zip(directions) {
                *sum += f64::from(*x) * direction;
            }
        }
        sums
    }

    /// Sketches at most 16 rows as they stand in a file into `panel`, of the shape's panel bytes,
    /// and `refined`, of its refined bytes for each row.
    ///
    /// # Errors
    /// [`NotFinite`].
    ///
    /// # Panics
    /// If the lengths are not those of rows and of a panel.
    pub fn panel(
        &self,
        rows: &[u8],
        panel: &mut [u8],
        refined: &mut [u8],
    ) -> Result<Limits, NotFinite> {
        let row_bytes = self.dtype.row_bytes(self.shape.cols).expect("rows are whole blocks");
        assert!(rows.len().is_multiple_of(row_bytes) && rows.len() <= PANEL_ROWS * row_bytes);
        assert_eq!(panel.len(), self.shape.panel_bytes());
        let refined_bytes = self.shape.refined_bytes();
        assert_eq!(refined.len(), rows.len() / row_bytes * refined_bytes);
        panel.fill(0);
        refined.fill(0);
        let (front, codes) = panel.split_at_mut(size_of::<Front>());
        let front: &mut Front = bytemuck::from_bytes_mut(front);
        let codes: &mut [Codes] = bytemuck::cast_slice_mut(codes);
        let mut limits = Limits::default();
        let rows = rows.chunks_exact(row_bytes).zip(refined.chunks_exact_mut(refined_bytes));
        for (r, (row, refined)) in rows.enumerate() {
            let sketched = self.row(row).ok_or(NotFinite { row: r })?;
            front.sigma[r] = sketched.sigma.to_le_bytes();
            front.kappa[r] = sketched.kappa.to_le_bytes();
            front.rho[r] = sketched.rho.to_le_bytes();
            for (vector, c) in front.products.iter_mut().zip(sketched.products.as_chunks::<4>().0) {
                let biased = c.map(|c| c.cast_unsigned() ^ 128);
                vector[4 * r..4 * r + 4].copy_from_slice(&biased);
            }
            place(&sketched.codes, r, codes);
            let (front, lower) = refined.split_at_mut(size_of::<RefinedFront>());
            *bytemuck::from_bytes_mut(front) = RefinedFront {
                sigma: sketched.sigma.to_le_bytes(),
                less: sketched.less.to_le_bytes(),
            };
            place_lower(&sketched.codes, lower);
            limits = limits.with(sketched.limits);
        }
        Ok(limits)
    }

    /// The sketch of a row; `None` if it is not finite.
    fn row(&self, bytes: &[u8]) -> Option<Row> {
        let mut floats = vec![0.0; self.shape.cols];
        dequantize(self.isa, self.dtype, bytes, &mut floats).ok()?;
        let own_terms = terms(self.dtype, bytes);
        // Far from overflow, so that no float of the sketch does; the sum is NaN if a number is.
        if !(own_terms < 1e30 && floats.iter().map(|x| x.abs()).sum::<f32>() < f32::INFINITY) {
            return None;
        }
        let products = self.products(&floats);
        let mut rest: Vec<f64> = floats.iter().map(|x| f64::from(*x)).collect();
        for (x, directions) in rest.iter_mut().zip(&self.directions) {
            *x -= dot(&products, directions);
        }
        rest.resize(self.spread.padded_len(), 0.0);
        let mut scratch = vec![0.0; rest.len()];
        self.spread.apply(&mut rest, &mut scratch);
        let sigma = bf16::from_f64((dot(&rest, &rest) / rest.len() as f64).sqrt() * STEP);
        let step = f64::from(sigma.to_f32());
        let codes: Vec<u8> = rest.iter().map(|x| nearest(*x, step)).collect();
        let parts = [0, 1].map(|part| self.error(&rest, &codes, step, part));
        let (kappa, c, miss) = self.quantise_products(&products);
        let scale = f64::from(kappa.to_f32());
        let stored = (c.iter().zip(&self.scales))
            .map(|(c, d)| square(scale * d * f64::from(*c)))
            .sum::<f64>()
            .sqrt();
        let norm = dot(&products, &products).sqrt();
        let largest = |of: fn(&Part) -> f64| parts.iter().map(of).fold(0.0, f64::max);
        let level = largest(|part| part.levels);
        let magnitudes = [own_terms, step * level, stored, norm, largest(|part| part.error)];
        let magnitude = UP * magnitudes.into_iter().fold(0.0, f64::max);
        let [fine, coarse] = parts.map(|part| UP * part.rho.max(magnitude * SMALLEST));
        let rho = round_up(coarse);
        Some(Row {
            sigma,
            kappa,
            rho,
            less: round_down(rho.to_f64() - fine),
            products: c,
            codes,
            limits: Limits { products: UP * miss, levels: UP * level, magnitude },
        })
    }

    /// What a row's codes, or with `part` 1 their upper bits, leave out of it.
    fn error(&self, rest: &[f64], codes: &[u8], step: f64, part: usize) -> Part {
        let level = |code: &u8| levels(*code)[part];
        let left: Vec<f64> = rest.iter().zip(codes).map(|(x, c)| x - step * level(c)).collect();
        let error = dot(&left, &left);
        // Without its part along the directions, to which what meets it is orthogonal.
        let along: f64 = self.rotated.iter().map(|v| square(dot(&left, v))).sum();
        Part {
            levels: codes.iter().map(|code| square(level(code))).sum::<f64>().sqrt(),
            error: error.sqrt(),
            rho: ((error - along).max(0.0) + DEFECT_MAX * error).sqrt(),
        }
    }

    /// κ and c for the products with the directions, and ‖products / scales / κ − c‖.
    #[expect(clippy::cast_possible_truncation, reason = "integers within ±127")]
    fn quantise_products(&self, products: &[f64]) -> (bf16, [i8; DIRECTIONS], f64) {
        let mut scaled = [0.0; DIRECTIONS];
        for (i, x) in scaled.iter_mut().enumerate() {
            *x = products[i] / self.scales[i];
        }
        let kappa = round_up(scaled.iter().fold(0.0, |most: f64, x| most.max(x.abs())) / 127.0);
        let mut c = [0; DIRECTIONS];
        let mut miss = 0.0;
        if kappa > bf16::ZERO {
            for (c, x) in c.iter_mut().zip(scaled) {
                let x = x / f64::from(kappa.to_f32());
                let nearest = x.round_ties_even().clamp(-127.0, 127.0);
                *c = nearest as i8;
                miss += square(x - nearest);
            }
        }
        (kappa, c, miss.sqrt())
    }
}

/// Norms of a row's levels, and of what they leave out of it, with and without what lies along
/// the directions.
struct Part {
    levels: f64,
    error: f64,
    rho: f64,
}

/// A row's sketch.
struct Row {
    sigma: bf16,
    kappa: bf16,
    rho: bf16,
    less: bf16,
    products: [i8; DIRECTIONS],
    codes: Vec<u8>,
    limits: Limits,
}

/// Puts the upper bits of the codes of row `r` where they belong.
fn place(codes: &[u8], r: usize, out: &mut [Codes]) {
    for (codes, out) in codes.chunks_exact(32).zip(out) {
        for (e, code) in codes.iter().enumerate() {
            let (k, byte) = (e / 4, 4 * r + e % 4);
            out.middle[k / 4][byte] |= ((code >> 2) & 3) << (2 * (k % 4));
            out.top[byte] |= (code >> 4) << k;
        }
    }
}

/// Puts the lower bits of a row's codes where they belong.
fn place_lower(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(64).zip(out.chunks_exact_mut(16)) {
        for (e, code) in codes.iter().enumerate() {
            out[e % 16] |= (code & 3) << (2 * (e / 16));
        }
    }
}

/// The code of the level nearest to x / step.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 31")]
fn nearest(x: f64, step: f64) -> u8 {
    if step > 0.0 {
        ((x / step + 31.0) / 2.0).round_ties_even().clamp(0.0, f64::from(CODES - 1)) as u8
    } else {
        CODES / 2
    }
}

/// The smallest bfloat16 that is not below `x`, which is not negative.
fn round_up(x: f64) -> bf16 {
    let near = bf16::from_f64(x);
    if near.to_f64() < x { bf16::from_bits(near.to_bits() + 1) } else { near }
}

/// The largest bfloat16 that is not above `x`; 0 for what is negative.
fn round_down(x: f64) -> bf16 {
    let near = bf16::from_f64(x.max(0.0));
    if near.to_f64() > x && near > bf16::ZERO { bf16::from_bits(near.to_bits() - 1) } else { near }
}

fn square(x: f64) -> f64 {
    x * x
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (x, rest) = x.as_chunks::<8>();
    let (y, others) = y.as_chunks::<8>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    let tail: f64 = rest.iter().zip(others).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_one_way_and_stays_near() {
        let mut x = 1e-45;
        while x < 1e38 {
            let up = round_up(x).to_f64();
            assert!(up >= x, "{x}");
            assert!(up <= x * 1.01 || x < 1e-37, "{x} {up}");
            let down = round_down(x).to_f64();
            assert!(down <= x && (down >= x / 1.01 || x < 1e-37), "{x} {down}");
            x *= 1.0173;
        }
        assert_eq!((round_up(0.0), round_down(-1.0)), (bf16::ZERO, bf16::ZERO));
    }

    #[test]
    fn the_nearest_level_is_the_nearest() {
        for i in -4000..4000 {
            let x = f64::from(i) / 100.0 + 1e-3;
            let off = |code: u8| (x - levels(code)[0]).abs();
            let best = (0..CODES).map(off).fold(f64::MAX, f64::min);
            assert!(off(nearest(x, 1.0)) <= best + 1e-12, "{x}");
        }
    }
}
