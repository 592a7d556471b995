//! A ring of buffers that threads of its own fill from disk, ahead of use (SPEC W5).
//!
//! The plain algorithm: read a block, compute with it, read the next. The departures from it:
//! 1. Readers claim the blocks that will be asked for next, in order, each into the next free
//!    buffer, so that the disk works while others compute. Two of them keep the disk busy between
//!    the end of a read and the start of the next.
//! 2. What comes next is a guess: the order of a pass, its tail as often as the pass has said, and
//!    then the start of the next pass. If another block is asked for than the one that comes, the
//!    ring starts anew there: a wrong guess costs time, never correctness.
//!
//! A buffer is free, then filled by one reader, then full until the caller gives it back. Its
//! memory has a lock, which that order keeps uncontended. Starting anew counts up `epoch`; what a
//! reader brings for an earlier one is dropped.

use crate::disk::{DiskError, DiskFile};
use crate::pages::Pages;
use crate::tiers::Chunk;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A block to be read: which file, and what of it.
#[derive(Debug)]
pub(crate) struct Piece {
    /// The file's number.
    pub file: usize,
    /// What of it.
    pub chunk: Chunk,
}

/// What the ring has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Bytes read of the disk.
    pub bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Blocks that were there when they were asked for.
    pub ready: u64,
    /// Time that was waited for the others.
    pub waited: Duration,
}

/// The caller's side.
#[derive(Debug)]
pub(crate) struct Ring {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    /// The piece that is in use and its buffer.
    held: Option<(usize, usize)>,
}

#[derive(Debug)]
struct Shared {
    files: Vec<DiskFile>,
    pieces: Vec<Piece>,
    /// The first piece of the tail.
    body: usize,
    buffers: Vec<Mutex<Pages>>,
    state: Mutex<State>,
    filled: Condvar,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    epoch: u64,
    slots: Vec<Slot>,
    /// Buffers claimed and given back in this epoch.
    claimed: u64,
    released: u64,
    cursor: Cursor,
    /// Passes begun, and how often the present one reads the tail.
    pass: u64,
    tails: usize,
    error: Option<Arc<DiskError>>,
    stop: bool,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Filling,
    Full,
}

/// What is known of a buffer.
#[derive(Clone, Copy, Debug)]
struct Slot {
    phase: Phase,
    epoch: u64,
    piece: usize,
}

/// The piece that is read next.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// `None` if nothing is known to come.
    next: Option<usize>,
    /// The pass that it belongs to.
    pass: u64,
    /// How often the tail is still to be read in it.
    tails: usize,
}

impl Cursor {
    /// At the piece `at`; of the tail that is read now, nothing is left to be started.
    fn at(at: usize, pass: u64, tails: usize, body: usize) -> Self {
        let tails = if at >= body { tails.saturating_sub(1) } else { tails };
        Self { next: Some(at), pass, tails }
    }

    /// Moves to the piece behind `at`, of `pieces` pieces. The next pass reads the tail as often
    /// as this one did.
    fn advance(&mut self, at: usize, (body, pieces): (usize, usize), tails: usize) {
        let within = at + 1 != body && at + 1 != pieces;
        let again = self.tails > 0 && body < pieces;
        self.next = match () {
            () if within => Some(at + 1),
            () if again => {
                self.tails -= 1;
                Some(body)
            }
            () => {
                *self = Self { next: None, pass: self.pass + 1, tails };
                let start = if body > 0 { Some(0) } else { None };
                start.or_else(|| {
                    self.tails = tails.checked_sub(1)?;
                    (body < pieces).then_some(body)
                })
            }
        };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ring {
    /// A ring over `pieces`, in the order of a pass, those from `body` on being its tail.
    /// Reading begins at once.
    ///
    /// # Errors
    /// [`DiskError::Thread`].
    pub(crate) fn new(
        files: Vec<DiskFile>,
        pieces: Vec<Piece>,
        body: usize,
        buffers: Vec<Pages>,
        readers: usize,
    ) -> Result<Self, DiskError> {
        let slot = Slot { phase: Phase::Free, epoch: 0, piece: 0 };
        let start = if body > 0 { 0 } else { body };
        let state = State {
            epoch: 0,
            slots: vec![slot; buffers.len()],
            claimed: 0,
            released: 0,
            // The first pass is the one that has not begun yet.
            cursor: Cursor::at(start, 1, 1, body),
            pass: 0,
            tails: 1,
            error: None,
            stop: false,
            counts: Counts::default(),
        };
        let shared = Arc::new(Shared {
            files,
            pieces,
            body,
            buffers: buffers.into_iter().map(Mutex::new).collect(),
            state: Mutex::new(state),
            filled: Condvar::new(),
            freed: Condvar::new(),
        });
        let mut ring = Self { shared, readers: Vec::new(), held: None };
        for index in 0..readers {
            let shared = Arc::clone(&ring.shared);
            let name = format!("aios-reader-{index}");
            let reader = std::thread::Builder::new().name(name).spawn(move || shared.read_on());
            ring.readers.push(reader.map_err(DiskError::Thread)?);
        }
        Ok(ring)
    }

    /// A pass begins which reads the tail `tails` times. An error of the pass before is forgotten:
    /// what failed is tried again.
    pub(crate) fn begin_pass(&mut self, tails: usize) {
        self.release();
        let mut state = lock(&self.shared.state);
        state.pass += 1;
        state.tails = tails;
        let body = self.shared.body;
        if state.cursor.pass == state.pass {
            let started = state.cursor.next.is_some_and(|next| next >= body);
            state.cursor.tails = tails.saturating_sub(usize::from(started));
        }
        if state.error.is_some() {
            let start = if body > 0 { 0 } else { body };
            state.restart(start, body);
            self.shared.freed.notify_all();
        }
    }

    /// The bytes of piece `index`, waiting for them if they are not there yet. They stay until
    /// [`Self::release`] or until another piece is asked for.
    ///
    /// # Errors
    /// What kept it from being read.
    pub(crate) fn bytes(&mut self, index: usize) -> Result<MutexGuard<'_, Pages>, Arc<DiskError>> {
        let slot = match self.held {
            Some((piece, slot)) if piece == index => slot,
            _ => {
                self.release();
                let slot = self.shared.wait_for(index)?;
                self.held = Some((index, slot));
                slot
            }
        };
        Ok(lock(&self.shared.buffers[slot]))
    }

    /// Gives the buffer in use back to be filled.
    pub(crate) fn release(&mut self) {
        let Some((_, slot)) = self.held.take() else { return };
        let mut state = lock(&self.shared.state);
        state.slots[slot].phase = Phase::Free;
        state.released += 1;
        drop(state);
        self.shared.freed.notify_all();
    }

    /// The file of the first piece.
    pub(crate) fn file(&self) -> Option<&Path> {
        let piece = self.shared.pieces.first()?;
        Some(self.shared.files[piece.file].path())
    }

    /// What was done since the last [`Self::reset_counts`].
    pub(crate) fn counts(&self) -> Counts {
        lock(&self.shared.state).counts
    }

    /// Sets the counts back to zero.
    pub(crate) fn reset_counts(&mut self) {
        lock(&self.shared.state).counts = Counts::default();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.freed.notify_all();
        for reader in self.readers.drain(..) {
            // A reader that has panicked has nothing to give back.
            let _ = reader.join();
        }
    }
}

impl State {
    /// The piece that the next buffer holds or will hold.
    fn expected(&self) -> Option<usize> {
        if self.released == self.claimed {
            return self.cursor.next;
        }
        Some(self.slots[self.place(self.released)].piece)
    }

    fn place(&self, number: u64) -> usize {
        // The remainder is less than the number of buffers.
        usize::try_from(number % self.slots.len() as u64).unwrap_or(0)
    }

    /// Starts anew at `piece`: what was read ahead is dropped.
    fn restart(&mut self, piece: usize, body: usize) {
        self.epoch += 1;
        (self.claimed, self.released, self.error) = (0, 0, None);
        self.cursor = Cursor::at(piece, self.pass, self.tails, body);
        for slot in self.slots.iter_mut().filter(|slot| slot.phase == Phase::Full) {
            slot.phase = Phase::Free;
        }
    }
}

impl Shared {
    /// Waits until `piece` is there; returns its buffer's number.
    fn wait_for(&self, piece: usize) -> Result<usize, Arc<DiskError>> {
        let mut state = lock(&self.state);
        if state.expected() != Some(piece) {
            if let Some(error) = &state.error {
                return Err(Arc::clone(error));
            }
            state.restart(piece, self.body);
            self.freed.notify_all();
        }
        let place = state.place(state.released);
        let there = |state: &State| {
            let slot = state.slots[place];
            slot.phase == Phase::Full && slot.epoch == state.epoch
        };
        if there(&state) {
            state.counts.ready += 1;
            return Ok(place);
        }
        let started = Instant::now();
        while !there(&state) {
            if let Some(error) = &state.error {
                return Err(Arc::clone(error));
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.counts.waited += started.elapsed();
        Ok(place)
    }

    /// A reader's life: claim the next piece and a free buffer, read, say so.
    fn read_on(&self) {
        let mut state = lock(&self.state);
        loop {
            if state.stop {
                return;
            }
            let place = state.place(state.claimed);
            let free = state.slots[place].phase == Phase::Free && state.error.is_none();
            let Some(index) = state.cursor.next.filter(|_| free) else {
                state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let epoch = state.epoch;
            state.claimed += 1;
            state.slots[place] = Slot { phase: Phase::Filling, epoch, piece: index };
            let tails = state.tails;
            state.cursor.advance(index, (self.body, self.pieces.len()), tails);
            drop(state);
            let Piece { file, chunk } = &self.pieces[index];
            let read = {
                let mut buffer = lock(&self.buffers[place]);
                let buffer = &mut buffer[..chunk.pages()];
                self.files[*file].read(chunk.start as u64, buffer, chunk.needed())
            };
            state = lock(&self.state);
            state.counts.reads += 1;
            state.counts.bytes += chunk.pages() as u64;
            let present = state.epoch == epoch;
            state.slots[place].phase =
                if present && read.is_ok() { Phase::Full } else { Phase::Free };
            if let (true, Err(error)) = (present, read) {
                state.error = Some(Arc::new(error));
            }
            self.filled.notify_all();
            self.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Access;
    use crate::pages::PAGE;

    const PIECES: usize = 11;

    /// A file of pages whose bytes are their number, and a ring over it.
    fn ring(body: usize, buffers: usize, readers: usize) -> (tempfile::NamedTempFile, Ring) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let bytes: Vec<u8> = (0..PIECES * PAGE).map(|at| (at / PAGE) as u8).collect();
        std::fs::write(file.path(), bytes).expect("written");
        let disk = DiskFile::open(file.path(), Access::Direct).expect("opened");
        let piece = |index: usize| {
            let start = index * PAGE;
            Piece { file: 0, chunk: Chunk { file: 0, start, end: start + PAGE - index } }
        };
        let buffers = (0..buffers).map(|_| Pages::new(PAGE).expect("memory")).collect();
        let pieces = (0..PIECES).map(piece).collect();
        let ring = Ring::new(vec![disk], pieces, body, buffers, readers).expect("threads");
        (file, ring)
    }

    fn take(ring: &mut Ring, index: usize) {
        {
            let bytes = ring.bytes(index).expect("read");
            assert!(bytes.iter().all(|byte| *byte == index as u8), "{index}");
        }
        // A piece in use may be looked at again.
        assert_eq!(ring.bytes(index).expect("held")[0], index as u8);
        ring.release();
    }

    #[test]
    fn pieces_come_in_any_order_and_in_that_of_passes_they_are_read_once() {
        for (body, buffers, readers) in [(11, 4, 2), (8, 2, 1), (0, 3, 4), (5, 16, 2)] {
            let (_file, mut ring) = ring(body, buffers, readers);
            for pass in 0..20 {
                let tails = [1, 0, 2, 3][pass % 4];
                ring.begin_pass(tails);
                (0..body).for_each(|index| take(&mut ring, index));
                (0..tails).flat_map(|_| body..PIECES).for_each(|index| take(&mut ring, index));
            }
            // Backwards, every guess is wrong.
            ring.begin_pass(1);
            (0..PIECES).rev().for_each(|index| take(&mut ring, index));
        }
        let (_file, mut ring) = ring(8, 2, 2);
        for _ in 0..100 {
            ring.begin_pass(1);
            (0..PIECES).for_each(|index| take(&mut ring, index));
        }
        let counts = ring.counts();
        let most = 100 * PIECES as u64 + 2;
        assert!((100 * PIECES as u64..=most).contains(&counts.reads), "{counts:?}");
        assert_eq!(counts.bytes, counts.reads * PAGE as u64);
        ring.reset_counts();
        assert!(ring.counts().ready == 0);
    }

    #[test]
    fn a_pass_that_ends_early_leaves_no_trace() {
        let (_file, mut ring) = ring(8, 3, 2);
        for pass in 0..200 {
            ring.begin_pass(1);
            (0..pass % PIECES).for_each(|index| take(&mut ring, index));
        }
    }

    #[test]
    fn a_file_that_ends_early_is_an_error_until_it_is_whole_again() {
        let (file, mut ring) = ring(8, 3, 2);
        let whole = std::fs::read(file.path()).expect("read");
        ring.begin_pass(1);
        (0..PIECES).for_each(|index| take(&mut ring, index));
        file.as_file().set_len(4 * PAGE as u64).expect("cut");
        let failed = (0..3).any(|_| {
            ring.begin_pass(1);
            let fails = |index| ring.bytes(index).map(|_| ()).is_err();
            (0..PIECES).any(fails)
        });
        assert!(failed);
        std::fs::write(file.path(), whole).expect("written");
        ring.begin_pass(1);
        (0..PIECES).for_each(|index| take(&mut ring, index));
    }
}
