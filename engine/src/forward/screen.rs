//! The head, screened (SPEC D6): where only the best logits are wanted, a sketch of every row says
//! which rows may be among them, and only those are computed.

use super::Executor;
use super::project::Context;
use crate::error::EngineError;
use crate::meter::Meter;
use crate::model::{HeadScreen, Model};
use aios_contract::{Role, TensorName};
use aios_kernels::{
    Activations, Input, Isa, Matrix, PANEL_ROWS, Pool, Query, dot_rows, norm, scale_block,
    upper_bounds,
};
use serde::Serialize;
use std::sync::Arc;

/// Panels whose best rows are computed first, beyond the number of rows that are wanted.
const SEEDS: usize = 16;
/// Where more than this part of the rows may be among the best, all are read.
const MOST: usize = 4;

/// The logits of a position, as far as they were asked for.
#[derive(Clone, Copy, Debug)]
pub enum Scores<'a> {
    /// Of every token.
    All(&'a [f32]),
    /// Of some tokens, ids with logits in no order, among which are as many of the best as were
    /// asked for: every other token's logit is lower than those of that many of them.
    Best(&'a [(u32, f32)]),
}

/// What takes the scores of a position and says whether it wants those of the next.
pub type Chooser<'a> = dyn FnMut(usize, Scores<'_>) -> Result<bool, EngineError> + 'a;

/// What screening came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScreenStats {
    /// Positions at which the sketch was asked.
    pub positions: u64,
    /// Of these, positions at which the head was read whole all the same.
    pub whole: u64,
    /// Rows that were computed at the others.
    pub rows: u64,
}

/// The screen of an executor and its buffers.
#[derive(Debug, Default)]
pub(super) struct Screening {
    screen: Option<Arc<HeadScreen>>,
    stats: ScreenStats,
    activations: Activations,
    queries: Vec<Query>,
    /// \[n\]\[rows\] and \[n\]\[panels\].
    upper: Vec<f32>,
    peaks: Vec<f32>,
    chosen: Chosen,
}

/// Rows that are computed for a position.
#[derive(Debug, Default)]
struct Chosen {
    /// The panels with the highest peaks.
    panels: Vec<(f32, u32)>,
    ids: Vec<u32>,
    logits: Vec<f32>,
    best: Vec<(u32, f32)>,
}

/// What computes rows of the head.
struct Rows<'a> {
    isa: Isa,
    pool: &'a Pool,
    input: Input<'a>,
    head: Matrix<'a>,
}

impl Executor {
    /// The scores of the given rows of the pass, as far as a screen can give them: the number of
    /// rows that were judged, or `None` if the judge wants no more.
    pub(super) fn screened(
        &mut self,
        model: &Model,
        start: usize,
        rows: std::ops::Range<usize>,
        best: Option<usize>,
        judge: &mut Chooser<'_>,
    ) -> Result<Option<usize>, EngineError> {
        let Self { context, state, meter, screening, .. } = self;
        let (config, weights) = (model.config(), model.weights());
        let (Some(best), Some(screen)) = (best, screening.screen.clone()) else {
            return Ok(Some(0));
        };
        let (shape, n, d) = (screen.sketch().shape(), rows.len(), config.d_model);
        let few = n <= screen.positions_most() && best <= shape.panels() / 2;
        let able = !context.exact && context.memory.is_mapped();
        if !few || !able || config.logit_softcap.is_some() {
            return Ok(Some(0));
        }
        let (isa, pool) = (context.isa, context.pool());
        let normed = &mut state.normed[..n * d];
        let x = &state.x[rows.start * d..rows.end * d];
        norm(isa, &pool, weights.output_norm.with(config.norm), x, normed);
        let head = weights.head.matrix(model.blocks());
        let input = quantised(context, normed, d, head);
        if !screening.ask(isa, &pool, &screen, input, meter) {
            return Ok(Some(0));
        }
        meter.norm(TensorName { role: Role::OutputNorm, layer: None }, &weights.output_norm);
        meter.read(normed);
        let Screening { upper, peaks, chosen, stats, .. } = screening;
        let parts = upper.chunks_exact(shape.rows).zip(peaks.chunks_exact(shape.panels()));
        let compute = Rows { isa, pool: &pool, input, head };
        for (i, (upper, peaks)) in parts.enumerate() {
            stats.positions += 1;
            let found = chosen.find(&compute, i, (upper, peaks), best);
            chosen.count(meter, head);
            if !found {
                stats.whole += 1;
                return Ok(Some(i));
            }
            stats.rows += chosen.ids.len() as u64;
            if !judge(start + rows.start + i, Scores::Best(&chosen.best))? {
                return Ok(None);
            }
        }
        Ok(Some(n))
    }

    /// Screens the head from now on, or no longer; returns the screen before. A new executor has
    /// the one that its model has adopted.
    pub fn screen(&mut self, screen: Option<Arc<HeadScreen>>) -> Option<Arc<HeadScreen>> {
        std::mem::replace(&mut self.screening.screen, screen)
    }

    /// What screening came to so far.
    pub const fn screen_stats(&self) -> ScreenStats {
        self.screening.stats
    }
}

/// The input that `head` is multiplied with.
fn quantised<'a>(
    context: &'a mut Context,
    x: &'a [f32],
    len: usize,
    head: Matrix<'_>,
) -> Input<'a> {
    let (isa, pool) = (context.isa, context.pool());
    context.quants.quantized((isa, &pool, false), x, len, &[scale_block(head.dtype())])
}

impl Screening {
    pub(super) fn new(screen: Option<Arc<HeadScreen>>) -> Self {
        Self { screen, ..Self::default() }
    }

    /// Fills the bounds of every position; false if there are none for one of them.
    fn ask(
        &mut self,
        isa: Isa,
        pool: &Pool,
        screen: &HeadScreen,
        input: Input<'_>,
        meter: &mut Meter,
    ) -> bool {
        let (n, shape) = (input.rows(), screen.sketch().shape());
        self.queries.resize_with(n.max(self.queries.len()), Query::default);
        for (i, query) in self.queries[..n].iter_mut().enumerate() {
            self.activations.fill(&input, screen.dtype(), i);
            if !query.fill(isa, screen.sketch(), screen.dtype(), &self.activations) {
                return false;
            }
        }
        self.upper.resize(n * shape.rows, 0.0);
        self.peaks.resize(n * shape.panels(), 0.0);
        let (panels, queries) = (screen.panels(), &self.queries[..n]);
        upper_bounds(isa, pool, shape, panels, queries, &mut self.upper, &mut self.peaks);
        let name = TensorName { role: Role::HeadSketch, layer: None };
        meter.weights(name, screen.bytes().len(), screen.bytes());
        true
    }
}

impl Chosen {
    /// Fills `best` with the logits of rows among which the `k` best are, for the position with
    /// these bounds and peaks; false if that would take too many rows.
    fn find(
        &mut self,
        compute: &Rows<'_>,
        position: usize,
        (upper, peaks): (&[f32], &[f32]),
        k: usize,
    ) -> bool {
        self.seed(upper, peaks, k);
        self.logits.clear();
        self.compute(compute, position);
        let bar = {
            // No row below the k-th best of these can be among the k best of all.
            self.best.clear();
            self.best.extend(self.ids.iter().copied().zip(self.logits.iter().copied()));
            let (_, (_, bar), _) =
                self.best.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1));
            *bar
        };
        let seeds = self.ids.len();
        self.ids[..seeds].sort_unstable();
        let possible = |bound: f32| bound >= bar;
        for (panel, _) in peaks.iter().enumerate().filter(|(_, peak)| possible(**peak)) {
            let first = panel * PANEL_ROWS;
            let last = upper.len().min(first + PANEL_ROWS);
            for (row, _) in (first..last).zip(&upper[first..last]).filter(|(_, u)| possible(**u)) {
                let id = row as u32;
                if self.ids[..seeds].binary_search(&id).is_err() {
                    self.ids.push(id);
                }
            }
            if self.ids.len() > upper.len() / MOST {
                self.ids.truncate(seeds);
                return false;
            }
        }
        self.compute_from(compute, position, seeds);
        self.best.retain(|(_, logit)| *logit >= bar);
        let rest = self.ids[seeds..].iter().copied().zip(self.logits.iter().copied());
        self.best.extend(rest.filter(|(_, logit)| *logit >= bar));
        true
    }

    /// Takes the row with the highest bound of each of the panels with the highest ones.
    fn seed(&mut self, upper: &[f32], peaks: &[f32], k: usize) {
        let wanted = (k + SEEDS).min(peaks.len());
        let highest = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0);
        self.panels.clear();
        let mut bar = f32::NEG_INFINITY;
        for (panel, &peak) in (0..).zip(peaks) {
            if peak < bar {
                continue;
            }
            self.panels.push((peak, panel));
            if self.panels.len() >= 2 * wanted + PANEL_ROWS {
                self.panels.select_nth_unstable_by(wanted - 1, highest);
                self.panels.truncate(wanted);
                bar = self.panels[wanted - 1].0;
            }
        }
        if self.panels.len() > wanted {
            self.panels.select_nth_unstable_by(wanted - 1, highest);
            self.panels.truncate(wanted);
        }
        self.ids.clear();
        self.ids.extend(self.panels.iter().map(|(peak, panel)| {
            let first = *panel as usize * PANEL_ROWS;
            let rows = &upper[first..upper.len().min(first + PANEL_ROWS)];
            // A peak is the bound of one of its rows.
            let at = rows.iter().position(|bound| bound == peak).unwrap_or(0);
            (first + at) as u32
        }));
    }

    fn compute(&mut self, compute: &Rows<'_>, position: usize) {
        self.compute_from(compute, position, 0);
    }

    /// The logits of the rows from `first` on.
    fn compute_from(&mut self, compute: &Rows<'_>, position: usize, first: usize) {
        let ids = &self.ids[first..];
        self.logits.resize(ids.len(), 0.0);
        let Rows { isa, pool, input, head } = compute;
        dot_rows(*isa, pool, *input, position, *head, ids, &mut self.logits);
    }

    /// Counts the rows that were read.
    fn count(&self, meter: &mut Meter, head: Matrix<'_>) {
        let name = TensorName { role: Role::Head, layer: None };
        for id in &self.ids {
            let row = head.row_range(*id as usize, 1);
            meter.weights(name, row.bytes().len(), row.bytes());
        }
    }
}
