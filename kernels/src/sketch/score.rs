//! Upper bounds of all products from their sketches: 16 rows at a time, a vector lane owning one.

use super::layout::{Codes, DIRECTIONS, Front, LEVELS, SketchShape, parts};
use super::query::Query;
use crate::isa::{Isa, Op};
use crate::panel::PANEL_ROWS;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{F32s, LANES, Simd};

/// What underflows in products and scores is less than this.
const UNDERFLOW: f32 = 1e-36;
/// Sketch bytes of a piece of work.
const PIECE_BYTES: usize = 96 << 10;
/// Products of levels with 8-bit integers that a 16-bit lane can add: 4 · 2 · 31 · 127 < 2^15.
const ADDITIONS: usize = 4;

/// Fills `upper`, \[queries\]\[rows\], with numbers that no product is above, and `peaks`,
/// \[queries\]\[panels\], with the largest ones of each 16 rows. `panels` are the sketch's bytes
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
    peaks: &mut [f32],
) {
    let (rows, count, bytes) = (shape.rows, shape.panels(), shape.panel_bytes());
    assert_eq!(panels.len(), count * bytes);
    assert_eq!((upper.len(), peaks.len()), (queries.len() * rows, queries.len() * count));
    assert!(queries.iter().all(|query| query.quads.len() == 8 * shape.groups()));
    let run = (PIECE_BYTES / bytes).max(1);
    let (upper, peaks) = (Shared::new(upper), Shared::new(peaks));
    pool.for_each(count.div_ceil(run), &|piece| {
        let first = piece * run;
        let last = count.min(first + run);
        let part = &panels[first * bytes..last * bytes];
        isa.run(Piece { shape, part, first, queries, upper: &upper, peaks: &peaks });
    });
}

/// Some panels of a sketch, numbered from `first`.
struct Piece<'a, 'b> {
    shape: SketchShape,
    part: &'b [u8],
    first: usize,
    queries: &'b [Query],
    upper: &'b Shared<'a, f32>,
    peaks: &'b Shared<'a, f32>,
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
        let sums = level_sums(simd, panel.parts.1, queries);
        let row = panel.index * PANEL_ROWS;
        let rows = PANEL_ROWS.min(self.shape.rows - row);
        let mut lanes: F32s = [0.0; LANES];
        for (c, (query, sum)) in queries.iter().zip(sums).enumerate() {
            simd.store(bound(simd, panel.parts.0, query, sum), &mut lanes);
            let valid = &lanes[..rows];
            let peak =
                valid.iter().fold(f32::NEG_INFINITY, |most, x| if *x > most { *x } else { most });
            // SAFETY: a panel is part of one piece, which is given to one thread.
            unsafe {
                self.upper.range((first + c) * self.shape.rows + row, rows).copy_from_slice(valid);
                self.peaks.range((first + c) * self.shape.panels() + panel.index, 1)[0] = peak;
            }
        }
        C
    }
}

/// Σ v·q of each row with each query, v being the levels as unsigned bytes.
#[inline(always)]
fn level_sums<S: Simd, const C: usize>(
    simd: S,
    codes: &[Codes],
    queries: &[Query; C],
) -> [S::I; C] {
    let mut sums = [simd.start(0); C];
    let mut totals = [simd.splat_int(0); C];
    for (g, codes) in codes.iter().enumerate() {
        let low = [simd.load_bytes(&codes.low[0]), simd.load_bytes(&codes.low[1])];
        let high = simd.load_bytes(&codes.high);
        let mut quads = [&[0; 8]; C];
        for c in 0..C {
            quads[c] = queries[c].quads[8 * g..].first_chunk().expect("a word for each 4 elements");
        }
        for k in 0..8 {
            let two = simd.bits(low[k / 4], 2 * (k as i32 % 4), 3);
            let code = simd.or(two, simd.bits(high, k as i32 - 2, 4));
            let levels = simd.lookup(code, &LEVELS);
            for c in 0..C {
                sums[c] = simd.add_products(sums[c], levels, quads[c][k]);
            }
            if !S::WIDE && (k + 1) % ADDITIONS == 0 {
                for c in 0..C {
                    totals[c] = simd.add_int(totals[c], simd.sum(sums[c]));
                    sums[c] = simd.start(0);
                }
            }
        }
    }
    if S::WIDE {
        for c in 0..C {
            totals[c] = simd.sum(sums[c]);
        }
    }
    totals
}

/// The score of each row and the bound of its error, added.
#[inline(always)]
fn bound<S: Simd>(simd: S, front: &Front, query: &Query, sum: S::I) -> S::F {
    let load = |x: &[[u8; 2]; PANEL_ROWS]| simd.load_bf16(&x.map(u16::from_le_bytes));
    let (sigma, kappa, rho) = (load(&front.sigma), load(&front.kappa), load(&front.rho));
    let mut along = [simd.splat(0.0); 4];
    for j in 0..DIRECTIONS {
        let c = simd.load_i8(&front.products[j]);
        along[j % 4] = simd.fma(c, simd.splat(query.products[j]), along[j % 4]);
    }
    let along = simd.add(simd.add(along[0], along[1]), simd.add(along[2], along[3]));
    let levels = simd.sub_int(simd.shift_left(sum, 1), simd.splat_int(query.centre));
    let levels = simd.mul(sigma, simd.int_to_float(levels));
    let score = simd.fma(levels, simd.splat(query.step), simd.mul(kappa, along));
    let [outside, products, rounded] = query.errors.map(|factor| simd.splat(factor));
    let error = simd.fma(sigma, rounded, simd.splat(UNDERFLOW));
    let error = simd.fma(rho, outside, simd.fma(kappa, products, error));
    simd.add(score, error)
}
