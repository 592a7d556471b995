//! The verify curve: what a pass over 1 to 16 tokens takes over one of a single token, for products
//! with weights of each common format and for whole models (`cargo bench --bench verify`).
//!
//! Speculation lives on this curve. Beside it stands what the tokens would cost at the speed of
//! reading a prompt, 1.1 n times, below which no pass can be expected to come. A model that is not
//! in the model folder is left out, which is said. Results are compared before anything is timed:
//! a product with the scalar reference, a model's pass with passes of one token.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aios::models::cache_folder;
use aios_contract::DType;
use aios_engine::{Executor, ExecutorOptions, Model, PASS_MAX, Want};
use aios_kernels::{
    Input, Isa, Matrix, Pool, Product, QuantRows, ScaleBlock, matmul, pack, packed_bytes,
};
use aios_residency::Phase;
use criterion::{BenchmarkId, Criterion};

/// The formats of common model files.
const DTYPES: [DType; 5] = [DType::Q4_1, DType::Q5_0, DType::Q8_0, DType::Q4_K, DType::Q6_K];
/// Elements of a row: those of the 1.5B model.
const COLS: usize = 1536;
/// Bytes of weights that are streamed, beyond any cache.
const STREAMED: usize = 128 << 20;
/// Rows that are compared with the reference.
const COMPARED_ROWS: usize = 32;
const MODELS: [&str; 3] =
    ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"];
/// Tokens of a prompt, whose time for a token is the lowest that a pass can come to.
const PROMPT: usize = 512;

/// The least time of each case, by its number of tokens.
type Least = RefCell<BTreeMap<usize, Duration>>;

/// Lets criterion time `work`, and keeps the least time of a run.
fn time(c: &mut Criterion, group: &str, n: usize, least: &Least, work: &mut dyn FnMut()) {
    let mut group = c.benchmark_group(group);
    group.sample_size(10).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(2));
    group.bench_function(BenchmarkId::from_parameter(n), |b| {
        b.iter_custom(|runs| {
            let mut sum = Duration::ZERO;
            for _ in 0..runs {
                let started = Instant::now();
                work();
                let elapsed = started.elapsed();
                sum += elapsed;
                let mut least = least.borrow_mut();
                let known = least.entry(n).or_insert(Duration::MAX);
                *known = elapsed.min(*known);
            }
            sum
        });
    });
    group.finish();
}

/// Pseudo-random bytes whose half-precision numbers are all finite, as bit 14 is never set.
fn weights(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state ^ (state >> 29)) & 0xbfbf_bfbf_bfbf_bfbf
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Rows of activations and their quants, in the order that one instruction set reads.
struct Activations {
    isa: Isa,
    x: Vec<f32>,
    quants: [QuantRows; 2],
}

impl Activations {
    fn new(isa: Isa, pool: &Pool, n: usize) -> Self {
        let x: Vec<f32> = (0..n * COLS).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
        let quants = [ScaleBlock::B32, ScaleBlock::B256].map(|block| {
            let mut rows = QuantRows::with_capacity(block, n, COLS);
            rows.quantize(isa, pool, &x, COLS);
            rows
        });
        Self { isa, x, quants }
    }

    fn product(&self, pool: &Pool, weights: Matrix<'_>, out: &mut [f32]) {
        let [q32, q256] = self.quants.each_ref().map(Some);
        let input = Input { x: &self.x, len: COLS, q32, q256, exact: false };
        matmul(self.isa, pool, input, &mut [Product { weights, bias: None, out }], &[]);
    }
}

/// Products with weights of each format, in panels.
fn products(c: &mut Criterion, table: &mut Table) {
    let pool = Pool::new(aios_kernels::allowed_processors().len()).expect("threads");
    let bytes = weights(STREAMED);
    let mut panels = Vec::new();
    for dtype in DTYPES {
        let row = dtype.row_bytes(COLS).expect("whole blocks");
        // Whole panels, so that the first rows are a part by themselves.
        let rows = STREAMED / row / 32 * 32;
        panels.resize(packed_bytes(dtype, rows, COLS).expect("a format that is packed"), 0);
        pack(&pool, dtype, row, &bytes[..rows * row], &mut panels);
        let packed = Matrix::packed(dtype, rows, COLS, &panels).expect("what was packed");
        let first = &bytes[..COMPARED_ROWS * row];
        let plain = Matrix::new(dtype, COMPARED_ROWS, COLS, first).expect("whole rows");
        let least = Least::default();
        for n in 1..=PASS_MAX {
            let activations = Activations::new(Isa::detect(), &pool, n);
            let mut out = vec![0.0; n * rows];
            activations.product(&pool, packed, &mut out);
            let mut expected = vec![0.0; n * COMPARED_ROWS];
            Activations::new(Isa::SCALAR, &pool, n).product(&pool, plain, &mut expected);
            for (out, expected) in out.chunks(rows).zip(expected.chunks(COMPARED_ROWS)) {
                assert!(out.starts_with(expected), "{dtype}: wrong result");
            }
            time(c, &format!("verify {dtype}"), n, &least, &mut || {
                activations.product(&pool, packed, &mut out);
            });
        }
        let prompt = Activations::new(Isa::detect(), &pool, PROMPT);
        let mut out = vec![0.0; PROMPT * rows];
        let mut read = || prompt.product(&pool, packed, &mut out);
        time(c, &format!("verify {dtype}"), PROMPT, &least, &mut read);
        table.add(&dtype.to_string(), &least.into_inner());
    }
}

/// The logits of a pass over `ids` at the start of a text, or of passes of one token each.
fn logits(executor: &mut Executor, ids: &[u32], pass: usize) -> Vec<f32> {
    let mut all = Vec::new();
    executor.truncate(0);
    for ids in ids.chunks(pass) {
        let mut keep = |_, row: &[f32]| {
            all.extend_from_slice(row);
            Ok(())
        };
        executor.forward(ids, Phase::Verify, Want::All, &mut keep).expect("a pass");
    }
    all
}

/// Passes of whole models, with the logits of every token, at the start of a text.
fn models(c: &mut Criterion, table: &mut Table) {
    let folder = std::env::var_os("AIOS_MODEL_DIR").map(PathBuf::from);
    let Some(folder) = folder.or_else(|| Some(cache_folder()?.join("models"))) else {
        println!("no model: neither AIOS_MODEL_DIR nor HOME is set");
        return;
    };
    for name in MODELS {
        let path = folder.join(format!("{name}.gguf"));
        if !path.is_file() {
            println!("{name} is left out: it is not among the models; `aios pull {name}` gets it");
            continue;
        }
        // From panels, as `aios` does.
        let model = match cache_folder() {
            Some(cache) => {
                let made = Model::load_repacked(&path, &cache.join("panels"), &mut |_, _| true);
                made.map(|(model, _)| model)
            }
            None => Model::load(&path),
        };
        model_curve(c, table, name, &model.expect("a model"));
    }
}

fn model_curve(c: &mut Criterion, table: &mut Table, name: &str, model: &Arc<Model>) {
    let options = ExecutorOptions::new(PROMPT);
    let mut executor = Executor::new(Arc::clone(model), options).expect("an executor");
    let ids: Vec<u32> = (100..).take(PROMPT).collect();
    let some = &ids[..PASS_MAX];
    let same = logits(&mut executor, some, 1) == logits(&mut executor, some, PASS_MAX);
    assert!(same, "{name}: a pass of several tokens has other logits than passes of one");
    let least = Least::default();
    for n in (1..=PASS_MAX).chain([PROMPT]) {
        let want = if n == PROMPT { Want::Last } else { Want::All };
        time(c, &format!("verify {name}"), n, &least, &mut || {
            executor.truncate(0);
            executor.forward(&ids[..n], Phase::Verify, want, &mut |_, _| Ok(())).expect("a pass");
        });
    }
    table.add(name, &least.into_inner());
}

/// What a pass over n tokens takes over one of a single token, by what was run.
#[derive(Default)]
struct Table {
    lines: Vec<String>,
}

impl Table {
    fn add(&mut self, name: &str, least: &BTreeMap<usize, Duration>) {
        // Criterion may have been asked for other cases only.
        let ms = |n: usize| least.get(&n).map(|time| time.as_secs_f64() * 1e3);
        let (Some(one), Some(prompt)) = (ms(1), ms(PROMPT)) else { return };
        let token = prompt / PROMPT as f64;
        let ratio = |n| ms(n).map_or_else(|| "–".to_owned(), |ms| format!("{:.2}", ms / one));
        let ratios: Vec<String> = (2..=PASS_MAX).map(ratio).collect();
        self.lines.push(format!("| {name} | {one:.2} | {} |", ratios.join(" | ")));
        let bound = |n: usize| format!("{:.2}", 1.1 * n as f64 * token / one);
        let bounds: Vec<String> = (2..=PASS_MAX).map(bound).collect();
        self.lines.push(format!("| 1.1 n × {token:.2} ms | | {} |", bounds.join(" | ")));
    }

    fn print(&self) {
        if self.lines.is_empty() {
            return;
        }
        let numbers: Vec<String> = (2..=PASS_MAX).map(|n| n.to_string()).collect();
        println!(
            "\nThe least time of a pass over n tokens, over that of one; below it, n tokens at"
        );
        println!("1.1 times what a token of a {PROMPT}-token prompt takes.\n");
        println!("| | n = 1, ms | {} |", numbers.join(" | "));
        println!("|---|{}", "---:|".repeat(PASS_MAX));
        self.lines.iter().for_each(|line| println!("{line}"));
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut table = Table::default();
    products(&mut c, &mut table);
    models(&mut c, &mut table);
    c.final_summary();
    // A single run of each, which is what `--test` makes, is no measurement.
    if !std::env::args().any(|argument| argument == "--test") {
        table.print();
    }
}
