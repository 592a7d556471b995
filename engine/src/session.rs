//! A session: a sequence in the cache, and answers generated from it.

use crate::error::EngineError;
use crate::forward::{Executor, ExecutorOptions, Want};
use crate::model::Model;
use crate::sampler::{Sampler, SamplerOptions};
use crate::tokenizer::{Decoder, RenderSpecial, Tokenizer};
use aios_residency::{Phase, PhaseBytes};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When an answer ends.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The most tokens to generate; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Never choose an end-of-generation token.
    pub ignore_eos: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model chose an end-of-generation token.
    EndOfText,
    /// A stop text appeared.
    StopText,
    /// The limit on tokens was reached.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller asked to stop.
    Interrupted,
}

impl StopReason {
    /// The name in statistics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::StopText => "stop_text",
            Self::MaxTokens => "max_tokens",
            Self::ContextFull => "context_full",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What an answer cost.
#[derive(Clone, Debug)]
pub struct GenerationStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that were in the cache already.
    pub reused_tokens: usize,
    /// Tokens generated, the end-of-generation token not counted.
    pub generated_tokens: usize,
    /// Time spent on the prompt.
    pub prefill: Duration,
    /// Time spent on generating.
    pub decode: Duration,
    /// Bytes read for the prompt, counted.
    pub prefill_bytes: PhaseBytes,
    /// Bytes read while generating, counted.
    pub decode_bytes: PhaseBytes,
    /// Why the answer ended; `None` while it goes on.
    pub stop: Option<StopReason>,
}

/// A sequence of tokens in the cache of an executor.
#[derive(Debug)]
pub struct Session {
    executor: Executor,
    /// The tokens in the cache, in order.
    tokens: Vec<u32>,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// Those of [`Executor::new`].
    pub fn new(model: Arc<Model>, options: ExecutorOptions) -> Result<Self, EngineError> {
        Ok(Self { executor: Executor::new(model, options)?, tokens: Vec::new() })
    }

    /// The executor.
    pub const fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.executor.truncate(0);
    }

    /// Starts an answer to `prompt`. What `prompt` has in common with the sequence in the cache,
    /// from its start on, is not computed again.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::TokenId`],
    /// [`EngineError::Sampling`], and those of the tokenizer. The session is as before.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: SamplerOptions,
        limits: Limits,
    ) -> Result<Generation<'_>, EngineError> {
        let sampler = Sampler::new(sampling)?;
        let context = self.executor.context();
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt.len() > context {
            return Err(EngineError::PromptTooLong { tokens: prompt.len(), context });
        }
        let vocab = self.executor.model().config().vocab;
        if let Some(&id) = prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(EngineError::TokenId { id, vocab });
        }
        let model = Arc::clone(self.executor.model());
        model.tokenizer()?;
        // The last token is always computed, since its logits are needed.
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let reused = shared.min(prompt.len() - 1);
        self.tokens.truncate(reused);
        self.executor.truncate(reused);
        self.executor.reset_ledger();
        let stats = GenerationStats {
            prompt_tokens: prompt.len(),
            reused_tokens: reused,
            generated_tokens: 0,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            prefill_bytes: self.executor.ledger().phase(Phase::Prefill),
            decode_bytes: self.executor.ledger().phase(Phase::Decode),
            stop: None,
        };
        Ok(Generation {
            session: self,
            model,
            sampler,
            limits,
            history: prompt.to_vec(),
            logits: Vec::new(),
            held: String::new(),
            pending: Vec::new(),
            stats,
        })
    }
}

/// An answer being generated. Dropping it keeps what is in the cache.
#[derive(Debug)]
pub struct Generation<'s> {
    session: &'s mut Session,
    model: Arc<Model>,
    sampler: Sampler,
    limits: Limits,
    /// The prompt and what was generated.
    history: Vec<u32>,
    /// Logits of the last position computed.
    logits: Vec<f32>,
    /// Text that may be the start of a stop text.
    held: String,
    /// Generated tokens whose bytes end within a character.
    pending: Vec<u32>,
    stats: GenerationStats,
}

impl Generation<'_> {
    /// Generates a token and returns the text that is certain with it, which may be empty;
    /// `None` when the answer has ended. The first call reads the prompt. When `cancel` becomes
    /// true, the answer ends at the next token or pass.
    ///
    /// # Errors
    /// Those of [`Executor::forward`]; the answer has then ended.
    pub fn next_text(&mut self, cancel: &AtomicBool) -> Result<Option<String>, EngineError> {
        if self.stats.stop.is_some() {
            return Ok(None);
        }
        match self.step(cancel) {
            Ok(Some(text)) => Ok(Some(text)),
            Ok(None) => Ok(self.flush()),
            Err(EngineError::Cancelled) => {
                self.stats.stop = Some(StopReason::Interrupted);
                Ok(self.flush())
            }
            Err(error) => {
                self.stats.stop = Some(StopReason::Interrupted);
                Err(error)
            }
        }
    }

    /// What the answer has cost so far.
    pub fn stats(&self) -> GenerationStats {
        let ledger = self.session.executor.ledger();
        GenerationStats {
            prefill_bytes: ledger.phase(Phase::Prefill),
            decode_bytes: ledger.phase(Phase::Decode),
            ..self.stats.clone()
        }
    }

    /// The tokens generated.
    pub fn tokens(&self) -> &[u32] {
        &self.history[self.stats.prompt_tokens..]
    }

    /// One token; `None` if the answer ends before it, with the reason in `stats`.
    fn step(&mut self, cancel: &AtomicBool) -> Result<Option<String>, EngineError> {
        if self.limits.max_tokens == Some(self.stats.generated_tokens) {
            return self.end(StopReason::MaxTokens);
        }
        // The first step reads the prompt, each later one the token of the step before.
        let ahead = self.history.len() - self.session.tokens.len();
        if self.history.len() > self.session.executor.context() {
            return self.end(StopReason::ContextFull);
        }
        let prefill = self.logits.is_empty();
        let started = Instant::now();
        let result = self.run(ahead, if prefill { Phase::Prefill } else { Phase::Decode }, cancel);
        let slot = if prefill { &mut self.stats.prefill } else { &mut self.stats.decode };
        *slot += started.elapsed();
        result?;
        let started = Instant::now();
        let model = Arc::clone(&self.model);
        let tokenizer = model.tokenizer()?;
        let banned = if self.limits.ignore_eos { tokenizer.end_of_generation_ids() } else { &[] };
        let id = self.sampler.sample(&self.logits, &self.history, banned, self.history.len());
        let text = if tokenizer.is_end_of_generation(id) {
            self.end(StopReason::EndOfText)
        } else {
            self.accept(tokenizer, id)
        };
        self.stats.decode += started.elapsed();
        text
    }

    fn end(&mut self, reason: StopReason) -> Result<Option<String>, EngineError> {
        self.stats.stop = Some(reason);
        Ok(None)
    }

    /// Runs the last `count` tokens of the history and keeps the last one's logits.
    fn run(&mut self, count: usize, phase: Phase, cancel: &AtomicBool) -> Result<(), EngineError> {
        let Session { executor, tokens } = &mut *self.session;
        let batch = executor.options().batch;
        let new = &self.history[self.history.len() - count..];
        let passes = new.len().div_ceil(batch);
        for (i, chunk) in new.chunks(batch).enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(EngineError::Cancelled);
            }
            let want = if i + 1 < passes { Want::None } else { Want::Last };
            let logits = &mut self.logits;
            executor.forward(chunk, phase, want, &mut |_, row| {
                logits.clear();
                logits.extend_from_slice(row);
                Ok(())
            })?;
            tokens.extend_from_slice(chunk);
        }
        Ok(())
    }

    /// Takes a token into the answer and returns the text that is certain now.
    fn accept(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<Option<String>, EngineError> {
        self.history.push(id);
        self.stats.generated_tokens += 1;
        self.pending.push(id);
        let mut decoder = Decoder::new(tokenizer, RenderSpecial::No);
        let mut text = String::new();
        for &id in &self.pending {
            text += &decoder.push(id).map_err(Arc::new)?;
        }
        // A character may span tokens: those are decoded again, together, with the next.
        if decoder.is_holding() {
            return Ok(Some(String::new()));
        }
        self.pending.clear();
        self.held += &text;
        Ok(Some(self.release()))
    }

    /// Takes from `held` what no stop text can reach any more; ends the answer at a stop text.
    fn release(&mut self) -> String {
        let stops = self.limits.stop.iter().filter(|stop| !stop.is_empty());
        let found = stops.clone().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            self.stats.stop = Some(StopReason::StopText);
            return std::mem::take(&mut self.held);
        }
        let reach = |stop: &String| {
            let longest = (1..stop.len()).rev().filter(|&len| stop.is_char_boundary(len));
            longest.into_iter().find(|&len| self.held.ends_with(&stop[..len])).unwrap_or(0)
        };
        let kept = stops.map(reach).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text that was held back, when the answer has ended.
    fn flush(&mut self) -> Option<String> {
        let mut text = std::mem::take(&mut self.held);
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
        Some(text).filter(|text| !text.is_empty())
    }
}
