//! Products of the weights with the activations of a pass.

use crate::meter::Meter;
use crate::model::{Ffn, FfnInput, Layer, Projection, Tensor};
use aios_contract::ActivationFn;
use aios_kernels::{
    Inner, Input, Isa, Matrix, Pool, Product, QuantRows, ScaleBlock, inner, matmul, scale_block,
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
    /// What is done of these, to count.
    pub(super) done: Vec<AtomicUsize>,
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

    fn of(&mut self, block: ScaleBlock) -> &mut QuantRows {
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
        (blocks, meter): (&BlockTable, &mut Meter),
        x: &[f32],
        len: usize,
        mut list: [Entry<'_>; N],
        next: Next<'_>,
    ) {
        let (isa, pool, exact) = (self.isa, self.pool(), self.exact);
        let needs = list.each_ref().map(|entry| scale_block(entry.tensor.dtype));
        let input = quantized(&mut self.quants, (isa, &pool, exact), x, len, &needs);
        meter.read(x);
        let mut products = list.each_mut().map(|entry| entry.product(blocks, meter, exact));
        matmul(isa, &pool, input, &mut products, &matrices(next, blocks, exact));
    }

    /// `up` = act(gate · x) ⊙ (up · x) or act(up · x), quantised for a down projection that needs
    /// `scales`.
    pub(super) fn inner(
        &mut self,
        (blocks, meter): (&BlockTable, &mut Meter),
        (x, len): (&[f32], usize),
        (mut gate, mut up): (Option<Entry<'_>>, Entry<'_>),
        (function, scales): (ActivationFn, ScaleBlock),
        next: Next<'_>,
    ) {
        let (isa, pool, exact) = (self.isa, self.pool(), self.exact);
        let scale = |entry: &Entry<'_>| scale_block(entry.tensor.dtype);
        let needs = [gate.as_ref().and_then(scale), scale(&up)];
        let input = quantized(&mut self.quants, (isa, &pool, exact), x, len, &needs);
        let mut call = Inner {
            gate: gate.as_mut().map(|gate| gate.product(blocks, meter, exact)),
            up: up.product(blocks, meter, exact),
            function,
            quants: self.inner.of(scales),
            done: &mut self.done,
        };
        inner(isa, &pool, input, &mut call, &matrices(next, blocks, exact));
    }

    /// As [`Self::project`], of what [`Self::inner`] has left.
    pub(super) fn project_inner(
        &mut self,
        (blocks, meter): (&BlockTable, &mut Meter),
        x: &[f32],
        len: usize,
        (mut entry, scales): (Entry<'_>, ScaleBlock),
        next: Next<'_>,
    ) {
        let input = self.inner.input(x, len, scales);
        let mut products = [entry.product(blocks, meter, self.exact)];
        let next = matrices(next, blocks, self.exact);
        matmul(self.isa, &self.pool(), input, &mut products, &next);
    }
}

/// `x` as an input, quantised for each kind of scale that is needed.
fn quantized<'a>(
    quants: &'a mut Quants,
    (isa, pool, exact): (Isa, &Pool, bool),
    x: &'a [f32],
    len: usize,
    needs: &[Option<ScaleBlock>],
) -> Input<'a> {
    let needs = |block| !exact && needs.contains(&Some(block));
    let (needs32, needs256) = (needs(ScaleBlock::B32), needs(ScaleBlock::B256));
    if needs32 {
        quants.q32.quantize(isa, pool, x, len);
    }
    if needs256 {
        quants.q256.quantize(isa, pool, x, len);
    }
    let (q32, q256) = (needs32.then_some(&quants.q32), needs256.then_some(&quants.q256));
    Input { x, len, q32, q256, exact }
}

/// The weights of a product, up to three that share an input.
pub(super) type Next<'a> = [Option<&'a Tensor>; 3];

fn matrices<'a>(next: Next<'_>, blocks: &'a BlockTable, exact: bool) -> [Option<Matrix<'a>>; 3] {
    next.map(|tensor| tensor.map(|tensor| tensor.factor(blocks, exact)))
}

/// One of several projections that share an input.
pub(super) struct Entry<'a> {
    pub(super) tensor: &'a Tensor,
    pub(super) bias: Option<&'a [f32]>,
    /// The result, \[n\]\[rows\].
    pub(super) out: &'a mut [f32],
}

impl Entry<'_> {
    /// The product for the kernels, which `meter` is told of.
    fn product<'a>(
        &'a mut self,
        blocks: &'a BlockTable,
        meter: &mut Meter,
        exact: bool,
    ) -> Product<'a> {
        let Self { tensor, bias, out } = self;
        let (name, weights) = (blocks.block(tensor.id).name, tensor.factor(blocks, exact));
        meter.weights(name, tensor.bytes(), weights.bytes());
        if let Some(bias) = bias {
            meter.weights(name, size_of_val(*bias), bias);
        }
        meter.wrote(out);
        Product { weights, bias: *bias, out }
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
        Entry { tensor: &self.tensor, bias: self.bias.as_deref(), out }
    }
}
