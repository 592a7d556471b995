//! What an answer has cost: the line that a person reads and the object that a script reads.

use std::fmt;

use serde::Serialize;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended it.
    End,
    /// The limit on generated tokens was reached.
    Length,
    /// One of the stop strings came up.
    StopString,
    /// The context is full.
    ContextFull,
    /// The user stopped it.
    Interrupted,
}

/// The cost of one answer, or of several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u64,
    /// Of those, the ones whose keys and values were there already.
    pub reused_tokens: u64,
    /// Tokens that the model has produced.
    pub generated_tokens: u64,
    /// Time for the rest of the prompt.
    pub prefill_ms: f64,
    /// Time for the generated tokens.
    pub decode_ms: f64,
    /// Bytes that the executor has read for each generated token, counted by the engine's ledger.
    pub bytes_per_token: Option<f64>,
    /// Why the (last) answer ended.
    pub stop_reason: StopReason,
    /// The seed of the (last) answer's random choices.
    pub seed: u64,
    /// The most memory that this process has had resident, if the system tells.
    pub peak_resident_bytes: Option<u64>,
}

impl Stats {
    /// Prompt tokens per second, of those that were computed.
    pub fn prefill_tokens_per_s(&self) -> Option<f64> {
        rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prefill_ms)
    }

    /// Generated tokens per second.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        rate(self.generated_tokens, self.decode_ms)
    }

    /// Adds a later answer to this one.
    pub fn add(&mut self, later: &Self) {
        // The mean of the bytes is over the tokens; an answer without tokens has no say in it.
        let weigh = |stats: &Self| Some((stats.bytes_per_token?, stats.generated_tokens as f64));
        self.bytes_per_token = match (weigh(self), weigh(later)) {
            (Some((a, n)), Some((b, m))) if n + m > 0.0 => Some((a * n + b * m) / (n + m)),
            (a, b) => a.or(b).map(|(bytes, _)| bytes),
        };
        self.prompt_tokens += later.prompt_tokens;
        self.reused_tokens += later.reused_tokens;
        self.generated_tokens += later.generated_tokens;
        self.prefill_ms += later.prefill_ms;
        self.decode_ms += later.decode_ms;
        self.stop_reason = later.stop_reason;
        self.seed = later.seed;
        self.peak_resident_bytes = later.peak_resident_bytes.or(self.peak_resident_bytes);
    }
}

/// One line for people. What was not measured is left out.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[prompt {}", plural(self.prompt_tokens))?;
        if self.reused_tokens > 0 {
            write!(f, " ({} reused)", self.reused_tokens)?;
        }
        if let Some(rate) = self.prefill_tokens_per_s() {
            write!(f, ", {rate:.1} tok/s")?;
        }
        write!(f, " | generated {}", plural(self.generated_tokens))?;
        if let Some(rate) = self.decode_tokens_per_s() {
            write!(f, ", {rate:.1} tok/s")?;
        }
        if let Some(bytes) = self.bytes_per_token {
            write!(f, " | {:.1} MB/token (counted)", bytes / 1e6)?;
        }
        if let Some(bytes) = self.peak_resident_bytes {
            write!(f, " | peak {:.0} MB resident", bytes as f64 / 1e6)?;
        }
        write!(f, "]")
    }
}

fn rate(tokens: u64, ms: f64) -> Option<f64> {
    (tokens > 0 && ms > 0.0).then(|| tokens as f64 * 1e3 / ms)
}

fn plural(tokens: u64) -> String {
    format!("{tokens} token{}", if tokens == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Stats = Stats {
        prompt_tokens: 40,
        reused_tokens: 30,
        generated_tokens: 20,
        prefill_ms: 100.0,
        decode_ms: 400.0,
        bytes_per_token: Some(96.4e6),
        stop_reason: StopReason::End,
        seed: 7,
        peak_resident_bytes: Some(187_000_000),
    };

    #[test]
    fn the_line_names_everything_and_leaves_out_what_is_unknown() {
        assert_eq!(
            ONE.to_string(),
            "[prompt 40 tokens (30 reused), 100.0 tok/s | generated 20 tokens, 50.0 tok/s \
             | 96.4 MB/token (counted) | peak 187 MB resident]"
        );
        let nothing = Stats {
            reused_tokens: 0,
            generated_tokens: 1,
            prefill_ms: 0.0,
            decode_ms: 0.0,
            bytes_per_token: None,
            peak_resident_bytes: None,
            ..ONE
        };
        assert_eq!(nothing.to_string(), "[prompt 40 tokens | generated 1 token]");
    }

    #[test]
    fn sums_weigh_the_bytes_by_the_tokens() {
        let mut sum = ONE;
        sum.add(&Stats {
            generated_tokens: 60,
            bytes_per_token: Some(100.4e6),
            stop_reason: StopReason::Length,
            ..ONE
        });
        assert_eq!((sum.prompt_tokens, sum.generated_tokens), (80, 80));
        assert!((sum.bytes_per_token.unwrap() - 99.4e6).abs() < 1.0);
        assert_eq!(sum.stop_reason, StopReason::Length);
        let mut silent = Stats { generated_tokens: 0, bytes_per_token: None, ..ONE };
        silent.add(&ONE);
        assert_eq!(silent.bytes_per_token, ONE.bytes_per_token);
    }
}
