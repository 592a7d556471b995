//! A session: a sequence in the cache, and answers generated from it.

use crate::error::EngineError;
use crate::forward::{
    Executor, ExecutorOptions, Positions, ScreenStats, StateDigest, Want, ZeroStats,
};
use crate::model::Model;
use crate::sampler::{Sampler, SamplerOptions};
use crate::speculate::{SpecStats, Speculation, Target};
use crate::tokenizer::{Decoder, RenderSpecial, Tokenizer};
use aios_residency::{Phase, PhaseBytes, ResidencyStats};
use std::collections::VecDeque;
use std::io;
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
    /// Bytes read, counted, of every phase that has had a pass.
    pub bytes: Vec<PhaseBytes>,
    /// Tokens that passes after the prompt's have given, an end-of-generation token counted.
    pub decoded_tokens: usize,
    /// What was drafted, where speculation is on.
    pub speculation: Option<SpecStats>,
    /// Where the weights live, and what passes have read of them.
    pub residency: ResidencyStats,
    /// What screening the head came to; `None` if it is not screened.
    pub screen: Option<ScreenStats>,
    /// What skipping zero neurons came to; `None` if none is skipped.
    pub zeros: Option<ZeroStats>,
    /// The digest of the final normed states (SPEC Z5) of the positions from which tokens of the
    /// answer were chosen, an end-of-generation token included, and of all before them; `None`
    /// where no token was chosen or nothing is digested.
    pub states: Option<StateDigest>,
    /// Why the answer ended; `None` while it goes on.
    pub stop: Option<StopReason>,
}

impl GenerationStats {
    /// Bytes read for each token after the first, drafting included, counted; `None` if there is
    /// no such token.
    pub fn bytes_per_token(&self) -> Option<f64> {
        let decoding = self.bytes.iter().filter(|bytes| bytes.phase != Phase::Prefill);
        let read: u64 = decoding.map(|bytes| bytes.weights + bytes.kv_read).sum();
        (self.decoded_tokens > 0).then(|| read as f64 / self.decoded_tokens as f64)
    }

    /// Bytes read of the disk for each token after the first; `None` if there is no such token.
    pub fn disk_bytes_per_token(&self) -> Option<f64> {
        let decoding = self.bytes.iter().filter(|bytes| bytes.phase != Phase::Prefill);
        let read: u64 = decoding.map(|bytes| bytes.disk).sum();
        (self.decoded_tokens > 0).then(|| read as f64 / self.decoded_tokens as f64)
    }
}

/// A sequence of tokens in the cache of an executor.
#[derive(Debug)]
pub struct Session {
    executor: Executor,
    /// The tokens in the cache, in order.
    tokens: Vec<u32>,
    speculation: Option<Speculation>,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// Those of [`Executor::new`].
    pub fn new(model: Arc<Model>, options: ExecutorOptions) -> Result<Self, EngineError> {
        let executor = Executor::new(model, options)?;
        Ok(Self { executor, tokens: Vec::new(), speculation: None })
    }

    /// The tokens in its cache, in order.
    pub fn sequence(&self) -> &[u32] {
        &self.tokens
    }

    /// Begins with these positions, which hold `tokens`.
    ///
    /// # Errors
    /// The operating system's; the session must not be used then.
    pub(crate) fn begin(&mut self, positions: &Positions, tokens: &[u32]) -> io::Result<()> {
        self.executor.begin_with(positions)?;
        self.tokens = tokens.to_vec();
        Ok(())
    }

    /// The executor.
    pub const fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The executor, to be timed; what is in its cache is forgotten.
    pub fn idle_executor(&mut self) -> &mut Executor {
        self.clear();
        &mut self.executor
    }

    /// Answers are drafted from now on, or no longer. It changes their speed, not their tokens.
    pub fn speculate(&mut self, speculation: Option<Speculation>) {
        if let Some(room) = self.executor.model().keep_room() {
            // A draft model makes several passes in one of its target's.
            let drafters = speculation.as_ref().map_or(0, Speculation::kept_bytes);
            self.executor.keep_in_cache(Some(room.saturating_sub(drafters)));
        }
        self.speculation = speculation;
    }

    /// How answers are drafted, if they are.
    pub const fn speculation(&self) -> Option<&Speculation> {
        self.speculation.as_ref()
    }

    /// Digests the states of every position from now on, or no longer, as
    /// [`Executor::trace_states`] does; if that changes anything, the sequence is forgotten.
    pub fn trace_states(&mut self, on: bool) {
        self.executor.trace_states(on);
        self.tokens.truncate(self.executor.len());
    }

    /// Forgets the sequence, and what drafters know of it.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.executor.truncate(0);
        if let Some(speculation) = &mut self.speculation {
            speculation.restart(&[]);
        }
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
        self.executor.truncate(reused);
        // A cache with tiers may have to go back farther.
        let reused = self.executor.len();
        self.tokens.truncate(reused);
        self.executor.reset_ledger();
        let stats = GenerationStats {
            prompt_tokens: prompt.len(),
            reused_tokens: reused,
            generated_tokens: 0,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            bytes: Vec::new(),
            decoded_tokens: 0,
            speculation: None,
            residency: ResidencyStats::default(),
            screen: None,
            zeros: None,
            states: None,
            stop: None,
        };
        if let Some(speculation) = &mut self.speculation {
            speculation.restart(prompt);
        }
        Ok(Generation {
            session: self,
            model,
            sampler,
            limits,
            history: prompt.to_vec(),
            ready: VecDeque::new(),
            prompt_read: false,
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
    /// Tokens that were taken and are not in the history yet.
    ready: VecDeque<u32>,
    /// Whether the prompt has been read.
    prompt_read: bool,
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
        let executor = &self.session.executor;
        let ledger = executor.ledger();
        let speculation = self.session.speculation.as_ref();
        let own = Phase::ALL.map(|phase| ledger.phase(phase));
        let drafted = speculation.map(Speculation::bytes).unwrap_or_default();
        GenerationStats {
            bytes: own.into_iter().chain(drafted).filter(|bytes| bytes.passes > 0).collect(),
            speculation: speculation.map(|speculation| speculation.stats().clone()),
            residency: executor.residency(),
            screen: executor.screens_head().then(|| executor.screen_stats()),
            zeros: executor.skips_zeros().then(|| executor.zero_stats()),
            states: self.states(),
            ..self.stats.clone()
        }
    }

    /// The digest of the states that the answer so far was chosen from. What speculation has read
    /// beyond the answer's end does not count, so that this is the digest of plain decoding.
    fn states(&self) -> Option<StateDigest> {
        let ended = self.stats.stop == Some(StopReason::EndOfText);
        let chosen = self.stats.generated_tokens + usize::from(ended);
        let positions = self.stats.prompt_tokens + chosen.checked_sub(1)?;
        self.session.executor.state_digest(positions)
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
        if self.history.len() > self.session.executor.context() {
            return self.end(StopReason::ContextFull);
        }
        let decoding = self.prompt_read;
        if !decoding {
            self.read_prompt(cancel)?;
        }
        let started = Instant::now();
        if self.ready.is_empty() {
            self.pass(cancel)?;
        }
        let text = match self.ready.pop_front() {
            Some(id) => self.take(id, decoding),
            None => self.end(StopReason::Interrupted),
        };
        self.stats.decode += started.elapsed();
        text
    }

    /// A token that was sampled becomes part of the answer, or ends it.
    fn take(&mut self, id: u32, decoding: bool) -> Result<Option<String>, EngineError> {
        self.stats.decoded_tokens += usize::from(decoding);
        let model = Arc::clone(&self.model);
        let tokenizer = model.tokenizer()?;
        if tokenizer.is_end_of_generation(id) {
            return self.end(StopReason::EndOfText);
        }
        self.accept(tokenizer, id)
    }

    fn end(&mut self, reason: StopReason) -> Result<Option<String>, EngineError> {
        self.stats.stop = Some(reason);
        Ok(None)
    }

    /// Runs what the cache lacks of the prompt and samples the token that follows it.
    fn read_prompt(&mut self, cancel: &AtomicBool) -> Result<(), EngineError> {
        let started = Instant::now();
        let Self { session, history, sampler, ready, .. } = self;
        let model = Arc::clone(&self.model);
        let banned = banned(model.tokenizer()?, &self.limits);
        let Session { executor, tokens, speculation } = &mut **session;
        let batch = executor.options().batch;
        let new = &history[tokens.len()..];
        let passes = new.len().div_ceil(batch);
        for (i, chunk) in new.chunks(batch).enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(EngineError::Cancelled);
            }
            let want = if i + 1 < passes { Want::None } else { Want::Last };
            let needs = sampler.needs(banned.len());
            executor.choose(chunk, Phase::Prefill, want, needs, &mut |_, scores| {
                let id = sampler.choose(scores, history, banned, history.len());
                ready.push_back(id);
                Ok(true)
            })?;
            tokens.extend_from_slice(chunk);
        }
        if let (Some(speculation), Some(&id)) = (speculation, ready.front()) {
            speculation.push(id);
        }
        self.prompt_read = true;
        self.stats.prefill += started.elapsed();
        Ok(())
    }

    /// One pass over the last token and those drafted to follow it. Each position's token is
    /// sampled as without drafts; the first that was not drafted ends it.
    fn pass(&mut self, cancel: &AtomicBool) -> Result<(), EngineError> {
        if cancel.load(Ordering::Relaxed) {
            return Err(EngineError::Cancelled);
        }
        let Self { session, history, sampler, ready, .. } = self;
        let model = Arc::clone(&self.model);
        let banned = banned(model.tokenizer()?, &self.limits);
        let Session { executor, tokens, speculation } = &mut **session;
        let left = self
            .limits
            .max_tokens
            .map_or(usize::MAX, |most| most.saturating_sub(self.stats.generated_tokens));
        // Drafted tokens need a place in the cache, and the pass gives one token more than these.
        let room = (executor.context() - history.len()).min(left.saturating_sub(1));
        let (before, known) = (tokens.len(), history.len());
        let mut run = history[before..].to_vec();
        if let Some(speculation) = speculation {
            let mut target = Target { history, sampler, banned, cancel };
            run.extend(speculation.propose(&mut target, room, model.config().vocab)?);
        }
        let drafted = run.len() - (known - before);
        let started = Instant::now();
        let phase = if drafted > 0 { Phase::Verify } else { Phase::Decode };
        let needs = sampler.needs(banned.len());
        let verified = executor.choose(&run, phase, Want::All, needs, &mut |position, scores| {
            if position + 1 < known {
                return Ok(true);
            }
            let id = sampler.choose(scores, history, banned, history.len());
            history.push(id);
            Ok(run.get(position - before + 1) == Some(&id))
        });
        ready.extend(history.drain(known..));
        match verified {
            Ok(()) => {
                // What was drafted and not taken leaves no trace.
                let kept = &run[..known - before + ready.len() - 1];
                executor.truncate(before + kept.len());
                tokens.extend_from_slice(kept);
            }
            Err(error) if ready.is_empty() => return Err(error),
            // The tokens before the error come first, as without drafts. The cache is as before
            // the pass, and the next one finds the error again.
            Err(_) => {}
        }
        if let Some(speculation) = speculation {
            speculation.learn(drafted, ready.make_contiguous(), started.elapsed());
            ready.iter().for_each(|&id| speculation.push(id));
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

/// Tokens that are never chosen.
fn banned<'a>(tokenizer: &'a Tokenizer, limits: &Limits) -> &'a [u32] {
    if limits.ignore_eos { tokenizer.end_of_generation_ids() } else { &[] }
}
