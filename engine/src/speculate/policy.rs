//! How many tokens are worth drafting: from what passes cost on this machine, and from how often
//! guesses of the same kind were right of late.

use super::costs::{PASS_MAX, PassCosts};

/// The share of its speed that a pass gives for fewer bytes a token. Bytes are what this program
/// is about, and near the best length the speed hardly depends on it.
const GIVEN: f64 = 0.05;

/// How often something was right of late.
#[derive(Clone, Copy, Debug)]
struct Rate {
    right: f64,
    tried: f64,
}

impl Rate {
    /// As if `rate` had been seen in a few trials.
    const fn guess(rate: f64) -> Self {
        const TRIALS: f64 = 8.0;
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
}

/// Where a pass begins, and what passes cost there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub costs: &'a PassCosts,
    /// Positions before the pass.
    pub depth: usize,
}

impl Place<'_> {
    /// A pass of the target over the last token and `drafted` others.
    pub(super) fn pass(&self, drafted: usize) -> f64 {
        self.costs.target.at(1 + drafted, self.depth)
    }

    /// What the draft model takes for `drafted` tokens, if it has to read `unread` tokens before
    /// it knows the first.
    pub(super) fn draft(&self, unread: usize, drafted: usize) -> f64 {
        let Some(curve) = self.costs.draft.as_ref().filter(|_| drafted > 0) else { return 0.0 };
        let first = curve.at(unread.max(1), self.depth.saturating_sub(unread));
        first + (drafted - 1) as f64 * curve.at(1, self.depth)
    }

    /// What it costs the draft model that it has to read more than one token.
    pub(super) fn catch_up(&self, unread: usize) -> f64 {
        (self.draft(unread, 1) - self.draft(1, 1)).max(0.0)
    }
}

/// What a pass over a draft promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Offer {
    /// The drafter's number; `None` for a pass without a draft.
    pub entry: Option<usize>,
    /// Tokens drafted.
    pub drafted: usize,
    /// Tokens that it gives, one at least.
    pub tokens: f64,
    /// What it takes, the draft included.
    pub ms: f64,
}

impl Offer {
    /// A pass without a draft.
    pub(super) fn plain(place: &Place<'_>) -> Self {
        Self { entry: None, drafted: 0, tokens: 1.0, ms: place.pass(0) }
    }

    /// What drafts of 1, 2, … at most `most` tokens promise. `unread` is for a draft model.
    pub(super) fn of(
        entry: usize,
        chances: [f64; 2],
        place: &Place<'_>,
        unread: Option<usize>,
        most: usize,
    ) -> impl Iterator<Item = Self> {
        let [first, later] = chances;
        let (mut chance, mut tokens) = (first, 1.0);
        (1..=most.min(PASS_MAX - 1)).map(move |drafted| {
            tokens += chance;
            chance *= later;
            let draft = unread.map_or(0.0, |unread| place.draft(unread, drafted));
            Self { entry: Some(entry), drafted, tokens, ms: place.pass(drafted) + draft }
        })
    }

    /// Tokens a millisecond.
    pub(super) fn speed(&self) -> f64 {
        self.tokens / self.ms
    }

    /// The one of `offers` to take: of those that are nearly as fast as the fastest, the one with
    /// the most tokens a pass, which reads the fewest bytes. It may be slower than a pass without
    /// a draft only where time was saved before (`ahead`).
    pub(super) fn best(offers: &[Self], ahead: bool) -> Option<Self> {
        let fastest = offers.iter().map(Self::speed).fold(0.0, f64::max);
        let plain = offers.iter().find(|offer| offer.entry.is_none()).map_or(0.0, Self::speed);
        let given = fastest * (1.0 - GIVEN);
        let floor = if ahead { given } else { given.max(plain) };
        let fit = offers.iter().filter(|offer| offer.speed() >= floor);
        // The first of equals: without a draft, then the drafter that is preferred.
        fit.copied().reduce(|best, next| if next.tokens > best.tokens { next } else { best })
    }
}

#[cfg(test)]
mod tests {
    use super::super::costs::PassCurve;
    use super::*;

    fn costs(of: impl Fn(f64) -> f64) -> PassCosts {
        let points = (1..=16_u8).map(|n| (usize::from(n), of(f64::from(n)))).collect();
        let draft = PassCurve::new(vec![(1, 1.0), (16, 4.0), (64, 16.0)]);
        PassCosts::known(PassCurve::new(points).expect("a curve"), draft)
    }

    fn length(seen: Acceptance, costs: &PassCosts, unread: Option<usize>, most: usize) -> usize {
        let place = Place { costs, depth: 100 };
        let offers = Offer::of(0, seen.chances(), &place, unread, most);
        let all: Vec<Offer> = std::iter::once(Offer::plain(&place)).chain(offers).collect();
        Offer::best(&all, false).expect("an offer").drafted
    }

    #[test]
    fn it_drafts_as_far_as_the_chances_and_the_costs_make_it_pay() {
        let flat = costs(|_| 10.0);
        let steep = costs(|n| 10.0 * n);
        let gentle = costs(|n| 9.0 + n);
        let sure = Acceptance::guess(1.0, 1.0);
        let never = Acceptance::guess(0.0, 0.0);
        assert_eq!(length(sure, &flat, None, 99), 15);
        assert_eq!(length(sure, &flat, None, 3), 3);
        assert_eq!(length(Acceptance::guess(0.9, 0.9), &steep, None, 99), 0);
        assert_eq!(length(never, &flat, None, 99), 0);
        let half = length(Acceptance::guess(0.5, 0.5), &gentle, None, 99);
        let most = length(Acceptance::guess(0.9, 0.9), &gentle, None, 99);
        assert!(0 < half && half < most && most < 15, "{half} {most}");
        // A draft model that costs as much as the target never pays.
        let slow = PassCosts { draft: PassCurve::new(vec![(1, 10.0)]), ..flat.clone() };
        assert_eq!(length(Acceptance::guess(0.95, 0.95), &slow, Some(1), 99), 0);
        // Nor does one that has a long text to read first.
        let model = Acceptance::guess(0.65, 0.7);
        assert!(length(model, &flat, Some(1), 99) > 0);
        assert_eq!(length(model, &flat, Some(90), 99), 0);
    }

    #[test]
    fn a_little_speed_is_given_for_bytes_but_not_what_was_not_saved() {
        let offer = |drafted: usize, tokens: f64, ms: f64| {
            let entry = (drafted > 0).then_some(0);
            Offer { entry, drafted, tokens, ms }
        };
        let near = [offer(0, 1.0, 10.0), offer(1, 1.5, 11.0), offer(2, 1.8, 13.4)];
        assert_eq!(Offer::best(&near, false).map(|best| best.drafted), Some(2));
        let far = [offer(0, 1.0, 10.0), offer(1, 1.5, 11.0), offer(2, 1.8, 14.5)];
        assert_eq!(Offer::best(&far, false).map(|best| best.drafted), Some(1));
        let slower = [offer(0, 1.0, 10.0), offer(1, 1.2, 12.3)];
        assert_eq!(Offer::best(&slower, false).map(|best| best.drafted), Some(0));
        assert_eq!(Offer::best(&slower, true).map(|best| best.drafted), Some(1));
        assert_eq!(Offer::best(&[], true), None);
    }

    #[test]
    fn it_learns_both_ways_and_forgets() {
        let mut seen = Acceptance::guess(0.5, 0.5);
        for _ in 0..50 {
            seen.add_first(true);
            seen.add_later(4, 4);
        }
        assert!(seen.chances().iter().all(|chance| *chance > 0.85));
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
}
