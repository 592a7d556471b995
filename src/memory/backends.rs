//! The two baselines: the nearest vectors, and BM25 alone (SPEC.md, V10).

use std::sync::Arc;

use super::retrieve::{Evidence, question_vector, within};
use super::{Backend, Error, Memory, Mode, Question, Retrieval, Retriever};

/// The fragments of the largest cosine, and no more thought than that.
#[derive(Debug)]
pub struct SimpleRag {
    memory: Arc<Memory>,
}

/// The fragments of the best BM25.
#[derive(Debug)]
pub struct Bm25 {
    memory: Arc<Memory>,
}

impl SimpleRag {
    /// Looks into `memory`.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory }
    }
}

impl Bm25 {
    /// Looks into `memory`.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory }
    }
}

impl Retriever for SimpleRag {
    fn backend(&self) -> Backend {
        Backend::SimpleRag
    }

    fn retrieve(&self, question: &Question<'_>) -> Result<Retrieval, Error> {
        let vector = question_vector(&self.memory, question.text);
        answer(&self.memory, self.backend(), question, vector)
    }

    fn record_use(&self, ids: &[i64], now_ms: i64) -> Result<(), Error> {
        self.memory.record_use(ids, now_ms)
    }
}

impl Retriever for Bm25 {
    fn backend(&self) -> Backend {
        Backend::Bm25
    }

    fn retrieve(&self, question: &Question<'_>) -> Result<Retrieval, Error> {
        let mut retrieval = answer(&self.memory, self.backend(), question, Err(String::new()))?;
        // That there are no vectors is what was asked for.
        retrieval.note = None;
        Ok(retrieval)
    }

    fn record_use(&self, ids: &[i64], now_ms: i64) -> Result<(), Error> {
        self.memory.record_use(ids, now_ms)
    }
}

/// The first fragments of one ranking: of the vectors if there are any, else of BM25.
fn answer(
    memory: &Memory,
    backend: Backend,
    question: &Question<'_>,
    vector: Result<Vec<f32>, String>,
) -> Result<Retrieval, Error> {
    let options = memory.options();
    let limit = question.limit.unwrap_or(options.limit);
    let state = memory.fresh()?;
    let found = (question.text, vector.as_deref().map_err(Clone::clone));
    let evidence = Evidence::gather(memory, &state, found, options.candidates.max(limit))?;
    let (mode, ranked) = match &evidence.dense {
        Some(near) => (Mode::Dense, near.iter().map(|hit| (hit.0, f64::from(hit.1))).collect()),
        None => {
            let places = evidence.lexical.ranked.iter().zip(1..);
            (Mode::Bm25, places.map(|(id, place)| (*id, 1.0 / f64::from(place))).collect())
        }
    };
    let ranked: Vec<(i64, f64)> = ranked;
    let mut hits = Vec::new();
    for hit in ranked {
        hits.extend(evidence.hit(memory, &state, hit)?);
    }
    let hits = within(hits, limit, question.budget);
    Ok(evidence.answer(memory, backend, mode, hits))
}
