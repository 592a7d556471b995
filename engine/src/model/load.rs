//! From files to a [`Model`]: every tensor is found by its role, checked against the shape that
//! the configuration demands, and entered in the block table. What is left over is an error too,
//! since a tensor that nobody applies means a model that is not the one in the file.

use super::alias::{self, AliasError};
use super::{Delta, Ffn, FfnInput, Layer, Model, NormWeights, Projection, Tensor, Weights};
use crate::arch::{ConfigError, read_config};
use crate::gguf::{Escaped, Gguf, GgufError, Metadata, SplitSet, TensorInfo};
use crate::rope::Ropes;
use aios_contract::{BlockLayout, DType, FfnLayout, ModelConfig, NormKind, Role, TensorName};
use aios_kernels::{Isa, MatrixError, ShapeError, dequantize};
use aios_residency::{BlockTable, MapError, Mapping, RangeError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// It is not a sound GGUF file.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// Its metadata does not describe a model that this engine runs.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// Its tensors are not those of its configuration.
    #[error("{}: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TensorError,
    },
}

/// What is wrong with a tensor.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The model needs it and the file does not have it.
    #[error("tensor {name} is missing")]
    Missing {
        /// Its GGUF name.
        name: String,
    },
    /// The file has it and this architecture has no use for it.
    #[error("tensor {name} is not part of this architecture, so that its meaning is unknown")]
    Unexpected {
        /// Its GGUF name, escaped.
        name: String,
    },
    /// Its shape is not that which the configuration demands.
    #[error("tensor {name} has shape {found:?}; the metadata demands {expected:?}")]
    Shape {
        /// Its GGUF name.
        name: String,
        /// The shape in the file, row length first.
        found: Vec<u64>,
        /// The shape demanded.
        expected: Vec<u64>,
    },
    /// It is a vector that should hold plain floats.
    #[error("tensor {name} is {found}; vectors must be F32, F16 or BF16")]
    NotFloat {
        /// Its GGUF name.
        name: String,
        /// Its dtype.
        found: DType,
    },
    /// A vector holds a number that is not finite.
    #[error("tensor {name} holds a number that is not finite")]
    NotFinite {
        /// Its GGUF name.
        name: String,
    },
    /// Its bytes are not those of its shape.
    #[error("tensor {name}: {source}")]
    Bytes {
        /// Its GGUF name.
        name: String,
        /// The mismatch.
        source: ShapeError,
    },
    /// Its bytes are not those of its shape.
    #[error("tensor {name}: {source}")]
    Matrix {
        /// Its GGUF name.
        name: String,
        /// The mismatch.
        source: MatrixError,
    },
    /// What it says of matrices that are put together.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// Its range is not within its file.
    #[error("tensor {name}: {source}")]
    Range {
        /// Its GGUF name.
        name: String,
        /// The mismatch.
        source: RangeError,
    },
}

/// The parts of a model: mappings and their headers.
struct Parts {
    mappings: Vec<Mapping>,
    headers: Vec<Gguf>,
}

fn open_parts(path: &Path) -> Result<Parts, LoadError> {
    let open = |path: &Path| -> Result<(Mapping, Gguf), LoadError> {
        let mapping = Mapping::open(path)?;
        let header = Gguf::parse(mapping.bytes())
            .map_err(|source| LoadError::Gguf { path: path.to_owned(), source })?;
        Ok((mapping, header))
    };
    let wrong = |source| LoadError::Gguf { path: path.to_owned(), source };
    let (mapping, header) = open(path)?;
    let split = SplitSet::of(path, &header).map_err(wrong)?;
    let mut parts = Parts { mappings: vec![mapping], headers: vec![header] };
    if let Some(split) = split {
        for part in 2..=split.count() {
            let (mapping, header) = open(&split.path(part)).map_err(|error| match error {
                LoadError::Map(MapError::Missing { .. }) => wrong(split.missing(part)),
                other => other,
            })?;
            split.check_part(part, &header).map_err(wrong)?;
            parts.mappings.push(mapping);
            parts.headers.push(header);
        }
        split.check_whole(&parts.headers.iter().collect::<Vec<_>>()).map_err(wrong)?;
    }
    Ok(parts)
}

pub(super) fn load(path: &Path) -> Result<Model, LoadError> {
    let Parts { mappings, headers } = open_parts(path)?;
    let tensor_error = |source| LoadError::Tensor { path: path.to_owned(), source };
    let metadata: Metadata = headers[0].metadata.clone();
    let mut loader = Loader::new(&headers, mappings).map_err(tensor_error)?;
    let vocab = loader.embedding_rows().map_err(tensor_error)?;
    let config = read_config(&metadata, vocab)
        .map_err(|source| LoadError::Config { path: path.to_owned(), source })?;
    let (weights, ropes, long_ropes) = loader.weights(&config).map_err(tensor_error)?;
    Ok(Model {
        path: path.to_owned(),
        metadata,
        tensors: headers.iter().flat_map(|header| header.tensors.iter().cloned()).collect(),
        header_bytes: headers.iter().map(|header| header.data_start).collect(),
        config,
        blocks: loader.blocks,
        weights,
        ropes,
        long_ropes,
        tokenizer: OnceLock::new(),
        screen: OnceLock::new(),
        neurons: OnceLock::new(),
        thresholds: OnceLock::new(),
        keep: OnceLock::new(),
        ahead: OnceLock::new(),
        budget: OnceLock::new(),
    })
}

/// Where a tensor is: its part of the model, and its entry there.
type Found<'a> = (usize, &'a TensorInfo);

/// Tensors that have not been taken yet, and the table of those that have.
struct Loader<'a> {
    blocks: BlockTable,
    /// Every tensor but deltas.
    all: BTreeMap<TensorName, Found<'a>>,
    left: BTreeMap<TensorName, Found<'a>>,
    /// Aliases and their canonical tensors, and deltas, that have not been taken.
    aliases: BTreeMap<TensorName, TensorName>,
    deltas: BTreeMap<&'a str, Found<'a>>,
}

impl<'a> Loader<'a> {
    fn new(headers: &'a [Gguf], mappings: Vec<Mapping>) -> Result<Self, TensorError> {
        let aliases = alias::aliases(headers)?;
        let (mut all, mut deltas) = (BTreeMap::new(), BTreeMap::new());
        for (part, header) in headers.iter().enumerate() {
            for tensor in &header.tensors {
                if !aliases.is_empty() && alias::is_delta(tensor) {
                    deltas.insert(&*tensor.name, (part, tensor));
                    continue;
                }
                let name = TensorName::parse(&tensor.name).ok_or_else(|| {
                    TensorError::Unexpected { name: Escaped::new(&tensor.name).to_string() }
                })?;
                // Rope factors may be repeated in every layer; they are the same.
                all.entry(name).or_insert((part, tensor));
            }
        }
        let left = all.clone();
        Ok(Self { blocks: BlockTable::new(mappings), all, left, aliases, deltas })
    }

    fn embedding_rows(&self) -> Result<usize, TensorError> {
        let name = TensorName { role: Role::TokenEmbedding, layer: None };
        let missing = || TensorError::Missing { name: name.role.gguf_name(0) };
        let (_, tensor) = self.left.get(&name).ok_or_else(missing)?;
        // Every tensor lies within its file, so that its rows are far below 2^63.
        Ok(usize::try_from(tensor.rows()).unwrap_or(usize::MAX))
    }

    /// Enters a tensor of shape \[rows\]\[cols\] in the table, if the file has it.
    fn take_optional(
        &mut self,
        role: Role,
        layer: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Tensor>, TensorError> {
        let name = name_of(role, layer);
        // An alias is the bytes of its canonical tensor once more.
        let mut canonical = |name| self.all.get(&self.aliases.remove(&name)?).copied();
        let Some(found) = self.left.remove(&name).or_else(|| canonical(name)) else {
            return Ok(None);
        };
        self.enter(found, name, rows, cols).map(Some)
    }

    /// Enters a tensor of shape \[rows\]\[cols\] in the table.
    fn enter(
        &mut self,
        (part, info): Found<'a>,
        name: TensorName,
        rows: usize,
        cols: usize,
    ) -> Result<Tensor, TensorError> {
        let expected: Vec<u64> =
            if rows == 1 { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
        let mut found = info.shape.clone();
        while found.len() > 1 && found.last() == Some(&1) {
            found.pop();
        }
        let gguf_name = || Escaped::new(&info.name).to_string();
        if found != expected {
            return Err(TensorError::Shape { name: gguf_name(), found, expected });
        }
        let bound = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let range = bound(info.range.start)..bound(info.range.end);
        let id = self.blocks.insert(name, info.dtype, part, range);
        let id = id.map_err(|source| TensorError::Range { name: gguf_name(), source })?;
        let (dtype, panels, number) = (info.dtype, None, 0);
        let tensor = Tensor { id, dtype, total_rows: rows, first: 0, rows, cols, panels, number };
        tensor
            .whole(&self.blocks)
            .map_err(|source| TensorError::Matrix { name: gguf_name(), source })?;
        Ok(tensor)
    }

    /// The delta of a matrix of shape \[rows\]\[cols\], if it is an alias that has one.
    fn delta(
        &mut self,
        role: Role,
        layer: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Delta>, TensorError> {
        if self.deltas.is_empty() || self.all.contains_key(&name_of(role, layer)) {
            return Ok(None);
        }
        let (name, base) = (name_of(role, layer), role.gguf_name(layer));
        let mut part = |suffix: &str| self.deltas.remove(&*format!("{base}{suffix}"));
        let parts = [alias::DELTA, alias::DELTA_LEFT, alias::DELTA_RIGHT].map(&mut part);
        let wrong = |info: &TensorInfo, problem| {
            let name = Escaped::new(&info.name).to_string();
            TensorError::Alias(AliasError::Delta { name, problem })
        };
        match parts {
            [None, None, None] => Ok(None),
            [Some(dense), None, None] => {
                Ok(Some(Delta { left: self.enter(dense, name, rows, cols)?, right: None }))
            }
            [None, Some(left), Some(right)] => {
                let rank = alias::rank(left.1)?;
                let right = self.enter(right, name, rank, cols)?;
                Ok(Some(Delta { left: self.enter(left, name, rows, rank)?, right: Some(right) }))
            }
            [Some((_, dense)), ..] => Err(wrong(dense, "stands beside a factor of low rank")),
            [None, Some((_, one)), None] | [None, None, Some((_, one))] => {
                Err(wrong(one, "is one factor of a delta; the other is missing"))
            }
        }
    }

    fn take(
        &mut self,
        role: Role,
        layer: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Tensor, TensorError> {
        let tensor = self.take_optional(role, layer, rows, cols)?;
        tensor.ok_or_else(|| TensorError::Missing { name: role.gguf_name(layer) })
    }

    /// A vector of `len` floats, if the file has it.
    fn vector_optional(
        &mut self,
        role: Role,
        layer: usize,
        len: usize,
    ) -> Result<Option<Vec<f32>>, TensorError> {
        let Some(tensor) = self.take_optional(role, layer, 1, len)? else { return Ok(None) };
        let name = || role.gguf_name(layer);
        if !tensor.dtype.is_float() {
            return Err(TensorError::NotFloat { name: name(), found: tensor.dtype });
        }
        let mut floats = vec![0.0; len];
        dequantize(Isa::SCALAR, tensor.dtype, self.blocks.resolve(tensor.id), &mut floats)
            .map_err(|source| TensorError::Bytes { name: name(), source })?;
        if floats.iter().any(|x| !x.is_finite()) {
            return Err(TensorError::NotFinite { name: name() });
        }
        Ok(Some(floats))
    }

    fn norm_optional(
        &mut self,
        role: Role,
        layer: usize,
        len: usize,
        kind: NormKind,
    ) -> Result<Option<NormWeights>, TensorError> {
        let Some(gain) = self.vector_optional(role, layer, len)? else { return Ok(None) };
        let bias = match (kind, role.bias()) {
            (NormKind::Layer, Some(bias)) => self.vector_optional(bias, layer, len)?,
            _ => None,
        };
        Ok(Some(NormWeights { role, gain, bias }))
    }

    fn norm(
        &mut self,
        role: Role,
        layer: usize,
        len: usize,
        kind: NormKind,
    ) -> Result<NormWeights, TensorError> {
        let norm = self.norm_optional(role, layer, len, kind)?;
        norm.ok_or_else(|| TensorError::Missing { name: role.gguf_name(layer) })
    }

    /// A norm without bias that the configuration demands or rules out.
    fn gain_if(
        &mut self,
        wanted: bool,
        role: Role,
        layer: usize,
        len: usize,
    ) -> Result<Option<NormWeights>, TensorError> {
        if !wanted {
            return Ok(None);
        }
        self.norm(role, layer, len, NormKind::Rms).map(Some)
    }

    fn projection(
        &mut self,
        [weight, bias]: [Role; 2],
        layer: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Projection, TensorError> {
        let tensor = self.take(weight, layer, rows, cols)?;
        let delta = self.delta(weight, layer, rows, cols)?;
        Ok(Projection { tensor, delta, bias: self.vector_optional(bias, layer, rows)? })
    }

    /// One matrix for several projections, whose rows it holds one after another.
    fn fused<const N: usize>(
        &mut self,
        roles: [Role; 2],
        layer: usize,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Projection; N], TensorError> {
        let whole = self.projection(roles, layer, rows.iter().sum(), cols)?;
        let mut first = 0;
        Ok(rows.map(|rows| {
            let tensor = Tensor { first, rows, ..whole.tensor.clone() };
            let delta = whole.delta.as_ref().map(|delta| Delta {
                left: Tensor { first, rows, ..delta.left.clone() },
                right: delta.right.clone(),
            });
            let bias = whole.bias.as_ref().map(|bias| bias[first..first + rows].to_vec());
            first += rows;
            Projection { tensor, delta, bias }
        }))
    }

    fn layer(&mut self, config: &ModelConfig, layer: usize) -> Result<Layer, TensorError> {
        let attention = &config.attention;
        let (d, kind) = (config.d_model, config.norm.kind);
        let rows = [config.q_len(), config.k_len(), config.v_len()];
        let [q, k, v] = if attention.fused_qkv {
            self.fused([Role::AttnQkv, Role::AttnQkvBias], layer, rows, d)?
        } else {
            [
                self.projection([Role::AttnQ, Role::AttnQBias], layer, rows[0], d)?,
                self.projection([Role::AttnK, Role::AttnKBias], layer, rows[1], d)?,
                self.projection([Role::AttnV, Role::AttnVBias], layer, rows[2], d)?,
            ]
        };
        let o_len = attention.heads * attention.value_len;
        let qk_norm = attention.qk_norm;
        let post = config.block == BlockLayout::SequentialPostNorm;
        let first = self.norm(Role::AttnNorm, layer, d, kind)?;
        // Where a parallel layer has two norms, the second is the attention's.
        let (attn_norm, ffn_norm) = if config.block == BlockLayout::Parallel {
            match self.norm_optional(Role::AttnNorm2, layer, d, kind)? {
                Some(attn) => (attn, Some(first)),
                None => (first, None),
            }
        } else {
            let norm = self.norm(Role::FfnNorm, layer, d, kind)?;
            (first, Some(norm))
        };
        let key_len = attention.key_len;
        let output = [Role::AttnOutput, Role::AttnOutputBias];
        Ok(Layer {
            attn_norm,
            q,
            k,
            v,
            q_norm: self.gain_if(qk_norm, Role::AttnQNorm, layer, key_len)?,
            k_norm: self.gain_if(qk_norm, Role::AttnKNorm, layer, key_len)?,
            o: self.projection(output, layer, d, o_len)?,
            attn_post_norm: self.gain_if(post, Role::AttnPostNorm, layer, d)?,
            ffn: self.ffn(config, layer, ffn_norm, post)?,
        })
    }

    fn ffn(
        &mut self,
        config: &ModelConfig,
        layer: usize,
        norm: Option<NormWeights>,
        post: bool,
    ) -> Result<Ffn, TensorError> {
        let (d, len) = (config.d_model, config.ffn.len);
        let up = [Role::FfnUp, Role::FfnUpBias];
        let input = match config.ffn.layout {
            FfnLayout::Gated => FfnInput::Gated {
                gate: Projection {
                    tensor: self.take(Role::FfnGate, layer, len, d)?,
                    delta: self.delta(Role::FfnGate, layer, len, d)?,
                    bias: None,
                },
                up: self.projection(up, layer, len, d)?,
            },
            FfnLayout::GatedFused => {
                let [gate, up] = self.fused(up, layer, [len, len], d)?;
                FfnInput::Gated { gate, up }
            }
            FfnLayout::Plain => FfnInput::Plain { up: self.projection(up, layer, len, d)? },
        };
        Ok(Ffn {
            norm,
            input,
            down: self.projection([Role::FfnDown, Role::FfnDownBias], layer, d, len)?,
            post_norm: self.gain_if(post, Role::FfnPostNorm, layer, d)?,
        })
    }

    /// Everything, in the order in which a pass reads it.
    fn weights(
        &mut self,
        config: &ModelConfig,
    ) -> Result<(Weights, Ropes, Option<Ropes>), TensorError> {
        let (d, vocab) = (config.d_model, config.vocab);
        let embedding = self.take(Role::TokenEmbedding, 0, vocab, d)?;
        let layers = (0..config.layers).map(|l| self.layer(config, l));
        let layers = layers.collect::<Result<_, _>>()?;
        let output_norm = self.norm(Role::OutputNorm, 0, d, config.norm.kind)?;
        let head = match self.take_optional(Role::Head, 0, vocab, d)? {
            Some(head) => head,
            None => self.tie(&embedding),
        };
        let pairs = config.rope.dims / 2;
        let short = match self.vector_optional(Role::RopeFactors, 0, pairs)? {
            None => self.vector_optional(Role::RopeFactorsShort, 0, pairs)?,
            some => some,
        };
        let long = self.vector_optional(Role::RopeFactorsLong, 0, pairs)?;
        if let Some(name) = self.left.keys().next() {
            let layer = name.layer.map_or(0, |layer| layer as usize);
            return Err(TensorError::Unexpected { name: name.role.gguf_name(layer) });
        }
        if let Some(name) = self.deltas.keys().next() {
            return Err(TensorError::Unexpected { name: Escaped::new(name).to_string() });
        }
        if let Some(name) = self.aliases.keys().next() {
            let layer = name.layer.map_or(0, |layer| layer as usize);
            return Err(TensorError::Unexpected { name: name.role.gguf_name(layer) });
        }
        let ropes = Ropes::new(&config.rope, short.as_deref());
        let long_ropes = long.map(|long| Ropes::new(&config.rope, Some(&long)));
        let mut weights = Weights { embedding, layers, output_norm, head };
        (0..).zip(weights.factors_mut()).for_each(|(number, tensor)| tensor.number = number);
        Ok((weights, ropes, long_ropes))
    }

    /// The head of a model whose head is its embedding: the same bytes in another role.
    fn tie(&mut self, embedding: &Tensor) -> Tensor {
        Tensor { id: self.blocks.alias(embedding.id, name_of(Role::Head, 0)), ..embedding.clone() }
    }
}

fn name_of(role: Role, layer: usize) -> TensorName {
    let layer = u32::try_from(layer).unwrap_or(u32::MAX);
    let per_layer = role.placement() == aios_contract::Placement::Layer;
    TensorName { role, layer: per_layer.then_some(layer) }
}
