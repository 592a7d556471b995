//! Feed-forward parts whose zero neurons are skipped (SPEC D12): for one token, with the down
//! projection stored neuron by neuron, and every bit as without.

use super::project::Context;
use super::{Executor, State, feed_forward};
use crate::meter::Meter;
use crate::model::{Ffn, FfnInput, FfnNeurons, FfnThresholds, Model, Projection};
use aios_contract::{ActivationFn, Role};
use aios_kernels::{ActiveNeurons, activate, cut, dot_rows, scale_block};
use aios_residency::BlockTable;
use serde::Serialize;
use std::sync::Arc;

/// Quantised activations have scales below this, or no row of the up projection is left out: its
/// product might overflow, and then a zero times it is no zero (SPEC D15).
const SCALE_MOST: f32 = f32::from_bits((127 + 50) << 23);

/// What skipping came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ZeroStats {
    /// Neurons of the feed-forward parts that were computed so.
    pub neurons: u64,
    /// Of these, neurons whose quantised output is not zero.
    pub active: u64,
    /// Of these, neurons whose rows of the up projection were not read.
    pub up_skipped: u64,
    /// Of these, neurons whose columns of the down projection were not read.
    pub down_skipped: u64,
}

impl ZeroStats {
    /// Rows and columns that were not read.
    pub const fn skipped(&self) -> u64 {
        self.up_skipped + self.down_skipped
    }

    /// Adds those of a later time.
    pub const fn add(&mut self, later: &Self) {
        self.neurons += later.neurons;
        self.active += later.active;
        self.up_skipped += later.up_skipped;
        self.down_skipped += later.down_skipped;
    }
}

/// What an executor needs to skip zeros.
#[derive(Debug, Default)]
pub(super) struct Zeroing {
    table: Option<Arc<FfnNeurons>>,
    active: ActiveNeurons,
    /// Neurons whose gate is not zero, and the products of their rows of the up projection.
    ids: Vec<u32>,
    found: Vec<f32>,
    stats: ZeroStats,
}

impl Zeroing {
    pub(super) fn new(table: Option<Arc<FfnNeurons>>) -> Self {
        Self { table, ..Self::default() }
    }

    pub(super) fn reset(&mut self) {
        self.stats = ZeroStats::default();
    }
}

impl Executor {
    /// As [`Self::feed_forward`] with zero neurons skipped; false if it has done nothing.
    pub(super) fn skip_zeros(&mut self, model: &Model, index: usize, ffn: &Ffn) -> bool {
        let able = self.skips_zeros() && self.context.single && !self.meter.shows_feed_forward();
        let Some(table) = self.zeroing.table.clone().filter(|_| able) else { return false };
        let thresholds = self.thresholds.clone();
        let least = thresholds.as_deref().map(|thresholds| thresholds.layer(index));
        let Self { context, state, meter, zeroing, .. } = self;
        let (config, blocks) = (model.config(), model.blocks());
        let (Some(down), Some(scales)) = (table.layer(index), scale_block(ffn.down.tensor.dtype))
        else {
            return false;
        };
        if !context.can_join(blocks, ffn) {
            return false;
        }
        let (function, len, limits) = (config.ffn.activation, config.ffn.len, table.limits());
        let reads_down = [Some(&ffn.down.tensor), None, None];
        zeroing.stats.neurons += len as u64;
        match &ffn.input {
            FfnInput::Gated { gate, up } if table.skips_up() && limits.up_of_ten > 0 => {
                let up_of_ten = limits.up_of_ten;
                let both = GateFirst { gate, up, function, len, up_of_ten };
                both.run(context, state, (blocks, meter), zeroing);
                let (isa, pool) = (context.isa, context.pool());
                if let Some(least) = least {
                    cut(&pool, least, &mut state.up);
                }
                context.inner.of(scales).quantize(isa, &pool, &state.up, len);
            }
            input => {
                let (gate, up) = match input {
                    FfnInput::Gated { gate, up } => (Some(gate.entry(&mut state.gate)), up),
                    FfnInput::Plain { up } => (None, up),
                };
                let both = (gate, up.entry(&mut state.up));
                let normed = (&*state.normed, config.d_model);
                context.inner((blocks, meter), normed, both, (function, scales, least), reads_down);
            }
        }
        let Zeroing { active, stats, .. } = zeroing;
        active.fill(down.shape(), context.inner.of(scales));
        stats.active += active.count() as u64;
        let (next, entry) = (feed_forward::after(model, index), ffn.down.entry(&mut state.branch));
        if 10 * down.shape().read_bytes(active) > limits.down_of_ten * ffn.down.tensor.bytes() {
            context.project_inner((blocks, meter), &state.up, len, (entry, scales), next);
        } else {
            stats.down_skipped += (len - active.count()) as u64;
            context.project_active((blocks, meter), (down, &*active), (entry, scales), next);
        }
        true
    }

    /// Skips zeros by `table` from now on, or no longer; returns the table before. A new executor
    /// has the one that its model has adopted.
    pub fn skip_zeros_by(&mut self, table: Option<Arc<FfnNeurons>>) -> Option<Arc<FfnNeurons>> {
        std::mem::replace(&mut self.zeroing.table, table)
    }

    /// Leaves neurons out below these thresholds from now on, or none; returns those before. This
    /// changes results. A new executor has those that its model has adopted.
    pub fn cut_by(&mut self, thresholds: Option<Arc<FfnThresholds>>) -> Option<Arc<FfnThresholds>> {
        std::mem::replace(&mut self.thresholds, thresholds)
    }

    /// The thresholds below which neurons are left out, if there are such.
    pub const fn thresholds(&self) -> Option<&Arc<FfnThresholds>> {
        self.thresholds.as_ref()
    }

    /// Whether passes of one token skip zero neurons.
    pub fn skips_zeros(&self) -> bool {
        let able = !self.context.exact && self.context.memory.is_mapped();
        self.zeroing.table.is_some() && able
    }

    /// Whether passes of one token may leave out a part of the matrix of this role in a layer.
    pub(crate) fn skips_in(&self, role: Role, layer: Option<u32>) -> bool {
        let table = self.zeroing.table.as_deref().filter(|_| self.skips_zeros());
        let layer = layer.and_then(|layer| usize::try_from(layer).ok());
        let (Some(table), Some(layer)) = (table, layer) else { return false };
        let up = table.skips_up() && role == Role::FfnUp;
        (up || role == Role::FfnDown) && table.layer(layer).is_some()
    }

    /// What skipping came to since the counts were set back.
    pub const fn zero_stats(&self) -> ZeroStats {
        self.zeroing.stats
    }
}

/// A gated input whose gate is computed first.
struct GateFirst<'a> {
    gate: &'a Projection,
    up: &'a Projection,
    function: ActivationFn,
    len: usize,
    up_of_ten: usize,
}

impl GateFirst<'_> {
    /// `state.up` = act(gate · x) ⊙ (up · x), where rows of up whose gate is zero are left out.
    fn run(
        &self,
        context: &mut Context,
        state: &mut State,
        (blocks, meter): (&BlockTable, &mut Meter),
        zeroing: &mut Zeroing,
    ) {
        let Self { gate: of_gate, up: of_up, function, len, up_of_ten } = *self;
        let State { normed, gate, up, .. } = state;
        let d = normed.len();
        let next = [Some(&of_up.tensor), None, None];
        context.project((blocks, meter), normed, d, [of_gate.entry(gate)], next);
        let (isa, pool) = (context.isa, context.pool());
        activate(isa, &pool, function, None, len, gate);
        let Zeroing { ids, found, stats, .. } = zeroing;
        collect(gate, ids);
        // For as many as there may ever be, so that no later token asks for memory.
        found.reserve(len.saturating_sub(found.len()));
        let scales = scale_block(of_up.tensor.dtype);
        let input = context.quants.quantized((isa, &pool, false), normed, d, &[scales]);
        let largest = input.q32.or(input.q256).map_or(f32::NAN, |rows| rows.largest_scale());
        // A comparison with NaN is false.
        let skips = 10 * ids.len() <= up_of_ten * len && largest < SCALE_MOST;
        if !skips {
            context.project((blocks, meter), normed, d, [of_up.entry(up)], [None; 3]);
            up.iter_mut().zip(&*gate).for_each(|(up, gate)| *up *= gate);
            return;
        }
        let rows = of_up.tensor.matrix(blocks);
        found.resize(ids.len(), 0.0);
        dot_rows(isa, &pool, input, rows, ids, found);
        let name = blocks.block(of_up.tensor.id).name;
        let read = ids.iter().map(|id| rows.row_range(*id as usize, 1).bytes());
        meter.rows(name, ids.len() * of_up.tensor.row_bytes(), read);
        context.memory.count(&of_up.tensor);
        stats.up_skipped += (len - ids.len()) as u64;
        up.fill(0.0);
        for (id, y) in ids.iter().zip(&*found) {
            let id = *id as usize;
            let y = of_up.bias.as_ref().map_or(*y, |bias| y + bias[id]);
            up[id] = gate[id] * y;
        }
        if let Some(bias) = &of_up.bias {
            meter.bias(name, bias);
        }
        meter.wrote(up);
    }
}

/// The numbers of the elements that are not zero, NaN among them.
fn collect(x: &[f32], ids: &mut Vec<u32>) {
    ids.resize(x.len() + 1, 0);
    let mut count = 0;
    for (i, x) in x.iter().enumerate() {
        // What was written behind the last one is not one.
        ids[count] = i as u32;
        count += usize::from(*x != 0.0);
    }
    ids.truncate(count);
}
