//! What residency tells of an answer (SPEC W9).

use crate::ladder::Step;
use serde::Serialize;

/// Bytes that were set aside before weights got any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// The cache of keys and values.
    pub cache: u64,
    /// Activations of the largest pass.
    pub activations: u64,
    /// Buffers that the disk fills.
    pub buffers: u64,
}

/// Where the bytes of a session live and what its passes have read of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ResidencyStats {
    /// The budget; `None` if weights are mapped and the system decides.
    pub budget_bytes: Option<u64>,
    /// What was taken from it first.
    pub reserved_bytes: Reserved,
    /// Weights in locked memory of our own.
    pub hot_bytes: u64,
    /// Weights that are mapped.
    pub warm_bytes: u64,
    /// Weights that are read from disk in every pass.
    pub stream_bytes: u64,
    /// Weights that are kept in the last-level cache (SPEC D21).
    pub kept_bytes: u64,
    /// Weights that are read past it so that those can stay.
    pub past_bytes: u64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Passes over the weights.
    pub passes: u64,
    /// Blocks that passes asked for.
    pub blocks_resolved: u64,
    /// Their bytes.
    pub bytes_resolved: u64,
    /// Rows of matrices that were left unread: of a screened head, and of zero neurons.
    pub rows_skipped: u64,
    /// Deltas that were added to products of canonical matrices.
    pub deltas_applied: u64,
    /// The share of these bytes that was hot; `None` if there were none.
    pub hot_hit_ratio: Option<f64>,
    /// Bytes resolved in hot memory.
    pub bytes_hot: u64,
    /// Bytes resolved in buffers that the disk had filled.
    pub bytes_streamed: u64,
    /// Bytes that were read of the disk, those ahead of their use included.
    pub disk_bytes: u64,
    /// Reads of the disk.
    pub reads: u64,
    /// `disk_bytes` over `passes`.
    pub disk_bytes_per_pass: Option<f64>,
    /// Streamed blocks that were there before they were asked for.
    pub prefetches: u64,
    /// Time that passes waited for the others.
    pub disk_wait_ms: f64,
    /// Steps of the degradation ladder that are active.
    pub ladder: Vec<Step>,
    /// What is on, by name: what saves bytes or time, and what weights are kept in.
    pub on: Vec<&'static str>,
    /// The instruction set.
    pub isa: String,
}

impl ResidencyStats {
    /// Adds a later answer of the same session: counts are summed, sizes are the later ones.
    pub fn add(&mut self, later: &Self) {
        let before = std::mem::replace(self, later.clone());
        for (sum, before) in [
            (&mut self.tokens, before.tokens),
            (&mut self.passes, before.passes),
            (&mut self.blocks_resolved, before.blocks_resolved),
            (&mut self.bytes_resolved, before.bytes_resolved),
            (&mut self.rows_skipped, before.rows_skipped),
            (&mut self.deltas_applied, before.deltas_applied),
            (&mut self.bytes_hot, before.bytes_hot),
            (&mut self.bytes_streamed, before.bytes_streamed),
            (&mut self.disk_bytes, before.disk_bytes),
            (&mut self.reads, before.reads),
            (&mut self.prefetches, before.prefetches),
        ] {
            *sum += before;
        }
        self.disk_wait_ms += before.disk_wait_ms;
        self.derive();
    }

    /// Works the ratios out anew.
    #[expect(clippy::cast_precision_loss, reason = "a report's figure")]
    pub(crate) fn derive(&mut self) {
        let ratio = |a: u64, b: u64| (b > 0).then(|| a as f64 / b as f64);
        self.hot_hit_ratio = ratio(self.bytes_hot, self.bytes_resolved);
        self.disk_bytes_per_pass = ratio(self.disk_bytes, self.passes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_and_ratios_follow() {
        let one = ResidencyStats {
            tokens: 2,
            passes: 1,
            bytes_resolved: 100,
            bytes_hot: 25,
            disk_bytes: 90,
            hot_bytes: 7,
            disk_wait_ms: 1.5,
            ..ResidencyStats::default()
        };
        let mut sum = one.clone();
        sum.add(&ResidencyStats { tokens: 1, bytes_hot: 75, hot_bytes: 8, ..one });
        assert_eq!((sum.tokens, sum.hot_bytes, sum.disk_bytes), (3, 8, 180));
        assert_eq!((sum.hot_hit_ratio, sum.disk_bytes_per_pass), (Some(0.5), Some(90.0)));
        assert!((sum.disk_wait_ms - 3.0).abs() < 1e-9);
    }
}
