//! Speculative decoding that changes nothing but the speed (SPEC S): drafters propose tokens, one
//! pass of the target checks them all, and a proposed token is taken exactly when the target's own
//! sampler takes it.

mod automaton;
mod costs;
mod draft;
mod lookup;
mod policy;
mod replay;
mod stats;
#[cfg(test)]
mod tests;

use crate::error::EngineError;
use crate::sampler::Sampler;
use aios_residency::PhaseBytes;
use policy::{Acceptance, Offer, Place};
use std::fmt::Debug;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

pub use costs::{PASS_MAX, PassCosts, PassCurve};
pub use draft::{DraftError, DraftModel};
pub use lookup::Lookup;
pub use replay::{Replayed, replay};
pub use stats::{DrafterStats, KindStats, SpecStats};

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

/// Guesses of a drafter that are judged together.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in statistics.
    pub name: &'static str,
    /// The chance that the first token is right, before anything was seen.
    pub first: f64,
    /// The chance that a token after a right one is.
    pub later: f64,
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

    /// The kinds of its guesses; at least one.
    fn kinds(&self) -> &'static [Kind];

    /// The kind of its next guess, a place in [`Self::kinds`]; `None` if it has none.
    fn kind(&self) -> Option<usize>;

    /// The first token of its guess, if that costs nothing to know.
    fn first(&self) -> Option<u32> {
        None
    }

    /// For a model: how many tokens of `history` it has to read before it knows the next. `None`
    /// if drafting takes no time that counts.
    fn unread(&self, history: &[u32]) -> Option<usize> {
        let _ = history;
        None
    }

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

    /// Bytes of its own that it keeps in the last-level cache.
    fn kept_bytes(&self) -> u64 {
        0
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
    /// By kind of guess.
    acceptance: Vec<Acceptance>,
    /// Whether it has failed and is not asked again.
    given_up: bool,
    /// What drafts would have saved that were not made because the drafter had too much to read.
    forgone_ms: f64,
}

impl Entry {
    fn new(drafter: Box<dyn Drafter>) -> Self {
        let guess = |kind: &Kind| Acceptance::guess(kind.first, kind.later);
        let acceptance = drafter.kinds().iter().map(guess).collect();
        Self { drafter, acceptance, given_up: false, forgone_ms: 0.0 }
    }

    /// The kind of the next guess; `None` if there is none.
    fn kind(&self) -> Option<usize> {
        let last = self.acceptance.len().checked_sub(1)?;
        (!self.given_up).then(|| self.drafter.kind()).flatten().map(|kind| kind.min(last))
    }
}

/// A draft that the next pass checks.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    entry: usize,
    kind: usize,
    /// The most tokens to draft.
    most: usize,
    /// Tokens a millisecond that it promises; 0 where lengths are fixed.
    speed: f64,
}

/// Drafters, the choice among them, and the account of both.
#[derive(Debug)]
pub struct Speculation {
    entries: Vec<Entry>,
    length: Length,
    /// What each entry thought of for the next pass: the kind of guess and its first token.
    thoughts: Vec<Option<(usize, u32)>>,
    /// What the next pass checks.
    chosen: Option<Chosen>,
    /// Positions before the next pass.
    depth: usize,
    /// What drafting for the next pass has taken.
    draft_ms: f64,
    /// What was saved over passes without drafts since the answer began.
    saved_ms: f64,
    stats: SpecStats,
}

impl Speculation {
    /// Speculation with `drafters`, of which the earlier is preferred where both promise the same.
    pub fn new(drafters: Vec<Box<dyn Drafter>>, length: Length) -> Self {
        let entries: Vec<Entry> = drafters.into_iter().map(Entry::new).collect();
        let thoughts = vec![None; entries.len()];
        let stats = SpecStats::default();
        let (depth, draft_ms, saved_ms) = (0, 0.0, 0.0);
        let mut speculation =
            Self { entries, length, thoughts, chosen: None, depth, draft_ms, saved_ms, stats };
        speculation.reset_stats();
        speculation
    }

    /// What was drafted since the answer began.
    pub const fn stats(&self) -> &SpecStats {
        &self.stats
    }

    /// What passes cost, as far as it is known by now; `None` where lengths are fixed.
    pub const fn costs(&self) -> Option<&PassCosts> {
        match &self.length {
            Length::Auto { costs, .. } => Some(costs),
            Length::Fixed(_) => None,
        }
    }

    /// Bytes that the drafters have read since the answer began.
    pub fn bytes(&self) -> Vec<PhaseBytes> {
        self.entries.iter().filter_map(|entry| entry.drafter.bytes()).collect()
    }

    /// Bytes of their own that the drafters keep in the last-level cache.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.drafter.kept_bytes()).sum()
    }

    fn reset_stats(&mut self) {
        let of = |kind: &Kind| KindStats {
            name: kind.name,
            guesses: 0,
            right: 0,
            drafted: 0,
            accepted: 0,
        };
        let drafter = |entry: &Entry| DrafterStats {
            name: entry.drafter.name(),
            drafted: 0,
            accepted: 0,
            kinds: entry.drafter.kinds().iter().map(of).collect(),
        };
        self.stats = SpecStats {
            lengths: vec![0; PASS_MAX],
            drafters: self.entries.iter().map(drafter).collect(),
            ..SpecStats::default()
        };
    }

    /// An answer to `prompt` begins.
    pub(crate) fn restart(&mut self, prompt: &[u32]) {
        for entry in &mut self.entries {
            entry.drafter.restart(prompt);
            entry.drafter.forget_bytes();
            entry.forgone_ms = 0.0;
        }
        self.chosen = None;
        self.saved_ms = 0.0;
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
        for (thought, entry) in self.thoughts.iter_mut().zip(&self.entries) {
            *thought = entry.kind().zip(entry.drafter.first());
        }
        (self.depth, self.draft_ms) = (target.history.len().saturating_sub(1), 0.0);
        self.chosen = self.choose(target.history, room);
        let Some(chosen) = self.chosen else { return Ok(Vec::new()) };
        let unread = self.entries[chosen.entry].drafter.unread(target.history);
        let mut draft = self.ask(chosen, target)?;
        // A drafter may know tokens that the target does not have.
        draft.truncate(chosen.most);
        let known = draft.iter().position(|&token| token as usize >= vocab);
        draft.truncate(known.unwrap_or(draft.len()));
        let elapsed = started.elapsed();
        self.stats.draft += elapsed;
        self.draft_ms = elapsed.as_secs_f64() * 1e3;
        if let (Length::Auto { costs, .. }, Some(unread)) = (&mut self.length, unread) {
            let expected = Place { costs, depth: self.depth }.draft(unread, draft.len());
            costs.learn_draft(self.depth, self.draft_ms, expected);
        }
        Ok(draft)
    }

    /// What the chosen drafter proposes; nothing if it fails.
    fn ask(&mut self, chosen: Chosen, target: &mut Target<'_>) -> Result<Vec<u32>, EngineError> {
        let mut draft = Vec::new();
        let goes_on = self.goes_on(chosen);
        let drafter = &mut self.entries[chosen.entry].drafter;
        match drafter.draft(target, chosen.most, &*goes_on, &mut draft) {
            Ok(()) => {}
            Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
            Err(error) => {
                self.stats.failure = Some(error.to_string());
                self.entries[chosen.entry].given_up = true;
                self.chosen = None;
                draft.clear();
            }
        }
        Ok(draft)
    }

    /// The drafter to ask for a pass after `history`, and for how many tokens; the answer has at
    /// most `left` tokens after the pass's own.
    fn choose(&mut self, history: &[u32], left: usize) -> Option<Chosen> {
        let room = left.min(PASS_MAX - 1);
        let kinds: Vec<Option<usize>> = self.entries.iter().map(Entry::kind).collect();
        let able = kinds.iter().enumerate().filter_map(|(entry, kind)| Some((entry, (*kind)?)));
        let (costs, most) = match &self.length {
            Length::Fixed(most) => {
                let most = room.min(*most);
                let chosen = |(entry, kind)| Chosen { entry, kind, most, speed: 0.0 };
                return able.map(chosen).find(|_| most > 0);
            }
            Length::Auto { costs, most } => (costs, room.min(*most)),
        };
        let place = Place { costs, depth: self.depth };
        let mut offers = vec![Offer::plain(&place)];
        for (index, kind) in able {
            let entry = &self.entries[index];
            let chances = entry.acceptance[kind].chances();
            // As if it had read everything: whether it should is looked at below.
            let unread = entry.drafter.unread(history).map(|unread| unread.min(1));
            offers.extend(Offer::of(index, chances, &place, unread, most));
        }
        let ahead = self.saved_ms > 0.0;
        let mut best = Offer::best(&offers, ahead)?;
        while let Some(index) = best.entry {
            let entry = &mut self.entries[index];
            let catch_up = entry.drafter.unread(history).map_or(0.0, |all| place.catch_up(all));
            offers.retain(|offer| offer.entry != Some(index));
            let other = Offer::best(&offers, ahead)?;
            // Reading is worth it once what it would have saved so far has come to what it takes:
            // then it costs at most twice what was best, however long the answer turns out. What
            // is left of the answer must be able to give it back, too.
            let gain = (best.tokens / other.speed() - best.ms).max(0.0);
            let to_come = gain * left as f64 / best.tokens;
            if entry.forgone_ms + gain >= catch_up && to_come >= catch_up {
                entry.forgone_ms = 0.0;
                let kind = kinds[index]?;
                let (most, speed) = (best.drafted, best.speed());
                return Some(Chosen { entry: index, kind, most, speed });
            }
            entry.forgone_ms += gain;
            best = other;
        }
        None
    }

    /// Whether another drafted token pays: whether what it promises for the time it takes is no
    /// less than what the whole draft does.
    fn goes_on(&self, chosen: Chosen) -> Box<dyn Fn(f64, usize) -> bool> {
        let Length::Auto { costs, .. } = &self.length else { return Box::new(|_, _| true) };
        let [_, later] = self.entries[chosen.entry].acceptance[chosen.kind].chances();
        let (costs, depth) = (costs.clone(), self.depth);
        Box::new(move |chance, drafted| {
            let place = Place { costs: &costs, depth };
            let takes = place.draft(1, 1) + place.pass(drafted + 1) - place.pass(drafted);
            chance * later > takes * chosen.speed
        })
    }

    /// A pass that took `time` has checked `drafted` tokens and given `taken`, of which the last is
    /// the target's own.
    pub(crate) fn learn(&mut self, drafted: usize, taken: &[u32], time: Duration) {
        let accepted = taken.len().saturating_sub(1);
        let thoughts = self.entries.iter_mut().zip(&self.thoughts).zip(&mut self.stats.drafters);
        for ((entry, thought), stats) in thoughts {
            if let (Some((kind, token)), Some(first)) = (thought, taken.first()) {
                entry.acceptance[*kind].add_first(token == first);
                stats.kinds[*kind].guesses += 1;
                stats.kinds[*kind].right += u64::from(token == first);
            }
        }
        if let Some(Chosen { entry, kind, .. }) = self.chosen.filter(|_| drafted > 0) {
            let acceptance = &mut self.entries[entry].acceptance[kind];
            if self.thoughts[entry].is_none() {
                acceptance.add_first(accepted > 0);
            }
            acceptance.add_later(drafted, accepted);
            let stats = &mut self.stats.drafters[entry];
            let of_kind = &mut stats.kinds[kind];
            for (sum, tokens) in [
                (&mut stats.drafted, drafted),
                (&mut stats.accepted, accepted),
                (&mut of_kind.drafted, drafted),
                (&mut of_kind.accepted, accepted),
            ] {
                *sum += tokens as u64;
            }
            self.stats.verify += time;
        }
        if let Length::Auto { costs, .. } = &mut self.length {
            let ms = time.as_secs_f64() * 1e3;
            costs.target.learn(1 + drafted, self.depth, ms);
            let plain = costs.target.at(1, self.depth);
            self.saved_ms += taken.len() as f64 * plain - ms - self.draft_ms;
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
