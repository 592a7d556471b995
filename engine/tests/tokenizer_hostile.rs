//! Metadata that nobody vouches for: each fault is one typed error, and what is accepted works.

use aios_engine::gguf::{GgufError, Metadata};
use aios_engine::tokenizer::{
    ParseSpecial, RenderSpecial, TOKEN_BYTES_MAX, Tokenizer, TokenizerError,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}

/// A small BPE tokenizer: `a`, `b`, `ab`, `aba`, a space and a control token.
fn bpe() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.pre", "gpt-2");
    metadata.set(TOKENS, strings(&["a", "b", "ab", "aba", "Ġ", "<eos>"]));
    metadata.set(TYPES, vec![1, 1, 1, 1, 1, 3]);
    metadata.set(MERGES, strings(&["a b", "ab a"]));
    metadata.set("tokenizer.ggml.eos_token_id", 5u32);
    metadata
}

/// A small SentencePiece tokenizer: `<unk>`, `<s>`, `▁`, `a`, `▁a`, `aa` and the byte `<0x0A>`.
fn spm() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set(TOKENS, strings(&["<unk>", "<s>", "▁", "a", "▁a", "aa", "<0x0A>"]));
    metadata.set(TYPES, vec![2, 3, 1, 1, 1, 1, 6]);
    metadata.set(SCORES, vec![0.0f32, 0.0, -1.0, -2.0, -3.0, -4.0, 0.0]);
    metadata.set("tokenizer.ggml.bos_token_id", 1u32);
    metadata.set("tokenizer.ggml.unknown_token_id", 0u32);
    metadata
}

fn error(mut metadata: Metadata, change: impl FnOnce(&mut Metadata)) -> TokenizerError {
    Tokenizer::from_metadata(&metadata).expect("the metadata is fine before it is changed");
    change(&mut metadata);
    Tokenizer::from_metadata(&metadata).expect_err("the change must be found")
}

#[test]
fn unknown_kinds_are_named() {
    let unknown = error(bpe(), |m| m.set("tokenizer.ggml.model", "bert"));
    assert_eq!(unknown, TokenizerError::UnknownModel { model: "bert".into() });
    let unknown = error(bpe(), |m| m.set("tokenizer.ggml.pre", "tekken\u{1b}[2J"));
    assert_eq!(unknown, TokenizerError::UnknownPre { pre: "tekken\u{1b}[2J".into() });
    assert!(!unknown.to_string().contains('\u{1b}'), "{unknown}");
}

#[test]
fn missing_and_mistyped_keys_are_named() {
    for (full, keys) in [
        (bpe(), ["tokenizer.ggml.model", TOKENS, TYPES, "tokenizer.ggml.pre", MERGES].as_slice()),
        (spm(), &["tokenizer.ggml.model", TOKENS, TYPES, SCORES]),
    ] {
        for &key in keys {
            let others = full.iter().filter(|entry| entry.0 != key);
            let others = others.map(|(k, value)| (k.to_owned(), value.clone())).collect();
            let missing = Tokenizer::from_metadata(&Metadata::from_entries(others).unwrap());
            let expected = GgufError::MissingKey { key: key.into() };
            assert_eq!(missing.unwrap_err(), TokenizerError::Metadata(expected));
            let mistyped = error(full.clone(), |m| m.set(key, 1.5f64));
            assert!(mistyped.to_string().contains(key), "{mistyped}");
        }
    }
    let mistyped = error(bpe(), |m| m.set("tokenizer.ggml.add_bos_token", 1u32));
    assert!(mistyped.to_string().contains("add_bos_token"), "{mistyped}");
}

#[test]
fn arrays_must_fit_the_vocabulary() {
    for (full, key) in [(bpe(), TYPES), (spm(), TYPES)] {
        let short = error(full, |m| m.set(key, vec![1, 1]));
        assert!(matches!(short, TokenizerError::ArrayLength { found: 2, .. }), "{short}");
    }
    let long = error(spm(), |m| m.set(SCORES, vec![0.0f32; 8]));
    let expected = TokenizerError::ArrayLength { key: SCORES, expected: 7, found: 8 };
    assert_eq!(long, expected);
    let empty = error(bpe(), |m| m.set(TOKENS, Vec::<String>::new()));
    assert_eq!(empty, TokenizerError::VocabularySize { len: 0 });
}

#[test]
fn bad_tokens_are_named() {
    let twice = error(bpe(), |m| m.set(TOKENS, strings(&["a", "b", "ab", "aba", "b", "<eos>"])));
    let spelling = "b".to_owned();
    assert_eq!(twice, TokenizerError::DuplicateToken { first: 1, second: 4, spelling });

    let unknown = error(bpe(), |m| m.set(TYPES, vec![1, 1, 7, 1, 1, 3]));
    assert_eq!(unknown, TokenizerError::TokenType { id: 2, code: 7 });
    let negative = error(bpe(), |m| m.set(TYPES, vec![1, 1, 1, 1, 1, i32::MIN]));
    assert_eq!(negative, TokenizerError::TokenType { id: 5, code: i32::MIN });

    let nan = error(spm(), |m| m.set(SCORES, vec![0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]));
    assert_eq!(nan, TokenizerError::Score { id: 4 });

    for spelling in ["<0x0>", "<0xG0>", "0x0A", "<0x+1>", "<0x0A>a", "<0xé>"] {
        let tokens = strings(&["<unk>", "<s>", "▁", "a", "▁a", "aa", spelling]);
        let byte = error(spm(), |m| m.set(TOKENS, tokens));
        assert_eq!(byte, TokenizerError::ByteToken { id: 6, spelling: spelling.into() });
    }

    let long = "x".repeat(TOKEN_BYTES_MAX + 1);
    let long = error(bpe(), |m| m.set(TOKENS, strings(&["a", "b", "ab", "aba", "Ġ", &long])));
    assert!(matches!(long, TokenizerError::TokenTooLong { id: 5, .. }), "{long}");
}

#[test]
fn ids_must_be_in_the_vocabulary() {
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", 7u64),
        ("tokenizer.ggml.eos_token_id", 7),
        ("tokenizer.ggml.eot_token_id", u64::from(u32::MAX)),
        ("tokenizer.ggml.unknown_token_id", 1 << 32),
        ("tokenizer.ggml.fim_pad_token_id", u64::MAX),
    ] {
        let outside = error(spm(), |m| m.set(key, id));
        assert_eq!(outside, TokenizerError::SpecialId { key, id, len: 7 });
    }
    let missing = error(bpe(), |m| m.set("tokenizer.ggml.add_bos_token", true));
    assert!(matches!(missing, TokenizerError::NoSpecialId { .. }), "{missing}");
}

#[test]
fn bytes_need_a_fallback() {
    let entries = spm().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut metadata = Metadata::from_entries(entries).unwrap();
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.encode("é\na", ParseSpecial::No), [2, 0, 0, 6, 3]);

    metadata = without(&metadata, "tokenizer.ggml.unknown_token_id");
    let none = Tokenizer::from_metadata(&metadata).unwrap_err();
    assert_eq!(none, TokenizerError::NoByteFallback { byte: 0 });
}

fn without(metadata: &Metadata, key: &str) -> Metadata {
    let others = metadata.iter().filter(|entry| entry.0 != key);
    Metadata::from_entries(others.map(|(k, value)| (k.to_owned(), value.clone())).collect())
        .unwrap()
}

#[test]
fn bad_merges_are_named() {
    for merge in ["", "a", " a", "ab", "a ", "  "] {
        let bad = error(bpe(), |m| m.set(MERGES, strings(&["a b", merge])));
        assert_eq!(bad, TokenizerError::Merge { index: 1, merge: merge.into() });
    }
    for (merge, piece) in [("b a", "ba"), ("a c", "ac"), ("a  b", "a b")] {
        let bad = error(bpe(), |m| m.set(MERGES, strings(&["a b", merge])));
        assert_eq!(bad, TokenizerError::MergePiece { index: 1, piece: piece.into() });
    }
    let tokens = strings(&["a", "b", "ab", "aba", "Ġ", "ca"]);
    let bad = error(bpe(), |m| {
        m.set(TOKENS, tokens);
        m.set(MERGES, strings(&["c a"]));
    });
    assert_eq!(bad, TokenizerError::MergePiece { index: 0, piece: "c".into() });
}

#[test]
fn the_first_of_two_equal_merges_counts() {
    let encode = |merges: &[&str]| {
        let mut metadata = bpe();
        metadata.set(TOKENS, strings(&["a", "b", "ab", "ba", "Ġ", "<eos>"]));
        metadata.set(MERGES, strings(merges));
        Tokenizer::from_metadata(&metadata).unwrap().encode("aba", ParseSpecial::No)
    };
    assert_eq!(encode(&["a b", "b a"]), [2, 0]);
    assert_eq!(encode(&["b a", "a b"]), [0, 3]);
    assert_eq!(encode(&["a b", "b a", "a b"]), [2, 0]);
}

#[test]
fn an_empty_spelling_gets_one_that_names_its_id() {
    let mut metadata = bpe();
    metadata.set(TOKENS, strings(&["a", "b", "ab", "aba", "", "<eos>"]));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.spelling(4).unwrap(), "[EMPTY_4]");
}

#[test]
fn control_looking_tokens_become_control_tokens() {
    let mut metadata = bpe();
    metadata.set(TOKENS, strings(&["a", "b", "ab", "aba", "<|im_end|>", "<eos>"]));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.eot(), Some(4));
    assert_eq!(tokenizer.end_of_generation_ids(), [4, 5]);
    assert_eq!(tokenizer.encode("a<|im_end|>", ParseSpecial::Yes), [0, 4]);
    assert_eq!(tokenizer.token_bytes(4, RenderSpecial::No).unwrap(), b"");
    assert_eq!(tokenizer.token_bytes(4, RenderSpecial::Yes).unwrap(), b"<|im_end|>");
    assert_eq!(tokenizer.control_spellings().collect::<Vec<_>>(), ["<|im_end|>", "<eos>"]);
}

#[test]
fn text_is_not_merged_into_control_unknown_or_byte_tokens() {
    let mut metadata = spm();
    metadata.set(TOKENS, strings(&["<unk>", "ab", "a", "b", "ba", "<0x41>", "<0", "x41>"]));
    metadata.set(TYPES, vec![2, 3, 1, 1, 1, 6, 1, 1]);
    metadata.set(SCORES, vec![0.0f32; 8]);
    metadata.set("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.encode("ab", ParseSpecial::No), [2, 3]);
    assert_eq!(tokenizer.encode("ab", ParseSpecial::Yes), [1]);
    assert!(!tokenizer.encode("<0x41>", ParseSpecial::Yes).contains(&5));
}

#[test]
fn user_defined_tokens_are_always_found() {
    let mut metadata = bpe();
    metadata.set(TOKENS, strings(&["a", "b", "ab", "aba", "<tool>", "<eos>"]));
    metadata.set(TYPES, vec![1, 1, 1, 1, 4, 3]);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    for special in [ParseSpecial::Yes, ParseSpecial::No] {
        assert_eq!(tokenizer.encode("a<tool>b", special), [0, 4, 1]);
    }
    assert_eq!(tokenizer.token_bytes(4, RenderSpecial::No).unwrap(), b"<tool>");
}

/// Small vocabularies over few characters, so that spellings nest, overlap and collide.
fn random_metadata() -> impl Strategy<Value = Metadata> {
    let tokens = prop::collection::vec("[ab▁Ġ<>0x]{0,4}", 1..24);
    let numbers = prop::collection::vec((-1..8i32, any::<f32>()), 1..24);
    let merges = prop::collection::vec("[abĠ]{1,2} ?[abĠ]{1,2}", 0..16);
    let id = prop_oneof![0..24u64, any::<u64>()];
    let pre = prop::sample::select(&["gpt-2", "default", "falcon", "llama-bpe", "qwen2", "x"][..]);
    (tokens, numbers, merges, id, pre, any::<[bool; 4]>()).prop_map(
        |(tokens, numbers, merges, id, pre, [spm, full, typed, flag])| {
            let mut metadata = Metadata::new();
            let len = if full { tokens.len() } else { numbers.len() };
            let cycle = numbers.iter().cycle().take(len);
            let code = |&(code, _): &(i32, f32)| if typed { code.clamp(0, 5) } else { code };
            metadata.set("tokenizer.ggml.model", if spm { "llama" } else { "gpt2" });
            metadata.set("tokenizer.ggml.pre", pre);
            metadata.set(TYPES, cycle.clone().map(code).collect::<Vec<_>>());
            metadata.set(SCORES, cycle.map(|number| number.1).collect::<Vec<_>>());
            metadata.set(TOKENS, tokens);
            metadata.set(MERGES, merges);
            metadata.set("tokenizer.ggml.unknown_token_id", id % 4);
            metadata.set("tokenizer.ggml.bos_token_id", if flag { 0 } else { id });
            metadata.set("general.name", if flag { "phi-3" } else { "x" });
            metadata
        },
    )
}

#[test]
fn whatever_is_accepted_works() {
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() },
        proptest::test_runner::TestRng::deterministic_rng(Default::default()),
    );
    let accepted = std::cell::Cell::new(0);
    runner
        .run(&(random_metadata(), "[ab ▁Ġ<>0xé\n1']{0,40}"), |(metadata, text)| {
            let Ok(tokenizer) = Tokenizer::from_metadata(&metadata) else { return Ok(()) };
            accepted.set(accepted.get() + 1);
            for special in [ParseSpecial::Yes, ParseSpecial::No] {
                let ids = tokenizer.encode_framed(&text, special);
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
                tokenizer.decode(&ids, RenderSpecial::Yes).unwrap();
            }
            Ok(())
        })
        .unwrap();
    assert!(accepted.get() > 1000, "only {} vocabularies were accepted", accepted.get());
}
