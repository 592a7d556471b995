//! CARMA: contextual retrieval by fused ranks (SPEC.md, V9).

use std::collections::HashMap;
use std::sync::Arc;

use super::memories::State;
use super::retrieve::{Evidence, question_vector, within};
use super::similar::Shingles;
use super::{Backend, Error, Hit, Memory, Mode, Question, Retrieval, Retriever};

/// Damps the difference between the first places of a ranking, as is usual for fused ranks.
const RANK_OFFSET: f64 = 60.0;
/// Fragments linked to this many of the best are looked at.
const LINKED_FROM: usize = 3;
/// A use counts as much as this many uses at most.
const USES_MAX: f64 = 32.0;

/// Looks for fragments by words and by vectors at once, and returns those that are worth it.
#[derive(Debug)]
pub struct Carma {
    memory: Arc<Memory>,
}

impl Carma {
    /// Looks into `memory`.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory }
    }

    fn choose(
        &self,
        question: &Question<'_>,
        vector: Result<Vec<f32>, String>,
    ) -> Result<Retrieval, Error> {
        let memory = &*self.memory;
        let options = memory.options();
        let limit = question.limit.unwrap_or(options.limit);
        let state = memory.fresh()?;
        let found = (question.text, vector.as_deref().map_err(Clone::clone));
        let mut evidence = Evidence::gather(memory, &state, found, options.candidates.max(limit))?;
        let mut scores = fuse(memory, &evidence);
        self.follow_links(&state, &mut evidence, vector.as_deref().ok(), &mut scores)?;
        self.season(&state, question.now_ms, &mut scores)?;
        let mut ranked: Vec<(i64, f64)> = scores.into_iter().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.retain(|(id, _)| evidence.is_relevant(memory, *id));
        let mut hits: Vec<Hit> = Vec::new();
        let mut seen: Vec<Shingles> = Vec::new();
        for hit in ranked {
            let Some(hit) = evidence.hit(memory, &state, hit)? else { continue };
            let shingles = Shingles::of(&hit.text);
            if !seen.iter().any(|other| other.is_same_as(&shingles)) {
                seen.push(shingles);
                hits.push(hit);
            }
        }
        let hits = within(hits, limit, question.budget);
        let mode = if evidence.dense.is_some() { Mode::Hybrid } else { Mode::Bm25 };
        Ok(evidence.answer(memory, self.backend(), mode, hits))
    }

    /// Adds the ranking of fragments that are linked to the best ones.
    fn follow_links(
        &self,
        state: &State,
        evidence: &mut Evidence,
        vector: Option<&[f32]>,
        scores: &mut HashMap<i64, f64>,
    ) -> Result<(), Error> {
        let weight = self.memory.options().link_weight;
        if weight == 0.0 {
            return Ok(());
        }
        let mut best: Vec<(i64, f64)> = scores.iter().map(|(id, score)| (*id, *score)).collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut strengths: HashMap<i64, f64> = HashMap::new();
        for &(id, _) in best.iter().take(LINKED_FROM) {
            for (other, similarity, co_use) in state.store.links(id)? {
                let used = co_use.clamp(0, USES_MAX as i64) as f64 / USES_MAX;
                *strengths.entry(other).or_default() += similarity + used;
            }
        }
        let mut linked: Vec<(i64, f64)> = strengths.into_iter().collect();
        linked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (place, (id, _)) in (1..).zip(linked) {
            evidence.linked.push(id);
            *scores.entry(id).or_default() += weight / (RANK_OFFSET + f64::from(place));
            if let (Some(vector), Some(index)) = (vector, &state.index) {
                evidence.cosines.extend(index.cosine(id, vector).map(|cosine| (id, cosine)));
            }
        }
        Ok(())
    }

    /// Raises what is recent and what was of use.
    fn season(
        &self,
        state: &State,
        now_ms: i64,
        scores: &mut HashMap<i64, f64>,
    ) -> Result<(), Error> {
        let options = self.memory.options();
        let ids: Vec<i64> = scores.keys().copied().collect();
        for (id, (at_ms, uses)) in state.store.ages(&ids)? {
            let age_days = now_ms.saturating_sub(at_ms).max(0) as f64 / 86_400_000.0;
            let recency = libm::exp2(-age_days / options.recency_half_life_days);
            let uses = (uses.max(0) as f64).min(USES_MAX);
            let used = libm::log2(1.0 + uses) / libm::log2(1.0 + USES_MAX);
            let gain = options.recency_weight * recency + options.use_weight * used;
            scores.entry(id).and_modify(|score| *score *= 1.0 + gain);
        }
        Ok(())
    }
}

impl Retriever for Carma {
    fn backend(&self) -> Backend {
        Backend::Carma
    }

    fn retrieve(&self, question: &Question<'_>) -> Result<Retrieval, Error> {
        self.choose(question, question_vector(&self.memory, question.text))
    }

    fn record_use(&self, ids: &[i64], now_ms: i64) -> Result<(), Error> {
        self.memory.record_use(ids, now_ms)
    }
}

/// The sum over both rankings of weight * evidence / (60 + place). Where there are two, a place
/// counts as much as its evidence: the share of the question that the words cover, and the cosine.
/// Ranks alone would let a fragment that shares one common word outrank the answer.
fn fuse(memory: &Memory, evidence: &Evidence) -> HashMap<i64, f64> {
    let options = memory.options();
    let mut scores: HashMap<i64, f64> = HashMap::new();
    let lexical = evidence.lexical.ranked.iter().copied();
    for (place, id) in (1..).zip(lexical) {
        let share = if evidence.dense.is_some() { f64::from(evidence.coverage(id)) } else { 1.0 };
        let score = options.lexical_weight * share / (RANK_OFFSET + f64::from(place));
        *scores.entry(id).or_default() += score;
    }
    let dense = evidence.dense.iter().flatten().copied();
    for (place, (id, cosine)) in (1..).zip(dense) {
        let share = f64::from(cosine.max(0.0));
        let score = options.dense_weight * share / (RANK_OFFSET + f64::from(place));
        *scores.entry(id).or_default() += score;
    }
    scores
}
