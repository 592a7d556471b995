//! BM25: from a question to terms, and from terms to ranked fragments (SPEC.md, V8).

use std::collections::HashMap;

use super::store::Store;
use super::{Error, stop_words};

/// In how many fragments, summed over terms, the terms of a question may stand. It bounds the time
/// of a search in a large store.
const POSTINGS_MAX: usize = 20_000;
/// The most terms of a question that are looked up, and that are searched for.
const TERMS_MAX: usize = 256;
const TERMS_SEARCHED_MAX: usize = 48;
/// The longest term in characters; what is longer is no word.
const TERM_CHARS_MAX: usize = 64;

/// What BM25 has to say on a question.
#[derive(Debug, Default)]
pub(super) struct Lexical {
    /// The best fragments, the best first.
    pub(super) ranked: Vec<i64>,
    /// For each fragment with a term of the question, the share of the question's weight that its
    /// terms carry.
    pub(super) coverage: HashMap<i64, f32>,
}

/// The runs of letters and digits of `text` in lower case, each once, without the words that only
/// serve grammar unless there are no others.
pub(super) fn terms(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let word = word.to_lowercase();
        if word.chars().count() <= TERM_CHARS_MAX && !all.contains(&word) {
            all.push(word);
            if all.len() == TERMS_MAX {
                break;
            }
        }
    }
    let content: Vec<String> =
        all.iter().filter(|word| !stop_words::is_stop_word(word)).cloned().collect();
    if content.is_empty() { all } else { content }
}

/// A term as FTS5 takes it literally. It holds no quote, since it holds letters and digits alone.
fn quoted(term: &str) -> String {
    format!("\"{term}\"")
}

/// Ranks the fragments of `store` for a question, of which the best `limit` are wanted.
pub(super) fn search(store: &Store, question: &str, limit: usize) -> Result<Lexical, Error> {
    let mut found: Vec<(String, Vec<i64>)> = Vec::new();
    for term in terms(question) {
        let ids = store.with_term(&quoted(&term), POSTINGS_MAX + 1)?;
        found.push((term, ids));
    }
    // The sort is stable, so that ties keep the order of the question.
    found.sort_by_key(|(_, ids)| ids.len());
    let total = store.count()?;
    let mut lexical = Lexical::default();
    let (mut weight, mut postings) = (0.0, 0);
    let mut searched: Vec<String> = Vec::new();
    for (term, ids) in &found {
        postings += ids.len();
        let too_many = postings > POSTINGS_MAX || searched.len() == TERMS_SEARCHED_MAX;
        if too_many && !searched.is_empty() {
            break;
        }
        let idf = idf(total, ids.len());
        weight += idf;
        for &id in ids {
            *lexical.coverage.entry(id).or_default() += idf;
        }
        if !ids.is_empty() {
            searched.push(quoted(term));
        }
    }
    lexical.coverage.values_mut().for_each(|share| *share /= weight);
    if !searched.is_empty() {
        let ranked = store.by_bm25(&searched.join(" OR "), limit)?;
        lexical.ranked = ranked.into_iter().map(|(id, _)| id).collect();
    }
    Ok(lexical)
}

/// How much a term tells: ln(1 + (N - n + 1/2) / (n + 1/2)) for n of N fragments.
fn idf(total: u64, with_term: usize) -> f32 {
    let (total, with_term) = (total as f32, with_term as f32);
    libm::log1pf((total - with_term + 0.5).max(0.0) / (with_term + 0.5))
}

#[cfg(test)]
mod tests {
    use proptest::test_runner::{TestCaseError, TestRunner};

    use super::*;
    use crate::memory::store::Chunk;
    use crate::memory::testing::scratch_store;

    fn chunk(text: &str) -> Chunk {
        Chunk { title: String::new(), text: text.to_owned() }
    }

    #[test]
    fn terms_are_words_without_grammar() {
        assert_eq!(
            terms("How do the bees find 3.5 BEES' flowers?"),
            ["bees", "find", "3", "5", "flowers"]
        );
        assert_eq!(terms("What is it?"), ["what", "is", "it"]);
        assert_eq!(terms("snake_case Zürich 北京"), ["snake", "case", "zürich", "北京"]);
        assert!(terms(" ?! ").is_empty());
        assert!(terms(&"x".repeat(100)).is_empty());
    }

    #[test]
    fn rare_terms_weigh_more_and_stems_meet() {
        let (_folder, mut store) = scratch_store();
        let texts = ["the river floods fields", "a river", "rivers and a rare ibex", "a stone"];
        store.add("s", &texts.map(chunk), None, 0).unwrap();
        let lexical = search(&store, "ibex river", 10).unwrap();
        assert_eq!(lexical.ranked[0], 3);
        assert_eq!(lexical.ranked.len(), 3);
        assert!((lexical.coverage[&3] - 1.0).abs() < 1e-6);
        assert!(lexical.coverage[&2] < 0.5);
        assert_eq!(lexical.coverage.get(&4), None);
        // A term that is nowhere weighs as much as the rarest could, and lowers every share.
        let unknown = search(&store, "ibex river zeppelin", 10).unwrap();
        assert!(unknown.coverage[&3] < 0.75);
        assert!(search(&store, "zeppelin", 10).unwrap().ranked.is_empty());
        assert!(search(&store, "", 10).unwrap().ranked.is_empty());
    }

    /// SPEC.md, V8: no question is a query of its own.
    #[test]
    fn no_question_is_an_error() {
        let (_folder, mut store) = scratch_store();
        store.add("s", &[chunk("river OR NOT near fields")], None, 0).unwrap();
        let questions = "[ -~\u{e4}\u{4e2d}\u{0}]{0,60}";
        let mut runner = TestRunner::deterministic();
        let run = runner.run(&questions, |question| {
            search(&store, &question, 10)
                .map(|_| ())
                .map_err(|e| TestCaseError::fail(e.to_string()))
        });
        run.unwrap();
    }

    #[test]
    fn the_syntax_of_fts5_is_plain_text() {
        let (_folder, mut store) = scratch_store();
        store.add("s", &[chunk("red apple"), chunk("green pear")], None, 0).unwrap();
        for question in [
            "apple\" OR \"pear",
            "apple NOT pear",
            "title:apple",
            "NEAR(apple pear, 3)",
            "appl* ^apple {title text}: pear",
            "'; DROP TABLE fragments; --apple",
        ] {
            assert!(search(&store, question, 10).unwrap().ranked.contains(&1), "{question}");
        }
        assert!(search(&store, "appl*", 10).unwrap().ranked.contains(&1), "the stem is apple's");
        assert!(search(&store, "app*", 10).unwrap().ranked.is_empty());
        assert_eq!(store.count().unwrap(), 2);
    }
}
