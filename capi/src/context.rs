//! A context: a model with its plan, an executor, and the table of its blocks. Everything here is
//! safe code over values; `lib.rs` turns C's pointers into them.

use crate::status::{
    AIOS_BAD_ARGUMENT, AIOS_CONTEXT_FULL, AIOS_INTERNAL, AIOS_LOAD, AIOS_NO_MEMORY, AIOS_NOT_FOUND,
    AIOS_OUT_OF_RANGE, AIOS_PLAN, AIOS_RUN, Failure,
};
use crate::types::{
    AIOS_BLOCK_ALIASED, AIOS_BLOCK_CANONICAL, AIOS_BLOCK_HOT, AIOS_BLOCK_SPARSE, AIOS_BLOCK_STREAM,
    AIOS_BLOCK_WARM, AIOS_PLAN_AUTO, AIOS_PLAN_OFF, AIOS_PLAN_ON, AIOS_ROW_ALWAYS,
    AIOS_ROW_BY_TOKEN, AIOS_SHARE_FILES, AIOS_SHARE_MATRICES, AIOS_WEIGHTS_REPACKED,
    AIOS_WEIGHTS_STORED, Block, Hardware, Options, Telemetry, text, zeroed,
};
use aios_contract::TensorName;
use aios_engine::tokenizer::{ParseSpecial, RenderSpecial, Tokenizer};
use aios_engine::{
    EngineError, Executor, ExecutorOptions, Followed, Model, PartMode, PlanModes, RowActivity,
    Scores, Shared, Want, WeightBlocks, argmax,
};
use aios_kernels::Isa;
use aios_residency::plan::{Plan, PlanError};
use aios_residency::{BlockFlags, BlockStore, Phase, ResidencyStats, Step, available_bytes};
use aios_system::cli::{hardware as plan_hardware, panel_folder, plan_folder};
use aios_system::doctor::Report;
use aios_system::models::cache_folder;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Positions of a context where nobody says.
const POSITIONS_MOST: usize = 4096;

/// Matrices of the contexts that share them.
static MATRICES: Mutex<Weak<BlockStore>> = Mutex::new(Weak::new());

/// Their store, which lives as long as one of these contexts.
fn matrices() -> Arc<BlockStore> {
    let mut store = MATRICES.lock().unwrap_or_else(PoisonError::into_inner);
    store.upgrade().unwrap_or_else(|| {
        let new = Arc::new(BlockStore::new());
        *store = Arc::downgrade(&new);
        new
    })
}

/// A model that is loaded, and a sequence of tokens.
#[derive(Debug)]
pub(crate) struct Context {
    model: Arc<Model>,
    blocks: WeightBlocks,
    on: Vec<&'static str>,
    /// Bytes of weights that are another context's.
    shared_bytes: u64,
    /// Where these are found, which is kept for contexts to come.
    _store: Option<Arc<BlockStore>>,
    /// One thread computes at a time; blocks are looked at beside it.
    executor: Mutex<Executor>,
}

impl Context {
    /// Loads the model at `path`.
    pub(crate) fn open(
        path: &Path,
        options: &Options,
        plan: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let bad = |field, value: u32| {
            let what = format!("aios_options.{field} is {value}, which means nothing");
            Err(Failure::new(AIOS_BAD_ARGUMENT, what))
        };
        if ![AIOS_PLAN_AUTO, AIOS_PLAN_OFF, AIOS_PLAN_ON].contains(&options.plan) {
            return bad("plan", options.plan);
        }
        let panels = match options.weights {
            AIOS_WEIGHTS_STORED => None,
            AIOS_WEIGHTS_REPACKED => panel_folder(),
            other => return bad("weights", other),
        };
        let mut on = Vec::new();
        let mut store = None;
        let (model, shared) = match options.share {
            AIOS_SHARE_FILES => (plain(path, panels.as_deref())?, Shared::default()),
            AIOS_SHARE_MATRICES => {
                let matrices = store.insert(matrices());
                let digests = cache_folder().map(|folder| folder.join("digests"));
                Model::load_shared(path, panels.as_deref(), matrices, digests.as_deref())
                    .map_err(load)?
            }
            other => return bad("share", other),
        };
        if shared.matrices > 0 {
            on.push("shared");
        }
        if options.plan != AIOS_PLAN_OFF {
            on.extend(follow(&model, options.plan, plan)?);
        }
        let positions = match options.positions {
            0 => POSITIONS_MOST.min(model.config().context),
            positions => positions as usize,
        };
        let mut of = ExecutorOptions::new(positions);
        if options.threads > 0 {
            (of.threads, of.threads_batch) = (options.threads as usize, options.threads as usize);
        }
        of.ram = Some(options.ram_bytes).filter(|bytes| *bytes > 0);
        let executor = Executor::new(Arc::clone(&model), of).map_err(engine)?;
        on.extend(executor.residency().on);
        let blocks =
            executor.weight_blocks(Report::collect(Path::new("/")).last_level_cache_bytes());
        let shared_bytes = shared.bytes;
        let executor = Mutex::new(executor);
        Ok(Self { model, blocks, on, shared_bytes, _store: store, executor })
    }

    fn executor(&self) -> Result<MutexGuard<'_, Executor>, Failure> {
        let what = "an earlier call on this context ended in a fault; destroy it";
        self.executor.lock().map_err(|_| Failure::new(AIOS_INTERNAL, what))
    }

    fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        self.model.tokenizer().map_err(|error| Failure::new(AIOS_LOAD, error))
    }

    /// The number of blocks.
    pub(crate) fn block_count(&self) -> u32 {
        self.blocks.len()
    }

    /// A block.
    pub(crate) fn block(&self, number: u32) -> Result<Block, Failure> {
        let block = self.blocks.get(number).ok_or_else(|| self.no_block(number))?;
        let layer = block.name.layer.map_or(0, |layer| layer as usize);
        Ok(Block {
            flags: flags(block.flags),
            address: std::ptr::with_exposed_provenance(block.address),
            bytes: block.bytes as u64,
            first_row: block.rows.start as u64,
            rows: block.rows.len() as u64,
            packed: u32::from(block.packed),
            tensor: text(&block.name.role.gguf_name(layer)),
            dtype: text(&block.dtype.to_string()),
            ..zeroed()
        })
    }

    fn no_block(&self, number: u32) -> Failure {
        let what = format!("there is no block {number}; there are {}", self.blocks.len());
        Failure::new(AIOS_OUT_OF_RANGE, what)
    }

    /// The blocks of a tensor.
    pub(crate) fn find(&self, tensor: &str) -> Result<Range<u32>, Failure> {
        let found = TensorName::parse(tensor).and_then(|name| self.blocks.of_tensor(name));
        found.ok_or_else(|| {
            let what = format!("passes read no matrix {tensor:?}");
            Failure::new(AIOS_NOT_FOUND, what)
        })
    }

    /// Whether passes read a row of a block.
    pub(crate) fn activity(&self, block: u32, row: u64) -> Result<u32, Failure> {
        let rows = self.blocks.get(block).ok_or_else(|| self.no_block(block))?.rows;
        let of = usize::try_from(row).ok().and_then(|row| self.blocks.activity(block, row));
        match of {
            Some(RowActivity::Always) => Ok(AIOS_ROW_ALWAYS),
            Some(RowActivity::ByToken) => Ok(AIOS_ROW_BY_TOKEN),
            None => {
                let what = format!("block {block} has rows {rows:?}, not {row}");
                Err(Failure::new(AIOS_OUT_OF_RANGE, what))
            }
        }
    }

    /// What it has done.
    pub(crate) fn telemetry(&self) -> Result<Telemetry, Failure> {
        let executor = self.executor()?;
        let stats = executor.residency();
        let ladder: Vec<&str> = stats.ladder.iter().copied().map(Step::name).collect();
        Ok(Telemetry {
            ladder_steps: u32::try_from(ladder.len()).unwrap_or(u32::MAX),
            tokens: stats.tokens,
            passes: stats.passes,
            blocks_resolved: stats.blocks_resolved,
            bytes_resolved: stats.bytes_resolved,
            bytes_hot: stats.bytes_hot,
            bytes_streamed: stats.bytes_streamed,
            deltas_applied: stats.deltas_applied,
            rows_skipped: stats.rows_skipped,
            prefetches: stats.prefetches,
            disk_bytes: stats.disk_bytes,
            disk_reads: stats.reads,
            hot_bytes: stats.hot_bytes,
            warm_bytes: stats.warm_bytes,
            stream_bytes: stats.stream_bytes,
            shared_bytes: self.shared_bytes,
            budget_bytes: stats.budget_bytes.unwrap_or(0),
            hot_hit_ratio: stats.hot_hit_ratio.unwrap_or(f64::NAN),
            disk_wait_ms: stats.disk_wait_ms,
            isa: text(&stats.isa),
            on: text(&self.on.join(",")),
            ladder: text(&ladder.join(",")),
            ..zeroed()
        })
    }

    /// The same as the object `residency` of the program's `--stats json`.
    pub(crate) fn telemetry_json(&self) -> Result<String, Failure> {
        let stats: ResidencyStats = self.executor()?.residency();
        serde_json::to_string(&stats).map_err(|error| Failure::new(AIOS_INTERNAL, error))
    }

    /// The ids of a text, with BOS in front where the model begins a text so.
    pub(crate) fn tokenize(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let tokenizer = self.tokenizer()?;
        let ids = tokenizer.encode(text, ParseSpecial::No);
        Ok(aios_system::chat::framed(tokenizer, ids))
    }

    /// The bytes of a token.
    pub(crate) fn token_bytes(&self, id: u32) -> Result<Vec<u8>, Failure> {
        let bytes = self.tokenizer()?.token_bytes(id, RenderSpecial::No);
        bytes.map_err(|error| Failure::new(AIOS_OUT_OF_RANGE, error))
    }

    /// Whether a text ends with this token.
    pub(crate) fn ends(&self, id: u32) -> Result<bool, Failure> {
        let tokenizer = self.tokenizer()?;
        if id as usize >= tokenizer.vocab_len() {
            let what = format!("token id {id} is outside the vocabulary");
            return Err(Failure::new(AIOS_OUT_OF_RANGE, what));
        }
        Ok(tokenizer.is_end_of_generation(id))
    }

    /// Reads `ids` at the positions behind those read before; the likeliest id to follow.
    pub(crate) fn read(&self, ids: &[u32]) -> Result<u32, Failure> {
        if ids.is_empty() {
            return Err(Failure::new(AIOS_BAD_ARGUMENT, "there are no ids to read"));
        }
        let mut executor = self.executor()?;
        let phase = if ids.len() == 1 { Phase::Decode } else { Phase::Prefill };
        let mut best = None;
        let outcome = executor.choose(ids, phase, Want::Last, Some(1), &mut |_, scores| {
            best = Some(likeliest(scores));
            Ok(false)
        });
        outcome.map_err(engine)?;
        best.ok_or_else(|| Failure::new(AIOS_INTERNAL, "a pass gave no logits"))
    }

    /// Forgets all positions and sets the counts to zero.
    pub(crate) fn reset(&self) -> Result<(), Failure> {
        let mut executor = self.executor()?;
        executor.truncate(0);
        executor.reset_ledger();
        Ok(())
    }
}

/// The id with the highest logit, the lowest of them where they are equal (SPEC N9).
fn likeliest(scores: Scores<'_>) -> u32 {
    match scores {
        Scores::All(logits) => argmax(logits).0,
        Scores::Best(some) => {
            let first = |a: &&(u32, f32), b: &&(u32, f32)| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0));
            some.iter().max_by(first).map_or(0, |best| best.0)
        }
    }
}

/// A block's flags as C has them.
fn flags(of: BlockFlags) -> u32 {
    let pairs = [
        (BlockFlags::CANONICAL, AIOS_BLOCK_CANONICAL),
        (BlockFlags::ALIASED, AIOS_BLOCK_ALIASED),
        (BlockFlags::SPARSE, AIOS_BLOCK_SPARSE),
        (BlockFlags::HOT, AIOS_BLOCK_HOT),
        (BlockFlags::WARM, AIOS_BLOCK_WARM),
        (BlockFlags::STREAM, AIOS_BLOCK_STREAM),
    ];
    pairs.iter().filter(|(flag, _)| of.has(*flag)).map(|(_, bit)| bit).sum()
}

/// The machine.
pub(crate) fn hardware() -> Hardware {
    let report = Report::collect(Path::new("/"));
    let processors = aios_kernels::allowed_processors().len();
    Hardware {
        processors: u32::try_from(processors).unwrap_or(u32::MAX),
        llc_bytes: report.last_level_cache_bytes().unwrap_or(0),
        memory_bytes: report.memory.total_bytes.unwrap_or(0),
        available_bytes: available_bytes().unwrap_or(0),
        cpu: text(report.cpu.model.as_deref().unwrap_or_default()),
        isa: text(Isa::detect().description()),
        ..zeroed()
    }
}

/// The model at `path`, with panels from a folder, if there is one; as it stands in its file where
/// these cannot be made.
fn plain(path: &Path, panels: Option<&Path>) -> Result<Arc<Model>, Failure> {
    let Some(folder) = panels else { return Model::load(path).map_err(load) };
    let (model, _) = Model::load_repacked(path, folder, &mut |_, _| true).map_err(load)?;
    Ok(model)
}

/// Follows the model's plan; what telemetry says of it, if there is anything to say. What keeps it
/// from that is an error only if the plan was asked for.
fn follow(
    model: &Model,
    mode: u32,
    folder: Option<PathBuf>,
) -> Result<Option<&'static str>, Failure> {
    let asked = mode == AIOS_PLAN_ON || folder.is_some();
    let mut missing = false;
    let followed = (|| -> Result<bool, String> {
        let folder = match folder {
            Some(folder) => folder,
            None => plan_folder(model).map_err(|error| {
                missing = true;
                format!("{error:#}")
            })?,
        };
        let (_, stamp) = model.identity().map_err(|error| error.to_string())?;
        let plan = Plan::open(&folder, &stamp, &plan_hardware()).map_err(|error| {
            missing = matches!(error, PlanError::Missing { .. });
            error.to_string()
        })?;
        let part = if mode == AIOS_PLAN_ON { PartMode::Always } else { PartMode::Auto };
        // What thresholds leave out changes results, so here they do not hold.
        let modes = PlanModes {
            screen: part,
            zeros: part,
            threshold: PartMode::Off,
            keep: part,
            budget: true,
        };
        model.follow(plan, &modes).map(Followed::any).map_err(|error| error.to_string())
    })();
    match followed {
        Err(what) if asked => Err(Failure::new(AIOS_PLAN, what)),
        Err(_) => Ok((!missing).then_some("plan_refused")),
        Ok(any) => Ok(any.then_some("plan")),
    }
}

fn load(error: aios_engine::LoadError) -> Failure {
    Failure::new(AIOS_LOAD, error)
}

/// A failure of the engine, with the status that says what to do about it.
fn engine(error: EngineError) -> Failure {
    let status = match &error {
        EngineError::PromptTooLong { .. } => AIOS_CONTEXT_FULL,
        EngineError::TokenId { .. } => AIOS_OUT_OF_RANGE,
        EngineError::Ram { .. }
        | EngineError::OutOfMemory(_)
        | EngineError::Resident(_)
        | EngineError::Threads { .. } => AIOS_NO_MEMORY,
        EngineError::Context { .. } | EngineError::NoThreads => AIOS_BAD_ARGUMENT,
        _ => AIOS_RUN,
    };
    Failure::new(status, error)
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
