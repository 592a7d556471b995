//! The memory of an executor: how much its parts need, and where the weights go (SPEC W).

use crate::cache::KvPlan;
use crate::error::EngineError;
use crate::forward::ExecutorOptions;
use crate::meter::Meter;
use crate::model::{Model, Tensor};
use aios_contract::ModelConfig;
use aios_kernels::{AttentionScratch, Input, Isa, Matrix, Pool, Product, matmul};
use aios_residency::{
    BUFFER_BYTES, BlockTable, DiskError, Ladder, PointerTable, Reserved, ResidencyStats, Resident,
    ResidentError, Runs, Step, available_bytes,
};
use std::path::Path;
use std::sync::Arc;

/// Rows of logits that are computed at a time when every position's are wanted.
pub(crate) const LOGIT_ROWS: usize = 16;
/// Prompts are read in passes of at least so many tokens.
const BATCH_LEAST: usize = 16;
/// The share of a budget that activations may take.
const ACTIVATIONS_SHARE: u64 = 8;

/// What an executor needs besides weights, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// The cache for the whole context.
    pub cache: u64,
    /// Activations whose size does not depend on the pass.
    pub fixed: u64,
    /// Activations of each token of a pass.
    pub token: u64,
}

impl Need {
    /// The need of an executor of `model`, whose cache takes `cache` bytes and whose attention
    /// `scratch`.
    pub(crate) fn new(model: &Model, cache: usize, scratch: usize) -> Self {
        let config = model.config();
        let attention = &config.attention;
        let attended = attention.heads * attention.value_len;
        let rows = 3 * config.d_model + config.q_len() + config.k_len() + config.v_len();
        // Quants, scales and sums of both kinds come to less than 4 bytes an element; those of what
        // goes into the down projections are kept beside the others.
        let quants = longest_input(config);
        let ropes = 4 * config.rope.dims / 2;
        let staged = model.weights().factors().map(Tensor::staged_rows).max().unwrap_or(0);
        let floats = rows + attended + 3 * config.ffn.len + quants + ropes + staged;
        let logits = LOGIT_ROWS * config.vocab;
        Self { cache: cache as u64, fixed: (scratch + 4 * logits) as u64, token: 4 * floats as u64 }
    }

    /// Bytes of activations for passes of `batch` tokens.
    pub(crate) const fn activations(&self, batch: usize) -> u64 {
        self.fixed + self.token * batch as u64
    }
}

impl Model {
    /// Bytes of memory that an executor set up so takes with all weights in memory.
    ///
    /// # Errors
    /// Those of [`EngineError`] that concern the cache.
    pub fn footprint(&self, options: &ExecutorOptions) -> Result<u64, EngineError> {
        let config = self.config();
        let (plan, _) = KvPlan::choose(self, options)?;
        let (heads, kv_heads) = (config.attention.heads, config.attention.kv_heads);
        let scratch = AttentionScratch::with_capacity(heads, kv_heads, plan.positions());
        let need = Need::new(self, plan.bytes(), scratch.bytes());
        let weights: usize = self.weights().factors().map(Tensor::bytes).sum();
        let embedding = self.weights().embedding.bytes();
        Ok((weights + embedding) as u64 + need.cache + need.activations(options.batch))
    }
}

/// The longest row that is quantised.
pub(crate) fn longest_input(config: &ModelConfig) -> usize {
    let attended = config.attention.heads * config.attention.value_len;
    config.d_model.max(attended).max(config.ffn.len)
}

/// The weights of an executor, and what handing them out in parts needs.
#[derive(Debug)]
pub(crate) struct Memory {
    resident: Resident,
    exact: bool,
    /// For each matrix, by its number, whether it is read past the caches; empty if none is.
    past: Vec<bool>,
    /// Results of a part for several tokens, \[n\]\[rows of the part\].
    staging: Vec<f32>,
    /// What lost the present pass. What is left of the pass computes nothing, so that kernels and
    /// threads need not know of disks, and its end reports it.
    failed: Option<Arc<DiskError>>,
    /// Bytes read of the disk that the ledger knows of.
    disk_known: u64,
    isa: &'static str,
}

impl Memory {
    /// Finds a place for the weights of `model`. Also returns the most tokens of a pass, which may
    /// be fewer than asked for. A budget that a plan names, or that is not the one that was asked
    /// for since there is less, refuses nothing.
    ///
    /// # Errors
    /// [`EngineError::Ram`], and those of reading.
    pub(crate) fn new(
        model: &Model,
        options: &ExecutorOptions,
        need: Need,
        planned: bool,
    ) -> Result<(Self, usize), EngineError> {
        let runs = runs(model, options.exact);
        let asked = options.batch.clamp(1, options.context);
        let weights: u64 = runs.factors.iter().map(|run| run.range.len() as u64).sum();
        let whole = weights + need.cache + need.activations(asked);
        let aside = |bytes: u64| bytes.saturating_sub(options.set_aside);
        let (ram, available) = (options.ram.map(aside), available_bytes().map(aside));
        let mut ladder = Ladder::default();
        let given = budget(ram, available, whole, &mut ladder);
        let placing = Placing { model, runs, need, asked };
        let (resident, batch) = match given.map(|bytes| placing.within(bytes, &mut ladder)) {
            None => (Resident::mapped(placing.runs), asked),
            Some(Ok(placed)) => placed,
            Some(Err(error)) if !planned && ram.is_some() && given == ram => return Err(error),
            Some(Err(error)) => {
                // Without the plan's budget, a model that exceeds memory has one all the same.
                let own = planned.then(|| budget(None, available, whole, &mut ladder)).flatten();
                let placed = own.and_then(|bytes| placing.within(bytes, &mut ladder).ok());
                placed.unwrap_or_else(|| {
                    ladder.take(Step::Mapped, &error.to_string());
                    (Resident::mapped(placing.runs).after(&ladder), asked)
                })
            }
        };
        let staging = Vec::with_capacity(resident.longest_part() * batch);
        let isa = options.isa.description();
        let (exact, failed, disk_known, past) = (options.exact, None, 0, Vec::new());
        Ok((Self { resident, exact, past, staging, failed, disk_known, isa }, batch))
    }

    /// A pass of `tokens` tokens begins; the head is read for `logits` positions.
    pub(crate) fn begin_pass(&mut self, tokens: usize, logits: usize) {
        self.failed = None;
        self.resident.begin_pass(tokens, logits.div_ceil(LOGIT_ROWS));
    }

    /// Whether the pass has all its weights so far.
    ///
    /// # Errors
    /// [`EngineError::Disk`] if it was lost.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        self.failed.as_ref().map_or(Ok(()), |error| Err(EngineError::Disk(Arc::clone(error))))
    }

    /// Bytes read of the disk since this was asked last.
    pub(crate) fn new_disk_bytes(&mut self) -> u64 {
        let now = self.resident.disk_bytes();
        now - std::mem::replace(&mut self.disk_known, now)
    }

    /// Whether any byte of the files may be read where it is mapped.
    pub(crate) const fn is_mapped(&self) -> bool {
        self.resident.is_mapped()
    }

    /// Whether a budget of memory is kept to.
    pub(crate) fn has_budget(&self) -> bool {
        self.resident.stats().budget_bytes.is_some()
    }

    /// The pointer table of the weights.
    pub(crate) fn pointers(&self, blocks: &BlockTable, llc_bytes: Option<u64>) -> PointerTable {
        self.resident.pointers(blocks, llc_bytes)
    }

    /// A file that weights are streamed from, if any are.
    pub(crate) fn streamed_file(&self) -> Option<&Path> {
        self.resident.streamed_file()
    }

    /// The telemetry.
    pub(crate) fn stats(&self) -> ResidencyStats {
        ResidencyStats { isa: self.isa.to_owned(), ..self.resident.stats() }
    }

    /// Sets the counts back to zero.
    pub(crate) fn reset(&mut self) {
        self.resident.reset();
        self.disk_known = self.resident.disk_bytes();
    }

    /// Counts that a product is about to read `tensor`.
    pub(crate) fn count(&mut self, tensor: &Tensor) {
        self.resident.count(tensor.number);
    }

    /// Counts that a delta was applied.
    pub(crate) fn count_delta(&mut self) {
        self.resident.count_delta();
    }

    /// The weights of a product, if they lie whole in memory.
    pub(crate) fn whole<'a>(
        &'a self,
        blocks: &'a BlockTable,
        tensor: &Tensor,
    ) -> Option<Matrix<'a>> {
        let bytes = self.resident.whole(blocks, tensor.number)?;
        let past = self.past.get(tensor.number).copied().unwrap_or(false);
        Some(tensor.part(self.exact, &(0..bytes.len()), bytes).1.read_past(past))
    }

    /// From now on these matrices, by their numbers, are read past the caches.
    pub(crate) fn read_past(&mut self, past: Vec<bool>) {
        self.past = past;
    }

    /// out = weights · x (+ bias), part by part as they come. A pass that is lost computes nothing.
    pub(crate) fn multiply(
        &mut self,
        (blocks, meter): (&BlockTable, &mut Meter),
        (isa, pool): (Isa, &Pool),
        input: Input<'_>,
        (tensor, bias): (&Tensor, Option<&[f32]>),
        out: &mut [f32],
    ) {
        let Self { resident, staging, failed, exact, .. } = self;
        let name = blocks.block(tensor.id).name;
        for part in 0..resident.parts(tensor.number) {
            if failed.is_some() {
                return;
            }
            let (range, bytes) = match resident.part(blocks, tensor.number, part) {
                Ok(part) => part,
                Err(error) => {
                    *failed = Some(error);
                    return;
                }
            };
            let (first, weights) = tensor.part(*exact, &range, &bytes);
            let rows = weights.rows();
            meter.part(name, tensor.row_bytes() * rows, &bytes);
            let bias = bias.map(|bias| &bias[first..first + rows]);
            if input.rows() == 1 {
                let out = &mut out[first..first + rows];
                matmul(isa, pool, input, &mut [Product { weights, bias, out }], &[]);
            } else {
                staging.resize(input.rows() * rows, 0.0);
                matmul(isa, pool, input, &mut [Product { weights, bias, out: staging }], &[]);
                let each = out.chunks_exact_mut(tensor.rows).zip(staging.chunks_exact(rows));
                each.for_each(|(out, part)| out[first..first + rows].copy_from_slice(part));
            }
            drop(bytes);
            resident.release(tensor.number, part);
        }
    }

    /// Row `index` of the embedding; `None` if the pass is lost.
    pub(crate) fn row<'a>(&'a mut self, blocks: &'a BlockTable, index: usize) -> Option<&'a [u8]> {
        let Self { resident, failed, .. } = self;
        match resident.row(blocks, index) {
            Ok(row) => Some(row),
            Err(error) => {
                *failed = Some(error);
                None
            }
        }
    }
}

/// Weights that look for a place.
struct Placing<'a> {
    model: &'a Model,
    runs: Runs,
    need: Need,
    /// Tokens of a pass, as many as were asked for.
    asked: usize,
}

impl Placing<'_> {
    /// In tiers within `budget`, and the most tokens of a pass. The steps that this takes are those
    /// of `ladder` where it succeeds.
    fn within(&self, budget: u64, ladder: &mut Ladder) -> Result<(Resident, usize), EngineError> {
        let blocks = self.model.blocks();
        let mut steps = ladder.clone();
        if self.model.planned_budget() != Some(budget) {
            steps.take(Step::NoPlan, "no plan has measured this budget");
        }
        let least = Resident::least(blocks, &self.runs) as u64;
        let batch = choose_batch(budget, self.need, least, self.asked, &mut steps);
        let (cache, activations) = (self.need.cache, self.need.activations(batch));
        let reserved = Reserved { cache, activations, buffers: 0 };
        let taken = cache + activations;
        let left = usize::try_from(budget.saturating_sub(taken)).unwrap_or(usize::MAX);
        match Resident::within(blocks, self.runs.clone(), left, reserved, &mut steps) {
            Ok(resident) => {
                *ladder = steps;
                Ok((resident, batch))
            }
            Err(ResidentError::Least { least }) => Err(EngineError::Ram {
                given: budget,
                least: taken + least as u64,
                cache,
                activations,
                buffers: least as u64,
            }),
            Err(error) => Err(EngineError::Resident(error)),
        }
    }
}

/// What a pass reads, in order.
fn runs(model: &Model, exact: bool) -> Runs {
    let weights = model.weights();
    let factors: Vec<_> = weights.factors().map(|tensor| tensor.run(exact)).collect();
    let embedding = &weights.embedding;
    let mut rows = embedding.run(true);
    rows.granule = embedding.row_bytes();
    // The head is the last of them.
    Runs { tail: factors.len() - 1, factors, rows }
}

/// The budget: what was asked for, or what is available if that is less and `whole` exceeds it.
/// `None` if the system may decide what stays in memory.
fn budget(
    asked: Option<u64>,
    available: Option<u64>,
    whole: u64,
    ladder: &mut Ladder,
) -> Option<u64> {
    let most = available.map(|bytes| bytes / 16 * 15).unwrap_or(u64::MAX);
    let wanted = asked.unwrap_or(u64::MAX).min(whole);
    if wanted <= most {
        return asked;
    }
    let megabytes = |bytes: u64| bytes / 1_000_000;
    let (step, what) = match asked {
        Some(_) => (Step::LessRam, "--ram asks for"),
        None => (Step::LargerThanMemory, "the model takes"),
    };
    let why = format!("{what} {} MB and {} MB are used", megabytes(wanted), megabytes(most));
    ladder.take(step, &why);
    Some(most)
}

/// The most tokens of a pass, so that activations leave room for weights.
fn choose_batch(budget: u64, need: Need, least: u64, asked: usize, ladder: &mut Ladder) -> usize {
    let fits = |batch| {
        let activations = need.activations(batch);
        let all = need.cache.saturating_add(activations).saturating_add(least);
        activations <= budget / ACTIVATIONS_SHARE && all <= budget
    };
    let mut batch = asked;
    while batch > BATCH_LEAST && !fits(batch) {
        batch = (batch / 2).max(BATCH_LEAST);
    }
    if batch < asked {
        ladder.take(Step::SmallerBatch, &format!("prompts are read {batch} tokens at a time"));
    }
    batch
}

impl Tensor {
    /// Rows that a part of it may have, if it is handed out in parts.
    fn staged_rows(&self) -> usize {
        let rows = BUFFER_BYTES.div_ceil(self.row_bytes().max(1));
        self.rows.min(rows.next_multiple_of(aios_kernels::PANEL_ROWS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_what_was_asked_for_or_what_there_is() {
        let mut ladder = Ladder::default();
        let mut of = |asked, available, whole| budget(asked, available, whole, &mut ladder);
        assert_eq!(of(None, Some(1600), 1500), None);
        assert_eq!(of(None, None, 1500), None);
        assert_eq!(of(Some(100), None, 1500), Some(100));
        assert_eq!(of(Some(100), Some(1600), 9000), Some(100));
        // Far more than is needed, of which there is enough.
        assert_eq!(of(Some(9000), Some(1600), 1400), Some(9000));
        assert_eq!(ladder.steps(), []);
        assert_eq!(budget(Some(2000), Some(1600), 9000, &mut ladder), Some(1500));
        assert_eq!(ladder.steps(), [Step::LessRam]);
        assert_eq!(budget(None, Some(1600), 1501, &mut ladder), Some(1500));
        assert_eq!(ladder.steps(), [Step::LargerThanMemory, Step::LessRam]);
    }

    #[test]
    fn the_batch_shrinks_until_activations_leave_room() {
        let need = Need { cache: 1000, fixed: 100, token: 10 };
        let batch = |budget, asked| {
            let mut ladder = Ladder::default();
            let batch = choose_batch(budget, need, 50, asked, &mut ladder);
            assert_eq!(ladder.steps().contains(&Step::SmallerBatch), batch < asked);
            batch
        };
        assert_eq!(batch(1_000_000, 512), 512);
        assert_eq!(batch(10_000, 512), 64);
        assert_eq!(batch(10_000, 10), 10);
        assert_eq!(batch(0, 512), BATCH_LEAST);
        // The share would allow 512, the cache does not.
        let large = Need { cache: 99_000, ..need };
        let mut ladder = Ladder::default();
        assert_eq!(choose_batch(100_000, large, 50, 512, &mut ladder), 64);
    }
}
