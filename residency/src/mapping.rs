//! Files mapped into memory, read-only.

use memmap2::Mmap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file mapped read-only. Its pages are shared with every other process that maps it.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    map: Mmap,
    identity: Identity,
}

/// Which file a path stood for: its device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64, u64);

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// Why a file could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It does not exist.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// This user may not read it.
    #[error("{} may not be read by this user; check its permissions", path.display())]
    Denied {
        /// The path as given.
        path: PathBuf,
    },
    /// It is a folder, a device or a pipe.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
    },
    /// It is empty.
    #[error("{} is empty", path.display())]
    Empty {
        /// The path as given.
        path: PathBuf,
    },
    /// Anything else that the operating system says.
    #[error("{} could not be mapped: {source}", path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}

impl Mapping {
    /// Maps the file at `path`.
    ///
    /// While the mapping lives, nobody may change or truncate the file: a changed file changes
    /// the weights under the engine, and touching a page beyond a new end kills the process
    /// (SIGBUS), which no program can catch safely. Replacing the file by renaming another over
    /// it is fine. Downloads therefore get their final name only when they are complete.
    ///
    /// # Errors
    /// [`MapError`], which names the path.
    pub fn open(path: &Path) -> Result<Self, MapError> {
        let owned = || path.to_owned();
        let io = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => MapError::Missing { path: owned() },
            std::io::ErrorKind::PermissionDenied => MapError::Denied { path: owned() },
            _ => MapError::Io { path: owned(), source },
        };
        // Opening a pipe would wait for a writer, so the kind is looked at first.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(MapError::NotAFile { path: owned() });
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() == 0 {
            return Err(MapError::Empty { path: owned() });
        }
        // SAFETY: the mapping is private to readers; that the file is not changed underneath it
        // is the documented condition of this function, as for every program that maps files.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: owned(), map, identity: Identity::of(&metadata) })
    }

    /// Which file it is, whatever its name stands for by now.
    pub(crate) const fn identity(&self) -> Identity {
        self.identity
    }

    /// Gives the pages that were looked at back to the system; they are read again when they are
    /// looked at again.
    pub(crate) fn forget_pages(&self) {
        // SAFETY: the mapping is of a file and is never written, so that dropped pages come back
        // with the same content.
        let advised = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        // Where it is refused, a little memory stays in use.
        let _ = advised;
    }

    /// The file's path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn maps_what_is_there() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"weights").expect("written");
        let mapping = Mapping::open(file.path()).expect("mapped");
        assert_eq!(mapping.bytes(), b"weights");
        assert_eq!(mapping.path(), file.path());
    }

    #[test]
    fn says_what_is_wrong_with_a_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = Mapping::open(&folder.path().join("none"));
        assert!(matches!(missing, Err(MapError::Missing { .. })));
        assert!(matches!(Mapping::open(folder.path()), Err(MapError::NotAFile { .. })));
        let empty = folder.path().join("empty");
        File::create(&empty).expect("created");
        assert!(matches!(Mapping::open(&empty), Err(MapError::Empty { .. })));
    }
}
