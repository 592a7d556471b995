//! From the last layer to the logits.

use super::project::Entry;
use super::{Chooser, Executor, Scores};
use crate::error::EngineError;
use crate::memory::LOGIT_ROWS;
use crate::model::Model;
use aios_kernels::{norm, softcap};

impl Executor {
    /// Final norm, head and soft cap for the given rows of the pass, a few at a time; where only
    /// the `best` logits are wanted, by the screen as far as that goes.
    pub(super) fn logits(
        &mut self,
        model: &Model,
        start: usize,
        rows: std::ops::Range<usize>,
        best: Option<usize>,
        judge: &mut Chooser<'_>,
    ) -> Result<(), EngineError> {
        self.context.memory.check()?;
        let Some(judged) = self.screened(model, start, rows.clone(), best, judge)? else {
            return Ok(());
        };
        let rows = rows.start + judged..rows.end;
        let Self { context, state, meter, .. } = self;
        let (config, weights) = (model.config(), model.weights());
        let (isa, pool) = (context.isa, context.pool());
        let d = config.d_model;
        for first in rows.clone().step_by(LOGIT_ROWS) {
            let count = LOGIT_ROWS.min(rows.end - first);
            let x = &state.x[first * d..(first + count) * d];
            let normed = &mut state.normed[..count * d];
            norm(isa, &pool, weights.output_norm.with(config.norm), x, normed);
            meter.norm(None, &weights.output_norm);
            meter.head(normed);
            state.logits.resize(count * config.vocab, 0.0);
            let (tensor, out) = (&weights.head, &mut state.logits);
            let head = [Entry { tensor, delta: None, bias: None, out }];
            context.project((model.blocks(), meter), normed, d, head, [None; 3]);
            context.memory.check()?;
            if let Some(cap) = config.logit_softcap {
                softcap(isa, &mut state.logits, cap);
            }
            meter.read(&state.logits);
            for (i, logits) in state.logits.chunks_exact(config.vocab).enumerate() {
                let position = start + first + i;
                if logits.iter().any(|x| !x.is_finite()) {
                    return Err(EngineError::NotFinite { position });
                }
                if !judge(position, Scores::All(logits))? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
