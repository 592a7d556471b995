//! The logits against a peer's and against an independent computation in f32 (SPEC.md, N10).
#![allow(clippy::disallowed_methods, reason = "the geometric mean takes std's logarithm")]

use aios_engine::{Executor, ExecutorOptions, Model, Want, argmax};
use aios_kernels::CacheType;
use aios_residency::Phase;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Deserialize)]
struct Position {
    top: Vec<(u32, f64)>,
}

#[derive(Deserialize)]
struct Run {
    positions: Vec<Position>,
    greedy: Vec<(u32, f64)>,
}

#[derive(Deserialize)]
struct Case {
    case: String,
    ids: Vec<u32>,
    peer_int8: Run,
    exact_f32: Option<Run>,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

fn cases(name: &str) -> Vec<Case> {
    let path = testdata().join("logits").join(format!("{name}.jsonl"));
    let text = std::fs::read_to_string(&path).expect("golden logits");
    text.lines().map(|line| serde_json::from_str(line).expect("a golden case")).collect()
}

/// All prompt positions' logits, and greedy ids.
fn run(model: &Arc<Model>, case: &Case, exact: bool) -> (Vec<Vec<f32>>, Vec<u32>) {
    let steps = case.peer_int8.greedy.len();
    let mut options = ExecutorOptions::new(case.ids.len() + steps);
    options.exact = exact;
    if exact {
        (options.cache_k, options.cache_v) = (CacheType::F32, CacheType::F32);
    }
    let mut executor = Executor::new(Arc::clone(model), options).expect("an executor");
    let mut rows = Vec::new();
    let mut sink = |_: usize, row: &[f32]| {
        rows.push(row.to_vec());
        Ok(())
    };
    executor.forward(&case.ids, Phase::Prefill, Want::All, &mut sink).expect("a pass");
    let mut next = argmax(rows.last().expect("a position")).0;
    let mut greedy = vec![next];
    while greedy.len() < steps {
        let mut sink = |_: usize, row: &[f32]| {
            next = argmax(row).0;
            Ok(())
        };
        let last = *greedy.last().expect("a token");
        executor.forward(&[last], Phase::Decode, Want::Last, &mut sink).expect("a pass");
        greedy.push(next);
    }
    (rows, greedy)
}

/// Sum and count of |ours − exact| and of |peer − exact| over the exact top three.
fn errors(rows: &[Vec<f32>], case: &Case) -> ([f64; 2], usize) {
    let exact = case.exact_f32.as_ref().expect("exact logits");
    let (mut sums, mut count) = ([0.0; 2], 0);
    for ((row, exact), peer) in rows.iter().zip(&exact.positions).zip(&case.peer_int8.positions) {
        for &(id, logit) in exact.top.iter().take(3) {
            let Some((_, peer)) = peer.top.iter().find(|entry| entry.0 == id) else { continue };
            sums[0] += (f64::from(row[id as usize]) - logit).abs();
            sums[1] += (peer - logit).abs();
            count += 1;
        }
    }
    (sums, count)
}

/// Greedy ids must agree up to the first step whose margin is below `margin`.
fn check_greedy(name: &str, case: &str, ours: &[u32], reference: &[(u32, f64)], margin: f64) {
    for (step, (our, (id, gap))) in ours.iter().zip(reference).enumerate() {
        if *gap < margin {
            return;
        }
        assert_eq!(our, id, "{name} {case}: greedy step {step}, margin {gap}");
    }
}

const MICRO: [&str; 8] = [
    "micro-falcon",
    "micro-falcon-odd",
    "micro-falcon40",
    "micro-gemma3",
    "micro-llama",
    "micro-phi3",
    "micro-qwen2",
    "micro-qwen3",
];

fn micro(name: &str) -> Arc<Model> {
    let path = testdata().join("models").join(format!("{name}-q4km.gguf"));
    Model::load(&path).expect("a micro model")
}

/// Our error over the peer's, in one file.
fn ratio(name: &str, model: &Arc<Model>) -> f64 {
    let (mut sums, mut total) = ([0.0; 2], 0);
    for case in cases(name) {
        let (rows, greedy) = run(model, &case, false);
        match &case.exact_f32 {
            Some(exact) => {
                let (sum, count) = errors(&rows, &case);
                sums = [sums[0] + sum[0], sums[1] + sum[1]];
                total += count;
                check_greedy(name, &case.case, &greedy, &exact.greedy, 0.5);
            }
            None => check_greedy(name, &case.case, &greedy, &case.peer_int8.greedy, 1.0),
        }
    }
    if total > 0 {
        println!(
            "{name:20} ours {:.5}  peer {:.5}  ratio {:.3}",
            sums[0] / total as f64,
            sums[1] / total as f64,
            sums[0] / sums[1]
        );
    }
    sums[0] / sums[1]
}

#[test]
fn micro_models_are_as_close_to_exact_as_the_peer() {
    let ratios = MICRO.map(|name| (name, ratio(name, &micro(name))));
    for (name, ratio) in ratios {
        assert!(ratio <= 1.20, "{name}: {ratio}");
    }
    let mean = ratios.iter().map(|(_, ratio)| ratio.ln()).sum::<f64>() / ratios.len() as f64;
    println!("geometric mean {:.3}", mean.exp());
    assert!(mean.exp() <= 1.05, "geometric mean {}", mean.exp());
}

#[test]
fn exact_mode_is_exact_on_micro_models() {
    for name in MICRO {
        let model = micro(name);
        for case in cases(name) {
            let (rows, _) = run(&model, &case, true);
            let exact = case.exact_f32.as_ref().expect("exact logits");
            for (position, (row, exact)) in rows.iter().zip(&exact.positions).enumerate() {
                for &(id, logit) in &exact.top {
                    let error = (f64::from(row[id as usize]) - logit).abs();
                    assert!(error < 2e-3, "{name} {} {position} {id}: {error}", case.case);
                }
            }
        }
    }
}

/// A real model of the catalogue, from where `aios pull` puts it.
fn real(name: &str) -> Option<Arc<Model>> {
    let set = |key: &str| std::env::var_os(key).map(PathBuf::from);
    let cache = || set("AIOS_CACHE_DIR").or_else(|| Some(set("XDG_CACHE_HOME")?.join("aios")));
    let home = || Some(set("HOME")?.join(".cache/aios"));
    let folder = set("AIOS_MODEL_DIR").or_else(|| Some(cache().or_else(home)?.join("models")))?;
    let path = folder.join(format!("{name}.gguf"));
    path.exists().then(|| Model::load(&path).expect("a sound model"))
}

#[test]
fn real_models_are_as_close_to_exact_as_the_peer() {
    let mut ratios = Vec::new();
    for (golden, name) in [
        ("smollm2-135m", "smollm2-135m-instruct"),
        ("gemma-3-270m", "gemma-3-270m"),
        ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b-instruct"),
        ("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b-instruct"),
    ] {
        let Some(model) = real(name) else {
            let needed = golden.starts_with("smollm2") && std::env::var_os("CI").is_some();
            assert!(!needed, "{name} is missing; fetch it with `aios pull {name}`");
            println!("{name} is not here; `aios pull {name}` fetches it");
            continue;
        };
        let ratio = ratio(golden, &model);
        // The largest has no exact logits; its greedy ids were checked all the same.
        if ratio.is_finite() {
            assert!(ratio <= 1.20, "{name}: {ratio}");
            ratios.push(ratio);
        }
    }
    if ratios.len() == 3 {
        ratios.extend(MICRO.map(|name| self::ratio(name, &micro(name))));
        let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
        println!("geometric mean over all files {:.3}", mean.exp());
        assert!(mean.exp() <= 1.05, "geometric mean {}", mean.exp());
    }
}

#[test]
fn a_planted_error_is_noticed() {
    let model = micro("micro-llama");
    let case = &cases("micro-llama")[0];
    let (mut rows, greedy) = run(&model, case, false);
    let (before, _) = errors(&rows, case);
    for row in &mut rows {
        row.iter_mut().for_each(|x| *x += 0.05);
    }
    let (after, _) = errors(&rows, case);
    assert!(after[0] > 1.2 * before[0], "{before:?} {after:?}");
    let mut wrong = greedy;
    wrong[0] ^= 1;
    let reference = &case.peer_int8.greedy;
    let check = || check_greedy("micro-llama", "planted", &wrong, reference, 0.5);
    assert!(std::panic::catch_unwind(check).is_err());
}
