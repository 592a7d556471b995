//! The weights of a session where they live: mapped, or in tiers within a budget.
//!
//! A pass asks for runs by number, in any order. One that lies whole in memory is a slice, as
//! with the block table alone; another one is handed out in parts, each of which is a slice in hot
//! memory or in a buffer that the disk has filled.

use crate::disk::{Access, DiskError, DiskFile};
use crate::ladder::{Ladder, Step};
use crate::pages::{PAGE, Pages};
use crate::ring::{Piece, Ring};
use crate::table::{BlockId, BlockTable};
use crate::telemetry::{Reserved, ResidencyStats};
use crate::tiers::{Chunk, Layout, Span, Tier, lay_out, least_buffer};
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Threads that read.
const READERS: usize = 2;
/// Threads that read where the disk is slow.
const READERS_SLOW: usize = 4;
/// Bytes per second below which a disk is slow.
const SLOW_BYTES_PER_S: u128 = 200_000_000;
/// Fewer bytes say nothing about a disk.
const SLOW_BYTES_LEAST: usize = 64 << 20;

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
    #[error("the system does not give {bytes} bytes for buffers: {source}")]
    Buffers {
        /// What was asked for.
        bytes: usize,
        /// The system's error.
        source: io::Error,
    },
}

/// What the system gives, so that tests can take it away.
#[derive(Clone, Copy, Debug)]
struct System {
    allocate: fn(usize) -> io::Result<Pages>,
    huge: fn(&Pages) -> io::Result<()>,
    lock: fn(&Pages) -> io::Result<()>,
    access: Access,
}

impl System {
    const REAL: Self = Self {
        allocate: Pages::new,
        huge: Pages::ask_for_huge,
        lock: Pages::lock,
        access: Access::Direct,
    };
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
        ladder.take(Step::NoPlan, "a rule assigns the tiers of the weights");
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

/// Where a run lies in a file.
fn span(table: &BlockTable, run: &Run) -> Span {
    let (file, block) = table.place(run.block);
    let range = block.start + run.range.start..block.start + run.range.end;
    Span { file, range, granule: run.granule }
}

/// What building needs: the system, the files and the steps that are taken.
struct Files<'a> {
    system: System,
    table: &'a BlockTable,
    ladder: &'a mut Ladder,
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

    fn part(&self, layout: &Layout, part: &crate::tiers::Part) -> Part {
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
    fn hot_memory(
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
    fn tiered(
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
const fn is_slow(bytes: usize, time: Duration) -> bool {
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

#[cfg(test)]
mod tests;
