//! Tighter bounds for the rows that the first ones do not rule out: from the lower bits of their
//! codes, row by row.

use super::layout::{RefinedFront, SketchShape};
use super::query::Query;
use super::score::Peak;
use crate::isa::{Isa, Op};
use crate::panel::PANEL_ROWS;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{Simd, prefetch_address};
use half::bf16;

/// Panels of a piece of work.
const PIECE_PANELS: usize = 48;
/// Rows of a panel up to which they are asked for; more are read as any other memory.
const FEW: usize = 8;
/// How far ahead of their use the codes of many rows are asked for, in bytes: those of the few rows
/// in between that are not wanted come along.
const AHEAD: usize = 4096;

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
        ask(upper, part, bytes, peaks, bar);
        let panels = upper.chunks_mut(PANEL_ROWS).zip(part.chunks(PANEL_ROWS * bytes));
        for (((upper, part), peak), refined) in panels.zip(peaks).zip(refined) {
            *refined = 0;
            if peak.upper < bar {
                continue;
            }
            peak.upper = f32::NEG_INFINITY;
            let ahead = if count(upper, bar) > FEW { AHEAD } else { 0 };
            for (r, upper) in upper.iter_mut().enumerate() {
                if *upper >= bar {
                    *refined |= 1 << r;
                    let rows = Rows { rest: &part[r * bytes..], bytes, ahead };
                    *upper = tighter(simd, query, &rows, *upper);
                }
                peak.upper = if *upper > peak.upper { *upper } else { peak.upper };
            }
        }
    }
}

/// Asks for what refines the rows whose bounds are not below `bar`, where these are few: they are
/// known by now, and no processor could guess them.
#[inline(always)]
fn ask(upper: &[f32], part: &[u8], bytes: usize, peaks: &[Peak], bar: f32) {
    let panels = upper.chunks(PANEL_ROWS).zip(part.chunks(PANEL_ROWS * bytes));
    for ((upper, part), _) in panels.zip(peaks).filter(|(_, peak)| peak.upper >= bar) {
        if count(upper, bar) > FEW {
            continue;
        }
        for (_, row) in upper.iter().zip(part.chunks_exact(bytes)).filter(|(u, _)| **u >= bar) {
            row.chunks(64).for_each(|line| prefetch_address(line.as_ptr()));
            prefetch_address(&raw const row[bytes - 1]);
        }
    }
}

/// How many bounds are not below `bar`.
#[inline(always)]
fn count(upper: &[f32], bar: f32) -> usize {
    upper.iter().filter(|upper| **upper >= bar).count()
}

/// What refines a row, and what follows it.
struct Rows<'a> {
    rest: &'a [u8],
    /// Bytes of the row.
    bytes: usize,
    /// How far ahead of their use codes are asked for; 0 if not at all.
    ahead: usize,
}

/// A row's bound, from that which the upper bits of its codes give.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "the bound of a sketch counts this rounding")]
fn tighter<S: Simd>(simd: S, query: &Query, rows: &Rows<'_>, upper: f32) -> f32 {
    let (front, codes) = rows.rest.split_at(size_of::<RefinedFront>());
    let len = rows.bytes - front.len();
    let front: &RefinedFront = bytemuck::from_bytes(front);
    let mut sums = simd.splat_int(0);
    for (at, lines) in (0..len).step_by(64).zip(query.lines.as_chunks::<4>().0) {
        let mut padded = [0; 64];
        let codes = &codes[at..];
        if rows.ahead > 0 {
            prefetch_address(codes.as_ptr().wrapping_add(rows.ahead));
        }
        // What a row's end is loaded with of the next row meets zeros. Where that is not read as
        // well, its cache line is left alone.
        let whole = at + 64 <= len || rows.ahead > 0;
        let codes = codes.first_chunk().filter(|_| whole).unwrap_or_else(|| {
            let rest = codes.len().min(len - at);
            padded[..rest].copy_from_slice(&codes[..rest]);
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
