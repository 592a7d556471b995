//! The functions against their formulas by bits, and against f64 by the errors that they claim.

use super::*;
use crate::isa::{Isa, Op};
use crate::simd::LANES;
use crate::testing::{self, Noise, assert_same, same};

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp,
    Tanh,
    Silu,
    Gelu,
    GeluErf,
}

impl Function {
    const ALL: [Self; 5] = [Self::Exp, Self::Tanh, Self::Silu, Self::Gelu, Self::GeluErf];

    /// The formula in f32.
    fn formula(self, x: f32) -> f32 {
        match self {
            Self::Exp => testing::exp(x),
            Self::Tanh => testing::tanh(x),
            Self::Silu => testing::silu(x),
            Self::Gelu => testing::gelu_tanh(x),
            Self::GeluErf => testing::gelu_erf(x),
        }
    }

    /// The function in f64.
    fn exact(self, x: f64) -> f64 {
        match self {
            Self::Exp => x.exp(),
            Self::Tanh => x.tanh(),
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Gelu => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                x / (1.0 + (-2.0 * u).exp())
            }
            Self::GeluErf => x * 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2),
        }
    }

    /// The error that is claimed at `x`, where the function is `exact`; e^x is allowed to be 0
    /// or infinite beyond its range.
    fn allowed(self, x: f32, exact: f64) -> f64 {
        let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
        let ulp = f64::from(f32::EPSILON) * exponent.exp2();
        match self {
            Self::Exp if x < EXP_MIN => exact,
            Self::Exp if x > EXP_MAX => f64::INFINITY,
            Self::Exp => 2.0 * ulp,
            Self::Tanh => 2.0_f64.powi(-22),
            Self::Silu => (4.0 * ulp).max(1e-36),
            Self::Gelu | Self::GeluErf => 2.0_f64.powi(-22) * f64::from(x.abs()).max(0.5),
        }
    }
}

struct Apply(Function, [f32; LANES]);

impl Op for Apply {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
        let x = simd.load(&self.1);
        let y = match self.0 {
            Function::Exp => exp(simd, x),
            Function::Tanh => tanh(simd, x),
            Function::Silu => silu(simd, x),
            Function::Gelu => gelu_tanh(simd, x),
            Function::GeluErf => gelu_erf(simd, x),
        };
        let mut out = [0.0; LANES];
        simd.store(y, &mut out);
        out
    }
}

/// The first x at which the claim about `y` is broken.
fn broken(function: Function, x: &[f32; LANES], y: &[f32; LANES]) -> Option<f32> {
    let wrong = x.iter().zip(y).find(|&(&x, &y)| {
        if x.is_nan() {
            return !y.is_nan();
        }
        let exact = function.exact(f64::from(x));
        let error = (f64::from(y) - exact).abs();
        // Infinities of the function itself have no error, only a value; −∞ gives x/∞ = NaN.
        let fits = error <= function.allowed(x, exact) || f64::from(y) == exact;
        !fits && x != f32::NEG_INFINITY
    });
    wrong.map(|(x, _)| *x)
}

/// Every `step`-th f32 from `offset`, as vectors; the last is filled up with the last number.
fn sweep(offset: u32, step: u32) -> impl Iterator<Item = [f32; LANES]> {
    let mut bits = (offset..=u32::MAX).step_by(step as usize);
    std::iter::from_fn(move || {
        let mut last = bits.next()?;
        Some(std::array::from_fn(|lane| {
            if lane > 0 {
                last = bits.next().unwrap_or(last);
            }
            f32::from_bits(last)
        }))
    })
}

fn check(offset: u32, step: u32) {
    for isa in Isa::available() {
        for x in sweep(offset, step) {
            for function in Function::ALL {
                let y = isa.run(Apply(function, x));
                let formula = x.map(|x| function.formula(x));
                assert_same(&formula, &y, &|| format!("{function:?} of {x:?} on {isa:?}"));
                assert_eq!(broken(function, &x, &y), None, "{function:?} on {isa:?}");
            }
        }
    }
}

#[test]
fn sampled_numbers_keep_the_claims() {
    check(0, 16_411);
    check(3, 65_521);
    // Where the functions bend and where their ranges end.
    let mut noise = Noise::new(4);
    for isa in Isa::available() {
        for scale in [1e-3, 1.0, 10.0, 88.5, 1e3] {
            for _ in 0..200 {
                let x = std::array::from_fn(|_| scale * noise.float());
                for function in Function::ALL {
                    let y = isa.run(Apply(function, x));
                    assert_eq!(broken(function, &x, &y), None, "{function:?} on {isa:?}");
                }
            }
        }
    }
}

/// `cargo test --release -p aios-kernels every_number -- --ignored`, some ten minutes.
#[test]
#[ignore = "all 2^32 floats take minutes"]
fn every_number_keeps_the_claims() {
    check(0, 1);
}

#[test]
fn a_broken_claim_is_noticed() {
    for function in Function::ALL {
        let x = [1.5; LANES];
        let mut y = Isa::SCALAR.run(Apply(function, x));
        assert_eq!(broken(function, &x, &y), None);
        y[7] *= 1.0 + 1e-5;
        assert_eq!(broken(function, &x, &y), Some(1.5), "{function:?}");
        assert!(!same(y[7], function.formula(1.5)));
    }
    assert_eq!(
        broken(Function::Exp, &[f32::NAN; LANES], &[1.0; LANES]).map(f32::is_nan),
        Some(true)
    );
}
