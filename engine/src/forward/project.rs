//! Products of the weights with the activations of a pass.

use crate::meter::Meter;
use crate::model::{Projection, Tensor};
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
pub(super) struct Entry<'a> {
    pub(super) tensor: &'a Tensor,
    pub(super) bias: Option<&'a [f32]>,
    /// The result, \[n\]\[rows\].
    pub(super) out: &'a mut [f32],
}

impl Projection {
    pub(super) fn entry<'a>(&'a self, out: &'a mut [f32]) -> Entry<'a> {
        Entry { tensor: &self.tensor, bias: self.bias.as_deref(), out }
    }
}
