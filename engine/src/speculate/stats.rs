//! The account of what was drafted and what became of it.

use serde::Serialize;
use std::time::Duration;

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
    /// The same by kind of guess, and how often such a guess was there.
    pub kinds: Vec<KindStats>,
}

/// What became of one kind of guesses. Lengths are chosen by these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindStats {
    /// Its name.
    pub name: &'static str,
    /// Passes before which there was such a guess whose first token was known, drafted or not.
    pub guesses: u64,
    /// Of these, guesses whose first token was right.
    pub right: u64,
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

    /// Tokens that a pass gave; `None` if there was no pass.
    pub fn tokens_per_pass(&self) -> Option<f64> {
        (self.passes > 0).then(|| self.tokens as f64 / self.passes as f64)
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
                Some(known) => known.add(of),
                None => self.drafters.push(of.clone()),
            }
        }
        self.draft += later.draft;
        self.verify += later.verify;
        self.failure = later.failure.clone().or(self.failure.take());
    }
}

impl DrafterStats {
    fn add(&mut self, later: &Self) {
        self.drafted += later.drafted;
        self.accepted += later.accepted;
        for (sum, of) in self.kinds.iter_mut().zip(&later.kinds) {
            sum.guesses += of.guesses;
            sum.right += of.right;
            sum.drafted += of.drafted;
            sum.accepted += of.accepted;
        }
    }
}
