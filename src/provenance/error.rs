//! Why a record could not be kept or read.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a log. The answer is not lost by it: it was printed before.
#[derive(Debug, thiserror::Error)]
pub enum ProvenanceError {
    /// The file system refuses.
    #[error("cannot {doing} the provenance file {}: {source}{}", path.display(), remedy(source))]
    #[expect(missing_docs, reason = "the message names the fields")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A record that has no form in JSON.
    #[error("a record cannot be written as JSON: {0}")]
    Form(serde_json::Error),
    /// There is nothing to read.
    #[error("there is no provenance file {}; `aios run --provenance` makes one", .0.display())]
    Missing(PathBuf),
    /// A record that was asked for is not there.
    #[error("there is no record {id} in {}; it has {count}, the last is {last}", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    NoRecord { id: u64, path: PathBuf, count: u64, last: u64 },
    /// What was read could not be passed on.
    #[error("cannot print")]
    Output(#[source] io::Error),
}

impl ProvenanceError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room on the disk, or name a file on another one"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; name a file in a folder that you may write"
        }
        _ => "",
    }
}
