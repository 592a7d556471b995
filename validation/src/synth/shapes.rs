//! The published shapes: what a model's own configuration file says of its size, as data.

use aios_contract::Architecture;

/// The size of a model and the numbers its forward pass needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The name it is asked for by.
    pub name: &'static str,
    /// What `general.name` says after "synthetic-". It differs from `name` where llama.cpp takes a
    /// file of that name for the real model and wants its special tokens.
    pub label: &'static str,
    /// The architecture.
    pub architecture: Architecture,
    /// Layers.
    pub layers: u32,
    /// Elements of the hidden state.
    pub d_model: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Elements of a head; all of them rotate.
    pub head_len: u32,
    /// Neurons of the feed-forward part.
    pub ffn_len: u32,
    /// Rows of the embedding.
    pub vocab: u32,
    /// The longest context.
    pub context: u32,
    /// Frequency base of rope.
    pub rope_base: f32,
    /// How rope reaches beyond the context of pre-training.
    pub rope: Rope,
    /// The epsilon of the norms.
    pub norm_epsilon: f32,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The sliding window that the file announces, in tokens.
    pub window: Option<u32>,
    /// Whether the two branches of a parallel block have a norm each.
    pub two_norms: bool,
}

/// How rope reaches beyond the context of pre-training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rope {
    /// Not at all.
    Plain,
    /// Positions are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Frequencies are divided by factors between 1 and `factor`, by their wavelength (Llama 3).
    Llama3 {
        /// The divisor of the slowest frequencies.
        factor: f32,
    },
    /// Frequencies are divided by one of two lists of factors (LongRoPE). The lists here are ramps
    /// to the extension factor, not the searched ones of the published model.
    LongRope {
        /// The context of pre-training.
        original_context: u32,
    },
}

/// The Llama family as of its second generation; the other families are told by how they differ.
const LLAMA: Shape = Shape {
    name: "",
    label: "",
    architecture: Architecture::Llama,
    layers: 0,
    d_model: 0,
    heads: 0,
    kv_heads: 0,
    head_len: 0,
    ffn_len: 0,
    vocab: 32_000,
    context: 4096,
    rope_base: 1e4,
    rope: Rope::Plain,
    norm_epsilon: 1e-5,
    tied: false,
    window: None,
    two_norms: false,
};
const LLAMA3: Shape = Shape {
    vocab: 128_256,
    context: 131_072,
    rope_base: 5e5,
    rope: Rope::Llama3 { factor: 32.0 },
    tied: true,
    ..LLAMA
};
const SMOLLM2: Shape = Shape { vocab: 49_152, context: 8192, rope_base: 1e5, tied: true, ..LLAMA };
const QWEN2: Shape = Shape {
    architecture: Architecture::Qwen2,
    vocab: 151_936,
    context: 32_768,
    rope_base: 1e6,
    norm_epsilon: 1e-6,
    tied: true,
    ..LLAMA
};
const QWEN3: Shape = Shape { architecture: Architecture::Qwen3, context: 40_960, ..QWEN2 };
const PHI3: Shape =
    Shape { architecture: Architecture::Phi3, vocab: 32_064, window: Some(2047), ..LLAMA };
const PHI3_128K: Shape =
    Shape { context: 131_072, rope: Rope::LongRope { original_context: 4096 }, ..PHI3 };
const FALCON: Shape =
    Shape { architecture: Architecture::Falcon, vocab: 65_024, context: 2048, ..LLAMA };
const GEMMA3: Shape = Shape {
    architecture: Architecture::Gemma3,
    vocab: 262_144,
    context: 32_768,
    rope_base: 1e6,
    norm_epsilon: 1e-6,
    tied: true,
    window: Some(512),
    ..LLAMA
};

/// A member of `family` with these layers, d_model, heads, kv_heads, head_len and ffn_len.
const fn member(family: Shape, name: &'static str, size: [u32; 6]) -> Shape {
    let [layers, d_model, heads, kv_heads, head_len, ffn_len] = size;
    Shape { name, label: name, layers, d_model, heads, kv_heads, head_len, ffn_len, ..family }
}

/// Every shape. `tiny` was never published; it is there for tests.
pub const SHAPES: [Shape; 26] = [
    Shape { vocab: 512, context: 512, ..member(LLAMA, "tiny", [2, 256, 4, 2, 64, 512]) },
    member(LLAMA, "llama-2-7b", [32, 4096, 32, 32, 128, 11_008]),
    member(LLAMA, "llama-2-13b", [40, 5120, 40, 40, 128, 13_824]),
    Shape {
        rope: Rope::Llama3 { factor: 8.0 },
        tied: false,
        ..member(LLAMA3, "llama-3.1-8b", [32, 4096, 32, 8, 128, 14_336])
    },
    member(LLAMA3, "llama-3.2-1b", [16, 2048, 32, 8, 64, 8192]),
    member(LLAMA3, "llama-3.2-3b", [28, 3072, 24, 8, 128, 8192]),
    Shape {
        vocab: 32_768,
        context: 32_768,
        rope_base: 1e6,
        ..member(LLAMA, "mistral-7b", [32, 4096, 32, 8, 128, 14_336])
    },
    Shape { context: 2048, ..member(LLAMA, "tinyllama-1.1b", [22, 2048, 32, 4, 64, 5632]) },
    member(SMOLLM2, "smollm2-135m", [30, 576, 9, 3, 64, 1536]),
    member(SMOLLM2, "smollm2-360m", [32, 960, 15, 5, 64, 2560]),
    Shape { rope_base: 1.3e5, ..member(SMOLLM2, "smollm2-1.7b", [24, 2048, 32, 32, 64, 8192]) },
    member(QWEN2, "qwen2.5-0.5b", [24, 896, 14, 2, 64, 4864]),
    member(QWEN2, "qwen2.5-1.5b", [28, 1536, 12, 2, 128, 8960]),
    member(QWEN2, "qwen2.5-3b", [36, 2048, 16, 2, 128, 11_008]),
    Shape {
        vocab: 152_064,
        tied: false,
        ..member(QWEN2, "qwen2.5-7b", [28, 3584, 28, 4, 128, 18_944])
    },
    member(QWEN3, "qwen3-0.6b", [28, 1024, 16, 8, 128, 3072]),
    member(QWEN3, "qwen3-4b", [36, 2560, 32, 8, 128, 9728]),
    Shape { tied: false, ..member(QWEN3, "qwen3-8b", [36, 4096, 32, 8, 128, 12_288]) },
    Shape { label: "p3-mini", ..member(PHI3, "phi-3-mini", [32, 3072, 32, 32, 96, 8192]) },
    Shape {
        label: "p3-mini-128k",
        window: Some(262_144),
        ..member(PHI3_128K, "phi-3-mini-128k", [32, 3072, 32, 32, 96, 8192])
    },
    Shape { label: "p3-medium", ..member(PHI3, "phi-3-medium", [40, 5120, 40, 10, 128, 17_920]) },
    Shape {
        label: "p3-medium-128k",
        window: Some(131_072),
        ..member(PHI3_128K, "phi-3-medium-128k", [40, 5120, 40, 10, 128, 17_920])
    },
    member(FALCON, "falcon-7b", [32, 4544, 71, 1, 64, 18_176]),
    Shape { two_norms: true, ..member(FALCON, "falcon-40b", [60, 8192, 128, 8, 64, 32_768]) },
    member(GEMMA3, "gemma-3-1b", [26, 1152, 4, 1, 256, 6912]),
    Shape {
        context: 131_072,
        window: Some(1024),
        rope: Rope::Linear { factor: 8.0 },
        ..member(GEMMA3, "gemma-3-4b", [34, 2560, 8, 4, 256, 10_240])
    },
];

impl Shape {
    /// The shape called `name`.
    ///
    /// # Errors
    /// [`UnknownShape`], which lists the names there are.
    pub fn named(name: &str) -> Result<&'static Self, UnknownShape> {
        let found = SHAPES.iter().find(|shape| shape.name == name);
        found.ok_or_else(|| UnknownShape(name.to_owned()))
    }

    /// Elements of all query heads.
    pub(super) const fn q_len(&self) -> u32 {
        self.heads * self.head_len
    }

    /// Elements of all key heads, or of all value heads.
    pub(super) const fn kv_len(&self) -> u32 {
        self.kv_heads * self.head_len
    }
}

/// A name that no shape has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown shape {0:?}; there are {names}", names = SHAPES.map(|s| s.name).join(", "))]
pub struct UnknownShape(pub String);
