//! Random numbers that depend on nothing but what they are for.
//!
//! A number is a hash of (seed, position, purpose, item), so that a sample at a position is the
//! same however the position was reached: one token at a time, in a batch, or again in a replay.

/// What a random number is for; different purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The choice of a token.
    Token = 1,
}

/// The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection whose every output bit
/// depends on every input bit.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number in (0, 1), a multiple of 2^-53 plus 2^-54.
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact in f64")]
pub(crate) fn uniform(seed: u64, position: u64, purpose: Purpose, item: u64) -> f64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = mix(seed.wrapping_add(STEP));
    for part in [position, purpose as u64, item] {
        state = mix(state.wrapping_add(STEP) ^ part.wrapping_mul(STEP));
    }
    ((state >> 11) as f64 + 0.5) * (1.0 / (1_u64 << 53) as f64)
}

/// The number of the standard Gumbel distribution that belongs to `u` in (0, 1), −ln(−ln u).
pub(crate) fn gumbel(u: f64) -> f64 {
    -libm::log(-libm::log(u))
}

/// The share of the standard Gumbel distribution below `x`, exp(−exp(−x)): the inverse of
/// [`gumbel`].
pub(crate) fn gumbel_below(x: f64) -> f64 {
    libm::exp(-libm::exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_and_their_parts_matter() {
        let mut bins = [0_u32; 64];
        for position in 0..64 {
            for item in 0..1000 {
                let u = uniform(7, position, Purpose::Token, item);
                assert!(u > 0.0 && u < 1.0);
                bins[(u * 64.0) as usize] += 1;
            }
        }
        // 64,000 numbers in 64 bins: the chi-square has 63 degrees of freedom.
        let chi: f64 = bins.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
        assert!((30.0..110.0).contains(&chi), "{chi}");
        let base = uniform(1, 2, Purpose::Token, 3);
        for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1)] {
            assert_ne!(base, uniform(other.0, other.1, Purpose::Token, other.2));
        }
    }
}
