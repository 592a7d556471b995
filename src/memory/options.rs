//! The settings of memory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Backend, Error};

/// How memory cuts, finds and chooses. The defaults were chosen on the development half of the
/// questions in `validation/data/memory_questions.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The file of the store; none means the one in the data folder (SPEC.md, V2).
    pub store: Option<PathBuf>,
    /// What chooses among fragments.
    pub backend: Backend,
    /// The most fragments that are returned.
    pub limit: usize,
    /// How many fragments each ranking contributes before they are fused.
    pub candidates: usize,
    /// From which cosine on a fragment is relevant, from -1 to 1. The default is for embedders of
    /// the MiniLM class; those of bge give every pair of texts a larger one.
    pub min_cosine: f32,
    /// From which share of the question's weight on a fragment is relevant, from 0 to 1.
    pub min_coverage: f32,
    /// The same where there are no vectors.
    pub min_coverage_alone: f32,
    /// The weight of BM25's ranking.
    pub lexical_weight: f64,
    /// The weight of the cosine's ranking.
    pub dense_weight: f64,
    /// The weight of links to the best fragments.
    pub link_weight: f64,
    /// What a fragment of this moment gains over an old one, as a share of its score.
    pub recency_weight: f64,
    /// What a much used fragment gains over an unused one, as a share of its score.
    pub use_weight: f64,
    /// After how many days the gain of recency has halved.
    pub recency_half_life_days: f64,
    /// The most characters of a chunk.
    pub chunk_chars: usize,
    /// The most characters that a chunk repeats of the one before it.
    pub overlap_chars: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: None,
            backend: Backend::Carma,
            limit: 5,
            candidates: 50,
            min_cosine: 0.25,
            min_coverage: 0.5,
            min_coverage_alone: 0.1,
            lexical_weight: 1.0,
            dense_weight: 2.0,
            link_weight: 0.01,
            recency_weight: 0.05,
            use_weight: 0.05,
            recency_half_life_days: 30.0,
            chunk_chars: 900,
            overlap_chars: 120,
        }
    }
}

impl Options {
    /// Looks whether every setting is in its range.
    ///
    /// # Errors
    /// [`Error::Option`] with the first field that is not.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |field, reason: &str| Err(Error::Option { field, reason: reason.to_owned() });
        if !(1..=1000).contains(&self.limit) {
            return bad("limit", "it must be from 1 to 1000");
        }
        if !(self.limit..=10_000).contains(&self.candidates) {
            return bad("candidates", "it must be at least 'limit' and at most 10000");
        }
        if !(-1.0..=1.0).contains(&self.min_cosine) {
            return bad("min_cosine", "it must be from -1 to 1");
        }
        for (field, share) in
            [("min_coverage", self.min_coverage), ("min_coverage_alone", self.min_coverage_alone)]
        {
            if !(0.0..=1.0).contains(&share) {
                return bad(field, "it must be from 0 to 1");
            }
        }
        for (field, weight) in [
            ("lexical_weight", self.lexical_weight),
            ("dense_weight", self.dense_weight),
            ("link_weight", self.link_weight),
        ] {
            if !(0.0..=100.0).contains(&weight) {
                return bad(field, "it must be from 0 to 100");
            }
        }
        if self.lexical_weight + self.dense_weight == 0.0 {
            return bad("lexical_weight", "it and 'dense_weight' must not both be 0");
        }
        for (field, share) in
            [("recency_weight", self.recency_weight), ("use_weight", self.use_weight)]
        {
            if !(0.0..=1.0).contains(&share) {
                return bad(field, "it must be from 0 to 1");
            }
        }
        if !(0.01..=36_500.0).contains(&self.recency_half_life_days) {
            return bad("recency_half_life_days", "it must be from 0.01 to 36500");
        }
        if !(100..=100_000).contains(&self.chunk_chars) {
            return bad("chunk_chars", "it must be from 100 to 100000");
        }
        if self.overlap_chars > self.chunk_chars / 2 {
            return bad("overlap_chars", "it must be at most half of 'chunk_chars'");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_field_is_named() {
        Options::default().check().unwrap();
        for (field, toml) in [
            ("limit", "limit = 0"),
            ("candidates", "candidates = 2"),
            ("min_cosine", "min_cosine = nan"),
            ("min_coverage", "min_coverage = 1.5"),
            ("dense_weight", "dense_weight = -1.0"),
            ("lexical_weight", "lexical_weight = 0.0\ndense_weight = 0.0"),
            ("use_weight", "use_weight = 2.0"),
            ("recency_half_life_days", "recency_half_life_days = 0.0"),
            ("chunk_chars", "chunk_chars = 1"),
            ("overlap_chars", "overlap_chars = 600"),
        ] {
            let options: Options = toml::from_str(toml).unwrap();
            let said = options.check().unwrap_err().to_string();
            assert!(said.contains(&format!("'{field}'")), "{said}");
        }
        assert!(toml::from_str::<Options>("limits = 3").is_err());
        let backend: Options = toml::from_str("backend = \"simple_rag\"").unwrap();
        assert_eq!(backend.backend, Backend::SimpleRag);
    }
}
