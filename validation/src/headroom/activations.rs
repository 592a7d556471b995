//! What the feed-forward parts compute on real prompts: how many neurons give nothing, and how long
//! the active ones stay active.

use super::{HeadroomError, Progress, step, tokenise};
use crate::prompts::Prompt;
use aios_contract::{Role, TensorName};
use aios_engine::{Executor, Inner, Observer, Want};
use aios_kernels::{ScaleBlock, scale_block};
use aios_residency::Phase;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Inner activations of a smaller magnitude are counted as small.
pub const SMALL: f32 = 0.001;
/// The active set of a token: the neurons of the largest magnitudes, as a part of all.
pub const ACTIVE: f64 = 0.3;

/// How much of the inner activations, act(gate · x) ⊙ (up · x), is nothing.
#[derive(Clone, Debug, Serialize)]
pub struct Zeros {
    /// Prompts that were read.
    pub prompts: usize,
    /// Of these, how many differ in the tokens that were read.
    pub different: usize,
    /// Their tokens.
    pub tokens: usize,
    /// The fraction that is exactly 0, over all layers.
    pub mean_zero_fraction: f64,
    /// The fraction whose magnitude is below [`SMALL`].
    pub mean_small_fraction: f64,
    /// The fraction that is 0 once quantised for the down projection (SPEC N5): leaving these out
    /// changes no bit. `None` where no layer quantises.
    pub mean_quantised_zero_fraction: Option<f64>,
    /// Neurons of the active set, as a part of all: [`ACTIVE`].
    pub active: f64,
    /// The Jaccard index of the active sets of a token and the next, over all layers; `None` if no
    /// prompt has two tokens.
    pub mean_jaccard: Option<f64>,
    /// That of two sets drawn at random.
    pub chance_jaccard: f64,
    /// The same by layer.
    pub per_layer: Vec<LayerZeros>,
}

/// The figures of [`Zeros`] for one layer.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "see Zeros")]
pub struct LayerZeros {
    pub layer: usize,
    pub zero_fraction: f64,
    pub small_fraction: f64,
    pub quantised_zero_fraction: Option<f64>,
    pub jaccard: Option<f64>,
}

/// Reads each prompt, up to `tokens` tokens of it, from an empty cache of `executor`, and counts.
/// Whatever observer the executor had is gone afterwards.
///
/// # Errors
/// [`HeadroomError::Tokenizer`], [`HeadroomError::Engine`], [`HeadroomError::Interrupted`].
pub fn measure_zeros(
    executor: &mut Executor,
    prompts: &[&Prompt],
    tokens: usize,
    progress: &mut Progress<'_>,
) -> Result<Zeros, HeadroomError> {
    let texts = tokenise(executor.model(), prompts, tokens)?;
    let texts: Vec<&[u32]> = texts.iter().map(|(_, ids)| &**ids).collect();
    measure_tokens(executor, &texts, progress)
}

pub(super) fn measure_tokens(
    executor: &mut Executor,
    texts: &[&[u32]],
    progress: &mut Progress<'_>,
) -> Result<Zeros, HeadroomError> {
    let sums = Arc::new(Mutex::new(vec![Sums::default(); executor.model().config().layers]));
    let watch = Watch { sums: Arc::clone(&sums), quantised: quantised(executor) };
    executor.observe(Some(Box::new(watch)));
    let outcome = read(executor, texts, &sums, progress);
    executor.observe(None);
    outcome?;
    let sums = sums.lock().expect("no panic before");
    Ok(summary(&sums, texts))
}

fn read(
    executor: &mut Executor,
    texts: &[&[u32]],
    sums: &Mutex<Vec<Sums>>,
    progress: &mut Progress<'_>,
) -> Result<(), HeadroomError> {
    for (done, ids) in texts.iter().enumerate() {
        step(progress, "watching activations", done, texts.len())?;
        // The last token of a prompt and the first of the next are no neighbours.
        let mut sums = sums.lock().expect("no panic before");
        sums.iter_mut().for_each(|layer| layer.active.clear());
        drop(sums);
        executor.truncate(0);
        executor.forward(ids, Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
    }
    Ok(())
}

/// How each layer's down projection quantises its input, if it does.
fn quantised(executor: &Executor) -> Vec<Option<ScaleBlock>> {
    let model = executor.model();
    let mut blocks = vec![None; model.config().layers];
    for tensor in model.tensors().iter().filter(|_| !executor.options().exact) {
        let name = TensorName::parse(&tensor.name).filter(|name| name.role == Role::FfnDown);
        let layer = name.and_then(|name| name.layer).and_then(|l| usize::try_from(l).ok());
        if let Some(block) = layer.and_then(|layer| blocks.get_mut(layer)) {
            *block = scale_block(tensor.dtype);
        }
    }
    blocks
}

/// The counts of one layer.
#[derive(Clone, Debug, Default)]
struct Sums {
    values: u64,
    zeros: u64,
    small: u64,
    /// Zeros once quantised, of `quantised_values`.
    quantised: u64,
    quantised_values: u64,
    jaccard: f64,
    pairs: u64,
    /// Whether each neuron was active at the last token; empty before the first.
    active: Vec<bool>,
}

#[derive(Debug)]
struct Watch {
    sums: Arc<Mutex<Vec<Sums>>>,
    quantised: Vec<Option<ScaleBlock>>,
}

impl Observer for Watch {
    fn feed_forward(&mut self, inner: Inner<'_>) {
        let mut sums = self.sums.lock().expect("no panic before");
        let sums = &mut sums[inner.layer];
        for row in inner.rows.chunks_exact(inner.len) {
            sums.add(row, self.quantised[inner.layer]);
        }
    }
}

impl Sums {
    fn add(&mut self, row: &[f32], block: Option<ScaleBlock>) {
        let count = |is: fn(f32) -> bool| row.iter().filter(|x| is(**x)).count() as u64;
        self.values += row.len() as u64;
        self.zeros += count(|x| x == 0.0);
        self.small += count(|x| x.abs() < SMALL);
        if let Some(block) = block {
            self.quantised += quantised_zeros(row, block);
            self.quantised_values += row.len() as u64;
        }
        let now = active(row);
        if !self.active.is_empty() {
            let pairs = || self.active.iter().zip(&now);
            let both = pairs().filter(|(a, b)| **a && **b).count();
            let either = pairs().filter(|(a, b)| **a || **b).count();
            self.jaccard += both as f64 / either.max(1) as f64;
            self.pairs += 1;
        }
        self.active = now;
    }
}

/// Whether each value is among the largest magnitudes; zeros never are.
fn active(row: &[f32]) -> Vec<bool> {
    // The magnitudes of finite floats are ordered as their bits are.
    let magnitude = |x: &f32| x.abs().to_bits();
    let mut sorted: Vec<u32> = row.iter().map(magnitude).collect();
    let rest = sorted.len() - (sorted.len() as f64 * ACTIVE).ceil() as usize;
    let least = match sorted.get(rest) {
        Some(_) => (*sorted.select_nth_unstable(rest).1).max(1),
        None => 1,
    };
    row.iter().map(|x| magnitude(x) >= least).collect()
}

/// Elements of `row` whose quant is 0 by SPEC N5. A block that is not finite has none.
fn quantised_zeros(row: &[f32], block: ScaleBlock) -> u64 {
    let largest = |x: &[f32]| x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let zeros = |x: &[f32], r: f32| x.iter().filter(|x| (**x * r).abs() <= 0.5).count();
    let (len, steps) = match block {
        ScaleBlock::B32 => (32, 127.0),
        ScaleBlock::B256 => (256, 508.0),
    };
    let of_block = |x: &[f32]| {
        let a = largest(x);
        if !a.is_finite() {
            return 0;
        }
        if a < 1e-30 {
            return x.len();
        }
        let r = steps / a;
        let factor = |m: f32| match block {
            ScaleBlock::B32 => 1.0,
            ScaleBlock::B256 if m > a / 2.0 || m < a / 16.0 => 4.0,
            ScaleBlock::B256 if m > a / 4.0 => 2.0,
            ScaleBlock::B256 => 1.0,
        };
        x.chunks(32).map(|group| zeros(group, r / factor(largest(group)))).sum()
    };
    row.chunks(len).map(|x| of_block(x) as u64).sum()
}

fn summary(sums: &[Sums], texts: &[&[u32]]) -> Zeros {
    let ratio = |part: u64, all: u64| (all > 0).then(|| part as f64 / all as f64);
    let total = |of: fn(&Sums) -> u64| sums.iter().map(of).sum::<u64>();
    let jaccard: f64 = sums.iter().map(|layer| layer.jaccard).sum();
    let pairs = total(|layer| layer.pairs);
    let values = total(|layer| layer.values);
    let quantised = (total(|layer| layer.quantised), total(|layer| layer.quantised_values));
    let per_layer = |(layer, sums): (usize, &Sums)| LayerZeros {
        layer,
        zero_fraction: ratio(sums.zeros, sums.values).unwrap_or(0.0),
        small_fraction: ratio(sums.small, sums.values).unwrap_or(0.0),
        quantised_zero_fraction: ratio(sums.quantised, sums.quantised_values),
        jaccard: (sums.pairs > 0).then(|| sums.jaccard / sums.pairs as f64),
    };
    Zeros {
        prompts: texts.len(),
        different: texts.iter().collect::<BTreeSet<_>>().len(),
        tokens: texts.iter().map(|ids| ids.len()).sum(),
        mean_zero_fraction: ratio(total(|layer| layer.zeros), values).unwrap_or(0.0),
        mean_small_fraction: ratio(total(|layer| layer.small), values).unwrap_or(0.0),
        mean_quantised_zero_fraction: ratio(quantised.0, quantised.1),
        active: ACTIVE,
        mean_jaccard: (pairs > 0).then(|| jaccard / pairs as f64),
        chance_jaccard: ACTIVE / (2.0 - ACTIVE),
        per_layer: sums.iter().enumerate().map(per_layer).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten neurons and three tokens, made by hand.
    #[test]
    fn a_feed_made_by_hand_is_counted() {
        let sums = Arc::new(Mutex::new(vec![Sums::default(); 2]));
        let mut watch = Watch { sums: Arc::clone(&sums), quantised: vec![None; 2] };
        let mut rows = [
            [5.0, -4.0, 3.0, 0.0, 0.0, 1e-4, -1e-4, 0.1, 0.2, -0.0],
            [5.0, -4.0, 0.1, 0.0, 0.0, 1e-4, 0.2, 0.3, 2.0, 1.0],
            [0.0; 10],
        ]
        .concat();
        watch.feed_forward(Inner { layer: 1, len: 10, gate: None, rows: &mut rows });
        let zeros = summary(&sums.lock().expect("no panic before"), &[&[1, 2, 3]]);
        assert_eq!((zeros.prompts, zeros.tokens), (1, 3));
        assert_eq!(zeros.mean_zero_fraction, 15.0 / 30.0);
        assert_eq!(zeros.mean_small_fraction, 18.0 / 30.0);
        assert_eq!(zeros.mean_quantised_zero_fraction, None);
        // {0, 1, 2} and {0, 1, 8} share two of four; nothing is active in the third.
        assert_eq!(zeros.mean_jaccard, Some(0.25));
        assert!((zeros.chance_jaccard - 0.3 / 1.7).abs() < 1e-12);
        assert_eq!(zeros.per_layer[0].jaccard, None);
        assert_eq!(zeros.per_layer[1].zero_fraction, 0.5);
    }

    #[test]
    fn quants_of_zero_follow_the_canonical_arithmetic() {
        let mut row = vec![0.0f32; 32];
        row[0] = 127.0;
        row[1] = 0.5;
        row[2] = -0.51;
        assert_eq!(quantised_zeros(&row, ScaleBlock::B32), 30);
        // The largest has 508 steps, but its group's factor of 4 makes them 127; a group at 100 has
        // a factor of 1 and keeps the fine step.
        let mut row = vec![0.0f32; 256];
        row[0] = 508.0;
        row[1] = 2.0;
        row[32] = 100.0;
        row[33] = 0.6;
        row[34] = 0.5;
        assert_eq!(quantised_zeros(&row, ScaleBlock::B256), 256 - 3);
        row[0] = f32::INFINITY;
        assert_eq!(quantised_zeros(&row, ScaleBlock::B256), 0);
        assert_eq!(quantised_zeros(&[0.0; 64], ScaleBlock::B32), 64);
    }
}
