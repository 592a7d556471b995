//! Quantisation against its formula: scale = largest magnitude / 127, quants rounded to nearest
//! even, per block; sums of 16 quants; zeros behind the row.

use super::*;
use crate::testing::{Noise, same};
use proptest::prelude::*;

/// Quants and scale of one block.
fn quantized(x: &[f32]) -> (Vec<i8>, f32) {
    if x.iter().any(|x| !x.is_finite()) {
        return (vec![0; x.len()], f32::NAN);
    }
    let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    if largest < 1e-30 {
        return (vec![0; x.len()], 0.0);
    }
    let inverse = 127.0 / largest;
    (x.iter().map(|x| (x * inverse).round_ties_even() as i8).collect(), largest / 127.0)
}

/// What differs between `rows` and the formula, if anything does.
fn difference(rows: &QuantRows, block: usize, x: &[f32], len: usize) -> Option<String> {
    for (r, x) in x.chunks_exact(len).enumerate() {
        let row = rows.row(r);
        if row.q.len() != len.next_multiple_of(256) || row.sums.len() != row.q.len() / 16 {
            return Some(format!("row {r}: lengths"));
        }
        if row.q[len..].iter().any(|q| *q != 0) {
            return Some(format!("row {r}: padding"));
        }
        for (b, x) in x.chunks_exact(block).enumerate() {
            let (q, scale) = quantized(x);
            if row.q[b * block..(b + 1) * block] != q || !same(row.scales[b], scale) {
                return Some(format!("row {r}, block {b}"));
            }
        }
        for (g, q) in row.q.chunks_exact(16).enumerate() {
            if row.sums[g] != q.iter().copied().map(i16::from).sum::<i16>() {
                return Some(format!("row {r}, sum {g}"));
            }
        }
    }
    None
}

/// Whether every sum of 32 quants is that of its two halves.
fn block_sums_fit(rows: &QuantRows, count: usize) -> bool {
    (0..count).all(|r| {
        let row = rows.row(r);
        let sum = |q: &[i8]| q.iter().copied().map(i32::from).sum::<i32>();
        row.q.chunks_exact(32).map(sum).eq(row.block_sums.iter().copied())
    })
}

fn check(block: ScaleBlock, rows: usize, len: usize, x: &[f32]) {
    for threads in [1, 2] {
        let pool = Pool::new(threads).expect("threads");
        for isa in Isa::available() {
            let mut quant = QuantRows::with_capacity(block, rows, len.max(512));
            // The buffers are dirty from a row of another length.
            quant.quantize(isa, &pool, &vec![1.0; 512], 512);
            quant.quantize(isa, &pool, x, len);
            assert_eq!(difference(&quant, block.len(), x, len), None, "{isa:?}");
            assert!(block_sums_fit(&quant, rows), "{isa:?}");
        }
    }
}

#[test]
fn rows_are_quantised_as_the_formula_says() {
    let mut noise = Noise::new(3);
    for (block, lens) in
        [(ScaleBlock::B32, &[32, 64, 96, 256, 288, 576][..]), (ScaleBlock::B256, &[256, 512, 768])]
    {
        for &len in lens {
            for rows in [1, 2, 5] {
                check(block, rows, len, &noise.floats(rows * len));
            }
        }
    }
}

#[test]
fn blocks_of_zeros_of_ties_and_of_what_is_not_finite() {
    let mut cases: Vec<Vec<f32>> = vec![vec![0.0; 256], vec![-0.0; 256], vec![1e-31; 256]];
    // With 127 as the largest, the halves are ties.
    cases.push((0..256).map(|i| if i == 9 { 127.0 } else { i as f32 - 126.5 }).collect());
    cases.push((0..256).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 15, 31, 32, 255] {
            let mut x = Noise::new(5).floats(256);
            x[at] = bad;
            cases.push(x);
        }
    }
    for x in cases {
        check(ScaleBlock::B32, 1, 256, &x);
        check(ScaleBlock::B256, 1, 256, &x);
    }
}

#[test]
fn a_wrong_quant_sum_scale_or_padding_is_noticed() {
    let x = Noise::new(8).floats(2 * 288);
    let pool = Pool::new(1).expect("threads");
    let fresh = || {
        let mut rows = QuantRows::with_capacity(ScaleBlock::B32, 2, 288);
        rows.quantize(Isa::SCALAR, &pool, &x, 288);
        assert_eq!(difference(&rows, 32, &x, 288), None);
        rows
    };
    let plants: [fn(&mut QuantRows); 4] = [
        |rows| rows.q[40] ^= 1,
        |rows| rows.sums[20] ^= 1,
        |rows| rows.scales[3] = f32::from_bits(rows.scales[3].to_bits() + 1),
        |rows| rows.q[511] = 1,
    ];
    for plant in plants {
        let mut rows = fresh();
        plant(&mut rows);
        assert!(difference(&rows, 32, &x, 288).is_some());
    }
    let mut rows = fresh();
    assert!(block_sums_fit(&rows, 2));
    rows.block_sums[17] += 1;
    assert!(!block_sums_fit(&rows, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bits_are_quantised_as_the_formula_says(
        bits in prop::collection::vec(any::<u32>(), 256),
        keep in 0..3_u32,
    ) {
        // Random exponents, then without the non-finite ones, then of similar size.
        let mask = [u32::MAX, 0xbfff_ffff, 0x80ff_ffff][keep as usize];
        let base = if keep == 2 { 0x3f00_0000 } else { 0 };
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits((b & mask) | base)).collect();
        check(ScaleBlock::B32, 1, 256, &x);
        check(ScaleBlock::B256, 1, 256, &x);
    }
}
