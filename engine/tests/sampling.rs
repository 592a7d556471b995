//! Sampling follows the distribution that it states (SPEC S1 rests on it).

#![allow(clippy::disallowed_methods, reason = "tests compare with std's")]

use aios_engine::{Executor, ExecutorOptions, Model, Sampler, SamplerOptions, Want};
use aios_residency::Phase;
use std::path::Path;

const SAMPLES: usize = 200_000;

/// The logits of a micro model after a prompt.
fn logits() -> Vec<f32> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let model = Model::load(&models.join("micro-llama-q4km.gguf")).expect("a micro model");
    let mut executor = Executor::new(model, ExecutorOptions::new(64)).expect("an executor");
    let mut logits = Vec::new();
    let mut keep = |_, row: &[f32]| {
        logits = row.to_vec();
        Ok(())
    };
    executor.forward(&[5, 9, 2, 77], Phase::Prefill, Want::Last, &mut keep).expect("a pass");
    logits
}

/// Nothing is cut off: the softmax of logits over the temperature.
fn open(temperature: f32) -> SamplerOptions {
    SamplerOptions {
        temperature,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 42,
        ..SamplerOptions::default()
    }
}

/// How often each token comes up, over positions that follow each other. Threads share them.
fn counts(logits: &[f32], options: SamplerOptions) -> Vec<u32> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    let count = |part: usize| {
        let mut sampler = Sampler::new(options).expect("good options");
        let mut counts = vec![0_u32; logits.len()];
        for position in (part..SAMPLES).step_by(threads) {
            counts[sampler.sample(logits, &[], &[], position) as usize] += 1;
        }
        counts
    };
    std::thread::scope(|scope| {
        let count = &count;
        let parts: Vec<_> = (0..threads).map(|part| scope.spawn(move || count(part))).collect();
        let mut all = vec![0; logits.len()];
        for part in parts {
            let counts = part.join().expect("a thread that ends");
            all.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        all
    })
}

/// The probabilities that the options state, by the plain formula.
fn stated(logits: &[f32], temperature: f64, top_k: usize) -> Vec<f64> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut ranked: Vec<f32> = logits.to_vec();
    ranked.sort_by(|a, b| b.total_cmp(a));
    let bar = if top_k == 0 { f32::NEG_INFINITY } else { ranked[top_k - 1] };
    let weight = |&logit: &f32| match logit >= bar {
        true => (f64::from(logit - best) / temperature).exp(),
        false => 0.0,
    };
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// How many standard deviations the chi-square lies above its mean. Tokens that are expected fewer
/// than 5 times share a bin.
fn chi_square(counts: &[u32], stated: &[f64]) -> f64 {
    let (mut chi, mut bins) = (0.0, 0);
    let (mut rare_count, mut rare_expected) = (0.0, 0.0);
    let mut add = |count: f64, expected: f64| {
        if expected > 0.0 {
            chi += (count - expected).powi(2) / expected;
            bins += 1;
        }
    };
    for (&count, probability) in counts.iter().zip(stated) {
        let (count, expected) = (f64::from(count), probability * SAMPLES as f64);
        if expected < 5.0 {
            rare_count += count;
            rare_expected += expected;
        } else {
            add(count, expected);
        }
    }
    add(rare_count, rare_expected);
    let freedom = f64::from(bins - 1);
    (chi - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn samples_follow_the_stated_distribution_and_a_biased_sampler_does_not() {
    let logits = logits();
    let plain = chi_square(&counts(&logits, open(0.8)), &stated(&logits, 0.8, 0));
    assert!(plain < 4.0, "{plain}");
    let cut = counts(&logits, SamplerOptions { top_k: 40, ..open(1.3) });
    let cut = chi_square(&cut, &stated(&logits, 1.3, 40));
    assert!(cut < 4.0, "{cut}");
    // The temperature a little off, and the likeliest token too likely: both must show.
    let warmer = chi_square(&counts(&logits, open(0.84)), &stated(&logits, 0.8, 0));
    assert!(warmer > 4.0, "{warmer}");
    let mut nudged = logits.clone();
    let (likeliest, _) = aios_engine::argmax(&logits);
    nudged[likeliest as usize] += 0.4;
    let nudged = chi_square(&counts(&nudged, open(0.8)), &stated(&logits, 0.8, 0));
    assert!(nudged > 4.0, "{nudged}");
}
