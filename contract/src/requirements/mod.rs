//! The Model Contract, version 1.0 (SPEC.md, chapter R): five requirements that a model can be
//! built to, and the tiers that they add up to. Everything here is judgement: pure functions of
//! a configuration, a description or a measurement. Who measures, and how, is not known here.
//!
//! A requirement consists of measures, each a value beside its bound. What is not known never
//! passes: it is [`Verdict::Unknown`], and an unknown requirement lifts no tier.

mod alias;
mod manifest;
mod tier;

use crate::{ActivationFn, ModelConfig};
use serde::{Deserialize, Serialize};

pub use alias::{Alias, Aliases, depth_band};
pub use manifest::{BlockId, BlockTier, Extent, Manifest, ManifestBlock, ManifestError};
pub use tier::{Projection, Tier, tier_of};

/// The version of the contract, as files and reports state it.
pub const CONTRACT_VERSION: &str = "1.0";

/// R1: the least mean fraction of zeros.
pub const ZERO_FRACTION_MIN: f64 = 0.70;
/// R1: the fewest calibration prompts.
pub const PROMPTS_MIN: u64 = 1000;
/// R2: the context at which the cache is counted, in positions.
pub const KV_CONTEXT: usize = 4096;
/// R2: the most MB (10⁶ bytes) of cache.
pub const KV_MB_MAX: f64 = 64.0;
/// R2: the most KV heads.
pub const KV_HEADS_MAX: usize = 2;
/// R2: bytes of an element of the cache, a half-precision number.
pub const KV_ELEMENT_BYTES: u64 = 2;
/// R3: the norm of a delta is below this fraction of its canonical tensor's.
pub const DELTA_NORM_LIMIT: f64 = 0.10;
/// R3: the least aliasing ratio.
pub const ALIASING_MIN: f64 = 0.70;
/// R4: the most KB (10³ bytes) of activations of a layer.
pub const ACTIVATION_KB_MAX: f64 = 200.0;
/// R5: the profiler starts in less than this, in seconds.
pub const PROFILER_START_S_LIMIT: f64 = 60.0;

/// A requirement of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Requirement {
    /// Feed-forward activations with true zeros.
    R1,
    /// A small KV cache.
    R2,
    /// Canonical tensors and deltas in the middle layers.
    R3,
    /// A small activation footprint.
    R4,
    /// A file in the order of access frequency, with a manifest.
    R5,
}

impl Requirement {
    /// Every requirement.
    pub const ALL: [Self; 5] = [Self::R1, Self::R2, Self::R3, Self::R4, Self::R5];

    /// The number under which SPEC.md and reports know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::R1 => "R1",
            Self::R2 => "R2",
            Self::R3 => "R3",
            Self::R4 => "R4",
            Self::R5 => "R5",
        }
    }

    /// What it asks for, in a few words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::R1 => "activations with true zeros",
            Self::R2 => "small KV cache",
            Self::R3 => "canonical and delta weights",
            Self::R4 => "small activation footprint",
            Self::R5 => "frequency-ordered file",
        }
    }
}

/// What came of a requirement or of one of its measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is kept.
    Pass,
    /// It is not kept.
    Fail,
    /// It was not measured, or not well enough. This is not a pass.
    Unknown,
}

impl Verdict {
    /// The verdict on the whole of some parts: one that fails decides, then one that is unknown.
    /// Of no parts nothing is known.
    pub fn of_all(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else { return Self::Unknown };
        parts.fold(first, |whole, part| match (whole, part) {
            (Self::Fail, _) | (_, Self::Fail) => Self::Fail,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Pass, Self::Pass) => Self::Pass,
        })
    }

    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

/// The value of a measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Something holds or does not.
    Flag(bool),
    /// A finite number in the measure's unit.
    Number(f64),
}

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// True.
    Holds,
    /// This number or less.
    AtMost(f64),
    /// This number or more.
    AtLeast(f64),
    /// Less than this number.
    Below(f64),
}

impl Bound {
    /// Whether `value` keeps the bound. A value of the other kind, or NaN, does not.
    pub fn admits(self, value: Value) -> bool {
        match (self, value) {
            (Self::Holds, Value::Flag(holds)) => holds,
            (Self::AtMost(limit), Value::Number(value)) => value <= limit,
            (Self::AtLeast(limit), Value::Number(value)) => value >= limit,
            (Self::Below(limit), Value::Number(value)) => value < limit,
            _ => false,
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Computed from the model's configuration or from its weights.
    Computed,
    /// Measured in a run.
    Measured,
    /// Stated in the file, and checked as far as the file itself allows.
    Declared,
    /// From nowhere: it is missing.
    Missing,
}

impl Source {
    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::Measured => "measured",
            Self::Declared => "declared",
            Self::Missing => "missing",
        }
    }
}

/// One value of a requirement beside its bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// What was measured.
    pub what: String,
    /// The value, if it is known.
    pub value: Option<Value>,
    /// The unit of a number; empty for a flag or a plain ratio.
    pub unit: String,
    /// What the value must be.
    pub bound: Bound,
    /// Where the value comes from.
    pub source: Source,
    /// What came of it.
    pub verdict: Verdict,
}

impl Measure {
    /// Judges a number. One that is not known, or not finite, is missing and its verdict unknown.
    fn number(what: &str, value: Option<f64>, unit: &str, bound: Bound, source: Source) -> Self {
        let value = value.filter(|value| value.is_finite()).map(Value::Number);
        Self::new(what, value, unit, bound, source)
    }

    /// Judges a condition.
    fn flag(what: &str, holds: Option<bool>, source: Source) -> Self {
        Self::new(what, holds.map(Value::Flag), "", Bound::Holds, source)
    }

    fn new(what: &str, value: Option<Value>, unit: &str, bound: Bound, source: Source) -> Self {
        let (source, verdict) = match value {
            None => (Source::Missing, Verdict::Unknown),
            Some(value) if bound.admits(value) => (source, Verdict::Pass),
            Some(_) => (source, Verdict::Fail),
        };
        let (what, unit) = (what.to_owned(), unit.to_owned());
        Self { what, value, unit, bound, source, verdict }
    }

    /// The same measure, undecided unless `sound`: the value is shown but proves nothing.
    fn undecided_unless(mut self, sound: bool) -> Self {
        if !sound {
            self.verdict = Verdict::Unknown;
        }
        self
    }
}

/// What is found of one requirement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// The requirement.
    pub requirement: Requirement,
    /// What came of it: [`Verdict::of_all`] of its measures.
    pub verdict: Verdict,
    /// Its values.
    pub measures: Vec<Measure>,
    /// What the verdict rests on, or what is missing and how to get it: one sentence or two.
    pub evidence: String,
}

impl Finding {
    fn new(requirement: Requirement, measures: Vec<Measure>, evidence: String) -> Self {
        let verdict = Verdict::of_all(measures.iter().map(|measure| measure.verdict));
        Self { requirement, verdict, measures, evidence }
    }
}

/// What came of looking for something that a file may carry.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe<T> {
    /// Nobody looked.
    NotExamined,
    /// It is not there.
    Absent,
    /// It is there but cannot be used; the reason.
    Broken(String),
    /// It is there.
    Present(T),
}

impl<T> Probe<T> {
    /// The outcome of an extraction; an error's text is the reason.
    pub fn from_result<E: std::fmt::Display>(result: Result<Option<T>, E>) -> Self {
        match result {
            Ok(Some(found)) => Self::Present(found),
            Ok(None) => Self::Absent,
            Err(error) => Self::Broken(error.to_string()),
        }
    }

    /// Whether the thing is there and in order, as far as anybody looked.
    const fn is_sound(&self) -> Option<bool> {
        match self {
            Self::NotExamined => None,
            Self::Absent | Self::Broken(_) => Some(false),
            Self::Present(_) => Some(true),
        }
    }

    const fn present(&self) -> Option<&T> {
        match self {
            Self::Present(found) => Some(found),
            _ => None,
        }
    }
}

/// Activation functions as R1 tells them apart: those of this engine ([`ActivationFn`]), and those
/// that the contract asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
    /// x / (1 + e^−x).
    Silu,
    /// The tanh form of GELU.
    GeluTanh,
    /// GELU itself.
    GeluErf,
}

impl Activation {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relu => "ReLU",
            Self::ReluSquared => "ReLU²",
            Self::Silu => "SiLU",
            Self::GeluTanh => "GELU",
            Self::GeluErf => "GELU (erf)",
        }
    }

    /// Whether it is exactly 0 on a half-line, not merely small there.
    pub const fn has_true_zeros(self) -> bool {
        matches!(self, Self::Relu | Self::ReluSquared)
    }
}

impl From<ActivationFn> for Activation {
    fn from(function: ActivationFn) -> Self {
        match function {
            ActivationFn::Silu => Self::Silu,
            ActivationFn::GeluTanh => Self::GeluTanh,
            ActivationFn::GeluErf => Self::GeluErf,
            ActivationFn::Relu => Self::Relu,
            ActivationFn::ReluSquared => Self::ReluSquared,
        }
    }
}

/// What R1 measures: how often the input of a down projection is exactly 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparsity {
    /// Calibration prompts that were run, those of the same tokens counted once.
    pub prompts: u64,
    /// Tokens of all that were run.
    pub tokens: u64,
    /// The most that was read of a prompt.
    pub tokens_most: u64,
    /// SHA-256 of the file of prompts.
    pub sha256: String,
    /// The mean over layers of the fraction of elements that are 0, over all tokens, 0 to 1.
    pub zero_fraction: f64,
}

/// R1: the activation has true zeros, and there are many of them.
pub fn r1(activation: Activation, sparsity: Option<&Sparsity>) -> Finding {
    let in_range = |sparsity: &&Sparsity| (0.0..=1.0).contains(&sparsity.zero_fraction);
    let usable = sparsity.filter(in_range);
    let enough = usable.is_some_and(|sparsity| sparsity.prompts >= PROMPTS_MIN);
    let true_zeros = Some(activation.has_true_zeros());
    let fraction = usable.map(|sparsity| sparsity.zero_fraction);
    let prompts = usable.map(|sparsity| sparsity.prompts as f64);
    let (least, fewest) = (Bound::AtLeast(ZERO_FRACTION_MIN), Bound::AtLeast(PROMPTS_MIN as f64));
    let measures = vec![
        Measure::flag("true zeros", true_zeros, Source::Computed),
        Measure::number("mean zero fraction", fraction, "", least, Source::Measured)
            .undecided_unless(enough),
        Measure::number("calibration prompts", prompts, "", fewest, Source::Measured)
            .undecided_unless(enough),
    ];
    let name = activation.name();
    let evidence = match (activation.has_true_zeros(), sparsity, usable) {
        (false, ..) => format!("The activation is {name}, which is 0 at single points only."),
        (true, None, _) => format!(
            "The activation is {name}; its zeros were not counted. Run {PROMPTS_MIN} prompts."
        ),
        (true, Some(_), None) => "The zero fraction is not between 0 and 1.".to_owned(),
        (true, _, Some(Sparsity { prompts, .. })) if !enough => format!(
            "The activation is {name}, but {prompts} different prompts prove nothing: run \
             {PROMPTS_MIN}."
        ),
        (true, _, Some(Sparsity { prompts, tokens, tokens_most, sha256, .. })) => format!(
            "The activation is {name}; its zeros were counted in {tokens} tokens of {prompts} \
             different prompts, of which at most {tokens_most} tokens were read each, from the \
             file with SHA-256 {sha256}."
        ),
    };
    Finding::new(Requirement::R1, measures, evidence)
}

/// Bytes of keys and values of one sequence of `context` positions in half precision. A layer with
/// a sliding window holds the window's positions and no more. Saturates at `u64::MAX`.
pub fn kv_bytes(config: &ModelConfig, context: usize) -> u64 {
    let attention = &config.attention;
    let head = (attention.key_len as u64).saturating_add(attention.value_len as u64);
    let position = head.saturating_mul(attention.kv_heads as u64).saturating_mul(KV_ELEMENT_BYTES);
    let held = |layer: usize| match attention.window {
        Some(window) if window.applies_to(layer) => window.size.min(context),
        _ => context,
    };
    let positions = (0..config.layers).map(|layer| held(layer) as u64);
    positions.fold(0, u64::saturating_add).saturating_mul(position)
}

/// R2: the cache is small and has few heads.
pub fn r2(config: &ModelConfig) -> Finding {
    let attention = &config.attention;
    let megabytes = kv_bytes(config, KV_CONTEXT) as f64 / 1e6;
    let heads = attention.kv_heads as f64;
    let cache = format!("KV cache at {KV_CONTEXT} tokens");
    let (most, fewest) = (Bound::AtMost(KV_MB_MAX), Bound::AtMost(KV_HEADS_MAX as f64));
    let measures = vec![
        Measure::number(&cache, Some(megabytes), "MB", most, Source::Computed),
        Measure::number("KV heads", Some(heads), "", fewest, Source::Computed),
    ];
    let (key, value) = (attention.key_len, attention.value_len);
    let mut evidence = format!(
        "{} layers, {} KV heads of {key} + {value} elements of {KV_ELEMENT_BYTES} bytes.",
        config.layers, attention.kv_heads
    );
    if let Some(window) = attention.window {
        let count = (0..config.layers).filter(|layer| window.applies_to(*layer)).count();
        evidence += &format!(" {count} layers hold {} positions.", window.size.min(KV_CONTEXT));
    }
    Finding::new(Requirement::R2, measures, evidence)
}

/// R3: layers of the middle are canonical tensors and small deltas.
pub fn r3(aliases: &Probe<Aliases>) -> Finding {
    let found = aliases.present();
    let delta = found.and_then(Aliases::delta_ratio_max);
    let ratio = match aliases {
        Probe::Present(found) => Some(found.aliasing_ratio()),
        Probe::Absent => Some(0.0),
        Probe::NotExamined | Probe::Broken(_) => None,
    };
    let (small, most) = (Bound::Below(DELTA_NORM_LIMIT), Bound::AtLeast(ALIASING_MIN));
    let measures = vec![
        Measure::flag("aliases in the file", aliases.is_sound(), Source::Declared),
        Measure::number("aliasing ratio", ratio, "", most, Source::Computed),
        Measure::number("largest delta norm", delta, "of canonical", small, Source::Computed),
    ];
    let evidence = match aliases {
        Probe::NotExamined => "The file was not searched for aliases.".to_owned(),
        Probe::Absent => "The file has no aliased tensors.".to_owned(),
        Probe::Broken(reason) => format!("The aliases cannot be used: {reason}."),
        Probe::Present(found) => found.to_string(),
    };
    Finding::new(Requirement::R3, measures, evidence)
}

/// Bytes of the activations of a layer for one token: (2·d_model + 4·d_ffn) half-precision numbers.
/// Saturates at `u64::MAX`.
pub const fn activation_bytes(config: &ModelConfig) -> u64 {
    let model = (config.d_model as u64).saturating_mul(2);
    let inner = (config.ffn.len as u64).saturating_mul(4);
    model.saturating_add(inner).saturating_mul(2)
}

/// R4: what a layer computes for one token is small.
pub fn r4(config: &ModelConfig) -> Finding {
    let kilobytes = activation_bytes(config) as f64 / 1e3;
    let bound = Bound::AtMost(ACTIVATION_KB_MAX);
    let what = "activations of a layer";
    let measures = vec![Measure::number(what, Some(kilobytes), "KB", bound, Source::Computed)];
    let evidence =
        format!("(2 · {} + 4 · {}) · 2 bytes at batch 1.", config.d_model, config.ffn.len);
    Finding::new(Requirement::R4, measures, evidence)
}

/// R5: the file is ordered by access frequency and says so. A manifest that is
/// [`Probe::Present`] must have passed [`Manifest::check`]; `start_s` is the time that the profiler
/// took to start, in seconds.
pub fn r5(manifest: &Probe<Manifest>, start_s: Option<f64>) -> Finding {
    let start_s = start_s.filter(|seconds| *seconds >= 0.0);
    let bound = Bound::Below(PROFILER_START_S_LIMIT);
    let measures = vec![
        Measure::flag("ordered file with a manifest", manifest.is_sound(), Source::Declared),
        Measure::number("profiler start", start_s, "s", bound, Source::Measured),
    ];
    let mut evidence = match manifest {
        Probe::NotExamined => "Nobody looked for a manifest.".to_owned(),
        Probe::Absent => "There is no manifest.".to_owned(),
        Probe::Broken(reason) => format!("The manifest cannot be used: {reason}."),
        Probe::Present(manifest) => manifest.to_string(),
    };
    if start_s.is_none() {
        evidence += " The profiler's start was not timed.";
    }
    Finding::new(Requirement::R5, measures, evidence)
}

#[cfg(test)]
mod tests;
