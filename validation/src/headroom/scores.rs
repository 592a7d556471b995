//! What a neuron is worth to a token, and what a run without the least of them does.

use super::files::GgufFile;
use crate::logits::log_sum_exp;
use aios_contract::{ActivationFn, FfnLayout, ModelConfig, Role};
use aios_engine::{EngineError, Executor, Inner, Observer, Want};
use aios_kernels::{Isa, Pool, activate};
use aios_residency::Phase;
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Buckets of a histogram: the upper half of a positive f32, of which 128 are an octave. The last
/// is for all that is infinite or no number.
const BUCKETS: usize = (f32::INFINITY.to_bits() >> 16) as usize + 1;
/// Positions that are scored in a prompt, the last ones: what bounds the memory.
const SCORED_MAX: usize = 128;

/// By what a neuron is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// By |act(gate · x)|, known before its rows of up and down are read.
    GateFirst,
    /// By |act(gate · x) · (up · x)| times the norm of its column of the down projection, known
    /// before that column is read.
    Down,
    /// By the mean of that over the calibration prompts, known before anything is read: the same
    /// neurons for every token, of which no row is needed.
    Static,
}

impl Skip {
    /// Those that a model's layers allow.
    pub(super) fn of(config: &ModelConfig) -> &'static [Self] {
        match config.ffn.layout {
            FfnLayout::Plain => &[Self::Down, Self::Static],
            FfnLayout::Gated | FfnLayout::GatedFused => {
                &[Self::GateFirst, Self::Down, Self::Static]
            }
        }
    }

    /// The parts of the neurons that are left out. A static map costs more.
    pub(super) const fn targets(self) -> [f64; 6] {
        match self {
            Self::GateFirst | Self::Down => [0.05, 0.1, 0.2, 0.3, 0.4, 0.5],
            Self::Static => [0.01, 0.02, 0.05, 0.1, 0.2, 0.3],
        }
    }

    /// The name in reports.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::GateFirst => "gate first (up and down)",
            Self::Down => "down projection",
            Self::Static => "static map (all three)",
        }
    }
}

/// Gives each neuron its score.
#[derive(Clone, Debug)]
pub(crate) struct Scorer {
    isa: Isa,
    pool: Arc<Pool>,
    activation: ActivationFn,
    /// Norms of the columns of each layer's down projection, \[layer\]\[neuron\].
    norms: Arc<Vec<Vec<f32>>>,
    /// The mean scores by which a static map is made, \[layer\]\[neuron\].
    means: Arc<Vec<Vec<f32>>>,
    /// \[n\]\[neuron\]
    scores: Vec<f32>,
}

impl Scorer {
    pub fn new(file: &GgufFile, executor: &Executor) -> Result<Self, EngineError> {
        let config = executor.model().config();
        let isa = executor.options().isa;
        let norms = (0..config.layers).into_par_iter().map(|layer| column_norms(isa, file, layer));
        let pool = Pool::new(1).map_err(|source| EngineError::Threads { threads: 1, source })?;
        Ok(Self {
            isa,
            pool: Arc::new(pool),
            activation: config.ffn.activation,
            norms: Arc::new(norms.collect()),
            means: Arc::default(),
            scores: Vec::new(),
        })
    }

    /// Norms of the columns of each layer's down projection, \[layer\]\[neuron\].
    pub fn norms(&self) -> &[Vec<f32>] {
        &self.norms
    }

    /// Makes a static map of these mean scores, \[layer\]\[neuron\].
    pub fn set_means(&mut self, means: Vec<Vec<f32>>) {
        self.means = Arc::new(means);
    }

    /// The scores of `inner`, \[n\]\[neuron\].
    fn score(&mut self, skip: Skip, inner: &Inner<'_>) -> &[f32] {
        self.scores.clear();
        match (skip, inner.gate) {
            (Skip::GateFirst, Some(gate)) => {
                let Self { isa, pool, activation, scores, .. } = self;
                scores.extend_from_slice(gate);
                activate(*isa, pool, *activation, None, inner.len, scores);
                scores.iter_mut().for_each(|score| *score = score.abs());
            }
            (Skip::Static, _) => {
                let rows = inner.rows.len() / inner.len.max(1);
                (0..rows).for_each(|_| self.scores.extend_from_slice(&self.means[inner.layer]));
            }
            _ => {
                let norms = &self.norms[inner.layer];
                for row in inner.rows.chunks_exact(inner.len) {
                    self.scores.extend(row.iter().zip(norms).map(|(x, norm)| x.abs() * norm));
                }
            }
        }
        &self.scores
    }
}

/// The norms of the columns of a layer's down projection, summed in f64.
fn column_norms(isa: Isa, file: &GgufFile, layer: usize) -> Vec<f32> {
    let Some(down) = file.matrix(Role::FfnDown, layer) else { return Vec::new() };
    let mut squares = vec![0.0f64; down.cols];
    let mut row = Vec::new();
    for index in 0..down.rows {
        down.floats(isa, index * down.cols, down.cols, &mut row);
        for (sum, x) in squares.iter_mut().zip(&row) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    squares.into_iter().map(|sum| sum.sqrt() as f32).collect()
}

/// Counts scores, layer by layer.
#[derive(Debug)]
pub(super) struct Calibrator {
    pub scorer: Scorer,
    pub skip: Skip,
    /// \[layer\]
    pub histograms: Arc<Mutex<Vec<Histogram>>>,
}

impl Observer for Calibrator {
    fn feed_forward(&mut self, inner: Inner<'_>) {
        let mut histograms = self.histograms.lock().expect("no panic before");
        let histogram = &mut histograms[inner.layer];
        self.scorer.score(self.skip, &inner).iter().for_each(|score| histogram.add(*score));
    }
}

/// Sums the scores of each neuron.
#[derive(Debug)]
pub(super) struct Sums {
    pub scorer: Scorer,
    /// \[layer\]\[neuron\]
    pub sums: Arc<Mutex<Vec<Vec<f64>>>>,
}

impl Observer for Sums {
    fn feed_forward(&mut self, inner: Inner<'_>) {
        let mut sums = self.sums.lock().expect("no panic before");
        let sums = &mut sums[inner.layer];
        sums.resize(inner.len, 0.0);
        for row in self.scorer.score(Skip::Down, &inner).chunks_exact(inner.len) {
            sums.iter_mut().zip(row).for_each(|(sum, score)| *sum += f64::from(*score));
        }
    }
}

/// How often scores of each size occur.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    pub zeros: u64,
    pub total: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], zeros: 0, total: 0 }
    }

    fn add(&mut self, score: f32) {
        self.counts[((score.to_bits() >> 16) as usize).min(BUCKETS - 1)] += 1;
        self.zeros += u64::from(score == 0.0);
        self.total += 1;
    }

    /// A threshold below which a fraction of the scores lies, up to the width of a bucket, 0.8 %.
    pub fn threshold(&self, fraction: f64) -> f32 {
        let wanted = fraction * self.total as f64;
        let mut below = 0;
        let reaches = |(_, count): &(usize, &u64)| {
            below += **count;
            below as f64 >= wanted
        };
        let bucket = self.counts.iter().enumerate().find(reaches).map_or(0, |(bucket, _)| bucket);
        f32::from_bits(((bucket + 1).min(BUCKETS - 1) as u32) << 16)
    }
}

/// Sets neurons whose score is below their layer's threshold to zero.
#[derive(Debug)]
pub(super) struct Pruner {
    pub scorer: Scorer,
    pub skip: Skip,
    /// \[layer\]
    pub thresholds: Vec<f32>,
    pub counts: Arc<Mutex<Pruned>>,
}

/// Neurons left out, of how many.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pruned {
    pub dropped: u64,
    pub total: u64,
}

impl Observer for Pruner {
    fn feed_forward(&mut self, inner: Inner<'_>) {
        let threshold = self.thresholds[inner.layer];
        let scores = self.scorer.score(self.skip, &inner);
        let mut dropped = 0;
        for (x, score) in inner.rows.iter_mut().zip(scores) {
            if *score < threshold {
                *x = 0.0;
                dropped += 1;
            }
        }
        let mut counts = self.counts.lock().expect("no panic before");
        counts.dropped += dropped;
        counts.total += inner.rows.len() as u64;
    }
}

/// What an unchanged run says at the scored positions of one prompt.
#[derive(Debug, Default)]
pub(crate) struct Base {
    vocab: usize,
    /// \[position\]\[vocab\]
    logits: Vec<f32>,
    /// The same as probabilities.
    probabilities: Vec<f32>,
    /// ln Σ exp(logit) of each position.
    lse: Vec<f64>,
}

impl Base {
    /// Runs `ids` on `executor`.
    pub fn of(executor: &mut Executor, ids: &[u32]) -> Result<Self, EngineError> {
        let mut base = Self { vocab: executor.model().config().vocab, ..Self::default() };
        run(executor, ids, &mut |_, logits| {
            let lse = log_sum_exp(logits);
            let probability = |x: &f32| libm::exp(f64::from(*x) - lse) as f32;
            base.probabilities.extend(logits.iter().map(probability));
            base.logits.extend_from_slice(logits);
            base.lse.push(lse);
            Ok(())
        })?;
        Ok(base)
    }
}

/// Divergences and losses of a changed run beside those of the unchanged one.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Σ p (ln p − ln q) of each position, in nats.
    divergences: Vec<f64>,
    /// Those of the first positions of prompts, where the whole context is one token.
    openings: Vec<f64>,
    /// How much larger −ln of the following token's probability is.
    losses: Vec<f64>,
    base_losses: Vec<f64>,
}

/// What a change costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Positions scored.
    pub positions: usize,
    /// The mean KL divergence from the unchanged run, in nats.
    pub kl: f64,
    /// Its standard error.
    pub kl_standard_error: f64,
    /// The median divergence. Where it is far below the mean, a few positions make the mean.
    pub kl_median: f64,
    /// The part of all divergence that the hundredth of the positions with the largest has.
    pub kl_top_percent: f64,
    /// The mean divergence at the first position of prompts, where one token is the whole context;
    /// `None` if none of these was scored.
    pub kl_opening: Option<f64>,
    /// The mean divergence at all other positions; `None` if there is none.
    pub kl_later: Option<f64>,
    /// The perplexity over that of the unchanged run.
    pub perplexity_ratio: f64,
    /// Its standard error, from the differences at each position.
    pub perplexity_ratio_standard_error: f64,
    /// The perplexity of the unchanged run.
    pub base_perplexity: f64,
}

impl Compared {
    /// Runs `ids` on `executor`, which has the change, and compares with `base`.
    pub fn add(
        &mut self,
        executor: &mut Executor,
        ids: &[u32],
        base: &Base,
    ) -> Result<(), EngineError> {
        let mut at = 0;
        run(executor, ids, &mut |position, logits| {
            let range = at * base.vocab..(at + 1) * base.vocab;
            let (base_logits, p) = (&base.logits[range.clone()], &base.probabilities[range]);
            let (lse, base_lse) = (log_sum_exp(logits), base.lse[at]);
            let differences = p.iter().zip(base_logits).zip(logits);
            let sum: f64 = differences.map(|((p, a), b)| f64::from(*p) * f64::from(a - b)).sum();
            let target = ids[position + 1] as usize;
            let base_loss = base_lse - f64::from(base_logits[target]);
            let divergence = sum - base_lse + lse;
            self.divergences.push(divergence);
            if position == 0 {
                self.openings.push(divergence);
            }
            self.losses.push(lse - f64::from(logits[target]) - base_loss);
            self.base_losses.push(base_loss);
            at += 1;
            Ok(())
        })
    }

    /// What the change costs over all positions, of which there is at least one.
    pub fn cost(&self) -> Cost {
        let (kl, kl_standard_error) = mean(&self.divergences);
        let (loss, loss_error) = mean(&self.losses);
        let ratio = libm::exp(loss);
        let mut sorted = self.divergences.clone();
        sorted.sort_by(f64::total_cmp);
        let top = sorted.len().div_ceil(100);
        let sum = sorted.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let openings: f64 = self.openings.iter().sum();
        let part = |sum: f64, count: usize| (count > 0).then(|| sum / count as f64);
        let all: f64 = self.divergences.iter().sum();
        Cost {
            positions: self.divergences.len(),
            kl,
            kl_standard_error,
            kl_median: sorted[sorted.len() / 2],
            kl_top_percent: sorted[sorted.len() - top..].iter().sum::<f64>() / sum,
            kl_opening: part(openings, self.openings.len()),
            kl_later: part(all - openings, self.divergences.len() - self.openings.len()),
            perplexity_ratio: ratio,
            perplexity_ratio_standard_error: ratio * loss_error,
            base_perplexity: libm::exp(mean(&self.base_losses).0),
        }
    }
}

/// The mean and its standard error.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, (squares / (n * (n - 1.0).max(1.0))).sqrt())
}

/// The positions that are scored of a prompt of `tokens` tokens: the last that have a successor.
pub(super) fn scored_positions(tokens: usize) -> Range<usize> {
    let last = tokens.saturating_sub(1);
    last.saturating_sub(SCORED_MAX)..last
}

/// Runs `ids` from an empty cache and hands the logits of the last positions that have a successor
/// to `sink`.
fn run(
    executor: &mut Executor,
    ids: &[u32],
    sink: &mut aios_engine::Sink<'_>,
) -> Result<(), EngineError> {
    let scored = scored_positions(ids.len());
    executor.truncate(0);
    executor.forward(&ids[..scored.start], Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
    executor.forward(&ids[scored], Phase::Prefill, Want::All, sink)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_cut_off_the_fraction_asked_for() {
        let mut histogram = Histogram::new();
        (0..1000).for_each(|i| histogram.add(i as f32 / 100.0));
        assert_eq!((histogram.total, histogram.zeros), (1000, 1));
        for fraction in [0.05, 0.3, 0.5] {
            let threshold = f64::from(histogram.threshold(fraction));
            let exact = fraction * 10.0;
            assert!((threshold / exact - 1.0).abs() < 0.02, "{fraction}: {threshold}");
        }
    }

    #[test]
    fn the_last_positions_with_a_successor_are_scored() {
        assert_eq!(scored_positions(0), 0..0);
        assert_eq!(scored_positions(2), 0..1);
        assert_eq!(scored_positions(SCORED_MAX + 10), 9..SCORED_MAX + 9);
    }

    #[test]
    fn the_cost_of_known_differences() {
        let compared = Compared {
            divergences: vec![0.1, 0.3],
            openings: vec![0.1],
            losses: vec![0.2, -0.2],
            base_losses: vec![1.0, 3.0],
        };
        let cost = compared.cost();
        assert_eq!((cost.positions, cost.kl, cost.perplexity_ratio), (2, 0.2, 1.0));
        // One of two positions is the top hundredth, rounded up.
        assert_eq!(cost.kl_median, 0.3);
        assert!((cost.kl_top_percent - 0.75).abs() < 1e-12);
        assert_eq!(cost.kl_opening, Some(0.1));
        assert!(cost.kl_later.is_some_and(|kl| (kl - 0.3).abs() < 1e-12));
        let later = Compared { openings: Vec::new(), ..compared };
        assert_eq!((later.cost().kl_opening, later.cost().kl_later), (None, Some(0.2)));
        assert!((cost.kl_standard_error - 0.1).abs() < 1e-12);
        assert!((cost.perplexity_ratio_standard_error - 0.2).abs() < 1e-12);
        assert!((cost.base_perplexity - 2.0f64.exp()).abs() < 1e-12);
    }
}
