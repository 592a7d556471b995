//! Products of what is stored column after column have the bits of the dense ones.

use super::*;
use crate::act::{QuantRows, ScaleBlock};
use crate::isa::Isa;
use crate::matmul::{Input, Matrix, Product, matmul, scale_block};
use crate::pool::Pool;
use crate::testing::{Noise, assert_same, first_difference, weights};
use proptest::prelude::*;

const DTYPES: [DType; 5] = [DType::Q4_0, DType::Q4_1, DType::Q8_0, DType::Q4_K, DType::Q6_K];

/// Floats of which about `zeros` of 100 are 0, in the ranges `empty` all.
fn sparse(noise: &mut Noise, len: usize, zeros: u64, empty: &[std::ops::Range<usize>]) -> Vec<f32> {
    let mut x: Vec<f32> = (0..len)
        .map(|_| match noise.word() % 100 < zeros {
            true => [0.0, -0.0][noise.word() as usize % 2],
            false => noise.float(),
        })
        .collect();
    for range in empty {
        x[range.start.min(len)..range.end.min(len)].fill(0.0);
    }
    x
}

/// The dense product and that of the columns, on `isa` and `pool`.
fn both(
    isa: Isa,
    pool: &Pool,
    matrix: Matrix<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
) -> [Vec<f32>; 2] {
    let (dtype, rows, cols) = (matrix.dtype(), matrix.rows(), matrix.cols());
    let block = scale_block(dtype).expect("quantised");
    let mut quants = QuantRows::with_capacity(block, 1, cols);
    quants.quantize(isa, pool, x, cols);
    let of = |wanted| (block == wanted).then_some(&quants);
    let (q32, q256) = (of(ScaleBlock::B32), of(ScaleBlock::B256));
    let input = Input { x, len: cols, q32, q256, exact: false };
    let mut dense = vec![7.0; rows];
    matmul(isa, pool, input, &mut [Product { weights: matrix, bias, out: &mut dense }], &[]);
    let shape = NeuronShape::new(dtype, rows, cols).expect("a shape");
    let mut packed = vec![0xaa; shape.bytes()];
    pack_neurons(pool, shape, matrix.bytes(), &mut packed).expect("finite scales");
    let stored = Neurons::new(shape, &packed).expect("as many bytes");
    let mut active = ActiveNeurons::default();
    active.fill(shape, &quants);
    assert!(active.count() <= x.iter().filter(|x| **x != 0.0).count());
    let mut out = vec![7.0; rows];
    neurons(isa, pool, stored, (&quants, &active), bias, &mut out, &[]);
    [dense, out]
}

#[test]
fn columns_give_the_bits_of_rows_on_every_set_with_any_threads() {
    let mut noise = Noise::new(1);
    let pools = [1, 2, 5].map(|threads| Pool::new(threads).expect("threads"));
    for dtype in DTYPES {
        for (rows, cols) in [(1, 256), (63, 512), (64, 768), (130, 512), (300, 1024), (257, 256)] {
            let bytes = weights(dtype, rows * cols, &mut noise, |noise| noise.word() as u8);
            let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
            let bias = noise.floats(rows);
            for zeros in [0, 30, 70, 95, 100] {
                let x = sparse(&mut noise, cols, zeros, &[0..64, 256..512]);
                for isa in Isa::available() {
                    for pool in &pools {
                        let bias = (zeros == 30).then_some(&*bias);
                        let [dense, out] = both(isa, pool, matrix, &x, bias);
                        let on = || format!("{dtype} {rows}x{cols} {zeros} % {isa:?} {pool:?}");
                        assert_same(&dense, &out, &on);
                    }
                }
            }
        }
    }
}

/// The largest sums: all quants and all activations largest, none of them zero.
#[test]
fn extreme_quants_do_not_overflow() {
    let mut noise = Noise::new(2);
    let pool = Pool::new(1).expect("threads");
    for dtype in DTYPES {
        for quant in [0x00, 0x7f, 0x80, 0x81, 0xff, 0xf0, 0x0f] {
            let (rows, cols) = (65, 512);
            let bytes = weights(dtype, rows * cols, &mut noise, |_| quant);
            let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
            for sign in [1.0, -1.0] {
                for isa in Isa::available() {
                    let [dense, out] = both(isa, &pool, matrix, &vec![sign; cols], None);
                    assert_same(&dense, &out, &|| format!("{dtype} {quant:#x} {isa:?}"));
                }
            }
        }
    }
}

/// Where sums may underflow to −0 no block is skipped, and what is not finite poisons as it does in
/// the dense product.
#[test]
fn tiny_and_infinite_activations_give_the_same_bits() {
    let mut noise = Noise::new(3);
    let pool = Pool::new(2).expect("threads");
    for dtype in DTYPES {
        let (rows, cols) = (140, 1024);
        let bytes = weights(dtype, rows * cols, &mut noise, |noise| noise.word() as u8);
        let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
        for power in [-60.0, -95.0, -99.0, -110.0, 40.0] {
            let mut x = sparse(&mut noise, cols, 50, std::slice::from_ref(&(256..512)));
            x.iter_mut().for_each(|x| *x *= f32::exp2(power));
            for special in [0.5, f32::INFINITY, f32::NAN] {
                x[700] = special;
                for isa in Isa::available() {
                    let [dense, out] = both(isa, &pool, matrix, &x, None);
                    assert_same(&dense, &out, &|| format!("{dtype} {power} {special} {isa:?}"));
                }
            }
        }
    }
}

#[test]
fn what_is_skipped_is_not_counted() {
    let pool = Pool::new(1).expect("threads");
    let shape = NeuronShape::new(DType::Q4_0, 256, 512).expect("a shape");
    assert_eq!(shape.bytes(), 256 * 512 / 32 * 18);
    let mut quants = QuantRows::with_capacity(ScaleBlock::B32, 1, 512);
    let mut x = vec![0.0; 512];
    let mut active = ActiveNeurons::default();
    let mut read = |x: &[f32]| {
        quants.quantize(Isa::detect(), &pool, x, 512);
        active.fill(shape, &quants);
        (active.count(), active.blocks(), shape.read_bytes(&active))
    };
    assert_eq!(read(&x), (0, 0, 0));
    (x[3], x[200], x[201]) = (1.0, -2.0, 2.0);
    assert_eq!(read(&x), (3, 2, 2 * 512 + 3 * 128));
    assert_eq!(read(&[1.0; 512]).2, shape.bytes());
    // The pieces that are read are as many bytes, within the matrix and apart from each other.
    let bytes = vec![0; shape.bytes()];
    let stored = Neurons::new(shape, &bytes).expect("as many bytes");
    for x in [&x[..], &[0.0; 512], &[1.0; 512]] {
        quants.quantize(Isa::detect(), &pool, x, 512);
        active.fill(shape, &quants);
        let mut end = bytes.as_ptr().addr();
        let mut sum = 0;
        for piece in stored.reads(&active) {
            assert!(piece.as_ptr().addr() >= end);
            end = piece.as_ptr().addr() + piece.len();
            sum += piece.len();
        }
        assert!(end <= bytes.as_ptr().addr() + bytes.len());
        assert_eq!(sum, shape.read_bytes(&active));
    }
}

#[test]
fn shapes_and_scales_that_do_not_fit_are_refused() {
    assert!(NeuronShape::new(DType::Q4_K, 64, 128).is_none());
    assert!(NeuronShape::new(DType::Q4_0, 0, 128).is_none());
    assert!(NeuronShape::new(DType::Q4_0, 16, 0).is_none());
    assert!(NeuronShape::new(DType::F16, 16, 64).is_none());
    assert!(NeuronShape::new(DType::Q5_K, 16, 256).is_none());
    assert!(NeuronShape::new(DType::Q8_0, usize::MAX, 64).is_none());
    let shape = NeuronShape::new(DType::Q8_0, 16, 64).expect("a shape");
    assert!(Neurons::new(shape, &[0; 64]).is_none());
    let mut rows = vec![0; 16 * 68];
    let mut out = vec![0; shape.bytes()];
    let pool = Pool::new(1).expect("threads");
    assert_eq!(pack_neurons(&pool, shape, &rows, &mut out), Ok(()));
    rows[68 * 5 + 34..68 * 5 + 36].copy_from_slice(&[0x00, 0x7c]);
    let refused = pack_neurons(&pool, shape, &rows, &mut out);
    assert_eq!(refused, Err(NotFiniteScale { row: 5 }));
}

/// The comparison sees one nibble, one quant that is left out, and one scale.
#[test]
fn a_planted_error_is_noticed() {
    let mut noise = Noise::new(4);
    let (isa, pool) = (Isa::detect(), Pool::new(1).expect("threads"));
    let (rows, cols) = (128, 256);
    let bytes = weights(DType::Q4_K, rows * cols, &mut noise, |noise| noise.word() as u8);
    let matrix = Matrix::new(DType::Q4_K, rows, cols, &bytes).expect("fits");
    let x = noise.floats(cols);
    let [dense, _] = both(isa, &pool, matrix, &x, None);
    let differs = |bytes: &[u8], x: &[f32]| {
        let matrix = Matrix::new(DType::Q4_K, rows, cols, bytes).expect("fits");
        first_difference(&dense, &both(isa, &pool, matrix, x, None)[1]).is_some()
    };
    assert!(!differs(&bytes, &x));
    for at in [0, 4, 60, 140] {
        let mut wrong = bytes.clone();
        wrong[144 * 77 + at] ^= 0x11;
        assert!(differs(&wrong, &x), "byte {at}");
    }
    let mut less = x.clone();
    less[100] = 0.0;
    assert!(differs(&bytes, &less));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape_gives_the_dense_bits(
        format in 0..DTYPES.len(),
        rows in 1..300_usize,
        blocks in 1..12_usize,
        zeros in 0..101_u64,
        threads in 1..4_usize,
        seed: u64,
    ) {
        let dtype = DTYPES[format];
        let blocks = if dtype.block_len() == 256 { blocks.div_ceil(4) } else { blocks };
        let cols = dtype.block_len() * blocks;
        let mut noise = Noise::new(seed);
        let bytes = weights(dtype, rows * cols, &mut noise, |noise| noise.word() as u8);
        let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
        let x = sparse(&mut noise, cols, zeros, &[]);
        let pool = Pool::new(threads).expect("threads");
        let [dense, out] = both(Isa::detect(), &pool, matrix, &x, None);
        assert_same(&dense, &out, &|| format!("{dtype} {rows}x{cols} {zeros} %"));
    }
}

/// What skipping costs: passes over some matrices in turn, so that none stays in the cache, dense
/// in panels and by columns, alternating, half a minute:
/// `cargo test --release -p aios-kernels zeros_pay -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement of time, on a quiet machine"]
fn zeros_pay_from_30_percent_on() {
    use crate::panel::{pack, packed_bytes};
    use std::time::Instant;
    const MATRICES: usize = 4;
    const ROUNDS: usize = 9;
    let isa = Isa::detect();
    let threads = crate::pool::allowed_processors().len();
    let pool = Pool::new(threads).expect("threads");
    let mut noise = Noise::new(5);
    let (rows, cols) = (4096, 11_008);
    println!(
        "{} threads, {}; ratios of medians by columns over panels",
        threads,
        isa.description()
    );
    for dtype in DTYPES {
        let bytes = weights(dtype, rows * cols, &mut noise, |noise| noise.word() as u8);
        let row_bytes = bytes.len() / rows;
        let shape = NeuronShape::new(dtype, rows, cols).expect("a shape");
        let mut panels = vec![vec![0; packed_bytes(dtype, rows, cols).expect("panels")]; MATRICES];
        let mut columns = vec![vec![0; shape.bytes()]; MATRICES];
        for i in 0..MATRICES {
            pack(&pool, dtype, row_bytes, &bytes, &mut panels[i]);
            pack_neurons(&pool, shape, &bytes, &mut columns[i]).expect("finite scales");
        }
        let block = scale_block(dtype).expect("quantised");
        let mut quants = QuantRows::with_capacity(block, 1, cols);
        let (mut active, mut out) = (ActiveNeurons::default(), vec![0.0; rows]);
        for zeros in [0, 30, 50, 70, 90] {
            let x = sparse(&mut noise, cols, zeros, &[]);
            quants.quantize(isa, &pool, &x, cols);
            let mut times = [Vec::new(), Vec::new()];
            let mut results = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                let started = Instant::now();
                for panels in &panels {
                    let weights = Matrix::packed(dtype, rows, cols, panels).expect("panels");
                    let of = |wanted| (block == wanted).then_some(&quants);
                    let (q32, q256) = (of(ScaleBlock::B32), of(ScaleBlock::B256));
                    let input = Input { x: &x, len: cols, q32, q256, exact: false };
                    let product = Product { weights, bias: None, out: &mut out };
                    matmul(isa, &pool, input, &mut [product], &[]);
                }
                times[0].push(started.elapsed().as_secs_f64());
                results[0].clone_from(&out);
                let started = Instant::now();
                for columns in &columns {
                    let weights = Neurons::new(shape, columns).expect("as many bytes");
                    active.fill(shape, &quants);
                    neurons(isa, &pool, weights, (&quants, &active), None, &mut out, &[]);
                }
                times[1].push(started.elapsed().as_secs_f64());
                results[1].clone_from(&out);
            }
            assert_same(&results[0], &results[1], &|| format!("{dtype} {zeros} %"));
            let [dense, skipped] = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                times[ROUNDS / 2]
            });
            let bytes = shape.read_bytes(&active) as f64 / panels[0].len() as f64;
            println!(
                "{dtype} {zeros} % zeros: time {:.3}, bytes {bytes:.3}, dense {:.2} GB/s",
                skipped / dense,
                (MATRICES * panels[0].len()) as f64 / dense / 1e9
            );
            assert!(zeros < 90 || skipped < dense, "{dtype} at {zeros} %");
        }
    }
}
