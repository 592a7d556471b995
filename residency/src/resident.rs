//! The weights of a session where they live: mapped, or in tiers within a budget.
//!
//! A pass asks for runs by number, in any order. One that lies whole in memory is a slice, as
//! with the block table alone; another one is handed out in parts, each of which is a slice in hot
//! memory or in a buffer that the disk has filled.

mod build;
mod pointers;

use crate::disk::{DiskError, DiskFile};
use crate::ladder::Ladder;
use crate::pages::Pages;
use crate::ring::Ring;
use crate::table::{BlockId, BlockTable};
use crate::telemetry::{Reserved, ResidencyStats};
use crate::tiers::{Span, Tier, least_buffer};
use build::{Files, System, span};
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, MutexGuard};

/// A matrix, or a run of rows of one, that a pass reads as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The block that holds it.
    pub block: BlockId,
    /// Its bytes in the block.
    pub range: Range<usize>,
    /// It may be cut at multiples of this: the bytes of 16 rows.
    pub granule: usize,
}

/// What a pass reads.
#[derive(Clone, Debug)]
pub struct Runs {
    /// The matrices of products, in the order of a pass.
    pub factors: Vec<Run>,
    /// From this number on they are read when logits are wanted: the head.
    pub tail: usize,
    /// The embedding; a pass reads rows of it, each of `granule` bytes.
    pub rows: Run,
}

/// Why weights have no place.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError {
    /// The budget is less than the least that works.
    #[error("weights need at least {least} bytes of memory")]
    Least {
        /// That number.
        least: usize,
    },
    /// The disk fails.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The system does not even give the buffers.
    #[error(
        "the system does not give {bytes} bytes for buffers: {source}; end other programs, or \
         raise the limit of memory (ulimit -v)"
    )]
    Buffers {
        /// What was asked for.
        bytes: usize,
        /// The system's error.
        source: io::Error,
    },
}

/// Where a part of a run lives.
#[derive(Clone, Debug)]
enum Place {
    /// At this range of hot memory.
    Hot(Range<usize>),
    /// In a piece of the ring, which is done with after the last part in it.
    Stream { piece: usize, range: Range<usize>, last: bool },
}

#[derive(Clone, Debug)]
struct Part {
    of_run: Range<usize>,
    place: Place,
}

/// What resolving a run adds to the counts.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    blocks: u64,
    bytes: u64,
    hot: u64,
    stream: u64,
}

/// Weights in tiers.
#[derive(Debug)]
struct Tiered {
    hot: Option<Pages>,
    ring: Option<Ring>,
    parts: Vec<Part>,
    /// For each run its parts.
    runs: Vec<Range<usize>>,
    rows: Rows,
}

/// Where rows of the embedding come from.
#[derive(Debug)]
enum Rows {
    /// Hot memory, whole.
    Hot(Pages, usize),
    /// Its file, a row at a time.
    File { file: DiskFile, start: u64, row: Vec<u8>, reads: u64 },
}

/// The weights of a session.
#[derive(Debug)]
pub struct Resident {
    runs: Runs,
    sizes: Vec<Sizes>,
    tiered: Option<Tiered>,
    stats: ResidencyStats,
}

impl Resident {
    /// All mapped: the system decides what stays in memory.
    pub fn mapped(runs: Runs) -> Self {
        let size =
            |run: &Run| Sizes { blocks: 1, bytes: run.range.len() as u64, hot: 0, stream: 0 };
        let sizes: Vec<Sizes> = runs.factors.iter().map(size).collect();
        let warm_bytes = sizes.iter().map(|size| size.bytes).sum::<u64>();
        let stats = ResidencyStats { warm_bytes, ..ResidencyStats::default() };
        Self { runs, sizes, tiered: None, stats }
    }

    /// The same, after the steps of `ladder`.
    #[must_use]
    pub fn after(mut self, ladder: &Ladder) -> Self {
        self.stats.ladder = ladder.steps().to_vec();
        self
    }

    /// In tiers that take at most `budget` bytes of memory, buffers included. Of `reserved`
    /// the buffers are filled in here.
    ///
    /// # Errors
    /// [`ResidentError`]. What can be done without is a step of `ladder` instead.
    pub fn within(
        table: &BlockTable,
        runs: Runs,
        budget: usize,
        reserved: Reserved,
        ladder: &mut Ladder,
    ) -> Result<Self, ResidentError> {
        Self::on(System::REAL, table, runs, (budget, reserved), ladder)
    }

    /// As [`Self::within`].
    fn on(
        system: System,
        table: &BlockTable,
        runs: Runs,
        (budget, reserved): (usize, Reserved),
        ladder: &mut Ladder,
    ) -> Result<Self, ResidentError> {
        let spans: Vec<Span> = runs.factors.iter().map(|run| span(table, run)).collect();
        let mut files = Files { system, table, ladder };
        let (layout, hot) = files.hot_memory(&spans, runs.tail, budget)?;
        let (tiered, hot_rows) = files.tiered(&runs, (&layout, hot, budget))?;
        table.mappings().iter().for_each(crate::mapping::Mapping::forget_pages);
        let sizes = (0..spans.len()).map(|run| tiered.sizes(run)).collect();
        let stats = ResidencyStats {
            budget_bytes: Some(budget as u64 + reserved.cache + reserved.activations),
            reserved_bytes: Reserved { buffers: layout.ring_bytes() as u64, ..reserved },
            hot_bytes: (layout.bytes(Tier::Hot) + hot_rows) as u64,
            stream_bytes: layout.bytes(Tier::Stream) as u64,
            ladder: ladder.steps().to_vec(),
            ..ResidencyStats::default()
        };
        tracing::info!(
            "weights: {} MB hot, {} MB read from disk in each pass",
            stats.hot_bytes / 1_000_000,
            stats.stream_bytes / 1_000_000
        );
        Ok(Self { runs, sizes, tiered: Some(tiered), stats })
    }

    /// The least budget that works for `runs`.
    pub fn least(table: &BlockTable, runs: &Runs) -> usize {
        let spans: Vec<Span> = runs.factors.iter().map(|run| span(table, run)).collect();
        let whole: usize = spans.iter().map(|span| span.range.len()).sum();
        whole.min(2 * least_buffer(&spans))
    }

    /// The longest part of a run that is handed out in parts, in bytes over its granule, rounded
    /// up; 0 if there is none.
    pub fn longest_part(&self) -> usize {
        let Some(tiered) = &self.tiered else { return 0 };
        let cut = tiered.runs.iter().zip(&self.runs.factors).filter(|(parts, _)| parts.len() > 1);
        let granules = cut.flat_map(|(parts, run)| {
            let parts = &tiered.parts[parts.clone()];
            parts.iter().map(|part| part.of_run.len().div_ceil(run.granule.max(1)))
        });
        granules.max().unwrap_or(0)
    }

    /// A pass begins, of `tokens` tokens, which reads the head `heads` times.
    pub fn begin_pass(&mut self, tokens: usize, heads: usize) {
        self.stats.tokens += tokens as u64;
        self.stats.passes += 1;
        if let Some(ring) = self.tiered.as_mut().and_then(|tiered| tiered.ring.as_mut()) {
            ring.begin_pass(heads);
        }
    }

    /// Counts that run `index` is about to be read.
    pub fn count(&mut self, index: usize) {
        let Sizes { blocks, bytes, hot, stream } = self.sizes[index];
        self.stats.blocks_resolved += blocks;
        self.stats.bytes_resolved += bytes;
        self.stats.bytes_hot += hot;
        self.stats.bytes_streamed += stream;
    }

    /// Counts that a delta was added to the product of a canonical matrix.
    pub const fn count_delta(&mut self) {
        self.stats.deltas_applied += 1;
    }

    /// The bytes of run `index`, if they lie whole in memory.
    pub fn whole<'a>(&'a self, table: &'a BlockTable, index: usize) -> Option<&'a [u8]> {
        let Some(tiered) = &self.tiered else {
            let run = &self.runs.factors[index];
            return Some(&table.resolve(run.block)[run.range.clone()]);
        };
        match &tiered.parts[tiered.runs[index].clone()] {
            [Part { place: Place::Hot(range), .. }] => Some(&tiered.hot.as_ref()?[range.clone()]),
            _ => None,
        }
    }

    /// The number of parts of run `index`; 1 if it lies whole in mapped memory.
    pub fn parts(&self, index: usize) -> usize {
        self.tiered.as_ref().map_or(1, |tiered| tiered.runs[index].len())
    }

    /// Part `part` of run `index`: which bytes of the run it has, and these bytes, for which this
    /// may wait. In a buffer they stay until [`Self::release`], or until another part is asked for.
    ///
    /// # Errors
    /// What kept them from being read; the pass is lost then.
    pub fn part<'a>(
        &'a mut self,
        table: &'a BlockTable,
        index: usize,
        part: usize,
    ) -> Result<(Range<usize>, PartBytes<'a>), Arc<DiskError>> {
        let Some(tiered) = &mut self.tiered else {
            let run = &self.runs.factors[index];
            let bytes = &table.resolve(run.block)[run.range.clone()];
            return Ok((0..bytes.len(), PartBytes(Bytes::Memory(bytes))));
        };
        let Part { of_run, place } = &tiered.parts[tiered.runs[index].start + part];
        let bytes = match (place, &tiered.hot, &mut tiered.ring) {
            (Place::Hot(range), Some(hot), _) => Bytes::Memory(&hot[range.clone()]),
            (Place::Stream { piece, range, .. }, _, Some(ring)) => {
                Bytes::Buffer(ring.bytes(*piece)?, range.clone())
            }
            _ => unreachable!("a part's memory lives as long as the part"),
        };
        Ok((of_run.clone(), PartBytes(bytes)))
    }

    /// Part `part` of run `index` is done with.
    pub fn release(&mut self, index: usize, part: usize) {
        let Some(Tiered { runs, parts, ring: Some(ring), .. }) = &mut self.tiered else { return };
        if let Place::Stream { last: true, .. } = parts[runs[index].start + part].place {
            ring.release();
        }
    }

    /// Row `index` of the embedding.
    ///
    /// # Errors
    /// What kept it from being read.
    pub fn row<'a>(
        &'a mut self,
        table: &'a BlockTable,
        index: usize,
    ) -> Result<&'a [u8], Arc<DiskError>> {
        let len = self.runs.rows.granule;
        let at = self.runs.rows.range.start + index * len;
        match self.tiered.as_mut().map(|tiered| &mut tiered.rows) {
            None => Ok(&table.resolve(self.runs.rows.block)[at..at + len]),
            Some(Rows::Hot(pages, start)) => {
                let at = *start + index * len;
                Ok(&pages[at..at + len])
            }
            Some(Rows::File { file, start, row, reads }) => {
                *reads += 1;
                file.read_exact(*start + (index * len) as u64, row)?;
                Ok(row)
            }
        }
    }

    /// Whether all weights are where their files are mapped, and the system decides what stays.
    pub const fn is_mapped(&self) -> bool {
        self.tiered.is_none()
    }

    /// A file that weights are streamed from, if any are.
    pub fn streamed_file(&self) -> Option<&Path> {
        self.tiered.as_ref()?.ring.as_ref()?.file()
    }

    /// Bytes read of the disk since the last [`Self::reset`].
    pub fn disk_bytes(&self) -> u64 {
        let Some(tiered) = &self.tiered else { return 0 };
        let ring = tiered.ring.as_ref().map_or(0, |ring| ring.counts().bytes);
        let (_, rows) = tiered.rows.read();
        ring + rows
    }

    /// What was done since the last [`Self::reset`], and where everything lives.
    pub fn stats(&self) -> ResidencyStats {
        let mut stats = self.stats.clone();
        if let Some(tiered) = &self.tiered {
            let counts = tiered.ring.as_ref().map(Ring::counts).unwrap_or_default();
            let (reads, bytes) = tiered.rows.read();
            stats.disk_bytes = counts.bytes + bytes;
            stats.reads = counts.reads + reads;
            stats.prefetches = counts.ready;
            stats.disk_wait_ms = counts.waited.as_secs_f64() * 1e3;
        }
        stats.derive();
        stats
    }

    /// Sets the counts back to zero.
    pub fn reset(&mut self) {
        let stats = &mut self.stats;
        (stats.tokens, stats.passes, stats.blocks_resolved) = (0, 0, 0);
        stats.deltas_applied = 0;
        (stats.bytes_resolved, stats.bytes_hot, stats.bytes_streamed) = (0, 0, 0);
        if let Some(tiered) = &mut self.tiered {
            if let Some(ring) = &mut tiered.ring {
                ring.reset_counts();
            }
            if let Rows::File { reads, .. } = &mut tiered.rows {
                *reads = 0;
            }
        }
    }
}

/// Bytes of a part, borrowed from memory or from a buffer.
#[derive(Debug)]
pub struct PartBytes<'a>(Bytes<'a>);

#[derive(Debug)]
enum Bytes<'a> {
    Memory(&'a [u8]),
    Buffer(MutexGuard<'a, Pages>, Range<usize>),
}

impl PartBytes<'_> {
    /// Whether they lie in a buffer, into which they have just come from the disk.
    pub const fn in_buffer(&self) -> bool {
        matches!(self.0, Bytes::Buffer(..))
    }
}

impl Deref for PartBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Memory(bytes) => bytes,
            Bytes::Buffer(pages, range) => &pages[range.clone()],
        }
    }
}

impl Rows {
    /// Reads and bytes that came from disk.
    const fn read(&self) -> (u64, u64) {
        match self {
            Self::Hot(..) => (0, 0),
            Self::File { row, reads, .. } => (*reads, *reads * row.len() as u64),
        }
    }
}

impl Tiered {
    fn sizes(&self, run: usize) -> Sizes {
        let mut sizes = Sizes::default();
        for part in &self.parts[self.runs[run].clone()] {
            let bytes = part.of_run.len() as u64;
            sizes.blocks += 1;
            sizes.bytes += bytes;
            match part.place {
                Place::Hot(_) => sizes.hot += bytes,
                Place::Stream { .. } => sizes.stream += bytes,
            }
        }
        sizes
    }
}

#[cfg(test)]
mod tests;
