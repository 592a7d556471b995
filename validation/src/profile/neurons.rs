//! Whether skipping zero neurons pays here, and from how many on (SPEC D16): their table, and the
//! same passes with and without it, alternating, every logit compared with `==`.

use super::ways::{PAYS, Timed, Ways};
use super::{ProfileError, ProfileOptions, Progress, step};
use aios_contract::RoleGroup;
use aios_engine::{EngineError, Executor, FfnNeurons, Model, ZeroLimits, ZeroStats};
use aios_kernels::Pool;
use aios_residency::Phase;
use aios_residency::plan::{FfnReport, Table, TableEntry, TableKind, TableWriter};
use std::path::Path;
use std::sync::Arc;

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

/// Bytes of feed-forward weights by way, and what skipping came to.
struct Counted {
    bytes: [u64; WAYS],
    zeros: ZeroStats,
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
    let mut counted = Counted { bytes: [0; WAYS], zeros: ZeroStats::default() };
    let timed = Ways {
        doing: "measuring zero neurons",
        count: WAYS,
        set: &|executor, way| drop(executor.skip_zeros_by(ways[way].clone())),
        seen: &mut |executor, way| {
            let read = executor.ledger().phase(Phase::Decode).group(RoleGroup::Ffn);
            counted.bytes[way] += read;
            counted.zeros.add(&executor.zero_stats());
        },
        differ: || ProfileError::NeuronsDiffer,
    }
    .decode(executor, texts, plan, progress)?;
    Ok(report(&timed, &counted))
}

/// The report of the fastest limits.
fn report(timed: &Timed, counted: &Counted) -> FfnReport {
    let fastest = |a: &usize, b: &usize| timed.chosen_by(*a).total_cmp(&timed.chosen_by(*b));
    // Limits that skip nothing are as fast as none, and say nothing of skipping.
    let saves = |way: &usize| counted.bytes[*way] < counted.bytes[0];
    let way = (1..WAYS).filter(saves).min_by(fastest).unwrap_or(1);
    let [whole_ms, skipped_ms] = [0, way].map(|way| timed.judged_by(way));
    let ZeroLimits { down_of_ten, up_of_ten } = LIMITS[way - 1];
    let tenths = |of_ten: usize| u8::try_from(of_ten).expect("tenths");
    let (tokens, zeros) = (timed.tokens.max(1), &counted.zeros);
    FfnReport {
        pays: skipped_ms < PAYS * whole_ms,
        down_of_ten: tenths(down_of_ten),
        up_of_ten: tenths(up_of_ten),
        tokens: timed.tokens,
        zero_fraction: 1.0 - zeros.active as f64 / zeros.neurons.max(1) as f64,
        whole_bytes: counted.bytes[0] / tokens,
        read_bytes: counted.bytes[way] / tokens,
        whole_ms,
        skipped_ms,
    }
}
