//! Tighter bounds for the rows that the first ones do not rule out: from the lower bits of their
//! codes, row by row.

use super::layout::{RefinedFront, SketchShape};
use super::query::Query;
use super::score::Peak;
use crate::isa::{Isa, Op};
use crate::panel::PANEL_ROWS;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::Simd;
use half::bf16;

/// Panels of a piece of work.
const PIECE_PANELS: usize = 48;

/// The bounds of a position, and what stands out of each panel.
#[derive(Debug)]
pub struct Bounds<'a> {
    /// \[rows\]
    pub upper: &'a mut [f32],
    /// \[panels\]
    pub peaks: &'a mut [Peak],
    /// \[panels\]: bit r is set if row r of the panel was refined.
    pub refined: &'a mut [u16],
}

/// Replaces bounds that are not below `bar` by tighter ones, and peaks by theirs. `refinements` are
/// the sketch's bytes behind its panels. The bits are the same on every instruction set.
///
/// # Panics
/// If a length does not fit.
pub fn refine(
    isa: Isa,
    pool: &Pool,
    shape: SketchShape,
    refinements: &[u8],
    query: &Query,
    bar: f32,
    bounds: Bounds<'_>,
) {
    let Bounds { upper, peaks, refined } = bounds;
    let (rows, panels) = (shape.rows, shape.panels());
    assert_eq!(refinements.len(), rows * shape.refined_bytes());
    assert_eq!((upper.len(), peaks.len(), refined.len()), (rows, panels, panels));
    assert_eq!(query.quads.len(), 8 * shape.groups());
    let (upper, peaks) = (Shared::new(upper), Shared::new(peaks));
    let refined = Shared::new(refined);
    pool.for_each(panels.div_ceil(PIECE_PANELS), &|piece| {
        let first = piece * PIECE_PANELS;
        let count = PIECE_PANELS.min(panels - first);
        let row = first * PANEL_ROWS;
        let own = (count * PANEL_ROWS).min(rows - row);
        // SAFETY: each piece has its own ranges, and a piece is given to one thread.
        let bounds = unsafe {
            Bounds {
                upper: upper.range(row, own),
                peaks: peaks.range(first, count),
                refined: refined.range(first, count),
            }
        };
        let part = &refinements[row * shape.refined_bytes()..][..own * shape.refined_bytes()];
        isa.run(Piece { shape, part, query, bar, bounds });
    });
}

/// Some panels' rows.
struct Piece<'a> {
    shape: SketchShape,
    part: &'a [u8],
    query: &'a Query,
    bar: f32,
    bounds: Bounds<'a>,
}

impl Op for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, part, query, bar, bounds: Bounds { upper, peaks, refined } } = self;
        let bytes = shape.refined_bytes();
        let panels = upper.chunks_mut(PANEL_ROWS).zip(part.chunks(PANEL_ROWS * bytes));
        for (((upper, part), peak), refined) in panels.zip(peaks).zip(refined) {
            *refined = 0;
            if peak.upper < bar {
                continue;
            }
            peak.upper = f32::NEG_INFINITY;
            for (r, (upper, row)) in upper.iter_mut().zip(part.chunks_exact(bytes)).enumerate() {
                if *upper >= bar {
                    *refined |= 1 << r;
                    *upper = tighter(simd, query, row, *upper);
                }
                peak.upper = if *upper > peak.upper { *upper } else { peak.upper };
            }
        }
    }
}

/// A row's bound, from that which the upper bits of its codes give.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "the bound of a sketch counts this rounding")]
fn tighter<S: Simd>(simd: S, query: &Query, row: &[u8], upper: f32) -> f32 {
    let (front, codes) = row.split_at(size_of::<RefinedFront>());
    let front: &RefinedFront = bytemuck::from_bytes(front);
    let mut sums = simd.splat_int(0);
    for (codes, lines) in codes.chunks(64).zip(query.lines.as_chunks::<4>().0) {
        let mut padded = [0; 64];
        let codes = codes.first_chunk().unwrap_or_else(|| {
            padded[..codes.len()].copy_from_slice(codes);
            &padded
        });
        let codes = simd.load_bytes(codes);
        for (j, line) in lines.iter().enumerate() {
            sums = simd.add_dots(sums, simd.bits(codes, 2 * j as i32, 3), line);
        }
    }
    // A code is 4u + v, so that its level exceeds that of u by 2v − 3.
    let levels = (2 * simd.reduce_int(sums) - 3 * query.sum) as f32;
    let (sigma, less) = (bf16::from_le_bytes(front.sigma), bf16::from_le_bytes(front.less));
    let upper = (sigma.to_f32() * levels).mul_add(query.step, upper);
    (-less.to_f32()).mul_add(query.errors[0], upper)
}
