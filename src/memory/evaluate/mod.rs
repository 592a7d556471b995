//! How well backends find known passages (SPEC.md, V15).

mod questions;
mod scores;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::import::{files, read};
use super::store::{Fragment, Store};
use super::{Backend, Embedder, Error, Memory, Mode, Options, Question, retriever};
pub use questions::{Asked, Class, Passage, Split, read_questions};
use scores::{DEPTH, bootstrap, mean};
pub use scores::{Interval, Scores};

/// Which questions a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All that have an answer.
    All,
    /// One split of them.
    Split(Split),
    /// One class of them.
    Class(Class),
}

const PARTS: [Part; 6] = [
    Part::All,
    Part::Split(Split::Development),
    Part::Split(Split::HeldOut),
    Part::Class(Class::Words),
    Part::Class(Class::Paraphrase),
    Part::Class(Class::Several),
];

/// One backend on one part of the questions.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which questions.
    pub part: Part,
    /// How many they are.
    pub n: usize,
    /// Which backend.
    pub backend: Backend,
    /// Their mean scores.
    pub scores: Scores,
}

/// CARMA less another backend on one part of the questions, with paired bootstrap intervals.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Which questions.
    pub part: Part,
    /// How many they are.
    pub n: usize,
    /// The other backend.
    pub other: Backend,
    /// Of the recall among five.
    pub recall_at_5: Interval,
    /// Of the reciprocal rank.
    pub mrr: Interval,
    /// Of the gain among ten.
    pub ndcg_at_10: Interval,
}

/// How often a backend returned nothing.
#[derive(Clone, Debug, Serialize)]
pub struct Silence {
    /// Which backend.
    pub backend: Backend,
    /// Questions that no passage answers, and for how many of them nothing was returned.
    pub unanswerable: (usize, usize),
    /// Questions that have an answer, and for how many of them nothing was returned.
    pub answerable: (usize, usize),
}

/// What an evaluation found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How many documents, fragments and questions there were.
    pub documents: usize,
    /// The fragments that the documents were cut into.
    pub fragments: usize,
    /// The questions, with those that have no answer.
    pub questions: usize,
    /// Name and digest of the embedder.
    pub embedder: Option<(String, String)>,
    /// The settings.
    pub options: Options,
    /// Scores.
    pub rows: Vec<Row>,
    /// What CARMA has over the others.
    pub differences: Vec<Difference>,
    /// How often nothing was returned.
    pub silence: Vec<Silence>,
    /// Whether CARMA's nDCG over all questions is below that of neither other backend; `None` if
    /// one of them could not be measured.
    pub carma_is_not_below: Option<bool>,
}

/// What one backend did on every question.
struct Run {
    backend: Backend,
    /// `None` for a question without an answer.
    scores: Vec<Option<Scores>>,
    found: Vec<usize>,
}

/// Imports `documents` into a store at `path`, which must not be there, and asks `asked`.
/// `progress` is told how many steps are done of how many and may end the work.
///
/// Simple_RAG is left out without an embedder, since it would be BM25 by another name.
///
/// # Errors
/// [`Error::Question`] for a gold passage that is nowhere, and those of import, store and embedder.
pub fn evaluate(
    (path, documents): (&Path, &Path),
    asked: &[Asked],
    embedder: Option<Arc<dyn Embedder>>,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<Report, Error> {
    let all = files(documents)?;
    let steps = all.len() + asked.len();
    let memory = Arc::new(Memory::new(Store::open(path)?, embedder, options.clone())?);
    for (done, file) in all.iter().enumerate() {
        progress(done, steps)?;
        let mut parsed = read(file, options)?;
        let below = file.strip_prefix(documents).unwrap_or(file);
        parsed.source = below.to_string_lossy().into_owned();
        memory.add_document(&parsed.document(), &parsed.chunks, (false, 0), &mut |_| {
            progress(done, steps)
        })?;
    }
    let fragments = all_fragments(&memory)?;
    let mut gold = Vec::new();
    for asked in asked {
        gold.push(questions::locate(asked, &fragments)?);
    }
    let mut runs: Vec<Run> = Backend::ALL
        .into_iter()
        .filter(|backend| *backend != Backend::SimpleRag || memory.embedder().is_some())
        .map(|backend| Run { backend, scores: vec![], found: vec![] })
        .collect();
    for (done, (asked, gold)) in asked.iter().zip(&gold).enumerate() {
        progress(all.len() + done, steps)?;
        for run in &mut runs {
            let retriever = retriever(run.backend, memory.clone());
            let question =
                Question { text: &asked.question, limit: Some(DEPTH), budget: None, now_ms: 0 };
            let answer = retriever.retrieve(&question)?;
            if run.backend != Backend::Bm25
                && answer.mode == Mode::Bm25
                && let Some(embedder) = memory.embedder()
            {
                let cause = answer.note.unwrap_or_default();
                return Err(Error::Embedder { name: embedder.name().to_owned(), cause });
            }
            run.found.push(answer.fragments_found);
            let answerable = !gold.is_empty();
            run.scores.push(answerable.then(|| scores::score(&answer.ids(), gold)));
        }
    }
    let embedder = memory.embedder().map(|e| (e.name().to_owned(), e.digest().to_owned()));
    let counts = (all.len(), fragments.len());
    Ok(report(counts, asked, embedder, options, &runs))
}

fn all_fragments(memory: &Memory) -> Result<Vec<Fragment>, Error> {
    let mut all = Vec::new();
    memory.with_store(|store| {
        store.each_fragment(&mut |fragment| {
            all.push(fragment);
            Ok::<_, Error>(())
        })
    })?;
    Ok(all)
}

fn report(
    (documents, fragments): (usize, usize),
    asked: &[Asked],
    embedder: Option<(String, String)>,
    options: &Options,
    runs: &[Run],
) -> Report {
    let (mut rows, mut differences, mut silence) = (Vec::new(), Vec::new(), Vec::new());
    for part in PARTS {
        let of = |run: &Run| scores_of(part, asked, run);
        for run in runs {
            let scores = of(run);
            let n = scores.len();
            rows.push(Row { part, n, backend: run.backend, scores: mean(&scores) });
        }
        let Some(carma) = runs.iter().find(|run| run.backend == Backend::Carma) else { continue };
        let carma = of(carma);
        for run in runs.iter().filter(|run| run.backend != Backend::Carma) {
            let pairs: Vec<(Scores, Scores)> = carma.iter().copied().zip(of(run)).collect();
            let interval = |score: fn(&Scores) -> f64| {
                let differences = pairs.iter().map(|(carma, other)| score(carma) - score(other));
                bootstrap(&differences.collect::<Vec<_>>())
            };
            let (Some(recall_at_5), Some(mrr), Some(ndcg_at_10)) = (
                interval(|scores| scores.recall_at_5),
                interval(|scores| scores.mrr),
                interval(|scores| scores.ndcg_at_10),
            ) else {
                // There is no question in this part.
                continue;
            };
            let (n, other) = (pairs.len(), run.backend);
            differences.push(Difference { part, n, other, recall_at_5, mrr, ndcg_at_10 });
        }
    }
    for run in runs {
        let count = |answerable: bool| {
            let which = |at: &usize| run.scores[*at].is_some() == answerable;
            let asked: Vec<usize> = (0..run.found.len()).filter(which).collect();
            (asked.len(), asked.iter().filter(|at| run.found[**at] == 0).count())
        };
        let (unanswerable, answerable) = (count(false), count(true));
        silence.push(Silence { backend: run.backend, unanswerable, answerable });
    }
    let over_all = || differences.iter().filter(|difference| difference.part == Part::All);
    let complete = over_all().count() + 1 == Backend::ALL.len();
    let carma_is_not_below =
        complete.then(|| over_all().all(|difference| difference.ndcg_at_10.mean >= 0.0));
    Report {
        documents,
        fragments,
        questions: asked.len(),
        embedder,
        options: options.clone(),
        rows,
        differences,
        silence,
        carma_is_not_below,
    }
}

fn scores_of(part: Part, asked: &[Asked], run: &Run) -> Vec<Scores> {
    let belongs = |asked: &Asked| match part {
        Part::All => true,
        Part::Split(split) => asked.split == split,
        Part::Class(class) => asked.class == class,
    };
    let both = asked.iter().zip(&run.scores);
    both.filter(|(asked, _)| belongs(asked)).filter_map(|(_, scores)| *scores).collect()
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let embedder = self.embedder.as_ref().map_or("none", |(name, _)| name.as_str());
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "{} questions over {} documents in {} fragments; embedder: {embedder}\n\n\
             | questions | n | backend | recall@5 | MRR | nDCG@10 |\n|---|---:|---|---:|---:|---:|",
            self.questions, self.documents, self.fragments
        );
        for Row { part, n, backend, scores } in &self.rows {
            let _ = writeln!(
                out,
                "| {} | {n} | {backend} | {:.3} | {:.3} | {:.3} |",
                part.name(),
                scores.recall_at_5,
                scores.mrr,
                scores.ndcg_at_10
            );
        }
        let _ = writeln!(
            out,
            "\nCARMA less the other, with 95 % intervals of the paired bootstrap:\n\n\
             | questions | n | other | recall@5 | MRR | nDCG@10 |\n|---|---:|---|---|---|---|"
        );
        for difference in &self.differences {
            let cell = |i: &Interval| format!("{:+.3} ({:+.3} to {:+.3})", i.mean, i.low, i.high);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} |",
                difference.part.name(),
                difference.n,
                difference.other,
                cell(&difference.recall_at_5),
                cell(&difference.mrr),
                cell(&difference.ndcg_at_10)
            );
        }
        let _ = writeln!(out, "\nNothing was returned:\n");
        for Silence { backend, unanswerable, answerable } in &self.silence {
            let _ = writeln!(
                out,
                "- {backend}: for {} of {} questions without an answer, and {} of {} with one",
                unanswerable.1, unanswerable.0, answerable.1, answerable.0
            );
        }
        out
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Split(Split::Development) => "development",
            Self::Split(Split::HeldOut) => "held out",
            Self::Class(Class::Words) => "words",
            Self::Class(Class::Paraphrase) => "paraphrase",
            Self::Class(Class::Several) => "several",
            Self::Class(Class::Unanswerable) => "unanswerable",
        }
    }
}
