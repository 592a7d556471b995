//! What an answer has cost: the line that a person reads and the object that a script reads.

use std::fmt;

use aios_engine::{ScreenStats, SpecStats, ZeroStats};
use aios_residency::{PhaseBytes, ResidencyStats};
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

impl StopReason {
    /// The spelling in statistics and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Length => "length",
            Self::StopString => "stop_string",
            Self::ContextFull => "context_full",
            Self::Interrupted => "interrupted",
        }
    }
}

/// The cost of one answer, or of several in a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// Whether the model's weights are synthetic: then only bytes and speed mean anything.
    pub synthetic: bool,
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u64,
    /// Of those, the ones whose keys and values were there already.
    pub reused_tokens: u64,
    /// Tokens that the model has produced.
    pub generated_tokens: u64,
    /// Tokens that passes after the prompt's have given, an end-of-generation token counted: what
    /// figures for a token are over. The prompt's own pass gives the first token.
    pub decoded_tokens: u64,
    /// Time for the rest of the prompt.
    pub prefill_ms: f64,
    /// Time for the generated tokens.
    pub decode_ms: f64,
    /// Bytes that the executor has read for each decoded token, counted by the engine's ledger.
    pub bytes_per_token: Option<f64>,
    /// Bytes read of the disk for each of them, those ahead of their use included.
    pub disk_bytes_per_token: Option<f64>,
    /// `bytes_per_token` in 10⁶ bytes, and how it was found out.
    pub mb_per_token: Option<MegabytesPerToken>,
    /// Bytes read and written by phase, and by role.
    pub bytes: Vec<PhaseBytes>,
    /// What was drafted; `None` if nothing was to be.
    pub spec_decode: Option<SpecDecode>,
    /// Where the weights live, and what passes have read of them.
    pub residency: Option<ResidencyStats>,
    /// Positions and rows of the head, where a plan screens it; counted.
    pub screen: Option<ScreenStats>,
    /// Neurons, and those of them that were skipped, where a plan says so; counted.
    pub zeros: Option<ZeroStats>,
    /// Why the (last) answer ended.
    pub stop_reason: StopReason,
    /// The seed of the (last) answer's random choices.
    pub seed: u64,
    /// The most memory that this process has had resident, if the system tells.
    pub peak_resident_bytes: Option<u64>,
}

/// MB/token and its source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MegabytesPerToken {
    /// 10⁶ bytes for each decoded token.
    pub value: f64,
    /// How it was found out.
    pub source: Source,
}

/// How a figure was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// By the engine's ledger.
    Counted,
}

/// What was drafted, and what it came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpecDecode {
    /// The option that asked for it.
    pub mode: &'static str,
    /// The share of drafted tokens that the model took.
    pub accept_rate: Option<f64>,
    /// Tokens that a pass gave.
    pub tokens_per_pass: Option<f64>,
    /// Drafted tokens that were taken in a pass that checked some.
    pub mean_accepted: Option<f64>,
    /// The counts.
    #[serde(flatten)]
    pub counts: SpecStats,
}

impl SpecDecode {
    /// The account of an answer's drafts.
    pub fn of(counts: SpecStats) -> Self {
        let checks: u64 = counts.lengths.iter().skip(1).sum();
        Self {
            mode: "",
            accept_rate: counts.accept_rate(),
            tokens_per_pass: counts.tokens_per_pass(),
            mean_accepted: (checks > 0).then(|| counts.accepted as f64 / checks as f64),
            counts,
        }
    }
}

impl Stats {
    /// Names the option that asked for drafts.
    #[must_use]
    pub fn with_mode(mut self, mode: &'static str) -> Self {
        if let Some(spec) = &mut self.spec_decode {
            spec.mode = mode;
        }
        self
    }

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
        // Each figure is over decoded tokens; an answer without any has no say in the mean.
        let (n, m) = (self.decoded_tokens as f64, later.decoded_tokens as f64);
        let mean = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) if n + m > 0.0 => Some((a * n + b * m) / (n + m)),
            (a, b) => a.or(b),
        };
        self.synthetic |= later.synthetic;
        self.bytes_per_token = mean(self.bytes_per_token, later.bytes_per_token);
        self.disk_bytes_per_token = mean(self.disk_bytes_per_token, later.disk_bytes_per_token);
        self.mb_per_token = megabytes_per_token(self.bytes_per_token);
        for of in &later.bytes {
            match self.bytes.iter_mut().find(|known| known.phase == of.phase) {
                Some(known) => known.add(of),
                None => self.bytes.push(of.clone()),
            }
        }
        self.spec_decode = match (self.spec_decode.take(), &later.spec_decode) {
            (Some(mut sum), Some(later)) => {
                sum.counts.add(&later.counts);
                Some(SpecDecode { mode: sum.mode, ..SpecDecode::of(sum.counts) })
            }
            (sum, later) => sum.or_else(|| later.clone()),
        };
        match (&mut self.residency, &later.residency) {
            (Some(sum), Some(later)) => sum.add(later),
            (sum, later) => *sum = sum.take().or_else(|| later.clone()),
        }
        if let Some(later) = &later.screen {
            self.screen.get_or_insert_default().add(later);
        }
        if let Some(later) = &later.zeros {
            self.zeros.get_or_insert_default().add(later);
        }
        self.prompt_tokens += later.prompt_tokens;
        self.reused_tokens += later.reused_tokens;
        self.generated_tokens += later.generated_tokens;
        self.decoded_tokens += later.decoded_tokens;
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
        if let Some(spec) = self.spec_decode.as_ref().filter(|spec| spec.counts.drafted > 0) {
            let SpecStats { drafted, accepted, .. } = spec.counts;
            write!(f, " | {accepted} of {drafted} drafted tokens right")?;
            if let Some(tokens) = spec.tokens_per_pass {
                write!(f, ", {tokens:.2} tokens/pass")?;
            }
        }
        if let Some(bytes) = self.disk_bytes_per_token.filter(|bytes| *bytes > 0.0) {
            write!(f, " | {:.1} MB/token from disk", bytes / 1e6)?;
        }
        if let Some(bytes) = self.peak_resident_bytes {
            write!(f, " | peak {:.0} MB resident", bytes as f64 / 1e6)?;
        }
        if self.synthetic {
            write!(f, " | synthetic weights")?;
        }
        write!(f, "]")
    }
}

/// MB/token as counted.
pub fn megabytes_per_token(bytes: Option<f64>) -> Option<MegabytesPerToken> {
    bytes.map(|bytes| MegabytesPerToken { value: bytes / 1e6, source: Source::Counted })
}

fn rate(tokens: u64, ms: f64) -> Option<f64> {
    (tokens > 0 && ms > 0.0).then(|| tokens as f64 * 1e3 / ms)
}

fn plural(tokens: u64) -> String {
    format!("{tokens} token{}", if tokens == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use aios_residency::{Phase, TierBytes};

    use super::*;

    const ONE: Stats = Stats {
        synthetic: false,
        prompt_tokens: 40,
        reused_tokens: 30,
        generated_tokens: 20,
        decoded_tokens: 20,
        prefill_ms: 100.0,
        decode_ms: 400.0,
        bytes_per_token: Some(96.4e6),
        disk_bytes_per_token: None,
        mb_per_token: None,
        bytes: Vec::new(),
        spec_decode: None,
        residency: None,
        screen: None,
        zeros: None,
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
    fn what_came_from_disk_is_told_of_and_summed() {
        let stats = |per_token: f64| {
            let residency =
                ResidencyStats { tokens: 10, disk_bytes: 25_000_000, ..ResidencyStats::default() };
            let disk_bytes_per_token = Some(per_token);
            Stats { residency: Some(residency), disk_bytes_per_token, ..ONE }
        };
        assert!(stats(2.5e6).to_string().contains(" | 2.5 MB/token from disk | peak"));
        assert_eq!(stats(0.0).to_string(), ONE.to_string());
        let mut sum = ONE;
        sum.add(&stats(2.5e6));
        assert_eq!(sum.disk_bytes_per_token, Some(2.5e6));
        sum.add(&Stats { decoded_tokens: 40, ..stats(5.0e6) });
        // The first two answers have 20 tokens each.
        assert!((sum.disk_bytes_per_token.unwrap() - 3.75e6).abs() < 1.0);
        let residency = sum.residency.unwrap();
        assert_eq!((residency.tokens, residency.disk_bytes), (20, 50_000_000));
    }

    #[test]
    fn sums_weigh_the_bytes_by_the_tokens() {
        let mut sum = ONE;
        sum.add(&Stats {
            generated_tokens: 60,
            decoded_tokens: 60,
            bytes_per_token: Some(100.4e6),
            stop_reason: StopReason::Length,
            ..ONE
        });
        assert_eq!((sum.prompt_tokens, sum.generated_tokens), (80, 80));
        assert!((sum.bytes_per_token.unwrap() - 99.4e6).abs() < 1.0);
        assert_eq!(sum.stop_reason, StopReason::Length);
        assert!((sum.mb_per_token.unwrap().value - 99.4).abs() < 1e-6);
        let mut silent = Stats { decoded_tokens: 0, bytes_per_token: None, ..ONE };
        silent.add(&ONE);
        assert_eq!(silent.bytes_per_token, ONE.bytes_per_token);
    }

    /// The bytes of `tokens` decoded tokens.
    fn decoded(tokens: u64, weights: u64, kv_read: u64, disk: u64) -> PhaseBytes {
        PhaseBytes {
            phase: Phase::Decode,
            tokens,
            passes: tokens,
            weights,
            roles: Vec::new(),
            kv_read,
            kv_written: 0,
            kv_read_tiers: TierBytes::default(),
            kv_written_tiers: TierBytes::default(),
            disk,
        }
    }

    #[test]
    fn the_mean_of_several_answers_is_that_of_the_bytes_beside_it() {
        // The first token of an answer comes of the prompt's pass; the first answer has one more
        // that is not shown, which ended it.
        let answer = |generated_tokens, of: PhaseBytes| {
            let per_token = |bytes: u64| Some(bytes as f64 / of.tokens as f64);
            let prompt = PhaseBytes { phase: Phase::Prefill, ..decoded(9, 5_000_000, 77, 13) };
            Stats {
                generated_tokens,
                decoded_tokens: of.tokens,
                bytes_per_token: per_token(of.weights + of.kv_read),
                disk_bytes_per_token: per_token(of.disk),
                bytes: vec![prompt, of],
                ..ONE
            }
        };
        let mut sum = answer(2, decoded(2, 200_000_000, 2_000, 50_000_000));
        sum.add(&answer(5, decoded(4, 800_000_000, 44_000, 20_000_000)));
        let of = sum.bytes.iter().find(|of| of.phase == Phase::Decode).unwrap();
        let per_token = |bytes: u64| bytes as f64 / of.tokens as f64;
        assert_eq!((sum.generated_tokens, sum.decoded_tokens, of.tokens), (7, 6, 6));
        let recomputed = per_token(of.weights + of.kv_read);
        assert!((sum.bytes_per_token.unwrap() - recomputed).abs() < 1e-3, "{sum:?}");
        assert!((sum.mb_per_token.unwrap().value - recomputed / 1e6).abs() < 1e-9, "{sum:?}");
        assert!((sum.disk_bytes_per_token.unwrap() - per_token(of.disk)).abs() < 1e-3, "{sum:?}");
    }

    #[test]
    fn drafts_are_told_of_and_summed() {
        let drafted = |drafted, accepted| {
            let lengths = vec![5, 5];
            let (passes, tokens) = (10, 10 + accepted);
            let counts =
                SpecStats { drafted, accepted, passes, tokens, lengths, ..SpecStats::default() };
            Stats { spec_decode: Some(SpecDecode::of(counts)), ..ONE }
        };
        let mut sum = drafted(40, 30).with_mode("auto");
        assert!(sum.to_string().contains("| 30 of 40 drafted tokens right, 4.00 tokens/pass |"));
        sum.add(&drafted(60, 10));
        sum.add(&ONE);
        let spec = sum.spec_decode.as_ref().unwrap();
        assert_eq!((spec.mode, spec.counts.drafted, spec.accept_rate), ("auto", 100, Some(0.4)));
        assert_eq!((spec.tokens_per_pass, spec.mean_accepted), (Some(3.0), Some(4.0)));
        let json = serde_json::to_value(&sum).unwrap();
        assert_eq!(json["spec_decode"]["passes"], 20);
        assert_eq!(drafted(0, 0).to_string(), ONE.to_string());
    }
}
