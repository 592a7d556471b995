//! First positions that several executors have in common (SPEC B24).

use super::{Executor, StateDigest, Trace};
use crate::cache::KvTiering;
use crate::model::{FfnThresholds, Model};
use aios_kernels::{BLOCK, CacheType};
use aios_residency::SharedPages;
use std::io;
use std::sync::{Arc, Weak};

/// Keys and values of the first positions of an executor, in whole pages of 64.
#[derive(Debug)]
pub(crate) struct Positions {
    pages: SharedPages,
    len: usize,
    /// The digests of their states, where those were digested.
    chain: Option<Vec<StateDigest>>,
    computed: Computed,
}

/// All that keys and values depend on besides the tokens.
#[derive(Debug)]
struct Computed {
    model: Weak<Model>,
    thresholds: Option<Arc<FfnThresholds>>,
    cache_types: [CacheType; 2],
    /// Rotations may depend on how long the context is.
    context: usize,
    exact: bool,
}

impl Computed {
    fn of(executor: &Executor) -> Self {
        let options = executor.options();
        Self {
            model: Arc::downgrade(executor.model()),
            thresholds: executor.thresholds().cloned(),
            cache_types: [options.cache_k, options.cache_v],
            context: executor.context(),
            exact: options.exact,
        }
    }

    fn is_as(&self, other: &Self) -> bool {
        let same = match (&self.thresholds, &other.thresholds) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        same && Weak::ptr_eq(&self.model, &other.model)
            && (self.cache_types, self.context, self.exact)
                == (other.cache_types, other.context, other.exact)
    }
}

impl Positions {
    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Bytes of their keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.bytes()
    }
}

impl Executor {
    /// A copy of the first `positions` positions, in whole pages; `None` if that is none, or the
    /// cache has tiers.
    ///
    /// # Errors
    /// The operating system's, such as that there is no memory.
    pub(crate) fn share(&self, positions: usize) -> io::Result<Option<Positions>> {
        let len = positions.min(self.len) / BLOCK * BLOCK;
        let Some(pages) = (len > 0).then(|| self.cache.share(len)).flatten() else {
            return Ok(None);
        };
        let chain = self.trace.as_ref().and_then(|trace| trace.first(len));
        Ok(Some(Positions { pages: pages?, len, chain, computed: Computed::of(self) }))
    }

    /// Whether it would have computed these as they are.
    pub(crate) fn can_begin_with(&self, positions: &Positions) -> bool {
        self.options().kv_tiers == KvTiering::Off && positions.computed.is_as(&Computed::of(self))
    }

    /// Whether another executor like this one can begin with these, and digests states from there
    /// if this one does.
    pub(crate) fn is_served_by(&self, positions: &Positions) -> bool {
        self.can_begin_with(positions) && (self.trace.is_none() || positions.chain.is_some())
    }

    /// Begins with these positions; where their states were digested, it goes on digesting.
    ///
    /// # Errors
    /// The operating system's; the executor must not be used then.
    ///
    /// # Panics
    /// Unless [`Self::can_begin_with`] them.
    pub(crate) fn begin_with(&mut self, positions: &Positions) -> io::Result<()> {
        assert!(self.can_begin_with(positions));
        self.truncate(0);
        self.cache.take(&positions.pages)?;
        self.len = positions.len;
        self.trace = positions.chain.as_ref().map(|chain| {
            let mut trace = Trace::new(self.context(), self.model.config().d_model);
            trace.start_from(chain);
            trace
        });
        Ok(())
    }
}
