//! How many tokens are worth drafting: from what passes cost on this machine, and from how often
//! drafts of the same kind were right of late.

use serde::{Deserialize, Serialize};

/// The most tokens of a pass: drafted ones and the one before them.
pub const PASS_MAX: usize = 16;

/// Drafting has to promise this much more speed than a plain pass, so that errors of the estimates
/// do not cost any.
const WORTH: f64 = 1.02;

/// What passes cost on this machine, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassCosts {
    /// A pass of the target over 1, 2, … [`PASS_MAX`] tokens.
    pub pass_ms: Vec<f64>,
    /// A token of the draft model; `None` without one.
    pub draft_ms: Option<f64>,
}

impl PassCosts {
    /// Whether every figure is there and of use.
    pub fn is_sound(&self) -> bool {
        let good = |ms: &f64| ms.is_finite() && *ms > 0.0;
        self.pass_ms.len() == PASS_MAX
            && self.pass_ms.iter().all(good)
            && self.draft_ms.as_ref().is_none_or(good)
    }

    /// A pass over `tokens` tokens.
    pub(super) fn pass(&self, tokens: usize) -> f64 {
        self.pass_ms[tokens.clamp(1, PASS_MAX) - 1]
    }

    /// Learns from a pass that has just been timed. One that was disturbed has little say.
    pub(super) fn learn(&mut self, tokens: usize, ms: f64) {
        const WEIGHT: f64 = 0.05;
        let known = &mut self.pass_ms[tokens.clamp(1, PASS_MAX) - 1];
        *known += WEIGHT * (ms.clamp(0.5 * *known, 2.0 * *known) - *known);
    }
}

/// How often something was right of late.
#[derive(Clone, Copy, Debug)]
struct Rate {
    right: f64,
    tried: f64,
}

impl Rate {
    /// As if `rate` had been seen in a few trials.
    const fn guess(rate: f64) -> Self {
        const TRIALS: f64 = 4.0;
        Self { right: rate * TRIALS, tried: TRIALS }
    }

    fn add(&mut self, right: bool) {
        /// What came 40 trials ago counts for a third.
        const KEPT: f64 = 0.975;
        self.right = self.right * KEPT + f64::from(u8::from(right));
        self.tried = self.tried * KEPT + 1.0;
    }

    fn value(self) -> f64 {
        self.right / self.tried
    }
}

/// How often drafts of one kind are right: the first token, and each that follows a right one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acceptance {
    first: Rate,
    later: Rate,
}

impl Acceptance {
    pub(super) const fn guess(first: f64, later: f64) -> Self {
        Self { first: Rate::guess(first), later: Rate::guess(later) }
    }

    /// Whether the first token was right, drafted or only thought of.
    pub(super) fn add_first(&mut self, right: bool) {
        self.first.add(right);
    }

    /// Of `drafted` tokens `accepted` were right, which tells of all up to the first wrong one.
    pub(super) fn add_later(&mut self, drafted: usize, accepted: usize) {
        for _ in 1..accepted {
            self.later.add(true);
        }
        if (1..drafted).contains(&accepted) {
            self.later.add(false);
        }
    }

    /// The chance that the first token is right, and that one after a right one is.
    pub(super) fn chances(&self) -> [f64; 2] {
        [self.first.value(), self.later.value()]
    }

    /// The number of tokens to draft, at most `most`, for the most tokens a millisecond; and that
    /// number of tokens a millisecond. `draft_ms` is what a drafted token costs.
    pub(super) fn best(&self, costs: &PassCosts, draft_ms: f64, most: usize) -> (usize, f64) {
        let [mut chance, later] = self.chances();
        let plain = 1.0 / costs.pass(1);
        let (mut best, mut tokens) = ((0, plain * WORTH), 1.0);
        for drafted in 1..=most.min(PASS_MAX - 1) {
            tokens += chance;
            chance *= later;
            let speed = tokens / (costs.pass(1 + drafted) + drafted as f64 * draft_ms);
            if speed > best.1 {
                best = (drafted, speed);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(of: impl Fn(f64) -> f64) -> PassCosts {
        PassCosts { pass_ms: (1..=16).map(|n| of(f64::from(n))).collect(), draft_ms: Some(1.0) }
    }

    #[test]
    fn it_drafts_as_far_as_the_chances_and_the_costs_make_it_pay() {
        let flat = costs(|_| 10.0);
        let steep = costs(|n| 10.0 * n);
        let gentle = costs(|n| 9.0 + n);
        let sure = Acceptance::guess(1.0, 1.0);
        let never = Acceptance::guess(0.0, 0.0);
        assert_eq!(sure.best(&flat, 0.0, 99).0, 15);
        assert_eq!(sure.best(&flat, 0.0, 3).0, 3);
        assert_eq!(sure.best(&steep, 0.0, 99).0, 0);
        assert_eq!(never.best(&flat, 0.0, 99).0, 0);
        let half = Acceptance::guess(0.5, 0.5).best(&gentle, 0.0, 99).0;
        let most = Acceptance::guess(0.9, 0.9).best(&gentle, 0.0, 99).0;
        assert!(0 < half && half < most && most < 15, "{half} {most}");
        // A draft model that costs as much as the target never pays.
        assert_eq!(sure.best(&flat, 10.0, 99).0, 0);
    }

    #[test]
    fn it_learns_both_ways_and_forgets() {
        let mut seen = Acceptance::guess(0.5, 0.5);
        for _ in 0..50 {
            seen.add_first(true);
            seen.add_later(4, 4);
        }
        assert!(seen.chances().iter().all(|chance| *chance > 0.9));
        for _ in 0..50 {
            seen.add_first(false);
            seen.add_later(4, 1);
        }
        assert!(seen.chances().iter().all(|chance| *chance < 0.35), "{:?}", seen.chances());
        // A first token that was wrong says nothing of those behind it.
        let before = seen.chances()[1];
        seen.add_later(4, 0);
        assert_eq!(seen.chances()[1].to_bits(), before.to_bits());
    }

    #[test]
    fn costs_follow_what_is_timed_but_not_a_disturbance() {
        let mut known = costs(|n| 9.0 + n);
        assert!(known.is_sound());
        for _ in 0..100 {
            known.learn(4, 20.0);
        }
        assert!((known.pass(4) - 20.0).abs() < 0.1);
        known.learn(1, 1e9);
        assert!(known.pass(1) < 10.6);
        known.pass_ms[3] = f64::NAN;
        assert!(!known.is_sound());
        known.pass_ms.clear();
        assert!(!known.is_sound());
    }
}
