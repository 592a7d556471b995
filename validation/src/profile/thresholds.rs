//! How many neurons say so little that leaving them out stays within a plan's budget (SPEC D18):
//! thresholds of each layer, fitted on some prompts and judged on others.

use super::{ProfileError, Progress, step};
use crate::headroom::HeadroomError;
use crate::headroom::files::GgufFile;
use crate::headroom::scores::{Base, Compared, Histogram, Scorer, Skip};
use crate::headroom::sparsity::calibrate;
use aios_engine::{Executor, ExecutorOptions, FfnThresholds, Model};
use aios_residency::plan::{
    Quality, Table, TableEntry, TableKind, TableWriter, ThresholdPoint, ThresholdReport,
};
use std::path::Path;
use std::sync::Arc;

/// The parts of each layer's neurons that are left out on trial.
const TARGETS: [f64; 6] = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4];

/// What came of it.
pub(super) struct Made {
    /// The table of those in force.
    pub entry: Option<TableEntry>,
    /// What was measured.
    pub report: ThresholdReport,
    /// Those in force.
    pub thresholds: Option<Arc<FfnThresholds>>,
}

/// A part of the neurons left out, and what that costs.
struct Trial {
    target: f64,
    thresholds: Arc<FfnThresholds>,
    compared: Compared,
}

/// Finds the largest part that is within the budget of `quality`, and writes its table; `None` if
/// nothing may change. What all runs are compared in is exact arithmetic: in int8 a change of any
/// size rounds differently from there on.
pub(super) fn profile(
    model: &Arc<Model>,
    options: &ExecutorOptions,
    (fitting, held): (&[&[u32]], &[&[u32]]),
    (quality, folder): (Quality, &Path),
    progress: &mut Progress<'_>,
) -> Result<Option<Made>, ProfileError> {
    if quality == Quality::Exact {
        return Ok(None);
    }
    let options = ExecutorOptions { exact: true, ..options.clone() };
    let mut executor = Executor::new(Arc::clone(model), options)?;
    let file = GgufFile::open(model.path()).map_err(failed)?;
    let scorer = Scorer::new(&file, &executor)?;
    let histograms =
        calibrate(&mut executor, &scorer, Skip::Down, fitting, progress).map_err(failed)?;
    let mut trials = Vec::new();
    for target in TARGETS {
        let least = least(model, &scorer, &histograms, target);
        let thresholds = Arc::new(FfnThresholds::of(model, least)?);
        trials.push(Trial { target, thresholds, compared: Compared::default() });
    }
    for (prompt, ids) in held.iter().enumerate() {
        executor.cut_by(None);
        let base = Base::of(&mut executor, ids)?;
        for (i, trial) in trials.iter_mut().enumerate() {
            let (done, all) = (prompt * TARGETS.len() + i, held.len() * TARGETS.len());
            step(progress, "leaving neurons out", done, all)?;
            executor.cut_by(Some(Arc::clone(&trial.thresholds)));
            trial.compared.add(&mut executor, ids, &base)?;
        }
    }
    let report = report(&trials, quality);
    let chosen = report.chosen.map(|chosen| &trials[chosen].thresholds);
    let Some(thresholds) = chosen else {
        return Ok(Some(Made { entry: None, report, thresholds: None }));
    };
    let entry = write(model, thresholds, folder)?;
    let kept = FfnThresholds::new(model, &Table::open(folder, &entry)?)?;
    Ok(Some(Made { entry: Some(entry), report, thresholds: Some(Arc::new(kept)) }))
}

/// For each neuron the magnitude at which its score is that below which a part `target` of its
/// layer's scores lie. A neuron of a matrix that is not there has none.
fn least(model: &Model, scorer: &Scorer, layers: &[Histogram], target: f64) -> Vec<f32> {
    let len = model.config().ffn.len;
    let of_layer = |(norms, scores): (&Vec<f32>, &Histogram)| {
        let threshold = scores.threshold(target);
        // Where the column is zero, so is what it adds, whatever the neuron says.
        let least = |norm: &f32| (threshold / norm).min(f32::MAX);
        let mut row: Vec<f32> = norms.iter().map(least).collect();
        row.resize(len, 0.0);
        row
    };
    scorer.norms().iter().zip(layers).flat_map(of_layer).collect()
}

/// What the trials cost, and which is the last before one that costs too much.
fn report(trials: &[Trial], quality: Quality) -> ThresholdReport {
    let costs: Vec<_> = trials.iter().map(|trial| (trial.target, trial.compared.cost())).collect();
    let tried: Vec<ThresholdPoint> = costs
        .iter()
        .map(|(target, cost)| ThresholdPoint {
            target: *target,
            kl: cost.kl,
            kl_standard_error: cost.kl_standard_error,
            perplexity_ratio: cost.perplexity_ratio,
            perplexity_ratio_standard_error: cost.perplexity_ratio_standard_error,
        })
        .collect();
    let within = tried.iter().take_while(|point| point.is_within(quality)).count();
    let (positions, base_perplexity) =
        costs.first().map_or((0, 1.0), |(_, cost)| (cost.positions, cost.base_perplexity));
    ThresholdReport { chosen: within.checked_sub(1), tried, positions, base_perplexity }
}

fn write(
    model: &Model,
    thresholds: &FfnThresholds,
    folder: &Path,
) -> Result<TableEntry, ProfileError> {
    let bytes = thresholds.bytes();
    let mut writer = TableWriter::create(folder, TableKind::FfnThresholds, bytes.len() as u64)?;
    writer.write(&bytes)?;
    Ok(writer.finish(&FfnThresholds::numbers(model))?)
}

fn failed(error: HeadroomError) -> ProfileError {
    match error {
        HeadroomError::Interrupted => ProfileError::Interrupted,
        HeadroomError::Engine(error) => ProfileError::Engine(error),
        other => ProfileError::Tensors(Box::new(other)),
    }
}
