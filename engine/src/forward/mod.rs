//! The forward pass.

mod attention;
mod feed_forward;
mod head;
mod keep;
mod prefix;
mod project;
mod screen;
mod trace;
mod zeros;

use crate::cache::{KvCache, KvPlan, KvTiering};
use crate::error::EngineError;
use crate::memory::{Memory, Need, longest_input};
use crate::meter::{Meter, Observer};
use crate::model::{FfnThresholds, Layer, Model, NormWeights};
use crate::rope::RopeTable;
use aios_contract::BlockLayout;
use aios_kernels::{
    AttentionScratch, CacheType, Isa, Pool, add_rows, dequantize, norm, norm_in_place, scale,
};
use aios_residency::{Ledger, Phase, PointerTable, ResidencyStats};
use project::{Context, Deltas, Quants};
use screen::Screening;
use std::path::Path;
use std::sync::Arc;
use trace::Trace;
use zeros::Zeroing;

pub use keep::Kept;
pub(crate) use prefix::Positions;
pub use screen::{Chooser, Scores, ScreenStats};
pub use trace::StateDigest;
pub use zeros::ZeroStats;

/// How an executor is set up.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    /// Positions of the context.
    pub context: usize,
    /// Threads for passes of one token.
    pub threads: usize,
    /// Threads for passes of several tokens.
    pub threads_batch: usize,
    /// How keys are stored.
    pub cache_k: CacheType,
    /// How values are stored.
    pub cache_v: CacheType,
    /// The tiers that older keys and values go to; other than `Off` they change results.
    pub kv_tiers: KvTiering,
    /// The most bytes that the cache may take; what tiers leave of it keeps more hot pages, from
    /// which a sequence can be taken back farther. It changes no result.
    pub kv_budget: Option<u64>,
    /// Whether that budget chooses the tiers: the first of `Off`, `Warm` and `Cold` that keep to
    /// it.
    pub kv_by_budget: bool,
    /// The instruction set.
    pub isa: Isa,
    /// The most tokens in a pass; longer prompts take several. It changes speed, not results.
    pub batch: usize,
    /// Compute with dequantised weights and unquantised activations.
    pub exact: bool,
    /// Bytes of memory for weights, cache and activations; `None` lets the system decide what
    /// stays in memory, unless the model exceeds it.
    pub ram: Option<u64>,
    /// Bytes of that memory, whoever sets its bounds, that something else takes: a draft model.
    pub set_aside: u64,
}

impl ExecutorOptions {
    /// Defaults for a context of `context` positions: all processors, an f16 cache.
    pub fn new(context: usize) -> Self {
        let threads = aios_kernels::allowed_processors().len().max(1);
        Self {
            context,
            threads,
            threads_batch: threads,
            cache_k: CacheType::F16,
            cache_v: CacheType::F16,
            kv_tiers: KvTiering::Off,
            kv_budget: None,
            kv_by_budget: false,
            isa: Isa::detect(),
            batch: 512,
            exact: false,
            ram: None,
            set_aside: 0,
        }
    }
}

/// Which positions' logits a pass should give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the head is not read.
    None,
    /// The last position's.
    Last,
    /// Every position's.
    All,
}

/// Runs a model over one sequence. The config, the weights and the run state are three things:
/// `model` holds the first two, this the third.
#[derive(Debug)]
pub struct Executor {
    model: Arc<Model>,
    options: ExecutorOptions,
    context: Context,
    cache: KvCache,
    state: State,
    meter: Meter,
    screening: Screening,
    zeroing: Zeroing,
    /// Below what neurons are left out.
    thresholds: Option<Arc<FfnThresholds>>,
    /// What stays in the last-level cache.
    kept: Option<Kept>,
    trace: Option<Trace>,
    len: usize,
}

/// Activations of the tokens of a pass, n of them, in buffers that are reused.
#[derive(Debug, Default)]
struct State {
    /// The residual stream, \[n\]\[d_model\].
    x: Vec<f32>,
    /// A normed copy of it, \[n\]\[d_model\].
    normed: Vec<f32>,
    /// A branch's output, \[n\]\[d_model\].
    branch: Vec<f32>,
    /// Queries, \[n\]\[heads\]\[key_len\].
    q: Vec<f32>,
    /// Keys, \[n\]\[kv_heads\]\[key_len\].
    k: Vec<f32>,
    /// Values, \[n\]\[kv_heads\]\[value_len\].
    v: Vec<f32>,
    /// Attention output, \[n\]\[heads\]\[value_len\].
    attended: Vec<f32>,
    /// Gate and up projections, \[n\]\[ffn\].
    gate: Vec<f32>,
    up: Vec<f32>,
    /// \[rows\]\[vocab\].
    logits: Vec<f32>,
    /// Rotations of the pass's positions, for global and for local layers.
    global_rope: RopeTable,
    local_rope: RopeTable,
    scratch: AttentionScratch,
}

/// What takes the logits of a position; an error ends the pass.
pub type Sink<'a> = dyn FnMut(usize, &[f32]) -> Result<(), EngineError> + 'a;

/// What takes the logits of a position and says whether it wants those of the next.
pub type Judge<'a> = dyn FnMut(usize, &[f32]) -> Result<bool, EngineError> + 'a;

impl Executor {
    /// An executor with an empty cache.
    ///
    /// # Errors
    /// Those of [`EngineError`] that concern threads, context, cache and memory.
    pub fn new(model: Arc<Model>, options: ExecutorOptions) -> Result<Self, EngineError> {
        /// Positions are compared as f32 within a block only, but ids and lengths are u32.
        const CONTEXT_MAX: usize = 1 << 24;
        if options.threads == 0 || options.threads_batch == 0 {
            return Err(EngineError::NoThreads);
        }
        if !(1..=CONTEXT_MAX).contains(&options.context) {
            return Err(EngineError::Context { context: options.context, most: CONTEXT_MAX });
        }
        let planned = model.planned_budget().filter(|_| options.ram.is_none());
        let options = ExecutorOptions { ram: options.ram.or(planned), ..options };
        let start = |threads| {
            let pool = Pool::new(threads);
            pool.map(Arc::new).map_err(|source| EngineError::Threads { threads, source })
        };
        let pool = start(options.threads)?;
        let pool_batch = match options.threads_batch {
            threads if threads == options.threads => Arc::clone(&pool),
            threads => start(threads)?,
        };
        let config = model.config();
        let (plan, kv_tiers) = KvPlan::choose(&model, &options)?;
        let options = ExecutorOptions { kv_tiers, kv_by_budget: false, ..options };
        let cache = KvCache::new(&model, plan)?;
        let attention = &config.attention;
        let (heads, kv_heads) = (attention.heads, attention.kv_heads);
        let scratch = AttentionScratch::with_capacity(heads, kv_heads, plan.positions());
        let need = Need::new(&model, cache.bytes(), scratch.bytes());
        let (memory, batch) = Memory::new(&model, &options, need, planned.is_some())?;
        let context = Context {
            isa: model.tuned(options.isa),
            pool,
            pool_batch,
            single: false,
            exact: options.exact,
            quants: Quants::with_capacity(batch, longest_input(config)),
            inner: Quants::with_capacity(batch, config.ffn.len),
            deltas: Deltas::new(batch, model.weights().delta_rank()),
            done: Vec::new(),
            memory,
        };
        let meter = Meter::new(config.layers);
        let state = State { scratch, ..State::default() };
        let options = ExecutorOptions { batch, ..options };
        let screening = Screening::new(model.head_screen().cloned());
        let zeroing = Zeroing::new(model.ffn_neurons().cloned());
        let thresholds = model.ffn_thresholds().cloned();
        let mut executor = Self {
            model,
            options,
            context,
            cache,
            state,
            meter,
            screening,
            zeroing,
            thresholds,
            kept: None,
            trace: None,
            len: 0,
        };
        executor.keep_in_cache(executor.model.keep_room());
        Ok(executor)
    }

    /// The model.
    pub const fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How it was set up; the batch is at most the context.
    pub const fn options(&self) -> &ExecutorOptions {
        &self.options
    }

    /// Positions in the cache.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache is empty.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that the cache can hold.
    pub const fn context(&self) -> usize {
        self.cache.context()
    }

    /// Bytes reserved for the cache.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// The counts of bytes read.
    pub const fn ledger(&self) -> &Ledger {
        &self.meter.ledger
    }

    /// Sets the counts back to zero, those of residency and of what is skipped too.
    pub fn reset_ledger(&mut self) {
        self.meter.ledger.reset();
        self.context.memory.reset();
        self.screening.reset();
        self.zeroing.reset();
    }

    /// A file that weights are streamed from, if any are.
    pub fn streamed_file(&self) -> Option<&Path> {
        self.context.memory.streamed_file()
    }

    /// Where the weights live, and what passes have read of them.
    pub fn residency(&self) -> ResidencyStats {
        let stats = self.context.memory.stats();
        let of = |of: fn(Kept) -> u64| self.kept.map_or(0, of);
        let (kept_bytes, past_bytes) = (of(|kept| kept.kept_bytes), of(|kept| kept.past_bytes));
        let vocab = self.model.config().vocab as u64;
        let rows_skipped = self.screen_stats().rows_skipped(vocab) + self.zero_stats().skipped();
        ResidencyStats { kept_bytes, past_bytes, rows_skipped, on: self.on(), ..stats }
    }

    /// What is on, by the names of telemetry.
    fn on(&self) -> Vec<&'static str> {
        let is_on = [
            ("repacked", self.model.is_repacked() && !self.options.exact),
            ("screen", self.screens_head()),
            ("zeros", self.skips_zeros()),
            ("thresholds", self.thresholds.is_some()),
            ("kept", self.kept.is_some()),
            ("ahead", self.asks_ahead() != self.options.isa.ahead()),
            ("kv_tiers", self.options.kv_tiers != KvTiering::Off),
            ("budget", self.context.memory.has_budget()),
        ];
        is_on.into_iter().filter_map(|(name, on)| on.then_some(name)).collect()
    }

    /// The pointer table of the weights, for a last-level cache of so many bytes.
    pub(crate) fn pointers(&self, llc_bytes: Option<u64>) -> PointerTable {
        self.context.memory.pointers(self.model.blocks(), llc_bytes)
    }

    /// Lets `observer` see the passes that follow; returns the one before.
    pub fn observe(&mut self, observer: Option<Box<dyn Observer>>) -> Option<Box<dyn Observer>> {
        std::mem::replace(&mut self.meter.observer, observer)
    }

    /// Forgets the positions from `len` on. Where the cache has tiers and `len` is far behind, it
    /// cannot go on from there, and forgets all but the first positions; [`Self::len`] tells.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = self.cache.truncate(len);
        }
        if let Some(trace) = &mut self.trace {
            trace.truncate(self.len);
        }
    }

    /// Digests the final normed states of every position from now on (SPEC Z5), or no longer. It
    /// costs a norm and a SHA-256 of `4·d_model` bytes a token, and changes no result. Positions in
    /// the cache, whose states are gone, are forgotten.
    pub fn trace_states(&mut self, on: bool) {
        if on != self.trace.is_some() {
            let room = self.context();
            self.trace = on.then(|| Trace::new(room, self.model.config().d_model));
            self.truncate(0);
        }
    }

    /// Whether states are digested.
    pub const fn traces_states(&self) -> bool {
        self.trace.is_some()
    }

    /// The digest of the states of the first `positions` positions in the cache; `None` if there
    /// are none, not as many, or they were not digested.
    pub fn state_digest(&self, positions: usize) -> Option<StateDigest> {
        self.trace.as_ref()?.digest(positions)
    }

    /// Takes positions up to `len` as they lie in the cache, zeros where none was written: to
    /// measure at a depth without reading a prompt first. What is touched and how long it takes
    /// does not depend on the values; what the model says after it means nothing.
    ///
    /// # Errors
    /// [`EngineError::PromptTooLong`] if the context does not hold them.
    pub fn skip_to(&mut self, len: usize) -> Result<(), EngineError> {
        if len > self.context() {
            return Err(EngineError::PromptTooLong { tokens: len, context: self.context() });
        }
        self.len = len;
        self.cache.commit(len);
        Ok(())
    }

    /// Runs `tokens` at the positions that follow those in the cache, in passes of at most
    /// `options.batch` tokens, and hands each wanted position and its logits to `sink`.
    /// If it fails, the cache keeps the positions that it had.
    ///
    /// # Errors
    /// [`EngineError::TokenId`], [`EngineError::PromptTooLong`], [`EngineError::NotFinite`] for
    /// wanted logits, and whatever `sink` returns.
    pub fn forward(
        &mut self,
        tokens: &[u32],
        phase: Phase,
        want: Want,
        sink: &mut Sink<'_>,
    ) -> Result<(), EngineError> {
        let mut all = |position, scores: Scores<'_>| match scores {
            Scores::All(logits) => sink(position, logits).map(|()| true),
            Scores::Best(_) => unreachable!("all logits were asked for"),
        };
        self.choose(tokens, phase, want, None, &mut all)
    }

    /// Runs `tokens` as [`Self::forward`] does and hands the logits of every position to `judge`
    /// until it wants no more. What the logits behind those would have been does not matter, not
    /// even whether they are finite.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn verify(
        &mut self,
        tokens: &[u32],
        phase: Phase,
        judge: &mut Judge<'_>,
    ) -> Result<(), EngineError> {
        let mut all = |position, scores: Scores<'_>| match scores {
            Scores::All(logits) => judge(position, logits),
            Scores::Best(_) => unreachable!("all logits were asked for"),
        };
        self.choose(tokens, phase, Want::All, None, &mut all)
    }

    /// Runs `tokens` as [`Self::forward`] does and hands the scores of every wanted position to
    /// `chooser` until it wants no more: all logits, or where that takes fewer bytes some of them,
    /// among which the `best` highest are, if that says how many suffice.
    ///
    /// # Errors
    /// Those of [`Self::forward`].
    pub fn choose(
        &mut self,
        tokens: &[u32],
        phase: Phase,
        want: Want,
        best: Option<usize>,
        chooser: &mut Chooser<'_>,
    ) -> Result<(), EngineError> {
        self.check(tokens)?;
        let before = self.len;
        let passes = tokens.len().div_ceil(self.options.batch);
        let mut wanted = true;
        for (i, chunk) in tokens.chunks(self.options.batch).enumerate() {
            let later = want == Want::Last && i + 1 < passes;
            let want = if later || !wanted { Want::None } else { want };
            let mut chooser = |position, scores: Scores<'_>| {
                wanted = chooser(position, scores)?;
                Ok(wanted)
            };
            if let Err(error) = self.pass(chunk, phase, want, best, &mut chooser) {
                self.truncate(before);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether `tokens` can be run.
    fn check(&self, tokens: &[u32]) -> Result<(), EngineError> {
        let vocab = self.model.config().vocab;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(EngineError::TokenId { id, vocab });
        }
        let total = self.len + tokens.len();
        if total > self.context() {
            return Err(EngineError::PromptTooLong { tokens: total, context: self.context() });
        }
        Ok(())
    }

    /// One pass over the weights.
    fn pass(
        &mut self,
        tokens: &[u32],
        phase: Phase,
        want: Want,
        best: Option<usize>,
        chooser: &mut Chooser<'_>,
    ) -> Result<(), EngineError> {
        let model = Arc::clone(&self.model);
        let (n, start) = (tokens.len(), self.len);
        self.context.single = n == 1;
        self.meter.start_pass(phase, n);
        let logits = match want {
            Want::None => 0..0,
            Want::Last => n - 1..n,
            Want::All => 0..n,
        };
        self.context.memory.begin_pass(n, logits.len());
        let past = self.kept.is_some_and(|kept| kept.leaves_out(self.cache.bytes_of(start + n)));
        self.cache.read_past(past);
        self.resize(n);
        self.embed(&model, tokens);
        let ropes = model.ropes(self.cache.context());
        self.state.global_rope.fill(&ropes.global, start, n);
        if let Some(local) = &ropes.local {
            self.state.local_rope.fill(local, start, n);
        }
        for (index, layer) in model.weights().layers.iter().enumerate() {
            self.layer(&model, index, layer, start);
        }
        self.len += n;
        self.cache.commit(self.len);
        self.digest_states(&model, start);
        let outcome = self.logits(&model, start, logits, best, chooser);
        self.meter.ledger.disk(self.context.memory.new_disk_bytes());
        outcome
    }

    /// Makes the buffers fit `n` tokens; memory is kept from pass to pass.
    fn resize(&mut self, n: usize) {
        let config = self.model.config();
        let attended = config.attention.heads * config.attention.value_len;
        let state = &mut self.state;
        for (buffer, len) in [
            (&mut state.x, config.d_model),
            (&mut state.normed, config.d_model),
            (&mut state.branch, config.d_model),
            (&mut state.q, config.q_len()),
            (&mut state.k, config.k_len()),
            (&mut state.v, config.v_len()),
            (&mut state.attended, attended),
            (&mut state.gate, config.ffn.len),
            (&mut state.up, config.ffn.len),
        ] {
            buffer.resize(n * len, 0.0);
        }
    }

    /// x = rows of the embedding, times its factor.
    fn embed(&mut self, model: &Model, tokens: &[u32]) {
        let (config, tensor) = (model.config(), &model.weights().embedding);
        let name = model.blocks().block(tensor.id).name;
        let isa = self.context.isa;
        for (token, x) in tokens.iter().zip(self.state.x.chunks_exact_mut(config.d_model)) {
            let Some(row) = self.context.memory.row(model.blocks(), *token as usize) else {
                return;
            };
            self.meter.weights(name, row.len(), row);
            dequantize(isa, tensor.dtype, row, x)
                .expect("a row of a checked matrix has the bytes of its elements");
        }
        if let Some(factor) = config.embedding_scale {
            scale(self.context.isa, &mut self.state.x, factor);
        }
    }

    /// Digests the pass's final normed states, if somebody wants that. Those of a pass that is lost
    /// go when the positions do.
    fn digest_states(&mut self, model: &Model, start: usize) {
        let (isa, pool) = (self.context.isa, self.context.pool());
        let Self { state, trace: Some(trace), .. } = self else { return };
        let (config, weights) = (model.config(), model.weights());
        norm(isa, &pool, weights.output_norm.with(config.norm), &state.x, &mut state.normed);
        trace.extend(start, &state.normed, config.d_model);
    }

    /// One layer: attention and feed-forward, added to the residual stream.
    fn layer(&mut self, model: &Model, index: usize, layer: &Layer, start: usize) {
        let config = model.config();
        let isa = self.context.isa;
        let pool = self.context.pool();
        layer.norms().for_each(|norm| self.meter.norm(Some(index), norm));
        let post = |norm: &Option<NormWeights>, branch: &mut [f32]| {
            if let Some(weights) = norm {
                norm_in_place(isa, &pool, weights.with(config.norm), branch);
            }
        };
        norm(isa, &pool, layer.attn_norm.with(config.norm), &self.state.x, &mut self.state.normed);
        self.attention(model, index, layer, start);
        post(&layer.attn_post_norm, &mut self.state.branch);
        if config.block != BlockLayout::Parallel {
            add_rows(isa, &pool, &mut self.state.x, &self.state.branch, config.d_model);
        }
        if let Some(weights) = &layer.ffn.norm {
            norm(isa, &pool, weights.with(config.norm), &self.state.x, &mut self.state.normed);
        }
        if config.block == BlockLayout::Parallel {
            add_rows(isa, &pool, &mut self.state.x, &self.state.branch, config.d_model);
        }
        self.feed_forward(model, index, &layer.ffn);
        post(&layer.ffn.post_norm, &mut self.state.branch);
        add_rows(isa, &pool, &mut self.state.x, &self.state.branch, config.d_model);
    }
}
