//! The head, screened (SPEC D6): where only the best logits are wanted, a sketch of every row says
//! which rows may be among them, and only those are computed.

use super::Executor;
use super::project::Context;
use crate::error::EngineError;
use crate::meter::Meter;
use crate::model::{HeadScreen, Model};
use aios_contract::{DType, Role, TensorName};
use aios_kernels::{
    Activations, Bounds, Input, Isa, Matrix, PANEL_ROWS, Peak, Pool, Query, dot_rows, norm, refine,
    scale_block, upper_bounds,
};
use serde::Serialize;
use std::sync::Arc;

/// Panels whose best rows are computed first, beyond the number of rows that are wanted.
const SEEDS: usize = 16;
/// Where more than one in so many rows may be among the best, all are read.
const MOST: usize = 2;

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
    /// Rows whose bounds were refined.
    pub refined: u64,
    /// Rows that were computed where the head was not read whole.
    pub rows: u64,
}

impl ScreenStats {
    /// Rows of a head of `vocab` rows that were not computed.
    pub const fn rows_skipped(&self, vocab: u64) -> u64 {
        ((self.positions - self.whole) * vocab).saturating_sub(self.rows)
    }

    /// Adds those of a later time.
    pub const fn add(&mut self, later: &Self) {
        self.positions += later.positions;
        self.whole += later.whole;
        self.refined += later.refined;
        self.rows += later.rows;
    }
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
    peaks: Vec<Peak>,
    /// \[panels\]: which rows were refined.
    refined: Vec<u16>,
    chosen: Chosen,
}

/// Rows that are computed for a position.
#[derive(Debug, Default)]
struct Chosen {
    /// The panels with the highest scores.
    seeds: Vec<(f32, u32)>,
    ids: Vec<u32>,
    logits: Vec<f32>,
    best: Vec<(u32, f32)>,
}

/// A position's question and the bounds that answer it.
struct Asked<'a> {
    query: &'a Query,
    bounds: Bounds<'a>,
}

/// What computes rows of the head.
struct Rows<'a> {
    isa: Isa,
    pool: &'a Pool,
    input: Input<'a>,
    head: Matrix<'a>,
    screen: &'a HeadScreen,
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
        let able = self.screens_head();
        let Self { context, state, meter, screening, .. } = self;
        let (config, weights) = (model.config(), model.weights());
        let (Some(best), Some(screen)) = (best, screening.screen.clone()) else {
            return Ok(Some(0));
        };
        let (shape, n, d) = (screen.sketch().shape(), rows.len(), config.d_model);
        let few = n <= screen.limits().of(best) && best <= shape.panels() / 2;
        if !few || !able {
            return Ok(Some(0));
        }
        let (isa, pool) = (context.isa, context.pool());
        let normed = &mut state.normed[..n * d];
        let x = &state.x[rows.start * d..rows.end * d];
        norm(isa, &pool, weights.output_norm.with(config.norm), x, normed);
        let head = weights.head.matrix(model.blocks());
        if !screening.ask(context, &screen, normed, meter) {
            return Ok(Some(0));
        }
        meter.norm(None, &weights.output_norm);
        meter.read(normed);
        let Screening { queries, upper, peaks, refined, chosen, stats, .. } = screening;
        let parts = upper.chunks_exact_mut(shape.rows).zip(peaks.chunks_exact_mut(shape.panels()));
        let normed = normed.chunks_exact(d);
        let asked = parts.zip(&*queries).zip(normed);
        for (position, (((upper, peaks), query), x)) in asked.enumerate() {
            let input = quantised(context, x, head.dtype());
            let compute = Rows { isa, pool: &pool, input, head, screen: &screen };
            stats.positions += 1;
            let bounds = Bounds { upper, peaks, refined };
            let found = chosen.find(&compute, Asked { query, bounds }, best);
            stats.refined += count(meter, &compute, &chosen.ids, refined);
            if !found {
                stats.whole += 1;
                return Ok(Some(position));
            }
            stats.rows += chosen.ids.len() as u64;
            if !judge(start + rows.start + position, Scores::Best(&chosen.best))? {
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

    /// Whether rows of the head may be left out of a pass: there is a screen, and nothing keeps it
    /// from being asked (SPEC D8).
    pub fn screens_head(&self) -> bool {
        let able = !self.context.exact && self.context.memory.is_mapped();
        let softcap = self.model.config().logit_softcap.is_some();
        self.screening.screen.is_some() && able && !softcap
    }

    /// Bytes of the sketch that every pass reads whose head is screened.
    pub(super) fn sketch_bytes(&self) -> Option<u64> {
        let screen = self.screening.screen.as_ref().filter(|_| self.screens_head());
        screen.map(|screen| screen.base().len() as u64)
    }

    /// What screening came to since the counts were set back.
    pub const fn screen_stats(&self) -> ScreenStats {
        self.screening.stats
    }
}

/// A row of activations as weights of `dtype` meet it.
fn quantised<'a>(context: &'a mut Context, x: &'a [f32], dtype: DType) -> Input<'a> {
    let (isa, pool) = (context.isa, context.pool());
    context.quants.quantized((isa, &pool, false), x, x.len(), &[scale_block(dtype)])
}

impl Screening {
    pub(super) fn new(screen: Option<Arc<HeadScreen>>) -> Self {
        Self { screen, ..Self::default() }
    }

    pub(super) fn reset(&mut self) {
        self.stats = ScreenStats::default();
    }

    /// Fills the bounds of every row of `normed`; false if there are none for one of them.
    fn ask(
        &mut self,
        context: &mut Context,
        screen: &HeadScreen,
        normed: &[f32],
        meter: &mut Meter,
    ) -> bool {
        let shape = screen.sketch().shape();
        let n = normed.len() / shape.cols;
        self.queries.resize_with(n.max(self.queries.len()), Query::default);
        let isa = context.isa;
        for (x, query) in normed.chunks_exact(shape.cols).zip(&mut self.queries) {
            let input = quantised(context, x, screen.dtype());
            self.activations.fill(&input, screen.dtype());
            if !query.fill(isa, screen.sketch(), screen.dtype(), &self.activations) {
                return false;
            }
        }
        let pool = context.pool();
        self.upper.resize(n * shape.rows, 0.0);
        self.peaks.resize(n * shape.panels(), Peak::default());
        self.refined.resize(shape.panels(), 0);
        let (panels, queries) = (screen.panels(), &self.queries[..n]);
        upper_bounds(isa, &pool, shape, panels, queries, &mut self.upper, &mut self.peaks);
        let name = TensorName { role: Role::HeadSketch, layer: None };
        meter.weights(name, screen.base().len(), screen.base());
        true
    }
}

impl Chosen {
    /// Fills `best` with the logits of rows among which the `k` best are; false if that would take
    /// too many rows.
    fn find(&mut self, compute: &Rows<'_>, asked: Asked<'_>, k: usize) -> bool {
        let Asked { query, bounds: Bounds { upper, peaks, refined } } = asked;
        self.make_room(upper.len(), k);
        self.seed(peaks, k);
        self.compute_from(compute, 0);
        self.best.extend(self.ids.iter().copied().zip(self.logits.iter().copied()));
        // No row below the k-th best of these can be among the k best of all.
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1);
        let (_, (_, bar), _) = self.best.select_nth_unstable_by(k - 1, descending);
        let bar = *bar;
        let Rows { isa, pool, screen, .. } = compute;
        let shape = screen.sketch().shape();
        let bounds = Bounds { upper: &mut *upper, peaks: &mut *peaks, refined };
        refine(*isa, pool, shape, screen.refinements(), query, bar, bounds);
        let seeds = self.ids.len();
        self.ids.sort_unstable();
        let known = |ids: &[u32], id: u32| ids[..seeds].binary_search(&id).is_ok();
        for (panel, _) in peaks.iter().enumerate().filter(|(_, peak)| peak.upper >= bar) {
            let first = panel * PANEL_ROWS;
            let last = upper.len().min(first + PANEL_ROWS);
            for (id, _) in (first..last).zip(&upper[first..last]).filter(|(_, u)| **u >= bar) {
                let id = id as u32;
                if !known(&self.ids, id) {
                    self.ids.push(id);
                }
            }
            if self.ids.len() > upper.len() / MOST {
                self.ids.truncate(seeds);
                return false;
            }
        }
        self.compute_from(compute, seeds);
        let rest = self.ids[seeds..].iter().copied().zip(self.logits.iter().copied());
        self.best.extend(rest);
        self.best.retain(|(_, logit)| *logit >= bar);
        true
    }

    /// Empties the lists and makes room for as many rows as there may ever be, so that no later
    /// position asks for memory.
    fn make_room(&mut self, rows: usize, k: usize) {
        let seeds = k + SEEDS;
        let most = seeds.max(rows / MOST) + PANEL_ROWS;
        let Self { seeds: first, ids, logits, best } = self;
        first.clear();
        first.reserve(2 * seeds + PANEL_ROWS);
        ids.clear();
        ids.reserve(most);
        logits.clear();
        logits.reserve(most);
        best.clear();
        best.reserve(most);
    }

    /// Takes the row with the highest score of each of the panels with the highest ones.
    fn seed(&mut self, peaks: &[Peak], k: usize) {
        let wanted = (k + SEEDS).min(peaks.len());
        let highest = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0);
        let seeds = &mut self.seeds;
        let mut bar = f32::NEG_INFINITY;
        for peak in peaks {
            if peak.score < bar {
                continue;
            }
            seeds.push((peak.score, peak.row));
            if seeds.len() >= 2 * wanted + PANEL_ROWS {
                seeds.select_nth_unstable_by(wanted - 1, highest);
                seeds.truncate(wanted);
                bar = seeds[wanted - 1].0;
            }
        }
        if seeds.len() > wanted {
            seeds.select_nth_unstable_by(wanted - 1, highest);
            seeds.truncate(wanted);
        }
        self.ids.extend(seeds.iter().map(|(_, row)| *row));
    }

    /// The logits of the rows from `first` on.
    fn compute_from(&mut self, compute: &Rows<'_>, first: usize) {
        let ids = &self.ids[first..];
        self.logits.resize(ids.len(), 0.0);
        let Rows { isa, pool, input, head, .. } = compute;
        dot_rows(*isa, pool, *input, *head, ids, &mut self.logits);
    }
}

/// Counts the rows of the head and of its sketch that were read, and returns the number of those.
fn count(meter: &mut Meter, compute: &Rows<'_>, ids: &[u32], refined: &[u16]) -> u64 {
    let (head, screen) = (compute.head, compute.screen);
    let row_bytes = head.bytes().len() / head.rows();
    let name = TensorName { role: Role::Head, layer: None };
    let rows = ids.iter().map(|id| head.row_range(*id as usize, 1).bytes());
    meter.rows(name, ids.len() * row_bytes, rows);
    let bytes = screen.sketch().shape().refined_bytes();
    let marked = refined.iter().enumerate().flat_map(|(panel, mask)| {
        (0..PANEL_ROWS).filter(move |r| mask >> r & 1 == 1).map(move |r| PANEL_ROWS * panel + r)
    });
    let rows = marked.map(|row| &screen.refinements()[row * bytes..(row + 1) * bytes]);
    let number: usize = refined.iter().map(|mask| mask.count_ones() as usize).sum();
    meter.rows(TensorName { role: Role::HeadSketch, layer: None }, number * bytes, rows);
    number as u64
}
