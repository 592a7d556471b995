//! Whole tokens: how long decoding, verifying and reading a prompt take, and how many bytes a token
//! reads (`cargo bench --bench tokens`).
//!
//! Bytes are a measurement of their own for criterion. They are also held against
//! `benches/bytes.json`, and a token that reads or writes more than is recorded there is an error:
//! bytes are counted, so that they cannot vary, and nothing but a change of the program makes them
//! more. So is one that reads much less, since up to the old record a later rise would go unseen,
//! and a micro model's case that is not recorded, or is and did not run. Real models need not be
//! here. The ledger that counts them must take less than 0.5 % of a token's time.
//! `AIOS_RECORD_BYTES=1 cargo bench --bench tokens -- --test` writes the file anew.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aios_contract::{Placement, Role, TensorName};
use aios_engine::{ConfigError, Executor, ExecutorOptions, LoadError, Model, Want};
use aios_residency::{Ledger, Phase, TierBytes};
use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BenchmarkId, Criterion, Throughput};

/// Tokens in the context before those that are measured.
const DEPTH: usize = 64;
/// Tokens of a pass that checks drafts.
const VERIFIED: usize = 4;
/// Tokens of a prompt.
const PROMPT: usize = 128;
/// The most of a real model's token that counting may take.
const LEDGER_SHARE_MAX: f64 = 0.005;
/// Models of fewer bytes are no real ones: their tokens take microseconds.
const REAL_BYTES: u64 = 16_000_000;
/// What the names of models in `testdata/models` begin with, and those of no other.
const MICRO: &str = "micro-";
/// The part of its recorded bytes that a case may lack before it is to be recorded anew.
const DROP_MAX: f64 = 0.01;
/// How that is done.
const RECORD: &str = "AIOS_RECORD_BYTES=1 cargo bench --bench tokens -- --test";

/// Bytes of each case.
type Cases = BTreeMap<String, u64>;

/// Counted bytes in place of time.
struct Bytes;

struct BytesFormatter;

impl ValueFormatter for BytesFormatter {
    fn scale_values(&self, _typical: f64, values: &mut [f64]) -> &'static str {
        values.iter_mut().for_each(|bytes| *bytes /= 1e6);
        "MB"
    }

    fn scale_throughputs(
        &self,
        _typical: f64,
        throughput: &Throughput,
        values: &mut [f64],
    ) -> &'static str {
        let tokens = match throughput {
            Throughput::Elements(tokens) => *tokens as f64,
            _ => 1.0,
        };
        values.iter_mut().for_each(|bytes| *bytes /= 1e6 * tokens);
        "MB/token"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "bytes"
    }
}

impl Measurement for Bytes {
    type Intermediate = ();
    type Value = u64;

    fn start(&self) {}

    fn end(&self, (): ()) -> u64 {
        0
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, bytes: &u64) -> f64 {
        *bytes as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &BytesFormatter
    }
}

/// What is run.
#[derive(Clone, Copy)]
enum Work {
    /// A token.
    Decode,
    /// A pass that checks drafted tokens.
    Verify,
    /// A prompt.
    Prefill,
}

impl Work {
    const ALL: [Self; 3] = [Self::Decode, Self::Verify, Self::Prefill];

    fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Verify => "verify",
            Self::Prefill => "prefill",
        }
    }

    fn tokens(self) -> usize {
        match self {
            Self::Decode => 1,
            Self::Verify => VERIFIED,
            Self::Prefill => PROMPT,
        }
    }

    /// Runs it once and returns the bytes that it has read, and written to the cache.
    fn run(self, executor: &mut Executor) -> [u64; 2] {
        let (phase, want, depth) = match self {
            Self::Decode => (Phase::Decode, Want::Last, DEPTH),
            Self::Verify => (Phase::Verify, Want::All, DEPTH),
            Self::Prefill => (Phase::Prefill, Want::Last, 0),
        };
        executor.truncate(depth);
        executor.reset_ledger();
        let ids: Vec<u32> = (0..100).cycle().take(self.tokens()).collect();
        executor.forward(&ids, phase, want, &mut |_, _| Ok(())).expect("a pass");
        let bytes = executor.ledger().phase(phase);
        [bytes.weights + bytes.kv_read, bytes.kv_written]
    }
}

/// An executor that has read `DEPTH` tokens.
fn executor(model: &Arc<Model>) -> Executor {
    let mut executor =
        Executor::new(Arc::clone(model), ExecutorOptions::new(256)).expect("an executor");
    let ids: Vec<u32> = (0..DEPTH as u32).collect();
    executor.forward(&ids, Phase::Prefill, Want::None, &mut |_, _| Ok(())).expect("a pass");
    executor
}

/// The part of a token's time that its counting takes: the ledger's calls for a token, by
/// themselves, over the fastest of a few tokens.
fn ledger_share(model: &Model, executor: &mut Executor) -> f64 {
    const TOKENS: u32 = 2000;
    // More than any model has: matrices, gains and biases of each kind.
    let (of_layer, of_model): (Vec<Role>, Vec<Role>) =
        Role::all().partition(|role| role.placement() == Placement::Layer);
    let layers = model.config().layers;
    let mut ledger = Ledger::new(layers);
    let started = Instant::now();
    for _ in 0..TOKENS {
        ledger.start_pass(Phase::Decode, 1);
        for layer in 0..u32::try_from(layers).expect("few layers") {
            for &role in &of_layer {
                ledger.read(black_box(TensorName { role, layer: Some(layer) }), black_box(1000));
            }
            let hot = |bytes| TierBytes { hot: black_box(bytes), ..TierBytes::default() };
            ledger.kv(hot(1000), hot(1));
        }
        for &role in &of_model {
            ledger.read(black_box(TensorName { role, layer: None }), black_box(1000));
        }
    }
    let counting = started.elapsed().as_secs_f64() / f64::from(TOKENS);
    let token = (0..10).map(|_| {
        let started = Instant::now();
        Work::Decode.run(executor);
        started.elapsed().as_secs_f64()
    });
    counting / token.fold(f64::INFINITY, f64::min)
}

fn micro_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models")
}

/// The micro models, and the real ones that are there.
fn models() -> Vec<PathBuf> {
    let mut folders = vec![micro_folder()];
    folders.extend(
        std::env::var_os("AIOS_MODEL_DIR")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/aios/models"))),
    );
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    paths
}

fn recorded_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bytes.json")
}

/// Bytes of each case that was ever recorded.
fn recorded() -> Cases {
    let text = std::fs::read_to_string(recorded_file()).expect("benches/bytes.json");
    serde_json::from_str(&text).expect("an object of numbers")
}

/// Records what has `run`. Real models that are not here keep their record; micro models all are.
fn record(run: Cases) {
    let mut cases = if recorded_file().exists() { recorded() } else { Cases::new() };
    cases.retain(|case, _| !case.starts_with(MICRO));
    cases.extend(run);
    let text = serde_json::to_string_pretty(&cases).expect("numbers") + "\n";
    std::fs::write(recorded_file(), text).expect("benches/bytes.json can be written");
}

/// What is wrong with the cases that have `run`, beside those that are `known`.
fn faults(known: &Cases, run: &Cases) -> Vec<String> {
    let mut faults = Vec::new();
    for (case, now) in run {
        match known.get(case) {
            Some(before) if now > before => {
                faults.push(format!("{case}: {now} bytes, {before} were recorded"));
            }
            Some(before) if (*now as f64) < *before as f64 * (1.0 - DROP_MAX) => {
                faults.push(format!("{case}: {now} bytes, only; record {before} anew: {RECORD}"));
            }
            Some(_) => {}
            None if case.starts_with(MICRO) => {
                faults.push(format!("{case}: {now} bytes, not recorded; do that: {RECORD}"));
            }
            None => eprintln!("{case}: {now} bytes, not recorded"),
        }
    }
    let absent = known.keys().filter(|case| case.starts_with(MICRO) && !run.contains_key(*case));
    faults.extend(absent.map(|case| {
        format!("{case}: is recorded and did not run; bring it back, or record anew: {RECORD}")
    }));
    faults
}

/// A comparison that cannot fail proves nothing.
fn test_faults() {
    let cases = |list: &[(&str, u64)]| -> Cases {
        list.iter().map(|(case, bytes)| ((*case).to_owned(), *bytes)).collect()
    };
    let known = cases(&[("micro-a decode", 1000), ("real decode", 1000)]);
    let found = |run: &[(&str, u64)]| faults(&known, &cases(run)).len();
    assert_eq!(found(&[("micro-a decode", 1000)]), 0, "a real model may be absent");
    assert_eq!(found(&[("micro-a decode", 991), ("real decode", 1000)]), 0, "a little less");
    assert_eq!(found(&[("micro-a decode", 1001), ("real decode", 1001)]), 2, "more");
    assert_eq!(found(&[("micro-a decode", 989), ("real decode", 989)]), 2, "much less");
    assert_eq!(found(&[("micro-a decode", 1000), ("micro-b decode", 1)]), 1, "not recorded");
    assert_eq!(found(&[("real decode", 1000)]), 1, "did not run");
}

fn main() {
    test_faults();
    let mut run = Cases::new();
    let mut slow = Vec::new();
    let mut time = Criterion::default().sample_size(10).configure_from_args();
    let mut bytes = Criterion::default().with_measurement(Bytes).sample_size(10);
    bytes = bytes.configure_from_args();
    for path in models() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        assert_eq!(name.starts_with(MICRO), path.starts_with(micro_folder()), "{name}: a misnomer");
        let model = match Model::load(&path) {
            // It has no tokens to generate.
            Err(LoadError::Config { source: ConfigError::Encoder { .. }, .. }) => continue,
            model => model.expect("a model"),
        };
        let mut executor = executor(&model);
        let share = ledger_share(&model, &mut executor);
        println!("{name}: counting takes {:.4} % of a token's time", share * 100.0);
        let real = model.bytes_per_token().iter().map(|(_, bytes)| bytes).sum::<u64>() > REAL_BYTES;
        if real && share > LEDGER_SHARE_MAX {
            slow.push((name.clone(), share));
        }
        for work in Work::ALL {
            let case = format!("{name} {}", work.name());
            let [read, written] = work.run(&mut executor);
            run.insert(format!("{case}, written"), written);
            run.insert(case, read);
            let tokens = Throughput::Elements(work.tokens() as u64);
            let mut group = time.benchmark_group(work.name());
            group.throughput(tokens.clone());
            group.bench_function(BenchmarkId::from_parameter(&name), |b| {
                b.iter(|| work.run(&mut executor));
            });
            group.finish();
            let mut group = bytes.benchmark_group(format!("{}, bytes", work.name()));
            group.throughput(tokens);
            group.bench_function(BenchmarkId::from_parameter(&name), |b| {
                b.iter_custom(|times| (0..times).map(|_| work.run(&mut executor)[0]).sum());
            });
            group.finish();
        }
    }
    time.final_summary();
    let mut worse = Vec::new();
    if std::env::var_os("AIOS_RECORD_BYTES").is_some() {
        record(run);
    } else {
        worse = faults(&recorded(), &run);
    }
    for fault in &worse {
        eprintln!("error: {fault}");
    }
    for (name, share) in &slow {
        eprintln!("error: {name}: counting takes {:.2} % of a token's time", share * 100.0);
    }
    if !worse.is_empty() || !slow.is_empty() {
        std::process::exit(1);
    }
}
