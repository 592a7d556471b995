//! What this crate's tests share: noise, a comparison by bits, and the canonical formulas as
//! plain scalar code that can be checked by eye against the modules' documentation.

use aios_contract::DType;
use half::f16;

/// Pseudo-random numbers (SplitMix64).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in −1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.word().to_le_bytes()).take(len).collect()
    }
}

/// Where the half-precision numbers of a quantised block stand, from the formats' bit diagrams.
fn half_offsets(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
    }
}

/// Weights of `elements` elements: quants are `quants`' bytes and scales are ordinary numbers.
pub(crate) fn weights(
    dtype: DType,
    elements: usize,
    noise: &mut Noise,
    mut quants: impl FnMut(&mut Noise) -> u8,
) -> Vec<u8> {
    if dtype.is_float() {
        let encode = |x: f32| match dtype {
            DType::F32 => x.to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(x).to_bits().to_le_bytes().to_vec(),
            _ => half::bf16::from_f32(x).to_bits().to_le_bytes().to_vec(),
        };
        return noise.floats(elements).into_iter().flat_map(encode).collect();
    }
    let len = dtype.row_bytes(elements).expect("whole blocks");
    let mut bytes: Vec<u8> = (0..len).map(|_| quants(noise)).collect();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in half_offsets(dtype) {
            let bits = f16::from_f32(noise.float() / 16.0).to_bits();
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    bytes
}

/// The same bits, or NaN both: only a NaN's payload is left open.
pub(crate) fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// The first place where the bits differ, if any does.
pub(crate) fn first_difference(expected: &[f32], found: &[f32]) -> Option<usize> {
    assert_eq!(expected.len(), found.len());
    expected.iter().zip(found).position(|(a, b)| !same(*a, *b))
}

/// Fails unless the bits are the same.
pub(crate) fn assert_same(expected: &[f32], found: &[f32], what: &dyn Fn() -> String) {
    if let Some(at) = first_difference(expected, found) {
        panic!("{}: [{at}] is {:?}, not {:?}", what(), found[at], expected[at]);
    }
}

/// N3: 16 lanes, element i in lane i mod 16; lanes are added i + 8, i + 4, i + 2, i + 1.
pub(crate) fn tree(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// e^x: 0 below −87, infinite above 88, else 2^n · Σ_{k ≤ 7} r^k / k! by Horner's rule with fma.
pub(crate) fn exp(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    if x > 88.0 {
        return f32::INFINITY;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-355.0 / 512.0, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let factorials = [5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0];
    let sum = factorials.iter().skip(1).fold(1.0 / 5040.0, |p: f32, f| p.mul_add(r, 1.0 / f));
    sum * n.exp2()
}

/// sign(x) · (1 − t)/(1 + t), t = e^(−2|x|).
pub(crate) fn tanh(x: f32) -> f32 {
    let t = exp(-2.0 * x.abs());
    ((1.0 - t) / (1.0 + t)).copysign(x)
}

/// x / (1 + e^−x).
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(0.0 - x))
}

/// x / (1 + e^(−2u)), u = √(2/π) · (x + 0.044715·x³).
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    let inner = (x * x * x).mul_add(0.044_715, x);
    x / (1.0 + exp(inner * (-2.0 * (2.0 / std::f64::consts::PI).sqrt()) as f32))
}

/// x · Φ(x), Φ(−|x|) = t · P(t) · e^(−x²/2), t = 1 / (1 + 0.318·|x|).
pub(crate) fn gelu_erf(x: f32) -> f32 {
    let fit = [0.129_429_31, 0.101_057_32, 0.228_166_69, -0.184_388_76, 0.425_005];
    let t = 1.0 / x.abs().mul_add(0.318_198_05, 1.0);
    let highest = 0.045_857_486_f32.mul_add(t, -0.245_127_04);
    let p = fit.iter().rev().fold(highest, |p, c| p.mul_add(t, *c));
    let tail = p * t * exp(x * x * -0.5);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

#[test]
fn the_comparison_notices_one_bit() {
    let x = Noise::new(1).floats(100);
    for at in 0..x.len() {
        let mut y = x.clone();
        y[at] = f32::from_bits(y[at].to_bits() ^ 1);
        assert_eq!(first_difference(&x, &y), Some(at));
        y[at] = f32::NAN;
        assert_eq!(first_difference(&x, &y), Some(at));
        assert_eq!(first_difference(&y, &x), Some(at));
    }
    assert_eq!(first_difference(&[0.0], &[-0.0]), Some(0));
    assert_eq!(first_difference(&x, &x), None);
}
