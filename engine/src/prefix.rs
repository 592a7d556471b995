//! The beginning that sessions have in common, such as instructions before a conversation: read
//! once, and kept in memory once (SPEC B24).

use crate::error::EngineError;
use crate::forward::{ExecutorOptions, Positions};
use crate::model::Model;
use crate::session::Session;
use std::sync::{Arc, Mutex, PoisonError};

/// The first tokens of a session with their keys and values, for other sessions to begin with.
#[derive(Debug)]
pub struct Prefix {
    tokens: Vec<u32>,
    positions: Positions,
}

impl Prefix {
    /// Its tokens, a multiple of 64 of them.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.positions.bytes()
    }
}

impl Session {
    /// The first `tokens` tokens of its sequence, in whole pages of 64; `None` if that is none, or
    /// the cache has tiers.
    ///
    /// # Errors
    /// [`EngineError::Prefix`].
    pub fn prefix(&self, tokens: usize) -> Result<Option<Prefix>, EngineError> {
        let shared = self.executor().share(tokens.min(self.sequence().len()));
        let shared = shared.map_err(EngineError::Prefix)?;
        Ok(shared.map(|positions| {
            let tokens = self.sequence()[..positions.len()].to_vec();
            Prefix { tokens, positions }
        }))
    }

    /// A session that begins with `prefix`, or an empty one if it would not have computed the same:
    /// of another model, with other cache types, another context, or with tiers. What its first
    /// prompt has in common with it is not computed again, and takes memory once for all sessions
    /// that have it.
    ///
    /// # Errors
    /// Those of [`Session::new`].
    pub fn beginning_with(
        model: Arc<Model>,
        options: ExecutorOptions,
        prefix: &Prefix,
    ) -> Result<Self, EngineError> {
        let mut session = Self::new(Arc::clone(&model), options.clone())?;
        if !session.executor().can_begin_with(&prefix.positions) {
            return Ok(session);
        }
        match session.begin(&prefix.positions, &prefix.tokens) {
            Ok(()) => Ok(session),
            Err(error) => {
                tracing::warn!("a prefix is read again, since it could not be shared: {error}");
                drop(session);
                Self::new(model, options)
            }
        }
    }
}

/// What the sessions of a model have turned out to begin with, of what is the same for all of them
/// whoever asks: nothing else that is said ever comes here.
#[derive(Debug, Default)]
pub struct PrefixShelf(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    /// What the session that was shown last had in common with all.
    last: Vec<u32>,
    prefix: Option<Arc<Prefix>>,
}

impl PrefixShelf {
    /// What new sessions should begin with.
    pub fn prefix(&self) -> Option<Arc<Prefix>> {
        self.lock().prefix.clone()
    }

    /// Is shown a session that has read its first prompt, whose first `common` tokens hold nothing
    /// of who asked it. What they have in common with those of the session before, in whole pages,
    /// is kept for those that follow.
    pub fn show(&self, session: &Session, common: usize) {
        let mut shelf = self.lock();
        let tokens = &session.sequence()[..common.min(session.sequence().len())];
        let again = shelf.last.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        shelf.last = tokens.to_vec();
        let known = shelf.prefix.as_ref().is_some_and(|prefix| {
            // The same beginning, or a longer one that still holds, and of use to such a session.
            tokens.starts_with(&prefix.tokens)
                && prefix.tokens.len() >= again / 64 * 64
                && session.executor().is_served_by(&prefix.positions)
        });
        if known {
            return;
        }
        match session.prefix(again) {
            Ok(Some(prefix)) => shelf.prefix = Some(Arc::new(prefix)),
            Ok(None) => {}
            Err(error) => tracing::warn!("no prefix is shared: {error}"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
