//! SHA-256 of tokenizers and token ids (SPEC Z4).

use aios_engine::Model;
use aios_engine::gguf::{Array, Value};
use aios_residency::plan::hex;
use sha2::{Digest, Sha256};

/// The SHA-256 of a model's tokenizer and chat template: of every key that begins with
/// `tokenizer.`, in the order of the file, with its value.
pub fn of_tokenizer(model: &Model) -> String {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    for (key, value) in model.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        part(key.as_bytes());
        part(value.type_of().to_string().as_bytes());
        match value {
            Value::Array(Array::String(texts)) => {
                part(&(texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| part(text.as_bytes()));
            }
            Value::Array(Array::F32(numbers)) => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                part(&bytes);
            }
            Value::Array(Array::I32(numbers)) => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                part(&bytes);
            }
            Value::String(text) => part(text.as_bytes()),
            // The rest are numbers and truths, and short.
            other => part(format!("{other:?}").as_bytes()),
        }
    }
    hex(&digest.finalize())
}

/// The SHA-256 of token ids, each four bytes, little-endian.
pub fn of_ids(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    hex(&Sha256::digest(bytes))
}
