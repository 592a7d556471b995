//! A layer's feed-forward part.

use super::project::Next;
use super::{Executor, State};
use crate::model::{Ffn, FfnInput, Model};
use aios_kernels::{activate, cut, scale_block};

/// The most tokens for which gate, up and activation share a join. With more of them a tile of
/// neurons does not stay in the cache until its last part is computed, and going through it row by
/// row afterwards is faster.
const JOINED_MOST: usize = 16;

impl Executor {
    /// branch = down · act(gate · x) ⊙ (up · x) of the normed stream, or down · act(up · x), less
    /// the neurons that thresholds leave out.
    ///
    /// For few tokens what goes into the down projection is computed and quantised in one join,
    /// unless somebody wants to see it first or it is not quantised.
    pub(super) fn feed_forward(&mut self, model: &Model, index: usize, ffn: &Ffn) {
        if self.skip_zeros(model, index, ffn) {
            return;
        }
        let next = after(model, index);
        let down = [Some(&ffn.down.tensor), None, None];
        let scales = scale_block(ffn.down.tensor.dtype);
        let thresholds = self.thresholds.clone();
        let least = thresholds.as_deref().map(|thresholds| thresholds.layer(index));
        let Self { context, state, meter, .. } = self;
        let State { normed, branch, gate, up, .. } = state;
        let (config, blocks) = (model.config(), model.blocks());
        let (function, len, d) = (config.ffn.activation, config.ffn.len, config.d_model);
        let (gate_weights, up_weights) = match &ffn.input {
            FfnInput::Gated { gate, up } => (Some(gate), up),
            FfnInput::Plain { up } => (None, up),
        };
        let few = normed.len() <= JOINED_MOST * d && meter.observer.is_none() && !context.exact;
        let joined = few && context.can_join(blocks, ffn);
        if let (Some(scales), true) = (scales, joined) {
            let both = (gate_weights.map(|weights| weights.entry(gate)), up_weights.entry(up));
            context.inner((blocks, meter), (normed, d), both, (function, scales, least), down);
            let entry = ffn.down.entry(branch);
            context.project_inner((blocks, meter), up, len, (entry, scales), next);
            return;
        }
        match gate_weights {
            Some(weights) => {
                let both = [weights.entry(gate), up_weights.entry(up)];
                context.project((blocks, meter), normed, d, both, down);
            }
            None => context.project((blocks, meter), normed, d, [up_weights.entry(up)], down),
        }
        let gate = gate_weights.map(|_| &**gate);
        activate(context.isa, &context.pool(), function, gate, len, up);
        if let Some(least) = least {
            cut(&context.pool(), least, up);
        }
        meter.feed_forward(index, len, gate, up);
        context.project((blocks, meter), up, len, [ffn.down.entry(branch)], next);
    }
}

/// What is read after a layer.
pub(super) fn after(model: &Model, index: usize) -> Next<'_> {
    let weights = model.weights();
    match weights.layers.get(index + 1) {
        Some(layer) => layer.first(),
        None => [Some(&weights.head), None, None],
    }
}
