//! Vocabularies for the tokenizer tests.
#![allow(dead_code, reason = "each test crate that includes this module uses a part of it")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use aios_engine::gguf::Gguf;
use aios_engine::tokenizer::Tokenizer;

/// The vocabularies that the repository has a file for.
pub const VOCABS: [&str; 5] = ["gpt-2", "falcon", "llama-bpe", "llama-spm", "phi-3"];

/// A file of the tokenizer test data.
pub fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/tokenizer").join(name)
}

/// The header of a vocabulary-only file.
pub fn vocab_file(name: &str) -> Gguf {
    let path = testdata(&format!("ggml-vocab-{name}.gguf"));
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Gguf::parse(&bytes).unwrap()
}

/// The tokenizer of a vocabulary-only file.
pub fn vocab(name: &str) -> Tokenizer {
    Tokenizer::from_metadata(&vocab_file(name).metadata).unwrap()
}

/// The tokenizer of a real model: the file `NAME.gguf` in `AIOS_MODEL_DIR`, or in the user's cache.
/// `None`, with the reason printed, if there is no such file; under CI the default model must be
/// there.
pub fn real_model(name: &str) -> Option<Tokenizer> {
    let path = model_dir().join(format!("{name}.gguf"));
    match fs::read(&path) {
        Ok(bytes) => {
            Some(Tokenizer::from_metadata(&Gguf::parse(&bytes).unwrap().metadata).unwrap())
        }
        Err(error) => {
            let required = env::var_os("CI").is_some() && name.starts_with("smollm2");
            assert!(!required, "{}: {error}; CI needs this model", path.display());
            eprintln!("skipped: {}: {error}; `aios pull {name}` fetches it", path.display());
            None
        }
    }
}

fn model_dir() -> PathBuf {
    if let Some(dir) = env::var_os("AIOS_MODEL_DIR") {
        return dir.into();
    }
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    cache.unwrap_or_default().join("aios/models")
}

/// All vocabularies that are here, with their names.
pub fn all_vocabs() -> Vec<(&'static str, Tokenizer)> {
    let real = [
        ("smollm2", "smollm2-135m-instruct"),
        ("gemma3", "gemma-3-270m"),
        ("qwen2", "qwen2.5-coder-0.5b-instruct"),
    ];
    let files = VOCABS.into_iter().map(|name| (name, vocab(name)));
    files
        .chain(real.into_iter().filter_map(|(name, model)| Some((name, real_model(model)?))))
        .collect()
}

/// One line of a golden file: a text and its ids, special tokens parsed, without BOS and EOS.
pub struct Golden {
    pub text: String,
    pub ids: Vec<u32>,
}

/// The golden file of a vocabulary.
pub fn golden(name: &str) -> Vec<Golden> {
    let lines = fs::read_to_string(testdata(&format!("{name}.jsonl"))).unwrap();
    lines
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let ids = line["ids"].as_array().unwrap();
            Golden {
                text: line["text"].as_str().unwrap().to_owned(),
                ids: ids.iter().map(|id| id.as_u64().unwrap() as u32).collect(),
            }
        })
        .collect()
}
