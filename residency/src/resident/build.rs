//! Finding places: what the system gives, files opened, hot blocks read, the ring started.

use super::{Part, Place, ResidentError, Rows, Run, Runs, Tiered};
use crate::disk::{Access, DiskError, DiskFile};
use crate::ladder::{Ladder, Step};
use crate::pages::{PAGE, Pages};
use crate::ring::{Piece, Ring};
use crate::table::BlockTable;
use crate::tiers::{self, Chunk, Layout, Span, Tier, lay_out, least_buffer};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Threads that read.
const READERS: usize = 2;
/// Threads that read where the disk is slow.
const READERS_SLOW: usize = 4;
/// Bytes per second below which a disk is slow.
const SLOW_BYTES_PER_S: u128 = 200_000_000;
/// Fewer bytes say nothing about a disk.
const SLOW_BYTES_LEAST: usize = 64 << 20;

/// What the system gives, so that tests can take it away.
#[derive(Clone, Copy, Debug)]
pub(super) struct System {
    pub allocate: fn(usize) -> io::Result<Pages>,
    pub huge: fn(&Pages) -> io::Result<()>,
    pub lock: fn(&Pages) -> io::Result<()>,
    pub access: Access,
}

impl System {
    pub const REAL: Self = Self {
        allocate: Pages::new,
        huge: Pages::ask_for_huge,
        lock: Pages::lock,
        access: Access::Direct,
    };
}

/// Where a run lies in a file.
pub(super) fn span(table: &BlockTable, run: &Run) -> Span {
    let (file, block) = table.place(run.block);
    let range = block.start + run.range.start..block.start + run.range.end;
    Span { file, range, granule: run.granule }
}

/// What building needs: the system, the files and the steps that are taken.
pub(super) struct Files<'a> {
    pub system: System,
    pub table: &'a BlockTable,
    pub ladder: &'a mut Ladder,
}

/// Blocks sorted into hot memory and into the pieces of the ring.
#[derive(Default)]
struct Sorted {
    /// For each block where it starts in hot memory, or which piece it is.
    starts: Vec<usize>,
    /// Bytes of hot memory.
    hot: usize,
    pieces: Vec<Piece>,
    /// Pieces before the tail.
    body: usize,
}

impl Sorted {
    /// `numbers` are the mappings that blocks lie in, sorted.
    fn new(layout: &Layout, numbers: &[usize]) -> Self {
        let mut sorted = Self::default();
        for (number, (chunk, tier)) in layout.cut.chunks.iter().zip(&layout.tiers).enumerate() {
            if *tier == Tier::Hot {
                sorted.starts.push(sorted.hot);
                sorted.hot += chunk.pages();
            } else {
                sorted.starts.push(sorted.pieces.len());
                sorted.body += usize::from(number < layout.cut.body);
                let file = numbers.binary_search(&chunk.file).unwrap_or(0);
                sorted.pieces.push(Piece { file, chunk: chunk.clone() });
            }
        }
        sorted
    }

    fn part(&self, layout: &Layout, part: &tiers::Part) -> Part {
        let start = self.starts[part.chunk];
        let range = part.offset..part.offset + part.of_span.len();
        let place = match layout.tiers[part.chunk] {
            Tier::Hot => Place::Hot(start + range.start..start + range.end),
            _ => Place::Stream { piece: start, range, last: part.last },
        };
        Part { of_run: part.of_span.clone(), place }
    }
}

impl Files<'_> {
    /// A layout within `budget` and memory for its hot blocks; with less of them, where the system
    /// does not give so much.
    pub(super) fn hot_memory(
        &mut self,
        spans: &[Span],
        tail: usize,
        budget: usize,
    ) -> Result<(Layout, Option<Pages>), ResidentError> {
        let mut budget = budget;
        loop {
            let layout =
                lay_out(spans, tail, budget).map_err(|least| ResidentError::Least { least })?;
            let bytes = layout.bytes(Tier::Hot);
            if bytes == 0 {
                return Ok((layout, None));
            }
            match (self.system.allocate)(bytes) {
                Ok(pages) => {
                    self.prepare(&pages);
                    return Ok((layout, Some(pages)));
                }
                Err(error) => {
                    let why = format!("the system does not give {bytes} bytes: {error}");
                    self.ladder.take(Step::AllocationRefused, &why);
                    budget = (budget / 2).max(layout.ring_bytes()).max(2 * least_buffer(spans));
                }
            }
        }
    }

    /// Huge pages and locking, where they are given.
    fn prepare(&mut self, pages: &Pages) {
        if let Err(error) = (self.system.huge)(pages) {
            self.ladder.take(Step::SmallPages, &format!("no transparent huge pages: {error}"));
        }
        if let Err(error) = (self.system.lock)(pages) {
            let why = format!("{} bytes may not be locked (ulimit -l): {error}", pages.len());
            self.ladder.take(Step::Unlocked, &why);
        }
    }

    /// The file of mapping `number`, past the page cache if possible.
    fn open(&mut self, number: usize) -> Result<DiskFile, DiskError> {
        let file = DiskFile::of(&self.table.mappings()[number], self.system.access)?;
        if !file.is_direct() {
            self.ladder.take(Step::BufferedReads, "the file system does not read past the cache");
        }
        Ok(file)
    }

    /// Reads the hot blocks and starts the ring. Also returns the bytes of the embedding, if it
    /// is hot.
    pub(super) fn tiered(
        &mut self,
        runs: &Runs,
        (layout, mut hot, budget): (&Layout, Option<Pages>, usize),
    ) -> Result<(Tiered, usize), ResidentError> {
        let chunks = &layout.cut.chunks;
        // Mappings are few, so that a list is as good as a table.
        let mut numbers: Vec<usize> = chunks.iter().map(|chunk| chunk.file).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let opened: Vec<DiskFile> =
            numbers.iter().map(|number| self.open(*number)).collect::<Result<_, _>>()?;
        let sorted = Sorted::new(layout, &numbers);
        let parts = layout.cut.parts.iter().map(|part| sorted.part(layout, part)).collect();
        let mut readers = READERS;
        if let Some(hot) = &mut hot {
            let blocks = chunks.iter().zip(&layout.tiers).filter(|(_, tier)| **tier == Tier::Hot);
            let file = |chunk: &Chunk| &opened[numbers.binary_search(&chunk.file).unwrap_or(0)];
            let started = Instant::now();
            fill(hot, blocks.map(|(chunk, _)| (file(chunk), chunk)))?;
            if is_slow(hot.len(), started.elapsed()) {
                self.ladder.take(Step::SlowDisk, "the disk gave less than 200 MB a second");
                readers = READERS_SLOW;
            }
        }
        let free = budget.saturating_sub(sorted.hot + layout.ring_bytes());
        let (rows, hot_rows) = self.rows(&runs.rows, free, sorted.pieces.is_empty())?;
        let ring = match layout.buffers {
            0 => None,
            count => {
                let buffers = self.buffers(count, layout.buffer_bytes)?;
                Some(Ring::new(opened, sorted.pieces, sorted.body, buffers, readers)?)
            }
        };
        Ok((Tiered { hot, ring, parts, runs: layout.cut.spans.clone(), rows }, hot_rows))
    }

    fn buffers(&mut self, count: usize, bytes: usize) -> Result<Vec<Pages>, ResidentError> {
        let wrong = |source| ResidentError::Buffers { bytes: count * bytes, source };
        let buffer = |_| {
            let pages = Pages::new(bytes).map_err(wrong)?;
            self.prepare(&pages);
            Ok(pages)
        };
        (0..count).map(buffer).collect()
    }

    /// The embedding: hot if all else is and it fits into `free` bytes, else read a row at a time.
    fn rows(
        &mut self,
        run: &Run,
        free: usize,
        all_hot: bool,
    ) -> Result<(Rows, usize), ResidentError> {
        let span = span(self.table, run);
        let start = span.range.start - span.range.start % PAGE;
        let chunk = Chunk { file: span.file, start, end: span.range.end };
        if all_hot && chunk.pages() <= free {
            let file = self.open(span.file)?;
            if let Ok(mut pages) = (self.system.allocate)(chunk.pages()) {
                self.prepare(&pages);
                file.read(chunk.start as u64, &mut pages, chunk.needed())?;
                return Ok((Rows::Hot(pages, span.range.start - start), chunk.pages()));
            }
        }
        let file = DiskFile::of(&self.table.mappings()[span.file], Access::Buffered)?;
        let row = vec![0; run.granule];
        Ok((Rows::File { file, start: span.range.start as u64, row, reads: 0 }, 0))
    }
}

/// Whether reading so many bytes in that time shows a slow disk.
pub(super) const fn is_slow(bytes: usize, time: Duration) -> bool {
    bytes >= SLOW_BYTES_LEAST && bytes as u128 * 1_000_000 < SLOW_BYTES_PER_S * time.as_micros()
}

/// Reads blocks into `hot`, one behind the other, by several threads.
fn fill<'a>(
    hot: &mut Pages,
    list: impl Iterator<Item = (&'a DiskFile, &'a Chunk)>,
) -> Result<(), DiskError> {
    let mut rest = &mut hot[..];
    let mut jobs = Vec::new();
    for (file, chunk) in list {
        let (block, behind) = rest.split_at_mut(chunk.pages());
        jobs.push((file, chunk, block));
        rest = behind;
    }
    let jobs = Mutex::new(jobs.into_iter());
    let work = || {
        loop {
            let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((file, chunk, block)) = next else { return Ok(()) };
            file.read(chunk.start as u64, block, chunk.needed())?;
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..READERS).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined = others.into_iter().map(|other| match other.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.fold(own, Result::and)
    })
}
