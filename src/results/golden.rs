//! The prompts of the benchmark and the tiers that people gave them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::error::ResultsError;
use crate::provenance::Tier;

/// The prompts that the project ships.
pub const BUILT_IN: &str = include_str!("../../validation/data/golden_prompts.jsonl");

/// A prompt and its label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Golden {
    /// What records call it.
    pub id: String,
    /// The prompt.
    pub text: String,
    /// Its label.
    pub tier: Tier,
}

/// Prompts with labels, each id once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goldens {
    prompts: Vec<Golden>,
    tiers: BTreeMap<String, Tier>,
}

impl Goldens {
    /// Those of the file at `path`, or the ones that the project ships.
    ///
    /// # Errors
    /// [`ResultsError::Io`], and those of [`Goldens::parse`].
    pub fn read(path: Option<&Path>) -> Result<Self, ResultsError> {
        let Some(path) = path else { return Self::parse(BUILT_IN) };
        let text =
            fs::read_to_string(path).map_err(|source| ResultsError::io("read", path, source));
        Self::parse(&text?)
    }

    /// Those of JSON lines.
    ///
    /// # Errors
    /// [`ResultsError::Label`] for a line that is none, for an id that comes twice, and if there is
    /// no line.
    pub fn parse(text: &str) -> Result<Self, ResultsError> {
        let wrong = |line, problem: String| ResultsError::Label { line, problem };
        let (mut prompts, mut tiers) = (Vec::new(), BTreeMap::new());
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let golden: Golden =
                serde_json::from_str(text).map_err(|error| wrong(line, error.to_string()))?;
            if tiers.insert(golden.id.clone(), golden.tier).is_some() {
                return Err(wrong(line, format!("the id {:?} comes a second time", golden.id)));
            }
            prompts.push(golden);
        }
        match prompts.is_empty() {
            true => Err(wrong(1, "there is no prompt".to_owned())),
            false => Ok(Self { prompts, tiers }),
        }
    }

    /// The prompts, in the order of the file.
    pub fn prompts(&self) -> &[Golden] {
        &self.prompts
    }

    /// The label of a prompt.
    pub fn tier(&self, id: &str) -> Option<Tier> {
        self.tiers.get(id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_prompts_are_five_of_each_tier() {
        let goldens = Goldens::parse(BUILT_IN).unwrap();
        for tier in super::super::TIERS {
            assert_eq!(goldens.prompts().iter().filter(|g| g.tier == tier).count(), 5);
        }
        assert_eq!((goldens.tier("g001"), goldens.tier("g")), (Some(Tier::Trivial), None));
    }

    #[test]
    fn mistakes_in_labels_are_named_by_line() {
        let line = r#"{"id": "a", "text": "t", "tier": "high"}"#;
        for (text, wanted) in [
            ("", "no prompt"),
            ("{", "line 1"),
            (&line.replace("high", "low"), "low"),
            (&format!("{line}\n\n{line}"), "line 3: the id \"a\" comes a second time"),
        ] {
            let error = Goldens::parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
