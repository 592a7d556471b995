//! What can be wrong with a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::{FILE_BYTES_MAX, FILE_NAME};

/// Why there is no configuration. Every message names the file, and the line and the key where
/// there are any.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {cause}{}", path.display(), remedy(cause))]
    #[expect(missing_docs, reason = "the message names the fields")]
    Unreadable { path: PathBuf, cause: io::Error },
    /// It is a folder, a device or a pipe.
    #[error("the configuration {} is not a regular file", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    NotAFile { path: PathBuf },
    /// It is longer than any configuration.
    #[error(
        "the configuration {} has more than {FILE_BYTES_MAX} bytes; is it the right file?",
        path.display()
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    TooLarge { path: PathBuf },
    /// It is not a text.
    #[error("{}:{line}: the file is not UTF-8 text", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    NotText { path: PathBuf, line: usize },
    /// A line of it is wrong.
    #[error("{}:{fault}", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Faulty { path: PathBuf, fault: Fault },
    /// There is nowhere to write it to.
    #[error("cannot tell where {FILE_NAME} belongs: set XDG_CONFIG_HOME or HOME, or name a file")]
    NoFolder,
    /// There is one already.
    #[error("{} exists; --force replaces it", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Exists { path: PathBuf },
    /// It cannot be written.
    #[error("cannot write {}: {cause}", path.display())]
    #[expect(missing_docs, reason = "the message names the fields")]
    Unwritable { path: PathBuf, cause: io::Error },
}

/// So much of a key is printed.
const KEY_CHARS_MAX: usize = 100;

/// What is wrong with a line of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, counted from 1.
    pub line: usize,
    /// The key, such as `model[2].context`; empty where no key is meant.
    pub key: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, key, reason } = self;
        let key: String = key.chars().take(KEY_CHARS_MAX).flat_map(char::escape_debug).collect();
        if self.key.is_empty() {
            write!(f, "{line}: {reason}")
        } else {
            write!(f, "{line}: {key}: {reason}")
        }
    }
}

impl ConfigError {
    pub(super) fn unreadable(path: &Path, cause: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), cause }
    }
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "; check the path, or write one with 'aios config init'",
        io::ErrorKind::PermissionDenied => "; check its permissions",
        _ => "",
    }
}
