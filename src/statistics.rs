//! Statistics (SPEC J4): quantiles, intervals and tests. All of it is a function of its arguments;
//! draws come from a fixed seed, so that the same records give the same report.

/// Draws of the bootstrap.
const DRAWS: usize = 2000;
/// Where its draws begin.
const SEED: u64 = 0x5EED_0A10_5B00_7575;
/// The quantile of the normal distribution that leaves 2.5 % above it.
pub const Z95: f64 = 1.959_963_984_540_054;
/// Up to so many differences the signed-rank test enumerates; beyond, it approximates.
const EXACT_MOST: usize = 50;

/// A figure with an interval that holds the true one in 95 of 100 samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Measurements of one thing, by what they were taken of: those of the same prompt are not
/// independent of each other, and are drawn together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    clusters: std::collections::BTreeMap<String, Vec<f64>>,
}

impl Sample {
    /// Takes a value in, of the prompt `cluster`.
    pub fn add(&mut self, cluster: &str, value: f64) {
        self.clusters.entry(cluster.to_owned()).or_default().push(value);
    }

    /// Values that are independent of each other.
    pub fn independent(values: impl IntoIterator<Item = f64>) -> Self {
        let clusters = values.into_iter().enumerate().map(|(i, v)| (i.to_string(), vec![v]));
        Self { clusters: clusters.collect() }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.clusters.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }

    /// The values, in order of size.
    pub fn sorted(&self) -> Vec<f64> {
        sorted(self.clusters.values().flatten().copied().collect())
    }

    /// The quantile `share` in 0..=1 with its interval; `None` without values.
    pub fn quantile(&self, share: f64) -> Option<Estimate> {
        self.bootstrap(|values| quantile(&sorted(values), share))
    }

    /// The mean with its interval; `None` without values.
    pub fn mean(&self) -> Option<Estimate> {
        self.bootstrap(|values| mean(&values))
    }

    /// One value for each cluster: its median.
    pub fn medians(&self) -> impl Iterator<Item = (&str, f64)> {
        let median = |values: &Vec<f64>| quantile(&sorted(values.clone()), 0.5);
        self.clusters.iter().filter_map(move |(name, values)| Some((&**name, median(values)?)))
    }

    /// The percentile bootstrap over clusters.
    fn bootstrap(&self, figure: impl Fn(Vec<f64>) -> Option<f64>) -> Option<Estimate> {
        let value = figure(self.clusters.values().flatten().copied().collect())?;
        let clusters: Vec<&Vec<f64>> = self.clusters.values().collect();
        let mut random = Random(SEED);
        let draw = |_| {
            let of = |_| clusters[random.below(clusters.len())];
            figure((0..clusters.len()).flat_map(of).copied().collect())
        };
        let draws = sorted((0..DRAWS).filter_map(draw).collect());
        let (low, high) = (quantile(&draws, 0.025)?, quantile(&draws, 0.975)?);
        Some(Estimate { value, low, high })
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`. That some are likelier by n / 2⁶⁴ shows nowhere.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The arithmetic mean; `None` without values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The least of the sorted `values` that at least the share `share` of them does not exceed: one
/// that occurred. `None` without values.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    // A product like 0.95 * 20 must not count as 19.000000000000004.
    let rank = (share * values.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    values.get(rank.min(values.len()).checked_sub(1)?).copied()
}

/// The share `hits / n` with Wilson's interval of 95 %; `None` if n is 0.
pub fn wilson(hits: u64, n: u64) -> Option<Estimate> {
    wilson_at(hits, n, Z95)
}

/// The share `hits / n` with Wilson's score interval (E. B. Wilson, 1927), without continuity
/// correction, that reaches `z` standard deviations to each side; `None` if n is 0.
pub fn wilson_at(hits: u64, n: u64, z: f64) -> Option<Estimate> {
    if n == 0 {
        return None;
    }
    let (k, n) = (hits as f64, n as f64);
    let (value, z2) = (k / n, z * z);
    let centre = (value + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (value * (1.0 - value) / n + z2 / (4.0 * n * n)).sqrt();
    // Rounding must not push an end beyond the value where they are the same.
    let (low, high) = ((centre - half).clamp(0.0, value), (centre + half).clamp(value, 1.0));
    Some(Estimate { value, low, high })
}

/// What Wilcoxon's signed-rank test says of paired differences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedRank {
    /// Differences that are not zero; only these count.
    pub n: usize,
    /// The lesser of the sums of positive and negative ranks.
    pub statistic: f64,
    /// The probability of a statistic as small or smaller if neither side is favoured.
    pub p: f64,
}

/// The two-sided signed-rank test of `differences`; `None` if all are zero or there are none. Up to
/// 50 the distribution over all signs is enumerated, ties included; beyond it is taken as normal,
/// with the variance less for ties.
pub fn signed_rank(differences: &[f64]) -> Option<SignedRank> {
    let mut nonzero: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    nonzero.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = nonzero.len();
    let ranks = doubled_ranks(&nonzero);
    let total: usize = ranks.iter().sum();
    let positive: usize =
        ranks.iter().zip(&nonzero).filter(|(_, d)| **d > 0.0).map(|(rank, _)| rank).sum();
    let lesser = positive.min(total - positive);
    let p = match n {
        0 => return None,
        1..=EXACT_MOST => enumerated(&ranks, lesser),
        _ => {
            let squares: f64 = ranks.iter().map(|rank| (*rank * *rank) as f64).sum();
            let z = (lesser as f64 - total as f64 / 2.0) / (squares / 4.0).sqrt();
            libm::erfc(-z / std::f64::consts::SQRT_2)
        }
    };
    Some(SignedRank { n, statistic: lesser as f64 / 2.0, p: p.min(1.0) })
}

/// Twice the ranks of values sorted by size; equal ones share the mean of theirs.
fn doubled_ranks(sorted: &[f64]) -> Vec<usize> {
    let mut ranks = Vec::with_capacity(sorted.len());
    for tied in sorted.chunk_by(|a, b| a.abs() == b.abs()) {
        let first = ranks.len() + 1;
        let last = ranks.len() + tied.len();
        ranks.extend(std::iter::repeat_n(first + last, tied.len()));
    }
    ranks
}

/// Twice the share of the 2ⁿ signs that give a sum of positive ranks of at most `lesser`.
fn enumerated(ranks: &[usize], lesser: usize) -> f64 {
    let mut ways = vec![0_u64; lesser + 1];
    ways[0] = 1;
    for &rank in ranks {
        for sum in (rank..=lesser).rev() {
            ways[sum] += ways[sum - rank];
        }
    }
    let all = (1_u64 << ranks.len()) as f64;
    2.0 * ways.iter().sum::<u64>() as f64 / all
}

/// The probabilities `p` of several tests, corrected for their number (Holm), in their order.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut corrected = vec![0.0; p.len()];
    let mut most = 0.0_f64;
    for (rank, index) in order.into_iter().enumerate() {
        most = most.max(p[index] * (p.len() - rank) as f64).min(1.0);
        corrected[index] = most;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    /// What `scripts/make_statistics_goldens.py` had scipy compute.
    #[derive(Deserialize)]
    struct Goldens {
        wilson: Vec<(u64, u64, f64, f64)>,
        quantiles: Vec<(Vec<f64>, f64, f64)>,
        signed_rank: Vec<(Vec<f64>, f64, f64)>,
        holm: Vec<(Vec<f64>, Vec<f64>)>,
        mean: (Vec<f64>, f64, f64),
    }

    fn goldens() -> Goldens {
        serde_json::from_str(include_str!("../testdata/statistics.json")).unwrap()
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs().max(1e-3)
    }

    #[test]
    fn the_comparator_rejects_what_differs() {
        assert!(near(0.25, 0.25) && !near(0.25, 0.250_000_01) && !near(f64::NAN, 0.25));
    }

    #[test]
    fn the_known_values_of_scipy_come_out() {
        let goldens = goldens();
        for (hits, n, low, high) in goldens.wilson {
            let found = wilson(hits, n).unwrap();
            assert!(near(found.low, low) && near(found.high, high), "{hits}/{n}: {found:?}");
        }
        for (values, share, wanted) in goldens.quantiles {
            assert_eq!(quantile(&sorted(values), share), Some(wanted));
        }
        for (differences, statistic, p) in goldens.signed_rank {
            let found = signed_rank(&differences).unwrap();
            assert!(near(found.statistic, statistic) && near(found.p, p), "{found:?}, {p}");
        }
        for (p, wanted) in goldens.holm {
            let found = holm(&p);
            assert!(found.iter().zip(&wanted).all(|(a, b)| near(*a, *b)), "{found:?}");
        }
    }

    /// Draws differ between the programs; so the ends are the same but for the draws' noise.
    #[test]
    fn the_bootstrap_agrees_with_that_of_scipy() {
        let (values, low, high) = goldens().mean;
        let mut sample = Sample::default();
        values.iter().enumerate().for_each(|(i, value)| sample.add(&i.to_string(), *value));
        let found = sample.mean().unwrap();
        let width = high - low;
        assert!((found.low - low).abs() < 0.06 * width, "{found:?}, {low}");
        assert!((found.high - high).abs() < 0.06 * width, "{found:?}, {high}");
        assert_eq!(sample.mean(), Some(found), "the draws are the same each time");
    }

    #[test]
    fn repeats_of_a_prompt_are_no_further_evidence() {
        let (mut once, mut often) = (Sample::default(), Sample::default());
        for (i, value) in [1.0, 5.0, 2.0, 8.0, 3.0, 9.0].into_iter().enumerate() {
            once.add(&i.to_string(), value);
            (0..20).for_each(|_| often.add(&i.to_string(), value));
        }
        let (once, often) = (once.mean().unwrap(), often.mean().unwrap());
        assert!((once.high - once.low - (often.high - often.low)).abs() < 1e-9);
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(Sample::default().mean(), None);
        assert_eq!(Sample::default().quantile(0.5), None);
        assert_eq!((wilson(0, 0), quantile(&[], 0.5), mean(&[])), (None, None, None));
        assert_eq!((signed_rank(&[]), signed_rank(&[0.0, 0.0])), (None, None));
    }

    proptest! {
        #[test]
        fn intervals_hold_their_figure(
            values in prop::collection::vec(-1e6..1e6_f64, 1..30),
            share in 0.0..1.0_f64,
        ) {
            let mut sample = Sample::default();
            values.iter().enumerate().for_each(|(i, v)| sample.add(&(i % 7).to_string(), *v));
            let (least, most) = (quantile(&sorted(values.clone()), 0.0), sample.quantile(1.0));
            let found = sample.quantile(share).unwrap();
            prop_assert!(values.contains(&found.value));
            prop_assert!(found.low <= found.high);
            prop_assert!(least.unwrap() <= found.low && found.high <= most.unwrap().value);
        }

        #[test]
        fn wilson_is_a_share(n in 1..500_u64, part in 0.0..1.0_f64) {
            let hits = (part * n as f64) as u64;
            let (found, other) = (wilson(hits, n).unwrap(), wilson(n - hits, n).unwrap());
            prop_assert!(0.0 <= found.low && found.low <= found.value);
            prop_assert!(found.value <= found.high && found.high <= 1.0);
            prop_assert!((found.low + other.high - 1.0).abs() < 1e-12, "mirrored");
        }

        #[test]
        fn a_test_does_not_care_for_order_sign_or_scale(
            mut differences in prop::collection::vec(-20..20_i32, 1..70),
        ) {
            let test = |d: &[i32], by: f64| {
                signed_rank(&d.iter().map(|d| f64::from(*d) * by).collect::<Vec<_>>())
            };
            let found = test(&differences, 1.0);
            prop_assert_eq!(test(&differences, -1.0), found);
            prop_assert_eq!(test(&differences, 0.25), found);
            differences.reverse();
            prop_assert_eq!(test(&differences, 1.0), found);
            prop_assert!(found.is_none_or(|found| found.p > 0.0 && found.p <= 1.0));
        }

        #[test]
        fn a_correction_never_makes_a_result_likelier(p in prop::collection::vec(0.0..1.0, 0..9)) {
            let found = holm(&p);
            prop_assert!(found.iter().zip(&p).all(|(a, b)| a >= b && *a <= 1.0));
        }
    }
}
