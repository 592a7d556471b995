//! The pointer table (SPEC W11): the weights of a session as blocks of 64 KiB to 1 MiB, with the
//! address of each and what is true of it. It is built once, when the weights have their places;
//! asking it is an index.
//!
//! Passes read whole runs and need no pieces of them. The table is for those who look from
//! outside, and for what is decided a block at a time.

use std::ops::Range;

/// The least and the largest size of a block, in bytes.
pub const BLOCK_BYTES_LEAST: usize = 64 << 10;
/// See [`BLOCK_BYTES_LEAST`].
pub const BLOCK_BYTES_MOST: usize = 1 << 20;
/// The table takes at most one part in so many of the model.
const MODEL_SHARE: usize = 20;
/// The table takes at most one part in so many of the last-level cache.
const CACHE_SHARE: u64 = 2;

/// What is true of a block: a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockFlags(u32);

impl BlockFlags {
    /// Other blocks of this table are the same bytes of memory, and aliases of it.
    pub const CANONICAL: Self = Self(1);
    /// It is the same bytes of memory as a block that came before it, here or in another model.
    pub const ALIASED: Self = Self(2);
    /// A pass may leave out rows of it.
    pub const SPARSE: Self = Self(4);
    /// It lies in memory of our own, locked where the system allows that.
    pub const HOT: Self = Self(8);
    /// It is mapped, and kept by the system while memory allows.
    pub const WARM: Self = Self(16);
    /// It is read from disk in every pass and has no address.
    pub const STREAM: Self = Self(32);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in the set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A block: some bytes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Where it is in memory; 0 if it streams.
    pub address: usize,
    /// Where it starts in its run.
    pub offset: usize,
    /// The number of its run.
    pub run: u32,
    /// Its size, at most [`BLOCK_BYTES_MOST`] unless 16 rows take more.
    pub bytes: u32,
    /// What is true of it.
    pub flags: BlockFlags,
}

/// A piece of a run that lies in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Which bytes of the run it has.
    pub of_run: Range<usize>,
    /// Where they are in memory; 0 if they stream.
    pub address: usize,
    /// What is true of them.
    pub flags: BlockFlags,
}

/// A run as it is cut: what it may be cut at, and its pieces in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlacedRun {
    pub granule: usize,
    pub pieces: Vec<Placed>,
}

/// The pointer table of a session. Addresses hold for as long as the weights' owner lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointerTable {
    entries: Vec<Pointer>,
    /// For each run the numbers of its blocks.
    runs: Vec<Range<u32>>,
    block_bytes: usize,
}

impl PointerTable {
    /// Cuts `runs` into blocks that are as small as the bounds of the table allow.
    pub(crate) fn new(runs: &[PlacedRun], llc_bytes: Option<u64>) -> Self {
        let model: usize = runs.iter().flat_map(|run| &run.pieces).map(|p| p.of_run.len()).sum();
        let mut block_bytes = BLOCK_BYTES_LEAST;
        while block_bytes < BLOCK_BYTES_MOST {
            let count: usize = runs.iter().map(|run| count(run, block_bytes)).sum();
            let bytes = count * size_of::<Pointer>();
            let fits = llc_bytes.is_none_or(|llc| bytes as u64 <= llc / CACHE_SHARE);
            if fits && bytes <= model / MODEL_SHARE {
                break;
            }
            block_bytes *= 2;
        }
        let mut table = Self { entries: Vec::new(), runs: Vec::new(), block_bytes };
        for (number, run) in (0..).zip(runs) {
            let first = table.len();
            run.pieces.iter().for_each(|piece| table.push(number, run.granule, piece));
            table.runs.push(first..table.len());
        }
        table
    }

    fn push(&mut self, run: u32, granule: usize, piece: &Placed) {
        for part in parts(piece.of_run.len(), granule, self.block_bytes) {
            let address = if piece.address == 0 { 0 } else { piece.address + part.start };
            let offset = piece.of_run.start + part.start;
            // A block is 16 rows or less than 2 MiB.
            let bytes = u32::try_from(part.len()).unwrap_or(u32::MAX);
            self.entries.push(Pointer { address, offset, run, bytes, flags: piece.flags });
        }
    }

    /// The number of blocks.
    pub fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Whether there are no blocks.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The block of this number.
    pub fn get(&self, number: u32) -> Option<&Pointer> {
        self.entries.get(number as usize)
    }

    /// The blocks of a run.
    pub fn of_run(&self, run: usize) -> Option<Range<u32>> {
        self.runs.get(run).cloned()
    }

    /// Every block.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Pointer> {
        self.entries.iter()
    }

    /// What blocks were cut to, in bytes: a power of two.
    pub const fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Bytes that the blocks' entries take.
    pub const fn bytes(&self) -> usize {
        self.entries.len() * size_of::<Pointer>()
    }

    /// More is true of the blocks of a run.
    pub fn mark(&mut self, run: usize, flags: BlockFlags) {
        let Some(range) = self.runs.get(run) else { return };
        for entry in &mut self.entries[range.start as usize..range.end as usize] {
            entry.flags = entry.flags.with(flags);
        }
    }
}

fn count(run: &PlacedRun, block_bytes: usize) -> usize {
    run.pieces.iter().map(|piece| parts(piece.of_run.len(), run.granule, block_bytes).len()).sum()
}

/// `len` bytes cut at multiples of `granule` into as few parts of at most `block_bytes` as there
/// can be, of sizes as equal as that allows. A granule that exceeds a block is a part of its own.
fn parts(
    len: usize,
    granule: usize,
    block_bytes: usize,
) -> impl ExactSizeIterator<Item = Range<usize>> {
    let granule = granule.clamp(1, len.max(1));
    let granules = len.div_ceil(granule);
    let most = (block_bytes / granule).max(1);
    let count = granules.div_ceil(most);
    (0..count).map(move |part| {
        let at = |part: usize| (part * granules / count.max(1) * granule).min(len);
        at(part)..at(part + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(len: usize, granule: usize, address: usize) -> PlacedRun {
        let flags = BlockFlags::WARM;
        PlacedRun { granule, pieces: vec![Placed { of_run: 0..len, address, flags }] }
    }

    #[test]
    fn the_table_stays_within_its_share_of_the_model_and_of_the_cache() {
        let runs: Vec<_> = (0..200).map(|_| whole(22 << 20, 30_000, 4096)).collect();
        let of = |llc| PointerTable::new(&runs, llc);
        let free = of(None);
        assert_eq!(free.block_bytes(), BLOCK_BYTES_LEAST);
        assert!(free.bytes() * MODEL_SHARE <= 200 * (22 << 20));
        // 4.4 GiB take some 70,000 entries of 64 KiB: too many for half of 4 MiB.
        let llc = 4_u64 << 20;
        assert!(free.bytes() as u64 > llc / 2);
        let small = of(Some(llc));
        assert_eq!(small.block_bytes(), 2 * BLOCK_BYTES_LEAST);
        assert!(small.bytes() as u64 <= llc / 2);
        // Blocks do not exceed their largest size, whatever the cache.
        assert_eq!(of(Some(1)).block_bytes(), BLOCK_BYTES_MOST);
        assert!(of(Some(1)).iter().all(|entry| entry.bytes as usize <= BLOCK_BYTES_MOST));
    }

    #[test]
    fn blocks_have_addresses_unless_they_stream() {
        let mut run = whole(200_000, 1000, 10_000_000);
        let flags = BlockFlags::STREAM;
        run.pieces.push(Placed { of_run: 200_000..230_000, address: 0, flags });
        let mut table = PointerTable::new(&[whole(64, 64, 7), run], None);
        assert_eq!((table.of_run(0), table.of_run(1)), (Some(0..1), Some(1..6)));
        assert_eq!(table.of_run(2), None);
        let last = *table.get(5).expect("a block");
        assert_eq!((last.address, last.offset, last.bytes, last.run), (0, 200_000, 30_000, 1));
        let third = table.get(3).expect("a block");
        assert_eq!((third.address, third.offset), (10_100_000, 100_000));
        table.mark(1, BlockFlags::SPARSE);
        table.mark(2, BlockFlags::SPARSE);
        let of = |number| table.get(number).expect("a block").flags;
        assert!(of(5).has(BlockFlags::STREAM.with(BlockFlags::SPARSE)));
        assert!(of(0).has(BlockFlags::WARM) && !of(0).has(BlockFlags::SPARSE));
        assert_eq!(table.get(6), None);
    }

    proptest! {
        #[test]
        fn parts_cover_a_run_in_order_and_are_of_even_sizes(
            len in 0_usize..5_000_000,
            granule in 1_usize..300_000,
            shift in 0..5,
        ) {
            let block = BLOCK_BYTES_LEAST << shift;
            let parts: Vec<_> = parts(len, granule, block).collect();
            let mut at = 0;
            for part in &parts {
                prop_assert_eq!(part.start, at);
                prop_assert!(!part.is_empty() && part.len() <= block.max(granule));
                prop_assert!(part.end == len || part.end.is_multiple_of(granule));
                at = part.end;
            }
            prop_assert_eq!(at, len);
            // Where granules are small against blocks, no block is less than half of one, unless
            // the run is.
            if granule <= block / 8 && len > block {
                prop_assert!(parts.iter().all(|part| part.len() + 2 * granule >= block / 2));
            }
        }
    }
}
