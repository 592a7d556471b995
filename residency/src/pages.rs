//! Anonymous memory in whole pages: for hot blocks, for the buffers that the disk fills, and for
//! the KV cache.

use crate::sealed::SealedFile;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};
use rustix::param::page_size;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that the start and the length of a read from disk are multiples of.
pub(crate) const PAGE: usize = 4096;

/// The mappings that may be laid over memory in this process. Each splits a mapping in up to three,
/// and the system has a most of these for a process, often 65530, beyond which it gives nothing.
pub(crate) static LAYERS: Layers = Layers::new(16_384);

/// How many mappings are laid over memory, and the most that there may be.
#[derive(Debug)]
pub(crate) struct Layers {
    laid: AtomicUsize,
    most: usize,
}

impl Layers {
    /// None yet, of at most so many.
    pub(crate) const fn new(most: usize) -> Self {
        Self { laid: AtomicUsize::new(0), most }
    }

    /// The right to lay one; `None` if there are as many as there may be.
    pub(crate) fn take(&'static self) -> Option<Layer> {
        let more = |laid| (laid < self.most).then_some(laid + 1);
        let taken = self.laid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Layer(self))
    }
}

/// One of the mappings that may be laid, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Layer(&'static Layers);

impl Drop for Layer {
    fn drop(&mut self) {
        self.0.laid.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Zeroed memory that starts at a page and is a whole number of pages.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    /// 0 once the memory is lost.
    len: usize,
    /// What is laid over it.
    layers: Vec<Layer>,
}

// SAFETY: the memory belongs to this value alone and is reached through it as a `Box<[u8]>` is.
unsafe impl Send for Pages {}
// SAFETY: as above; `&Pages` gives `&[u8]` only.
unsafe impl Sync for Pages {}

impl Pages {
    /// `bytes` rounded up to pages.
    ///
    /// # Errors
    /// The operating system's, if it does not give the memory.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let len = bytes.max(1).checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, layers: Vec::new() })
    }

    /// Asks for huge pages; to be done before the memory is touched.
    ///
    /// # Errors
    /// The operating system's, if it has none.
    pub(crate) fn ask_for_huge(&self) -> io::Result<()> {
        let policy = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if policy.is_ok_and(|policy| policy.contains("[never]")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: the range is this value's own mapping, and the advice changes no content.
        unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxHugepage) }?;
        Ok(())
    }

    /// Lays the bytes of `file` from `offset` on over those at `range`, both of whole pages of the
    /// system. They are the file's until they are written, and then this value's own.
    ///
    /// # Errors
    /// The operating system's; this value is then empty.
    ///
    /// # Panics
    /// If the range is not within this memory, or what is to be laid there not within the file, or
    /// one of them is not of whole pages.
    pub(crate) fn lay_over(
        &mut self,
        range: Range<usize>,
        (file, offset): (&SealedFile, usize),
        layer: Layer,
    ) -> io::Result<()> {
        let page = page_size();
        assert!(range.start < range.end && range.end <= self.len);
        assert!([range.start, range.end, offset].iter().all(|at| at.is_multiple_of(page)));
        assert!(offset <= file.len() && range.len() <= file.len() - offset);
        let (access, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
        // SAFETY: the range is within this value's own mapping, which nothing borrows from while
        // `self` is borrowed mutably. The file is sealed, so that its bytes stay what they are and
        // none of them goes away.
        let laid = unsafe {
            let start = self.start.as_ptr().add(range.start).cast();
            mmap(start, range.len(), access, flags, file.file(), offset as u64)
        };
        self.layers.push(layer);
        if let Err(error) = laid {
            self.lose();
            return Err(error.into());
        }
        Ok(())
    }

    /// Lets go of the memory without giving it back: the system may have taken some of it away,
    /// where another thread may have memory of its own by now, and there is no telling.
    fn lose(&mut self) {
        (self.start, self.len) = (NonNull::dangling(), 0);
        // What was laid before is still mapped.
        std::mem::forget(std::mem::take(&mut self.layers));
    }

    /// Keeps the memory from being swapped out; it becomes resident with this.
    ///
    /// # Errors
    /// The operating system's, such as that the process may not lock so much.
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is this value's own mapping; locking changes no content.
        unsafe { mlock(self.start.as_ptr().cast(), self.len) }?;
        Ok(())
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` bytes, zeroed or written since, and lives as long as
        // `self`; writing needs `&mut self`. If it is lost, `len` is 0, for which any start does.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to the memory.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: the mapping was made by `new` and nothing borrows from it any more. An error
        // could only mean that the range is wrong, and then there is nothing to be done.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_aligned_and_writable() {
        let mut pages = Pages::new(PAGE + 1).expect("memory");
        assert_eq!((pages.len(), pages.as_ptr().addr() % PAGE), (2 * PAGE, 0));
        assert!(pages.iter().all(|byte| *byte == 0));
        pages[PAGE] = 7;
        let there = std::thread::spawn(move || pages[PAGE]).join().expect("no panic");
        assert_eq!(there, 7);
        assert_eq!(Pages::new(0).expect("memory").len(), PAGE);
    }

    #[test]
    fn memory_that_is_lost_is_empty_and_not_given_back() {
        let mut pages = Pages::new(PAGE).expect("memory");
        pages[7] = 9;
        let (start, len) = (pages.start, pages.len);
        pages.lose();
        assert!(pages.is_empty());
        drop(pages);
        // SAFETY: the mapping was not given back, and this is the only way to it by now.
        let still = unsafe { std::slice::from_raw_parts(start.as_ptr(), len) };
        assert_eq!((still[7], still.len()), (9, PAGE));
    }

    #[test]
    fn layers_are_counted() {
        static TWO: Layers = Layers::new(2);
        let (one, two) = (TWO.take(), TWO.take());
        assert!(one.is_some() && two.is_some() && TWO.take().is_none());
        drop(one);
        let again = TWO.take();
        assert!(again.is_some() && TWO.take().is_none());
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Pages::new(usize::MAX).is_err());
        assert!(Pages::new(1 << 60).is_err());
    }
}
