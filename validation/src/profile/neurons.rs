//! Whether skipping zero neurons pays here, and from how many on (SPEC D16): their table, and the
//! same passes with and without it, alternating, every logit compared with `==`.

use super::{ProfileError, ProfileOptions, Progress, step};
use crate::bench::Statistics;
use aios_contract::RoleGroup;
use aios_engine::{EngineError, Executor, FfnNeurons, Model, Want, ZeroLimits, ZeroStats, argmax};
use aios_kernels::Pool;
use aios_residency::Phase;
use aios_residency::plan::{FfnReport, Table, TableEntry, TableKind, TableWriter};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// It pays if the median time with it is below this part of that without.
const PAYS: f64 = 0.995;
/// What is tried, in the order in which it skips less: a line here and a row there takes longer
/// than its share of all, and how much longer the machine decides.
const LIMITS: [ZeroLimits; 5] = [
    ZeroLimits::BYTES,
    ZeroLimits { down_of_ten: 7, up_of_ten: 5 },
    ZeroLimits { down_of_ten: 4, up_of_ten: 3 },
    ZeroLimits { down_of_ten: 4, up_of_ten: 0 },
    ZeroLimits { down_of_ten: 2, up_of_ten: 1 },
];
/// Without a table, and with each limit.
const WAYS: usize = LIMITS.len() + 1;

/// Makes and measures the table, if the model's neurons have true zeros or the executor makes some,
/// and a layer can be stored neuron by neuron.
pub(super) fn profile(
    executor: &mut Executor,
    texts: &[&[u32]],
    plan: &ProfileOptions,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Option<(TableEntry, FfnReport)>, ProfileError> {
    let model = Arc::clone(executor.model());
    if !model.config().ffn.activation.has_true_zeros() && executor.thresholds().is_none() {
        return Ok(None);
    }
    let Some(entry) = write(&model, executor.options().threads, folder, progress)? else {
        return Ok(None);
    };
    let table = Table::open(folder, &entry)?;
    let neurons = FfnNeurons::new(&model, table, ZeroLimits::BYTES)?;
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

/// The same tokens, decoded without the table and with each of the limits.
#[derive(Default)]
struct Measured {
    /// Milliseconds of every other round of tokens, by which the limits are chosen, and of the
    /// rest, by which they are judged; in a round each way comes first once.
    times: [[Vec<f64>; WAYS]; 2],
    /// Bytes of feed-forward weights, of all tokens.
    bytes: [u64; WAYS],
    tokens: u64,
    /// What skipping came to, in all ways.
    zeros: ZeroStats,
}

impl Measured {
    /// The report of the fastest limits.
    fn report(self) -> FfnReport {
        let median = |times: &Vec<f64>| Statistics::of(times.clone()).map_or(0.0, |t| t.median);
        let chosen = self.times[0].each_ref().map(median);
        let fastest = |a: &usize, b: &usize| chosen[*a].total_cmp(&chosen[*b]);
        // Limits that skip nothing are as fast as none, and say nothing of skipping.
        let saves = |way: &usize| self.bytes[*way] < self.bytes[0];
        let way = (1..WAYS).filter(saves).min_by(fastest).unwrap_or(1);
        let [whole_ms, skipped_ms] = [0, way].map(|way| median(&self.times[1][way]));
        let ZeroLimits { down_of_ten, up_of_ten } = LIMITS[way - 1];
        let tenths = |of_ten: usize| u8::try_from(of_ten).expect("tenths");
        let tokens = self.tokens.max(1);
        FfnReport {
            pays: skipped_ms < PAYS * whole_ms,
            down_of_ten: tenths(down_of_ten),
            up_of_ten: tenths(up_of_ten),
            tokens: self.tokens,
            zero_fraction: 1.0 - self.zeros.active as f64 / self.zeros.neurons.max(1) as f64,
            whole_bytes: self.bytes[0] / tokens,
            read_bytes: self.bytes[way] / tokens,
            whole_ms,
            skipped_ms,
        }
    }
}

/// Continues the texts greedily, each token in all ways.
fn measure(
    executor: &mut Executor,
    neurons: &FfnNeurons,
    texts: &[&[u32]],
    plan: &ProfileOptions,
    progress: &mut Progress<'_>,
) -> Result<FfnReport, ProfileError> {
    let ways: Vec<Option<Arc<FfnNeurons>>> = std::iter::once(None)
        .chain(LIMITS.map(|limits| Some(Arc::new(neurons.within(limits)))))
        .collect();
    let mut measured = Measured::default();
    for (i, ids) in texts.iter().take(plan.continued).enumerate() {
        step(progress, "measuring zero neurons", i, texts.len().min(plan.continued))?;
        executor.truncate(0);
        let (last, start) = ids.split_last().expect("prompts of two tokens or more");
        executor.forward(start, Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
        let mut next = *last;
        for token in 0..plan.generate {
            next = decode(executor, next, token, &ways, &mut measured)?;
        }
    }
    Ok(measured.report())
}

/// Decodes one token in all ways, compares all logits, and returns the next token.
fn decode(
    executor: &mut Executor,
    id: u32,
    token: usize,
    ways: &[Option<Arc<FfnNeurons>>],
    measured: &mut Measured,
) -> Result<u32, ProfileError> {
    let len = executor.len();
    let mut found: [Vec<u32>; WAYS] = Default::default();
    for turn in 0..WAYS {
        // What comes first finds colder caches, so the order changes.
        let way = (token + turn) % WAYS;
        executor.truncate(len);
        executor.skip_zeros_by(ways[way].clone());
        executor.reset_ledger();
        let started = Instant::now();
        let mut ms = 0.0;
        executor.forward(&[id], Phase::Decode, Want::Last, &mut |_, logits| {
            ms = started.elapsed().as_secs_f64() * 1e3;
            found[way] = logits.iter().map(|logit| logit.to_bits()).collect();
            Ok(())
        })?;
        measured.times[token / WAYS % 2][way].push(ms);
        measured.bytes[way] += executor.ledger().phase(Phase::Decode).group(RoleGroup::Ffn);
        measured.zeros.add(&executor.zero_stats());
    }
    executor.skip_zeros_by(None);
    if found.iter().any(|other| *other != found[0]) {
        return Err(ProfileError::NeuronsDiffer);
    }
    measured.tokens += 1;
    let logits: Vec<f32> = found[0].iter().map(|bits| f32::from_bits(*bits)).collect();
    Ok(argmax(&logits).0)
}
