//! Down projections stored neuron by neuron, which a plan brings (SPEC D14).

use super::{AdoptError, FfnInput, Model, Projection};
use aios_kernels::{
    NeuronShape, Neurons, NotFiniteScale, Pool, finite_scales, pack_neurons, scale_block,
};
use aios_residency::plan::{FfnReport, NUMBERS, Plan, Table, TableKind};
use std::sync::Arc;

/// How much is skipped, at least, for it to be skipped at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroLimits {
    /// Of ten bytes of a down projection, how many the neurons that are not zero may take; else it
    /// is read whole.
    pub down_of_ten: usize,
    /// Of ten gates, how many may be not zero; else the up projection is read whole. With none,
    /// gate and up are computed together.
    pub up_of_ten: usize,
}

impl ZeroLimits {
    /// Whatever saves bytes.
    pub const BYTES: Self = Self { down_of_ten: 10, up_of_ten: 10 };

    /// Those that a profiler found to be fastest.
    pub fn of(report: &FfnReport) -> Self {
        let [down_of_ten, up_of_ten] = [report.down_of_ten, report.up_of_ten].map(usize::from);
        Self { down_of_ten, up_of_ten }
    }
}

/// The down projections of a model's layers, mapped.
#[derive(Clone, Debug)]
pub struct FfnNeurons {
    /// For each layer its shape and where it begins, if it is there.
    layers: Vec<Option<(NeuronShape, usize)>>,
    /// Whether rows of the up projections may be left out too.
    skips_up: bool,
    limits: ZeroLimits,
    table: Arc<Table>,
}

impl FfnNeurons {
    /// The projections that `table` holds of `model`.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub fn new(model: &Model, table: Table, limits: ZeroLimits) -> Result<Self, AdoptError> {
        let skips_up = table.numbers()[3] != 0;
        if *table.numbers() != Self::numbers(model, skips_up) {
            return Err(AdoptError::Neurons("were made of other matrices"));
        }
        let mut end = 0;
        let mut place = |shape: NeuronShape| {
            let start = end;
            end += shape.bytes();
            (shape, start)
        };
        let layers = model.ffn_shapes().into_iter().map(|shape| shape.map(&mut place)).collect();
        if table.body().len() != end {
            return Err(AdoptError::Neurons("are not as many as the model's"));
        }
        Ok(Self { layers, skips_up, limits, table: Arc::new(table) })
    }

    /// The same projections, skipped from `limits` on.
    #[must_use]
    pub fn within(&self, limits: ZeroLimits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// The numbers of the table of such projections of `model`.
    pub fn numbers(model: &Model, skips_up: bool) -> [u64; NUMBERS] {
        let config = model.config();
        let mut numbers = [0; NUMBERS];
        numbers[..4].copy_from_slice(&[
            config.layers as u64,
            config.d_model as u64,
            config.ffn.len as u64,
            u64::from(skips_up),
        ]);
        numbers
    }

    /// That of a layer.
    pub(crate) fn layer(&self, layer: usize) -> Option<Neurons<'_>> {
        let (shape, start) = (*self.layers.get(layer)?)?;
        Neurons::new(shape, &self.table.body()[start..start + shape.bytes()])
    }

    /// The SHA-256 of its table, as the manifest has it.
    pub fn sha256(&self) -> &str {
        self.table.sha256()
    }

    /// From when on it skips.
    pub const fn limits(&self) -> ZeroLimits {
        self.limits
    }

    /// Whether rows of the up projections may be left out: their scales are all finite, so that a
    /// zero times what is left out is zero.
    pub const fn skips_up(&self) -> bool {
        self.skips_up
    }
}

impl Model {
    /// The shapes of its layers' down projections stored neuron by neuron; `None` for those that
    /// are not in a format for which that pays, and for aliases with deltas.
    pub fn ffn_shapes(&self) -> Vec<Option<NeuronShape>> {
        let shape = |down: &Projection| {
            let tensor = &down.tensor;
            let plain = down.delta.is_none();
            plain.then(|| NeuronShape::new(tensor.dtype, tensor.rows, tensor.cols)).flatten()
        };
        self.weights.layers.iter().map(|layer| shape(&layer.ffn.down)).collect()
    }

    /// Stores the down projection of `layer` neuron by neuron into `out`.
    ///
    /// # Errors
    /// [`NotFiniteScale`].
    ///
    /// # Panics
    /// If it has no such shape, or `out` has another length.
    pub fn pack_ffn(
        &self,
        pool: &Pool,
        layer: usize,
        out: &mut [u8],
    ) -> Result<(), NotFiniteScale> {
        let shape = self.ffn_shapes()[layer].expect("a projection that can be stored so");
        let down = &self.weights.layers[layer].ffn.down.tensor;
        pack_neurons(pool, shape, down.matrix(&self.blocks).bytes(), out)
    }

    /// Whether rows of its up projections may be left out where the gate is zero: there are gates,
    /// and the up projections are quantised, no aliases, and have finite scales.
    pub fn up_can_be_skipped(&self) -> bool {
        self.config.ffn.activation.has_true_zeros()
            && self.weights.layers.iter().all(|layer| match &layer.ffn.input {
                FfnInput::Plain { .. } => false,
                FfnInput::Gated { gate, up } => {
                    let tensor = &up.tensor;
                    let plain = gate.delta.is_none() && up.delta.is_none();
                    let rows = tensor.matrix(&self.blocks).bytes();
                    plain
                        && scale_block(tensor.dtype).is_some()
                        && finite_scales(tensor.dtype, tensor.row_bytes(), rows).is_ok()
                }
            })
    }

    /// Has the executors that are made from now on skip what zero neurons do not need, by `plan`,
    /// which was opened for this model; its table of neurons is taken out of it.
    ///
    /// # Errors
    /// [`AdoptError`]; nothing has changed then.
    pub fn adopt_neurons(&self, plan: &mut Plan, limits: ZeroLimits) -> Result<(), AdoptError> {
        let neurons = self.neurons_of(plan, limits)?;
        // A second plan changes nothing: what runs already stays as it is.
        let _ = self.neurons.set(Arc::new(neurons));
        Ok(())
    }

    /// Those of `plan`, whose table is taken.
    pub(super) fn neurons_of(
        &self,
        plan: &mut Plan,
        limits: ZeroLimits,
    ) -> Result<FfnNeurons, AdoptError> {
        let of_neurons = |table: &Table| table.kind() == TableKind::FfnNeurons;
        let at = plan.tables.iter().position(of_neurons);
        let at = at.ok_or(AdoptError::Neurons("are not in the plan"))?;
        FfnNeurons::new(self, plan.tables.remove(at), limits)
    }

    /// The down projections stored neuron by neuron that it has adopted, if it has.
    pub fn ffn_neurons(&self) -> Option<&Arc<FfnNeurons>> {
        self.neurons.get()
    }
}
