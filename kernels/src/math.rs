//! exp, tanh and the activations, from fma polynomials: the same bits everywhere (SPEC N6).

use crate::simd::Simd;

/// log2(e), rounded.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has few enough bits that n · `LN2_HIGH` is exact for |n| < 2^9.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below this e^x is 0 here; it is the least x whose 2^n is a normal number.
const EXP_MIN: f32 = -87.0;
/// Above this e^x is infinite here; it is a little less than the logarithm of the largest f32.
const EXP_MAX: f32 = 88.0;
/// 1/7!, 1/6! … 1/1!, 1/0!: Taylor's series, whose remainder on |r| ≤ ln(2)/2 is below 2^-27.
const INVERSE_FACTORIALS: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// e^x, within 2 units in the last place for −87 ≤ x ≤ 88; 0 below, ∞ above, and NaN for NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln(2)/2 (up to rounding), e^x = 2^n · Σ r^k/k!.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    // The constant comes first: where x is NaN, max and min give their second operand.
    let clamped = simd.max(simd.splat(EXP_MIN), simd.min(simd.splat(EXP_MAX), x));
    let n = simd.round_to_int(simd.mul(clamped, simd.splat(LOG2_E)));
    let nf = simd.int_to_float(n);
    let r = simd.fma(nf, simd.splat(-LN2_HIGH), clamped);
    let r = simd.fma(nf, simd.splat(-LN2_LOW), r);
    let mut p = simd.splat(INVERSE_FACTORIALS[0]);
    for c in &INVERSE_FACTORIALS[1..] {
        p = simd.fma(p, r, simd.splat(*c));
    }
    let value = simd.mul(p, simd.pow2(n));
    let value = simd.select_gt(x, simd.splat(EXP_MAX), simd.splat(f32::INFINITY), value);
    simd.select_gt(simd.splat(EXP_MIN), x, simd.splat(0.0), value)
}

/// tanh x = sign(x) · (1 − t)/(1 + t) with t = e^(−2|x|); absolute error below 2^-22.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::F) -> S::F {
    let one = simd.splat(1.0);
    let t = exp(simd, simd.mul(simd.abs(x), simd.splat(-2.0)));
    let value = simd.div(simd.sub(one, t), simd.add(one, t));
    simd.copysign(value, x)
}

/// x / (1 + e^−x), within 4 units in the last place or 10^-36; NaN for −∞, as −∞/∞ is.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::F) -> S::F {
    let e = exp(simd, simd.sub(simd.splat(0.0), x));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

/// x/2 · (1 + tanh u) = x / (1 + e^(−2u)), u = √(2/π) · (x + 0.044715·x³); absolute error
/// below 2^-22 · max(½, |x|), and NaN for −∞.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(simd: S, x: S::F) -> S::F {
    /// −2·√(2/π).
    const FACTOR: f32 = -1.595_769_2;
    let square = simd.mul(x, x);
    let inner = simd.fma(simd.mul(square, x), simd.splat(0.044_715), x);
    let e = exp(simd, simd.mul(inner, simd.splat(FACTOR)));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

/// The slope of t in [`gelu_erf`]: 0.45 / √2.
const ERF_SLOPE: f32 = 0.318_198_05;
/// ½ · e^(z²) · erfc z, z = |x| / √2, as a polynomial in t from t^7 down to t^1: a minimax fit,
/// with weight e^(−z²), made for this file.
const ERF_FIT: [f32; 7] = [
    0.045_857_486,
    -0.245_127_04,
    0.425_005,
    -0.184_388_76,
    0.228_166_69,
    0.101_057_32,
    0.129_429_31,
];

/// x · Φ(x), with Φ(−|x|) = t · P(t) · e^(−x²/2) and t = 1 / (1 + 0.318·|x|); absolute error below
/// 2^-22 · max(½, |x|), and NaN for −∞.
#[inline(always)]
pub(crate) fn gelu_erf<S: Simd>(simd: S, x: S::F) -> S::F {
    let one = simd.splat(1.0);
    let t = simd.div(one, simd.fma(simd.abs(x), simd.splat(ERF_SLOPE), one));
    let mut p = simd.splat(ERF_FIT[0]);
    for c in &ERF_FIT[1..] {
        p = simd.fma(p, t, simd.splat(*c));
    }
    let e = exp(simd, simd.mul(simd.mul(x, x), simd.splat(-0.5)));
    let tail = simd.mul(simd.mul(p, t), e);
    let phi = simd.select_gt(simd.splat(0.0), x, tail, simd.sub(one, tail));
    simd.mul(x, phi)
}

#[cfg(test)]
mod tests;
