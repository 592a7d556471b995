//! Products of the weights with the activations of a pass.

use crate::memory::Memory;
use crate::meter::Meter;
use crate::model::{Delta, Ffn, FfnInput, Layer, Projection, Tensor};
use aios_contract::ActivationFn;
use aios_kernels::{
    ActiveNeurons, Inner, Input, Isa, Matrix, Neurons, Pool, Product, QuantRows, ScaleBlock, add,
    inner, matmul, neurons, scale_block,
};
use aios_residency::BlockTable;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// What the kernels need: instruction set, threads, and buffers for quantised activations.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) isa: Isa,
    pub(super) pool: Arc<Pool>,
    pub(super) pool_batch: Arc<Pool>,
    /// Whether the present pass has one token.
    pub(super) single: bool,
    pub(super) exact: bool,
    /// Inputs of products, quantised just before.
    pub(super) quants: Quants,
    /// Inputs of down projections, quantised as they were computed.
    pub(super) inner: Quants,
    /// What products of deltas need.
    pub(super) deltas: Deltas,
    /// What is done of these, to count.
    pub(super) done: Vec<AtomicUsize>,
    pub(super) memory: Memory,
}

/// Rows quantised for each kind of scale.
#[derive(Debug)]
pub(super) struct Quants {
    q32: QuantRows,
    q256: QuantRows,
}

impl Quants {
    /// Room for `rows` rows of at most `len` elements.
    pub(super) fn with_capacity(rows: usize, len: usize) -> Self {
        let rows = |block| QuantRows::with_capacity(block, rows, len);
        Self { q32: rows(ScaleBlock::B32), q256: rows(ScaleBlock::B256) }
    }

    pub(super) fn of(&mut self, block: ScaleBlock) -> &mut QuantRows {
        match block {
            ScaleBlock::B32 => &mut self.q32,
            ScaleBlock::B256 => &mut self.q256,
        }
    }

    /// The rows that are quantised already, as an input.
    fn input<'a>(&'a self, x: &'a [f32], len: usize, block: ScaleBlock) -> Input<'a> {
        let of = |wanted, rows| (block == wanted).then_some(rows);
        let (q32, q256) = (of(ScaleBlock::B32, &self.q32), of(ScaleBlock::B256, &self.q256));
        Input { x, len, q32, q256, exact: false }
    }

    /// `x`, \[n\]\[len\], as an input, quantised for each kind of scale that is needed.
    pub(super) fn quantized<'a>(
        &'a mut self,
        (isa, pool, exact): (Isa, &Pool, bool),
        x: &'a [f32],
        len: usize,
        needs: &[Option<ScaleBlock>],
    ) -> Input<'a> {
        let needs = |block| !exact && needs.contains(&Some(block));
        let (needs32, needs256) = (needs(ScaleBlock::B32), needs(ScaleBlock::B256));
        if needs32 {
            self.q32.quantize(isa, pool, x, len);
        }
        if needs256 {
            self.q256.quantize(isa, pool, x, len);
        }
        let (q32, q256) = (needs32.then_some(&self.q32), needs256.then_some(&self.q256));
        Input { x, len, q32, q256, exact }
    }
}

impl Context {
    pub(super) fn pool(&self) -> Arc<Pool> {
        Arc::clone(if self.single { &self.pool } else { &self.pool_batch })
    }

    /// `outs[i]` = `projections[i]` · x (+ bias), for projections that share the input `x`,
    /// \[n\]\[len\]. The input is quantised once for each kind of scale that the weights need.
    /// Threads that wait ask for the weights `next`, which the product after this one reads.
    pub(super) fn project<const N: usize>(
        &mut self,
        measure: (&BlockTable, &mut Meter),
        x: &[f32],
        len: usize,
        list: [Entry<'_>; N],
        next: Next<'_>,
    ) {
        let (isa, pool, exact) = (self.isa, self.pool(), self.exact);
        let mut needs = [None; 2 * PROJECTIONS_MOST];
        let tensors = list.iter().flat_map(|entry| [Some(entry.tensor), entry.first_of_delta()]);
        for (need, tensor) in needs.iter_mut().zip(tensors) {
            *need = tensor.and_then(|tensor| scale_block(tensor.dtype));
        }
        let input = self.quants.quantized((isa, &pool, exact), x, len, &needs);
        measure.1.read(x);
        let owned = (&mut self.memory, &mut self.deltas);
        multiply(owned, measure, (isa, &pool), input, list, next);
    }

    /// Whether [`Self::inner`] and [`Self::project_inner`] can compute these: if their weights lie
    /// whole in memory and none is an alias with a delta.
    pub(super) fn can_join(&self, blocks: &BlockTable, ffn: &Ffn) -> bool {
        let plain = |of: &Projection| of.delta.is_none();
        let whole = |of: &Projection| plain(of) && self.memory.whole(blocks, &of.tensor).is_some();
        let inputs = match &ffn.input {
            FfnInput::Gated { gate, up } => whole(gate) && whole(up),
            FfnInput::Plain { up } => whole(up),
        };
        inputs && plain(&ffn.down)
    }

    /// `up` = act(gate · x) ⊙ (up · x) or act(up · x), quantised for a down projection that needs
    /// `scales`.
    ///
    /// # Panics
    /// Unless [`Self::can_join`].
    pub(super) fn inner(
        &mut self,
        (blocks, meter): (&BlockTable, &mut Meter),
        (x, len): (&[f32], usize),
        (mut gate, mut up): (Option<Entry<'_>>, Entry<'_>),
        (function, scales, least): (ActivationFn, ScaleBlock, Option<&[f32]>),
        next: Next<'_>,
    ) {
        let (isa, pool, exact) = (self.isa, self.pool(), self.exact);
        let scale = |entry: &Entry<'_>| scale_block(entry.tensor.dtype);
        let needs = [gate.as_ref().and_then(scale), scale(&up)];
        let input = self.quants.quantized((isa, &pool, exact), x, len, &needs);
        meter.read(x);
        for entry in gate.iter().chain([&up]) {
            self.memory.count(entry.tensor);
        }
        let memory = &self.memory;
        let mut product = |entry| {
            let entry: &mut Entry<'_> = entry;
            let weights = memory.whole(blocks, entry.tensor).expect("the caller has asked");
            entry.product(blocks, meter, weights)
        };
        let mut call = Inner {
            gate: gate.as_mut().map(&mut product),
            up: product(&mut up),
            function,
            least,
            quants: self.inner.of(scales),
            done: &mut self.done,
        };
        inner(isa, &pool, input, &mut call, &matrices(memory, next, blocks));
    }

    /// As [`Self::project`], of what [`Self::inner`] has left.
    pub(super) fn project_inner(
        &mut self,
        measure: (&BlockTable, &mut Meter),
        x: &[f32],
        len: usize,
        (entry, scales): (Entry<'_>, ScaleBlock),
        next: Next<'_>,
    ) {
        let (isa, pool) = (self.isa, self.pool());
        let input = self.inner.input(x, len, scales);
        let owned = (&mut self.memory, &mut self.deltas);
        multiply(owned, measure, (isa, &pool), input, [entry], next);
    }
}

impl Context {
    /// As [`Self::project_inner`], with the down projection stored neuron by neuron, of the neurons
    /// `active` alone.
    pub(super) fn project_active(
        &mut self,
        (blocks, meter): (&BlockTable, &mut Meter),
        (weights, active): (Neurons<'_>, &ActiveNeurons),
        (entry, scales): (Entry<'_>, ScaleBlock),
        next: Next<'_>,
    ) {
        let (isa, pool) = (self.isa, self.pool());
        let Entry { tensor, bias, out, .. } = entry;
        self.memory.count(tensor);
        let name = blocks.block(tensor.id).name;
        meter.rows(name, weights.shape().read_bytes(active), weights.reads(active));
        if let Some(bias) = bias {
            meter.bias(name, bias);
        }
        let next = matrices(&self.memory, next, blocks);
        let x = (&*self.inner.of(scales), active);
        neurons(isa, &pool, weights, x, bias, out, &next);
        meter.wrote(out);
    }
}

/// Projections that share an input.
const PROJECTIONS_MOST: usize = 3;

/// Products that share an input, in one join if all weights lie whole in memory.
fn multiply<const N: usize>(
    (memory, deltas): (&mut Memory, &mut Deltas),
    (blocks, meter): (&BlockTable, &mut Meter),
    (isa, pool): (Isa, &Pool),
    input: Input<'_>,
    mut list: [Entry<'_>; N],
    next: Next<'_>,
) {
    const { assert!(N <= PROJECTIONS_MOST) };
    list.iter().for_each(|entry| memory.count(entry.tensor));
    let whole = list.each_ref().map(|entry| memory.whole(blocks, entry.tensor));
    if whole.iter().all(Option::is_some) {
        let mut whole = whole.iter();
        let mut products = list.each_mut().map(|entry| {
            let weights = whole.next().copied().flatten().expect("a matrix an entry");
            entry.product(blocks, meter, weights)
        });
        matmul(isa, pool, input, &mut products, &matrices(memory, next, blocks));
        for entry in &mut list {
            deltas.add(memory, (blocks, meter), (isa, pool), input, entry);
        }
        return;
    }
    for mut entry in list {
        let name = blocks.block(entry.tensor.id).name;
        let weights = (entry.tensor, entry.early_bias());
        memory.multiply((blocks, meter), (isa, pool), input, weights, entry.out);
        deltas.add(memory, (blocks, meter), (isa, pool), input, &mut entry);
        if let Some(bias) = entry.bias {
            meter.bias(name, bias);
        }
        meter.wrote(entry.out);
    }
}

/// Buffers of what deltas add, kept from pass to pass.
#[derive(Debug)]
pub(super) struct Deltas {
    /// The product of the right factor, \[n\]\[rank\], and it quantised.
    inner: Vec<f32>,
    quants: Quants,
    /// What is added, \[n\]\[rows\].
    sum: Vec<f32>,
}

impl Deltas {
    /// Buffers for passes of `rows` rows, and deltas in factors of at most `rank`.
    pub(super) fn new(rows: usize, rank: usize) -> Self {
        Self { inner: Vec::new(), quants: Quants::with_capacity(rows, rank), sum: Vec::new() }
    }

    /// The product of an alias is finished: what its delta makes of the input is added to that of
    /// its canonical matrix, and then its bias (SPEC N4). Others are left as they are.
    fn add(
        &mut self,
        memory: &mut Memory,
        (blocks, meter): (&BlockTable, &mut Meter),
        (isa, pool): (Isa, &Pool),
        input: Input<'_>,
        entry: &mut Entry<'_>,
    ) {
        let Some(Delta { left, right }) = entry.delta else { return };
        let n = input.rows();
        self.sum.resize(n * left.rows, 0.0);
        let mut product = |tensor: &Tensor, input: Input<'_>, out: &mut [f32]| {
            memory.count(tensor);
            match memory.whole(blocks, tensor) {
                Some(weights) => {
                    let mut of = Entry { tensor, delta: None, bias: None, out };
                    let product = of.product(blocks, meter, weights);
                    matmul(isa, pool, input, &mut [product], &[]);
                }
                None => {
                    memory.multiply((blocks, meter), (isa, pool), input, (tensor, None), out);
                    meter.wrote(out);
                }
            }
        };
        match right {
            None => product(left, input, &mut self.sum),
            Some(right) => {
                self.inner.resize(n * right.rows, 0.0);
                product(right, input, &mut self.inner);
                let needs = [scale_block(left.dtype)];
                let context = (isa, pool, input.exact);
                let inner = self.quants.quantized(context, &self.inner, right.rows, &needs);
                product(left, inner, &mut self.sum);
            }
        }
        add(isa, entry.out, &self.sum);
        if let Some(bias) = entry.bias {
            entry.out.chunks_exact_mut(left.rows).for_each(|out| add(isa, out, bias));
        }
        memory.count_delta();
    }
}

/// The weights of a product, up to three that share an input.
pub(super) type Next<'a> = [Option<&'a Tensor>; 3];

/// Those that lie whole in memory.
fn matrices<'a>(
    memory: &'a Memory,
    next: Next<'_>,
    blocks: &'a BlockTable,
) -> [Option<Matrix<'a>>; 3] {
    next.map(|tensor| tensor.and_then(|tensor| memory.whole(blocks, tensor)))
}

/// One of several projections that share an input.
pub(super) struct Entry<'a> {
    pub(super) tensor: &'a Tensor,
    /// What is added to the product, before the bias.
    pub(super) delta: Option<&'a Delta>,
    pub(super) bias: Option<&'a [f32]>,
    /// The result, \[n\]\[rows\].
    pub(super) out: &'a mut [f32],
}

impl<'a> Entry<'a> {
    /// The product for the kernels, which `meter` is told of.
    fn product<'b>(
        &'b mut self,
        blocks: &BlockTable,
        meter: &mut Meter,
        weights: Matrix<'b>,
    ) -> Product<'b> {
        let early = self.early_bias();
        let Self { tensor, bias, out, .. } = self;
        let name = blocks.block(tensor.id).name;
        meter.matrix(name, tensor.bytes(), weights, out.len() / tensor.rows.max(1));
        if let Some(bias) = bias {
            meter.bias(name, bias);
        }
        meter.wrote(out);
        Product { weights, bias: early, out }
    }

    /// The bias, if it is added to the product at once: behind a delta it comes last.
    const fn early_bias(&self) -> Option<&'a [f32]> {
        if self.delta.is_some() { None } else { self.bias }
    }

    /// The matrix of its delta that the input goes into.
    fn first_of_delta(&self) -> Option<&'a Tensor> {
        self.delta.map(|delta| delta.right.as_ref().unwrap_or(&delta.left))
    }
}

impl Layer {
    /// The weights that a layer reads first.
    pub(super) const fn first(&self) -> Next<'_> {
        [Some(&self.q.tensor), Some(&self.k.tensor), Some(&self.v.tensor)]
    }
}

impl Ffn {
    /// The weights that a feed-forward part reads first: where there is a gate, a thread's rows
    /// of the gate come before those of up.
    pub(super) const fn first(&self) -> Next<'_> {
        match &self.input {
            FfnInput::Gated { gate, .. } => [Some(&gate.tensor), None, None],
            FfnInput::Plain { up } => [Some(&up.tensor), None, None],
        }
    }
}

impl Projection {
    pub(super) fn entry<'a>(&'a self, out: &'a mut [f32]) -> Entry<'a> {
        let (tensor, delta) = (&self.tensor, self.delta.as_ref());
        Entry { tensor, delta, bias: self.bias.as_deref(), out }
    }
}
