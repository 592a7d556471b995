//! Whether two passages say the same in nearly the same words.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Words in a row that are compared.
const WORDS: usize = 3;
/// The share of common runs from which on two passages are the same.
const SAME: f64 = 0.9;

/// The runs of three words of a passage, as digests.
#[derive(Debug)]
pub(super) struct Shingles {
    runs: HashSet<u64>,
}

impl Shingles {
    /// Those of `text`; upper case, punctuation and white space make no difference.
    pub(super) fn of(text: &str) -> Self {
        let words: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        let digest = |run: &[String]| {
            let mut hasher = DefaultHasher::new();
            run.hash(&mut hasher);
            hasher.finish()
        };
        // A passage of fewer words is one run.
        let runs = words.windows(WORDS.min(words.len()).max(1)).map(digest).collect();
        Self { runs }
    }

    /// Whether nine tenths of all runs are common. Passages without words are all different.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let common = self.runs.intersection(&other.runs).count();
        let all = self.runs.len() + other.runs.len() - common;
        common > 0 && common as f64 >= SAME * all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        Shingles::of(a).is_same_as(&Shingles::of(b))
    }

    #[test]
    fn passages_are_compared_by_their_words() {
        assert!(same("The river, in flood.", "the RIVER in flood"));
        assert!(!same("the river in flood", "the river in May"));
        assert!(same("one", "One.") && !same("one", "two") && !same("", "") && !same("!", "?"));
        let long: String = (0..100).map(|i| format!("w{i} ")).collect();
        assert!(same(&long, &format!("{long} and")));
        assert!(!same(&long, &long.replace("w50", "x").replace("w20", "y").replace("w70", "z")));
    }
}
