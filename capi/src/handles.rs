//! Contexts by handle. A handle is a number that is never given twice, so that one which is wrong
//! or was destroyed is found out without touching memory. A context that is destroyed while another
//! thread is in a call lives until that call is done.

use crate::context::Context;
use crate::status::{AIOS_BAD_HANDLE, Failure};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A context: a model that is loaded, and a sequence of tokens. 0 is never one.
pub type Handle = u64;

static CONTEXTS: RwLock<BTreeMap<Handle, Arc<Context>>> = RwLock::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

fn unknown(handle: Handle) -> Failure {
    Failure::new(AIOS_BAD_HANDLE, format!("no context has the handle {handle}"))
}

/// Keeps a context; its handle.
pub(crate) fn insert(context: Context) -> Handle {
    let handle = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut contexts = CONTEXTS.write().unwrap_or_else(PoisonError::into_inner);
    contexts.insert(handle, Arc::new(context));
    handle
}

/// The context of this handle.
pub(crate) fn find(handle: Handle) -> Result<Arc<Context>, Failure> {
    let contexts = CONTEXTS.read().unwrap_or_else(PoisonError::into_inner);
    contexts.get(&handle).cloned().ok_or_else(|| unknown(handle))
}

/// Forgets a context. It is dropped outside of the lock, since that joins threads.
pub(crate) fn remove(handle: Handle) -> Result<(), Failure> {
    let removed = CONTEXTS.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    removed.map(drop).ok_or_else(|| unknown(handle))
}
