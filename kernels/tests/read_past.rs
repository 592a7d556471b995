//! What asking for weights past the caches does on this processor.

use aios_contract::DType;
use aios_kernels::{
    Input, Isa, Matrix, Pool, Product, QuantRows, ScaleBlock, allowed_processors, matmul,
    packed_bytes,
};
use std::time::Instant;

const ROWS: usize = 4096;
const COLS: usize = 4096;
const ROUNDS: usize = 7;
/// Matrices that are to stay in the last-level cache, and those that pass by.
const KEPT: usize = 3;
const PASSING: usize = 160;

struct Bench {
    isa: Isa,
    pool: Pool,
    quants: QuantRows,
    x: Vec<f32>,
    out: Vec<f32>,
}

impl Bench {
    /// GB/s at which products read the matrices.
    fn read(&mut self, matrices: &[Vec<u8>], past: bool) -> f64 {
        let started = Instant::now();
        let mut bytes = 0;
        for panels in matrices {
            let weights = Matrix::packed(DType::Q4_0, ROWS, COLS, panels).expect("panels");
            let weights = weights.read_past(past);
            let input =
                Input { x: &self.x, len: COLS, q32: Some(&self.quants), q256: None, exact: false };
            let product = Product { weights, bias: None, out: &mut self.out };
            matmul(self.isa, &self.pool, input, &mut [product], &[]);
            bytes += panels.len();
        }
        bytes as f64 / 1e9 / started.elapsed().as_secs_f64()
    }
}

/// Speeds of products with matrices that were in the cache, before and after 1.5 GB of others
/// passed by, and of these: `cargo test --release -p aios-kernels --test read_past -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a measurement of time, on a quiet machine"]
fn what_reading_past_the_caches_protects() {
    let isa = Isa::detect();
    let pool = Pool::new(allowed_processors().len()).expect("threads");
    let len = packed_bytes(DType::Q4_0, ROWS, COLS).expect("panels");
    let x = vec![1.0; COLS];
    let mut quants = QuantRows::with_capacity(ScaleBlock::B32, 1, COLS);
    quants.quantize(isa, &pool, &x, COLS);
    let mut bench = Bench { isa, pool, quants, x, out: vec![0.0; ROWS] };
    let make = |count| (0..count).map(|i| vec![i as u8 & 15; len]).collect::<Vec<_>>();
    let (kept, passing) = (make(KEPT), make(PASSING));
    let megabytes = |count: usize| count * len / 1_000_000;
    println!("{} MB kept, {} MB pass by, GB/s", megabytes(KEPT), megabytes(PASSING));
    for past in [false, true] {
        let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            bench.read(&kept, false);
            speeds[0].push(bench.read(&kept, false));
            speeds[1].push(bench.read(&passing, past));
            speeds[2].push(bench.read(&kept, false));
        }
        let [before, passing, after] = speeds.map(|mut speeds| {
            speeds.sort_by(f64::total_cmp);
            speeds[ROUNDS / 2]
        });
        println!("past {past}: in the cache {before:.1}, passing {passing:.1}, after {after:.1}");
        assert!(before > 0.0 && passing > 0.0 && after > 0.0);
    }
}
