//! WordPiece against golden ids, and against vocabularies that are not sound.

use super::*;
use crate::gguf::Value;
use proptest::prelude::*;

/// A vocabulary as a file has it; the first five tokens are the special ones.
fn metadata(pieces: &[&str]) -> Metadata {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let spelling = |piece: &&str| match piece.strip_prefix("##") {
        Some(rest) => rest.to_owned(),
        None => format!("{WORD_START}{piece}"),
    };
    let tokens: Vec<String> =
        special.iter().map(|&token| token.to_owned()).chain(pieces.iter().map(spelling)).collect();
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < 5 { 3 } else { 1 }).collect();
    let mut metadata = Metadata::new();
    metadata.set(MODEL_KEY, WORDPIECE);
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.token_type", types);
    for (key, id) in [(UNKNOWN_KEY, 1_u32), (CLASS_KEY, 2), (SEPARATOR_KEY, 3)] {
        metadata.set(key, id);
    }
    metadata
}

fn golden_tokenizer() -> WordPiece {
    let vocab = include_str!("../../../../testdata/tokenizer/bert-vocab.txt");
    let lines: Vec<&str> = vocab.lines().collect();
    let mut metadata = metadata(&[]);
    let special = |token: &str| token.starts_with('[') && token.len() > 1;
    let spelling = |token: &&str| match token.strip_prefix("##") {
        _ if special(token) => (*token).to_owned(),
        Some(rest) => rest.to_owned(),
        None => format!("{WORD_START}{token}"),
    };
    metadata.set("tokenizer.ggml.tokens", lines.iter().map(spelling).collect::<Vec<_>>());
    let types: Vec<i32> = lines.iter().map(|token| if special(token) { 3 } else { 1 }).collect();
    metadata.set("tokenizer.ggml.token_type", types);
    for (key, id) in [(UNKNOWN_KEY, 100_u32), (CLASS_KEY, 101), (SEPARATOR_KEY, 102)] {
        metadata.set(key, id);
    }
    WordPiece::from_metadata(&metadata).expect("a sound vocabulary")
}

#[test]
fn ids_are_those_of_the_reference() {
    let tokenizer = golden_tokenizer();
    let golden = include_str!("../../../../testdata/tokenizer/wordpiece.jsonl");
    let mut texts = 0;
    for line in golden.lines().skip(1) {
        let case: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = case["text"].as_str().expect("a text");
        let (ids, whole) = tokenizer.encode(text, usize::MAX);
        assert_eq!(serde_json::json!(ids), case["ids"], "{text:?}");
        assert!(whole);
        texts += 1;
    }
    assert!(texts >= 60, "{texts}");
}

#[test]
fn the_longest_piece_wins_and_a_rest_makes_the_word_unknown() {
    let pieces = ["un", "unable", "##aff", "##able", "##a", "a", "##b"];
    let tokenizer = WordPiece::from_metadata(&metadata(&pieces)).expect("a sound vocabulary");
    let ids = |text: &str| tokenizer.encode(text, 100).0;
    assert_eq!(ids("unaffable unable"), [2, 5, 7, 8, 6, 3]);
    assert_eq!(ids("unaffx a"), [2, 1, 10, 3]);
    // A control token's spelling is no piece.
    assert_eq!(ids("[CLS]"), [2, 1, 1, 1, 3]);
}

#[test]
fn a_long_text_is_cut_and_says_so() {
    let tokenizer = WordPiece::from_metadata(&metadata(&["a", "##a"])).expect("sound");
    assert_eq!(tokenizer.encode("a a", 4), (vec![2, 5, 5, 3], true));
    assert_eq!(tokenizer.encode("a a a", 4), (vec![2, 5, 5, 3], false));
    assert_eq!(tokenizer.encode("aaaaaa", 4), (vec![2, 5, 6, 3], false));
    assert_eq!(tokenizer.encode("", 3), (vec![2, 3], true));
    // What is cut off costs nothing.
    assert_eq!(tokenizer.encode(&"a ".repeat(10_000_000), 3), (vec![2, 5, 3], false));
}

#[test]
fn what_is_not_sound_is_named() {
    let cases: [(&str, Value, &str); 6] = [
        (MODEL_KEY, "gpt2".into(), "need \"bert\""),
        (UNKNOWN_KEY, 9_u32.into(), "unknown_token_id is 9"),
        (SEPARATOR_KEY, (-1_i32).into(), "seperator_token_id"),
        (CLASS_KEY, "x".into(), "cls_token_id"),
        ("tokenizer.ggml.token_type", vec![1_i32].into(), "1 entries"),
        ("tokenizer.ggml.tokens", vec!["a".to_owned(); 6].into(), "both spelled"),
    ];
    for (key, value, expected) in cases {
        let mut metadata = metadata(&["a"]);
        metadata.set(key, value);
        let error = WordPiece::from_metadata(&metadata).expect_err(key).to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
}

proptest! {
    /// Any text has ids of the vocabulary, no more than were asked for, in its frame.
    #[test]
    fn every_text_has_ids(text in ".{0,200}", most in 3_usize..40) {
        let pieces = ["a", "b", "##a", "##b", "##c", "e", "1", "."];
        let tokenizer = WordPiece::from_metadata(&metadata(&pieces)).expect("sound");
        let (ids, whole) = tokenizer.encode(&text, most);
        prop_assert!(ids.len() >= 2 && ids.len() <= most);
        prop_assert!(ids[0] == 2 && ids[ids.len() - 1] == 3);
        prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_len()));
        let (all, _) = tokenizer.encode(&text, usize::MAX);
        prop_assert_eq!(whole, all.len() <= most);
        prop_assert_eq!(&ids[..ids.len() - 1], &all[..ids.len() - 1]);
    }
}
