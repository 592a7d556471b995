//! Whether skipping zero neurons pays here (SPEC D16): their table, and the same passes with and
//! without it, alternating, every logit compared with `==`.

use super::{ProfileError, ProfileOptions, Progress, step};
use crate::bench::Statistics;
use aios_contract::RoleGroup;
use aios_engine::{EngineError, Executor, FfnNeurons, Model, Want, ZeroLimits, argmax};
use aios_kernels::Pool;
use aios_residency::Phase;
use aios_residency::plan::{FfnReport, Table, TableEntry, TableKind, TableWriter};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// It pays if the median time with it is below this part of that without.
const PAYS: f64 = 0.995;

/// Makes and measures the table, if the model's neurons have true zeros and a layer can be stored
/// neuron by neuron.
pub(super) fn profile(
    executor: &mut Executor,
    texts: &[&[u32]],
    plan: &ProfileOptions,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Option<(TableEntry, FfnReport)>, ProfileError> {
    let model = Arc::clone(executor.model());
    if !model.config().ffn.activation.has_true_zeros() {
        return Ok(None);
    }
    let Some(entry) = write(&model, executor.options().threads, folder, progress)? else {
        return Ok(None);
    };
    let neurons =
        Arc::new(FfnNeurons::new(&model, Table::open(folder, &entry)?, ZeroLimits::TIME)?);
    let report = measure(executor, &neurons, texts, plan, progress)?;
    Ok(Some((entry, report)))
}

/// Writes the table; `None` if no layer can be stored so.
fn write(
    model: &Model,
    threads: usize,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Option<TableEntry>, ProfileError> {
    let shapes = model.ffn_shapes();
    let bytes: usize = shapes.iter().flatten().map(|shape| shape.bytes()).sum();
    if bytes == 0 {
        return Ok(None);
    }
    let pool = Pool::new(threads).map_err(|source| EngineError::Threads { threads, source })?;
    let mut writer = TableWriter::create(folder, TableKind::FfnNeurons, bytes as u64)?;
    let mut buffer = Vec::new();
    for (layer, shape) in shapes.iter().enumerate() {
        step(progress, "storing neurons", layer, shapes.len())?;
        let Some(shape) = shape else { continue };
        buffer.resize(shape.bytes(), 0);
        let packed = model.pack_ffn(&pool, layer, &mut buffer);
        packed.map_err(|source| ProfileError::DownScale { layer, source })?;
        writer.write(&buffer)?;
    }
    let numbers = FfnNeurons::numbers(model, model.up_can_be_skipped());
    Ok(Some(writer.finish(&numbers)?))
}

/// Continues the texts greedily, each token with the table and without.
fn measure(
    executor: &mut Executor,
    neurons: &Arc<FfnNeurons>,
    texts: &[&[u32]],
    plan: &ProfileOptions,
    progress: &mut Progress<'_>,
) -> Result<FfnReport, ProfileError> {
    let before = executor.zero_stats();
    let mut times = [Vec::new(), Vec::new()];
    let mut bytes = [0, 0];
    let mut tokens = 0;
    for (i, ids) in texts.iter().take(plan.continued).enumerate() {
        step(progress, "measuring zero neurons", i, texts.len().min(plan.continued))?;
        executor.truncate(0);
        let (last, start) = ids.split_last().expect("prompts of two tokens or more");
        executor.forward(start, Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
        let mut next = *last;
        for token in 0..plan.generate {
            let len = executor.len();
            let mut found: [Vec<u32>; 2] = Default::default();
            for turn in 0..2 {
                // What comes first finds colder caches, so the order changes.
                let skips = (token + turn) % 2;
                executor.truncate(len);
                executor.skip_zeros_by((skips == 1).then(|| Arc::clone(neurons)));
                executor.reset_ledger();
                let started = Instant::now();
                let mut ms = 0.0;
                executor.forward(&[next], Phase::Decode, Want::Last, &mut |_, logits| {
                    ms = started.elapsed().as_secs_f64() * 1e3;
                    found[skips] = logits.iter().map(|logit| logit.to_bits()).collect();
                    Ok(())
                })?;
                times[skips].push(ms);
                bytes[skips] += executor.ledger().phase(Phase::Decode).group(RoleGroup::Ffn);
            }
            executor.skip_zeros_by(None);
            if found[0] != found[1] {
                return Err(ProfileError::NeuronsDiffer);
            }
            tokens += 1;
            let logits: Vec<f32> = found[0].iter().map(|bits| f32::from_bits(*bits)).collect();
            next = argmax(&logits).0;
        }
    }
    let after = executor.zero_stats();
    let median = |times: Vec<f64>| Statistics::of(times).map_or(0.0, |times| times.median);
    let [whole_ms, skipped_ms] = times.map(median);
    let active = (after.active - before.active) as f64;
    let neurons = (after.neurons - before.neurons).max(1) as f64;
    Ok(FfnReport {
        pays: skipped_ms < PAYS * whole_ms,
        tokens,
        zero_fraction: 1.0 - active / neurons,
        whole_bytes: bytes[0] / tokens.max(1),
        read_bytes: bytes[1] / tokens.max(1),
        whole_ms,
        skipped_ms,
    })
}
