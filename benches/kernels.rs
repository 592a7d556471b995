//! Matrix products against what the machine can do: decode in every format beside a plain read of
//! the same bytes, prefill in multiply-adds per second, and what a fork and join of all threads
//! costs (`cargo bench --bench kernels`).
//!
//! Each case is compared by bits with the scalar reference before it is timed. The weights of
//! decode fill 256 MiB, well beyond any cache, so that its figure is one of memory; where nothing
//! is timed (`-- --test`) there are fewer.

use aios_contract::DType;
use aios_kernels::{
    Input, Isa, Matrix, PANEL_ROWS, Pool, Product, QuantRows, ScaleBlock, matmul, pack,
    packed_bytes,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

/// The formats of common model files, of which more than a single token is timed.
const COMMON: [DType; 5] = [DType::Q4_1, DType::Q5_0, DType::Q8_0, DType::Q4_K, DType::Q6_K];
/// Elements of a row.
const COLS: usize = 4096;
/// Bytes of weights that are streamed, and where cases only run to see that they do.
const STREAMED: usize = 256 << 20;
const STREAMED_UNTIMED: usize = 4 << 20;
/// Rows of the matrix for prefill.
const PREFILL_ROWS: usize = 1024;
/// Rows compared with the reference, at the front and at the end.
const COMPARED_ROWS: usize = 48;

/// Pseudo-random bytes whose half-precision numbers are all finite, as bit 14 is never set.
fn weights(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 0xbfbf_bfbf_bfbf_bfbf
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Rows of activations and their quants.
struct Activations {
    x: Vec<f32>,
    q32: QuantRows,
    q256: QuantRows,
}

impl Activations {
    fn new(isa: Isa, pool: &Pool, n: usize) -> Self {
        let x: Vec<f32> = (0..n * COLS).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
        let [q32, q256] = [ScaleBlock::B32, ScaleBlock::B256].map(|block| {
            let mut rows = QuantRows::with_capacity(block, n, COLS);
            rows.quantize(isa, pool, &x, COLS);
            rows
        });
        Self { x, q32, q256 }
    }

    fn input(&self) -> Input<'_> {
        let (q32, q256) = (Some(&self.q32), Some(&self.q256));
        Input { x: &self.x, len: COLS, q32, q256, exact: false }
    }
}

/// The matrix that `bytes` hold.
fn matrix(dtype: DType, bytes: &[u8]) -> Matrix<'_> {
    let row = dtype.row_bytes(COLS).expect("whole blocks");
    // Whole panels, so that any run of rows is one in both layouts.
    let rows = bytes.len() / row / PANEL_ROWS * PANEL_ROWS;
    Matrix::new(dtype, rows, COLS, &bytes[..rows * row]).expect("whole rows")
}

fn product(isa: Isa, pool: &Pool, weights: Matrix<'_>, input: Input<'_>, out: &mut [f32]) {
    matmul(isa, pool, input, &mut [Product { weights, bias: None, out }], &[]);
}

/// Computes the product and stops the benchmark if rows at either end differ from the reference.
fn compare(pool: &Pool, weights: Matrix<'_>, input: Input<'_>, out: &mut [f32]) {
    product(Isa::detect(), pool, weights, input, out);
    let n = input.rows();
    let reference = Activations::new(Isa::SCALAR, pool, n);
    for start in [0, weights.rows() - COMPARED_ROWS] {
        let part = weights.row_range(start, COMPARED_ROWS);
        let mut expected = vec![0.0; n * COMPARED_ROWS];
        product(Isa::SCALAR, pool, part, reference.input(), &mut expected);
        let columns = out.chunks_exact(weights.rows()).zip(expected.chunks_exact(COMPARED_ROWS));
        for (out, expected) in columns {
            let found = &out[start..start + COMPARED_ROWS];
            let same = found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: wrong result", weights.dtype());
        }
    }
}

/// Adds up all words: the plain read.
fn read(pool: &Pool, bytes: &[u8]) -> u64 {
    let sum = AtomicU64::new(0);
    let part = bytes.len() / (8 * pool.threads());
    pool.for_each(8 * pool.threads(), &|piece| {
        let (words, _) = bytes[piece * part..(piece + 1) * part].as_chunks::<8>();
        let total = words.iter().fold(0, |sum: u64, w| sum.wrapping_add(u64::from_le_bytes(*w)));
        sum.fetch_add(total, Ordering::Relaxed);
    });
    sum.into_inner()
}

/// The matrix in panels, whose bytes go to `memory`.
fn packed<'a>(pool: &Pool, rows: Matrix<'_>, memory: &'a mut Vec<u8>) -> Matrix<'a> {
    let (dtype, count) = (rows.dtype(), rows.rows());
    memory.resize(packed_bytes(dtype, count, COLS).expect("a format that is packed"), 0);
    pack(pool, dtype, rows.bytes().len() / count, rows.bytes(), memory);
    Matrix::packed(dtype, count, COLS, memory).expect("what was packed")
}

/// Bytes of weights that are streamed in this run. Criterion times where cargo passes `--bench` and
/// nobody asks for a test.
fn streamed() -> usize {
    let given = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    if given("--bench") && !given("--test") { STREAMED } else { STREAMED_UNTIMED }
}

/// GB/s of weights, for passes of a few tokens, beside a plain read of the same bytes.
fn decode(c: &mut Criterion) {
    let pool = Pool::new(aios_kernels::allowed_processors().len()).expect("threads");
    let bytes = weights(streamed());
    let mut memory = Vec::new();
    let mut group = c.benchmark_group("decode");
    group.sample_size(10);
    for dtype in DType::ALL {
        let rows = matrix(dtype, &bytes);
        group.throughput(Throughput::Bytes(rows.bytes().len() as u64));
        group.bench_function(format!("{dtype} plain read"), |b| {
            b.iter(|| black_box(read(&pool, rows.bytes())));
        });
        let mut cases = vec![(1, "rows", rows)];
        // Floats are not packed.
        if !dtype.is_float() {
            let panels = packed(&pool, rows, &mut memory);
            let more: &[usize] =
                if COMMON.contains(&dtype) { &[2, 3, 4, 5, 6, 8, 12, 16] } else { &[] };
            cases.extend([1].iter().chain(more).map(|n| (*n, "panels", panels)));
        }
        for (n, name, weights) in cases {
            let activations = Activations::new(Isa::detect(), &pool, n);
            let mut out = vec![0.0; n * weights.rows()];
            compare(&pool, weights, activations.input(), &mut out);
            group.bench_function(BenchmarkId::new(format!("{dtype} {name}"), n), |b| {
                b.iter(|| product(Isa::detect(), &pool, weights, activations.input(), &mut out));
            });
        }
    }
    group.finish();
}

/// Multiply-adds per second, with one thread and with all.
fn prefill(c: &mut Criterion) {
    const N: usize = 512;
    let mut memory = Vec::new();
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10).throughput(Throughput::Elements((N * PREFILL_ROWS * COLS) as u64));
    for threads in [1, aios_kernels::allowed_processors().len()] {
        let pool = Pool::new(threads).expect("threads");
        let activations = Activations::new(Isa::detect(), &pool, N);
        let mut out = vec![0.0; N * PREFILL_ROWS];
        for dtype in COMMON {
            let bytes = weights(dtype.row_bytes(PREFILL_ROWS * COLS).expect("whole blocks"));
            let rows = matrix(dtype, &bytes);
            let panels = packed(&pool, rows, &mut memory);
            for (name, weights) in [("panels", panels), ("rows", rows)] {
                compare(&pool, weights, activations.input(), &mut out);
                let id = BenchmarkId::new(format!("{dtype} {name}"), threads);
                group.bench_function(id, |b| {
                    b.iter(|| {
                        product(Isa::detect(), &pool, weights, activations.input(), &mut out);
                    });
                });
            }
        }
    }
    group.finish();
}

/// A fork and join whose tasks do next to nothing; a token has some hundred of them.
fn join(c: &mut Criterion) {
    let threads = aios_kernels::allowed_processors().len();
    let pool = Pool::new(threads).expect("threads");
    let ran = AtomicU64::new(0);
    let task = |_: usize| {
        ran.fetch_add(1, Ordering::Relaxed);
    };
    pool.run(&task);
    assert_eq!(ran.load(Ordering::Relaxed), threads as u64, "each thread runs the task once");
    c.bench_function(&format!("join of {threads} threads"), |b| b.iter(|| pool.run(&task)));
}

criterion_group!(benches, decode, prefill, join);
criterion_main!(benches);
