//! The reduction that was measured, from the report of `aios levers` (SPEC.md, R7).

use super::{MeasuredReduction, ModelIdentity};
use crate::levers::{SCHEMA, TOGETHER};
use aios_engine::gguf::Escaped;
use serde::Deserialize;

/// How much of a text from a report an error repeats, in characters.
const ECHO_CHARS_MAX: usize = 80;

/// Why a report of levers gives no reduction.
#[derive(Debug, thiserror::Error)]
pub enum LeversError {
    /// It is no such report.
    #[error("not a report of levers: {0}; `aios levers --out` writes levers.json")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error(
        "a report of levers of schema {0}, this program reads {SCHEMA}: run `aios levers` again"
    )]
    Schema(u64),
    /// It lacks the line that the reduction is taken from.
    #[error("the report has no line \"{TOGETHER}\": run `aios levers` again")]
    Line,
    /// Its figures are no bytes of a token.
    #[error(
        "the line \"{TOGETHER}\" counts {on} bytes a token of {off}, which cannot be: run \
         `aios levers` again"
    )]
    Figures {
        /// Bytes without the levers.
        off: f64,
        /// Bytes with them.
        on: f64,
    },
    /// It is of another model.
    #[error(
        "the report is of \"{name}\" with SHA-256 {found}, this model's is {wanted}: run \
         `aios levers` on this one"
    )]
    Model {
        /// The name that it gives its model, escaped.
        name: String,
        /// Its model's digest, escaped.
        found: String,
        /// This model's digest.
        wanted: String,
    },
}

/// What the exact levers of a model have saved together.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredLevers {
    model: Model,
    reduction: MeasuredReduction,
}

/// The part of a report that says whether the rest can be read.
#[derive(Deserialize)]
struct Header {
    schema: u64,
}

#[derive(Deserialize)]
struct Report {
    model: Model,
    depth: u64,
    levers: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Model {
    name: String,
    sha256: String,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    found: Found,
}

#[derive(Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Found {
    Measured { off: Figures, on: Figures },
    Nothing { reason: String },
}

#[derive(Deserialize)]
struct Figures {
    counted_bytes_per_token: f64,
}

impl MeasuredLevers {
    /// Reads the JSON of a report of levers.
    ///
    /// # Errors
    /// [`LeversError`], but for [`LeversError::Model`].
    pub fn from_json(text: &str) -> Result<Self, LeversError> {
        let Header { schema } = serde_json::from_str(text)?;
        if schema != u64::from(SCHEMA) {
            return Err(LeversError::Schema(schema));
        }
        let Report { model, depth, levers } = serde_json::from_str(text)?;
        let line = levers.into_iter().find(|line| line.name == TOGETHER);
        let reduction = match line.ok_or(LeversError::Line)?.found {
            Found::Measured { off, on } => {
                between(off.counted_bytes_per_token, on.counted_bytes_per_token, depth)?
            }
            Found::Nothing { reason } => {
                MeasuredReduction { percent: 0.0, of: format!("nothing to save with: {reason}") }
            }
        };
        Ok(Self { model, reduction })
    }

    /// The reduction, which must be `model`'s.
    ///
    /// # Errors
    /// [`LeversError::Model`].
    pub fn reduction_of(self, model: &ModelIdentity) -> Result<MeasuredReduction, LeversError> {
        if self.model.sha256 == model.sha256 {
            return Ok(self.reduction);
        }
        let echo = |text: &str| Escaped::shortened(text, ECHO_CHARS_MAX).to_string();
        let (name, found) = (echo(&self.model.name), echo(&self.model.sha256));
        Err(LeversError::Model { name, found, wanted: model.sha256.clone() })
    }
}

/// The reduction from `off` to `on` bytes per token, behind `depth` positions.
fn between(off: f64, on: f64, depth: u64) -> Result<MeasuredReduction, LeversError> {
    if !(off > 0.0 && on >= 0.0) {
        return Err(LeversError::Figures { off, on });
    }
    let (from, to) = (off / 1e6, on / 1e6);
    Ok(MeasuredReduction {
        percent: (1.0 - on / off) * 100.0,
        of: format!("from {from:.3} to {to:.3} MB counted, {TOGETHER}, {depth} positions"),
    })
}
