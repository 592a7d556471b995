//! What the activations of a position are to a sketch: integers to multiply with, and the factors
//! of the bound (SPEC D5).

use super::layout::DIRECTIONS;
use super::terms::roundings;
use super::{SMALLEST, Sketch};
use crate::act::{QUADS, b32, b256};
use crate::matmul::{Input, scale_block};
use crate::{Isa, ScaleBlock, isa::Op, simd::Simd};
use aios_contract::DType;

/// A factor larger than what f32 rounds off in a bound, and in its factors.
const UP: f64 = 1.0 + 1e-5;
/// Roundings of f32 in a score and its bound, and of f64 before them, generously.
const SCORE_ROUNDINGS: f64 = 64.0;
/// Half a unit in the last place of f32, relative, and a little for what is of second order.
const UNIT: f64 = 1.01 / (1 << 24) as f64;
/// The norm of a row's stored products is at most this: 127 · √32, rounded up.
const STORED_MOST: f64 = 719.0;
/// No float overflows where products of norms stay below this.
const LARGE: f64 = 1e35;

/// The activations of a position, exactly as a canonical product multiplies them.
#[derive(Clone, Debug, Default)]
pub struct Activations(Vec<f64>);

impl Activations {
    /// What meets weights of `dtype`.
    ///
    /// # Panics
    /// If the input is not one row, or lacks the quantised row that the dtype asks for.
    pub fn fill(&mut self, input: &Input<'_>, dtype: DType) {
        self.0.clear();
        let missing = "quantised by the caller";
        match scale_block(dtype).filter(|_| !input.exact) {
            None => {
                assert_eq!(input.rows(), 1);
                self.0.extend(input.x.iter().map(|x| f64::from(*x)));
            }
            Some(ScaleBlock::B32) => {
                let (tiles, _) = input.q32.expect(missing).single().as_chunks::<{ b32::WORDS }>();
                for tile in tiles {
                    let scale = |group: usize| tile[b32::SCALES + group];
                    self.restore(tile, |group| f64::from(float(scale(group))));
                }
            }
            Some(ScaleBlock::B256) => {
                let (tiles, _) = input.q256.expect(missing).single().as_chunks::<{ b256::WORDS }>();
                for tile in tiles {
                    let factor = |group: usize| f64::from(1 << tile[b256::SHIFTS + group]);
                    let scale = f64::from(float(tile[b256::SCALE]));
                    self.restore(tile, |group| scale * factor(group));
                }
            }
        }
        self.0.truncate(input.len);
    }

    /// scale · quant of each element of a tile, which f64 holds exactly; `scale` is asked for each
    /// 32 of them.
    fn restore(&mut self, tile: &[i32], scale: impl Fn(usize) -> f64) {
        let quants: &[i8] = bytemuck::cast_slice(&tile[..QUADS]);
        for (group, quants) in quants.chunks_exact(32).enumerate() {
            let scale = scale(group);
            self.0.extend(quants.iter().map(|q| scale * f64::from(*q)));
        }
    }
}

/// A float whose bits are a word.
fn float(word: i32) -> f32 {
    f32::from_bits(word.cast_unsigned())
}

/// A position's question to a sketch, in buffers that are reused.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// ẑ in units of `step`, four to a word.
    pub(super) quads: Vec<i32>,
    /// The same in the order of a row's refinement: vector 4g + j has at 16c + i what meets element
    /// 256g + 64c + 16j + i.
    pub(super) lines: Vec<[i8; 64]>,
    /// Their sum.
    pub(super) sum: i32,
    pub(super) step: f32,
    /// D·a in units of `products_step`: 128 · the first integers + the second ones, four to a word,
    /// and the sums of each.
    pub(super) products: [[i32; DIRECTIONS / 4]; 2],
    pub(super) products_sums: [i32; 2],
    pub(super) products_step: f32,
    /// What ρ′, κ and σ are multiplied with in the bound.
    pub(super) errors: [f32; 3],
    scratch: [Vec<f64>; 2],
}

impl Query {
    /// Makes the question of `x`, activations that meet weights of `dtype`. Returns false where no
    /// bound can be given: if they are not finite, or so large that a product might overflow.
    ///
    /// # Panics
    /// If there are not as many activations as columns.
    pub fn fill(&mut self, isa: Isa, sketch: &Sketch, dtype: DType, x: &Activations) -> bool {
        assert_eq!(x.0.len(), sketch.shape.cols);
        isa.run(Fill { sketch, dtype, x: &x.0, query: self })
    }
}

impl Query {
    /// Takes over D·a in integers of 15 bits, and returns the norm of what is lost.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "integers within ±16256")]
    fn split(&mut self, scaled: &[f64; DIRECTIONS]) -> f64 {
        const MOST: f64 = 127.0 * 128.0;
        let largest =
            scaled.iter().fold(0.0, |most: f64, x| if x.abs() > most { x.abs() } else { most });
        self.products_step = (largest / MOST) as f32;
        let step = f64::from(self.products_step);
        let mut parts = [[0_i8; DIRECTIONS]; 2];
        let mut lost = 0.0;
        for (j, x) in scaled.iter().enumerate() {
            let nearest =
                if step > 0.0 { (x / step).round_ties_even().clamp(-MOST, MOST) } else { 0.0 };
            lost += (x - nearest * step) * (x - nearest * step);
            let first = (nearest / 128.0).round_ties_even();
            parts[0][j] = first as i8;
            parts[1][j] = (nearest - 128.0 * first) as i8;
        }
        self.products = parts.map(bytemuck::cast);
        self.products_sums = parts.map(|part| part.iter().map(|x| i32::from(*x)).sum());
        lost.sqrt()
    }
}

struct Fill<'a> {
    sketch: &'a Sketch,
    dtype: DType,
    x: &'a [f64],
    query: &'a mut Query,
}

impl Op for Fill<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> bool {
        let Self { sketch, dtype, x, query } = self;
        let limits = &sketch.limits;
        let norm = norm(x);
        // NaN is no number that a bound could be given for.
        let bounded = norm * (1.0 + limits.magnitude) < LARGE;
        if !bounded {
            return false;
        }
        let [rest, scratch] = &mut query.scratch;
        let along = project(&sketch.directions, x, rest);
        let outside = self::norm(rest);
        rest.resize(sketch.spread.padded_len(), 0.0);
        scratch.resize(rest.len(), 0.0);
        sketch.spread.apply(rest, scratch);
        let mut scaled = along;
        for (product, scale) in scaled.iter_mut().zip(sketch.scales) {
            *product *= f64::from(scale);
        }
        let (step, sum, off) = round(rest, &mut query.quads);
        let missed = query.split(&scaled);
        (query.step, query.sum) = (step, sum);
        turn(&query.quads, &mut query.lines);
        let slack = UNIT * (roundings(dtype, sketch.shape.cols) + 3.0 + SCORE_ROUNDINGS)
            + 2.0 * sketch.defect;
        query.errors = [
            UP * (outside + slack / SMALLEST * norm),
            UP * (limits.products * self::norm(&scaled) + STORED_MOST * missed),
            UP * limits.levels * off,
        ]
        .map(|factor| factor as f32);
        query.errors.iter().chain([&query.products_step]).all(|factor| factor.is_finite())
    }
}

/// Vᵀx; `rest` becomes x − V·Vᵀx.
#[inline(always)]
fn project(directions: &[[f32; DIRECTIONS]], x: &[f64], rest: &mut Vec<f64>) -> [f64; DIRECTIONS] {
    let mut sums = [0.0; DIRECTIONS];
    for (x, row) in x.iter().zip(directions) {
        for (sum, v) in sums.iter_mut().zip(row) {
            *sum += x * f64::from(*v);
        }
    }
    rest.clear();
    rest.extend(x.iter().zip(directions).map(|(x, row)| {
        let mut parts = [0.0; 8];
        for (row, sums) in row.as_chunks::<8>().0.iter().zip(sums.as_chunks::<8>().0) {
            for i in 0..8 {
                parts[i] += f64::from(row[i]) * sums[i];
            }
        }
        x - parts.iter().sum::<f64>()
    }));
    sums
}

#[inline(always)]
fn norm(x: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (x, tail) = x.as_chunks::<8>();
    for x in x {
        for i in 0..8 {
            sums[i] += x[i] * x[i];
        }
    }
    (sums.iter().sum::<f64>() + tail.iter().map(|x| x * x).sum::<f64>()).sqrt()
}

/// Puts integers in the order in which refinements meet them, zeros behind the last.
#[inline(always)]
fn turn(quads: &[i32], lines: &mut Vec<[i8; 64]>) {
    let q: &[i8] = bytemuck::cast_slice(quads);
    lines.clear();
    lines.resize(4 * q.len().div_ceil(256), [0; 64]);
    for (chunk, q) in q.chunks_exact(64).enumerate() {
        for (j, q) in q.chunks_exact(16).enumerate() {
            let at = 16 * (chunk % 4);
            lines[4 * (chunk / 4) + j][at..at + 16].copy_from_slice(q);
        }
    }
}

/// Rounds z to integers within ±127 times a step. Returns the step, the integers' sum and the norm
/// of what is lost.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "integers within ±127")]
fn round(z: &[f64], quads: &mut Vec<i32>) -> (f32, i32, f64) {
    let largest = z.iter().fold(0.0, |most: f64, z| if z.abs() > most { z.abs() } else { most });
    let step = (largest / 127.0) as f32;
    let wide = f64::from(step);
    let inverse = if step > 0.0 { 1.0 / wide } else { 0.0 };
    let (mut sum, mut lost) = (0, 0.0);
    quads.clear();
    for z in z.as_chunks::<4>().0 {
        let mut quad = [0_i8; 4];
        for (q, z) in quad.iter_mut().zip(z) {
            let nearest = (z * inverse).round_ties_even().clamp(-127.0, 127.0);
            let off = z - nearest * wide;
            lost += off * off;
            *q = nearest as i8;
            sum += i32::from(*q);
        }
        quads.push(bytemuck::cast(quad));
    }
    (step, sum, lost.sqrt())
}
