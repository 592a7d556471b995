//! Products of the weights with the activations of a pass.

use crate::memory::Memory;
use crate::meter::Meter;
use crate::model::{Projection, Tensor};
use aios_contract::TensorName;
use aios_kernels::{
    Input, Isa, Pool, Product, QuantRows, ScaleBlock, add_to_rows, matmul, scale_block,
};
use aios_residency::BlockTable;
use std::sync::Arc;

/// What the kernels need: instruction set, threads, and buffers for quantised activations.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) isa: Isa,
    pub(super) pool: Arc<Pool>,
    pub(super) pool_batch: Arc<Pool>,
    /// Whether the present pass has one token.
    pub(super) single: bool,
    pub(super) exact: bool,
    pub(super) q32: QuantRows,
    pub(super) q256: QuantRows,
    pub(super) memory: Memory,
}

impl Context {
    pub(super) fn pool(&self) -> Arc<Pool> {
        Arc::clone(if self.single { &self.pool } else { &self.pool_batch })
    }

    /// `outs[i]` = `projections[i]` · x (+ bias), for projections that share the input `x`,
    /// \[n\]\[len\]. The input is quantised once for each kind of scale that the weights need.
    pub(super) fn project<const N: usize>(
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
        meter.read(x);
        list.iter().for_each(|entry| self.memory.count(entry.tensor));
        let memory = &self.memory;
        let whole = list.each_ref().map(|entry| memory.whole(blocks, entry.tensor));
        if whole.iter().all(Option::is_some) {
            let mut whole = whole.into_iter().flatten();
            let mut products = list.each_mut().map(|entry| {
                let weights = whole.next().expect("a matrix an entry");
                let name = blocks.block(entry.tensor.id).name;
                meter.weights(name, entry.tensor.bytes(), weights.bytes());
                entry.meter(name, meter);
                Product { weights, out: entry.out }
            });
            matmul(self.isa, &pool, input, &mut products);
        } else {
            for entry in &mut list {
                let tools = (self.isa, &*pool);
                self.memory.multiply((blocks, meter), tools, input, entry.tensor, entry.out);
                entry.meter(blocks.block(entry.tensor.id).name, meter);
            }
        }
        for Entry { bias, out, .. } in list {
            if let Some(bias) = bias {
                add_to_rows(self.isa, out, bias);
            }
        }
    }
}

/// One of several projections that share an input.
pub(super) struct Entry<'a> {
    pub(super) tensor: &'a Tensor,
    pub(super) bias: Option<&'a [f32]>,
    /// The result, \[n\]\[rows\].
    pub(super) out: &'a mut [f32],
}

impl Entry<'_> {
    /// Tells of the bias and of the result.
    fn meter(&self, name: TensorName, meter: &mut Meter) {
        if let Some(bias) = self.bias {
            meter.weights(name, size_of_val(bias), bias);
        }
        meter.wrote(self.out);
    }
}

impl Projection {
    pub(super) fn entry<'a>(&'a self, out: &'a mut [f32]) -> Entry<'a> {
        Entry { tensor: &self.tensor, bias: self.bias.as_deref(), out }
    }
}
