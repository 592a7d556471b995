//! The forward pass.

use crate::cache::KvCache;
use crate::error::EngineError;
use crate::meter::{Meter, Observer};
use crate::model::{Ffn, FfnInput, Layer, Model, NormWeights, Projection, Tensor};
use crate::rope::{Rope, RopeTable};
use aios_contract::{BlockLayout, ModelConfig, Role, TensorName};
use aios_kernels::{
    AttentionParams, AttentionScratch, CacheType, Input, Isa, Pool, Product, QuantRows, ScaleBlock,
    activate, add, add_to_rows, attend, dequantize, matmul, norm, norm_in_place, rotate, scale,
    scale_block, softcap,
};
use aios_residency::{BlockTable, Ledger, Phase};
use std::sync::Arc;

/// Rows of logits that are computed at a time when every position's are wanted.
const LOGIT_ROWS: usize = 16;

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
    /// The instruction set.
    pub isa: Isa,
    /// The most tokens in a pass; longer prompts take several. It changes speed, not results.
    pub batch: usize,
    /// Compute with dequantised weights and unquantised activations.
    pub exact: bool,
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
            isa: Isa::detect(),
            batch: 512,
            exact: false,
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
    len: usize,
}

/// What the kernels need: instruction set, threads, and buffers for quantised activations.
#[derive(Debug)]
struct Context {
    isa: Isa,
    pool: Arc<Pool>,
    pool_batch: Arc<Pool>,
    /// Whether the present pass has one token.
    single: bool,
    exact: bool,
    q32: QuantRows,
    q256: QuantRows,
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

impl Context {
    fn pool(&self) -> Arc<Pool> {
        Arc::clone(if self.single { &self.pool } else { &self.pool_batch })
    }

    /// `outs[i]` = `projections[i]` · x (+ bias), for projections that share the input `x`,
    /// \[n\]\[len\]. The input is quantised once for each kind of scale that the weights need.
    fn project<const N: usize>(
        &mut self,
        (blocks, meter): (&BlockTable, &mut Meter),
        x: &[f32],
        len: usize,
        mut list: [Entry<'_>; N],
    ) {
        let pool = self.pool();
        let needs = |block| {
            !self.exact && list.iter().any(|entry| scale_block(entry.tensor.dtype) == Some(block))
        };
        let (needs32, needs256) = (needs(ScaleBlock::B32), needs(ScaleBlock::B256));
        if needs32 {
            self.q32.quantize(self.isa, &pool, x, len);
        }
        if needs256 {
            self.q256.quantize(self.isa, &pool, x, len);
        }
        let input = Input {
            x,
            len,
            q32: needs32.then_some(&self.q32),
            q256: needs256.then_some(&self.q256),
            exact: self.exact,
        };
        let exact = self.exact;
        meter.read(x);
        let mut products = list.each_mut().map(|Entry { tensor, bias, out }| {
            let (name, weights) = (blocks.block(tensor.id).name, tensor.factor(blocks, exact));
            meter.weights(name, tensor.bytes(), weights.bytes());
            if let Some(bias) = bias {
                meter.weights(name, size_of_val(*bias), bias);
            }
            meter.wrote(out);
            Product { weights, out }
        });
        matmul(self.isa, &pool, input, &mut products);
        for Entry { bias, out, .. } in list {
            if let Some(bias) = bias {
                add_to_rows(self.isa, out, bias);
            }
        }
    }
}

/// One of several projections that share an input.
struct Entry<'a> {
    tensor: &'a Tensor,
    bias: Option<&'a [f32]>,
    /// The result, \[n\]\[rows\].
    out: &'a mut [f32],
}

impl Projection {
    fn entry<'a>(&'a self, out: &'a mut [f32]) -> Entry<'a> {
        Entry { tensor: &self.tensor, bias: self.bias.as_deref(), out }
    }
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
        let longest = longest_input(config);
        let batch = options.batch.clamp(1, options.context);
        let rows = |block| QuantRows::with_capacity(block, batch, longest);
        let context = Context {
            isa: options.isa,
            pool,
            pool_batch,
            single: false,
            exact: options.exact,
            q32: rows(ScaleBlock::B32),
            q256: rows(ScaleBlock::B256),
        };
        let cache = KvCache::new(config, options.context, [options.cache_k, options.cache_v])?;
        let scratch =
            AttentionScratch::with_capacity(config.attention.heads, cache.shape().capacity);
        let meter = Meter::new(config.layers);
        let state = State { scratch, ..State::default() };
        let options = ExecutorOptions { batch, ..options };
        Ok(Self { model, options, context, cache, state, meter, len: 0 })
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

    /// Sets the counts back to zero.
    pub fn reset_ledger(&mut self) {
        self.meter.ledger.reset();
    }

    /// Lets `observer` see the passes that follow; returns the one before.
    pub fn observe(&mut self, observer: Option<Box<dyn Observer>>) -> Option<Box<dyn Observer>> {
        std::mem::replace(&mut self.meter.observer, observer)
    }

    /// Forgets the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
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
        self.check(tokens)?;
        let before = self.len;
        let passes = tokens.len().div_ceil(self.options.batch);
        let mut all = |position, logits: &[f32]| sink(position, logits).map(|()| true);
        for (i, chunk) in tokens.chunks(self.options.batch).enumerate() {
            let want = if want == Want::Last && i + 1 < passes { Want::None } else { want };
            if let Err(error) = self.pass(chunk, phase, want, &mut all) {
                self.len = before;
                return Err(error);
            }
        }
        Ok(())
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
        self.check(tokens)?;
        let before = self.len;
        let mut wanted = true;
        for chunk in tokens.chunks(self.options.batch) {
            let want = if wanted { Want::All } else { Want::None };
            let mut judge = |position, logits: &[f32]| {
                wanted = judge(position, logits)?;
                Ok(wanted)
            };
            if let Err(error) = self.pass(chunk, phase, want, &mut judge) {
                self.len = before;
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
        judge: &mut Judge<'_>,
    ) -> Result<(), EngineError> {
        let model = Arc::clone(&self.model);
        let (n, start) = (tokens.len(), self.len);
        self.context.single = n == 1;
        self.meter.start_pass(phase, n);
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
        match want {
            Want::None => Ok(()),
            Want::Last => self.logits(&model, start, n - 1..n, judge),
            Want::All => self.logits(&model, start, 0..n, judge),
        }
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
        let matrix = tensor.matrix(model.blocks());
        for (token, x) in tokens.iter().zip(self.state.x.chunks_exact_mut(config.d_model)) {
            let row = matrix.row_range(*token as usize, 1);
            self.meter.weights(
                model.blocks().block(tensor.id).name,
                row.bytes().len(),
                row.bytes(),
            );
            dequantize(self.context.isa, row.dtype(), row.bytes(), x)
                .expect("a row of a checked matrix has the bytes of its elements");
        }
        if let Some(factor) = config.embedding_scale {
            scale(self.context.isa, &mut self.state.x, factor);
        }
    }

    /// One layer: attention and feed-forward, added to the residual stream.
    fn layer(&mut self, model: &Model, index: usize, layer: &Layer, start: usize) {
        let config = model.config();
        let isa = self.context.isa;
        let pool = self.context.pool();
        for (role, norm) in layer.norms() {
            self.meter.norm(TensorName { role, layer: u32::try_from(index).ok() }, norm);
        }
        let post = |norm: &Option<NormWeights>, branch: &mut [f32]| {
            if let Some(weights) = norm {
                norm_in_place(isa, &pool, weights.with(config.norm), branch);
            }
        };
        norm(isa, &pool, layer.attn_norm.with(config.norm), &self.state.x, &mut self.state.normed);
        self.attention(model, index, layer, start);
        post(&layer.attn_post_norm, &mut self.state.branch);
        if config.block != BlockLayout::Parallel {
            add(isa, &mut self.state.x, &self.state.branch);
        }
        if let Some(weights) = &layer.ffn.norm {
            norm(isa, &pool, weights.with(config.norm), &self.state.x, &mut self.state.normed);
        }
        if config.block == BlockLayout::Parallel {
            add(isa, &mut self.state.x, &self.state.branch);
        }
        self.feed_forward(model, index, &layer.ffn);
        post(&layer.ffn.post_norm, &mut self.state.branch);
        add(isa, &mut self.state.x, &self.state.branch);
    }

    /// branch = o · attention(q, k, v) of the normed stream.
    fn attention(&mut self, model: &Model, index: usize, layer: &Layer, start: usize) {
        let Self { context, state, cache, meter, .. } = self;
        let State { normed, branch, q, k, v, attended, scratch, .. } = state;
        let (config, blocks) = (model.config(), model.blocks());
        let attention = &config.attention;
        let (isa, pool) = (context.isa, context.pool());
        let qkv = [layer.q.entry(q), layer.k.entry(k), layer.v.entry(v)];
        context.project((blocks, meter), normed, config.d_model, qkv);
        for (norm, heads) in [(&layer.q_norm, &mut *q), (&layer.k_norm, &mut *k)] {
            if let Some(norm) = norm {
                norm_in_place(isa, &pool, norm.with(config.norm), heads);
            }
        }
        let window = attention.window.filter(|window| window.applies_to(index));
        let ropes = model.ropes(cache.context());
        let (rope, table) = match (&ropes.local, window) {
            (Some(local), Some(_)) => (local, &state.local_rope),
            _ => (&ropes.global, &state.global_rope),
        };
        rotate_rows(isa, (rope, table), config, q, config.q_len());
        rotate_rows(isa, (rope, table), config, k, config.k_len());
        cache.write(isa, index, start, k, v);
        let params = AttentionParams {
            heads: attention.heads,
            scale: attention.scale,
            softcap: attention.score_softcap,
            window: window.map(|window| window.size),
        };
        attend(isa, &pool, params, cache.layer(index), start, q, attended, scratch);
        let end = start + k.len() / config.k_len();
        let first = params.window.map_or(0, |window| (start + 1).saturating_sub(window));
        meter.cache(index, cache.layer(index), start..end, first..end);
        let len = attention.heads * attention.value_len;
        context.project((blocks, meter), attended, len, [layer.o.entry(branch)]);
    }

    /// branch = down · act(gate · x) ⊙ (up · x) of the normed stream, or down · act(up · x).
    fn feed_forward(&mut self, model: &Model, index: usize, ffn: &Ffn) {
        let Self { context, state, meter, .. } = self;
        let State { normed, branch, gate, up, .. } = state;
        let (config, blocks) = (model.config(), model.blocks());
        let (isa, pool) = (context.isa, context.pool());
        let (function, len) = (config.ffn.activation, config.ffn.len);
        match &ffn.input {
            FfnInput::Gated { gate: gate_weights, up: up_weights } => {
                let both = [gate_weights.entry(gate), up_weights.entry(up)];
                context.project((blocks, meter), normed, config.d_model, both);
                activate(isa, &pool, function, Some(gate), len, up);
                meter.feed_forward(index, len, Some(gate), up);
            }
            FfnInput::Plain { up: up_weights } => {
                let one = [up_weights.entry(up)];
                context.project((blocks, meter), normed, config.d_model, one);
                activate(isa, &pool, function, None, len, up);
                meter.feed_forward(index, len, None, up);
            }
        }
        context.project((blocks, meter), up, len, [ffn.down.entry(branch)]);
    }

    /// Final norm, head and soft cap for the given rows of the pass, a few at a time.
    fn logits(
        &mut self,
        model: &Model,
        start: usize,
        rows: std::ops::Range<usize>,
        judge: &mut Judge<'_>,
    ) -> Result<(), EngineError> {
        let Self { context, state, meter, .. } = self;
        let (config, weights) = (model.config(), model.weights());
        let (isa, pool) = (context.isa, context.pool());
        let d = config.d_model;
        for first in rows.clone().step_by(LOGIT_ROWS) {
            let count = LOGIT_ROWS.min(rows.end - first);
            let x = &state.x[first * d..(first + count) * d];
            let normed = &mut state.normed[..count * d];
            norm(isa, &pool, weights.output_norm.with(config.norm), x, normed);
            let name = TensorName { role: Role::OutputNorm, layer: None };
            meter.norm(name, &weights.output_norm);
            state.logits.resize(count * config.vocab, 0.0);
            let head = [Entry { tensor: &weights.head, bias: None, out: &mut state.logits }];
            context.project((model.blocks(), meter), normed, d, head);
            if let Some(cap) = config.logit_softcap {
                softcap(isa, &mut state.logits, cap);
            }
            meter.read(&state.logits);
            for (i, logits) in state.logits.chunks_exact(config.vocab).enumerate() {
                let position = start + first + i;
                if logits.iter().any(|x| !x.is_finite()) {
                    return Err(EngineError::NotFinite { position });
                }
                if !judge(position, logits)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Rotates the heads of every row of `x`, \[n\]\[row\].
fn rotate_rows(
    isa: Isa,
    (rope, table): (&Rope, &RopeTable),
    config: &ModelConfig,
    x: &mut [f32],
    row: usize,
) {
    for (i, x) in x.chunks_exact_mut(row).enumerate() {
        rotate(isa, table.rotation(rope, i), config.attention.key_len, x);
    }
}

/// The longest row that is quantised.
fn longest_input(config: &ModelConfig) -> usize {
    let attended = config.attention.heads * config.attention.value_len;
    config.d_model.max(attended).max(config.ffn.len)
}
