//! What a model says after a prompt, position by position, in a form that can be compared: with
//! other programs (the likeliest ids, three moments of the logits) and with itself on other
//! machines (a digest of every bit).

use aios_engine::{EngineError, Executor, Want, argmax};
use aios_residency::Phase;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

/// How many of the likeliest ids are listed for a position.
const TOP: usize = 10;

/// The logits after a prompt and along its greedy continuation.
#[derive(Clone, Debug, Serialize)]
pub struct LogitsReport {
    /// Logits of a position.
    pub n_vocab: usize,
    /// A summary for each position of the prompt.
    pub positions: Vec<LogitsSummary>,
    /// The greedy continuation: each id, and by how much its logit exceeds the next largest.
    pub greedy: Vec<(u32, f32)>,
    /// SHA-256 over the logits as little-endian f32, a position after another: those of every
    /// prompt position, then those computed from feeding each greedy id but the last. A
    /// continuation of N ids thus adds N − 1 positions, since its first id is chosen by the last
    /// position of the prompt.
    #[serde(serialize_with = "as_hex")]
    pub logits_sha256: [u8; 32],
}

/// The logits of a position in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogitsSummary {
    /// The ten likeliest ids and their logits, the likeliest first, the lower id among equals.
    pub top: Vec<(u32, f32)>,
    /// ln Σ exp(logit), in f64.
    pub lse: f64,
    /// The mean of the logits, summed in f64.
    pub mean: f64,
    /// The root of their mean square, summed in f64.
    pub rms: f64,
}

impl LogitsSummary {
    /// The summary of `logits`, which are finite.
    pub fn of(logits: &[f32]) -> Self {
        let wide = || logits.iter().map(|&x| f64::from(x));
        let n = logits.len() as f64;
        Self {
            top: largest(logits),
            lse: log_sum_exp(logits),
            mean: wide().sum::<f64>() / n,
            rms: (wide().map(|x| x * x).sum::<f64>() / n).sqrt(),
        }
    }
}

/// ln Σ exp(x) of finite values, in f64; the relative error of the sum is below 1e-12 for
/// vocabularies of up to a million entries.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| libm::exp(f64::from(x) - max)).sum();
    max + libm::log(sum)
}

/// Runs `prompt` and `predict` greedy steps from an empty cache. Only one pass's logits are in
/// memory at a time. `keep_going` is asked at each position.
///
/// # Errors
/// [`EngineError::EmptyPrompt`], [`EngineError::Cancelled`] if `keep_going` says no, and those of
/// [`Executor::forward`].
pub fn record(
    executor: &mut Executor,
    prompt: &[u32],
    predict: usize,
    keep_going: &dyn Fn() -> bool,
) -> Result<LogitsReport, EngineError> {
    if prompt.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    executor.truncate(0);
    let mut digest = Sha256::new();
    let mut bytes = Vec::new();
    let mut hash = |logits: &[f32]| {
        bytes.clear();
        bytes.extend(logits.iter().flat_map(|x| x.to_le_bytes()));
        digest.update(&bytes);
        if keep_going() { Ok(()) } else { Err(EngineError::Cancelled) }
    };
    let mut positions = Vec::with_capacity(prompt.len());
    let mut next = (0, 0.0);
    executor.forward(prompt, Phase::Prefill, Want::All, &mut |position, logits| {
        positions.push(LogitsSummary::of(logits));
        if position + 1 == prompt.len() {
            next = argmax(logits);
        }
        hash(logits)
    })?;
    let mut greedy = Vec::new();
    while greedy.len() < predict {
        greedy.push(next);
        if greedy.len() < predict {
            executor.forward(&[next.0], Phase::Decode, Want::Last, &mut |_, logits| {
                next = argmax(logits);
                hash(logits)
            })?;
        }
    }
    Ok(LogitsReport {
        n_vocab: executor.model().config().vocab,
        positions,
        greedy,
        logits_sha256: digest.finalize().into(),
    })
}

/// The [`TOP`] largest logits, the largest first, the lower id first among equals.
fn largest(logits: &[f32]) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(TOP + 1);
    for (id, &logit) in (0..).zip(logits) {
        if top.len() == TOP && logit <= top[TOP - 1].1 {
            continue;
        }
        let at = top.partition_point(|&(_, other)| other >= logit);
        top.insert(at, (id, logit));
        top.truncate(TOP);
    }
    top
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn as_hex<S: Serializer>(digest: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_found_in_order() {
        let logits: Vec<f32> = (0..500u32).map(|i| ((i * 7919) % 97) as f32 - 50.0).collect();
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        assert_eq!(largest(&logits), sorted[..TOP]);
        assert_eq!(largest(&[1.0, 3.0, 3.0]), [(1, 3.0), (2, 3.0), (0, 1.0)]);
    }

    #[test]
    fn moments_of_known_logits() {
        // exp of ln 1, ln 2 and ln 5 sum to 8; a common offset moves the result by itself.
        for offset in [0.0f32, 1000.0, -1000.0] {
            let logits = [1.0f64, 2.0, 5.0].map(|x| libm::log(x) as f32 + offset);
            let want = libm::log(8.0) + f64::from(offset);
            assert!((log_sum_exp(&logits) - want).abs() < 1e-4, "{offset}");
        }
        let summary = LogitsSummary::of(&[3.0, -1.0, 4.0, 0.0]);
        assert_eq!((summary.mean, summary.rms), (1.5, 6.5f64.sqrt()));
    }
}
