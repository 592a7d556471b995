//! The first half of a feed-forward part in one fork-join: gate, up, activation, and its result
//! quantised for the down projection.
//!
//! The plain algorithm: both products, then act(gate · x) ⊙ (up · x) row by row, then each row
//! quantised. The departures from it:
//! 1. A unit of work is 16 neurons, the rows of gate and up that belong to them.
//! 2. Whoever computes the last unit of a tile of neurons activates and quantises the tile.

use super::{Input, Job, Matrix, PANEL_ROWS, Product, ahead, least};
use crate::act::QuantRows;
use crate::isa::Isa;
use crate::layers::{activate_part, cut_part};
use crate::pool::Pool;
use aios_contract::ActivationFn;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The products of [`inner`] and what becomes of them.
pub struct Inner<'a> {
    /// act(gate), where there is one.
    pub gate: Option<Product<'a>>,
    /// Multiplied with act(gate), or activated itself. The result takes its place.
    pub up: Product<'a>,
    /// act.
    pub function: ActivationFn,
    /// For each neuron, below which magnitude its result is taken as zero, if there are such.
    pub least: Option<&'a [f32]>,
    /// The result, quantised.
    pub quants: &'a mut QuantRows,
    /// Memory to count the units of each tile that are done.
    pub done: &'a mut Vec<AtomicUsize>,
}

/// Neurons that are activated together: a tile of quantised rows.
const TILE: usize = 256;
/// Units of work in a tile.
const TILE_UNITS: usize = TILE / PANEL_ROWS;

/// act(gate · x) ⊙ (up · x), or act(up · x), and that quantised. `next` is as in
/// [`super::matmul`].
///
/// # Panics
/// As [`super::matmul`], and if the neurons are not whole blocks of the quantised result, or those
/// of `least` are others.
pub fn inner(
    isa: Isa,
    pool: &Pool,
    input: Input<'_>,
    inner: &mut Inner<'_>,
    next: &[Option<Matrix<'_>>],
) {
    let Inner { gate, up, function, least: smallest, quants, done } = inner;
    let smallest = *smallest;
    let (n, len) = (input.rows(), up.weights.rows);
    assert!(smallest.is_none_or(|least| least.len() == len));
    let bytes = gate.iter().chain([&*up]).map(|product| product.weights.bytes.len()).sum();
    assert!(gate.as_ref().is_none_or(|gate| gate.weights.rows == len));
    done.resize_with(done.len().max(len.div_ceil(TILE)), AtomicUsize::default);
    done.iter_mut().for_each(|done| *done.get_mut() = 0);
    let units = up.weights.units();
    let gate = gate.as_mut().map(|gate| Job::new(isa, input, gate, 0));
    let up = Job::new(isa, input, up, 0);
    let quants = quants.writer(isa, n, len);
    let finish = |start: usize| {
        let tile = TILE.min(len - start);
        for row in 0..n {
            let at = row * len + start;
            // SAFETY: all units of these neurons have been counted, which happens once, and
            // nobody but this thread touches their results from then on.
            let up = unsafe { up.out.range(at, tile) };
            // SAFETY: as above.
            let gate = gate.as_ref().map(|gate| unsafe { &*gate.out.range(at, tile) });
            activate_part(isa, *function, gate, up);
            if let Some(least) = smallest {
                cut_part(&least[start..start + tile], up);
            }
        }
        // SAFETY: as above.
        let part = |row: usize| unsafe { &*up.out.range(row * len + start, tile) };
        // SAFETY: as above; the neurons are one tile of the quantised rows.
        unsafe { quants.quantize(isa, start / TILE, &part) };
    };
    let task = |run: Range<usize>| {
        for job in gate.iter().chain([&up]) {
            job.run(run.clone());
        }
        for tile in run.start / TILE_UNITS..run.end.div_ceil(TILE_UNITS) {
            let (start, end) = (tile * TILE_UNITS, units.min((tile + 1) * TILE_UNITS));
            let own = run.end.min(end) - run.start.max(start);
            if done[tile].fetch_add(own, Ordering::AcqRel) + own == end - start {
                finish(tile * TILE);
            }
        }
    };
    pool.share(units, least(n, units, bytes), &task, &|thread| ahead(pool, thread, n, next));
}
