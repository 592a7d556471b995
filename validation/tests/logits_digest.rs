//! Promise 1: the bits of the logits depend on the file and the ids, and on nothing else.

use aios_engine::{Executor, ExecutorOptions, Model};
use aios_kernels::{CacheType, Isa};
use aios_validation::logits::record;
use std::path::Path;
use std::sync::Arc;

const MODELS: [&str; 8] = [
    "micro-falcon",
    "micro-falcon-odd",
    "micro-falcon40",
    "micro-gemma3",
    "micro-llama",
    "micro-phi3",
    "micro-qwen2",
    "micro-qwen3",
];
/// Enough for a chunk of 64 and a part of one, and for several attention blocks.
const IDS: usize = 67;
const STEPS: usize = 3;
const THREADS: [usize; 3] = [1, 2, 5];
const CHUNKS: [usize; 5] = [1, 3, 7, 64, 512];

fn load(name: &str) -> Arc<Model> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    Model::load(&models.join(format!("{name}-q4km.gguf"))).expect("a micro model")
}

fn digest(model: &Arc<Model>, change: impl FnOnce(&mut ExecutorOptions)) -> [u8; 32] {
    let mut options = ExecutorOptions::new(IDS + STEPS);
    change(&mut options);
    let vocab = model.config().vocab;
    let ids: Vec<u32> = (1..=IDS).map(|i| (i * i * 31 % vocab) as u32).collect();
    let mut executor = Executor::new(Arc::clone(model), options).expect("an executor");
    record(&mut executor, &ids, STEPS, &|| true).expect("logits").logits_sha256
}

#[test]
fn one_digest_for_every_instruction_set_thread_count_and_chunk() {
    for name in MODELS {
        let model = load(name);
        let reference = digest(&model, |_| ());
        for isa in Isa::available() {
            // Each chunk meets each number of threads, on one instruction set or another.
            for (i, chunk) in CHUNKS.into_iter().enumerate() {
                let threads = THREADS[(i + isa.name() as usize) % THREADS.len()];
                let found = digest(&model, |options| {
                    options.isa = isa;
                    options.batch = chunk;
                    options.threads = threads;
                    options.threads_batch = threads;
                });
                let isa = isa.description();
                assert_eq!(found, reference, "{name}: {isa}, {threads} threads, chunk {chunk}");
            }
        }
    }
}

#[test]
fn the_digest_sees_what_does_change_the_numbers() {
    let model = load("micro-llama");
    let reference = digest(&model, |_| ());
    assert_ne!(digest(&model, |options| options.exact = true), reference);
    assert_ne!(digest(&model, |options| options.cache_k = CacheType::F32), reference);
    assert_ne!(digest(&load("micro-qwen2"), |_| ()), reference);
}
