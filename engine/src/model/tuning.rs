//! What a plan says of caches and prefetching (SPEC D21, D23, D24).

use super::Model;
use aios_kernels::Isa;

impl Model {
    /// Has the executors that are made from now on keep at most so many bytes of matrices in the
    /// last-level cache.
    pub fn adopt_keep(&self, room: u64) {
        // A second plan changes nothing: what runs already stays as it is.
        let _ = self.keep.set(room);
    }

    /// What it has adopted of that.
    pub fn keep_room(&self) -> Option<u64> {
        self.keep.get().copied()
    }

    /// Has the executors that are made from now on ask for weights so many bytes ahead of use,
    /// where they compute with the best instruction set that there is.
    pub fn adopt_ahead(&self, bytes: usize) {
        // As above.
        let _ = self.ahead.set(bytes);
    }

    /// Has the executors that are made from now on, and for which no other budget of memory is
    /// asked for, keep to this one.
    pub fn adopt_budget(&self, bytes: u64) {
        // As above.
        let _ = self.budget.set(bytes);
    }

    /// The budget that it has adopted.
    pub fn planned_budget(&self) -> Option<u64> {
        self.budget.get().copied()
    }

    /// `isa` as an executor uses it.
    pub(crate) fn tuned(&self, isa: Isa) -> Isa {
        match self.ahead.get() {
            Some(&bytes) if isa == Isa::detect() => isa.with_ahead(bytes),
            _ => isa,
        }
    }
}
