//! Quantisation against its formula: the scale, the factors of a super-block's groups, quants
//! rounded to nearest even; sums of quants; zeros behind the row.

use super::*;
use crate::testing::{Noise, same};
use proptest::prelude::*;

/// Quants, scale and shifts of one block.
fn quantized(x: &[f32]) -> (Vec<i8>, f32, Vec<i32>) {
    let groups = x.len() / 32;
    if x.iter().any(|x| !x.is_finite()) {
        return (vec![0; x.len()], f32::NAN, vec![0; groups]);
    }
    let magnitude = |x: &[f32]| x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let largest = magnitude(x);
    if largest < 1e-30 {
        return (vec![0; x.len()], 0.0, vec![0; groups]);
    }
    if groups == 1 {
        let inverse = 127.0 / largest;
        let q = x.iter().map(|x| (x * inverse).round_ties_even() as i8).collect();
        return (q, largest / 127.0, vec![0]);
    }
    let inverse = 508.0 / largest;
    let mut q = Vec::new();
    let mut shifts = Vec::new();
    for group in x.chunks_exact(32) {
        let top = magnitude(group);
        let coarse = top > 0.5 * largest || top < largest / 16.0;
        let shift = if coarse { 2 } else { i32::from(top > 0.25 * largest) };
        let factor = inverse / 2.0_f32.powi(shift);
        q.extend(group.iter().map(|x| (x * factor).round_ties_even() as i8));
        shifts.push(shift);
    }
    (q, largest / 508.0, shifts)
}

/// What differs between `rows` and the formula, if anything does.
fn difference(rows: &QuantRows, block: usize, x: &[f32], len: usize) -> Option<String> {
    let sum = |q: &[i8]| q.iter().copied().map(i32::from).sum::<i32>();
    for (r, x) in x.chunks_exact(len).enumerate() {
        let row = rows.row(r);
        if row.bytes.len() != len.next_multiple_of(256) || row.bytes[len..].iter().any(|q| *q != 0)
        {
            return Some(format!("row {r}: padding"));
        }
        for (b, x) in x.chunks_exact(block).enumerate() {
            let (q, scale, shifts) = quantized(x);
            let found = &row.shifts[b * block / 32..(b + 1) * block / 32];
            let quants = &row.bytes[b * block..(b + 1) * block];
            if quants != q || !same(row.scales[b], scale) || found != shifts {
                return Some(format!("row {r}, block {b}"));
            }
        }
        for (g, q) in row.bytes.chunks_exact(32).enumerate() {
            let (first, second) = (sum(&q[..16]), sum(&q[16..]));
            let factor = 1 << row.shifts[g];
            let right = if block == 32 {
                row.floats[g] == sum(q) as f32 && row.starts[g] == -16 * sum(q)
            } else {
                row.halves[g].map(i32::from) == [first * factor, second * factor]
                    && i32::from(row.sums[g]) == sum(q) * factor
                    && row.starts[2 * g..2 * g + 2] == [-32 * first, -32 * second]
            };
            if !right {
                return Some(format!("row {r}, sums {g}"));
            }
        }
    }
    None
}

/// What differs between `rows`, which lie for tiles, and the same rows one by one.
fn tiled_difference(rows: &QuantRows, block: ScaleBlock, x: &[f32], len: usize) -> Option<String> {
    let pool = Pool::new(1).expect("threads");
    let mut single = QuantRows::with_capacity(block, 1, len);
    for (r, x) in x.chunks_exact(len).enumerate() {
        single.quantize(Isa::SCALAR, &pool, x, len);
        let row = single.row(0);
        for t in 0..len.div_ceil(256) {
            let (lines, c) = (rows.tile(r / 16, t), r % 16);
            let bytes: &[i8] = bytemuck::cast_slice(lines);
            let word = |line: usize| lines[line].0[c];
            let quants = (0..256).all(|i| {
                let q = i32::from(row.bytes[256 * t + i]);
                match block {
                    ScaleBlock::B32 => i32::from(bytes[512 * (i / 32) + 32 * c + i % 32]) == q,
                    ScaleBlock::B256 => {
                        let at = 1024 * (i / 64) + 64 * c + i % 64;
                        let (high, low) = (i32::from(bytes[at]), i32::from(bytes[4096 + at]));
                        4 * high + low == q << row.shifts[8 * t + i / 32]
                    }
                }
            });
            let places: &[(usize, usize)] = match block {
                ScaleBlock::B32 => &[(t32::FLOATS, b32::FLOATS), (t32::SCALES, b32::SCALES)],
                ScaleBlock::B256 => &[(t256::HALVES, b256::HALVES)],
            };
            let mut pairs: Vec<(usize, usize)> =
                places.iter().flat_map(|(a, b)| (0..8).map(move |i| (a + i, b + i))).collect();
            if block == ScaleBlock::B256 {
                pairs.extend((0..4).map(|i| (t256::PAIRS + i, b256::PAIRS + i)));
                pairs.push((t256::SCALE, b256::SCALE));
            }
            let same =
                |(line, w): &(usize, usize)| word(*line) == single.words()[single.place(0, t, *w)];
            if !quants || !pairs.iter().all(same) {
                return Some(format!("row {r}, tile {t}"));
            }
        }
    }
    None
}

#[test]
fn a_wrong_word_of_a_tile_is_noticed_wherever_it_is() {
    let x = Noise::new(9).floats(16 * 256);
    let pool = Pool::new(1).expect("threads");
    let isa = Isa::available().into_iter().find(|isa| isa.tiles().is_some()).expect("plain tiles");
    for block in [ScaleBlock::B32, ScaleBlock::B256] {
        let mut rows = QuantRows::with_capacity(block, 16, 256);
        rows.quantize(isa, &pool, &x, 256);
        assert_eq!(tiled_difference(&rows, block, &x, 256), None);
        for line in 0..block.tile_lines() {
            for word in [0, 7, 15] {
                rows.lines[line].0[word] ^= 1;
                let found = tiled_difference(&rows, block, &x, 256);
                assert!(found.is_some(), "line {line}, word {word}");
                rows.lines[line].0[word] ^= 1;
            }
        }
    }
}

fn check(block: ScaleBlock, rows: usize, len: usize, x: &[f32]) {
    for threads in [1, 2] {
        let pool = Pool::new(threads).expect("threads");
        for isa in Isa::available() {
            let mut quant = QuantRows::with_capacity(block, rows, len.max(512));
            // The buffers are dirty from a row of another length.
            quant.quantize(isa, &pool, &vec![1.0; 512], 512);
            quant.quantize(isa, &pool, x, len);
            let difference = match quant.tiled() {
                true => tiled_difference(&quant, block, x, len),
                false => difference(&quant, block.len(), x, len),
            };
            assert_eq!(difference, None, "{isa:?}");
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
            for rows in [1, 2, 3, 5, 8, 15, 17] {
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
fn groups_at_the_borders_of_their_factors() {
    // The largest magnitude of group g is the given part of the block's.
    let parts = [1.0, 0.5, 0.500_000_1, 0.25, 0.250_000_03, 0.062_499, 0.062_5, 0.0];
    let x: Vec<f32> =
        (0..256).map(|i| parts[i / 32] * if i % 32 == 7 { 3.7 } else { -1.3 }).collect();
    check(ScaleBlock::B256, 1, 256, &x);
    let mut rows = QuantRows::with_capacity(ScaleBlock::B256, 1, 256);
    rows.quantize(Isa::SCALAR, &Pool::new(1).expect("threads"), &x, 256);
    assert_eq!(rows.row(0).shifts, [2, 1, 2, 0, 1, 2, 0, 2]);
}

fn flip(rows: &mut QuantRows, place: usize) {
    bytemuck::cast_slice_mut::<Line, i32>(&mut rows.lines)[place] ^= 1;
}

#[test]
fn a_wrong_word_is_noticed_wherever_it_is() {
    let x = Noise::new(8).floats(3 * 512);
    let pool = Pool::new(1).expect("threads");
    for (block, len, words) in
        [(ScaleBlock::B32, 288, b32::WORDS), (ScaleBlock::B256, 512, b256::WORDS)]
    {
        let x = &x[..3 * len];
        let mut rows = QuantRows::with_capacity(block, 3, len);
        rows.quantize(Isa::SCALAR, &pool, x, len);
        assert_eq!(difference(&rows, block.len(), x, len), None);
        for word in 0..words {
            let place = rows.place(word % 3, 0, word);
            flip(&mut rows, place);
            assert!(difference(&rows, block.len(), x, len).is_some(), "word {word}");
            flip(&mut rows, place);
        }
        // The padding behind 288 elements.
        let place = rows.place(1, 1, 63);
        flip(&mut rows, place);
        assert!(difference(&rows, block.len(), x, len).is_some());
    }
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
