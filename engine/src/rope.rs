//! Rotary position embedding: frequencies once at load, cos and sin for each position (SPEC N7).
//!
//! Angles are computed in f64 with `libm`, whose plain Rust gives the same bits on every machine.

use aios_contract::{RopeConfig, RopePairing, RopeScaling};
use aios_kernels::Rotation;
use std::f64::consts::PI;

/// The frequencies of one kind of layer.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// Angle per position of each pair.
    frequencies: Vec<f64>,
    /// Factor on cos and sin.
    magnitude: f64,
    pairing: RopePairing,
}

/// cos and sin of a run of positions, \[position\]\[pair\].
#[derive(Clone, Debug, Default)]
pub(crate) struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The frequencies of a model: of its global layers, and of its local ones if they differ.
#[derive(Clone, Debug)]
pub(crate) struct Ropes {
    pub global: Rope,
    pub local: Option<Rope>,
}

impl Ropes {
    /// `factors` divide the frequencies (llama3, LongRoPE); one for each pair.
    pub(crate) fn new(config: &RopeConfig, factors: Option<&[f32]>) -> Self {
        let plain = |base| plain_frequencies(config.dims, base);
        let pairing = config.pairing;
        let (mut frequencies, magnitude) = scaled(config);
        for (frequency, factor) in frequencies.iter_mut().zip(factors.unwrap_or(&[])) {
            *frequency /= f64::from(*factor);
        }
        let local = config.local_base.map(|base| Rope {
            frequencies: plain(base),
            magnitude: 1.0,
            pairing,
        });
        Self { global: Rope { frequencies, magnitude, pairing }, local }
    }
}

impl Rope {
    /// Pairs of elements that are rotated.
    pub(crate) const fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Which elements form a pair.
    pub(crate) const fn pairing(&self) -> RopePairing {
        self.pairing
    }
}

/// base^(−2i/dims) for each pair i.
#[expect(clippy::cast_precision_loss, reason = "pairs are few")]
fn plain_frequencies(dims: usize, base: f32) -> Vec<f64> {
    let exponent = |i: usize| -2.0 * i as f64 / dims as f64;
    (0..dims / 2).map(|i| libm::pow(f64::from(base), exponent(i))).collect()
}

/// Frequencies and magnitude after scaling.
fn scaled(config: &RopeConfig) -> (Vec<f64>, f64) {
    let mut frequencies = plain_frequencies(config.dims, config.base);
    match config.scaling {
        RopeScaling::None => (frequencies, 1.0),
        RopeScaling::Linear { factor } => {
            frequencies.iter_mut().for_each(|f| *f /= f64::from(factor));
            (frequencies, 1.0)
        }
        RopeScaling::LongRope { attn_factor } => (frequencies, f64::from(attn_factor)),
        RopeScaling::Yarn { factor, attn_factor, beta_fast, beta_slow } => {
            let betas = [f64::from(beta_fast), f64::from(beta_slow)];
            interpolate_yarn(config, &mut frequencies, f64::from(factor), betas);
            (frequencies, f64::from(attn_factor) * 0.1f64.mul_add(libm::log(factor.into()), 1.0))
        }
    }
}

/// YaRN, equations 17 to 23 of arXiv 2309.00071: dimensions that turn often keep their frequency,
/// those that turn less than once in the training context are interpolated, with a ramp between.
#[expect(clippy::cast_precision_loss, reason = "sizes are small")]
fn interpolate_yarn(config: &RopeConfig, frequencies: &mut [f64], factor: f64, betas: [f64; 2]) {
    let dims = config.dims as f64;
    let context = config.original_context.unwrap_or(1) as f64;
    // The dimension whose pair turns `beta` times in the training context.
    let dimension = |beta: f64| {
        let turns = libm::log(context / (beta * 2.0 * PI));
        dims * turns / (2.0 * libm::log(f64::from(config.base)))
    };
    let low = dimension(betas[0]).floor().max(0.0);
    let high = dimension(betas[1]).ceil().min(dims - 1.0);
    for (i, frequency) in frequencies.iter_mut().enumerate() {
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        *frequency = *frequency / factor * ramp + *frequency * (1.0 - ramp);
    }
}

impl RopeTable {
    /// Fills the table for positions `start..start + count`; memory is kept for the next time.
    #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
    pub(crate) fn fill(&mut self, rope: &Rope, start: usize, count: usize) {
        self.cos.clear();
        self.sin.clear();
        for position in start..start + count {
            for frequency in &rope.frequencies {
                let (sin, cos) = libm::sincos(position as f64 * frequency);
                self.cos.push((cos * rope.magnitude) as f32);
                self.sin.push((sin * rope.magnitude) as f32);
            }
        }
    }

    /// The rotation of the `index`-th position of the table.
    pub(crate) fn rotation(&self, rope: &Rope, index: usize) -> Rotation<'_> {
        let pairs = rope.frequencies.len();
        let at = index * pairs..(index + 1) * pairs;
        Rotation { cos: &self.cos[at.clone()], sin: &self.sin[at], pairing: rope.pairing }
    }
}
