//! The pointer table of weights that have their places.

use super::{Place, Resident, Rows, Run};
use crate::pointers::{BlockFlags, Placed, PlacedRun, PointerTable};
use crate::table::BlockTable;

/// Rows that a run is cut at multiples of.
const GROUP: usize = 16;

impl Resident {
    /// The blocks of all runs, and behind them those of the embedding, for a last-level cache of
    /// so many bytes, where that is known. Addresses hold for as long as `self` and `table` live.
    pub fn pointers(&self, table: &BlockTable, llc_bytes: Option<u64>) -> PointerTable {
        let mut runs: Vec<PlacedRun> =
            (0..self.runs.factors.len()).map(|index| self.placed(table, index)).collect();
        runs.push(self.placed_rows(table));
        share(&mut runs);
        PointerTable::new(&runs, llc_bytes)
    }

    fn placed(&self, table: &BlockTable, index: usize) -> PlacedRun {
        let run = &self.runs.factors[index];
        let Some(tiered) = &self.tiered else { return mapped(table, run, run.granule) };
        let piece = |part: &super::Part| match &part.place {
            Place::Hot(range) => Placed {
                of_run: part.of_run.clone(),
                address: tiered.hot.as_ref().map_or(0, |hot| hot[range.clone()].as_ptr().addr()),
                flags: BlockFlags::HOT,
            },
            Place::Stream { .. } => streamed(part.of_run.len(), part.of_run.start),
        };
        let pieces = tiered.parts[tiered.runs[index].clone()].iter().map(piece).collect();
        PlacedRun { granule: run.granule, pieces }
    }

    fn placed_rows(&self, table: &BlockTable) -> PlacedRun {
        let run = &self.runs.rows;
        let granule = GROUP * run.granule;
        match self.tiered.as_ref().map(|tiered| &tiered.rows) {
            None => mapped(table, run, granule),
            Some(Rows::Hot(pages, start)) => {
                let address = pages[*start..].as_ptr().addr();
                let piece = Placed { of_run: 0..run.range.len(), address, flags: BlockFlags::HOT };
                PlacedRun { granule, pieces: vec![piece] }
            }
            Some(Rows::File { .. }) => {
                PlacedRun { granule, pieces: vec![streamed(run.range.len(), 0)] }
            }
        }
    }
}

fn mapped(table: &BlockTable, run: &Run, granule: usize) -> PlacedRun {
    let bytes = &table.resolve(run.block)[run.range.clone()];
    let (of_run, address) = (0..bytes.len(), bytes.as_ptr().addr());
    let moved = table.block(run.block).is_moved();
    let aliased = if moved { BlockFlags::ALIASED } else { BlockFlags::default() };
    let flags = BlockFlags::WARM.with(aliased);
    PlacedRun { granule, pieces: vec![Placed { of_run, address, flags }] }
}

fn streamed(len: usize, start: usize) -> Placed {
    Placed { of_run: start..start + len, address: 0, flags: BlockFlags::STREAM }
}

/// Marks pieces that are the same bytes of memory: the first of them is canonical. The embedding
/// comes last in the table and first in the file, and so is canonical for a tied head.
fn share(runs: &mut [PlacedRun]) {
    let count = runs.len();
    // The embedding, then the matrices in the order of a pass.
    let order: Vec<usize> = (count.saturating_sub(1)..count).chain(0..count.max(1) - 1).collect();
    let mut seen = std::collections::HashMap::new();
    for run in order {
        for piece in 0..runs[run].pieces.len() {
            let Placed { address, of_run, .. } = &runs[run].pieces[piece];
            if *address == 0 {
                continue;
            }
            match seen.entry((*address, of_run.len())) {
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert((run, piece));
                }
                std::collections::hash_map::Entry::Occupied(first) => {
                    let (of, first) = *first.get();
                    let canonical = &mut runs[of].pieces[first].flags;
                    *canonical = canonical.with(BlockFlags::CANONICAL);
                    let alias = &mut runs[run].pieces[piece].flags;
                    *alias = alias.with(BlockFlags::ALIASED);
                }
            }
        }
    }
}
