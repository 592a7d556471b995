//! Anonymous memory in whole pages: for hot blocks, for the buffers that the disk fills, and for
//! the KV cache.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};
use rustix::param::page_size;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// Bytes that the start and the length of a read from disk are multiples of.
pub(crate) const PAGE: usize = 4096;

/// Zeroed memory that starts at a page and is a whole number of pages.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
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
        Ok(Self { start, len })
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
    /// The operating system's; what is at `range` is then lost, and this value must not be read.
    ///
    /// # Panics
    /// If the range is not within this memory, or one of them is not of whole pages.
    pub(crate) fn lay_over(
        &mut self,
        range: Range<usize>,
        file: &File,
        offset: usize,
    ) -> io::Result<()> {
        let page = page_size();
        assert!(range.start < range.end && range.end <= self.len);
        assert!([range.start, range.end, offset].iter().all(|at| at.is_multiple_of(page)));
        let (access, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
        // SAFETY: the range is within this value's own mapping, which nothing borrows from while
        // `self` is borrowed mutably.
        unsafe {
            let start = self.start.as_ptr().add(range.start).cast();
            mmap(start, range.len(), access, flags, file, offset as u64)?;
        }
        Ok(())
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
        // `self`; writing needs `&mut self`.
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
    fn an_impossible_size_is_an_error() {
        assert!(Pages::new(usize::MAX).is_err());
        assert!(Pages::new(1 << 60).is_err());
    }
}
