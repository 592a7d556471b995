//! What leaving out neurons costs: thresholds that skip a given part of them, calibrated on some
//! prompts and scored on others, against the unmodified run.
//!
//! Both runs are exact. In int8 any change, however small, also rounds activations another way from
//! there on, so that two runs differ by a KL of some 0.005 before anything is lost by the change.

use super::cache::ScoredCache;
use super::files::GgufFile;
use super::scores::{
    Base, Calibrator, Compared, Histogram, Pruned, Pruner, Scorer, Sums, scored_positions,
};
use super::{HeadroomError, Progress, cache, step};
use aios_engine::{Executor, ExecutorOptions, Model, Observer, Want};
use aios_kernels::CacheType;
use aios_residency::Phase;
use serde::Serialize;
use std::sync::{Arc, Mutex};

pub use super::scores::{Cost, Skip};

/// What changed runs cost. Thresholds are calibrated on every other prompt, the rest is scored.
#[derive(Clone, Debug, Serialize)]
pub struct Sparsity {
    /// Prompts that the thresholds are calibrated on.
    pub calibration_prompts: usize,
    /// Their tokens.
    pub calibration_tokens: usize,
    /// Prompts that are scored.
    pub scored_prompts: usize,
    /// What the scored positions read of the cache.
    pub scored_cache: ScoredCache,
    /// A curve for each way to skip that the model's layers allow.
    pub curves: Vec<Curve>,
    /// The cost of a cache of q8_0 on the same prompts; `None` where the heads do not fit, or the
    /// unmodified run has such a cache.
    pub q8_0_cache: Option<Cost>,
    /// The cost of int8 arithmetic over exact: what the engine pays as it is.
    pub int8: Cost,
}

/// The costs of a way to skip.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// By what neurons are left out.
    pub skip: Skip,
    /// The fraction of scores that are exactly 0 on the calibration prompts: these cost nothing. Of
    /// a static map none is known to, since other prompts may need what these did not.
    pub zero_fraction: f64,
    /// By ascending sparsity.
    pub points: Vec<Point>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// The part of the neurons that the thresholds were calibrated to.
    pub target: f64,
    /// The part that they left out of the scored prompts.
    pub sparsity: f64,
    /// What it costs.
    pub cost: Cost,
}

/// A run with neurons left out.
struct Trial {
    skip: Skip,
    target: f64,
    thresholds: Vec<f32>,
    counts: Arc<Mutex<Pruned>>,
    compared: Compared,
}

pub(super) fn measure(
    model: &Arc<Model>,
    options: &ExecutorOptions,
    file: &GgufFile,
    texts: &[&[u32]],
    progress: &mut Progress<'_>,
) -> Result<Sparsity, HeadroomError> {
    let executor = &mut Executor::new(Arc::clone(model), exact(options))?;
    let calibration: Vec<&[u32]> = texts.iter().copied().step_by(2).collect();
    let scored: Vec<&[u32]> = texts.iter().copied().skip(1).step_by(2).collect();
    let mut scorer = Scorer::new(file, executor)?;
    scorer.set_means(means(executor, &scorer, &calibration, progress)?);
    let mut zeros = Vec::new();
    let mut trials = Vec::new();
    for &skip in Skip::of(executor.model().config()) {
        let histograms = calibrate(executor, &scorer, skip, &calibration, progress)?;
        let sum = |of: fn(&Histogram) -> u64| histograms.iter().map(of).sum::<u64>() as f64;
        let zero_fraction = match skip {
            Skip::Static => 0.0,
            _ => sum(|h| h.zeros) / sum(|h| h.total).max(1.0),
        };
        zeros.push((skip, zero_fraction));
        trials.extend(skip.targets().map(|target| Trial {
            skip,
            target,
            thresholds: histograms.iter().map(|layer| layer.threshold(target)).collect(),
            counts: Arc::default(),
            compared: Compared::default(),
        }));
    }
    let mut others = others(model, options)?;
    let runs = trials.len() + others.len();
    for (prompt, ids) in scored.iter().enumerate() {
        executor.observe(None);
        let base = Base::of(executor, ids)?;
        for (run, trial) in trials.iter_mut().enumerate() {
            step(progress, "skipping neurons", prompt * runs + run, scored.len() * runs)?;
            executor.observe(Some(Box::new(trial.pruner(&scorer))));
            let outcome = trial.compared.add(executor, ids, &base);
            executor.observe(None);
            outcome?;
        }
        for (run, (other, compared)) in others.iter_mut().enumerate() {
            let done = prompt * runs + trials.len() + run;
            step(progress, "skipping neurons", done, scored.len() * runs)?;
            compared.add(other, ids, &base)?;
        }
    }
    let seen = |ids: &&[u32]| scored_positions(ids.len()).map(|position| position + 1);
    let contexts: Vec<usize> = scored.iter().flat_map(seen).collect();
    let points = |skip| trials.iter().filter(move |trial| trial.skip == skip).map(Trial::point);
    let curve =
        |(skip, zero_fraction)| Curve { skip, zero_fraction, points: points(skip).collect() };
    Ok(Sparsity {
        calibration_prompts: calibration.len(),
        calibration_tokens: calibration.iter().map(|ids| ids.len()).sum(),
        scored_prompts: scored.len(),
        scored_cache: cache::scored(model.config(), &contexts),
        curves: zeros.into_iter().map(curve).collect(),
        q8_0_cache: others.get(1).map(|(_, compared)| compared.cost()),
        int8: others[0].1.cost(),
    })
}

impl Trial {
    fn pruner(&self, scorer: &Scorer) -> Pruner {
        Pruner {
            scorer: scorer.clone(),
            skip: self.skip,
            thresholds: self.thresholds.clone(),
            counts: Arc::clone(&self.counts),
        }
    }

    fn point(&self) -> Point {
        let Pruned { dropped, total } = *self.counts.lock().expect("no panic before");
        let sparsity = dropped as f64 / total.max(1) as f64;
        Point { target: self.target, sparsity, cost: self.compared.cost() }
    }
}

/// The scores that each layer's neurons get on the calibration prompts.
pub(crate) fn calibrate(
    executor: &mut Executor,
    scorer: &Scorer,
    skip: Skip,
    texts: &[&[u32]],
    progress: &mut Progress<'_>,
) -> Result<Vec<Histogram>, HeadroomError> {
    let layers = executor.model().config().layers;
    let histograms = Arc::new(Mutex::new(vec![Histogram::new(); layers]));
    let calibrator =
        Calibrator { scorer: scorer.clone(), skip, histograms: Arc::clone(&histograms) };
    read(executor, Box::new(calibrator), texts, progress)?;
    let histograms = histograms.lock().expect("no panic before");
    Ok(histograms.clone())
}

/// The sum of the scores of each neuron over the texts, which ranks them as the mean does.
fn means(
    executor: &mut Executor,
    scorer: &Scorer,
    texts: &[&[u32]],
    progress: &mut Progress<'_>,
) -> Result<Vec<Vec<f32>>, HeadroomError> {
    let sums = Arc::new(Mutex::new(vec![Vec::new(); executor.model().config().layers]));
    let observer = Sums { scorer: scorer.clone(), sums: Arc::clone(&sums) };
    read(executor, Box::new(observer), texts, progress)?;
    let sums = sums.lock().expect("no panic before");
    Ok(sums.iter().map(|layer| layer.iter().map(|sum| *sum as f32).collect()).collect())
}

/// Reads the texts and lets `observer` see them.
fn read(
    executor: &mut Executor,
    observer: Box<dyn Observer>,
    texts: &[&[u32]],
    progress: &mut Progress<'_>,
) -> Result<(), HeadroomError> {
    executor.observe(Some(observer));
    for (done, ids) in texts.iter().enumerate() {
        step(progress, "calibrating thresholds", done, texts.len())?;
        executor.truncate(0);
        executor.forward(ids, Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
    }
    executor.observe(None);
    Ok(())
}

fn exact(options: &ExecutorOptions) -> ExecutorOptions {
    ExecutorOptions { exact: true, ..options.clone() }
}

/// Executors that compute in other ways: in int8; and, if that makes a difference and fits, exactly
/// with a cache of q8_0.
fn others(
    model: &Arc<Model>,
    options: &ExecutorOptions,
) -> Result<Vec<(Executor, Compared)>, HeadroomError> {
    let (cache_k, cache_v) = (CacheType::Q8_0, CacheType::Q8_0);
    let mut ways = vec![ExecutorOptions { exact: false, ..options.clone() }];
    if cache::q8_0_fits(model.config()) && ![options.cache_k, options.cache_v].contains(&cache_k) {
        ways.push(ExecutorOptions { cache_k, cache_v, ..exact(options) });
    }
    let start = |options| Ok((Executor::new(Arc::clone(model), options)?, Compared::default()));
    ways.into_iter().map(start).collect()
}
