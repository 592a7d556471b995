//! Properties that hold for every text: round trips, streaming, plain text staying plain, and the
//! time that long texts take.

mod tokenizer_common;

use std::time::{Duration, Instant};

use aios_engine::tokenizer::{Decoder, ParseSpecial, RenderSpecial, Tokenizer, TokenizerError};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokenizer_common::{all_vocabs, real_model, vocab};

/// A long text, and what it may take: far more than it does, for slow machines. What the test must
/// catch is quadratic time, which would be minutes.
const LONG_TEXT_BYTES: usize = 1 << 18;
const LONG_TEXT_TIME_MAX: Duration = Duration::from_secs(10);

/// Texts of all kinds of characters, with some that matter to a tokenizer more frequent.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => "[ \t\r\n]{1,4}",
        3 => "[a-zA-Z']{1,9}",
        2 => "[0-9.,]{1,6}",
        2 => "\\PC{1,5}",
        2 => any::<char>().prop_map(String::from),
        1 => "<\\|?(im_end|eot_id|end|s|/s|unk|0x0A|user)\\|?>",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn for_all_texts(check: impl Fn(&str) -> Result<(), TestCaseError>) {
    TestRunner::deterministic().run(&texts(), |text| check(&text)).unwrap();
}

#[test]
fn bpe_gives_back_every_text() {
    // These vocabularies have a token for each byte; falcon and smollm2 lack some.
    let mut tokenizers = vec![vocab("gpt-2"), vocab("llama-bpe")];
    tokenizers.extend(real_model("qwen2.5-coder-0.5b-instruct"));
    for tokenizer in &tokenizers {
        for_all_texts(|text| {
            for special in [ParseSpecial::Yes, ParseSpecial::No] {
                let ids = tokenizer.encode(text, special);
                let bytes = tokenizer.decode(&ids, RenderSpecial::Yes).unwrap();
                prop_assert_eq!(bytes, text.as_bytes());
            }
            Ok(())
        });
    }
}

#[test]
fn sentencepiece_gives_back_every_text_without_the_character_for_spaces() {
    let mut tokenizers = vec![vocab("llama-spm"), vocab("phi-3")];
    tokenizers.extend(real_model("gemma-3-270m"));
    for tokenizer in &tokenizers {
        for_all_texts(|text| {
            let text = text.replace('▁', " ");
            let ids = tokenizer.encode(&text, ParseSpecial::No);
            let bytes = tokenizer.decode(&ids, RenderSpecial::Yes).unwrap();
            prop_assert_eq!(bytes, text.as_bytes());
            Ok(())
        });
    }
}

#[test]
fn bytes_without_a_token_are_left_out_and_nothing_else() {
    let mut tokenizers = vec![vocab("falcon")];
    tokenizers.extend(real_model("smollm2-135m-instruct"));
    for tokenizer in &tokenizers {
        let has_token = |byte: &u8| {
            let ids = tokenizer.encode(&String::from_utf8_lossy(&[*byte]), ParseSpecial::No);
            !byte.is_ascii() || !ids.is_empty()
        };
        let missing: Vec<u8> = (0..0x80).filter(|byte| !has_token(byte)).collect();
        assert!(!missing.is_empty() && missing.iter().all(u8::is_ascii_control), "{missing:?}");
        for_all_texts(|text| {
            // Above ASCII the lead bytes F1 and F2, of unassigned and rare planes, are missing.
            let text: String = text.chars().filter(|&c| c < '\u{40000}').collect();
            let ids = tokenizer.encode(&text, ParseSpecial::Yes);
            let bytes = tokenizer.decode(&ids, RenderSpecial::Yes).unwrap();
            let kept: Vec<u8> = text.bytes().filter(|byte| !missing.contains(byte)).collect();
            prop_assert_eq!(bytes, kept);
            Ok(())
        });
    }
}

#[test]
fn streaming_equals_decoding_at_once() {
    for (name, tokenizer) in all_vocabs() {
        let ids = prop::collection::vec(0..tokenizer.vocab_len() as u32, 0..40);
        let mixed = (texts(), ids).prop_map(|(text, random)| {
            // Random ids between those of a text start and break off characters in the middle.
            let ids = tokenizer.encode(&text, ParseSpecial::Yes);
            let half = ids.len() / 2;
            [&ids[..half], &random[..], &ids[half..]].concat()
        });
        TestRunner::deterministic()
            .run(&mixed, |ids| {
                for special in [RenderSpecial::Yes, RenderSpecial::No] {
                    let bytes = tokenizer.decode(&ids, special).unwrap();
                    let mut decoder = Decoder::at_start(&tokenizer, special);
                    let mut text = String::new();
                    for &id in &ids {
                        text += &decoder.push(id).unwrap();
                    }
                    text += &decoder.finish();
                    prop_assert_eq!(text, String::from_utf8_lossy(&bytes), "{}", name);
                }
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn streaming_never_shows_part_of_a_character() {
    let tokenizer = vocab("gpt-2");
    let ids = tokenizer.encode("🤗", ParseSpecial::No);
    assert!(ids.len() > 1);
    let mut decoder = Decoder::new(&tokenizer, RenderSpecial::No);
    let (last, first) = ids.split_last().unwrap();
    for &id in first {
        assert_eq!(decoder.push(id).unwrap(), "");
        assert!(decoder.is_holding());
    }
    assert_eq!(decoder.push(*last).unwrap(), "🤗");
    assert_eq!(decoder.finish(), "");

    decoder.push(ids[0]).unwrap();
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert!(!decoder.is_holding());
}

#[test]
fn a_continuation_keeps_its_leading_space() {
    let tokenizer = vocab("llama-spm");
    let ids = tokenizer.encode("hello", ParseSpecial::No);
    assert_eq!(Decoder::new(&tokenizer, RenderSpecial::No).push(ids[0]).unwrap(), " hello");
    assert_eq!(Decoder::at_start(&tokenizer, RenderSpecial::No).push(ids[0]).unwrap(), "hello");
    assert_eq!(tokenizer.token_bytes(ids[0], RenderSpecial::No).unwrap(), b" hello");
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error() {
    let tokenizer = vocab("gpt-2");
    for id in [tokenizer.vocab_len() as u32, u32::MAX] {
        let expected = TokenizerError::TokenId { id, len: 50257 };
        assert_eq!(tokenizer.token_bytes(id, RenderSpecial::Yes), Err(expected.clone()));
        assert_eq!(tokenizer.decode(&[0, id], RenderSpecial::Yes), Err(expected.clone()));
        assert_eq!(tokenizer.spelling(id), Err(expected.clone()));
        assert_eq!(Decoder::new(&tokenizer, RenderSpecial::No).push(id), Err(expected));
        assert!(!tokenizer.is_end_of_generation(id));
    }
}

#[test]
fn plain_text_never_becomes_a_control_token() {
    for (name, tokenizer) in all_vocabs() {
        let hidden = |id| tokenizer.token_bytes(id, RenderSpecial::No).unwrap().is_empty();
        for spelling in tokenizer.control_spellings() {
            let id = tokenizer.find(spelling).unwrap();
            assert_eq!(tokenizer.encode(spelling, ParseSpecial::Yes), [id], "{name}: {spelling}");
            if hidden(id) {
                let ids = tokenizer.encode(spelling, ParseSpecial::No);
                assert!(!ids.into_iter().any(hidden), "{name}: {spelling}");
            }
        }
    }
}

#[test]
fn long_texts_take_no_quadratic_time() {
    let units = ["a", " ", "\n", "ab ", "<|im_end|>", " \n"];
    for (name, tokenizer) in all_vocabs() {
        for unit in units {
            let text = unit.repeat(LONG_TEXT_BYTES / unit.len());
            let start = Instant::now();
            let ids = tokenizer.encode(&text, ParseSpecial::Yes);
            let taken = start.elapsed();
            assert!(taken < LONG_TEXT_TIME_MAX, "{name}, {unit:?}: {taken:?}");
            if !name.starts_with("phi") {
                let bytes = tokenizer.decode(&ids, RenderSpecial::Yes).unwrap();
                assert!(bytes == text.as_bytes(), "{name}, {unit:?}");
            }
        }
    }
}

#[test]
fn end_of_generation_is_found_by_key_and_by_spelling() {
    let ends = |tokenizer: &Tokenizer| -> Vec<String> {
        let spelling = |&id: &u32| tokenizer.spelling(id).unwrap().to_owned();
        tokenizer.end_of_generation_ids().iter().map(spelling).collect()
    };
    assert_eq!(ends(&vocab("gpt-2")), ["<|endoftext|>"]);
    assert_eq!(ends(&vocab("falcon")), ["<|endoftext|>"]);
    assert_eq!(ends(&vocab("llama-bpe")), ["<|end_of_text|>", "<|eot_id|>"]);
    assert_eq!(ends(&vocab("llama-spm")), ["</s>"]);
    assert_eq!(ends(&vocab("phi-3")), ["</s>", "<|endoftext|>", "<|end|>"]);
    assert_eq!(vocab("llama-bpe").eot(), vocab("llama-bpe").find("<|eot_id|>"));
    if let Some(smollm2) = real_model("smollm2-135m-instruct") {
        assert_eq!(ends(&smollm2), ["<|endoftext|>", "<|im_end|>", "<reponame>"]);
        assert_eq!(smollm2.eot(), smollm2.find("<|im_end|>"));
    }
    if let Some(gemma3) = real_model("gemma-3-270m") {
        // The last one is HTML in this vocabulary; the reference ends a generation there, too.
        assert_eq!(ends(&gemma3), ["<eos>", "<end_of_turn>", "</s>"]);
    }
}

#[test]
fn framing_follows_the_file() {
    let spm = vocab("llama-spm");
    assert_eq!(spm.encode_framed("hi", ParseSpecial::No), [1, 7251]);
    assert_eq!((spm.add_bos(), spm.add_eos()), (true, false));
    let llama3 = vocab("llama-bpe");
    let ids = llama3.encode_framed("", ParseSpecial::No);
    assert_eq!(ids, [128_000], "llama-bpe adds BOS unless the file says otherwise");
    assert!(vocab("gpt-2").encode_framed("", ParseSpecial::No).is_empty());
}
