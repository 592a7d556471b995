//! The ids of a collection of awkward texts, as llama.cpp gives them (SPEC.md, T1).

mod tokenizer_common;

use aios_engine::tokenizer::{ParseSpecial, RenderSpecial, Tokenizer};
use tokenizer_common::{VOCABS, golden, real_model, vocab};

/// Checks every line of the golden file `name`, and that each text comes back from its ids, but for
/// the texts in `lossy`.
fn check(name: &str, tokenizer: &Tokenizer, lossy: &[&str]) {
    let lines = golden(name);
    assert!(lines.len() > 50, "{name}: only {} lines", lines.len());
    let mut lost = Vec::new();
    for line in &lines {
        let ids = tokenizer.encode(&line.text, ParseSpecial::Yes);
        assert_eq!(ids, line.ids, "{name}: {:?}", line.text);
        let text = tokenizer.decode(&ids, RenderSpecial::Yes).unwrap();
        if text != line.text.as_bytes() {
            lost.push(line.text.as_str());
        }
    }
    assert_eq!(lost, lossy, "{name}: texts that do not survive the round trip");
}

#[test]
fn vocabulary_files_agree_id_for_id() {
    for name in VOCABS {
        // Phi-3's special tokens swallow the white space after them (SPEC.md, T6).
        let lossy: &[&str] = match name {
            "phi-3" => &["<|user|>\nhi<|end|>\n<|assistant|>\n"],
            _ => &[],
        };
        check(name, &vocab(name), lossy);
    }
}

#[test]
fn smollm2_agrees_id_for_id() {
    if let Some(tokenizer) = real_model("smollm2-135m-instruct") {
        check("smollm2", &tokenizer, &[]);
    }
}

#[test]
fn gemma3_agrees_id_for_id() {
    if let Some(tokenizer) = real_model("gemma-3-270m") {
        check("gemma3", &tokenizer, &[]);
    }
}

#[test]
fn qwen2_agrees_id_for_id() {
    if let Some(tokenizer) = real_model("qwen2.5-coder-0.5b-instruct") {
        check("qwen2", &tokenizer, &[]);
    }
}
