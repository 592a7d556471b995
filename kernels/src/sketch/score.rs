//! Upper bounds of all products from their sketches: 16 rows at a time, a vector lane owning one.

use super::layout::{Codes, Front, SketchShape, parts};
use super::query::Query;
use crate::isa::{Isa, Op};
use crate::panel::PANEL_ROWS;
use crate::pool::{Ahead, Pool};
use crate::shared::Shared;
use crate::simd::{F32s, LANES, Simd, prefetch_second};
use std::ops::Range;

/// What underflows in products and scores is less than this.
const UNDERFLOW: f32 = 1e-36;
/// Sketch bytes of the least piece of work.
const PIECE_BYTES: usize = 96 << 10;
/// How far ahead of their use codes are asked for, in bytes, at least. On Zen 5 two threads read
/// sketches in memory at 15 GB/s without, 23 with 1 KB, 27 with 2 KB, and 34 with 4 or 8 KB.
const AHEAD: usize = 4096;
/// What stands out of the rows of a panel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peak {
    /// The largest of their bounds.
    pub upper: f32,
    /// The largest of their scores, which is as near to a product as the sketch tells.
    pub score: f32,
    /// The row that has it.
    pub row: u32,
}

/// Fills `upper`, \[queries\]\[rows\], with numbers that no product is above, and `peaks`,
/// \[queries\]\[panels\], with what stands out of each 16 rows. `panels` are the sketch's bytes
/// behind its directions and scales. The bits are the same on every instruction set.
///
/// # Panics
/// If a length does not fit.
pub fn upper_bounds(
    isa: Isa,
    pool: &Pool,
    shape: SketchShape,
    panels: &[u8],
    queries: &[Query],
    upper: &mut [f32],
    peaks: &mut [Peak],
) {
    let (rows, count, bytes) = (shape.rows, shape.panels(), shape.panel_bytes());
    assert_eq!(panels.len(), count * bytes);
    assert_eq!((upper.len(), peaks.len()), (queries.len() * rows, queries.len() * count));
    assert!(queries.iter().all(|query| query.quads.len() == 8 * shape.groups()));
    let least = (PIECE_BYTES / bytes).max(1);
    let (upper, peaks) = (Shared::new(upper), Shared::new(peaks));
    let ahead = isa.ahead().max(AHEAD);
    let task = |run: Range<usize>| {
        let part = &panels[run.start * bytes..run.end * bytes];
        isa.run(Piece {
            shape,
            part,
            first: run.start,
            ahead,
            queries,
            upper: &upper,
            peaks: &peaks,
        });
    };
    pool.share(count, least, &task, &|_| Ahead::NONE);
}

/// Some panels of a sketch, numbered from `first`.
struct Piece<'a, 'b> {
    shape: SketchShape,
    part: &'b [u8],
    first: usize,
    /// How far ahead of their use codes are asked for.
    ahead: usize,
    queries: &'b [Query],
    upper: &'b Shared<'a, f32>,
    peaks: &'b Shared<'a, Peak>,
}

impl Op for Piece<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (i, panel) in self.part.chunks_exact(self.shape.panel_bytes()).enumerate() {
            let panel = Panel { index: self.first + i, parts: parts(panel) };
            let mut first = 0;
            while first < self.queries.len() {
                first += match self.queries.len() - first {
                    4.. => self.columns::<S, 4>(simd, &panel, first),
                    2..=3 => self.columns::<S, 2>(simd, &panel, first),
                    _ => self.columns::<S, 1>(simd, &panel, first),
                };
            }
        }
    }
}

/// A panel of a sketch.
struct Panel<'a> {
    index: usize,
    parts: (&'a Front, &'a [Codes]),
}

impl Piece<'_, '_> {
    /// The panel's bounds for queries `first..first + C`; returns `C`.
    #[inline(always)]
    fn columns<S: Simd, const C: usize>(&self, simd: S, panel: &Panel<'_>, first: usize) -> usize {
        let queries: &[Query; C] = self.queries[first..].first_chunk().expect("so many queries");
        let ahead = if first == 0 { self.ahead } else { 0 };
        let sums = level_sums(simd, panel.parts.1, queries, ahead);
        let row = panel.index * PANEL_ROWS;
        let rows = PANEL_ROWS.min(self.shape.rows - row);
        let (mut scores, mut bounds): (F32s, F32s) = ([0.0; LANES], [0.0; LANES]);
        for (c, (query, sum)) in queries.iter().zip(sums).enumerate() {
            let [score, upper] = bound(simd, panel.parts.0, query, sum);
            simd.store(score, &mut scores);
            simd.store(upper, &mut bounds);
            // Lanes behind the last row stand for none.
            scores[rows..].fill(f32::NEG_INFINITY);
            bounds[rows..].fill(f32::NEG_INFINITY);
            let peak = peak(&scores, &bounds, row);
            // SAFETY: a panel is part of one piece, which is given to one thread.
            unsafe {
                let upper = self.upper.range((first + c) * self.shape.rows + row, rows);
                upper.copy_from_slice(&bounds[..rows]);
                self.peaks.range((first + c) * self.shape.panels() + panel.index, 1)[0] = peak;
            }
        }
        C
    }
}

/// The peak of a panel whose rows begin with `row`.
#[inline(always)]
fn peak(scores: &F32s, bounds: &F32s, row: usize) -> Peak {
    let (score, upper) = (largest(scores), largest(bounds));
    let mut lanes = 0_u32;
    for (i, x) in scores.iter().enumerate() {
        lanes |= u32::from(*x == score) << i;
    }
    let lane = lanes.trailing_zeros() % PANEL_ROWS as u32;
    Peak { upper, score, row: row as u32 + lane }
}

/// The largest lane, by halves.
#[inline(always)]
fn largest(lanes: &F32s) -> f32 {
    let mut x = *lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = if x[i + half] > x[i] { x[i + half] } else { x[i] };
        }
    }
    x[0]
}

/// Σ u·q of each row with each query, u being the upper bits of its codes.
#[inline(always)]
fn level_sums<S: Simd, const C: usize>(
    simd: S,
    codes: &[Codes],
    queries: &[Query; C],
    ahead: usize,
) -> [S::I; C] {
    let mut sums = [simd.start(0); C];
    // One query's sums would wait for each other, so that every other one has its own.
    let mut others = simd.start(0);
    let mut totals = [simd.splat_int(0); C];
    for (g, codes) in codes.iter().enumerate() {
        if ahead > 0 {
            prefetch_second(codes, ahead);
        }
        let middle = [simd.load_bytes(&codes.middle[0]), simd.load_bytes(&codes.middle[1])];
        let top = simd.load_bytes(&codes.top);
        let mut quads = [&[0; 8]; C];
        for c in 0..C {
            quads[c] = queries[c].quads[8 * g..].first_chunk().expect("a word for each 4 elements");
        }
        for k in 0..8 {
            let two = simd.bits(middle[k / 4], 2 * (k as i32 % 4), 3);
            let upper = simd.or(two, simd.bits(top, k as i32 - 2, 4));
            if S::WIDE && C == 1 && k % 2 == 1 {
                others = simd.add_products(others, upper, quads[0][k]);
                continue;
            }
            for c in 0..C {
                sums[c] = simd.add_products(sums[c], upper, quads[c][k]);
            }
        }
        // Eight sums of pairs, each at most 2 · 7 · 127, fit 16 bits.
        if !S::WIDE {
            for c in 0..C {
                totals[c] = simd.add_int(totals[c], simd.sum(sums[c]));
                sums[c] = simd.start(0);
            }
        }
    }
    if S::WIDE {
        for c in 0..C {
            totals[c] = simd.sum(sums[c]);
        }
        if C == 1 {
            totals[0] = simd.add_int(totals[0], simd.sum(others));
        }
    }
    totals
}

/// Σ c·(D·a) of each row, in units of the query's step.
#[inline(always)]
fn product_sums<S: Simd>(simd: S, front: &Front, query: &Query) -> S::I {
    let mut totals = [simd.splat_int(0); 2];
    for (part, total) in totals.iter_mut().enumerate() {
        // Bytes with 128 added are too large by 128 times the sum of what they meet.
        let mut sums = simd.start(if S::WIDE { -128 * query.products_sums[part] } else { 0 });
        for (vector, quad) in front.products.iter().zip(query.products[part]) {
            sums = simd.add_biased(sums, simd.load_bytes(vector), quad);
            if !S::WIDE {
                *total = simd.add_int(*total, simd.sum(sums));
                sums = simd.start(0);
            }
        }
        if S::WIDE {
            *total = simd.sum(sums);
        }
    }
    simd.add_int(simd.shift_left(totals[0], 7), totals[1])
}

/// The score of each row, and that with the bound of its error added.
#[inline(always)]
fn bound<S: Simd>(simd: S, front: &Front, query: &Query, sum: S::I) -> [S::F; 2] {
    let load = |x: &[[u8; 2]; PANEL_ROWS]| simd.load_bf16(&x.map(u16::from_le_bytes));
    let (sigma, kappa, rho) = (load(&front.sigma), load(&front.kappa), load(&front.rho));
    let along = simd.int_to_float(product_sums(simd, front, query));
    let along = simd.mul(simd.mul(along, simd.splat(query.products_step)), kappa);
    let levels = simd.sub_int(simd.shift_left(sum, 1), simd.splat_int(7 * query.sum));
    let levels = simd.mul(sigma, simd.int_to_float(levels));
    // The levels of upper bits, 8u − 28, are four times what was summed: 2u − 7.
    let score = simd.fma(levels, simd.splat(4.0 * query.step), along);
    let [outside, products, rounded] = query.errors.map(|factor| simd.splat(factor));
    let error = simd.fma(sigma, rounded, simd.splat(UNDERFLOW));
    let error = simd.fma(rho, outside, simd.fma(kappa, products, error));
    [score, simd.add(score, error)]
}
