//! The configuration of a model: everything the forward pass must know besides the weights.
//! It is read from a file's metadata once, at load; nothing here has a silent default.

use serde::{Deserialize, Serialize};

/// The architectures that this engine runs, by their GGUF name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the variants are the names of the architectures")]
pub enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Phi3,
    Falcon,
    Gemma3,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Self; 6] =
        [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Phi3, Self::Falcon, Self::Gemma3];

    /// The value of `general.architecture`, which also prefixes the file's own keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Falcon => "falcon",
            Self::Gemma3 => "gemma3",
        }
    }

    /// The architecture with that GGUF name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.name() == name)
    }
}

/// Which norm, and its epsilon.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormConfig {
    /// RMS norm or layer norm.
    pub kind: NormKind,
    /// Added to the mean square (or variance) under the root.
    pub epsilon: f32,
}

/// The two norms of this family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// x / sqrt(mean(x²) + ε) · gain.
    Rms,
    /// (x − mean(x)) / sqrt(var(x) + ε) · gain + bias.
    Layer,
}

/// How a layer's two branches hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockLayout {
    /// x += attention(norm(x)); x += ffn(norm(x)).
    Sequential,
    /// As `Sequential`, with a further norm on each branch's output before it is added (Gemma 3).
    SequentialPostNorm,
    /// x += attention(norm(x)) + ffn(norm'(x)); norm' is norm, or a second one (Falcon).
    Parallel,
}

/// The attention part of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Elements of a query and key head.
    pub key_len: usize,
    /// Elements of a value head.
    pub value_len: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Whether q, k and v are one matrix, its rows in that order.
    pub fused_qkv: bool,
    /// Whether each head of q and k has an RMS norm before rope.
    pub qk_norm: bool,
    /// Scores are cap · tanh(score / cap).
    pub score_softcap: Option<f32>,
    /// The sliding window, where some layers have one.
    pub window: Option<SlidingWindow>,
}

/// A sliding window: a query at position p sees keys at p − size + 1 … p.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlidingWindow {
    /// Keys that a query sees, itself included.
    pub size: usize,
    /// Layer l is global, not windowed, if (l + 1) % period == 0; 0 means that none is global.
    pub global_period: usize,
}

impl SlidingWindow {
    /// Whether layer `layer` has the window.
    pub const fn applies_to(&self, layer: usize) -> bool {
        self.global_period == 0 || !(layer + 1).is_multiple_of(self.global_period)
    }
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairing {
    /// (2i, 2i + 1): "normal" in llama.cpp.
    Adjacent,
    /// (i, i + n/2): "neox".
    Halves,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Rotated elements at the front of each head; even.
    pub dims: usize,
    /// Which elements rotate together.
    pub pairing: RopePairing,
    /// Frequency base θ.
    pub base: f32,
    /// Frequency base of the layers with a sliding window; they take no scaling.
    pub local_base: Option<f32>,
    /// How positions beyond the training length are brought into range.
    pub scaling: RopeScaling,
    /// Context length of training, where the scaling needs it.
    pub original_context: Option<usize>,
}

/// Rope scaling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// None. Per-frequency factors, where the file has them (llama3), still apply.
    None,
    /// Positions are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// Context extension factor.
        factor: f32,
        /// Factor on the magnitude of the rotation.
        attn_factor: f32,
        /// Interpolation fades in over dimensions that turn between these many times.
        beta_fast: f32,
        /// See `beta_fast`.
        beta_slow: f32,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): the file has factors for long and for short
    /// contexts.
    LongRope {
        /// Factor on the magnitude of the rotation.
        attn_factor: f32,
    },
}

/// Activation of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationFn {
    /// x / (1 + e^−x).
    Silu,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))).
    GeluTanh,
    /// x · Φ(x), Φ the standard normal distribution: the form with the error function.
    GeluErf,
    /// x where x > 0, else 0.
    Relu,
    /// The square of that.
    #[serde(rename = "relu2")]
    ReluSquared,
}

impl ActivationFn {
    /// Every function.
    pub const ALL: [Self; 5] =
        [Self::Silu, Self::GeluTanh, Self::GeluErf, Self::Relu, Self::ReluSquared];

    /// The name that a file's metadata has for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu",
            Self::GeluErf => "gelu_erf",
            Self::Relu => "relu",
            Self::ReluSquared => "relu2",
        }
    }

    /// The function of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.name() == name)
    }

    /// Whether it is exactly 0 on a half-line, so that neurons give nothing.
    pub const fn has_true_zeros(self) -> bool {
        matches!(self, Self::Relu | Self::ReluSquared)
    }
}

/// How the feed-forward part's input projections are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnLayout {
    /// act(gate(x)) · up(x), two matrices.
    Gated,
    /// act(gate(x)) · up(x), one matrix, gate rows first.
    GatedFused,
    /// act(up(x)).
    Plain,
}

/// The feed-forward part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FfnConfig {
    /// Neurons.
    pub len: usize,
    /// How gate and up are stored.
    pub layout: FfnLayout,
    /// The activation.
    pub activation: ActivationFn,
}

/// A model's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Its architecture.
    pub architecture: Architecture,
    /// Layers.
    pub layers: usize,
    /// Elements of the hidden state.
    pub d_model: usize,
    /// Rows of the head: token ids are below it.
    pub vocab: usize,
    /// The longest context the model was made for.
    pub context: usize,
    /// Layout of a layer.
    pub block: BlockLayout,
    /// The norms.
    pub norm: NormConfig,
    /// Attention.
    pub attention: AttentionConfig,
    /// Rope.
    pub rope: RopeConfig,
    /// Feed-forward.
    pub ffn: FfnConfig,
    /// Factor on the token embedding (Gemma: √d_model).
    pub embedding_scale: Option<f32>,
    /// Logits are cap · tanh(logit / cap).
    pub logit_softcap: Option<f32>,
}

impl ModelConfig {
    /// Elements of all query heads.
    pub const fn q_len(&self) -> usize {
        self.attention.heads * self.attention.key_len
    }

    /// Elements of all key heads.
    pub const fn k_len(&self) -> usize {
        self.attention.kv_heads * self.attention.key_len
    }

    /// Elements of all value heads.
    pub const fn v_len(&self) -> usize {
        self.attention.kv_heads * self.attention.value_len
    }
}
