//! Tiers: which requirements a model keeps, and what the contract projects from that.

use super::{Finding, Requirement, Verdict};
use serde::{Deserialize, Serialize};

/// The tier of a model, by the requirements that it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Any model that runs.
    Compatible,
    /// R1 and R2.
    Optimized,
    /// R1, R2 and R3.
    Native,
    /// All five.
    NativePlus,
}

impl Tier {
    /// Every tier, the lowest first.
    pub const ALL: [Self; 4] = [Self::Compatible, Self::Optimized, Self::Native, Self::NativePlus];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compatible => "Compatible",
            Self::Optimized => "Optimized",
            Self::Native => "Native",
            Self::NativePlus => "Native+",
        }
    }

    /// The requirements that must pass.
    pub const fn requires(self) -> &'static [Requirement] {
        use Requirement::{R1, R2, R3};
        match self {
            Self::Compatible => &[],
            Self::Optimized => &[R1, R2],
            Self::Native => &[R1, R2, R3],
            Self::NativePlus => &Requirement::ALL,
        }
    }

    /// The reduction of bytes per token that the contract projects for models of the tier.
    pub const fn projection(self) -> Projection {
        let (low_percent, high_percent) = match self {
            Self::Compatible => (45, 55),
            Self::Optimized => (70, 80),
            Self::Native => (80, 88),
            Self::NativePlus => (85, 92),
        };
        Projection { projection: true, low_percent, high_percent }
    }
}

/// A reduction of DRAM bytes per token that nobody has measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projection {
    /// Always true: the stamp that keeps it from being taken for a measurement.
    pub projection: bool,
    /// The least reduction.
    pub low_percent: u8,
    /// The largest reduction.
    pub high_percent: u8,
}

/// The highest tier whose requirements all pass. A requirement that is unknown, or of which there
/// is no finding, does not; one with several findings must pass in each.
pub fn tier_of(findings: &[Finding]) -> Tier {
    let passes = |requirement: &Requirement| {
        let own = findings.iter().filter(|finding| finding.requirement == *requirement);
        Verdict::of_all(own.map(|finding| finding.verdict)) == Verdict::Pass
    };
    let kept = |tier: &Tier| tier.requires().iter().all(passes);
    Tier::ALL.into_iter().rev().find(kept).unwrap_or(Tier::Compatible)
}
