//! Speculative decoding that changes nothing but the speed (SPEC S): drafters propose tokens, one
//! pass of the target checks them all, and a proposed token is taken exactly when the target's own
//! sampler takes it.

mod automaton;
mod draft;
mod lookup;
mod policy;
#[cfg(test)]
mod tests;

use crate::error::EngineError;
use crate::forward::{Executor, Want};
use crate::sampler::Sampler;
use aios_residency::{Phase, PhaseBytes};
use policy::Acceptance;
use serde::Serialize;
use std::fmt::Debug;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

pub use draft::{DraftError, DraftModel};
pub use lookup::Lookup;
pub use policy::{PASS_MAX, PassCosts};

/// Kinds of guesses of a drafter, by how sure they are.
const KINDS: usize = 6;

/// What a drafter is told of the target.
#[derive(Debug)]
pub struct Target<'a> {
    /// The tokens so far.
    pub history: &'a [u32],
    /// What takes tokens from logits: a draft model's choices have the target's random numbers.
    pub sampler: &'a mut Sampler,
    /// Tokens that are never taken.
    pub banned: &'a [u32],
    /// Becomes true when the caller wants to stop.
    pub cancel: &'a AtomicBool,
}

/// Proposes tokens.
pub trait Drafter: Debug + Send {
    /// Its name in statistics.
    fn name(&self) -> &'static str;

    /// The text is `history` from now on.
    fn restart(&mut self, history: &[u32]) {
        let _ = history;
    }

    /// The text goes on with `token`.
    fn push(&mut self, token: u32) {
        let _ = token;
    }

    /// How sure its next guess is, from 0 to 5; `None` if it has none.
    fn sureness(&self) -> Option<usize>;

    /// The first token of its guess, if that costs nothing to know.
    fn first(&self) -> Option<u32> {
        None
    }

    /// The chance that a guess of some sureness is right, and that a token after a right one is,
    /// before anything was seen.
    fn prior(&self, sureness: usize) -> [f64; 2];

    /// Appends up to `most` tokens to `out`, which is empty. `goes_on` says whether another pays,
    /// given the chance that those so far are right, and their number.
    ///
    /// # Errors
    /// Those of a model; it is not asked again.
    fn draft(
        &mut self,
        target: &mut Target<'_>,
        most: usize,
        goes_on: &dyn Fn(f64, usize) -> bool,
        out: &mut Vec<u32>,
    ) -> Result<(), EngineError>;

    /// Bytes that it has read since [`Self::forget_bytes`]; `None` if it reads no weights.
    fn bytes(&self) -> Option<PhaseBytes> {
        None
    }

    /// Counts bytes from zero.
    fn forget_bytes(&mut self) {}
}

impl Drafter for Lookup {
    fn name(&self) -> &'static str {
        "lookup"
    }

    fn restart(&mut self, history: &[u32]) {
        Lookup::restart(self, history);
    }

    fn push(&mut self, token: u32) {
        Lookup::push(self, token);
    }

    fn sureness(&self) -> Option<usize> {
        match self.matched() {
            0 => None,
            1 => Some(0),
            2 => Some(1),
            3 => Some(2),
            4..=5 => Some(3),
            6..=11 => Some(4),
            _ => Some(5),
        }
    }

    fn first(&self) -> Option<u32> {
        let mut first = Vec::with_capacity(1);
        Lookup::draft(self, 1, &mut first);
        first.pop()
    }

    fn prior(&self, sureness: usize) -> [f64; 2] {
        const FIRST: [f64; KINDS] = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85];
        [FIRST[sureness], 0.5 + 0.08 * sureness as f64]
    }

    fn draft(
        &mut self,
        _target: &mut Target<'_>,
        most: usize,
        _goes_on: &dyn Fn(f64, usize) -> bool,
        out: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        Lookup::draft(self, most, out);
        Ok(())
    }
}

impl Drafter for DraftModel {
    fn name(&self) -> &'static str {
        "draft"
    }

    fn sureness(&self) -> Option<usize> {
        Some(0)
    }

    fn prior(&self, _sureness: usize) -> [f64; 2] {
        [0.65, 0.7]
    }

    fn draft(
        &mut self,
        target: &mut Target<'_>,
        most: usize,
        goes_on: &dyn Fn(f64, usize) -> bool,
        out: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        DraftModel::draft(self, target, most, goes_on, out)
    }

    fn bytes(&self) -> Option<PhaseBytes> {
        Some(DraftModel::bytes(self))
    }

    fn forget_bytes(&mut self) {
        self.reset_ledger();
    }
}

/// How many tokens are drafted at a time.
#[derive(Clone, Debug, PartialEq)]
pub enum Length {
    /// Always so many, if the drafter has them.
    Fixed(usize),
    /// As many as pay, given what passes cost; at most so many.
    Auto {
        /// What passes cost here.
        costs: PassCosts,
        /// The most tokens to draft.
        most: usize,
    },
}

/// A drafter and what is known of it.
#[derive(Debug)]
struct Entry {
    drafter: Box<dyn Drafter>,
    /// By sureness.
    acceptance: [Acceptance; KINDS],
    /// Whether it has failed and is not asked again.
    given_up: bool,
}

/// What was drafted and what became of it, since the answer began.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SpecStats {
    /// Tokens proposed.
    pub drafted: u64,
    /// Of these, tokens that the target took.
    pub accepted: u64,
    /// Passes of the target, with drafted tokens and without, the prompt's not counted.
    pub passes: u64,
    /// Tokens that these passes gave.
    pub tokens: u64,
    /// Passes by the number of tokens drafted for them, from none on.
    pub lengths: Vec<u64>,
    /// Tokens proposed and taken, by drafter.
    pub drafters: Vec<DrafterStats>,
    /// Time for drafting.
    #[serde(rename = "draft_ms", serialize_with = "milliseconds")]
    pub draft: Duration,
    /// Time for passes that checked drafted tokens.
    #[serde(rename = "verify_ms", serialize_with = "milliseconds")]
    pub verify: Duration,
    /// Why a drafter was given up, if one was.
    pub failure: Option<String>,
}

/// What one drafter has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DrafterStats {
    /// Its name.
    pub name: &'static str,
    /// Tokens proposed.
    pub drafted: u64,
    /// Of these, tokens that the target took.
    pub accepted: u64,
}

fn milliseconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64() * 1e3)
}

impl SpecStats {
    /// The share of drafted tokens that were taken; `None` if there were none.
    pub fn accept_rate(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }

    /// Adds the account of a later answer.
    pub fn add(&mut self, later: &Self) {
        self.drafted += later.drafted;
        self.accepted += later.accepted;
        self.passes += later.passes;
        self.tokens += later.tokens;
        for (sum, count) in self.lengths.iter_mut().zip(&later.lengths) {
            *sum += count;
        }
        for of in &later.drafters {
            match self.drafters.iter_mut().find(|known| known.name == of.name) {
                Some(known) => {
                    known.drafted += of.drafted;
                    known.accepted += of.accepted;
                }
                None => self.drafters.push(of.clone()),
            }
        }
        self.draft += later.draft;
        self.verify += later.verify;
        self.failure = later.failure.clone().or(self.failure.take());
    }

    /// Tokens that a pass gave; `None` if there was no pass.
    pub fn tokens_per_pass(&self) -> Option<f64> {
        (self.passes > 0).then(|| self.tokens as f64 / self.passes as f64)
    }
}

/// Drafters, the choice among them, and the account of both.
#[derive(Debug)]
pub struct Speculation {
    entries: Vec<Entry>,
    length: Length,
    /// What each entry proposed first, or thought of, for the next pass: sureness and token.
    thoughts: Vec<Option<(usize, u32)>>,
    /// The entry whose draft the next pass checks, and its sureness.
    chosen: Option<(usize, usize)>,
    stats: SpecStats,
}

impl Speculation {
    /// Speculation with `drafters`, of which the earlier is preferred where both promise the same.
    pub fn new(drafters: Vec<Box<dyn Drafter>>, length: Length) -> Self {
        let entry = |drafter: Box<dyn Drafter>| {
            let acceptance = std::array::from_fn(|sureness| {
                let [first, later] = drafter.prior(sureness);
                Acceptance::guess(first, later)
            });
            Entry { drafter, acceptance, given_up: false }
        };
        let entries: Vec<Entry> = drafters.into_iter().map(entry).collect();
        let thoughts = vec![None; entries.len()];
        let mut speculation =
            Self { entries, length, thoughts, chosen: None, stats: SpecStats::default() };
        speculation.reset_stats();
        speculation
    }

    /// What was drafted since the answer began.
    pub const fn stats(&self) -> &SpecStats {
        &self.stats
    }

    /// Bytes that the drafters have read since the answer began.
    pub fn bytes(&self) -> Vec<PhaseBytes> {
        self.entries.iter().filter_map(|entry| entry.drafter.bytes()).collect()
    }

    fn reset_stats(&mut self) {
        let name =
            |entry: &Entry| DrafterStats { name: entry.drafter.name(), drafted: 0, accepted: 0 };
        self.stats = SpecStats {
            lengths: vec![0; PASS_MAX],
            drafters: self.entries.iter().map(name).collect(),
            ..SpecStats::default()
        };
    }

    /// An answer to `prompt` begins.
    pub(crate) fn restart(&mut self, prompt: &[u32]) {
        for entry in &mut self.entries {
            entry.drafter.restart(prompt);
            entry.drafter.forget_bytes();
        }
        self.chosen = None;
        self.reset_stats();
    }

    /// The text goes on with `token`.
    pub(crate) fn push(&mut self, token: u32) {
        for entry in &mut self.entries {
            entry.drafter.push(token);
        }
    }

    /// Tokens to check in the next pass, at most `room`; none where that does not pay.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`]. A drafter that fails otherwise is given up.
    pub(crate) fn propose(
        &mut self,
        target: &mut Target<'_>,
        room: usize,
        vocab: usize,
    ) -> Result<Vec<u32>, EngineError> {
        let started = Instant::now();
        self.think();
        let mut draft = Vec::new();
        let Some((index, sureness, most)) = self.choose(room.min(PASS_MAX - 1)) else {
            self.chosen = None;
            return Ok(draft);
        };
        self.chosen = Some((index, sureness));
        let goes_on = self.goes_on(index, sureness);
        let drafted = self.entries[index].drafter.draft(target, most, &*goes_on, &mut draft);
        drop(goes_on);
        match drafted {
            Ok(()) => {}
            Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
            Err(error) => {
                self.stats.failure = Some(error.to_string());
                self.entries[index].given_up = true;
                self.chosen = None;
                draft.clear();
            }
        }
        // A drafter may know tokens that the target does not have.
        draft.truncate(most);
        let known = draft.iter().position(|&token| token as usize >= vocab);
        draft.truncate(known.unwrap_or(draft.len()));
        self.stats.draft += started.elapsed();
        Ok(draft)
    }

    fn think(&mut self) {
        for (thought, entry) in self.thoughts.iter_mut().zip(&self.entries) {
            *thought = entry.drafter.sureness().zip(entry.drafter.first());
        }
    }

    /// What a drafted token costs, in milliseconds.
    fn token_ms(entry: &Entry, costs: &PassCosts) -> f64 {
        // Only models take time that counts.
        if entry.drafter.bytes().is_some() { costs.draft_ms.unwrap_or(f64::MAX) } else { 0.0 }
    }

    /// The entry to ask, the sureness of its guess, and for how many tokens.
    fn choose(&self, room: usize) -> Option<(usize, usize, usize)> {
        let sure = |entry: &Entry| entry.drafter.sureness().map(|sure| sure.min(KINDS - 1));
        let left = self.entries.iter().enumerate().filter(|(_, entry)| !entry.given_up);
        let able = left.filter_map(|(index, entry)| Some((index, entry, sure(entry)?)));
        match &self.length {
            Length::Fixed(most) => {
                let most = room.min(*most);
                able.map(|(index, _, sure)| (index, sure, most)).find(|_| most > 0)
            }
            Length::Auto { costs, most } => {
                let mut best = None;
                let mut best_speed = 0.0;
                for (index, entry, sure) in able {
                    let token_ms = Self::token_ms(entry, costs);
                    let acceptance = &entry.acceptance[sure];
                    let (length, speed) = acceptance.best(costs, token_ms, room.min(*most));
                    if length > 0 && speed > best_speed {
                        (best, best_speed) = (Some((index, sure, length)), speed);
                    }
                }
                best
            }
        }
    }

    /// Whether another drafted token pays: the tokens it promises against the time it takes.
    fn goes_on(&self, index: usize, sureness: usize) -> Box<dyn Fn(f64, usize) -> bool> {
        let Length::Auto { costs, .. } = &self.length else { return Box::new(|_, _| true) };
        let entry = &self.entries[index];
        let [_, later] = entry.acceptance[sureness].chances();
        let (token_ms, costs) = (Self::token_ms(entry, costs), costs.clone());
        Box::new(move |chance, drafted| {
            let takes = token_ms + costs.pass(drafted + 2) - costs.pass(drafted + 1);
            chance * later > takes / costs.pass(1)
        })
    }

    /// A pass that took `time` has checked `drafted` tokens and given `taken`, of which the last is
    /// the target's own.
    pub(crate) fn learn(&mut self, drafted: usize, taken: &[u32], time: Duration) {
        let accepted = taken.len().saturating_sub(1);
        for (entry, thought) in self.entries.iter_mut().zip(&self.thoughts) {
            if let (Some((sureness, token)), Some(first)) = (thought, taken.first()) {
                entry.acceptance[*sureness].add_first(token == first);
            }
        }
        if let Some((index, sureness)) = self.chosen.filter(|_| drafted > 0) {
            let acceptance = &mut self.entries[index].acceptance[sureness];
            if self.thoughts[index].is_none() {
                acceptance.add_first(accepted > 0);
            }
            acceptance.add_later(drafted, accepted);
            let of = &mut self.stats.drafters[index];
            of.drafted += drafted as u64;
            of.accepted += accepted as u64;
            self.stats.verify += time;
        }
        if let Length::Auto { costs, .. } = &mut self.length {
            costs.learn(1 + drafted, time.as_secs_f64() * 1e3);
        }
        self.stats.drafted += drafted as u64;
        self.stats.accepted += accepted as u64;
        self.stats.passes += 1;
        self.stats.tokens += taken.len() as u64;
        if let Some(count) = self.stats.lengths.get_mut(drafted) {
            *count += 1;
        }
    }
}

impl PassCosts {
    /// Times passes of `target`, and of `draft`, whose caches are empty afterwards.
    ///
    /// # Errors
    /// Those of a pass.
    pub fn measure(
        target: &mut Executor,
        draft: Option<&mut Executor>,
    ) -> Result<Self, EngineError> {
        /// Lengths that are timed; what lies between is taken to lie on a line.
        const TIMED: [usize; 5] = [1, 2, 4, 8, 16];
        const ROUNDS: usize = 4;
        /// Passes that take seconds, such as those that read weights from disk, vary little.
        const LONG: Duration = Duration::from_secs(10);
        let fits = TIMED.into_iter().filter(|&tokens| tokens <= target.context());
        let mut points: Vec<(usize, f64)> = fits.map(|tokens| (tokens, f64::INFINITY)).collect();
        let mut draft_ms = draft.is_some().then_some(f64::INFINITY);
        let mut draft = draft;
        // Rounds over all lengths, so that a disturbance does not meet all passes of one.
        let started = Instant::now();
        for round in 0..ROUNDS {
            if round > 0 && started.elapsed() > LONG {
                break;
            }
            for (tokens, least) in &mut points {
                *least = least.min(pass_ms(target, *tokens, Phase::Verify)?);
            }
            if let (Some(executor), Some(least)) = (&mut draft, &mut draft_ms) {
                *least = least.min(pass_ms(executor, 1, Phase::Draft)?);
            }
        }
        // A pass over more tokens cannot cost less; where it seems so, it was disturbed.
        for i in 1..points.len() {
            points[i].1 = points[i].1.max(points[i - 1].1);
        }
        let pass_ms = (1..=PASS_MAX).map(|tokens| between(&points, tokens)).collect();
        Ok(Self { pass_ms, draft_ms })
    }
}

/// Milliseconds of a pass over `tokens` tokens at the start of a text.
fn pass_ms(executor: &mut Executor, tokens: usize, phase: Phase) -> Result<f64, EngineError> {
    let vocab = u32::try_from(executor.model().config().vocab).unwrap_or(u32::MAX);
    let ids: Vec<u32> = (0..vocab).cycle().take(tokens).collect();
    executor.truncate(0);
    let started = Instant::now();
    executor.forward(&ids, phase, Want::All, &mut |_, _| Ok(()))?;
    let elapsed = started.elapsed();
    executor.truncate(0);
    // A clock may be coarser than a tiny model's pass.
    Ok((elapsed.as_secs_f64() * 1e3).max(1e-6))
}

/// The value at `at` on the line through `points`, the last one's beyond them.
fn between(points: &[(usize, f64)], at: usize) -> f64 {
    let next = points.iter().position(|&(x, _)| x >= at);
    match next {
        Some(0) => points[0].1,
        Some(i) => {
            let ((x0, y0), (x1, y1)) = (points[i - 1], points[i]);
            y0 + (y1 - y0) * (at - x0) as f64 / (x1 - x0) as f64
        }
        None => points.last().map_or(1.0, |&(_, y)| y),
    }
}
