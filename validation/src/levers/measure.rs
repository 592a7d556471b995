//! The same tokens by two executors, one with a lever and one without.

use super::{Figures, LeverError, LeverOptions, Progress, Quality};
use crate::base::{BaseReader, BaseWriter, Header};
use crate::bench::Statistics;
use crate::divergence::Divergences;
use crate::perplexity::{Losses, Windows, evaluate};
use crate::profile::ranked;
use crate::simulate::{Group, Hierarchy, reads};
use aios_engine::{EngineError, Executor, Want};
use aios_residency::Phase;
use sha2::{Digest, Sha256};
use std::io::{BufReader, BufWriter, Seek};
use std::time::{Duration, Instant};

/// Tokens that warm the simulated caches up.
const WARM_UP: usize = 1;
/// Tokens that are simulated, these included.
pub(super) const SIMULATED_TOKENS: usize = WARM_UP + 3;

/// The text and how much of it is read.
pub(super) struct Passes<'a> {
    pub ids: &'a [u32],
    pub plan: &'a LeverOptions,
    /// How many of the likeliest tokens each step asks for.
    pub best: usize,
}

impl Passes<'_> {
    /// The first `len` tokens of the text, which begins anew where it ends.
    fn take(&self, len: usize) -> Vec<u32> {
        self.ids.iter().copied().cycle().take(len).collect()
    }
}

/// An executor without a lever, and one with it.
pub(super) struct Pair {
    pub off: Executor,
    pub on: Executor,
}

/// What both came to.
pub(super) struct Measured {
    pub figures: [Figures; 2],
    /// Whether all that was compared is equal.
    pub same: bool,
    /// Tokens that were compared.
    pub tokens: usize,
}

/// What a run said: for a decoded token the ids that were asked for and the bits of their logits,
/// for a prompt the digest of the last token's logits.
#[derive(PartialEq)]
enum Said {
    Tokens(Vec<(u32, u32)>),
    Logits([u8; 32]),
}

/// The samples of an executor.
struct Side {
    times: Vec<f64>,
    said: Option<Said>,
    same: bool,
    counted: f64,
    disk: f64,
}

impl Side {
    const fn new() -> Self {
        Self { times: Vec::new(), said: None, same: true, counted: 0.0, disk: 0.0 }
    }

    /// Takes the results of a round; they are the same in all.
    fn take(&mut self, executor: &Executor, phase: Phase, said: Said) {
        let bytes = executor.ledger().phase(phase);
        self.counted = bytes.read_per_token();
        self.disk = bytes.disk as f64 / bytes.tokens.max(1) as f64;
        self.same &= self.said.as_ref().is_none_or(|before| *before == said);
        self.said = Some(said);
    }

    fn figures(&self, simulated: Simulated) -> Figures {
        let times = Statistics::of(self.times.clone());
        Figures {
            counted_bytes_per_token: self.counted,
            simulated_bytes_per_token: simulated.all,
            simulated_activation_bytes_per_token: simulated.activations,
            disk_bytes_per_token: self.disk,
            ms_per_token: times.as_ref().map_or(f64::NAN, |times| times.median),
            samples: self.times.len(),
        }
    }
}

/// DRAM reads of a token.
pub(super) struct Simulated {
    pub all: f64,
    pub activations: f64,
}

impl Simulated {
    pub(super) fn of(groups: &[(Group, u64)], tokens: usize) -> Self {
        let tokens = tokens as f64;
        let sum = |wanted: &dyn Fn(Group) -> bool| {
            let of = groups.iter().filter(|(group, _)| wanted(*group)).map(|(_, bytes)| bytes);
            of.sum::<u64>() as f64 / tokens
        };
        Self { all: sum(&|_| true), activations: sum(&|group| group == Group::Activations) }
    }
}

impl Pair {
    /// Continues the text greedily from the depth, in turns, and simulates some tokens.
    pub(super) fn decode(
        &mut self,
        passes: &Passes<'_>,
        doing: &'static str,
        progress: &mut Progress<'_>,
    ) -> Result<Measured, LeverError> {
        let (plan, best) = (passes.plan, passes.best);
        let text = passes.take(plan.depth + 1);
        let mut work = |executor: &mut Executor, side: &mut Side| {
            go_to(executor, &text)?;
            let times = Some(&mut side.times);
            let said = greedy(executor, text[plan.depth], plan.generate, best, times)?;
            side.take(executor, Phase::Decode, Said::Tokens(said));
            Ok(())
        };
        let sides = self.rounds(plan.rounds, doing, progress, &mut work)?;
        let simulated = |executor: &mut Executor| -> Result<Simulated, LeverError> {
            go_to(executor, &text)?;
            let hierarchy = Hierarchy::new(plan.design, 1)?;
            let next = text[plan.depth];
            let groups = reads(executor, hierarchy, &mut |executor, warm| {
                let ranks = greedy(executor, next, WARM_UP, best, None)?;
                warm();
                let next = ranks.first().map_or(next, |(id, _)| *id);
                greedy(executor, next, SIMULATED_TOKENS - WARM_UP, best, None).map(|_| ())
            })?;
            Ok(Simulated::of(&groups, SIMULATED_TOKENS - WARM_UP))
        };
        self.measured(sides, plan.generate, simulated)
    }

    /// Reads the prompt, in turns, and simulates it.
    pub(super) fn prefill(
        &mut self,
        passes: &Passes<'_>,
        doing: &'static str,
        progress: &mut Progress<'_>,
    ) -> Result<Measured, LeverError> {
        let (plan, text) = (passes.plan, passes.take(passes.plan.prompt));
        let mut work = |executor: &mut Executor, side: &mut Side| {
            executor.truncate(0);
            executor.reset_ledger();
            let started = Instant::now();
            let mut digest = Sha256::new();
            executor.forward(&text, Phase::Prefill, Want::Last, &mut |_, logits| {
                logits.iter().for_each(|logit| digest.update(logit.to_le_bytes()));
                Ok(())
            })?;
            side.times.push(started.elapsed().as_secs_f64() * 1e3 / text.len() as f64);
            side.take(executor, Phase::Prefill, Said::Logits(digest.finalize().into()));
            Ok(())
        };
        let sides = self.rounds(plan.rounds, doing, progress, &mut work)?;
        let simulated = |executor: &mut Executor| -> Result<Simulated, LeverError> {
            executor.truncate(0);
            let groups = reads(executor, Hierarchy::new(plan.design, 1)?, &mut |executor, _| {
                executor.forward(&text, Phase::Prefill, Want::Last, &mut |_, _| Ok(()))
            })?;
            Ok(Simulated::of(&groups, text.len()))
        };
        self.measured(sides, plan.prompt, simulated)
    }

    /// Does `work` with each in turns, once to warm up; which is first changes.
    fn rounds(
        &mut self,
        rounds: usize,
        doing: &'static str,
        progress: &mut Progress<'_>,
        work: &mut dyn FnMut(&mut Executor, &mut Side) -> Result<(), EngineError>,
    ) -> Result<[Side; 2], LeverError> {
        let mut sides = [Side::new(), Side::new()];
        for round in 0..=rounds {
            if !progress(doing, round as u64, rounds as u64 + 1) {
                return Err(LeverError::Interrupted);
            }
            for turn in 0..2 {
                let which = (round + turn) % 2;
                let executor = if which == 0 { &mut self.off } else { &mut self.on };
                work(executor, &mut sides[which])?;
            }
            if round == 0 {
                sides.iter_mut().for_each(|side| side.times.clear());
            }
        }
        Ok(sides)
    }

    fn measured(
        &mut self,
        [off, on]: [Side; 2],
        tokens: usize,
        mut simulated: impl FnMut(&mut Executor) -> Result<Simulated, LeverError>,
    ) -> Result<Measured, LeverError> {
        let same = off.same && on.same && off.said == on.said;
        let figures =
            [off.figures(simulated(&mut self.off)?), on.figures(simulated(&mut self.on)?)];
        Ok(Measured { figures, same, tokens })
    }
}

/// Reads the text but for its last token, where the executor is not there already.
fn go_to(executor: &mut Executor, text: &[u32]) -> Result<(), EngineError> {
    let depth = text.len() - 1;
    executor.truncate(depth);
    if executor.len() != depth {
        executor.truncate(0);
        executor.forward(&text[..depth], Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
    }
    executor.reset_ledger();
    Ok(())
}

/// Decodes `tokens` tokens after `next`, the likeliest each, and returns the `best` ids of each
/// with the bits of their logits. A token takes the time until they are known, not that of ranking
/// them.
fn greedy(
    executor: &mut Executor,
    mut next: u32,
    tokens: usize,
    best: usize,
    mut times: Option<&mut Vec<f64>>,
) -> Result<Vec<(u32, u32)>, EngineError> {
    let mut said = Vec::with_capacity(tokens * best);
    for _ in 0..tokens {
        let (started, mut took) = (Instant::now(), Duration::ZERO);
        executor.choose(&[next], Phase::Decode, Want::Last, Some(best), &mut |_, scores| {
            took = started.elapsed();
            let ranks = ranked(scores, best);
            next = ranks.first().map_or(next, |(id, _)| *id);
            said.extend(ranks);
            Ok(false)
        })?;
        if let Some(times) = &mut times {
            times.push(took.as_secs_f64() * 1e3);
        }
    }
    Ok(said)
}

/// How far the others' distributions over the windows are from those of `base`.
pub(super) fn scores(
    mut base: Executor,
    others: Vec<Executor>,
    windows: &Windows,
    progress: &mut Progress<'_>,
) -> Result<Vec<Quality>, LeverError> {
    let header = Header::new(base.model().config().vocab, windows, [0; 32]);
    let file = tempfile::tempfile().map_err(LeverError::Temporary)?;
    let mut writer = BaseWriter::new(BufWriter::new(file), &header).map_err(failed)?;
    let total = windows.scored() as u64;
    let mut done = 0;
    let mut step = |doing, done: &mut u64| {
        *done += 1;
        if progress(doing, *done, total) { Ok(()) } else { Err(EngineError::Cancelled) }
    };
    evaluate(&mut base, windows, &mut |scored| {
        step("scoring without", &mut done)?;
        Ok(writer.write(scored)?)
    })
    .map_err(cancelled)?;
    drop(base);
    let buffered = writer.finish().map_err(failed)?;
    let file = buffered.into_inner().map_err(|error| LeverError::Temporary(error.into_error()))?;
    let mut found = Vec::new();
    for mut executor in others {
        let mut file = file.try_clone().map_err(LeverError::Temporary)?;
        file.rewind().map_err(LeverError::Temporary)?;
        let bytes = file.metadata().map_err(LeverError::Temporary)?.len();
        let mut reader = BaseReader::new(BufReader::new(file), bytes, &header).map_err(failed)?;
        let (mut divergences, mut losses, mut done) =
            (Divergences::default(), Losses::default(), 0);
        evaluate(&mut executor, windows, &mut |scored| {
            step("scoring with", &mut done)?;
            losses.add(scored.loss());
            divergences.add(&reader.next_record()?, scored);
            Ok(())
        })
        .map_err(cancelled)?;
        let (kl, perplexity) = (divergences.summary(), losses.perplexity());
        found.push(Quality::Changed { kl, perplexity, positions: losses.count() });
    }
    Ok(found)
}

fn failed(error: crate::base::BaseError) -> LeverError {
    LeverError::Perplexity(error.into())
}

fn cancelled(error: crate::perplexity::PerplexityError) -> LeverError {
    match error {
        crate::perplexity::PerplexityError::Engine(EngineError::Cancelled) => {
            LeverError::Interrupted
        }
        other => other.into(),
    }
}
