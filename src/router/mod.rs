//! Which tier a prompt belongs to: the smallest model and budget that can serve it.
//!
//! [`Scorer::route`] is pure: the same text gives the same [`Route`] on every machine, in time
//! linear in its length, without a model. A prompt is cut into words, words are looked up among
//! cues of nine languages, a handful of named features is measured, and a weighted sum of them
//! is compared with two boundaries. The weights are a table in the source, fitted by
//! `scripts/fit_router.py` to the development half of the labelled prompts.

mod evaluate;
mod features;
mod lexicon;
mod model;
mod text;

use serde::{Deserialize, Serialize};

pub use evaluate::{Bin, Case, Error as EvaluationError, Evaluation, Share, cases, evaluate};
pub use features::{FEATURES, Features, NAMES};
pub use model::SCORER_VERSION;

use crate::config::ModelRole;
use lexicon::Lexicon;
use text::Text;

/// Words up to which a text without any cue is a fragment, and trivial.
const FRAGMENT_WORDS: usize = 3;

/// How demanding a prompt is.
#[derive(
    Clone,
    Copy,
    Debug,
    Deserialize,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Greetings, thanks, small talk, simple questions of one fact.
    Trivial,
    /// Explanation and analysis.
    Moderate,
    /// Reasoning in several steps, design, long tasks.
    High,
}

impl Tier {
    /// Every tier, from the least demanding one.
    pub const ALL: [Self; 3] = [Self::Trivial, Self::Moderate, Self::High];

    /// Its name, as it is written in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trivial => "trivial",
            Self::Moderate => "moderate",
            Self::High => "high",
        }
    }

    /// The role of the model that serves it, which the registry resolves.
    pub const fn role(self) -> ModelRole {
        match self {
            Self::Trivial => ModelRole::Small,
            Self::Moderate | Self::High => ModelRole::Main,
        }
    }
}

/// What an answer may use up.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// Most retrieved fragments in the prompt.
    pub fragments: u32,
    /// Share of the context, from 0 to 1, that the history may take.
    pub history_share: f64,
}

/// The budgets of the tiers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Of greetings and facts.
    pub trivial: Budget,
    /// Of explanations.
    pub moderate: Budget,
    /// Of long tasks.
    pub high: Budget,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trivial: Budget { max_tokens: 64, fragments: 0, history_share: 0.125 },
            moderate: Budget { max_tokens: 256, fragments: 4, history_share: 0.25 },
            high: Budget { max_tokens: 768, fragments: 12, history_share: 0.375 },
        }
    }
}

/// A configuration of the router that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("router: {tier}.{field} {what}")]
pub struct OptionsError {
    /// The tier whose budget it is.
    pub tier: &'static str,
    /// The field of the budget.
    pub field: &'static str,
    /// What is wrong with its value, and what would be right.
    pub what: &'static str,
}

impl Options {
    /// The budget of `tier`.
    pub const fn budget(&self, tier: Tier) -> Budget {
        match tier {
            Tier::Trivial => self.trivial,
            Tier::Moderate => self.moderate,
            Tier::High => self.high,
        }
    }

    /// Whether every budget is usable and none is below that of the tier before it.
    ///
    /// # Errors
    /// The first field that is not as it should be.
    pub fn check(&self) -> Result<(), OptionsError> {
        let mut before = Budget { max_tokens: 1, fragments: 0, history_share: 0.0 };
        for tier in Tier::ALL {
            let budget = self.budget(tier);
            let bad = |field, what| Err(OptionsError { tier: tier.name(), field, what });
            if budget.max_tokens == 0 {
                return bad("max_tokens", "is 0; an answer needs at least 1");
            }
            if !(0.0..=1.0).contains(&budget.history_share) {
                return bad("history_share", "must be from 0 to 1");
            }
            let falls = "is less than that of the tier below; budgets rise with the tier";
            if budget.max_tokens < before.max_tokens {
                return bad("max_tokens", falls);
            }
            if budget.fragments < before.fragments {
                return bad("fragments", falls);
            }
            if budget.history_share < before.history_share {
                return bad("history_share", falls);
            }
            before = budget;
        }
        Ok(())
    }
}

/// What decided a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The score.
    Score,
    /// There was no word in the text.
    Empty,
    /// No cue was recognised.
    Unknown,
    /// The caller.
    Forced,
}

/// Where a prompt goes and why. As JSON it is what `aios route --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    /// The tier.
    pub tier: Tier,
    /// The weighted sum of the features; see [`model`](self) for its scale.
    pub score: f64,
    /// How far the score is from the nearest boundary, in log-odds: the odds that the prompt is on
    /// this side of that boundary are `exp(margin)`. 0 where nothing was recognised.
    pub margin: f64,
    /// What was measured.
    pub features: Features,
    /// What the answer may use up.
    pub budget: Budget,
    /// The role of the model that answers.
    pub model: ModelRole,
    /// The version of lexicon, features and weights.
    pub scorer_version: &'static str,
    /// What decided.
    pub basis: Basis,
    /// Why, in words.
    pub reason: String,
}

/// Routes prompts.
#[derive(Clone, Debug)]
pub struct Scorer {
    lexicon: Lexicon,
    options: Options,
}

impl Default for Scorer {
    /// With the default budgets.
    fn default() -> Self {
        Self { lexicon: Lexicon::new(), options: Options::default() }
    }
}

impl Scorer {
    /// A scorer with budgets of one's own.
    ///
    /// # Errors
    /// Those of [`Options::check`].
    pub fn new(options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        Ok(Self { options, ..Self::default() })
    }

    /// The route of `prompt`. Any text has one.
    pub fn route(&self, prompt: &str) -> Route {
        let text = Text::of(prompt);
        let features = Features::of(&text, &self.lexicon);
        let score = model::score(&features);
        if features.recognised() {
            let (tier, margin) = model::tier(score);
            let reason = model::reason(&features, tier, margin);
            return self.decided(tier, score, margin, features, Basis::Score, reason);
        }
        // Nothing but the length is known, so the score says nothing and the margin is nil.
        let (tier, basis, reason) = match text.length() {
            0 => (Tier::Trivial, Basis::Empty, "there is no word in it"),
            1..=FRAGMENT_WORDS => {
                (Tier::Trivial, Basis::Unknown, "no cue was recognised in so few words")
            }
            _ => (Tier::Moderate, Basis::Unknown, "no cue was recognised: the middle tier is safe"),
        };
        self.decided(tier, score, 0.0, features, basis, reason.to_owned())
    }

    /// As [`Scorer::route`], if there is no `forced` tier; with one, that tier and its budget, and
    /// the score that the prompt has all the same.
    pub fn route_as(&self, prompt: &str, forced: Option<Tier>) -> Route {
        let own = self.route(prompt);
        let Some(tier) = forced else { return own };
        let reason =
            format!("asked for; by itself it would be {}: {}", own.tier.name(), own.reason);
        self.decided(tier, own.score, own.margin, own.features, Basis::Forced, reason)
    }

    fn decided(
        &self,
        tier: Tier,
        score: f64,
        margin: f64,
        features: Features,
        basis: Basis,
        reason: String,
    ) -> Route {
        Route {
            tier,
            score,
            margin,
            features,
            budget: self.options.budget(tier),
            model: tier.role(),
            scorer_version: SCORER_VERSION,
            basis,
            reason,
        }
    }
}

#[cfg(test)]
mod tests;
