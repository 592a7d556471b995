//! A mutable slice that several threads write, each to its own part.

use std::marker::PhantomData;

/// A slice whose disjoint ranges may be borrowed mutably from several threads.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]` whose users promise, in `range`, not to overlap.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Takes the slice for as long as any of its ranges lives.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `len` elements from `start`.
    ///
    /// # Panics
    /// If they are not within the slice.
    ///
    /// # Safety
    /// No two ranges that live at the same time overlap.
    #[inline(always)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: the range is within the slice, which is borrowed for 'a; the caller promises
        // that no other live range overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
