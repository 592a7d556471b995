//! Architectures as data: what distinguishes one family of models from another, one file each,
//! and the one place where a file's metadata becomes a [`ModelConfig`].

mod falcon;
mod gemma3;
mod llama;
mod phi3;
mod qwen2;
mod qwen3;

use crate::encoder::ENCODER_ARCHITECTURE;
use crate::gguf::{GgufError, Metadata};
use aios_contract::{
    ActivationFn, Architecture, AttentionConfig, BlockLayout, FfnConfig, FfnLayout, ModelConfig,
    NormConfig, NormKind, RopeConfig, RopePairing, RopeScaling, SlidingWindow,
};

/// An architecture, apart from what its files say.
struct Spec {
    norm: NormKind,
    block: BlockLayout,
    pairing: RopePairing,
    /// The frequency base of files that do not name one, where the architecture's publication
    /// fixes it; else a file must name it.
    rope_base: Option<f32>,
    /// The frequency base of layers with a sliding window, where it differs.
    local_rope_base: Option<f32>,
    fused_qkv: bool,
    qk_norm: bool,
    ffn: FfnLayout,
    /// The activation of files that do not name one.
    activation: ActivationFn,
    /// Whether token embeddings are multiplied by √d_model.
    scaled_embedding: bool,
    /// Every so many layers one is global although the file has a sliding window; 0: none is.
    global_period: usize,
    /// The factor on q·k, from the shape.
    attention_scale: fn(&Shape) -> f32,
}

/// The sizes that a factor may depend on.
struct Shape {
    layers: usize,
    d_model: usize,
    heads: usize,
    key_len: usize,
}

/// 1/√key_len, as in Vaswani et al. 2017.
#[expect(clippy::cast_precision_loss, reason = "head lengths are small")]
fn inverse_root_of_key_len(shape: &Shape) -> f32 {
    1.0 / (shape.key_len as f32).sqrt()
}

const fn spec(architecture: Architecture) -> &'static Spec {
    match architecture {
        Architecture::Llama => &llama::SPEC,
        Architecture::Qwen2 => &qwen2::SPEC,
        Architecture::Qwen3 => &qwen3::SPEC,
        Architecture::Phi3 => &phi3::SPEC,
        Architecture::Falcon => &falcon::SPEC,
        Architecture::Gemma3 => &gemma3::SPEC,
    }
}

/// Why a file's metadata does not describe a model that this engine runs.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The architecture is unknown.
    #[error("architecture {name:?} is not supported; supported are {}", known_architectures())]
    UnknownArchitecture {
        /// The value of `general.architecture`.
        name: String,
    },
    /// The model is an encoder, which has no next token.
    #[error("architecture {name:?} makes embeddings and cannot generate; use it with 'aios embed'")]
    Encoder {
        /// The value of `general.architecture`.
        name: String,
    },
    /// The model is not an encoder, which is what was asked for.
    #[error(
        "architecture {name:?} does not make embeddings here; encoders are \"bert\", for instance \
         all-minilm-l6-v2"
    )]
    NotAnEncoder {
        /// The value of `general.architecture`.
        name: String,
    },
    /// A value is out of range or does not fit the others.
    #[error("metadata key {key}: {value} {problem}")]
    BadValue {
        /// The key.
        key: String,
        /// What it says.
        value: String,
        /// Why that cannot be.
        problem: &'static str,
    },
    /// The file asks for something that this engine does not compute.
    #[error("metadata key {key} asks for {what}, which this engine does not compute")]
    Unsupported {
        /// The key.
        key: String,
        /// What it asks for.
        what: &'static str,
    },
}

fn known_architectures() -> String {
    Architecture::ALL.map(Architecture::name).join(", ")
}

/// Keys that change a model's arithmetic in ways that this engine does not compute; they are
/// refused unless they are zero.
const REFUSED: [(&str, &str); 6] = [
    ("expert_count", "a mixture of experts"),
    ("logit_scale", "a factor on the logits"),
    ("residual_scale", "a factor on the residual stream"),
    ("embedding_scale", "a factor on the embeddings"),
    ("attention.max_alibi_bias", "ALiBi positions"),
    ("attention.clamp_kqv", "clamped projections"),
];

/// The longest head, hidden state and so on that are believed; larger values are surely wrong and
/// might overflow.
const SIZE_MAX: u64 = 1 << 24;

/// Keys of one architecture, which start with its name.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture.name())
    }

    fn bad(&self, suffix: &str, value: impl ToString, problem: &'static str) -> ConfigError {
        ConfigError::BadValue { key: self.key(suffix), value: value.to_string(), problem }
    }

    fn size(&self, suffix: &str, value: u64) -> Result<usize, ConfigError> {
        match usize::try_from(value) {
            Ok(size) if (1..=SIZE_MAX).contains(&value) => Ok(size),
            _ => Err(self.bad(suffix, value, "is out of range")),
        }
    }

    fn require(&self, suffix: &str) -> Result<usize, ConfigError> {
        self.size(suffix, self.metadata.require_u64(&self.key(suffix))?)
    }

    fn optional(&self, suffix: &str) -> Result<Option<usize>, ConfigError> {
        let value = self.metadata.u64(&self.key(suffix))?;
        value.map(|value| self.size(suffix, value)).transpose()
    }

    /// A float that must be finite and positive.
    fn float(&self, suffix: &str) -> Result<Option<f32>, ConfigError> {
        match self.metadata.f32(&self.key(suffix))? {
            Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value)),
            Some(value) => Err(self.bad(suffix, value, "is not a positive number")),
            None => Ok(None),
        }
    }

    fn require_float(&self, suffix: &str) -> Result<f32, ConfigError> {
        let value = self.float(suffix)?;
        value.ok_or_else(|| GgufError::MissingKey { key: self.key(suffix) }.into())
    }
}

/// The configuration that `metadata` describes. `vocab` is the number of rows of the token
/// embedding, which has the last word on it.
///
/// # Errors
/// [`ConfigError`], which names the key. No missing value is guessed: what has a default is
/// listed in SPEC.md (A2).
pub fn read_config(metadata: &Metadata, vocab: usize) -> Result<ModelConfig, ConfigError> {
    let name = metadata.require_str("general.architecture")?;
    if name == ENCODER_ARCHITECTURE {
        return Err(ConfigError::Encoder { name: name.to_owned() });
    }
    let architecture = Architecture::from_name(name)
        .ok_or_else(|| ConfigError::UnknownArchitecture { name: name.to_owned() })?;
    let spec = spec(architecture);
    let keys = Keys { metadata, architecture };
    refuse_unsupported(&keys)?;
    let layers = keys.require("block_count")?;
    let d_model = keys.require("embedding_length")?;
    let attention = read_attention(&keys, spec, layers, d_model)?;
    let rope = read_rope(&keys, spec, attention.key_len)?;
    let epsilon_key = match spec.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    };
    let epsilon = keys.require_float(epsilon_key)?;
    let ffn_len = keys.require("feed_forward_length")?;
    let embedding_scale = spec.scaled_embedding.then(|| {
        #[expect(clippy::cast_precision_loss, reason = "hidden sizes are small")]
        let size = d_model as f32;
        size.sqrt()
    });
    Ok(ModelConfig {
        architecture,
        layers,
        d_model,
        vocab,
        context: keys.require("context_length")?,
        block: spec.block,
        norm: NormConfig { kind: spec.norm, epsilon },
        attention,
        rope,
        ffn: FfnConfig {
            len: ffn_len,
            layout: spec.ffn,
            activation: read_activation(&keys, spec)?,
        },
        embedding_scale,
        logit_softcap: keys.float("final_logit_softcapping")?,
    })
}

fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), ConfigError> {
    for (suffix, what) in REFUSED {
        let key = keys.key(suffix);
        let zero = match keys.metadata.get(&key) {
            None => true,
            Some(crate::gguf::Value::F32(value)) => *value == 0.0,
            Some(_) => keys.metadata.u64(&key)? == Some(0),
        };
        if !zero {
            return Err(ConfigError::Unsupported { key, what });
        }
    }
    Ok(())
}

/// The activation that the file names, for models that were trained further with another one than
/// their architecture's (SPEC A2).
fn read_activation(keys: &Keys<'_>, spec: &Spec) -> Result<ActivationFn, ConfigError> {
    const KEY: &str = "hidden_activation";
    let Some(name) = keys.metadata.str(&keys.key(KEY))? else { return Ok(spec.activation) };
    let known = ActivationFn::from_name(name);
    known.ok_or_else(|| keys.bad(KEY, name, "is none of silu, gelu, gelu_erf, relu and relu2"))
}

fn read_attention(
    keys: &Keys<'_>,
    spec: &Spec,
    layers: usize,
    d_model: usize,
) -> Result<AttentionConfig, ConfigError> {
    let heads = keys.require("attention.head_count")?;
    let kv_heads = keys.optional("attention.head_count_kv")?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.bad("attention.head_count_kv", kv_heads, "does not divide the heads"));
    }
    let key_len = match keys.optional("attention.key_length")? {
        Some(len) => len,
        None if d_model.is_multiple_of(heads) => d_model / heads,
        None => return Err(keys.bad("attention.head_count", heads, "does not divide the width")),
    };
    let value_len = keys.optional("attention.value_length")?.unwrap_or(key_len);
    for (suffix, len) in [("key_length", key_len), ("value_length", value_len)] {
        if len > aios_kernels::MAX_HEAD_LEN {
            return Err(keys.bad(&format!("attention.{suffix}"), len, "is more than 256"));
        }
    }
    let shape = Shape { layers, d_model, heads, key_len };
    let window = keys.optional("attention.sliding_window")?;
    Ok(AttentionConfig {
        heads,
        kv_heads,
        key_len,
        value_len,
        scale: keys.float("attention.scale")?.unwrap_or_else(|| (spec.attention_scale)(&shape)),
        fused_qkv: spec.fused_qkv,
        qk_norm: spec.qk_norm,
        score_softcap: keys.float("attn_logit_softcapping")?,
        window: window.map(|size| SlidingWindow { size, global_period: spec.global_period }),
    })
}

fn read_rope(keys: &Keys<'_>, spec: &Spec, key_len: usize) -> Result<RopeConfig, ConfigError> {
    let dims = keys.optional("rope.dimension_count")?.unwrap_or(key_len);
    if dims > key_len || !dims.is_multiple_of(2) {
        return Err(keys.bad("rope.dimension_count", dims, "is odd or longer than a head"));
    }
    let base = match (keys.float("rope.freq_base")?, spec.rope_base) {
        (Some(base), _) | (None, Some(base)) => base,
        (None, None) => keys.require_float("rope.freq_base")?,
    };
    let original_context = keys.optional("rope.scaling.original_context_length")?;
    Ok(RopeConfig {
        dims,
        pairing: spec.pairing,
        base,
        local_base: keys.float("rope.freq_base_swa")?.or(spec.local_rope_base),
        scaling: read_scaling(keys, original_context)?,
        original_context,
    })
}

fn read_scaling(
    keys: &Keys<'_>,
    original_context: Option<usize>,
) -> Result<RopeScaling, ConfigError> {
    const TYPE: &str = "rope.scaling.type";
    let attn_factor = keys.float("rope.scaling.attn_factor")?;
    let factor = || keys.require_float("rope.scaling.factor");
    let kind = keys.metadata.str(&keys.key(TYPE))?;
    let needs_original = matches!(kind, Some("yarn" | "longrope"));
    if needs_original && original_context.is_none() {
        let key = keys.key("rope.scaling.original_context_length");
        return Err(GgufError::MissingKey { key }.into());
    }
    match kind {
        None => match keys.float("rope.scale_linear")? {
            None => Ok(RopeScaling::None),
            Some(factor) => Ok(RopeScaling::Linear { factor }),
        },
        // The factors of llama3 are a tensor, which is found by its name.
        Some("none" | "llama3") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("yarn") => Ok(RopeScaling::Yarn {
            factor: factor()?,
            attn_factor: attn_factor.unwrap_or(1.0),
            beta_fast: keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        }),
        Some("longrope") => {
            let attn_factor = keys.require_float("rope.scaling.attn_factor")?;
            Ok(RopeScaling::LongRope { attn_factor })
        }
        Some(other) => Err(keys.bad(TYPE, other, "is not a known rope scaling")),
    }
}

#[cfg(test)]
mod tests;
