//! Going through the open cases.

use super::plan::{Case, belongs};
use crate::provenance::Record;

/// What answers the cases of a benchmark and records them.
pub trait Answers {
    /// Answers `case` in a conversation of its own, appends the record to the benchmark's log, and
    /// returns it. If the case is not warm, its family's models are unloaded before, and their
    /// loading is a part of the latency. An answer that failed is a record with an error.
    ///
    /// # Errors
    /// What keeps the benchmark from going on: a log that cannot be written, an interrupt.
    fn answer(&mut self, case: &Case) -> anyhow::Result<Record>;
}

/// What became of the cases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Cases that were answered.
    pub answered: usize,
    /// Cases that failed, or went without their memory, with the reasons.
    pub failed: Vec<String>,
}

/// Told of each case before it is asked: which, how many are done, and of how many.
pub type Progress<'a> = dyn FnMut(&Case, usize, usize) -> bool + 'a;

/// Asks `cases` one after another, until `progress` says no.
///
/// # Errors
/// Those of `answers`, and a record that is not of the case that was asked.
pub fn run(
    cases: &[Case],
    answers: &mut dyn Answers,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for (done, case) in cases.iter().enumerate() {
        if !progress(case, done, cases.len()) {
            break;
        }
        let record = answers.answer(case)?;
        let name = || {
            format!("{}, {}, {}, {}", case.family.name, case.layer, case.backend, case.prompt.id)
        };
        belongs(&record, case).map_err(|problem| {
            anyhow::anyhow!("record {} is not the answer to {}: {problem}", record.id, name())
        })?;
        let of = &record.request;
        let degraded = of.retrieval.as_ref().and_then(|retrieval| retrieval.degraded.as_ref());
        match of.error.as_ref().or(degraded) {
            None => tally.answered += 1,
            Some(reason) => tally.failed.push(format!("{}: {reason}", name())),
        }
    }
    Ok(tally)
}
