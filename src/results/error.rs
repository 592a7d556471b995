//! Why there are no results.

use std::io;
use std::path::{Path, PathBuf};

use crate::provenance::{Fault, ProvenanceError};

/// What keeps records from becoming results.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum ResultsError {
    /// A log that cannot be read.
    #[error(transparent)]
    Log(#[from] ProvenanceError),
    /// A log that is not what was written.
    #[error("the log {} is not whole: {fault}; see 'aios provenance verify'", path.display())]
    Broken { path: PathBuf, fault: Fault },
    /// A record that lacks what results need.
    #[error("record {id} of {} has no {what}: {remedy}", path.display())]
    Missing { path: PathBuf, id: u64, what: &'static str, remedy: &'static str },
    /// A record that says what cannot be.
    #[error("record {id} of {}: {problem}", path.display())]
    Wrong { path: PathBuf, id: u64, problem: String },
    /// Two records of one case.
    #[error(
        "records {first} and {second} are both of {case}; give each run of the benchmark a name \
         of its own, and each log once"
    )]
    Twice { case: String, first: String, second: String },
    /// Records that do not belong together.
    #[error(
        "the records are of different execution modes or revisions ({}); --allow-mixed keeps \
         them apart in the tables, --execution-mode or --bench chooses some", found.join("; ")
    )]
    Mixed { found: Vec<String> },
    /// Nothing to report.
    #[error(
        "none of {records} records is of the benchmark{}; 'aios bench-arch' makes some",
        filter.as_ref().map_or_else(String::new, |filter| format!(" as chosen by {filter}"))
    )]
    Nothing { records: u64, filter: Option<String> },
    /// A line of the labels.
    #[error("the labelled prompts, line {line}: {problem}")]
    Label { line: usize, problem: String },
    /// Cells of a manuscript.
    #[error("{} of the manuscript have no value: {}", cells(unfilled.len()), unfilled.join("; "))]
    Unfilled { unfilled: Vec<String> },
    /// A picture.
    #[error(transparent)]
    Plot(#[from] aios_validation::plot::PlotError),
    /// The file system refuses.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

impl ResultsError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

fn cells(n: usize) -> String {
    if n == 1 { "1 cell".to_owned() } else { format!("{n} cells") }
}
