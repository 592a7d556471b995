//! The ledger: the bytes that the executor reads, counted exactly, by phase, role and layer.
//!
//! A count is not a measurement of DRAM: it is what a pass must read at least once. Reports name
//! it `counted`.

use aios_contract::{Role, RoleGroup, TensorName};
use serde::Serialize;

/// What the executor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading the prompt.
    Prefill,
    /// Generating, a token a pass.
    Decode,
    /// Proposing tokens with a smaller model.
    Draft,
    /// Checking proposed tokens, several a pass.
    Verify,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 4] = [Self::Prefill, Self::Decode, Self::Draft, Self::Verify];
}

/// The counts of one phase.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts {
    /// \[layer + 1\]\[role\]; row 0 is for tensors of the whole model.
    weights: Vec<[u64; ROLES]>,
    kv_read: TierBytes,
    kv_written: TierBytes,
    disk: u64,
    tokens: u64,
    passes: u64,
}

/// Bytes of the KV cache by tier (SPEC B23); without tiers all are hot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TierBytes {
    /// Pages as they were written.
    pub hot: u64,
    /// Pages with keys in 8 bits and values in 4.
    pub warm: u64,
    /// Pages with keys in 4 bits and values in 3.
    pub cold: u64,
}

impl TierBytes {
    /// All tiers together.
    pub const fn total(&self) -> u64 {
        self.hot + self.warm + self.cold
    }

    /// Adds other counts.
    pub const fn add(&mut self, other: Self) {
        self.hot += other.hot;
        self.warm += other.warm;
        self.cold += other.cold;
    }
}

const ROLES: usize = Role::COUNT;

/// Bytes of one role, over all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RoleBytes {
    /// The role.
    pub role: Role,
    /// Bytes read.
    pub bytes: u64,
}

/// The sums of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseBytes {
    /// The phase.
    pub phase: Phase,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Passes over the weights.
    pub passes: u64,
    /// Weight bytes read.
    pub weights: u64,
    /// Weight bytes by role, roles that were read only.
    pub roles: Vec<RoleBytes>,
    /// KV cache bytes read.
    pub kv_read: u64,
    /// KV cache bytes written.
    pub kv_written: u64,
    /// `kv_read` by tier.
    pub kv_read_tiers: TierBytes,
    /// `kv_written` by tier.
    pub kv_written_tiers: TierBytes,
    /// Bytes read of the disk while its passes ran, those ahead of their use included.
    pub disk: u64,
}

impl PhaseBytes {
    /// Weight bytes of a group of roles.
    pub fn group(&self, group: RoleGroup) -> u64 {
        self.roles.iter().filter(|entry| entry.role.group() == group).map(|e| e.bytes).sum()
    }

    /// Adds another account of the same phase.
    pub fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.passes += other.passes;
        self.weights += other.weights;
        self.kv_read += other.kv_read;
        self.kv_written += other.kv_written;
        self.kv_read_tiers.add(other.kv_read_tiers);
        self.kv_written_tiers.add(other.kv_written_tiers);
        self.disk += other.disk;
        for entry in &other.roles {
            match self.roles.iter_mut().find(|known| known.role == entry.role) {
                Some(known) => known.bytes += entry.bytes,
                None => self.roles.push(*entry),
            }
        }
    }

    /// Bytes read for a token, weights and KV cache together; 0 if there was no token.
    #[expect(clippy::cast_precision_loss, reason = "a report's figure")]
    pub fn read_per_token(&self) -> f64 {
        (self.weights + self.kv_read) as f64 / (self.tokens.max(1)) as f64
    }
}

/// The counts of one executor.
#[derive(Clone, Debug)]
pub struct Ledger {
    phase: Phase,
    counts: [Counts; Phase::ALL.len()],
}

impl Ledger {
    /// All zero, for a model of `layers` layers.
    pub fn new(layers: usize) -> Self {
        let counts = |_| Counts {
            weights: vec![[0; ROLES]; layers + 1],
            kv_read: TierBytes::default(),
            kv_written: TierBytes::default(),
            disk: 0,
            tokens: 0,
            passes: 0,
        };
        Self { phase: Phase::Prefill, counts: Phase::ALL.map(counts) }
    }

    /// Back to zero.
    pub fn reset(&mut self) {
        *self = Self::new(self.counts[0].weights.len() - 1);
    }

    /// Starts a pass of `tokens` tokens; what follows counts for `phase`.
    pub fn start_pass(&mut self, phase: Phase, tokens: usize) {
        self.phase = phase;
        let counts = &mut self.counts[phase as usize];
        counts.tokens += tokens as u64;
        counts.passes += 1;
    }

    /// Counts `bytes` of a tensor.
    pub fn read(&mut self, name: TensorName, bytes: usize) {
        let layer = name.layer.map_or(0, |layer| layer as usize + 1);
        self.counts[self.phase as usize].weights[layer][name.role as usize] += bytes as u64;
    }

    /// Counts bytes read from and written to the KV cache.
    pub fn kv(&mut self, read: TierBytes, written: TierBytes) {
        let counts = &mut self.counts[self.phase as usize];
        counts.kv_read.add(read);
        counts.kv_written.add(written);
    }

    /// Counts bytes that were read of the disk.
    pub fn disk(&mut self, bytes: u64) {
        self.counts[self.phase as usize].disk += bytes;
    }

    /// The sums of a phase.
    pub fn phase(&self, phase: Phase) -> PhaseBytes {
        let counts = &self.counts[phase as usize];
        let of_role = |role: Role| counts.weights.iter().map(|layer| layer[role as usize]).sum();
        let roles: Vec<_> = Role::all()
            .map(|role| RoleBytes { role, bytes: of_role(role) })
            .filter(|entry| entry.bytes > 0)
            .collect();
        PhaseBytes {
            phase,
            tokens: counts.tokens,
            passes: counts.passes,
            weights: roles.iter().map(|entry| entry.bytes).sum(),
            roles,
            kv_read: counts.kv_read.total(),
            kv_written: counts.kv_written.total(),
            kv_read_tiers: counts.kv_read,
            kv_written_tiers: counts.kv_written,
            disk: counts.disk,
        }
    }

    /// Weight bytes of one layer in a phase.
    pub fn layer(&self, phase: Phase, layer: usize) -> u64 {
        self.counts[phase as usize].weights.get(layer + 1).map_or(0, |roles| roles.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_phase_role_and_layer() {
        let mut ledger = Ledger::new(2);
        let down = |layer| TensorName { role: Role::FfnDown, layer: Some(layer) };
        ledger.start_pass(Phase::Prefill, 7);
        ledger.read(down(0), 1000);
        ledger.start_pass(Phase::Decode, 1);
        ledger.read(down(0), 10);
        ledger.read(down(1), 20);
        ledger.read(TensorName { role: Role::Head, layer: None }, 5);
        let read = TierBytes { hot: 1, warm: 2, cold: 0 };
        ledger.kv(read, TierBytes { hot: 2, ..TierBytes::default() });
        ledger.disk(50);
        let decode = ledger.phase(Phase::Decode);
        assert_eq!((decode.tokens, decode.passes, decode.weights), (1, 1, 35));
        assert_eq!(decode.group(RoleGroup::Ffn), 30);
        assert_eq!((decode.kv_read, decode.kv_written, decode.disk), (3, 2, 50));
        assert_eq!((decode.kv_read_tiers, decode.kv_written_tiers.hot), (read, 2));
        assert_eq!(ledger.layer(Phase::Decode, 1), 20);
        assert_eq!(ledger.phase(Phase::Prefill).weights, 1000);
        assert!((decode.read_per_token() - 38.0).abs() < 1e-9);
        let mut sum = decode.clone();
        sum.add(&ledger.phase(Phase::Prefill));
        assert_eq!((sum.weights, sum.tokens, sum.group(RoleGroup::Ffn)), (1035, 8, 1030));
        ledger.reset();
        assert_eq!(ledger.phase(Phase::Decode).weights, 0);
    }
}
