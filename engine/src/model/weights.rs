//! The weights of a model by what they are for. Small vectors are kept as floats; matrices are
//! blocks of the residency's table, resolved when they are used.

use aios_contract::{DType, NormConfig, Role};
use aios_kernels::{Matrix, MatrixError, Norm, PANEL_ROWS};
use aios_residency::{BlockId, BlockTable, Run};
use std::ops::Range;

/// A matrix, or a run of rows of one.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub id: BlockId,
    pub dtype: DType,
    /// Rows of the whole tensor.
    pub total_rows: usize,
    /// The first row and the number of rows that are meant.
    pub first: usize,
    pub rows: usize,
    pub cols: usize,
    /// The same tensor repacked, if it is.
    pub panels: Option<BlockId>,
    /// Its place among the matrices that a pass reads, in their order.
    pub number: usize,
}

impl Tensor {
    /// The matrix of the whole tensor.
    ///
    /// # Errors
    /// If the block does not have the bytes that the shape needs.
    pub(crate) fn whole<'a>(&self, blocks: &'a BlockTable) -> Result<Matrix<'a>, MatrixError> {
        Matrix::new(self.dtype, self.total_rows, self.cols, blocks.resolve(self.id))
    }

    /// The rows that are meant, as they stand in the file.
    ///
    /// # Panics
    /// If [`Self::whole`] fails; loading has seen that it does not.
    pub(crate) fn matrix<'a>(&self, blocks: &'a BlockTable) -> Matrix<'a> {
        let whole = self.whole(blocks).expect("checked when the model was loaded");
        whole.row_range(self.first, self.rows)
    }

    /// The panels, if products read these rows in them: an `exact` product takes rows, and so do
    /// rows that begin within a panel.
    fn packed(&self, exact: bool) -> Option<BlockId> {
        self.panels.filter(|_| !exact && self.first.is_multiple_of(PANEL_ROWS))
    }

    /// Whether products read these rows in panels.
    pub(crate) fn is_packed(&self, exact: bool) -> bool {
        self.packed(exact).is_some()
    }

    /// Where the rows that are meant lie, as products read them fastest.
    pub(crate) fn run(&self, exact: bool) -> Run {
        let row = self.row_bytes();
        let (block, end) = match self.packed(exact) {
            Some(panels) => (panels, (self.first + self.rows).next_multiple_of(PANEL_ROWS)),
            None => (self.id, self.first + self.rows),
        };
        Run { block, range: self.first * row..end * row, granule: PANEL_ROWS * row }
    }

    /// The rows that lie at `range` of the run, whose bytes these are, and the first row's number
    /// among those that are meant.
    ///
    /// # Panics
    /// If it is not a range of whole rows, or of whole panels.
    pub(crate) fn part<'a>(
        &self,
        exact: bool,
        range: &Range<usize>,
        bytes: &'a [u8],
    ) -> (usize, Matrix<'a>) {
        let row = self.row_bytes().max(1);
        let first = range.start / row;
        let rows = (range.end / row).min(self.rows) - first;
        let make = if self.packed(exact).is_some() { Matrix::packed } else { Matrix::new };
        let part = make(self.dtype, rows, self.cols, bytes);
        (first, part.expect("a run is cut after whole rows and panels"))
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols).unwrap_or(0)
    }

    /// Bytes of the rows that are meant.
    pub(crate) fn bytes(&self) -> usize {
        self.row_bytes() * self.rows
    }
}

/// What is added to the product of a canonical matrix: left · x, or left · (right · x).
#[derive(Clone, Debug)]
pub(crate) struct Delta {
    pub left: Tensor,
    pub right: Option<Tensor>,
}

/// A matrix, what is added to it if it is an alias, and its bias.
#[derive(Clone, Debug)]
pub(crate) struct Projection {
    pub tensor: Tensor,
    pub delta: Option<Delta>,
    pub bias: Option<Vec<f32>>,
}

impl Projection {
    /// Its matrices in the order in which they are read.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let delta = self.delta.iter().flat_map(|d| d.right.iter().chain([&d.left]));
        std::iter::once(&self.tensor).chain(delta)
    }

    /// The same, to change what is known of where they are.
    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let delta = self.delta.iter_mut().flat_map(|d| d.right.iter_mut().chain([&mut d.left]));
        std::iter::once(&mut self.tensor).chain(delta)
    }
}

/// Gain and bias of a norm.
#[derive(Clone, Debug)]
pub(crate) struct NormWeights {
    /// What the gain is for.
    pub role: Role,
    pub gain: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

impl NormWeights {
    /// The norm with a model's kind and epsilon.
    pub(crate) fn with(&self, config: NormConfig) -> Norm<'_> {
        let Self { gain, bias, .. } = self;
        Norm { kind: config.kind, epsilon: config.epsilon, gain, bias: bias.as_deref() }
    }
}

/// What feeds the activation of a feed-forward part.
#[derive(Clone, Debug)]
pub(crate) enum FfnInput {
    Gated { gate: Projection, up: Projection },
    Plain { up: Projection },
}

/// The feed-forward part.
#[derive(Clone, Debug)]
pub(crate) struct Ffn {
    /// `None` where it shares the attention's norm (parallel layers).
    pub norm: Option<NormWeights>,
    pub input: FfnInput,
    pub down: Projection,
    pub post_norm: Option<NormWeights>,
}

/// One layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub attn_norm: NormWeights,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub q_norm: Option<NormWeights>,
    pub k_norm: Option<NormWeights>,
    pub o: Projection,
    pub attn_post_norm: Option<NormWeights>,
    pub ffn: Ffn,
}

/// All weights.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub embedding: Tensor,
    pub layers: Vec<Layer>,
    pub output_norm: NormWeights,
    pub head: Tensor,
}

impl Weights {
    /// The largest rank of a delta in factors; 0 if there is none.
    pub(crate) fn delta_rank(&self) -> usize {
        let deltas =
            self.layers.iter().flat_map(Layer::projections).filter_map(|of| of.delta.as_ref());
        deltas.filter_map(|delta| Some(delta.right.as_ref()?.rows)).max().unwrap_or(0)
    }
}

impl Layer {
    /// Its matrices in the order in which they are read.
    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        let (first, second) = match &self.ffn.input {
            FfnInput::Gated { gate, up } => (Some(gate), up),
            FfnInput::Plain { up } => (None, up),
        };
        let attention = [&self.q, &self.k, &self.v, &self.o];
        attention.into_iter().chain(first).chain([second, &self.ffn.down])
    }
}

impl Layer {
    /// Its norms.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &NormWeights> {
        let Self { q_norm, k_norm, attn_post_norm, ffn, .. } = self;
        let optional = [q_norm, k_norm, attn_post_norm, &ffn.norm, &ffn.post_norm];
        std::iter::once(&self.attn_norm).chain(optional.into_iter().flatten())
    }

    /// Its matrices in the same order, to change what is known of where they are.
    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let (first, second) = match &mut self.ffn.input {
            FfnInput::Gated { gate, up } => (Some(gate), up),
            FfnInput::Plain { up } => (None, up),
        };
        let attention = [&mut self.q, &mut self.k, &mut self.v, &mut self.o];
        let ffn = [second, &mut self.ffn.down];
        attention.into_iter().chain(first).chain(ffn).flat_map(Projection::tensors_mut)
    }
}

impl Weights {
    /// The matrices that products read, in order, to change what is known of where they are.
    pub(crate) fn factors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flat_map(Layer::tensors_mut).chain(std::iter::once(&mut self.head))
    }

    /// The matrices that products read, in order.
    pub(crate) fn factors(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(Layer::projections);
        layers.flat_map(Projection::tensors).chain(std::iter::once(&self.head))
    }

    /// Bytes that a decoded token reads, by role.
    pub(crate) fn bytes_per_token(&self, blocks: &BlockTable) -> Vec<(Role, u64)> {
        let role = |tensor: &Tensor| blocks.block(tensor.id).name.role;
        let row = self.embedding.dtype.row_bytes(self.embedding.cols).unwrap_or(0);
        let mut list = vec![(Role::TokenEmbedding, row as u64)];
        let mut with_bias = |role: Role, bytes: usize, bias: Option<&Vec<f32>>| {
            list.push((role, bytes as u64));
            let bias = bias.map_or(0, |bias| size_of_val(bias.as_slice()));
            list.push((role.bias().unwrap_or(role), bias as u64));
        };
        for projection in self.layers.iter().flat_map(Layer::projections) {
            let bytes = projection.tensors().map(Tensor::bytes).sum();
            with_bias(role(&projection.tensor), bytes, projection.bias.as_ref());
        }
        let norms = self.layers.iter().flat_map(Layer::norms);
        for norm in norms.chain(std::iter::once(&self.output_norm)) {
            with_bias(norm.role, size_of_val(norm.gain.as_slice()), norm.bias.as_ref());
        }
        list.push((Role::Head, self.head.bytes() as u64));
        list
    }
}
