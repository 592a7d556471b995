//! Products against literal loops over the formulas of the module's documentation, by bits.

use super::*;
use crate::act::row::QuantRow;
use crate::format::Super;
use crate::testing::{Noise, assert_same, first_difference, tree, weights};
use proptest::prelude::*;

/// A row of weights as the numbers that the formulas speak of, and its product with a row of
/// floats or of quants.
trait Row {
    fn dot(&self, x: &[f32], q: Option<&QuantRow>) -> f32;
}

/// Blocks of 32 or super-blocks: d, −dmin or m, the quants without their offset, and the scale
/// and min of each 16 elements.
struct Block {
    d: f32,
    m: Option<f32>,
    quants: Vec<i32>,
    scales: Vec<i32>,
    mins: Vec<i32>,
}

struct Blocks(Vec<Block>);
struct Floats(Vec<f32>);

impl Row for Blocks {
    /// t = d · isum; t = fma(m, msum, t); y = fma(dx, t, y), block by block. Quants of a
    /// super-block count as often as their group's factor says.
    fn dot(&self, _x: &[f32], q: Option<&QuantRow>) -> f32 {
        let row = q.expect("quantised activations");
        let mut y = 0.0;
        let len = self.0[0].quants.len();
        for (b, block) in self.0.iter().enumerate() {
            let x = &row.bytes[b * len..(b + 1) * len];
            let (mut isum, mut msum) = (0, 0);
            for (i, (w, x)) in block.quants.iter().zip(x).enumerate() {
                let x = i32::from(*x) * (1 << row.shifts[(b * len + i) / 32]);
                isum += block.scales[i / 16] * w * x;
                msum += block.mins[i / 16] * x;
            }
            let mut t = block.d * isum as f32;
            if let Some(m) = block.m {
                t = m.mul_add(msum as f32, t);
            }
            y = row.scales[b].mul_add(t, y);
        }
        y
    }
}

impl Row for Floats {
    /// Sixteen chains of fma, added by the tree; what is missing to 16 is zero.
    fn dot(&self, x: &[f32], _q: Option<&QuantRow>) -> f32 {
        let mut lanes = [0.0_f32; 16];
        let len = x.len().next_multiple_of(16);
        for i in 0..len {
            let (w, x) = if i < x.len() { (self.0[i], x[i]) } else { (0.0, 0.0) };
            lanes[i % 16] = w.mul_add(x, lanes[i % 16]);
        }
        tree(lanes)
    }
}

/// Reads one row of weights; the formats' own tests compare this with an independent reader.
struct Read<'a>(&'a [u8]);

struct Unpack32<F: Format32>(F::Block);
struct Unpack256<F: Format256>(F::Block);

impl<F: Format32> Op for Unpack32<F> {
    type Output = ([u8; 32], [u16; 2]);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let mut out = [0; 32];
        let d = F::unpack(simd, &self.0, &mut out);
        (out, d)
    }
}

impl<F: Format256> Op for Unpack256<F> {
    type Output = Super;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Super {
        let mut out = Super::ZERO;
        F::unpack(simd, &self.0, &mut out);
        out
    }
}

fn quants(w: &[u8], signed: bool, offset: i32) -> Vec<i32> {
    let number = |w: &u8| if signed { i32::from(w.cast_signed()) } else { i32::from(*w) };
    w.iter().map(|w| number(w) - offset).collect()
}

fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

impl Visitor for Read<'_> {
    type Output = Box<dyn Row>;

    fn float<F: Float>(self) -> Box<dyn Row> {
        let mut out = vec![0.0; self.0.len() / F::DTYPE.block_bytes()];
        crate::dequantize(Isa::SCALAR, F::DTYPE, self.0, &mut out).expect("lengths agree");
        Box::new(Floats(out))
    }

    fn blocks32<F: Format32>(self) -> Box<dyn Row> {
        let read = |block: &F::Block| {
            let (w, d) = Isa::SCALAR.run(Unpack32::<F>(*block));
            Block {
                d: half(d[0]),
                m: F::HAS_MIN.then(|| half(d[1])),
                quants: quants(&w, F::SIGNED, F::OFFSET),
                scales: vec![1; 2],
                mins: vec![1; 2],
            }
        };
        Box::new(Blocks(format::blocks(self.0).iter().map(read).collect()))
    }

    fn blocks256<F: Format256>(self) -> Box<dyn Row> {
        let read = |block: &F::Block| {
            let unpacked = Isa::SCALAR.run(Unpack256::<F>(*block));
            Block {
                d: half(unpacked.d[0]),
                m: F::HAS_MIN.then(|| -half(unpacked.d[1])),
                quants: quants(&unpacked.w, F::SIGNED, F::OFFSET),
                scales: unpacked.scales.map(i32::from).to_vec(),
                mins: unpacked.mins.map(i32::from).to_vec(),
            }
        };
        Box::new(Blocks(format::blocks(self.0).iter().map(read).collect()))
    }
}

/// Rows of `len` activations as `isa` quantises them for weights of a dtype.
fn quantized(isa: Isa, dtype: DType, x: &[f32], len: usize) -> Option<QuantRows> {
    scale_block(dtype).map(|block| {
        let mut rows = QuantRows::with_capacity(block, x.len() / len, len);
        rows.quantize(isa, &Pool::new(1).expect("threads"), x, len);
        rows
    })
}

/// The input that these rows and their quants are.
fn input<'a>(
    dtype: DType,
    x: &'a [f32],
    len: usize,
    quants: Option<&'a QuantRows>,
    exact: bool,
) -> Input<'a> {
    let of = |block| quants.filter(|_| scale_block(dtype) == Some(block));
    let (q32, q256) = (of(ScaleBlock::B32), of(ScaleBlock::B256));
    Input { x, len, q32, q256, exact }
}

/// \[n\]\[rows\] by the formulas.
fn expected(weights: Matrix<'_>, input: Input<'_>) -> Vec<f32> {
    let row_bytes = weights.bytes.len() / weights.rows;
    let rows: Vec<Box<dyn Row>> = (weights.bytes.chunks_exact(row_bytes))
        .map(|bytes| match input.exact {
            false => format::visit(weights.dtype, Read(bytes)),
            true => {
                let mut floats = vec![0.0; weights.cols];
                crate::dequantize(Isa::SCALAR, weights.dtype, bytes, &mut floats).expect("fits");
                Box::new(Floats(floats))
            }
        })
        .collect();
    let quants = input.q32.or(input.q256);
    let columns = input.x.chunks_exact(input.len).enumerate();
    columns
        .flat_map(|(c, x)| {
            let quants = quants.map(|q| q.row(c));
            rows.iter().map(|row| row.dot(x, quants.as_ref())).collect::<Vec<f32>>()
        })
        .collect()
}

/// The same matrix in panels, if its format is packed.
fn packed(weights: Matrix<'_>) -> Option<Vec<u8>> {
    let mut out = vec![7; packed_bytes(weights.dtype, weights.rows, weights.cols)?];
    crate::pack(
        &Pool::new(2).expect("threads"),
        weights.dtype,
        weights.row_bytes(),
        weights.bytes,
        &mut out,
    );
    Some(out)
}

fn found(isa: Isa, pool: &Pool, weights: Matrix<'_>, input: Input<'_>) -> Vec<f32> {
    let mut out = vec![7.0; input.rows() * weights.rows];
    matmul(isa, pool, input, &mut [Product { weights, bias: None, out: &mut out }], &[]);
    out
}

/// Compares the product with the formulas for each of `batches`, on every instruction set.
fn check(
    weights: Matrix<'_>,
    x: Vec<f32>,
    batches: &[usize],
    pools: &[Pool],
    isas: &[Isa],
    exact: bool,
) {
    let Matrix { dtype, rows, cols, .. } = weights;
    let reference = quantized(Isa::SCALAR, dtype, &x, cols);
    let expected = expected(weights, input(dtype, &x, cols, reference.as_ref(), exact));
    let bytes = if exact { None } else { packed(weights) };
    let panels = bytes.as_ref().map(|b| Matrix::packed(dtype, rows, cols, b).expect("fits"));
    for &n in batches {
        for &isa in isas {
            let x = &x[..n * cols];
            let quants = quantized(isa, dtype, x, cols);
            let input = input(dtype, x, cols, quants.as_ref(), exact);
            for pool in pools {
                let past = panels.map(|panels| panels.read_past(true));
                for weights in std::iter::once(weights).chain(panels).chain(past) {
                    let found = found(isa, pool, weights, input);
                    assert_same(&expected[..n * rows], &found, &|| {
                        let (threads, layout) = (pool.threads(), weights.layout);
                        let shape = format!("{dtype} {rows} x {cols} in {layout:?}");
                        format!("{shape}, n = {n}, {isa:?}, {threads} threads")
                    });
                }
            }
        }
    }
}

fn pools(threads: &[usize]) -> Vec<Pool> {
    threads.iter().map(|n| Pool::new(*n).expect("threads")).collect()
}

fn random_quant(noise: &mut Noise) -> u8 {
    noise.word() as u8
}

/// Columns for a dtype: odd ones, partial groups of eight blocks, several super-blocks.
fn column_counts(dtype: DType) -> &'static [usize] {
    match dtype.block_len() {
        1 => &[1, 7, 100, 256, 288],
        32 => &[32, 64, 256, 288, 512, 576],
        _ => &[256, 512, 768],
    }
}

#[test]
fn every_format_shape_and_batch_gives_the_formulas_bits() {
    let mut noise = Noise::new(1);
    let pools = pools(&[1]);
    for dtype in DType::ALL {
        for (i, &cols) in column_counts(dtype).iter().enumerate() {
            for (j, rows) in [1, 3, 15, 16, 17, 33].into_iter().enumerate() {
                let bytes = weights(dtype, rows * cols, &mut noise, random_quant);
                let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
                // Larger batches on a diagonal of the shapes.
                let batches: &[usize] = match (i + j) % 3 {
                    0 => &[1, 2, 3, 4, 5, 6, 7, 8, 9],
                    1 => &[1, 2, 3, 4, 5, 8, 16],
                    _ => &[1, 3, 4, 7, 33],
                };
                let x = noise.floats(batches.iter().max().expect("a size") * cols);
                check(matrix, x, batches, &pools, &Isa::available(), false);
            }
        }
    }
}

#[test]
fn large_batches_and_many_threads_change_nothing() {
    let mut noise = Noise::new(2);
    let pools = pools(&[1, 2, 5]);
    for dtype in DType::ALL {
        // Several pieces of work, the last one partial.
        let (rows, cols) = (333, 512);
        let bytes = weights(dtype, rows * cols, &mut noise, random_quant);
        let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
        let x = noise.floats(9 * cols);
        check(matrix, x, &[1, 3, 9], &pools, &Isa::available(), false);
        // The columns are split at 256.
        let matrix = matrix.row_range(300, 18);
        let x = noise.floats(512 * cols);
        check(matrix, x, &[64, 257, 512], &pools[1..2], &[Isa::detect()], false);
    }
}

#[test]
fn exact_mode_multiplies_dequantised_weights() {
    let mut noise = Noise::new(3);
    for dtype in DType::ALL {
        for (rows, cols) in [(17, 256), (1, 768)] {
            let bytes = weights(dtype, rows * cols, &mut noise, random_quant);
            let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
            let x = noise.floats(9 * cols);
            check(matrix, x, &[1, 2, 3, 4, 5, 9], &pools(&[2]), &Isa::available(), true);
        }
    }
}

/// The sums that come closest to the limits of 16 bits: all quants and all activations largest.
#[test]
fn extreme_quants_do_not_overflow() {
    let mut noise = Noise::new(4);
    for dtype in DType::ALL {
        for quant in [0x00, 0x7f, 0x80, 0x81, 0xff, 0xf0, 0x0f, 0x88] {
            let (rows, cols) = (17, 512);
            let bytes = weights(dtype, rows * cols, &mut noise, |_| quant);
            let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
            // Rows all +, all −, and of alternating sign.
            let x = (0..17 * cols).map(|i| match i / cols {
                0 => 1.0,
                1 => -1.0,
                row if (i / row) % 2 == 0 => 1.0,
                _ => -1.0,
            });
            check(matrix, x.collect(), &[1, 2, 5, 17], &pools(&[1]), &Isa::available(), false);
        }
    }
}

/// Any bytes at all: scales that are infinite or not numbers, and subnormal products.
#[test]
fn hostile_bytes_give_the_same_bits_or_nan() {
    let mut noise = Noise::new(5);
    for dtype in DType::ALL {
        for power in [0.0, 60.0, -110.0] {
            let (rows, cols) = (17, 512);
            let bytes = noise.bytes(dtype.row_bytes(rows * cols).expect("whole blocks"));
            let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
            let x = noise.floats(17 * cols).into_iter().map(|x| x * f32::exp2(power)).collect();
            check(matrix, x, &[1, 5, 17], &pools(&[1]), &Isa::available(), false);
        }
    }
}

#[test]
fn activations_that_are_not_finite_poison_their_own_row_only() {
    let mut noise = Noise::new(6);
    for dtype in DType::ALL {
        let (rows, cols, n) = (17, 512, 6);
        let bytes = weights(dtype, rows * cols, &mut noise, random_quant);
        let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for isa in Isa::available() {
                let mut x = noise.floats(n * cols);
                x[2 * cols + 77] = bad;
                for n in [3, 6] {
                    let x = &x[..n * cols];
                    let quants = quantized(isa, dtype, x, cols);
                    let input = input(dtype, x, cols, quants.as_ref(), false);
                    let out = found(isa, &pools(&[1])[0], matrix, input);
                    for (c, out) in out.chunks_exact(rows).enumerate() {
                        let nan = !dtype.is_float() || bad.is_nan();
                        let poisoned = |y: &f32| if nan { y.is_nan() } else { !y.is_finite() };
                        assert!(c != 2 || out.iter().all(poisoned), "{dtype}, {bad}");
                        assert!(c == 2 || out.iter().all(|y| y.is_finite()), "{dtype}, {bad}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_that_share_a_join_give_what_each_gives_alone() {
    let mut noise = Noise::new(7);
    let cols = 512;
    let shapes = [(DType::Q4_K, 130), (DType::Q6_K, 33), (DType::Q8_0, 64), (DType::F16, 7)];
    let bytes = shapes.map(|(dtype, rows)| weights(dtype, rows * cols, &mut noise, random_quant));
    let matrix = |i: usize| Matrix::new(shapes[i].0, shapes[i].1, cols, &bytes[i]).expect("fits");
    for n in [1, 5] {
        let x = noise.floats(n * cols);
        let isa = Isa::detect();
        let q32 = quantized(isa, DType::Q8_0, &x, cols);
        let q256 = quantized(isa, DType::Q4_K, &x, cols);
        let (q32, q256) = (q32.as_ref(), q256.as_ref());
        let input = Input { x: &x, len: cols, q32, q256, exact: false };
        for pool in pools(&[1, 2, 5]) {
            let alone: Vec<_> = (0..4).map(|i| found(isa, &pool, matrix(i), input)).collect();
            let mut outs: Vec<_> = alone.iter().map(|out| vec![7.0; out.len()]).collect();
            let mut products: Vec<_> = (outs.iter_mut().enumerate())
                .map(|(i, out)| Product { weights: matrix(i), bias: None, out })
                .collect();
            matmul(isa, &pool, input, &mut products, &[Some(matrix(1)), None, Some(matrix(0))]);
            for (alone, shared) in alone.iter().zip(&outs) {
                assert_same(alone, shared, &|| format!("n = {n}, {pool:?}"));
            }
        }
    }
}

#[test]
fn a_bias_is_added_to_every_row() {
    let mut noise = Noise::new(9);
    let (rows, cols) = (150, 64);
    let bytes = weights(DType::Q8_0, rows * cols, &mut noise, random_quant);
    let matrix = Matrix::new(DType::Q8_0, rows, cols, &bytes).expect("fits");
    let bias = noise.floats(rows);
    for n in [1, 3] {
        let x = noise.floats(n * cols);
        let quants = quantized(Isa::detect(), DType::Q8_0, &x, cols);
        let input = input(DType::Q8_0, &x, cols, quants.as_ref(), false);
        for pool in pools(&[1, 3]) {
            let mut wanted = found(Isa::detect(), &pool, matrix, input);
            for row in wanted.chunks_exact_mut(rows) {
                row.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias);
            }
            let mut out = vec![7.0; n * rows];
            let product = Product { weights: matrix, bias: Some(&bias), out: &mut out };
            matmul(Isa::detect(), &pool, input, &mut [product], &[]);
            assert_same(&wanted, &out, &|| format!("n = {n}, {pool:?}"));
        }
    }
}

/// The parts of quantised rows as plain numbers.
fn numbers(quants: &QuantRows, n: usize) -> Vec<f32> {
    let row = |row: usize| {
        let row = quants.row(row);
        let quants = row.bytes.iter().map(|q| f32::from(*q));
        let starts = row.starts.iter().map(|start| *start as f32);
        quants.chain(starts).chain(row.scales.iter().copied()).collect::<Vec<f32>>()
    };
    (0..n).flat_map(row).collect()
}

#[test]
fn the_inner_part_of_a_feed_forward_gives_what_its_steps_give() {
    let mut noise = Noise::new(8);
    let (len, cols) = (1280, 256);
    let types = [DType::Q4_K, DType::Q6_K];
    let bytes = types.map(|dtype| weights(dtype, len * cols, &mut noise, random_quant));
    let matrix = |i: usize| Matrix::new(types[i], len, cols, &bytes[i]).expect("fits");
    let (isa, function) = (Isa::detect(), aios_contract::ActivationFn::Silu);
    for (n, gated) in [(1, true), (1, false), (3, true), (20, true)] {
        let x = noise.floats(n * cols);
        let of_input = quantized(isa, DType::Q4_K, &x, cols);
        let input = input(DType::Q4_K, &x, cols, of_input.as_ref(), false);
        for (block, pool) in [ScaleBlock::B32, ScaleBlock::B256]
            .into_iter()
            .flat_map(|block| pools(&[1, 2, 5]).into_iter().map(move |pool| (block, pool)))
        {
            let gate = gated.then(|| found(isa, &pool, matrix(0), input));
            let mut up = found(isa, &pool, matrix(1), input);
            crate::activate(isa, &pool, function, gate.as_deref(), len, &mut up);
            let least: Vec<f32> = up[..len].iter().map(|x| x.abs() * 1.01).rev().collect();
            let least = (n == 3).then_some(least.as_slice());
            if let Some(least) = least {
                for (i, x) in up.iter_mut().enumerate() {
                    *x = if x.abs() < least[i % len] { 0.0 } else { *x };
                }
                assert!(up.contains(&0.0) && up.iter().any(|x| *x != 0.0));
            }
            let mut wanted = QuantRows::with_capacity(block, n, len);
            wanted.quantize(isa, &pool, &up, len);

            let mut quants = QuantRows::with_capacity(block, n, len);
            let (mut gate, mut result) = (vec![7.0; n * len], vec![7.0; n * len]);
            let product = |i, out| Product { weights: matrix(i), bias: None, out };
            let mut call = Inner {
                gate: gated.then(|| product(0, &mut gate)),
                up: product(1, &mut result),
                function,
                least,
                quants: &mut quants,
                done: &mut Vec::new(),
            };
            inner(isa, &pool, input, &mut call, &[]);
            let on = || format!("n = {n}, {gated}, {block:?}, {pool:?}");
            assert_same(&up, &result, &on);
            assert_same(&numbers(&wanted, n), &numbers(&quants, n), &on);
        }
    }
}

#[test]
fn packed_shapes_that_do_not_fit_are_refused() {
    let bytes = [0; 16 * 144];
    for (rows, cols, len) in [(17, 256, 16 * 144), (1, 256, 144), (16, 128, 16 * 72), (1, 0, 0)] {
        let error = MatrixError { dtype: DType::Q4_K, rows, cols, bytes: len };
        assert_eq!(Matrix::packed(DType::Q4_K, rows, cols, &bytes[..len]).err(), Some(error));
    }
    assert!(Matrix::packed(DType::F32, 16, 36, &bytes).is_err());
    assert!(Matrix::packed(DType::Q4_K, usize::MAX, 256, &bytes).is_err());
    let matrix = Matrix::packed(DType::Q4_K, 9, 256, &bytes).expect("fits");
    assert_eq!(matrix.row_range(0, 3).bytes().len(), 16 * 144);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let bytes = [0; 288];
    for (rows, cols, len) in [(1, 256, 143), (2, 256, 144), (1, 255, 144), (1, 0, 0)] {
        let error = MatrixError { dtype: DType::Q4_K, rows, cols, bytes: len };
        assert_eq!(Matrix::new(DType::Q4_K, rows, cols, &bytes[..len]).err(), Some(error));
    }
    assert!(Matrix::new(DType::Q4_K, usize::MAX, 256, &bytes).is_err());
    assert!(Matrix::new(DType::F32, 2, usize::MAX / 2, &bytes).is_err());
    let matrix = Matrix::new(DType::Q4_K, 2, 256, &bytes).expect("fits");
    assert_eq!((matrix.row_range(1, 1).rows(), matrix.row_range(1, 1).bytes().len()), (1, 144));
}

/// Quantised rows that are those of another input (fewer, or of another length) or in groups that
/// are too wide for the instruction set.
#[test]
fn quantised_rows_of_another_shape_are_refused() {
    let bytes = [0; 288];
    let matrix = Matrix::new(DType::Q4_K, 1, 512, &bytes).expect("fits");
    for (n, len) in [(1, 512), (2, 256), (4, 256)] {
        let other = quantized(Isa::SCALAR, DType::Q4_K, &vec![1.0; n * len], len);
        let x = [1.0; 1024];
        let q256 = other.as_ref();
        let input = Input { x: &x, len: 512, q32: None, q256, exact: false };
        let refused =
            std::panic::catch_unwind(|| found(Isa::SCALAR, &pools(&[1])[0], matrix, input));
        assert!(refused.is_err(), "{n} rows of {len}");
    }
    let isa = Isa::detect();
    if isa != Isa::SCALAR {
        let x = [1.0; 3 * 512];
        let wide = quantized(isa, DType::Q4_K, &x, 512);
        let input = input(DType::Q4_K, &x, 512, wide.as_ref(), false);
        let refused =
            std::panic::catch_unwind(|| found(Isa::SCALAR, &pools(&[1])[0], matrix, input));
        assert!(refused.is_err(), "groups of three");
    }
}

/// The comparison sees one flipped bit of a quant or of an activation, and another order.
#[test]
fn a_planted_error_is_noticed() {
    let mut noise = Noise::new(8);
    for dtype in DType::ALL {
        let (rows, cols) = (3, 768);
        let bytes = weights(dtype, rows * cols, &mut noise, random_quant);
        let x = noise.floats(cols);
        let isa = Isa::detect();
        let right = quantized(isa, dtype, &x, cols);
        let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
        let good = expected(matrix, input(dtype, &x, cols, right.as_ref(), false));
        let differs = |bytes: &[u8], x: &[f32]| {
            let matrix = Matrix::new(dtype, rows, cols, bytes).expect("fits");
            let quants = quantized(isa, dtype, x, cols);
            let input = input(dtype, x, cols, quants.as_ref(), false);
            let found = found(isa, &pools(&[1])[0], matrix, input);
            first_difference(&good, &found).is_some()
        };
        assert!(!differs(&bytes, &x));
        let mut wrong = bytes.clone();
        wrong[bytes.len() / 2 + 41] ^= 0x11;
        assert!(differs(&wrong, &x), "{dtype}: a weight");
        let mut wrong = x.clone();
        wrong[300] = -wrong[300] + 0.5;
        assert!(differs(&bytes, &wrong), "{dtype}: an activation");
        let block = dtype.block_bytes() * if dtype.is_float() { 16 } else { 1 };
        let len = dtype.block_len() * if dtype.is_float() { 16 } else { 1 };
        let row = bytes.len() / rows;
        let turned = |bytes: &[u8]| bytes.chunks_exact(block).rev().flatten().copied().collect();
        let reversed: Vec<u8> =
            bytes.chunks_exact(row).flat_map(|row| -> Vec<u8> { turned(row) }).collect();
        let x: Vec<f32> = x.chunks_exact(len).rev().flatten().copied().collect();
        assert!(differs(&reversed, &x), "{dtype}: the order of blocks");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_shape_gives_the_formulas_bits(
        format in 0..DType::ALL.len(),
        rows in 1..40_usize,
        blocks in 1..20_usize,
        n in 1..24_usize,
        threads in 1..4_usize,
        seed: u64,
    ) {
        let dtype = DType::ALL[format];
        let len = dtype.block_len();
        let cols = if len == 256 { len * (blocks / 4 + 1) } else { len * blocks };
        let mut noise = Noise::new(seed);
        let bytes = weights(dtype, rows * cols, &mut noise, random_quant);
        let matrix = Matrix::new(dtype, rows, cols, &bytes).expect("fits");
        let x = noise.floats(n * cols);
        check(matrix, x, &[n], &pools(&[threads]), &[Isa::detect()], false);
    }
}
