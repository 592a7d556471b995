//! Norms, activations and rope against literal loops over their formulas, by bits.

use super::*;
use crate::testing::{self, Noise, assert_same, first_difference, tree};

const LENS: [usize; 6] = [1, 15, 16, 17, 64, 576];
const EPSILON: f32 = 1e-6;

/// Sixteen lanes of partial results folded over x, added by the tree.
fn lanes(x: &[f32], fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    for (i, x) in x.iter().enumerate() {
        lanes[i % 16] = fold(*x, lanes[i % 16]);
    }
    tree(lanes)
}

/// (x − mean) / sqrt(variance + ε) · gain + bias; the RMS norm has no mean.
fn expected_norm(norm: Norm<'_>, x: &[f32]) -> Vec<f32> {
    let count = x.len() as f32;
    let shift = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => lanes(x, |x, sum| x + sum) / count,
    };
    let squares = lanes(x, |x, sum| (x - shift).mul_add(x - shift, sum));
    let scale = 1.0 / (squares / count + norm.epsilon).sqrt();
    let bias = |i: usize| norm.bias.map(|bias| bias[i]);
    let scaled = x.iter().zip(norm.gain).map(|(x, gain)| (x - shift) * scale * gain);
    scaled.enumerate().map(|(i, y)| bias(i).map_or(y, |b| y + b)).collect()
}

/// Every instruction set, on one thread and on two.
fn everywhere(task: impl Fn(Isa, &Pool, &dyn Fn() -> String)) {
    for threads in [1, 2] {
        let pool = Pool::new(threads).expect("threads");
        for isa in Isa::available() {
            task(isa, &pool, &|| format!("{isa:?}, {threads} threads"));
        }
    }
}

#[test]
fn norms_follow_their_formulas() {
    let mut noise = Noise::new(1);
    for len in LENS {
        for rows in [1, 3, 5] {
            for kind in [NormKind::Rms, NormKind::Layer] {
                let (gain, bias) = (noise.floats(len), noise.floats(len));
                let x = noise.floats(rows * len);
                for bias in [None, Some(&bias[..])] {
                    let norm = Norm { kind, epsilon: EPSILON, gain: &gain, bias };
                    let expected: Vec<f32> =
                        x.chunks_exact(len).flat_map(|x| expected_norm(norm, x)).collect();
                    everywhere(|isa, pool, on| {
                        let mut out = vec![7.0; x.len()];
                        super::norm(isa, pool, norm, &x, &mut out);
                        assert_same(&expected, &out, on);
                        let mut out = x.clone();
                        norm_in_place(isa, pool, norm, &mut out);
                        assert_same(&expected, &out, on);
                    });
                }
            }
        }
    }
}

#[test]
fn norms_are_near_the_exact_ones_and_carry_nan() {
    let x = Noise::new(2).floats(577);
    let gain = vec![1.0; x.len()];
    let pool = Pool::new(1).expect("threads");
    for kind in [NormKind::Rms, NormKind::Layer] {
        let norm = Norm { kind, epsilon: EPSILON, gain: &gain, bias: None };
        let count = x.len() as f64;
        let mean = match kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => x.iter().map(|x| f64::from(*x)).sum::<f64>() / count,
        };
        let square = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        let root = (square + f64::from(EPSILON)).sqrt();
        let mut out = x.clone();
        norm_in_place(Isa::detect(), &pool, norm, &mut out);
        for (x, y) in x.iter().zip(&out) {
            assert!(((f64::from(*x) - mean) / root - f64::from(*y)).abs() < 1e-6);
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let mut out = x.clone();
            out[3] = bad;
            norm_in_place(Isa::detect(), &pool, norm, &mut out);
            assert!(out[3].is_nan());
        }
    }
}

#[test]
#[should_panic(expected = "bias")]
fn a_bias_of_another_length_is_refused_in_place_too() {
    let norm = Norm { kind: NormKind::Rms, epsilon: EPSILON, gain: &[1.0; 4], bias: Some(&[1.0]) };
    norm_in_place(Isa::SCALAR, &Pool::new(1).expect("threads"), norm, &mut [1.0; 4]);
}

#[test]
#[should_panic(expected = "heads")]
fn a_part_of_a_head_is_refused() {
    let rotation = Rotation { cos: &[1.0], sin: &[0.0], pairing: RopePairing::Halves };
    rotate(Isa::SCALAR, rotation, 4, &mut [1.0; 6]);
}

#[test]
fn sums_and_factors() {
    for len in LENS {
        let mut noise = Noise::new(len as u64);
        let (a, b) = (noise.floats(2 * len), noise.floats(2 * len));
        let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let scaled: Vec<f32> = a.iter().map(|a| a * 1.7).collect();
        let capped: Vec<f32> = a.iter().map(|a| 0.3 * testing::tanh(a / 0.3)).collect();
        everywhere(|isa, _, on| {
            let check = |expected: &[f32], task: &dyn Fn(&mut [f32])| {
                let mut out = a.clone();
                task(&mut out);
                assert_same(expected, &out, on);
            };
            check(&sum, &|a| add(isa, a, &b));
            check(&scaled, &|a| scale(isa, a, 1.7));
            check(&capped, &|a| softcap(isa, a, 0.3));
        });
    }
}

#[test]
fn activations_with_and_without_a_gate() {
    type Formula = fn(f32) -> f32;
    let silu: Formula = testing::silu;
    let relu: Formula = |x| if x > 0.0 || x.is_nan() { x } else { 0.0 };
    let functions = [
        (ActivationFn::Silu, silu),
        (ActivationFn::GeluTanh, testing::gelu_tanh),
        (ActivationFn::GeluErf, testing::gelu_erf),
        (ActivationFn::Relu, relu),
        (ActivationFn::ReluSquared, |x| if x > 0.0 || x.is_nan() { x * x } else { 0.0 }),
    ];
    for len in LENS {
        for rows in [1, 5] {
            let mut noise = Noise::new(len as u64);
            let mut wide =
                |len| -> Vec<f32> { noise.floats(len).iter().map(|x| 9.0 * x).collect() };
            let (mut up, mut gate) = (wide(rows * len), wide(rows * len));
            for (x, special) in [(&mut up, -0.0), (&mut gate, f32::NAN)] {
                if let Some(last) = x.last_mut() {
                    *last = special;
                }
            }
            for (function, formula) in functions {
                let plain: Vec<f32> = up.iter().map(|x| formula(*x)).collect();
                let gated: Vec<f32> =
                    up.iter().zip(&gate).map(|(up, gate)| formula(*gate) * up).collect();
                everywhere(|isa, pool, on| {
                    let check = |gate: Option<&[f32]>, expected: &[f32]| {
                        let mut out = up.clone();
                        activate(isa, pool, function, gate, len, &mut out);
                        assert_same(expected, &out, on);
                    };
                    check(None, &plain);
                    check(Some(&gate), &gated);
                });
            }
        }
    }
}

#[test]
fn rope_turns_pairs_and_leaves_the_rest() {
    let mut noise = Noise::new(9);
    for (head_len, dims) in [(64, 64), (80, 32), (128, 128), (6, 2), (256, 64)] {
        let heads = 3;
        let pairs = dims / 2;
        let x = noise.floats(heads * head_len);
        let (cos, sin) = (noise.floats(pairs), noise.floats(pairs));
        for pairing in [RopePairing::Adjacent, RopePairing::Halves] {
            let mut expected = x.clone();
            for head in 0..heads {
                for i in 0..pairs {
                    let (first, second) = match pairing {
                        RopePairing::Adjacent => (2 * i, 2 * i + 1),
                        RopePairing::Halves => (i, i + pairs),
                    };
                    let (a, b) = (x[head * head_len + first], x[head * head_len + second]);
                    expected[head * head_len + first] = a.mul_add(cos[i], -(b * sin[i]));
                    expected[head * head_len + second] = a.mul_add(sin[i], b * cos[i]);
                }
            }
            let rotation = Rotation { cos: &cos, sin: &sin, pairing };
            everywhere(|isa, _, on| {
                let mut out = x.clone();
                rotate(isa, rotation, head_len, &mut out);
                assert_same(&expected, &out, on);
            });
        }
    }
}

/// Rows that threads share give what they give one by one.
#[test]
fn rows_are_added_and_turned_on_any_pool() {
    let mut noise = Noise::new(10);
    let (heads, head_len, pairs) = (3, 64, 24);
    let row = heads * head_len;
    for rows in [1, 3, 4, 21] {
        let (a, b) = (noise.floats(rows * row), noise.floats(rows * row));
        let (cos, sin) = (noise.floats(rows * pairs), noise.floats(rows * pairs));
        let rotation = |i: usize| {
            let part = i * pairs..(i + 1) * pairs;
            Rotation { cos: &cos[part.clone()], sin: &sin[part], pairing: RopePairing::Halves }
        };
        let (mut sum, mut turned) = (a.clone(), a.clone());
        add(Isa::SCALAR, &mut sum, &b);
        for (i, x) in turned.chunks_exact_mut(row).enumerate() {
            rotate(Isa::SCALAR, rotation(i), head_len, x);
        }
        everywhere(|isa, pool, on| {
            let (mut added, mut out) = (a.clone(), a.clone());
            add_rows(isa, pool, &mut added, &b, row);
            assert_same(&sum, &added, on);
            rotate_rows(isa, pool, &rotation, (head_len, row), &mut out);
            assert_same(&turned, &out, on);
        });
    }
}

/// The sums differ by bits from those in another order, so the comparisons above can tell.
#[test]
fn a_sum_in_another_order_is_noticed() {
    let gain = vec![1.0; 577];
    let norm = Norm { kind: NormKind::Rms, epsilon: EPSILON, gain: &gain, bias: None };
    let noticed = (0..20).filter(|seed| {
        let x = Noise::new(*seed).floats(gain.len());
        let plain = x.iter().fold(0.0_f32, |sum, x| x.mul_add(*x, sum));
        let scale = 1.0 / (plain / x.len() as f32 + EPSILON).sqrt();
        let wrong: Vec<f32> = x.iter().map(|x| x * scale).collect();
        first_difference(&wrong, &expected_norm(norm, &x)).is_some()
    });
    assert!(noticed.count() > 5);
}

/// SPEC D18: what is below its neuron's threshold becomes zero, with whatever sign; what is equal
/// to it, infinite or no number stays.
#[test]
fn cutting_leaves_what_is_not_below() {
    let pool = Pool::new(2).unwrap();
    let least = [0.0, 1.0, 1.0, 2.0, f32::MAX];
    let row = [-0.0, -0.99, 1.0, f32::NAN, f32::INFINITY];
    let mut rows = [row, row.map(|x| x * 0.5)].concat();
    cut(&pool, &least, &mut rows);
    let bits: Vec<u32> = rows.iter().map(|x| x.to_bits()).collect();
    let wanted = [-0.0, 0.0, 1.0, f32::NAN, f32::INFINITY, -0.0, 0.0, 0.0, f32::NAN, f32::INFINITY];
    assert_eq!(bits, wanted.map(f32::to_bits));
}
