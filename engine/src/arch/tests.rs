//! From metadata to configuration: what is read, what is refused, and by which name.

use super::*;
use crate::gguf::Value;

/// The least that a Llama file must say.
fn llama() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 2_u32),
        ("context_length", 512),
        ("embedding_length", 256),
        ("feed_forward_length", 512),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        metadata.set(format!("llama.{key}"), value);
    }
    metadata.set("llama.attention.layer_norm_rms_epsilon", 1e-6_f32);
    metadata
}

fn with(key: &str, value: impl Into<Value>) -> Result<ModelConfig, ConfigError> {
    let mut metadata = llama();
    metadata.set(key, value);
    read_config(&metadata, 384)
}

#[test]
fn the_shape_follows_from_the_keys_and_few_defaults() {
    let config = read_config(&llama(), 384).expect("complete");
    assert_eq!((config.layers, config.d_model, config.vocab), (2, 256, 384));
    let attention = &config.attention;
    assert_eq!((attention.heads, attention.kv_heads, attention.key_len), (4, 2, 64));
    assert_eq!((attention.scale, config.rope.base, config.rope.dims), (0.125, 10_000.0, 64));
    assert_eq!(config.rope.scaling, RopeScaling::None);
}

#[test]
fn a_missing_key_is_named() {
    for key in ["block_count", "context_length", "feed_forward_length", "attention.head_count"] {
        let kept = llama();
        let entries = kept.iter().filter(|(name, _)| *name != format!("llama.{key}"));
        let entries = entries.map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let metadata = Metadata::from_entries(entries).expect("unique keys");
        let error = read_config(&metadata, 384).expect_err(key);
        assert!(error.to_string().contains(&format!("llama.{key}")), "{error}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let cases: [(&str, Value); 9] = [
        ("general.architecture", "mamba".into()),
        ("llama.block_count", 0_u32.into()),
        ("llama.attention.head_count_kv", 3_u32.into()),
        ("llama.attention.key_length", 512_u32.into()),
        ("llama.rope.dimension_count", 63_u32.into()),
        ("llama.rope.freq_base", f32::NAN.into()),
        ("llama.rope.scaling.type", "magic".into()),
        ("llama.expert_count", 8_u32.into()),
        ("llama.embedding_length", u64::MAX.into()),
    ];
    for (key, value) in cases {
        let error = with(key, value).expect_err(key).to_string();
        assert!(error.contains(key) || error.contains("mamba"), "{key}: {error}");
    }
}

#[test]
fn rope_scalings_are_read_with_what_they_need() {
    let linear = |factor: Option<f32>| {
        let mut metadata = llama();
        metadata.set("llama.rope.scaling.type", "linear");
        if let Some(factor) = factor {
            metadata.set("llama.rope.scaling.factor", factor);
        }
        read_config(&metadata, 384)
    };
    let config = linear(Some(4.0)).expect("complete");
    assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert!(linear(None).is_err());
    assert!(with("llama.rope.scaling.type", "yarn").is_err());
}
