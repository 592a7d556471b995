//! How good a ranking is, and how sure a difference between two is.

use std::collections::HashSet;

use serde::Serialize;

use crate::statistics::{Estimate, Sample};

/// Fragments within which a gold passage counts as recalled, and that are ranked.
pub(super) const RECALL_AT: usize = 5;
pub(super) const DEPTH: usize = 10;

/// How good the ranking of one question is, or of several on average; each from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// The share of gold passages among the first five fragments.
    pub recall_at_5: f64,
    /// 1 over the place of the first right fragment, 0 if it is not among the first ten.
    pub mrr: f64,
    /// The normalised discounted cumulative gain of the first ten.
    pub ndcg_at_10: f64,
}

/// The scores of fragments in their order; `gold` has for each passage the fragments that contain
/// it. A second fragment with the same passage gains nothing.
pub(super) fn score(ranked: &[i64], gold: &[HashSet<i64>]) -> Scores {
    let mut open: Vec<&HashSet<i64>> = gold.iter().collect();
    let mut scores = Scores::default();
    let mut gained = 0.0;
    for (place, id) in (1_u32..).zip(ranked.iter().take(DEPTH)) {
        let before = open.len();
        open.retain(|fragments| !fragments.contains(id));
        if open.len() == before {
            continue;
        }
        gained += discount(place);
        if scores.mrr == 0.0 {
            scores.mrr = f64::from(place).recip();
        }
        if place as usize <= RECALL_AT {
            scores.recall_at_5 += (before - open.len()) as f64 / gold.len() as f64;
        }
    }
    let best: f64 = (1..).take(gold.len().min(DEPTH)).map(discount).sum();
    scores.ndcg_at_10 = gained / best;
    scores
}

fn discount(place: u32) -> f64 {
    libm::log2(f64::from(place) + 1.0).recip()
}

/// The mean of each score; of nothing it is 0.
pub(super) fn mean(all: &[Scores]) -> Scores {
    let share = 1.0 / all.len().max(1) as f64;
    all.iter().fold(Scores::default(), |mean, one| Scores {
        recall_at_5: mean.recall_at_5 + one.recall_at_5 * share,
        mrr: mean.mrr + one.mrr * share,
        ndcg_at_10: mean.ndcg_at_10 + one.ndcg_at_10 * share,
    })
}

/// A mean with the interval that holds 95 of 100 means of questions drawn anew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// 2.5 of 100 are below.
    pub low: f64,
    /// 2.5 of 100 are above.
    pub high: f64,
}

/// The paired bootstrap of a mean difference: questions are drawn with both of their scores, of
/// which `differences` has the difference. `None` without questions.
pub(super) fn bootstrap(differences: &[f64]) -> Option<Interval> {
    let estimate = Sample::independent(differences.iter().copied()).mean()?;
    let Estimate { value: mean, low, high } = estimate;
    Some(Interval { mean, low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gold(passages: &[&[i64]]) -> Vec<HashSet<i64>> {
        passages.iter().map(|ids| ids.iter().copied().collect()).collect()
    }

    #[test]
    fn scores_are_those_of_paper_and_pencil() {
        let one = gold(&[&[7, 8]]);
        let all = Scores { recall_at_5: 1.0, mrr: 1.0, ndcg_at_10: 1.0 };
        assert_eq!(score(&[7, 8, 1], &one), all);
        let third = score(&[1, 2, 8, 7], &one);
        assert_eq!(third, Scores { recall_at_5: 1.0, mrr: 1.0 / 3.0, ndcg_at_10: 0.5 });
        let seventh = score(&[1, 2, 3, 4, 5, 6, 7], &one);
        assert_eq!((seventh.recall_at_5, seventh.ndcg_at_10), (0.0, 1.0 / 3.0));
        assert_eq!(score(&[], &one), Scores::default());
        assert_eq!(score(&[1; 12], &one), Scores::default());
        // 1 / log2(2) + 1 / log2(4) over 1 / log2(2) + 1 / log2(3)
        let two = score(&[1, 9, 2], &gold(&[&[1], &[2]]));
        assert!((two.ndcg_at_10 - 1.5 / (1.0 + 1.0 / libm::log2(3.0))).abs() < 1e-12);
        assert_eq!(two.recall_at_5, 1.0);
        let half = score(&[1], &gold(&[&[1], &[2]]));
        assert_eq!((half.recall_at_5, half.mrr), (0.5, 1.0));
        assert_eq!(mean(&[all, Scores::default()]).mrr, 0.5);
    }

    #[test]
    fn an_interval_holds_the_mean_and_tells_noise_from_an_effect() {
        let bootstrap = |differences: &[f64]| super::bootstrap(differences).unwrap();
        assert_eq!(super::bootstrap(&[]), None);
        let same = bootstrap(&[0.25; 50]);
        assert_eq!((same.mean, same.low, same.high), (0.25, 0.25, 0.25));
        let noise: Vec<f64> = (0..100).map(|i| if i % 2 == 0 { 0.3 } else { -0.3 }).collect();
        let around_zero = bootstrap(&noise);
        assert!(around_zero.low < 0.0 && around_zero.high > 0.0);
        // The normal approximation: 1.96 standard errors of 0.03 either way.
        assert!((around_zero.high - 0.0588).abs() < 0.006, "{around_zero:?}");
        let effect = bootstrap(&noise.iter().map(|x| x + 0.2).collect::<Vec<_>>());
        assert!(effect.low > 0.1);
        assert_eq!(bootstrap(&noise), around_zero, "the draws are the same each time");
    }
}
