//! An orthogonal map that spreads every vector over all elements, so that a row's elements look
//! alike and few bits describe them (SPEC D7).

/// Lengths are filled up to a multiple of this.
const PAD: usize = 64;

/// Two rounds of signs and Walsh-Hadamard transforms of blocks, with a transposition in between.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    len: usize,
    block: usize,
    /// A sign for each element of each round.
    signs: [Vec<f64>; 2],
}

impl Spread {
    /// The map of `len` elements with the signs of `seed`.
    pub fn new(len: usize, seed: u64) -> Self {
        let padded = padded_len(len);
        let block = 1 << padded.trailing_zeros();
        let signs = [0, 1].map(|round| {
            let sign = |i: usize| match mix(seed.wrapping_add((2 * i + round) as u64)) & 1 {
                0 => 1.0,
                _ => -1.0,
            };
            (0..padded).map(sign).collect()
        });
        Self { len, block, signs }
    }

    /// Elements of what comes out, a multiple of 64.
    pub fn padded_len(&self) -> usize {
        padded_len(self.len)
    }

    /// Maps `x`, \[padded\] with zeros behind the length; `scratch` is as long. Norms and inner
    /// products are kept up to the rounding of f64.
    ///
    /// # Panics
    /// If the lengths are not that of the map.
    pub fn apply(&self, x: &mut [f64], scratch: &mut [f64]) {
        let padded = self.padded_len();
        assert!(x.len() == padded && scratch.len() == padded);
        self.round(0, x);
        let blocks = padded / self.block;
        for (b, block) in x.chunks_exact(self.block).enumerate() {
            for (i, x) in block.iter().enumerate() {
                scratch[i * blocks + b] = *x;
            }
        }
        self.round(1, scratch);
        // Each round multiplies norms with the root of the block, a power of two together.
        let scale = 1.0 / self.block as f64;
        for (x, y) in x.iter_mut().zip(scratch) {
            *x = *y * scale;
        }
    }

    fn round(&self, round: usize, x: &mut [f64]) {
        for (x, sign) in x.iter_mut().zip(&self.signs[round]) {
            *x *= sign;
        }
        for block in x.chunks_exact_mut(self.block) {
            transform(block);
        }
    }
}

/// A row's length as the sketch has it.
pub(super) const fn padded_len(len: usize) -> usize {
    len.next_multiple_of(PAD)
}

/// The Walsh-Hadamard transform of a power of two of elements.
fn transform(x: &mut [f64]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// SplitMix64's output for a state.
const fn mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Noise;

    fn dot(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn norms_and_products_are_kept_and_an_outlier_is_spread() {
        for len in [1, 64, 100, 576, 640, 896, 1536, 2048] {
            let spread = Spread::new(len, 7);
            let padded = spread.padded_len();
            let mut noise = Noise::new(len as u64);
            let mut vector = || {
                let mut x: Vec<f64> = noise.floats(len).into_iter().map(f64::from).collect();
                x.resize(padded, 0.0);
                x
            };
            let (mut x, mut y, mut scratch) = (vector(), vector(), vec![0.0; padded]);
            let before = [dot(&x, &x), dot(&x, &y), dot(&y, &y)];
            spread.apply(&mut x, &mut scratch);
            spread.apply(&mut y, &mut scratch);
            for (before, after) in before.iter().zip([dot(&x, &x), dot(&x, &y), dot(&y, &y)]) {
                assert!((before - after).abs() < 1e-12 * padded as f64, "{len}");
            }
            let mut one = vec![0.0; padded];
            one[len - 1] = 1.0;
            spread.apply(&mut one, &mut scratch);
            let largest = one.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            assert!(largest < 0.5, "{len}: {largest}");
        }
        assert_ne!(Spread::new(64, 1), Spread::new(64, 2));
    }
}
