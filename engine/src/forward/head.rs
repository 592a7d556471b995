//! From the last layer to the logits.

use super::project::Entry;
use super::{Executor, Judge};
use crate::error::EngineError;
use crate::model::Model;
use aios_contract::{Role, TensorName};
use aios_kernels::{norm, softcap};

/// Rows of logits that are computed at a time when every position's are wanted.
const LOGIT_ROWS: usize = 16;

impl Executor {
    /// Final norm, head and soft cap for the given rows of the pass, a few at a time.
    pub(super) fn logits(
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
            context.project((model.blocks(), meter), normed, d, head, [None; 3]);
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
