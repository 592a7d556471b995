//! Budgets of memory (SPEC W): the same bits whatever is in memory and whatever is read from disk
//! in each pass, from rows and from panels; and what happens when the disk fails.

use aios_engine::{EngineError, Executor, ExecutorOptions, Limits, Model, Session, Want};
use aios_engine::{SamplerOptions, StopReason};
use aios_residency::{Phase, Step};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn micro_models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let entries = fs::read_dir(folder).expect("the micro models");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    assert!(paths.len() >= 8);
    paths
}

fn load(path: &Path, panels: Option<&Path>) -> Arc<Model> {
    let Some(folder) = panels else { return Model::load(path).expect("a micro model") };
    let (model, made) = Model::load_repacked(path, folder, &mut |_, _| true).expect("a model");
    made.expect("repacked");
    model
}

fn options(ram: Option<u64>) -> ExecutorOptions {
    ExecutorOptions { ram, threads: 2, threads_batch: 2, ..ExecutorOptions::new(64) }
}

/// The least budget for `model`, as the error for far too little names it.
fn least(model: &Arc<Model>, options: &ExecutorOptions) -> u64 {
    let options = ExecutorOptions { ram: Some(1), ..options.clone() };
    match Executor::new(Arc::clone(model), options) {
        Err(EngineError::Ram { given: 1, least, cache, activations, buffers }) => {
            assert_eq!(least, cache + activations + buffers);
            least
        }
        other => panic!("a byte is not enough: {:?}", other.map(|_| ())),
    }
}

/// The bits of all logits of passes of many kinds.
fn bits(executor: &mut Executor) -> Result<Vec<u32>, EngineError> {
    let ids: Vec<u32> = (0..50).map(|i| (i * 7 + 3) % 90).collect();
    let mut bits = Vec::new();
    let mut keep = |_, logits: &[f32]| {
        bits.extend(logits.iter().map(|x| x.to_bits()));
        Ok(())
    };
    executor.truncate(0);
    executor.forward(&ids[..20], Phase::Prefill, Want::None, &mut keep)?;
    executor.forward(&ids[20..40], Phase::Verify, Want::All, &mut keep)?;
    for id in &ids[40..] {
        executor.forward(&[*id], Phase::Decode, Want::Last, &mut keep)?;
    }
    // A pass that ends early leaves no trace in the next.
    executor.truncate(40);
    executor.verify(&ids[40..44], Phase::Verify, &mut |_, _| Ok(false))?;
    executor.truncate(40);
    executor.forward(&ids[40..], Phase::Prefill, Want::All, &mut keep)?;
    Ok(bits)
}

#[test]
fn every_budget_gives_the_bits_of_mapped_weights_from_rows_and_from_panels() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in micro_models() {
        for panels in [None, Some(folder.path())] {
            let model = load(&path, panels);
            assert_eq!(model.is_repacked(), panels.is_some());
            for exact in [false, true] {
                // With the least budget passes have 16 tokens, so that all read alike.
                let plain = ExecutorOptions { exact, batch: 16, ..options(None) };
                let mut mapped = Executor::new(Arc::clone(&model), plain.clone()).expect("runs");
                let expected = bits(&mut mapped).expect("runs");
                assert!(mapped.residency().warm_bytes > 0 && mapped.streamed_file().is_none());
                let least = least(&model, &plain);
                for ram in [least, least + 100_000, least + 400_000, 1 << 30] {
                    let limited = ExecutorOptions { ram: Some(ram), ..plain.clone() };
                    let mut executor = Executor::new(Arc::clone(&model), limited).expect("runs");
                    assert!(bits(&mut executor).expect("runs") == expected, "{path:?} {ram}");
                    check_telemetry(&executor, &mapped, ram);
                }
            }
        }
    }
}

/// The account of a limited run against that of a mapped one.
fn check_telemetry(executor: &Executor, mapped: &Executor, ram: u64) {
    let stats = executor.residency();
    let reserved = stats.reserved_bytes;
    let taken = stats.hot_bytes + reserved.cache + reserved.activations + reserved.buffers;
    assert!(stats.budget_bytes == Some(ram) && taken <= ram, "{stats:?}");
    assert_eq!(stats.bytes_resolved, mapped.residency().bytes_resolved);
    assert_eq!(stats.bytes_hot + stats.bytes_streamed, stats.bytes_resolved);
    assert!(stats.disk_bytes >= stats.bytes_streamed);
    // The smallest models fit the larger budgets.
    let reserve = reserved.cache + reserved.activations + reserved.buffers;
    let streams = ram < reserve + mapped.residency().warm_bytes;
    assert_eq!(streams, stats.stream_bytes > 0 && stats.reads > 0);
    assert!(!stats.isa.is_empty() && stats.passes == mapped.residency().passes);
    let disk: u64 = Phase::ALL.into_iter().map(|phase| executor.ledger().phase(phase).disk).sum();
    assert!(disk <= stats.disk_bytes && (disk > 0) == streams);
    for phase in Phase::ALL {
        let (a, b) = (executor.ledger().phase(phase), mapped.ledger().phase(phase));
        assert_eq!((a.weights, a.roles, a.kv_read), (b.weights, b.roles, b.kv_read));
    }
}

#[test]
fn too_little_memory_is_an_error_with_the_least_that_works() {
    for path in micro_models() {
        let model = load(&path, None);
        let least = least(&model, &options(None));
        let executor = Executor::new(Arc::clone(&model), options(Some(least))).expect("enough");
        assert_eq!(executor.options().batch, 16);
        assert!(executor.residency().ladder.contains(&Step::SmallerBatch));
        let error = Executor::new(model, options(Some(least - 1))).expect_err("too little");
        let text = error.to_string();
        assert!(matches!(error, EngineError::Ram { .. }) && text.contains("--ram"), "{text}");
        // What the message says is enough.
        let said = format!("the least is {:.1} MB", least.div_ceil(100_000) as f64 / 10.0);
        assert!(text.contains(&said), "{text} | {said}");
    }
}

#[test]
fn a_file_that_is_cut_short_ends_the_pass_with_its_name_and_no_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("copy.gguf");
    fs::copy(&micro_models()[0], &path).expect("copied");
    let whole = fs::read(&path).expect("read");
    let model = load(&path, None);
    let least = least(&model, &options(None));
    let mut session = Session::new(Arc::clone(&model), options(Some(least))).expect("runs");
    let answer = |session: &mut Session, cut: bool| {
        let limits = Limits { max_tokens: Some(12), ignore_eos: true, ..Limits::default() };
        let mut generation = session.generate(&[5, 6, 7], SamplerOptions::default(), limits)?;
        generation.next_text(&AtomicBool::new(false))?;
        if cut {
            let file = File::options().write(true).open(&path).expect("opened");
            file.set_len(whole.len() as u64 / 4).expect("cut");
        }
        while generation.next_text(&AtomicBool::new(false))?.is_some() {}
        assert_eq!(generation.stats().stop, Some(StopReason::MaxTokens));
        Ok::<_, EngineError>(generation.tokens().to_vec())
    };
    let expected = answer(&mut session, false).expect("runs");
    let error = answer(&mut session, true).expect_err("it was cut");
    assert!(matches!(&error, EngineError::Disk(_)), "{error}");
    assert!(error.to_string().contains("copy.gguf"), "{error}");
    // The session goes on when the file is whole again, with the same tokens.
    fs::write(&path, &whole).expect("written");
    assert_eq!(answer(&mut session, false).expect("runs"), expected);
    // A file that has gone, or that another one was renamed over, is named at the start.
    let model = load(&path, None);
    fs::copy(&path, folder.path().join("other")).expect("copied");
    fs::rename(folder.path().join("other"), &path).expect("renamed");
    let replaced = Executor::new(Arc::clone(&model), options(Some(least))).expect_err("replaced");
    assert!(replaced.to_string().contains("copy.gguf was replaced"), "{replaced}");
    fs::remove_file(&path).expect("removed");
    let gone = Executor::new(model, options(Some(least))).expect_err("gone");
    assert!(gone.to_string().contains("copy.gguf"), "{gone}");
}

#[test]
fn mapped_and_streamed_sessions_of_one_model_run_side_by_side() {
    let path = &micro_models()[1];
    let model = load(path, None);
    let small = least(&model, &options(None)) + 50_000;
    let mut executors: Vec<Executor> = [None, Some(small), Some(small), Some(1 << 30)]
        .map(|ram| Executor::new(Arc::clone(&model), options(ram)).expect("runs"))
        .into();
    let all: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            executors.iter_mut().map(|executor| scope.spawn(|| bits(executor))).collect();
        runs.into_iter().map(|run| run.join().expect("no panic").expect("runs")).collect()
    });
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

/// SPEC W7: what was asked for and is not there is a step down, whatever is left.
#[test]
fn less_memory_than_asked_for_never_stops_a_run() {
    let model = load(&micro_models()[1], None);
    let plain = ExecutorOptions { threads: 2, threads_batch: 2, ..ExecutorOptions::new(64) };
    let mut mapped = Executor::new(Arc::clone(&model), plain.clone()).expect("runs");
    let expected = bits(&mut mapped).expect("runs");
    // All that is available, and more, is set aside for something else.
    let without = ExecutorOptions { set_aside: u64::MAX / 2, ..plain.clone() };
    for (ram, first) in [(Some(u64::MAX), Step::LessRam), (None, Step::LargerThanMemory)] {
        let options = ExecutorOptions { ram, ..without.clone() };
        let mut executor = Executor::new(Arc::clone(&model), options).expect("runs");
        assert_eq!(executor.residency().ladder, [first, Step::Mapped]);
        assert_eq!(bits(&mut executor).expect("runs"), expected);
    }
    // What could be had and is too little is for whoever asked for it to correct.
    let refused = Executor::new(model, ExecutorOptions { ram: Some(1), ..plain });
    assert!(matches!(refused, Err(EngineError::Ram { given: 1, .. })));
}
