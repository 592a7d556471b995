//! A layer's feed-forward part.

use super::{Executor, State};
use crate::model::{Ffn, FfnInput, Model};
use aios_kernels::activate;

impl Executor {
    /// branch = down · act(gate · x) ⊙ (up · x) of the normed stream, or down · act(up · x).
    pub(super) fn feed_forward(&mut self, model: &Model, index: usize, ffn: &Ffn) {
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
}
