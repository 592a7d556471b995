//! What a system remembers of what it was told before.

use std::sync::Arc;

use crate::memory::{
    Backend, Budget, Memory, Mode, Question, Retrieval, Retriever, now_ms, retriever,
};
use crate::persona::CountTokens;
use crate::router::Route;

/// A memory, or why there is none.
pub enum Recall {
    /// None is wanted.
    Off,
    /// One that is asked.
    By(Box<dyn Retriever>),
    /// One that was wanted and cannot be used.
    Broken {
        /// What was to be asked.
        backend: Backend,
        /// Why it is not.
        reason: String,
    },
}

impl Recall {
    /// What `memory` knows, chosen by `backend`; or a broken one, if it could not be opened.
    pub fn of(backend: Backend, memory: Result<Arc<Memory>, String>) -> Self {
        match memory {
            Ok(memory) => Self::By(retriever(backend, memory)),
            Err(reason) => Self::Broken { backend, reason },
        }
    }

    /// The fragments for `question` within the tier's budget and `tokens` tokens, which
    /// `counter` counts; `None` if nothing is to be remembered.
    pub(super) fn ask(
        &self,
        question: &str,
        route: &Route,
        tokens: usize,
        counter: &dyn CountTokens,
    ) -> Option<Retrieval> {
        let limit = usize::try_from(route.budget.fragments).unwrap_or(usize::MAX);
        match self {
            Self::Off => None,
            Self::Broken { backend, reason } => Some(Retrieval::failed(*backend, reason)),
            // The tier allows none, so none is looked for.
            Self::By(retriever) if limit == 0 => Some(nothing(retriever.backend())),
            Self::By(retriever) => {
                let count = |text: &str| counter.tokens(text);
                let budget = Some(Budget { tokens, count: &count });
                let (text, limit, now_ms) = (question, Some(limit), now_ms());
                Some(retriever.retrieve_or_note(&Question { text, limit, budget, now_ms }))
            }
        }
    }

    /// Notes that the fragments `ids` served an answer; says so if that cannot be kept.
    pub(super) fn note_use(&self, ids: &[i64]) -> Option<String> {
        match self {
            Self::By(retriever) if !ids.is_empty() => {
                let noted = retriever.record_use(ids, now_ms());
                noted.err().map(|error| format!("memory does not note its use: {error}"))
            }
            _ => None,
        }
    }
}

fn nothing(backend: Backend) -> Retrieval {
    Retrieval {
        backend,
        mode: Mode::Bm25,
        embedder: None,
        fragments_found: 0,
        fragments_relevant: 0,
        fragments: Vec::new(),
        note: None,
    }
}
