//! What passes cost on this machine: timed when a model is first used, and corrected by what every
//! later pass takes.

use crate::error::EngineError;
use crate::forward::{Executor, Want};
use aios_residency::Phase;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The most tokens of a pass: drafted ones and the one before them.
pub const PASS_MAX: usize = 16;

/// Passes of the target that are timed, by their tokens.
const TARGET_TIMED: &[usize] = &[1, 2, 3, 4, 5, 6, 7, 8, 12, 16];
/// Passes of a draft model that are timed: a token, and texts that it has to catch up with.
const DRAFT_TIMED: &[usize] = &[1, 2, 4, 8, 16, 64];
/// Passes that are timed deep in a text as well, which shows what a position costs.
const DEEP_TIMED: [usize; 2] = [1, 8];
/// How deep that is, at most and at least.
const DEPTH_MAX: usize = 1024;
const DEPTH_MIN: usize = 128;

/// What passes of one model cost, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassCurve {
    /// Tokens of a pass at the start of a text, and its milliseconds: one token first, more and
    /// more after it. What lies between two lies on a line, and what lies beyond, on the last.
    points: Vec<(usize, f64)>,
    /// What each position before a pass adds to it.
    position_ms: f64,
    /// What each position before a pass adds to it for each of its tokens.
    position_token_ms: f64,
}

impl PassCurve {
    /// The curve through `points`, which are tokens and milliseconds, at any depth of a text;
    /// `None` if they are not in order from one token on, or a time is not above zero.
    pub fn new(points: Vec<(usize, f64)>) -> Option<Self> {
        let curve = Self { points, position_ms: 0.0, position_token_ms: 0.0 };
        curve.is_sound().then_some(curve)
    }

    /// The same with what each position before a pass adds to it, and for each of its tokens.
    #[must_use]
    pub fn with_depth(self, position_ms: f64, position_token_ms: f64) -> Self {
        Self { position_ms, position_token_ms, ..self }
    }

    fn is_sound(&self) -> bool {
        let times = self.points.iter().map(|&(_, ms)| ms);
        let depth = [self.position_ms, self.position_token_ms];
        self.points.first().is_some_and(|&(tokens, _)| tokens == 1)
            && self.points.is_sorted_by(|a, b| a.0 < b.0)
            && times.into_iter().all(|ms| ms.is_finite() && ms > 0.0)
            && depth.into_iter().all(|ms| ms.is_finite() && ms >= 0.0)
    }

    /// A pass over `tokens` tokens after `depth` others.
    pub fn at(&self, tokens: usize, depth: usize) -> f64 {
        let shallow: f64 =
            self.shares(tokens).iter().map(|(i, share)| share * self.points[*i].1).sum();
        let deep = self.position_ms + self.position_token_ms * tokens as f64;
        shallow + deep * depth as f64
    }

    /// The points that a pass over `tokens` tokens lies between or behind, and its share of each.
    fn shares(&self, tokens: usize) -> [(usize, f64); 2] {
        let last = self.points.len() - 1;
        let next = self.points.iter().position(|&(x, _)| x >= tokens).unwrap_or(last);
        let before = next.saturating_sub(1);
        let ((x0, _), (x1, _)) = (self.points[before], self.points[next]);
        let share = match x1 - x0 {
            0 => 1.0,
            span => (tokens.max(1) as f64 - x0 as f64) / span as f64,
        };
        [(before, 1.0 - share), (next, share)]
    }

    /// Learns from a pass that took `ms`. One that was disturbed has little say.
    pub(super) fn learn(&mut self, tokens: usize, depth: usize, ms: f64) {
        /// Mostly it is the machine that has become slower or faster, for passes of all lengths;
        /// so those that never come up keep their place among the others.
        const ALL: f64 = 0.08;
        const OWN: f64 = 0.03;
        /// The most that one pass may be off the curve.
        const FACTOR_MAX: f64 = 1.25;
        let off = (ms / self.at(tokens, depth)).clamp(1.0 / FACTOR_MAX, FACTOR_MAX) - 1.0;
        self.position_ms *= 1.0 + ALL * off;
        self.position_token_ms *= 1.0 + ALL * off;
        self.points.iter_mut().for_each(|(_, known)| *known *= 1.0 + ALL * off);
        let longest = self.points.last().map_or(1, |&(tokens, _)| tokens);
        for (i, share) in self.shares(tokens.min(longest)) {
            self.points[i].1 *= 1.0 + OWN * share * off;
        }
        self.level();
    }

    /// A pass over fewer tokens cannot cost more; where it seems so, it was disturbed. Without this
    /// a length that was timed too long would never be tried, and never be found to be shorter.
    fn level(&mut self) {
        let mut least = f64::INFINITY;
        for (_, ms) in self.points.iter_mut().rev() {
            *ms = ms.min(least);
            least = *ms;
        }
    }
}

/// What passes of a model, and of one that drafts for it, cost on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassCosts {
    /// The target's.
    pub target: PassCurve,
    /// The draft model's, if there is one.
    pub draft: Option<PassCurve>,
    /// How far the two fastest timings of a pass were apart at most, as a share of the faster:
    /// large if something else kept the machine busy.
    pub apart: f64,
}

impl PassCosts {
    /// Timings that were further apart than this were disturbed.
    pub const APART_MAX: f64 = 0.15;

    /// Costs that are known and not timed.
    pub const fn known(target: PassCurve, draft: Option<PassCurve>) -> Self {
        Self { target, draft, apart: 0.0 }
    }

    /// Whether every figure is of use.
    pub fn is_sound(&self) -> bool {
        self.target.is_sound()
            && self.draft.as_ref().is_none_or(PassCurve::is_sound)
            && self.apart.is_finite()
    }

    /// Whether the machine was quiet enough for the timings to be kept.
    pub fn is_steady(&self) -> bool {
        self.apart <= Self::APART_MAX
    }

    /// Learns from a draft that took `ms` where `expected_ms` was expected.
    pub(super) fn learn_draft(&mut self, depth: usize, ms: f64, expected_ms: f64) {
        if let Some(curve) = self.draft.as_mut().filter(|_| expected_ms > 0.0) {
            curve.learn(1, depth, ms / expected_ms * curve.at(1, depth));
        }
    }

    /// How far apart two costs of the same models are in what decisions depend on, which is what
    /// passes cost over what one of a single token costs: the largest factor, 1 if they agree.
    pub fn disagreement(&self, other: &Self) -> f64 {
        let relative = |costs: &Self| -> Vec<f64> {
            let one = costs.target.at(1, 0);
            let target = (2..=PASS_MAX).map(|tokens| costs.target.at(tokens, 0) / one);
            target.chain(costs.draft.iter().map(|draft| draft.at(1, 0) / one)).collect()
        };
        let both = relative(self).into_iter().zip(relative(other));
        both.map(|(a, b)| (a / b).max(b / a)).fold(1.0, f64::max)
    }

    /// Times passes of `target`, and of `draft`, whose caches are empty afterwards. Where others
    /// use the machine it takes longer, and [`Self::is_steady`] tells whether that helped.
    ///
    /// # Errors
    /// Those of a pass.
    pub fn measure(
        target: &mut Executor,
        mut draft: Option<&mut Executor>,
    ) -> Result<Self, EngineError> {
        const ROUNDS_MIN: usize = 3;
        const ROUNDS_MAX: usize = 5;
        /// Passes that take seconds, such as those that read weights from disk, vary little: they
        /// are timed twice, without which nothing is known of how far timings are apart.
        const LONG: Duration = Duration::from_secs(10);
        let started = Instant::now();
        let mut of_target = Timings::new(target, TARGET_TIMED, Phase::Verify, Want::All);
        let mut of_draft = draft
            .as_deref()
            .map(|draft| Timings::new(draft, DRAFT_TIMED, Phase::Draft, Want::Last));
        let mut apart = f64::INFINITY;
        // Rounds over all lengths, so that a disturbance does not meet all passes of one.
        for round in 1..=ROUNDS_MAX {
            of_target.round(target)?;
            if let (Some(timings), Some(draft)) = (&mut of_draft, draft.as_deref_mut()) {
                timings.round(draft)?;
            }
            apart = of_draft.as_ref().map_or(0.0, Timings::apart).max(of_target.apart());
            let settled = round >= ROUNDS_MIN && apart <= Self::APART_MAX;
            if settled || round > 1 && started.elapsed() > LONG {
                break;
            }
        }
        Ok(Self { target: of_target.curve(), draft: of_draft.map(|of| of.curve()), apart })
    }
}

/// The fastest timings of a pass.
#[derive(Clone, Copy, Debug)]
struct Timing {
    tokens: usize,
    depth: usize,
    least_ms: f64,
    second_ms: f64,
}

/// Timings of a model's passes.
#[derive(Debug)]
struct Timings {
    phase: Phase,
    want: Want,
    list: Vec<Timing>,
}

impl Timings {
    fn new(executor: &Executor, lengths: &[usize], phase: Phase, want: Want) -> Self {
        let depth = (executor.context() / 2).min(DEPTH_MAX);
        let deep = DEEP_TIMED.iter().filter(|_| depth >= DEPTH_MIN).map(|&tokens| (tokens, depth));
        let fits = lengths.iter().filter(|&&tokens| tokens <= executor.context());
        let all = fits.map(|&tokens| (tokens, 0)).chain(deep);
        let list = all.map(|(tokens, depth)| Timing {
            tokens,
            depth,
            least_ms: f64::INFINITY,
            second_ms: f64::INFINITY,
        });
        Self { phase, want, list: list.collect() }
    }

    /// Times every pass once.
    fn round(&mut self, executor: &mut Executor) -> Result<(), EngineError> {
        for timing in &mut self.list {
            let ms = pass_ms(executor, timing.tokens, timing.depth, self.phase, self.want)?;
            timing.second_ms = timing.second_ms.min(ms.max(timing.least_ms));
            timing.least_ms = timing.least_ms.min(ms);
        }
        Ok(())
    }

    fn apart(&self) -> f64 {
        let apart = self.list.iter().map(|timing| timing.second_ms / timing.least_ms - 1.0);
        apart.fold(0.0, f64::max)
    }

    fn curve(&self) -> PassCurve {
        let shallow = self.list.iter().filter(|timing| timing.depth == 0);
        let points: Vec<_> = shallow.map(|timing| (timing.tokens, timing.least_ms)).collect();
        let mut curve = PassCurve { points, position_ms: 0.0, position_token_ms: 0.0 };
        curve.level();
        let deep: Vec<&Timing> = self.list.iter().filter(|timing| timing.depth > 0).collect();
        let [few, many] = deep[..] else { return curve };
        let more = |deep: &Timing| {
            ((deep.least_ms - curve.at(deep.tokens, 0)) / deep.depth as f64).max(0.0)
        };
        let token = (more(many) - more(few)).max(0.0) / (many.tokens - few.tokens) as f64;
        let position = (more(few) - token).max(0.0);
        curve.with_depth(position, token)
    }
}

/// Milliseconds of a pass over `tokens` tokens after `depth` others.
fn pass_ms(
    executor: &mut Executor,
    tokens: usize,
    depth: usize,
    phase: Phase,
    want: Want,
) -> Result<f64, EngineError> {
    let vocab = u32::try_from(executor.model().config().vocab).unwrap_or(u32::MAX);
    let ids: Vec<u32> = (0..vocab).cycle().take(tokens).collect();
    executor.skip_to(depth)?;
    let started = Instant::now();
    executor.forward(&ids, phase, want, &mut |_, _| Ok(()))?;
    let elapsed = started.elapsed();
    executor.truncate(0);
    // A clock may be coarser than a tiny model's pass.
    Ok((elapsed.as_secs_f64() * 1e3).max(1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> PassCurve {
        PassCurve::new(vec![(1, 10.0), (2, 11.0), (4, 15.0), (16, 39.0)]).expect("a curve")
    }

    #[test]
    fn what_was_not_timed_lies_on_a_line_and_depth_adds_to_it() {
        let curve = curve();
        for (tokens, ms) in [(1, 10.0), (2, 11.0), (3, 13.0), (10, 27.0), (16, 39.0), (116, 239.0)]
        {
            assert!((curve.at(tokens, 0) - ms).abs() < 1e-9, "{tokens}");
        }
        let deep = curve.with_depth(0.01, 0.002);
        assert!((deep.at(4, 100) - 16.8).abs() < 1e-9);
        let single = PassCurve::new(vec![(1, 3.0)]).expect("a curve");
        assert_eq!((single.at(1, 9), single.at(7, 0)), (3.0, 3.0));
    }

    #[test]
    fn curves_that_make_no_sense_are_refused() {
        for points in [
            vec![],
            vec![(2, 1.0)],
            vec![(1, 0.0)],
            vec![(1, 1.0), (1, 2.0)],
            vec![(1, 1.0), (3, f64::NAN)],
        ] {
            assert_eq!(PassCurve::new(points), None);
        }
        let text = r#"{"target":{"points":[[1,1.0]],"position_ms":-1.0,"position_token_ms":0.0},
            "draft":null,"apart":0.0}"#;
        let costs: PassCosts = serde_json::from_str(text).expect("costs");
        assert!(!costs.is_sound());
    }

    #[test]
    fn costs_follow_what_is_timed_but_not_a_disturbance() {
        let mut known = curve();
        for _ in 0..200 {
            known.learn(4, 0, 20.0);
            known.learn(1, 0, 10.0);
        }
        assert!((known.at(4, 0) - 20.0).abs() < 0.5, "{known:?}");
        assert!((known.at(1, 0) - 10.0).abs() < 0.3, "{known:?}");
        known.learn(1, 0, 1e9);
        assert!(known.at(1, 0) < 10.5);
        known.learn(1, 0, 0.0);
        assert!(known.at(1, 0) > 9.5);
        // A pass deep in a text tells of the machine, not of the depth.
        let mut deep = curve().with_depth(0.01, 0.0);
        for _ in 0..50 {
            deep.learn(1, 1000, 20.0);
        }
        assert!((deep.at(1, 0) - 10.0).abs() < 1e-6);
    }

    #[test]
    fn a_slower_machine_is_slower_for_lengths_that_never_come_up() {
        let mut known = curve();
        for _ in 0..300 {
            known.learn(1, 0, 20.0);
        }
        let factor = known.at(16, 0) / known.at(1, 0);
        assert!(known.at(1, 0) > 19.0 && (3.0..4.0).contains(&factor), "{known:?}");
    }

    #[test]
    fn a_length_that_was_timed_too_long_is_tried_again() {
        let points = vec![(1, 10.0), (2, 11.0), (3, 30.0), (8, 25.0)];
        let mut known = PassCurve::new(points).expect("a curve");
        known.level();
        assert!((known.at(3, 0) - 25.0).abs() < 1e-9 && (known.at(2, 0) - 11.0).abs() < 1e-9);
        for _ in 0..200 {
            known.learn(8, 0, 16.0);
            known.learn(1, 0, 10.0);
        }
        assert!(known.at(3, 0) < 16.5, "{known:?}");
    }

    #[test]
    fn disagreement_is_about_ratios() {
        let one = PassCosts::known(curve(), None);
        let scaled = curve().points.iter().map(|&(tokens, ms)| (tokens, 3.0 * ms)).collect();
        let three = PassCosts::known(PassCurve::new(scaled).expect("a curve"), None);
        assert!((one.disagreement(&three) - 1.0).abs() < 1e-9);
        let steep = PassCurve::new(vec![(1, 10.0), (16, 160.0)]).expect("a curve");
        let other = PassCosts::known(steep, None);
        assert!(one.disagreement(&other) > 2.0 && other.disagreement(&one) > 2.0);
    }
}
