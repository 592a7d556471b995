//! What can go wrong between the name of a model and its verified file.

use std::io;
use std::path::{Path, PathBuf};

/// A failure to name, find, fetch or verify a model. Every message ends in what can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalogue itself is faulty.
    #[error("the model catalogue is faulty: {reason}; correct the file that AIOS_CATALOG names")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Catalog { reason: String },
    /// The catalogue has no such model.
    #[error(
        "there is no file and no catalogue model called '{}'; the catalogue has: {}",
        name.escape_debug(), known.join(", ")
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    UnknownModel { name: String, known: Vec<String> },
    /// Neither an override nor a home folder says where models are kept.
    #[error("cannot tell where models are kept: set AIOS_CACHE_DIR (or HOME) to a folder")]
    NoCacheDir,
    /// An operation on a file or folder failed.
    #[error("cannot {action} {}: {cause}{}", path.display(), remedy(cause))]
    #[expect(missing_docs, reason = "the message names the fields")]
    Io { action: &'static str, path: PathBuf, cause: io::Error },
    /// The file in the cache is not the one that the catalogue describes.
    #[error(
        "{} is {found} bytes long where the catalogue says {expected}; \
         fetch it again with 'aios pull {name}'", path.display()
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Stale { name: String, path: PathBuf, expected: u64, found: u64 },
    /// The bytes of a source have the wrong digest.
    #[error(
        "SHA-256 mismatch: the bytes from {from} have {found}, the catalogue says {expected}; \
         the source has changed or is damaged, so nothing was kept"
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Digest { from: String, expected: String, found: String },
    /// A source has more or fewer bytes than the catalogue says.
    #[error("{from} does not hold exactly the {expected} bytes that the catalogue says")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Length { from: String, expected: u64 },
    /// The free space does not suffice.
    #[error(
        "{} has {free} bytes free and the fetch of {name} needs {needed}; \
         free some space or set AIOS_CACHE_DIR to a folder on another disk", dir.display()
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Space { name: String, dir: PathBuf, needed: u64, free: u64 },
    /// The downloader could not be started.
    #[error(
        "cannot start '{program} -m pip': {cause}; install Python 3 with pip, \
         or hand over a file with 'aios pull NAME --from PATH'"
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    NoPip { program: String, cause: io::Error },
    /// The downloader gave up.
    #[error(
        "pip could not fetch {requirement} ({status}): {said}; check the network and pip's \
         configuration, or hand over a file with 'aios pull NAME --from PATH'"
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Pip { requirement: String, status: String, said: String },
    /// The download is larger than anything the wanted piece could need.
    #[error("the download of {requirement} passed its cap of {cap} bytes and was stopped")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Oversize { requirement: String, cap: u64 },
    /// The downloaded package is not what the catalogue expects.
    #[error("the package {requirement} is not usable: {reason}; nothing was kept")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Wheel { requirement: String, reason: String },
    /// Every source failed; one line each.
    #[error("no source could provide {name}:\n  {}", reasons.join("\n  "))]
    #[expect(missing_docs, reason = "the message names the fields")]
    Sources { name: String, reasons: Vec<String> },
    /// The user stopped it.
    #[error("interrupted; nothing half-fetched was kept")]
    Interrupted,
}

impl Error {
    pub(super) fn io(action: &'static str, path: &Path, cause: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), cause }
    }

    /// Whether another source of the same bytes could still succeed.
    pub(super) fn is_of_the_source(&self) -> bool {
        match self {
            Self::Interrupted | Self::Space { .. } => false,
            Self::Io { cause, .. } => cause.kind() != io::ErrorKind::StorageFull,
            _ => true,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied => "; check the permissions",
        io::ErrorKind::StorageFull => {
            "; free some space or set AIOS_CACHE_DIR to a folder on another disk"
        }
        _ => "",
    }
}
