//! From a file to an [`Encoder`]: keys read, every tensor found by its role and checked. As with
//! models that generate, a tensor that is left over is an error (A4).

use super::{ENCODER_ARCHITECTURE, Encoder, EncoderError, EncoderOptions, Pooling};
use crate::arch::ConfigError;
use crate::gguf::{Escaped, Gguf, Metadata, TensorInfo};
use crate::model::{LoadError, TensorError};
use crate::tokenizer::WordPiece;
use aios_contract::{DType, Role, TensorName};
use aios_kernels::{Isa, MAX_HEAD_LEN, Matrix, MatrixError, Pool, dequantize};
use aios_residency::Mapping;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// Larger sizes are surely wrong and might overflow.
const SIZE_MAX: u64 = 1 << 24;
/// The frame of a text and one token of it.
const TOKENS_MIN: usize = 3;

/// What the metadata says of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    pub(super) layers: usize,
    pub(super) d_model: usize,
    pub(super) ffn_len: usize,
    pub(super) heads: usize,
    pub(super) max_tokens: usize,
    pub(super) epsilon: f32,
    pub(super) pooling: Pooling,
}

impl Config {
    fn from_metadata(metadata: &Metadata) -> Result<Self, ConfigError> {
        let name = metadata.require_str("general.architecture")?;
        if name != ENCODER_ARCHITECTURE {
            return Err(ConfigError::NotAnEncoder { name: name.to_owned() });
        }
        let keys = Keys { metadata };
        let config = Self {
            layers: keys.size("block_count")?,
            d_model: keys.size("embedding_length")?,
            ffn_len: keys.size("feed_forward_length")?,
            heads: keys.size("attention.head_count")?,
            max_tokens: keys.size("context_length")?,
            epsilon: keys.epsilon("attention.layer_norm_epsilon")?,
            pooling: keys.pooling("pooling_type")?,
        };
        if metadata.bool(&Keys::key("attention.causal"))? == Some(true) {
            let key = Keys::key("attention.causal");
            return Err(ConfigError::Unsupported { key, what: "attention in one direction" });
        }
        if !config.d_model.is_multiple_of(config.heads) {
            let problem = "does not divide the embedding length";
            return Err(Keys::bad("attention.head_count", config.heads, problem));
        }
        if config.head_len() > MAX_HEAD_LEN {
            let problem = "gives heads that are longer than 256";
            return Err(Keys::bad("attention.head_count", config.heads, problem));
        }
        if config.max_tokens < TOKENS_MIN {
            return Err(Keys::bad("context_length", config.max_tokens, "is below 3"));
        }
        Ok(config)
    }

    /// Elements of a head.
    pub(super) const fn head_len(&self) -> usize {
        self.d_model / self.heads
    }
}

struct Keys<'a> {
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn key(suffix: &str) -> String {
        format!("{ENCODER_ARCHITECTURE}.{suffix}")
    }

    fn bad(suffix: &str, value: impl ToString, problem: &'static str) -> ConfigError {
        ConfigError::BadValue { key: Self::key(suffix), value: value.to_string(), problem }
    }

    fn size(&self, suffix: &str) -> Result<usize, ConfigError> {
        let value = self.metadata.require_u64(&Self::key(suffix))?;
        match usize::try_from(value) {
            Ok(size) if (1..=SIZE_MAX).contains(&value) => Ok(size),
            _ => Err(Self::bad(suffix, value, "is out of range")),
        }
    }

    fn epsilon(&self, suffix: &str) -> Result<f32, ConfigError> {
        let value = self.metadata.require_f32(&Self::key(suffix))?;
        let sound = value.is_finite() && value > 0.0;
        if sound { Ok(value) } else { Err(Self::bad(suffix, value, "is not a positive number")) }
    }

    fn pooling(&self, suffix: &str) -> Result<Pooling, ConfigError> {
        match self.metadata.require_u64(&Self::key(suffix))? {
            1 => Ok(Pooling::Mean),
            2 => Ok(Pooling::Class),
            other => Err(Self::bad(suffix, other, "is neither mean (1) nor class token (2)")),
        }
    }
}

/// A matrix of \[rows\]\[cols\] somewhere in the file.
#[derive(Clone, Debug)]
pub(super) struct Table {
    dtype: DType,
    rows: usize,
    cols: usize,
    range: Range<usize>,
}

impl Table {
    fn try_matrix<'a>(&self, file: &'a [u8]) -> Result<Matrix<'a>, MatrixError> {
        let Self { dtype, rows, cols, range } = self.clone();
        Matrix::new(dtype, rows, cols, file.get(range).unwrap_or(&[]))
    }

    /// The matrix; `file` is the one that it was checked in.
    pub(super) fn matrix<'a>(&self, file: &'a [u8]) -> Matrix<'a> {
        self.try_matrix(file).expect("checked when it was loaded")
    }

    /// Row `row` as floats.
    pub(super) fn row(&self, isa: Isa, file: &[u8], row: usize, out: &mut [f32]) {
        let row = self.matrix(file).row_range(row, 1);
        dequantize(isa, row.dtype(), row.bytes(), out)
            .expect("a row has the bytes of its elements");
    }
}

/// A layer norm's gain and bias.
#[derive(Debug)]
pub(super) struct NormPair {
    pub(super) gain: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// A matrix with its bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weights: Table,
    pub(super) bias: Vec<f32>,
}

/// A layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) attn_norm: NormPair,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) out_norm: NormPair,
}

/// All weights: matrices as places in the file, vectors as floats.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) tokens: Table,
    pub(super) positions: Table,
    /// The vector of the first kind of text, the only one here.
    pub(super) kind: Vec<f32>,
    pub(super) norm: NormPair,
    pub(super) layers: Vec<Layer>,
}

pub(super) fn load(path: &Path, options: EncoderOptions) -> Result<Encoder, EncoderError> {
    let mapping = Mapping::open(path).map_err(LoadError::Map)?;
    let gguf = Gguf::parse(mapping.bytes())
        .map_err(|source| LoadError::Gguf { path: path.to_owned(), source })?;
    let config_error = |source| LoadError::Config { path: path.to_owned(), source };
    let config = Config::from_metadata(&gguf.metadata).map_err(config_error)?;
    let tokenizer = WordPiece::from_metadata(&gguf.metadata)
        .map_err(|source| EncoderError::Tokenizer { path: path.to_owned(), source })?;
    let weights = Loader::new(mapping.bytes(), &gguf)
        .and_then(|loader| loader.weights(&config, tokenizer.vocab_len()))
        .map_err(|source| LoadError::Tensor { path: path.to_owned(), source })?;
    let EncoderOptions { isa, threads } = options;
    let pool = Pool::new(threads).map_err(|source| EncoderError::Threads { threads, source })?;
    Ok(Encoder { mapping, config, weights, tokenizer, isa, pool, digest: OnceLock::new() })
}

/// Tensors that have not been taken yet.
struct Loader<'a> {
    file: &'a [u8],
    left: BTreeMap<TensorName, &'a TensorInfo>,
}

impl<'a> Loader<'a> {
    fn new(file: &'a [u8], gguf: &'a Gguf) -> Result<Self, TensorError> {
        let named = gguf.tensors.iter().map(|tensor| {
            let name = TensorName::parse(&tensor.name);
            let unknown = || Escaped::new(&tensor.name).to_string();
            let name = name.ok_or_else(|| TensorError::Unexpected { name: unknown() })?;
            Ok::<_, TensorError>((name, tensor))
        });
        Ok(Self { file, left: named.collect::<Result<_, _>>()? })
    }

    /// The matrix of a role; `rows` is the least that it has, and all that it has if `exact`.
    fn table(
        &mut self,
        (role, layer): (Role, Option<usize>),
        rows: usize,
        exact: bool,
        cols: usize,
    ) -> Result<Table, TensorError> {
        let gguf_name = || role.gguf_name(layer.unwrap_or(0));
        let number = layer.map(|layer| u32::try_from(layer).unwrap_or(u32::MAX));
        let info = self.left.remove(&TensorName { role, layer: number });
        let info = info.ok_or_else(|| TensorError::Missing { name: gguf_name() })?;
        let found_rows = usize::try_from(info.rows()).unwrap_or(usize::MAX);
        let fits = if exact { found_rows == rows } else { found_rows >= rows };
        if info.shape[0] != cols as u64 || info.shape.len() > 2 || !fits {
            let expected = vec![cols as u64, rows as u64];
            return Err(TensorError::Shape {
                name: gguf_name(),
                found: info.shape.clone(),
                expected,
            });
        }
        let bound = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let range = bound(info.range.start)..bound(info.range.end);
        let table = Table { dtype: info.dtype, rows: found_rows, cols, range };
        table
            .try_matrix(self.file)
            .map_err(|source| TensorError::Matrix { name: gguf_name(), source })?;
        Ok(table)
    }

    /// A vector of `len` finite floats.
    fn vector(&mut self, role: Role, layer: Option<usize>, len: usize) -> Floats {
        let table = self.table((role, layer), 1, true, len)?;
        let name = || role.gguf_name(layer.unwrap_or(0));
        if !table.dtype.is_float() {
            return Err(TensorError::NotFloat { name: name(), found: table.dtype });
        }
        self.row(&table, 0, name)
    }

    fn row(&self, table: &Table, row: usize, name: impl Fn() -> String) -> Floats {
        let mut floats = vec![0.0; table.cols];
        table.row(Isa::SCALAR, self.file, row, &mut floats);
        if floats.iter().all(|x| x.is_finite()) {
            Ok(floats)
        } else {
            Err(TensorError::NotFinite { name: name() })
        }
    }

    fn norm(
        &mut self,
        [gain, bias]: [Role; 2],
        layer: Option<usize>,
        len: usize,
    ) -> Result<NormPair, TensorError> {
        Ok(NormPair { gain: self.vector(gain, layer, len)?, bias: self.vector(bias, layer, len)? })
    }

    fn linear(
        &mut self,
        [weights, bias]: [Role; 2],
        layer: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Linear, TensorError> {
        Ok(Linear {
            weights: self.table((weights, Some(layer)), rows, true, cols)?,
            bias: self.vector(bias, Some(layer), rows)?,
        })
    }

    fn layer(&mut self, config: &Config, layer: usize) -> Result<Layer, TensorError> {
        let (d, len) = (config.d_model, config.ffn_len);
        let attn_norm = [Role::AttnOutputNorm, Role::AttnOutputNormBias];
        let out_norm = [Role::LayerOutputNorm, Role::LayerOutputNormBias];
        Ok(Layer {
            q: self.linear([Role::AttnQ, Role::AttnQBias], layer, d, d)?,
            k: self.linear([Role::AttnK, Role::AttnKBias], layer, d, d)?,
            v: self.linear([Role::AttnV, Role::AttnVBias], layer, d, d)?,
            o: self.linear([Role::AttnOutput, Role::AttnOutputBias], layer, d, d)?,
            attn_norm: self.norm(attn_norm, Some(layer), d)?,
            up: self.linear([Role::FfnUp, Role::FfnUpBias], layer, len, d)?,
            down: self.linear([Role::FfnDown, Role::FfnDownBias], layer, d, len)?,
            out_norm: self.norm(out_norm, Some(layer), d)?,
        })
    }

    fn weights(mut self, config: &Config, vocab: usize) -> Result<Weights, TensorError> {
        let d = config.d_model;
        let tokens = self.table((Role::TokenEmbedding, None), vocab, true, d)?;
        let most = config.max_tokens;
        let positions = self.table((Role::PositionEmbedding, None), most, false, d)?;
        let kinds = self.table((Role::TokenTypeEmbedding, None), 1, false, d)?;
        let kind = self.row(&kinds, 0, || Role::TokenTypeEmbedding.gguf_name(0))?;
        let norm = self.norm([Role::EmbeddingNorm, Role::EmbeddingNormBias], None, d)?;
        let layers: Result<_, _> = (0..config.layers).map(|l| self.layer(config, l)).collect();
        let weights = Weights { tokens, positions, kind, norm, layers: layers? };
        match self.left.keys().next() {
            None => Ok(weights),
            Some(name) => {
                let layer = name.layer.map_or(0, |layer| layer as usize);
                Err(TensorError::Unexpected { name: name.role.gguf_name(layer) })
            }
        }
    }
}

type Floats = Result<Vec<f32>, TensorError>;
