//! Digests of the final normed states, position by position (SPEC Z5): what the output matrix
//! reads, whether it is then read whole, screened, or not at all. They prove what was computed
//! without keeping it.

use sha2::{Digest, Sha256};

/// A digest of all positions up to and with one of them.
pub type StateDigest = [u8; 32];

/// A chain over the positions of a cache: that of a position is the SHA-256 of the one before it
/// (32 zeros for the first) and the position's state, so that it does not depend on where passes
/// began, and that going back is a truncation.
#[derive(Debug, Default)]
pub(super) struct Trace {
    chain: Vec<StateDigest>,
    row: Vec<u8>,
}

impl Trace {
    /// An empty chain with room for `positions` of states of `len` elements.
    pub(super) fn new(positions: usize, len: usize) -> Self {
        Self { chain: Vec::with_capacity(positions), row: Vec::with_capacity(4 * len) }
    }

    /// The states of the positions from `start` on, \[n\]\[len\]. Where those before `start` are
    /// not known, because they were skipped, neither are these.
    pub(super) fn extend(&mut self, start: usize, states: &[f32], len: usize) {
        if self.chain.len() != start {
            return;
        }
        let mut last = self.chain.last().copied().unwrap_or_default();
        for state in states.chunks_exact(len) {
            self.row.clear();
            for x in state {
                // The payload of a NaN is unspecified (SPEC N1); there is one here.
                let bits = if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
                self.row.extend_from_slice(&bits.to_le_bytes());
            }
            last = Sha256::new().chain_update(last).chain_update(&self.row).finalize().into();
            self.chain.push(last);
        }
    }

    /// The digests of the first `positions` positions, if all are known.
    pub(super) fn first(&self, positions: usize) -> Option<Vec<StateDigest>> {
        self.chain.get(..positions).map(<[StateDigest]>::to_vec)
    }

    /// Goes on from these digests.
    pub(super) fn start_from(&mut self, chain: &[StateDigest]) {
        self.chain.clear();
        self.chain.extend_from_slice(chain);
    }

    /// Forgets the positions from `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        self.chain.truncate(len);
    }

    /// The digest of the first `positions` positions, if there are any and all are known.
    pub(super) fn digest(&self, positions: usize) -> Option<StateDigest> {
        positions.checked_sub(1).and_then(|last| self.chain.get(last)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cuts: &[&[f32]]) -> Option<StateDigest> {
        let mut trace = Trace::default();
        let mut start = 0;
        for states in cuts {
            trace.extend(start, states, 2);
            start += states.len() / 2;
        }
        trace.digest(start)
    }

    #[test]
    fn a_digest_is_of_the_states_and_not_of_the_passes() {
        let whole = of(&[&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]);
        assert!(whole.is_some());
        assert_eq!(of(&[&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0]]), whole);
        assert_ne!(of(&[&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.5]]), whole);
        assert_ne!(of(&[&[3.0, 4.0], &[1.0, 2.0, 5.0, 6.0]]), whole);
        assert_ne!(of(&[&[0.0, 2.0]]), of(&[&[-0.0, 2.0]]));
        assert_eq!(of(&[&[f32::from_bits(0x7fc0_0001), 0.0]]), of(&[&[-f32::NAN, 0.0]]));
        // By hand: two elements, little-endian, behind 32 zeros.
        let bytes = [[0; 32].as_slice(), &[0, 0, 128, 63], &[0, 0, 0, 64]].concat();
        assert_eq!(of(&[&[1.0, 2.0]]), Some(Sha256::digest(bytes).into()));
    }

    #[test]
    fn going_back_leaves_no_trace_and_a_gap_is_no_digest() {
        let mut trace = Trace::default();
        assert_eq!(trace.digest(0), None);
        trace.extend(0, &[1.0, 2.0, 9.0, 9.0], 2);
        trace.truncate(1);
        trace.extend(1, &[3.0, 4.0], 2);
        assert_eq!(trace.digest(2), of(&[&[1.0, 2.0, 3.0, 4.0]]));
        assert_eq!(trace.digest(1), of(&[&[1.0, 2.0]]));
        trace.extend(5, &[3.0, 4.0], 2);
        assert_eq!((trace.digest(3), trace.digest(6)), (None, None));
    }
}
