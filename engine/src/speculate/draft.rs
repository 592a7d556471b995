//! The draft model: a smaller model with the same vocabulary, which runs ahead of the target.

use super::{Drafter, Kind, Target};
use crate::cache::KvTiering;
use crate::error::EngineError;
use crate::forward::{Executor, ExecutorOptions, Want};
use crate::model::Model;
use aios_residency::{Phase, PhaseBytes};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a model cannot draft for another.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// The vocabularies have different sizes.
    #[error(
        "the draft model's vocabulary has {draft} tokens and the model's {target}; \
         a draft model must have the same vocabulary"
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Size { draft: usize, target: usize },
    /// A token is spelled differently.
    #[error(
        "token {id} is {draft:?} in the draft model's vocabulary and {target:?} in the model's; \
         a draft model must have the same vocabulary"
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Spelling { id: u32, draft: String, target: String },
    /// It would cost more than it saves.
    #[error(
        "the draft model reads {draft} bytes a token and the model {target}; \
         a draft model must be the smaller one"
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Larger { draft: u64, target: u64 },
    /// The draft model cannot run.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A draft model and its own cache, which follows the target's text.
#[derive(Debug)]
pub struct DraftModel {
    executor: Executor,
    /// The tokens in its cache.
    tokens: Vec<u32>,
    /// Tokens of the text so far.
    text_len: usize,
    logits: Vec<f32>,
}

impl DraftModel {
    /// `draft` drafting for `target`. Its context is as long as `options` say, or as it was made
    /// for if that is shorter; beyond that it proposes nothing.
    ///
    /// # Errors
    /// [`DraftError`].
    pub fn new(
        draft: Arc<Model>,
        target: &Model,
        options: ExecutorOptions,
    ) -> Result<Self, DraftError> {
        same_vocabulary(&draft, target)?;
        let bytes = |model: &Model| model.bytes_per_token().iter().map(|(_, bytes)| bytes).sum();
        let (of_draft, of_target): (u64, u64) = (bytes(&draft), bytes(target));
        if of_draft >= of_target {
            return Err(DraftError::Larger { draft: of_draft, target: of_target });
        }
        Ok(Self::unchecked(draft, options)?)
    }

    /// Any model as draft, whether it fits or not.
    pub(super) fn unchecked(
        draft: Arc<Model>,
        options: ExecutorOptions,
    ) -> Result<Self, EngineError> {
        let context = options.context.min(draft.config().context.max(1));
        // A draft's cache is small, and its guesses are better with all of it.
        let (kv_tiers, kv_budget) = (KvTiering::Off, None);
        let options = ExecutorOptions { context, kv_tiers, kv_budget, ..options };
        let executor = Executor::new(draft, options)?;
        Ok(Self { executor, tokens: Vec::new(), text_len: 0, logits: Vec::new() })
    }

    /// The model.
    pub const fn model(&self) -> &Arc<Model> {
        self.executor.model()
    }

    /// The positions up to which it drafts.
    pub fn context(&self) -> usize {
        self.executor.context()
    }

    /// The executor, to be timed; what is in its cache is forgotten.
    pub fn executor(&mut self) -> &mut Executor {
        self.tokens.clear();
        self.executor.truncate(0);
        &mut self.executor
    }

    /// The tokens of `history` that are in its cache and need not be read; its last token always
    /// is, since the logits behind it are needed.
    fn shared(&self, history: &[u32]) -> usize {
        let shared = self.tokens.iter().zip(history).take_while(|(a, b)| a == b).count();
        shared.min(history.len().saturating_sub(1))
    }

    /// Runs what `history` has beyond the cache, and keeps the logits of its end.
    fn follow(&mut self, history: &[u32], cancel: &AtomicBool) -> Result<(), EngineError> {
        let shared = self.shared(history);
        self.tokens.truncate(shared);
        self.executor.truncate(shared);
        let new = &history[shared..];
        let batch = self.executor.options().batch;
        let passes = new.len().div_ceil(batch);
        for (i, chunk) in new.chunks(batch).enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(EngineError::Cancelled);
            }
            let want = if i + 1 < passes { Want::None } else { Want::Last };
            let logits = &mut self.logits;
            self.executor.forward(chunk, Phase::Draft, want, &mut |_, row| {
                logits.clear();
                logits.extend_from_slice(row);
                Ok(())
            })?;
            self.tokens.extend_from_slice(chunk);
        }
        Ok(())
    }
}

impl Drafter for DraftModel {
    fn name(&self) -> &'static str {
        "draft"
    }

    fn restart(&mut self, history: &[u32]) {
        self.text_len = history.len();
        if history.is_empty() {
            self.executor();
        }
    }

    fn push(&mut self, _token: u32) {
        self.text_len += 1;
    }

    fn kinds(&self) -> &'static [Kind] {
        &[Kind { name: "draft model", first: 0.65, later: 0.7 }]
    }

    fn kind(&self) -> Option<usize> {
        (self.text_len < self.executor.context()).then_some(0)
    }

    fn unread(&self, history: &[u32]) -> Option<usize> {
        Some(history.len() - self.shared(history))
    }

    /// Each token is what the target's sampler takes from the draft model's logits. `goes_on` is
    /// given the chance, as the draft model sees it, that all tokens so far are the most likely.
    fn draft(
        &mut self,
        target: &mut Target<'_>,
        most: usize,
        goes_on: &dyn Fn(f64, usize) -> bool,
        out: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        let most = most.min(self.executor.context().saturating_sub(target.history.len()));
        let mut chance = 1.0;
        let mut history = target.history.to_vec();
        for drafted in 0..most {
            if drafted > 0 && !goes_on(chance, drafted) {
                break;
            }
            self.follow(&history, target.cancel)?;
            let token = target.sampler.sample(&self.logits, &history, target.banned, history.len());
            chance *= probability(&self.logits, token);
            history.push(token);
            out.push(token);
        }
        Ok(())
    }

    fn bytes(&self) -> Option<PhaseBytes> {
        Some(self.executor.ledger().phase(Phase::Draft))
    }

    fn forget_bytes(&mut self) {
        self.executor.reset_ledger();
    }

    fn kept_bytes(&self) -> u64 {
        self.executor.kept().map_or(0, |kept| kept.kept_bytes)
    }
}

/// The softmax of `logits` at `token`.
fn probability(logits: &[f32], token: u32) -> f64 {
    let own = logits[token as usize];
    // Half precision would do: what is below e^−20 of the token's own weight does not show.
    let sum: f64 = logits
        .iter()
        .filter(|&&logit| logit > own - 20.0)
        .map(|&logit| libm::exp(f64::from(logit - own)))
        .sum();
    1.0 / sum.max(f64::MIN_POSITIVE)
}

/// Whether every token has the same spelling in both vocabularies. Rows of an embedding that fill
/// it up are no tokens.
fn same_vocabulary(draft: &Model, target: &Model) -> Result<(), DraftError> {
    let ours = draft.tokenizer().map_err(EngineError::from)?;
    let theirs = target.tokenizer().map_err(EngineError::from)?;
    let (len, other) = (ours.vocab_len(), theirs.vocab_len());
    if len != other {
        return Err(DraftError::Size { draft: len, target: other });
    }
    for id in 0..u32::try_from(len).unwrap_or(u32::MAX) {
        let (a, b) = (ours.spelling(id), theirs.spelling(id));
        let (Ok(a), Ok(b)) = (a, b) else { continue };
        if a != b {
            return Err(DraftError::Spelling { id, draft: a.to_owned(), target: b.to_owned() });
        }
    }
    Ok(())
}
