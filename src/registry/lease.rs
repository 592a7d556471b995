//! The right to use a loaded model.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Backend, Held};

/// A loaded model and how many use it.
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) held: Held,
    backend: Box<dyn Backend>,
    uses: AtomicUsize,
}

impl Slot {
    pub(super) fn new(name: String, backend: Box<dyn Backend>) -> Self {
        Self { name, held: backend.held(), backend, uses: AtomicUsize::new(0) }
    }

    /// How many leases there are. New ones are made under the registry's lock alone, so that 0
    /// under that lock stays 0.
    pub(super) fn uses(&self) -> usize {
        self.uses.load(Ordering::Acquire)
    }

    pub(super) fn backend(&self) -> &(dyn Backend + 'static) {
        &*self.backend
    }

    pub(super) fn lease(self: &Arc<Self>) -> Lease<dyn Backend> {
        self.uses.fetch_add(1, Ordering::AcqRel);
        Lease { slot: Arc::clone(self), project: Slot::backend }
    }
}

/// The right to use a model: as long as it lives the model stays loaded, whatever the registry
/// does. It may be cloned, and sent to other threads.
pub struct Lease<B: ?Sized + 'static> {
    slot: Arc<Slot>,
    project: fn(&Slot) -> &B,
}

impl<B: ?Sized> Lease<B> {
    /// The name of the model in the registry.
    pub fn name(&self) -> &str {
        &self.slot.name
    }
}

impl<B: ?Sized> Deref for Lease<B> {
    type Target = B;

    fn deref(&self) -> &B {
        (self.project)(&self.slot)
    }
}

impl<B: ?Sized> Clone for Lease<B> {
    fn clone(&self) -> Self {
        self.slot.uses.fetch_add(1, Ordering::AcqRel);
        Self { slot: Arc::clone(&self.slot), project: self.project }
    }
}

impl<B: ?Sized> Drop for Lease<B> {
    fn drop(&mut self) {
        self.slot.uses.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<B: ?Sized> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("name", &self.slot.name).finish_non_exhaustive()
    }
}
