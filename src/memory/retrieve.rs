//! What a backend is asked, what it answers, and which backends there are.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lexical::{self, Lexical};
use super::memories::{State, embed_checked};
use super::{Bm25, Carma, Error, Memory, SimpleRag};

/// Which way of choosing fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Ranks fused, a threshold, recency, use, links and a budget.
    #[default]
    Carma,
    /// The nearest vectors.
    SimpleRag,
    /// BM25 alone.
    Bm25,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Carma, Self::SimpleRag, Self::Bm25];

    /// The name in options and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Carma => "carma",
            Self::SimpleRag => "simple_rag",
            Self::Bm25 => "bm25",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.name() == text)
            .ok_or_else(|| format!("'{text}' is none of carma, simple_rag and bm25"))
    }
}

/// How many tokens the fragments of an answer may have.
#[derive(Clone, Copy)]
pub struct Budget<'a> {
    /// The most, over title and text of all fragments.
    pub tokens: usize,
    /// Counts the tokens of a text.
    pub count: &'a dyn Fn(&str) -> usize,
}

impl fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// What a backend is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The question, in the user's words.
    pub text: &'a str,
    /// The most fragments; none means the setting.
    pub limit: Option<usize>,
    /// Bounds the tokens of what is returned.
    pub budget: Option<Budget<'a>>,
    /// The time that recency is reckoned from, in milliseconds since 1970.
    pub now_ms: i64,
}

/// How fragments were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// By BM25 and by vectors.
    Hybrid,
    /// By vectors alone.
    Dense,
    /// By BM25 alone.
    Bm25,
    /// Not at all: memory failed.
    Failed,
}

/// A fragment of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hit {
    /// Its number in the store.
    pub id: i64,
    /// Where it comes from.
    pub source: String,
    /// The headings above it.
    pub title: String,
    /// The passage.
    pub text: String,
    /// What it was ranked by; comparable within one answer only.
    pub score: f64,
    /// Its place by BM25, from 1.
    pub bm25_rank: Option<usize>,
    /// The cosine of its vector and the question's.
    pub cosine: Option<f32>,
    /// The share of the question's weight that its terms carry.
    pub coverage: f32,
    /// Whether it passed the threshold.
    pub relevant: bool,
    /// Its tokens, where a budget had them counted.
    pub tokens: Option<usize>,
}

/// What a backend answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retrieval {
    /// Which backend.
    pub backend: Backend,
    /// How it found them.
    pub mode: Mode,
    /// Name and digest of the embedder whose vectors were compared.
    pub embedder: Option<(String, String)>,
    /// How many fragments are in [`Retrieval::fragments`].
    pub fragments_found: usize,
    /// How many of those that were looked at passed the threshold.
    pub fragments_relevant: usize,
    /// The fragments, the best first.
    pub fragments: Vec<Hit>,
    /// What was not as it should be, for people.
    pub note: Option<String>,
}

impl Retrieval {
    /// The answer of a memory that failed: nothing, and why. What asked goes on without.
    pub fn failed(backend: Backend, error: &dyn fmt::Display) -> Self {
        Self {
            backend,
            mode: Mode::Failed,
            embedder: None,
            fragments_found: 0,
            fragments_relevant: 0,
            fragments: Vec::new(),
            note: Some(format!("answered without memory: {error}")),
        }
    }

    /// The numbers of the fragments, the best first.
    pub fn ids(&self) -> Vec<i64> {
        self.fragments.iter().map(|hit| hit.id).collect()
    }
}

/// Chooses fragments for a question. Those here look into a [`Memory`] of this process.
pub trait Retriever: Send + Sync {
    /// Which it is.
    fn backend(&self) -> Backend;

    /// The fragments that serve `question`; none is a valid answer.
    ///
    /// # Errors
    /// Those of the store. An embedder that fails is no error: it is noted in the answer.
    fn retrieve(&self, question: &Question<'_>) -> Result<Retrieval, Error>;

    /// As [`Retriever::retrieve`], for whoever must answer in any case: a store that fails is
    /// noted in an answer without fragments.
    fn retrieve_or_note(&self, question: &Question<'_>) -> Retrieval {
        self.retrieve(question).unwrap_or_else(|error| Retrieval::failed(self.backend(), &error))
    }

    /// Notes that these fragments served an answer.
    ///
    /// # Errors
    /// Those of the store.
    fn record_use(&self, ids: &[i64], now_ms: i64) -> Result<(), Error>;
}

/// The retriever of this name over `memory`.
pub fn retriever(backend: Backend, memory: Arc<Memory>) -> Box<dyn Retriever> {
    match backend {
        Backend::Carma => Box::new(Carma::new(memory)),
        Backend::SimpleRag => Box::new(SimpleRag::new(memory)),
        Backend::Bm25 => Box::new(Bm25::new(memory)),
    }
}

/// What BM25 and vectors know of a question, before anything is chosen.
pub(super) struct Evidence {
    pub(super) lexical: Lexical,
    /// The nearest fragments with their cosine, the nearest first; `None` without vectors.
    pub(super) dense: Option<Vec<(i64, f32)>>,
    /// The cosine of every fragment that BM25 or vectors rank.
    pub(super) cosines: HashMap<i64, f32>,
    /// Fragments that are linked to the best ones.
    pub(super) linked: Vec<i64>,
    pub(super) embedder: Option<(String, String)>,
    pub(super) note: Option<String>,
}

/// The vector of a question, or why there is none.
pub(super) fn question_vector(memory: &Memory, text: &str) -> Result<Vec<f32>, String> {
    let Some(embedder) = memory.embedder() else {
        return Err("no embedder is present: found by BM25 alone".to_owned());
    };
    match embed_checked(embedder, &[text]) {
        Ok(mut vectors) => Ok(vectors.swap_remove(0)),
        Err(error) => Err(format!("{error}: found by BM25 alone")),
    }
}

impl Evidence {
    /// Looks for `text`, with its vector if there is one, up to `depth` places deep.
    pub(super) fn gather(
        memory: &Memory,
        state: &State,
        (text, vector): (&str, Result<&[f32], String>),
        depth: usize,
    ) -> Result<Self, Error> {
        let lexical = lexical::search(&state.store, text, depth)?;
        let mut evidence = Self {
            lexical,
            dense: None,
            cosines: HashMap::new(),
            linked: Vec::new(),
            embedder: None,
            note: None,
        };
        let (vector, index) = match (vector, &state.index) {
            (Ok(vector), Some(index)) => (vector, index),
            (Err(note), _) => return Ok(Self { note: Some(note), ..evidence }),
            (Ok(_), None) => return Ok(evidence),
        };
        let fragments = state.store.count()?;
        let missing = fragments.saturating_sub(index.len() as u64);
        if missing > 0 {
            evidence.note = Some(format!(
                "{missing} of {fragments} fragments have no vector and are found by BM25 alone; \
                 'aios memory embed' makes them"
            ));
        }
        if index.is_empty() {
            return Ok(evidence);
        }
        let nearest = index.nearest(vector, depth);
        evidence.cosines.extend(nearest.iter().copied());
        for &id in &evidence.lexical.ranked {
            evidence.cosines.extend(index.cosine(id, vector).map(|cosine| (id, cosine)));
        }
        evidence.dense = Some(nearest);
        evidence.embedder = memory.embedder().map(|e| (e.name().to_owned(), e.digest().to_owned()));
        Ok(evidence)
    }

    /// Whether a fragment passes the threshold (SPEC.md, V9).
    pub(super) fn is_relevant(&self, memory: &Memory, id: i64) -> bool {
        let options = memory.options();
        let near = self.cosines.get(&id).is_some_and(|cosine| *cosine >= options.min_cosine);
        // Beside vectors, words alone have to say more.
        let least = match self.dense {
            Some(_) => options.min_coverage,
            None => options.min_coverage_alone,
        };
        near || self.coverage(id) >= least.max(f32::MIN_POSITIVE)
    }

    /// Every fragment that BM25, vectors or links rank, each once.
    fn candidates(&self) -> Vec<i64> {
        let dense = self.dense.iter().flatten().map(|hit| hit.0);
        let others = self.lexical.ranked.iter().chain(&self.linked).copied();
        let mut all: Vec<i64> = others.chain(dense).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The share of the question's weight that the words of a fragment carry.
    pub(super) fn coverage(&self, id: i64) -> f32 {
        self.lexical.coverage.get(&id).copied().unwrap_or(0.0)
    }

    /// A fragment of the answer; `None` if it is gone.
    pub(super) fn hit(
        &self,
        memory: &Memory,
        state: &State,
        (id, score): (i64, f64),
    ) -> Result<Option<Hit>, Error> {
        let Some(fragment) = state.store.fragment(id)? else { return Ok(None) };
        let place = self.lexical.ranked.iter().position(|ranked| *ranked == id);
        Ok(Some(Hit {
            id,
            source: fragment.source,
            title: fragment.title,
            text: fragment.text,
            score,
            bm25_rank: place.map(|place| place + 1),
            cosine: self.cosines.get(&id).copied(),
            coverage: self.coverage(id),
            relevant: self.is_relevant(memory, id),
            tokens: None,
        }))
    }

    /// The answer with these fragments.
    pub(super) fn answer(
        self,
        memory: &Memory,
        backend: Backend,
        mode: Mode,
        fragments: Vec<Hit>,
    ) -> Retrieval {
        let relevant = |id: &&i64| self.is_relevant(memory, **id);
        Retrieval {
            backend,
            mode,
            fragments_found: fragments.len(),
            fragments_relevant: self.candidates().iter().filter(relevant).count(),
            fragments,
            embedder: self.embedder,
            note: self.note,
        }
    }
}

/// Takes `hits` in their order while they fit. One that does not fit is passed over, so that a
/// shorter one behind it still can.
pub(super) fn within(hits: Vec<Hit>, limit: usize, budget: Option<Budget<'_>>) -> Vec<Hit> {
    let mut left = budget.map_or(usize::MAX, |budget| budget.tokens);
    let mut taken = Vec::new();
    for mut hit in hits {
        if taken.len() == limit {
            break;
        }
        if let Some(budget) = budget {
            let tokens = (budget.count)(&hit.title) + (budget.count)(&hit.text);
            if tokens > left {
                continue;
            }
            left -= tokens;
            hit.tokens = Some(tokens);
        }
        taken.push(hit);
    }
    taken
}
