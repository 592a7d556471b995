//! Memory: fragments of text that are kept, and found again by what a question is about.
//!
//! ```text
//! import -> chunks -> Store (SQLite) -> BM25 + vectors -> Retriever -> fragments of an answer
//! ```
//!
//! A [`Store`] is one file, which survives a crash. [`Memory`] is a store that is open together
//! with the embedder and its vectors. A [`Retriever`] chooses among its fragments: CARMA,
//! Simple_RAG or BM25 alone. SPEC.md, chapter V, says what may be relied on.

mod backends;
pub mod bench;

mod carma;
mod embed;
mod error;
pub mod evaluate;

pub mod import;
mod lexical;
mod memories;
mod options;
mod retrieve;
mod similar;
mod stop_words;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vectors;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

pub use backends::{Bm25, SimpleRag};
pub use carma::Carma;
pub use embed::{Embedder, Encoding};
pub use error::Error;
pub use memories::Memory;
pub use options::Options;
pub use retrieve::{Backend, Budget, Hit, Mode, Question, Retrieval, Retriever, retriever};
pub use store::{
    Added, Check, Chunk, Document, Fragment, Imported, SCHEMA_VERSION, Selection, Stats, Store,
};
pub use vectors::{FlatIndex, Int8Vector, VectorIndex};

/// The store that is used when none is named: `memory.sqlite3` in `AIOS_DATA_DIR`, in
/// `XDG_DATA_HOME/aios` or in `HOME/.local/share/aios`.
///
/// # Errors
/// [`Error::NoDataDir`] if none of these is set.
pub fn default_store() -> Result<PathBuf, Error> {
    default_store_of(|name| std::env::var_os(name)).ok_or(Error::NoDataDir)
}

/// The time, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn default_store_of(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("AIOS_DATA_DIR")
        .or_else(|| Some(set("XDG_DATA_HOME")?.join("aios")))
        .or_else(|| Some(set("HOME")?.join(".local/share/aios")))?;
    Some(folder.join("memory.sqlite3"))
}
