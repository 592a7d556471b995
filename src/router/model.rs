//! The weights: an ordinal logistic model over the features.
//!
//! `score = Σ weight · feature`. With σ the logistic function, the model holds a prompt to be
//! above trivial with probability `σ(score - BOUNDARIES[0])` and to be high with
//! `σ(score - BOUNDARIES[1])`. A score at a boundary is undecided between the tiers beside it.

use super::Tier;
use super::features::{FEATURES, Features, NAMES};

/// Names lexicon, features and weights together; any change of one is a new version.
pub const SCORER_VERSION: &str = "router-1";

/// By feature, in the order of [`NAMES`]; fitted by `scripts/fit_router.py`.
const WEIGHTS: [f64; FEATURES] = [
    0.27,  // length
    -1.91, // greeting
    -2.71, // fact
    2.56,  // explain
    5.21,  // design
    1.49,  // work
    0.62,  // further_tasks
    0.85,  // scope
    0.59,  // steps
    0.41,  // parts
    0.97,  // request_length
    0.08,  // code
    0.06,  // numbers
];

/// The scores between trivial and moderate, and between moderate and high.
const BOUNDARIES: [f64; 2] = [0.93, 7.93];

/// The score of a prompt.
pub(super) fn score(features: &Features) -> f64 {
    features.values().iter().zip(WEIGHTS).map(|(value, weight)| value * weight).sum()
}

/// The tier of a score and its distance from the nearest boundary.
pub(super) fn tier(score: f64) -> (Tier, f64) {
    let [low, high] = BOUNDARIES;
    let margin = (score - low).abs().min((score - high).abs());
    let tier = match () {
        () if score < low => Tier::Trivial,
        () if score < high => Tier::Moderate,
        () => Tier::High,
    };
    (tier, margin)
}

/// What weighed most for and against, in words.
pub(super) fn reason(features: &Features, tier: Tier, margin: f64) -> String {
    let mut weighed: Vec<(&str, f64)> = NAMES
        .iter()
        .zip(features.values().iter().zip(WEIGHTS))
        .map(|(name, (value, weight))| (*name, value * weight))
        .filter(|(_, weighed)| *weighed != 0.0)
        .collect();
    weighed.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let most: Vec<String> =
        weighed.iter().take(3).map(|(name, by)| format!("{} {by:+.1}", in_words(name))).collect();
    let close = if margin < 0.5 { ", but it is close" } else { "" };
    format!("{}: {}{close}", tier.name(), most.join(", "))
}

/// What a feature says of a prompt.
fn in_words(name: &str) -> &'static str {
    match name {
        "length" => "its length",
        "greeting" => "it greets or thanks",
        "fact" => "it asks for one fact",
        "explain" => "it asks for an explanation or analysis",
        "design" => "it asks for a design or a proof",
        "work" => "it asks for something to be made or worked out",
        "further_tasks" => "it asks for several things",
        "scope" => "it names parts of a long task",
        "steps" => "it asks for steps",
        "parts" => "the request has separate parts",
        "request_length" => "the request is long",
        "code" => "it has code",
        _ => "the request has numbers",
    }
}
