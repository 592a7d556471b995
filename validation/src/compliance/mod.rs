//! Compliance: a model held against the Model Contract (SPEC.md, chapter R), each requirement with
//! its values, what they rest on and the verdict; the tier; and the configuration that suits the
//! model on some hardware.
//!
//! [`assess`] only judges. Its inputs come from a loaded model ([`group_bytes`]), from its file
//! ([`extract`]) and from runs; what is left out stays unknown, and unknown is not a pass.

mod advice;
pub mod catalog;
pub mod extract;
mod hardware;
mod norms;
mod reduction;
mod render;
#[cfg(test)]
mod tests;

use aios_contract::ModelConfig;
use aios_contract::requirements::{
    Aliases, CONTRACT_VERSION, Finding, Manifest, Probe, Projection, Sparsity, Tier, r1, r2, r3,
    r4, r5, tier_of,
};
use serde::{Deserialize, Serialize};

pub use advice::{GroupBytes, Recommendation, WeightsFrom, group_bytes, recommend};
pub use hardware::{HardwareProfile, THIS_MACHINE, UnknownProfile};
pub use reduction::{LeversError, MeasuredLevers};
pub use render::ReportError;

/// The version of [`ComplianceReport`]'s JSON.
pub const SCHEMA: u32 = 1;

/// Which model is assessed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelIdentity {
    /// Its name; text from a file is escaped when it is shown.
    pub name: String,
    /// SHA-256 of its (first) file, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Bytes of its file, or of all parts.
    pub bytes: u64,
}

/// A reduction of DRAM bytes per token that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredReduction {
    /// By how much, in percent of the baseline.
    pub percent: f64,
    /// The baseline, and where both figures come from.
    pub of: String,
}

/// What is known of a model.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Which model.
    pub model: ModelIdentity,
    /// Whether its weights are synthetic ([`crate::synth::SYNTHETIC_KEY`]).
    pub synthetic: bool,
    /// Its configuration.
    pub config: &'a ModelConfig,
    /// Its bytes by role, of [`group_bytes`].
    pub bytes: Vec<GroupBytes>,
    /// R1's measurement, if it was made.
    pub sparsity: Option<Sparsity>,
    /// What [`extract::aliases`] found.
    pub aliases: Probe<Aliases>,
    /// What [`extract::manifest`] found.
    pub manifest: Probe<Manifest>,
    /// Seconds that the profiler took to start, if that was timed.
    pub profiler_start_s: Option<f64>,
    /// The measured reduction of bytes per token, if there is one.
    pub reduction: Option<MeasuredReduction>,
    /// The machine that a configuration is recommended for.
    pub hardware: HardwareProfile,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComplianceReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of the contract.
    pub contract_version: String,
    /// Which model.
    pub model: ModelIdentity,
    /// Whether its weights are synthetic: then nothing here says how a trained model behaves.
    pub synthetic: bool,
    /// R1 to R5.
    pub findings: Vec<Finding>,
    /// The tier.
    pub tier: Tier,
    /// The reduction of bytes per token that the contract projects for the tier.
    pub projected_reduction: Projection,
    /// The one that was measured, if any.
    pub measured_reduction: Option<MeasuredReduction>,
    /// The model's bytes by role.
    pub bytes: Vec<GroupBytes>,
    /// The machine that the configuration is for.
    pub hardware: HardwareProfile,
    /// The recommended configuration.
    pub recommended: Recommendation,
}

/// Holds a model against the contract.
pub fn assess(inputs: Inputs<'_>) -> ComplianceReport {
    let Inputs { model, synthetic, config, bytes, hardware, .. } = inputs;
    // Zeros of random weights are no property of a model.
    let sparsity = inputs.sparsity.as_ref().filter(|_| !synthetic);
    let mut first = r1(config.ffn.activation.into(), sparsity);
    if synthetic && inputs.sparsity.is_some() {
        first.evidence += " The measurement was dropped: the weights are synthetic.";
    }
    let findings = vec![
        first,
        r2(config),
        r3(&inputs.aliases),
        r4(config),
        r5(&inputs.manifest, inputs.profiler_start_s),
    ];
    let tier = tier_of(&findings);
    let recommended = recommend(config, &bytes, &hardware);
    ComplianceReport {
        schema: SCHEMA,
        contract_version: CONTRACT_VERSION.to_owned(),
        model,
        synthetic,
        findings,
        tier,
        projected_reduction: tier.projection(),
        measured_reduction: inputs.reduction.filter(|reduction| reduction.percent.is_finite()),
        bytes,
        hardware,
        recommended,
    }
}
