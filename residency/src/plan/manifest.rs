//! A plan's manifest (SPEC D2).

use aios_contract::DType;
use serde::{Deserialize, Serialize};

/// The version of the manifest's fields.
pub const SCHEMA: u32 = 3;

/// How much a plan may cost: in perplexity, and as much divergence as that is, measured on texts
/// that chose nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// No bit of any result changes.
    Exact,
    /// At most 0.1 %.
    Conservative,
    /// At most 0.5 %.
    Balanced,
    /// At most 2 %.
    Aggressive,
}

impl Quality {
    /// What the perplexity may rise by, as a part of it, and the divergence in nats.
    pub const fn budget(self) -> f64 {
        match self {
            Self::Exact => 0.0,
            Self::Conservative => 0.001,
            Self::Balanced => 0.005,
            Self::Aggressive => 0.02,
        }
    }
}

/// What a plan was made from, for and on, what it holds, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of these fields.
    pub schema: u32,
    /// The model's files.
    pub source: Source,
    /// Whether its weights are synthetic: then what was measured says nothing of a trained model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub synthetic: bool,
    /// The output matrix.
    pub head: HeadMatrix,
    /// The machine.
    pub hardware: Hardware,
    /// What it may cost.
    pub quality: Quality,
    /// Bytes of last-level cache that it is made for; `None` if nobody said and the system does
    /// not tell.
    pub llc_bytes: Option<u64>,
    /// Its tables.
    pub tables: Vec<TableEntry>,
    /// Weight bytes that a decoded token reads without it, by group of roles.
    pub bytes_per_token: Vec<(String, u64)>,
    /// What was measured of the screened head, unless there is none.
    pub screen: Option<ScreenReport>,
    /// Why the head cannot be screened, if it cannot.
    pub unscreened: Option<String>,
    /// What was measured of skipping zero neurons, where the model has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn: Option<FfnReport>,
    /// What was measured of leaving neurons out below a threshold, where the quality allows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<ThresholdReport>,
    /// What was found of keeping some weights in the last-level cache, where it is too small for
    /// all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<KeepReport>,
    /// What was found of how early to ask for weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<PrefetchReport>,
    /// What a budget of memory comes to, if the plan is made for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
}

/// What a budget of memory comes to: where the weights then live, and what a token takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryReport {
    /// The budget.
    pub ram_bytes: u64,
    /// Positions of the context that it was measured with.
    pub context: usize,
    /// Weights that stay in memory.
    pub hot_bytes: u64,
    /// Weights that every pass reads from disk.
    pub stream_bytes: u64,
    /// What cache, activations and buffers take.
    pub reserved_bytes: u64,
    /// Tokens that were decoded with the budget and without, whose logits were all equal.
    pub tokens: u64,
    /// The median of a token's time without the budget, in milliseconds.
    pub whole_ms: f64,
    /// That with it.
    pub limited_ms: f64,
    /// Bytes read of the disk for a token.
    pub disk_bytes_per_token: f64,
}

/// What was found of keeping some weights in the last-level cache and reading the others past it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepReport {
    /// Whether it saves time here: what `auto` goes by.
    pub pays: bool,
    /// The bytes for which the simulation lets through the least.
    pub room: u64,
    /// Bytes of the weights that are kept.
    pub kept_bytes: u64,
    /// Bytes of those that are read past the cache.
    pub past_bytes: u64,
    /// Simulated DRAM reads of a token without it.
    pub simulated_plain: f64,
    /// Those with it.
    pub simulated_kept: f64,
    /// Tokens that were decoded with and without, whose logits were all equal.
    pub tokens: u64,
    /// The median of a token's time without it, in milliseconds.
    pub plain_ms: f64,
    /// That with it.
    pub kept_ms: f64,
}

/// What was found of how early to ask for weights, with the instruction set of the plan's machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefetchReport {
    /// What is followed, in bytes ahead of use; 0 asks for nothing.
    pub ahead: usize,
    /// This program's own choice.
    pub usual: usize,
    /// The fastest of what was tried.
    pub fastest: usize,
    /// Tokens that were decoded in all ways, whose logits were all equal.
    pub tokens: u64,
    /// The median of a token's time with the usual distance, in milliseconds.
    pub usual_ms: f64,
    /// That with the fastest.
    pub fastest_ms: f64,
}

/// What leaving neurons out costs, on texts that fitted no threshold but chose among these parts.
/// Both runs are exact, so that nothing else differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThresholdReport {
    /// Every part of the neurons that was tried, by ascending size, also beyond the budget.
    pub tried: Vec<ThresholdPoint>,
    /// Which of them is in force; `None` if none is within the budget.
    pub chosen: Option<usize>,
    /// Positions that were scored.
    pub positions: usize,
    /// The perplexity without.
    pub base_perplexity: f64,
}

impl ThresholdReport {
    /// What is in force, if something is.
    pub fn in_force(&self) -> Option<&ThresholdPoint> {
        self.tried.get(self.chosen?)
    }
}

impl ThresholdPoint {
    /// Whether it costs no more than `quality` allows.
    pub fn is_within(&self, quality: Quality) -> bool {
        let budget = quality.budget();
        // A comparison with NaN is false.
        self.kl <= budget && self.perplexity_ratio <= 1.0 + budget
    }
}

/// A part of the neurons, left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThresholdPoint {
    /// The part that the thresholds were chosen for.
    pub target: f64,
    /// The mean divergence from the unchanged run, in nats.
    pub kl: f64,
    /// Its standard error.
    pub kl_standard_error: f64,
    /// The perplexity over that of the unchanged run.
    pub perplexity_ratio: f64,
    /// Its standard error.
    pub perplexity_ratio_standard_error: f64,
}

impl Manifest {
    /// What thresholds are in force, and what they cost.
    pub fn threshold_in_force(&self) -> Option<&ThresholdPoint> {
        self.threshold.as_ref()?.in_force()
    }
}

/// What was measured of skipping zero neurons in passes of one token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FfnReport {
    /// Whether it saves time here: what `auto` goes by.
    pub pays: bool,
    /// Of ten bytes of a down projection, how many may be read before it is read whole; at most 10,
    /// and the best of what was tried.
    pub down_of_ten: u8,
    /// Of ten gates, how many may be not zero before the up projection is read whole; likewise.
    pub up_of_ten: u8,
    /// Tokens that were decoded with and without, whose logits were all equal.
    pub tokens: u64,
    /// The part of the neurons whose quantised output is zero.
    pub zero_fraction: f64,
    /// Bytes of the feed-forward parts' matrices that a token reads without it.
    pub whole_bytes: u64,
    /// Those that it reads with it, on average.
    pub read_bytes: u64,
    /// The median of a token's time without it, in milliseconds.
    pub whole_ms: f64,
    /// That with it.
    pub skipped_ms: f64,
}

/// A model's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Their state on the disk, hexadecimal: a digest of headers, lengths and times.
    pub stamp: String,
    /// The SHA-256 of their bytes, one after another.
    pub sha256: String,
    /// Their length.
    pub bytes: u64,
}

/// The output matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadMatrix {
    /// How its elements are stored.
    pub dtype: DType,
    /// Its rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// The SHA-256 of its bytes in the file.
    pub sha256: String,
}

/// The machine that a plan's times were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// The processor's name; `None` if the system does not tell.
    pub cpu: Option<String>,
    /// The instruction set that the kernels use.
    pub isa: String,
    /// Processors that the process may use.
    pub processors: usize,
    /// Bytes of the last-level cache; `None` if the system does not tell.
    pub llc_bytes: Option<u64>,
}

/// A table of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableEntry {
    /// What it holds.
    pub kind: String,
    /// Its file in the folder.
    pub file: String,
    /// The file's length.
    pub bytes: u64,
    /// The file's SHA-256.
    pub sha256: String,
}

/// What was measured of the screened head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScreenReport {
    /// Whether it saves time here: what `auto` goes by.
    pub pays: bool,
    /// Positions of a pass up to which it does; at least 1.
    pub positions_most: usize,
    /// Positions of a pass up to which it saves time where the 40 best are wanted; 0 if never.
    pub top_40_positions_most: usize,
    /// Bytes of the whole head.
    pub head_bytes: u64,
    /// Bytes of the sketch that are read for every position.
    pub base_bytes: u64,
    /// Bytes that refine the bounds of rows, of which a position reads some.
    pub refined_bytes: u64,
    /// Positions and tokens whose hidden states fitted the directions.
    pub fitted_positions: usize,
    /// The part of ‖x̂‖² that the directions hold, on other positions than those that fitted them.
    pub along: f64,
    /// Greedy decoding.
    pub greedy: Screened,
    /// The 40 best.
    pub top_40: Screened,
    /// Medians of a token's time, and of passes of several positions, for the best row and for the
    /// 40 best.
    pub times: Vec<Times>,
}

/// What screening came to for a number of best rows, on positions that fitted nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Screened {
    /// Best rows that were asked for.
    pub best: usize,
    /// Positions.
    pub positions: u64,
    /// Of these, positions at which the head was read whole.
    pub whole: u64,
    /// Rows whose bounds were refined.
    pub refined: u64,
    /// Rows that were computed where the head was not read whole.
    pub rows: u64,
    /// Head bytes of a position, sketch and rows, over those of the whole head.
    pub fraction: f64,
}

/// Medians of passes over the same tokens, alternating.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// Best rows that were asked for.
    pub best: usize,
    /// Positions of a pass.
    pub positions: usize,
    /// Milliseconds with the head read whole.
    pub whole_ms: f64,
    /// Milliseconds with the screen.
    pub screened_ms: f64,
    /// Passes of each kind.
    pub samples: usize,
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
