//! From the files of a sentence-transformers model to one GGUF file: the names and keys are those
//! that llama.cpp's converter writes, and the weights' bytes stay as they are (SPEC.md, A10).

use super::ENCODER_ARCHITECTURE;
use crate::gguf::{Escaped, Metadata, TensorSpec, WriteError, Writer};
use crate::tokenizer::{WORD_START, WORDPIECE};
use aios_contract::{DType, Role};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::Write;

/// Types of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// The files of a BERT model as sentence-transformers lays them out, unread.
#[derive(Clone, Copy, Debug)]
pub struct SentenceModel<'a> {
    /// What the model is called: `general.name`.
    pub name: &'a str,
    /// `config.json`.
    pub config: &'a [u8],
    /// `vocab.txt`.
    pub vocab: &'a [u8],
    /// `1_Pooling/config.json`.
    pub pooling: &'a [u8],
    /// `sentence_bert_config.json`.
    pub sentence: &'a [u8],
    /// `model.safetensors`.
    pub weights: &'a [u8],
}

/// Why files cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A JSON file is not what it should be.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A file asks for something that is not computed here.
    #[error("{file}: {key} is {value}; only {expected} is supported")]
    Unsupported {
        /// The file.
        file: &'static str,
        /// The key.
        key: &'static str,
        /// What it says, escaped.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
    /// The vocabulary is not text.
    #[error("vocab.txt is not UTF-8")]
    NotText,
    /// The vocabulary lacks a token that frames a text.
    #[error("vocab.txt has no {token}")]
    NoToken {
        /// The token.
        token: &'static str,
    },
    /// The weights' file is not sound.
    #[error("model.safetensors: {0}")]
    Weights(#[from] SafeTensorError),
    /// It lacks a tensor.
    #[error("model.safetensors has no tensor {name}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// It has a tensor that nobody would apply.
    #[error("model.safetensors has tensor {name}, whose meaning is unknown")]
    Unexpected {
        /// Its name, escaped.
        name: String,
    },
    /// A tensor is neither F32, F16 nor BF16.
    #[error("model.safetensors: tensor {name} is {found}; F32, F16 and BF16 are supported")]
    Dtype {
        /// Its name.
        name: String,
        /// Its dtype.
        found: Dtype,
    },
    /// The result could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    num_hidden_layers: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_attention_heads: u32,
    max_position_embeddings: u32,
    layer_norm_eps: f32,
}

/// What a file means that does not say.
fn absolute() -> String {
    "absolute".to_owned()
}

#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: u32,
}

impl SentenceModel<'_> {
    /// Writes the model as one GGUF file. The same files always give the same bytes.
    ///
    /// # Errors
    /// [`ConvertError`], which names the file and what is wrong with it.
    pub fn write_gguf<W: Write>(&self, out: W) -> Result<W, ConvertError> {
        let config: Config = json("config.json", self.config)?;
        let metadata = self.metadata(&config)?;
        let file = SafeTensors::deserialize(self.weights)?;
        let tensors = tensors(&file, config.num_hidden_layers)?;
        let specs: Result<Vec<_>, _> =
            tensors.iter().map(|(name, view)| spec(name, view)).collect();
        let mut writer = Writer::new(out, &metadata, &specs?)?;
        for (name, view) in &tensors {
            writer.tensor(name, view.data())?;
        }
        Ok(writer.finish()?)
    }

    fn metadata(&self, config: &Config) -> Result<Metadata, ConvertError> {
        let only = |key, value: &str, expected: &'static str| {
            if value == expected {
                return Ok(());
            }
            let value = Escaped::new(value).to_string();
            Err(ConvertError::Unsupported { file: "config.json", key, value, expected })
        };
        only("model_type", &config.model_type, "bert")?;
        only("hidden_act", &config.hidden_act, "gelu")?;
        only("position_embedding_type", &config.position_embedding_type, "absolute")?;
        let sentence: SentenceConfig = json("sentence_bert_config.json", self.sentence)?;
        let key = |suffix: &str| format!("{ENCODER_ARCHITECTURE}.{suffix}");
        let context = sentence.max_seq_length.min(config.max_position_embeddings);
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", ENCODER_ARCHITECTURE);
        metadata.set("general.name", self.name);
        metadata.set(key("block_count"), config.num_hidden_layers);
        metadata.set(key("context_length"), context);
        metadata.set(key("embedding_length"), config.hidden_size);
        metadata.set(key("feed_forward_length"), config.intermediate_size);
        metadata.set(key("attention.head_count"), config.num_attention_heads);
        metadata.set(key("attention.layer_norm_epsilon"), config.layer_norm_eps);
        metadata.set(key("attention.causal"), false);
        metadata.set(key("pooling_type"), self.pooling_type()?);
        self.set_vocabulary(&mut metadata)?;
        Ok(metadata)
    }

    /// llama.cpp's number for the pooling.
    fn pooling_type(&self) -> Result<u32, ConvertError> {
        const FILE: &str = "1_Pooling/config.json";
        let config: PoolingConfig = json(FILE, self.pooling)?;
        let other = config.pooling_mode_max_tokens || config.pooling_mode_mean_sqrt_len_tokens;
        match (config.pooling_mode_mean_tokens, config.pooling_mode_cls_token, other) {
            (true, false, false) => Ok(1),
            (false, true, false) => Ok(2),
            _ => Err(ConvertError::Unsupported {
                file: FILE,
                key: "pooling_mode_…",
                value: "another choice".to_owned(),
                expected: "the mean or the class token alone",
            }),
        }
    }

    /// In the file, first pieces of words are marked, and not, as in `vocab.txt`, the others.
    fn set_vocabulary(&self, metadata: &mut Metadata) -> Result<(), ConvertError> {
        const SPECIAL: [(&str, &str); 5] = [
            ("[UNK]", "unknown"),
            ("[SEP]", "seperator"),
            ("[PAD]", "padding"),
            ("[CLS]", "cls"),
            ("[MASK]", "mask"),
        ];
        let text = std::str::from_utf8(self.vocab).map_err(|_| ConvertError::NotText)?;
        let tokens: Vec<&str> = text.lines().collect();
        let is_special = |token: &str| SPECIAL.iter().any(|(special, _)| *special == token);
        let spelling = |token: &&str| match token.strip_prefix("##") {
            _ if is_special(token) => (*token).to_owned(),
            Some(rest) => rest.to_owned(),
            None => format!("{WORD_START}{token}"),
        };
        metadata.set("tokenizer.ggml.model", WORDPIECE);
        metadata.set("tokenizer.ggml.tokens", tokens.iter().map(spelling).collect::<Vec<_>>());
        let kind = |token: &&str| if is_special(token) { CONTROL } else { NORMAL };
        metadata.set("tokenizer.ggml.token_type", tokens.iter().map(kind).collect::<Vec<_>>());
        for (token, name) in SPECIAL {
            let id = tokens.iter().position(|other| *other == token);
            let id = id.and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or(ConvertError::NoToken { token })?;
            metadata.set(format!("tokenizer.ggml.{name}_token_id"), id);
        }
        Ok(())
    }
}

fn json<T: DeserializeOwned>(file: &'static str, bytes: &[u8]) -> Result<T, ConvertError> {
    serde_json::from_slice(bytes).map_err(|source| ConvertError::Json { file, source })
}

/// The tensors under their GGUF names, in the order in which a pass reads them.
fn tensors<'a>(
    file: &'a SafeTensors<'_>,
    layers: u32,
) -> Result<Vec<(String, TensorView<'a>)>, ConvertError> {
    let mut left: BTreeMap<String, TensorView<'a>> = file
        .iter()
        .map(|(name, view)| (name.strip_prefix("bert.").unwrap_or(name).to_owned(), view))
        .filter(|(name, _)| !is_unused(name))
        .collect();
    let mut found = Vec::new();
    let mut take = |name: String, gguf_name: String| {
        let view = left.remove(&name).ok_or(ConvertError::Missing { name })?;
        found.push((gguf_name, view));
        Ok::<_, ConvertError>(())
    };
    for (role, name) in WHOLE {
        take(format!("embeddings.{name}"), role.gguf_name(0))?;
    }
    for layer in 0..layers {
        for (role, name) in PER_LAYER {
            take(format!("encoder.layer.{layer}.{name}"), role.gguf_name(layer as usize))?;
        }
    }
    match left.keys().next() {
        None => Ok(found),
        Some(name) => Err(ConvertError::Unexpected { name: Escaped::new(name).to_string() }),
    }
}

/// Tensors that no sentence's vector depends on: the head of the pretraining task, and 0, 1, 2, …
fn is_unused(name: &str) -> bool {
    name.starts_with("pooler.") || name == "embeddings.position_ids"
}

fn spec(name: &str, view: &TensorView<'_>) -> Result<TensorSpec, ConvertError> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        found => return Err(ConvertError::Dtype { name: name.to_owned(), found }),
    };
    // Rows come last in GGUF files.
    let shape = view.shape().iter().rev().map(|&dim| dim as u64).collect();
    Ok(TensorSpec { name: name.to_owned(), shape, dtype })
}

/// Tensors of the whole model, without `embeddings.`.
const WHOLE: [(Role, &str); 5] = [
    (Role::TokenEmbedding, "word_embeddings.weight"),
    (Role::PositionEmbedding, "position_embeddings.weight"),
    (Role::TokenTypeEmbedding, "token_type_embeddings.weight"),
    (Role::EmbeddingNorm, "LayerNorm.weight"),
    (Role::EmbeddingNormBias, "LayerNorm.bias"),
];

/// Tensors of a layer, without `encoder.layer.N.`.
const PER_LAYER: [(Role, &str); 16] = [
    (Role::AttnQ, "attention.self.query.weight"),
    (Role::AttnQBias, "attention.self.query.bias"),
    (Role::AttnK, "attention.self.key.weight"),
    (Role::AttnKBias, "attention.self.key.bias"),
    (Role::AttnV, "attention.self.value.weight"),
    (Role::AttnVBias, "attention.self.value.bias"),
    (Role::AttnOutput, "attention.output.dense.weight"),
    (Role::AttnOutputBias, "attention.output.dense.bias"),
    (Role::AttnOutputNorm, "attention.output.LayerNorm.weight"),
    (Role::AttnOutputNormBias, "attention.output.LayerNorm.bias"),
    (Role::FfnUp, "intermediate.dense.weight"),
    (Role::FfnUpBias, "intermediate.dense.bias"),
    (Role::FfnDown, "output.dense.weight"),
    (Role::FfnDownBias, "output.dense.bias"),
    (Role::LayerOutputNorm, "output.LayerNorm.weight"),
    (Role::LayerOutputNormBias, "output.LayerNorm.bias"),
];
