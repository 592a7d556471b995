//! Encoders against golden vectors of independent computations, and against hostile files.

use super::*;
use crate::gguf::{Gguf, Metadata, TensorSpec, Value, Writer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    model: String,
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

fn cases(name: &str) -> Vec<Case> {
    let path = data().join("encoder").join(name);
    let text = std::fs::read_to_string(&path).expect("a golden file");
    serde_json::from_str(&text).expect("golden cases")
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

fn micro(name: &str) -> PathBuf {
    data().join("encoder").join(format!("{name}.gguf"))
}

fn options(isa: Isa, threads: usize) -> EncoderOptions {
    EncoderOptions { isa, threads }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The greatest distance of an element from the reference's.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let distances = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    distances.fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}

/// Elements are at most 1 in magnitude.
const MICRO_TOLERANCE: f32 = 2e-6;

#[test]
fn micro_models_have_the_vectors_of_an_independent_computation() {
    for name in ["micro-bert-mean", "micro-bert-cls"] {
        let encoder = Encoder::load(&micro(name), EncoderOptions::default()).expect("sound");
        let cases: Vec<Case> =
            cases("micro.json").into_iter().filter(|c| c.model == name).collect();
        assert!(cases.len() >= 6);
        for case in &cases {
            let found = &encoder.embed(&[&case.text]).expect("a vector")[0];
            let apart = distance(found, &case.vector);
            assert!(apart < MICRO_TOLERANCE, "{name} {:?}: {apart}", case.text);
            assert_eq!(encoder.tokens(&case.text).0, case.tokens, "{:?}", case.text);
            // The comparison tells texts, and a small error, apart.
            for other in cases.iter().filter(|other| other.text != case.text) {
                assert!(distance(found, &other.vector) > 100.0 * MICRO_TOLERANCE);
            }
            let mut wrong = found.clone();
            wrong[3] += 3.0 * MICRO_TOLERANCE;
            assert!(distance(&wrong, &case.vector) > MICRO_TOLERANCE);
        }
    }
}

/// A vector depends on its text alone: not on the others, the threads or the instruction set.
#[test]
fn vectors_have_the_same_bits_everywhere() {
    let cases = cases("micro.json");
    let texts: Vec<&str> = cases.iter().map(|case| &*case.text).collect();
    let reference = Encoder::load(&micro("micro-bert-mean"), options(Isa::SCALAR, 1));
    let reference = reference.expect("sound");
    let one = |text: &&str| reference.embed(&[text]).expect("a vector").remove(0);
    let alone: Vec<Vec<f32>> = texts.iter().map(one).collect();
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            let encoder = Encoder::load(&micro("micro-bert-mean"), options(isa, threads));
            let together = encoder.expect("sound").embed(&texts).expect("vectors");
            for (a, b) in alone.iter().flatten().zip(together.iter().flatten()) {
                assert_eq!(a.to_bits(), b.to_bits(), "{isa:?}, {threads} threads");
            }
        }
    }
    assert!(reference.embed(&[]).expect("no vectors").is_empty());
}

#[test]
fn digests_tell_files_apart() {
    let digest = |name| {
        let encoder = Encoder::load(&micro(name), EncoderOptions::default()).expect("sound");
        encoder.digest().to_owned()
    };
    let (mean, class) = (digest("micro-bert-mean"), digest("micro-bert-cls"));
    assert!(mean.starts_with("e1-") && mean.len() == 3 + 64);
    assert_ne!(mean, class);
}

/// A real model against Hugging Face's implementation, where `aios pull` has put it.
#[test]
fn the_real_model_has_the_published_vectors() {
    let set = |key: &str| std::env::var_os(key).map(PathBuf::from);
    let cache = || set("AIOS_CACHE_DIR").or_else(|| Some(set("XDG_CACHE_HOME")?.join("aios")));
    let home = || Some(set("HOME")?.join(".cache/aios"));
    let folder = set("AIOS_MODEL_DIR").or_else(|| Some(cache().or_else(home)?.join("models")));
    let path = folder.map(|folder| folder.join("all-minilm-l6-v2.gguf"));
    let Some(path) = path.filter(|path| path.exists()) else {
        eprintln!("not compared: fetch the model with `aios pull all-minilm-l6-v2`");
        return;
    };
    let encoder = Encoder::load(&path, EncoderOptions::default()).expect("sound");
    let cases = cases("minilm.json");
    assert!(cases.len() >= 20);
    let mut least = 1.0_f64;
    for case in &cases {
        let found = &encoder.embed(&[&case.text]).expect("a vector")[0];
        let cosine = cosine(found, &case.vector);
        assert!(cosine >= 0.9999, "{:?}: {cosine}", case.text);
        least = least.min(cosine);
        assert_eq!(encoder.tokens(&case.text).0, case.tokens, "{:?}", case.text);
    }
    println!("least cosine of {} texts: {least:.9}", cases.len());
    assert!(self::cosine(&cases[1].vector, &cases[2].vector) < 0.9999, "the bound tells apart");
}

/// The micro model after `edit` of its metadata and tensors.
fn edited(edit: impl FnOnce(&mut Metadata, &mut Vec<(TensorSpec, Vec<u8>)>)) -> String {
    let file = std::fs::read(micro("micro-bert-mean")).expect("a file");
    let gguf = Gguf::parse(&file).expect("sound");
    let mut metadata = gguf.metadata.clone();
    let data = |t: &crate::gguf::TensorInfo| t.data(&file).expect("its bytes").to_vec();
    let mut tensors: Vec<_> =
        gguf.tensors.iter().map(|tensor| (TensorSpec::from(tensor), data(tensor))).collect();
    edit(&mut metadata, &mut tensors);
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = Writer::new(Vec::new(), &metadata, &specs).expect("a header");
    for (spec, data) in &tensors {
        writer.tensor(&spec.name, data).expect("room");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("edited.gguf");
    std::fs::write(&path, writer.finish().expect("a file")).expect("room");
    match Encoder::load(&path, options(Isa::SCALAR, 1)) {
        Err(error) => error.to_string(),
        Ok(encoder) => match encoder.embed(&["the cat"]) {
            Err(error) => error.to_string(),
            Ok(vectors) => format!("{} vectors", vectors.len()),
        },
    }
}

#[test]
fn each_wrong_key_is_named() {
    assert_eq!(edited(|_, _| ()), "1 vectors");
    let cases: [(&str, Value, &str); 12] = [
        ("general.architecture", "llama".into(), "does not make embeddings"),
        ("bert.block_count", 0_u32.into(), "bert.block_count"),
        ("bert.block_count", u64::MAX.into(), "bert.block_count"),
        ("bert.block_count", 3_u32.into(), "blk.2.attn_q.weight is missing"),
        ("bert.block_count", 1_u32.into(), "blk.1.attn_q.weight is not part"),
        ("bert.attention.head_count", 7_u32.into(), "does not divide"),
        ("bert.context_length", 2_u32.into(), "below 3"),
        ("bert.context_length", 105_u32.into(), "position_embd.weight has shape"),
        ("bert.attention.layer_norm_epsilon", f32::NAN.into(), "not a positive number"),
        ("bert.attention.causal", true.into(), "one direction"),
        ("bert.pooling_type", 3_u32.into(), "neither mean"),
        ("bert.feed_forward_length", 71_u32.into(), "ffn_up.weight has shape"),
    ];
    for (key, value, expected) in cases {
        let said = edited(|metadata, _| metadata.set(key, value));
        assert!(said.contains(expected), "{key}: {said}");
    }
}

/// The index of a tensor.
fn at(tensors: &[(TensorSpec, Vec<u8>)], name: &str) -> usize {
    tensors.iter().position(|(spec, _)| spec.name == name).expect("a tensor of that name")
}

#[test]
fn each_wrong_tensor_is_named() {
    let missing = edited(|_, tensors| {
        let i = at(tensors, "token_types.weight");
        tensors.remove(i);
    });
    assert!(missing.contains("token_types.weight is missing"), "{missing}");
    let extra = edited(|_, tensors| {
        let mut copy = tensors[at(tensors, "blk.0.attn_q.bias")].clone();
        copy.0.name = "cls.weight".to_owned();
        tensors.push(copy);
    });
    assert!(extra.contains("cls.weight is not part"), "{extra}");
    let nan = f32::NAN.to_le_bytes();
    let norm = edited(|_, tensors| {
        let i = at(tensors, "token_embd_norm.bias");
        tensors[i].1[..4].copy_from_slice(&nan);
    });
    assert!(norm.contains("token_embd_norm.bias holds a number that is not finite"), "{norm}");
    // A matrix is not looked at when it is loaded; its effect is noticed.
    let matrix = edited(|_, tensors| {
        let i = at(tensors, "blk.1.attn_q.weight");
        tensors[i].1[..4].copy_from_slice(&nan);
    });
    assert!(matrix.contains("vector of text 0 is not finite"), "{matrix}");
}

/// The files of a sentence-transformers model that has no layers' worth of sense in it.
#[test]
fn what_cannot_be_converted_is_named() {
    let config =
        br#"{"model_type":"bert","hidden_act":"gelu","num_hidden_layers":1,"hidden_size":8,
        "intermediate_size":8,"num_attention_heads":1,"max_position_embeddings":8,
        "layer_norm_eps":1e-12}"#;
    let good = SentenceModel {
        name: "tiny",
        config,
        vocab: b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n",
        pooling: br#"{"pooling_mode_cls_token":false,"pooling_mode_mean_tokens":true}"#,
        sentence: br#"{"max_seq_length":8}"#,
        weights: b"\x02\0\0\0\0\0\0\0{}",
    };
    let roberta = String::from_utf8_lossy(config).replace("\"bert\"", "\"roberta\"");
    let cases: [(SentenceModel<'_>, &str); 7] = [
        (good, "no tensor embeddings.word_embeddings.weight"),
        (SentenceModel { config: b"{", ..good }, "config.json: "),
        (SentenceModel { config: roberta.as_bytes(), ..good }, "model_type is roberta"),
        (SentenceModel { vocab: b"\xff", ..good }, "not UTF-8"),
        (SentenceModel { vocab: b"[PAD]\n[UNK]\n[CLS]\n", ..good }, "no [SEP]"),
        (SentenceModel { weights: b"\xff\xff\xff\xff\xff\xff\xff\xff{}", ..good }, "safetensors: "),
        (
            SentenceModel {
                pooling: br#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":true}"#,
                ..good
            },
            "1_Pooling/config.json",
        ),
    ];
    for (files, expected) in cases {
        let error = files.write_gguf(Vec::new()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
