//! Keys and values that several arenas have in common (SPEC B24): kept once, in a file of memory
//! that nobody can write, and laid over the arenas' own memory. Whoever writes there has a page of
//! its own from then on.

use crate::memory::KvArena;
use crate::pages::{LAYERS, Layers};
use crate::sealed::SealedFile;
use rustix::param::page_size;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Ranges of every layer's keys and values, and their bytes.
#[derive(Debug)]
pub struct SharedPages {
    file: SealedFile,
    /// Those of the arena that they come from; others must have the same.
    shape: (usize, [usize; 2]),
    /// Which bytes of a layer's keys and of its values.
    ranges: [Vec<Range<usize>>; 2],
}

impl SharedPages {
    /// Copies `ranges` of every layer's keys and of its values.
    ///
    /// # Errors
    /// The operating system's, such as that there is no memory, or that files of this process may
    /// not be so long.
    ///
    /// # Panics
    /// If the arena does not have them.
    pub fn copy(arena: &KvArena, ranges: [Vec<Range<usize>>; 2]) -> io::Result<Self> {
        let shape = arena.shape();
        // Whole pages can then be mapped to the end of the last one.
        let file = SealedFile::new(offset(shape, shape.0 * 2), |file| {
            for side in 0..shape.0 * 2 {
                let memory = arena.layer(side / 2)[side % 2];
                for range in &ranges[side % 2] {
                    let at = offset(shape, side) + range.start;
                    file.write_all_at(&memory[range.clone()], at as u64)?;
                }
            }
            Ok(())
        })?;
        Ok(Self { file, shape, ranges })
    }

    /// Whether `arena` can have them.
    pub fn fit(&self, arena: &KvArena) -> bool {
        self.shape == arena.shape()
    }

    /// Gives them to `arena`: whole pages of the system are laid over its memory, what is left at
    /// the ends of ranges is copied. So is all of it once the process has as many such mappings as
    /// it should.
    ///
    /// # Errors
    /// The operating system's; the arena must not be used then.
    ///
    /// # Panics
    /// If they do not [`fit`](Self::fit).
    pub fn give(&self, arena: &mut KvArena) -> io::Result<()> {
        self.give_within(arena, &LAYERS)
    }

    fn give_within(&self, arena: &mut KvArena, layers: &'static Layers) -> io::Result<()> {
        assert!(self.fit(arena));
        let page = page_size();
        for (side, memory) in arena.pages_mut().enumerate() {
            let base = offset(self.shape, side);
            for range in &self.ranges[side % 2] {
                let whole = range.start.next_multiple_of(page)..range.end / page * page;
                let layer = if whole.is_empty() { None } else { layers.take() };
                let rest = match layer {
                    None => [range.clone(), 0..0],
                    Some(_) => [range.start..whole.start, whole.end..range.end],
                };
                for rest in rest {
                    let at = base + rest.start;
                    self.file.read(&mut memory[rest], at)?;
                }
                if let Some(layer) = layer {
                    let from = (&self.file, base + whole.start);
                    memory.lay_over(whole, from, layer)?;
                }
            }
        }
        Ok(())
    }

    /// Their bytes, in all layers.
    pub fn bytes(&self) -> usize {
        self.shape.0 * self.ranges.iter().flatten().map(ExactSizeIterator::len).sum::<usize>()
    }
}

/// Where a layer's keys (even numbers) or values (odd ones) lie in the file: as far apart as in the
/// arena, in whole pages. What is in between takes no memory.
fn offset((_, sides): (usize, [usize; 2]), side: usize) -> usize {
    let [keys, values] = sides.map(|bytes| bytes.max(1).next_multiple_of(page_size()));
    side / 2 * (keys + values) + side % 2 * keys
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte of both layers says where it is.
    fn filled(bytes: [usize; 2]) -> KvArena {
        let mut arena = KvArena::new(2, bytes[0], bytes[1]).expect("memory");
        for layer in 0..2 {
            for (side, memory) in arena.layer_mut(layer).into_iter().enumerate() {
                for (at, byte) in memory.iter_mut().enumerate() {
                    *byte = expected(layer, side, at);
                }
            }
        }
        arena
    }

    fn expected(layer: usize, side: usize, at: usize) -> u8 {
        ((at * 7 + at / 4096 + side * 3 + layer * 5) % 251 + 1) as u8
    }

    #[test]
    fn what_is_given_is_there_and_what_is_written_stays_with_the_writer() {
        static NINE: Layers = Layers::new(9);
        let bytes = [70_000, 50_001];
        let ranges = [vec![0..9000, 16_384..40_000], vec![5..30, 4000..8193, 49_000..50_001]];
        let donor = filled(bytes);
        let shared = SharedPages::copy(&donor, ranges.clone()).expect("memory");
        drop(donor);
        let mut arenas: Vec<KvArena> =
            (0..3).map(|_| KvArena::new(2, bytes[0], bytes[1]).expect("memory")).collect();
        // An arena has six whole ranges: of the second half is copied, of the third all.
        for arena in &mut arenas {
            assert!(shared.fit(arena));
            shared.give_within(arena, &NINE).expect("given");
        }
        assert!(NINE.take().is_none());
        // One writes everywhere, to no effect for the others.
        for layer in 0..2 {
            arenas[0].layer_mut(layer).into_iter().for_each(|memory| memory.fill(0));
        }
        for arena in &arenas[1..] {
            for layer in 0..2 {
                for (side, memory) in arena.layer(layer).into_iter().enumerate() {
                    let given = |at| ranges[side].iter().any(|range| range.contains(&at));
                    for (at, byte) in memory.iter().enumerate() {
                        let wanted = if given(at) { expected(layer, side, at) } else { 0 };
                        assert_eq!(*byte, wanted, "layer {layer}, side {side}, {at}");
                    }
                }
            }
        }
        assert_eq!(shared.bytes(), 2 * (9000 + 23_616 + 25 + 4193 + 1001));
        // What is shared outlives neither file nor arenas that had it.
        drop(shared);
        assert_eq!(arenas[1].layer(1)[0][100], expected(1, 0, 100));
        drop(arenas);
        assert!(NINE.take().is_some(), "mappings are given back");
    }

    #[test]
    fn memory_is_shared() {
        let bytes = [1 << 20, 1 << 20];
        let whole = std::iter::once(0..1 << 20).collect();
        let shared = SharedPages::copy(&filled(bytes), [whole, vec![]]).expect("memory");
        assert!(!shared.fit(&KvArena::new(2, 1 << 20, 9).expect("memory")));
        assert!(!shared.fit(&KvArena::new(1, 1 << 20, 1 << 20).expect("memory")));
        // Reading what was given makes no pages of the arena's own: they are the file's.
        let mut arena = KvArena::new(2, bytes[0], bytes[1]).expect("memory");
        shared.give(&mut arena).expect("given");
        let sum: u64 = arena.layer(0)[0].iter().map(|byte| u64::from(*byte)).sum();
        assert!(sum > 0);
        let anonymous = own_bytes(arena.layer(0)[0].as_ptr().addr());
        assert_eq!(anonymous, 0);
        arena.layer_mut(0)[0][5] = 9;
        assert_eq!(own_bytes(arena.layer(0)[0].as_ptr().addr()), page_size());
    }

    /// Bytes of the process's own in the mapping that starts at `address`.
    fn own_bytes(address: usize) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let start = format!("{address:x}-");
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find(|line| line.starts_with("Anonymous:")).expect("a line");
        let kib = line.split_whitespace().nth(1).expect("a number");
        kib.parse::<usize>().expect("a number") * 1024
    }
}
