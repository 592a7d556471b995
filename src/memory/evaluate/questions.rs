//! Questions with known passages, and where those passages are among fragments.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::Error;
use super::super::store::Fragment;

/// What the settings may be chosen on, and what they are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Settings were chosen by these.
    Development,
    /// Never looked at for a choice.
    HeldOut,
}

/// In which way a question is hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It has words of the passage.
    Words,
    /// It says the same in other words.
    Paraphrase,
    /// Its answer is in several passages.
    Several,
    /// No passage answers it.
    Unanswerable,
}

/// A passage that answers a question: a quotation, so that it does not matter how documents are
/// cut.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passage {
    /// The path of the document below the folder of documents.
    pub document: String,
    /// Words of it, with single spaces.
    pub quote: String,
}

/// A question and the passages that answer it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// A name of its own.
    pub id: String,
    /// For choosing or for judging.
    pub split: Split,
    /// In which way it is hard.
    pub class: Class,
    /// The question.
    pub question: String,
    /// All passages that answer it; none for the class `unanswerable`.
    pub gold: Vec<Passage>,
}

/// Reads questions, an object a line.
///
/// # Errors
/// [`Error::Question`] with the line that is faulty, and [`Error::Io`].
pub fn read_questions(path: &Path) -> Result<Vec<Asked>, Error> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{}:{number}", path.display());
        let bad =
            |reason: &str| Error::Question { place: place.clone(), reason: reason.to_owned() };
        let asked: Asked = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
        if !names.insert(asked.id.clone()) {
            return Err(bad("its id is that of an earlier question"));
        }
        if asked.question.trim().is_empty() {
            return Err(bad("it asks nothing"));
        }
        if (asked.class == Class::Unanswerable) != asked.gold.is_empty() {
            return Err(bad("it has gold passages exactly if it is answerable, and this does not"));
        }
        if (asked.class == Class::Several) != (asked.gold.len() > 1) {
            return Err(bad("it has several gold passages exactly if its class is 'several'"));
        }
        if asked.gold.iter().any(|passage| single_spaced(&passage.quote).len() < 8) {
            return Err(bad("a quotation of less than 8 characters is no passage"));
        }
        all.push(asked);
    }
    if all.is_empty() {
        let reason = "it has no question".to_owned();
        return Err(Error::Question { place: path.display().to_string(), reason });
    }
    Ok(all)
}

/// For each gold passage of `asked` the numbers of the fragments that contain it.
///
/// # Errors
/// [`Error::Question`] if a passage is in no fragment, or one fragment contains two.
pub(super) fn locate(asked: &Asked, fragments: &[Fragment]) -> Result<Vec<HashSet<i64>>, Error> {
    let bad = |reason: String| Error::Question { place: asked.id.clone(), reason };
    let mut all: Vec<HashSet<i64>> = Vec::new();
    for passage in &asked.gold {
        let quote = single_spaced(&passage.quote);
        let holds = |fragment: &&Fragment| {
            fragment.source == passage.document && single_spaced(&fragment.text).contains(&quote)
        };
        let found: HashSet<i64> = fragments.iter().filter(holds).map(|f| f.id).collect();
        if found.is_empty() {
            let Passage { document, .. } = passage;
            return Err(bad(format!("no fragment of {document} contains '{quote}'")));
        }
        if all.iter().any(|other| !other.is_disjoint(&found)) {
            return Err(bad(format!("one fragment contains '{quote}' and another gold passage")));
        }
        all.push(found);
    }
    Ok(all)
}

fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
