//! SPEC Z5: the digest of the final states depends on the file, the tokens and the cache types, and
//! not on how they were computed, nor on what was drafted or reused.

use aios_engine::{
    Executor, ExecutorOptions, Length, Limits, Lookup, Model, SamplerOptions, Session, Speculation,
    StateDigest, Want,
};
use aios_kernels::{CacheType, Isa};
use aios_residency::Phase;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const CONTEXT: usize = 160;

fn path(name: &str) -> PathBuf {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    models.join(format!("{name}-q4km.gguf"))
}

fn load(name: &str) -> Arc<Model> {
    Model::load(&path(name)).expect("a micro model")
}

fn prompt(model: &Model) -> Vec<u32> {
    let vocab = model.config().vocab;
    (1..=67_usize).map(|i| (i * i * 31 % vocab) as u32).collect()
}

/// The digest of an answer, and its tokens.
fn answer(session: &mut Session, ids: &[u32], temperature: f32) -> (StateDigest, Vec<u32>) {
    let sampling = SamplerOptions { temperature, seed: 7, ..SamplerOptions::default() };
    let limits = Limits { max_tokens: Some(40), ..Limits::default() };
    let never = AtomicBool::new(false);
    let mut generation = session.generate(ids, sampling, limits).expect("begun");
    while generation.next_text(&never).expect("a token").is_some() {}
    let states = generation.stats().states.expect("digested");
    (states, generation.tokens().to_vec())
}

fn session(model: &Arc<Model>, change: impl FnOnce(&mut ExecutorOptions)) -> Session {
    let mut options = ExecutorOptions::new(CONTEXT);
    change(&mut options);
    let mut session = Session::new(Arc::clone(model), options).expect("a session");
    session.trace_states(true);
    session
}

#[test]
fn one_digest_for_every_way_of_computing() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["micro-llama", "micro-gemma3", "micro-falcon"] {
        let model = load(name);
        let ids = prompt(&model);
        for temperature in [0.0, 0.8] {
            let want = answer(&mut session(&model, |_| ()), &ids, temperature);
            for (i, isa) in Isa::available().into_iter().enumerate() {
                let found = answer(
                    &mut session(&model, |options| {
                        options.isa = isa;
                        options.batch = [1, 7, 64, 512][i % 4];
                        options.threads = 1 + i % 2;
                    }),
                    &ids,
                    temperature,
                );
                assert_eq!(found, want, "{name} {}", isa.description());
            }
            let repacked = Model::load_repacked(&path(name), folder.path(), &mut |_, _| true);
            let repacked = repacked.expect("loaded").0;
            assert_eq!(answer(&mut session(&repacked, |_| ()), &ids, temperature), want, "{name}");
            for length in [1, 4, 15] {
                let mut drafting = session(&model, |_| ());
                let lookup = Box::new(Lookup::new(&[]));
                drafting.speculate(Some(Speculation::new(vec![lookup], Length::Fixed(length))));
                assert_eq!(answer(&mut drafting, &ids, temperature), want, "{name} {length}");
            }
        }
    }
}

#[test]
fn positions_that_are_reused_are_covered() {
    let model = load("micro-llama");
    let ids = prompt(&model);
    let want = answer(&mut session(&model, |_| ()), &ids, 0.8);
    let mut reusing = session(&model, |_| ());
    for length in [10, 40, 67] {
        answer(&mut reusing, &ids[..length], 0.0);
    }
    assert_eq!(answer(&mut reusing, &ids, 0.8), want);
    // Asked once more with the answer in the cache, too.
    assert_eq!(answer(&mut reusing, &ids, 0.8), want);
    // What was read while nothing was digested is not reused.
    let mut late = session(&model, |_| ());
    late.trace_states(false);
    let never = AtomicBool::new(false);
    let limits = Limits { max_tokens: Some(1), ..Limits::default() };
    let mut before = late.generate(&ids, SamplerOptions::greedy(), limits).expect("begun");
    while before.next_text(&never).expect("a token").is_some() {}
    assert_eq!(before.stats().states, None);
    late.trace_states(true);
    assert_eq!(answer(&mut late, &ids, 0.8), want);
}

#[test]
fn the_digest_sees_what_does_change_the_numbers() {
    let model = load("micro-llama");
    let ids = prompt(&model);
    let want = answer(&mut session(&model, |_| ()), &ids, 0.0).0;
    let cache = |options: &mut ExecutorOptions| options.cache_v = CacheType::Q8_0;
    assert_ne!(answer(&mut session(&model, cache), &ids, 0.0).0, want);
    let exact = |options: &mut ExecutorOptions| options.exact = true;
    assert_ne!(answer(&mut session(&model, exact), &ids, 0.0).0, want);
    // A token of the prompt far from its end, and no other difference.
    let mut other = ids.clone();
    other[3] = ids[4];
    assert_ne!(answer(&mut session(&model, |_| ()), &other, 0.0).0, want);
}

#[test]
fn an_executor_digests_positions_whose_logits_nobody_asks_for() {
    let model = load("micro-qwen2");
    let ids = prompt(&model);
    let digest = |want: Want, cuts: &[usize]| {
        let mut executor =
            Executor::new(Arc::clone(&model), ExecutorOptions::new(CONTEXT)).expect("an executor");
        executor.trace_states(true);
        for part in cuts.windows(2) {
            let (tokens, phase) = (&ids[part[0]..part[1]], Phase::Prefill);
            executor.forward(tokens, phase, want, &mut |_, _| Ok(())).expect("run");
        }
        (1..=ids.len()).map(|n| executor.state_digest(n)).collect::<Vec<_>>()
    };
    let whole = digest(Want::All, &[0, 67]);
    assert!(whole.iter().all(Option::is_some));
    assert_eq!(digest(Want::None, &[0, 1, 30, 67]), whole);
    assert_eq!(digest(Want::Last, &[0, 50, 51, 67]), whole);
    assert_eq!(whole.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
}
