//! What can go wrong with a store, an import or an evaluation. Every message says what to do.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// A failure of memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither an override nor a home folder says where data is kept.
    #[error(
        "cannot tell where the memory is kept: give --store PATH, or set AIOS_DATA_DIR or HOME"
    )]
    NoDataDir,
    /// An operation on a file or folder failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Io { action: &'static str, path: PathBuf, cause: io::Error },
    /// There is no store, and the command does not make one.
    #[error("there is no memory at {} yet; 'aios memory import PATH' makes one", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Absent { path: PathBuf },
    /// The file is something else.
    #[error(
        "{} is not a memory of this program ({found}); it was left as it is: \
         give --store another path", path.display()
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Foreign { path: PathBuf, found: String },
    /// The store was written by a later version of the program.
    #[error(
        "{} has version {found} of the schema and this program knows {known}; it was left as it \
         is: use the later program, or its 'aios memory export'", path.display()
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Newer { path: PathBuf, found: i64, known: i64 },
    /// The store's pages contradict each other.
    #[error(
        "{} is damaged ({found}); move it aside and put back a copy, or import its documents \
         again; 'aios memory export' may still read a part", path.display()
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Damaged { path: PathBuf, found: String },
    /// Another process writes.
    #[error("{} is in use by another process that writes; try again", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Busy { path: PathBuf },
    /// The disk is full.
    #[error("the disk of {} is full; nothing was stored: free some space", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Full { path: PathBuf },
    /// Any other refusal of the database.
    #[error("cannot {action} in {}: {cause}", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Database { action: &'static str, path: PathBuf, cause: rusqlite::Error },
    /// The embedder gave no vectors, or none that can be used.
    #[error("the embedder {name} failed: {cause}; go on without one, by BM25 alone")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Embedder { name: String, cause: String },
    /// A fragment without text.
    #[error("a fragment needs text; this one has none but white space")]
    EmptyFragment,
    /// There is no such fragment.
    #[error("there is no fragment {id}; 'aios memory export' lists those that there are")]
    #[expect(missing_docs, reason = "the message names the fields")]
    UnknownFragment { id: i64 },
    /// The document is of a kind that is not imported.
    #[error("{what} is {kind}, which cannot be imported; {remedy}")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Refused { what: String, kind: &'static str, remedy: &'static str },
    /// An option is out of its range.
    #[error("memory option '{field}': {reason}")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Option { field: &'static str, reason: String },
    /// The questions of an evaluation are faulty.
    #[error("{place}: {reason}; correct the question")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Question { place: String, reason: String },
    /// The user stopped it.
    #[error("interrupted; what was acknowledged is kept")]
    Interrupted,
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, cause: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), cause }
    }

    pub(super) fn sql(action: &'static str, path: &Path, cause: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match cause.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, found: cause.to_string() },
            Some(ErrorCode::NotADatabase) => Self::Foreign { path, found: cause.to_string() },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path },
            Some(ErrorCode::DiskFull) => Self::Full { path },
            _ => Self::Database { action, path, cause },
        }
    }
}
