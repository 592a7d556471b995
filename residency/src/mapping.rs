//! Files mapped into memory, read-only.

use memmap2::Mmap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A file mapped read-only. Its pages are shared with every other process that maps it, and
/// within this one a file is mapped once, under whatever names it is opened (SPEC W12).
#[derive(Clone, Debug)]
pub struct Mapping {
    path: PathBuf,
    file: Arc<Mapped>,
}

/// A file in the state in which it was mapped.
#[derive(Debug)]
struct Mapped {
    map: Mmap,
    state: State,
}

/// Which file, and in what state: a file that was changed in place is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    identity: Identity,
    len: u64,
    /// When its content and its entry were changed last, in seconds and nanoseconds.
    changed: [i64; 4],
}

impl State {
    fn of(meta: &Metadata) -> Self {
        let changed = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        Self { identity: Identity::of(meta), len: meta.len(), changed }
    }
}

/// The files that are mapped. They are few, so that a list is as good as a table.
static MAPPED: Mutex<Vec<Weak<Mapped>>> = Mutex::new(Vec::new());

/// A mapping that does not keep its file mapped.
#[derive(Clone, Debug)]
pub(crate) struct WeakMapping {
    path: PathBuf,
    file: Weak<Mapped>,
}

impl WeakMapping {
    /// The mapping, if anything else still has it.
    pub(crate) fn upgrade(&self) -> Option<Mapping> {
        Some(Mapping { path: self.path.clone(), file: self.file.upgrade()? })
    }
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
        let state = State::of(&metadata);
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|file| file.strong_count() > 0);
        if let Some(file) = mapped.iter().filter_map(Weak::upgrade).find(|f| f.state == state) {
            return Ok(Self { path: owned(), file });
        }
        // SAFETY: the mapping is private to readers; that the file is not changed underneath it
        // is the documented condition of this function, as for every program that maps files.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let file = Arc::new(Mapped { map, state });
        mapped.push(Arc::downgrade(&file));
        Ok(Self { path: owned(), file })
    }

    /// Which file it is, whatever its name stands for by now.
    pub(crate) fn identity(&self) -> Identity {
        self.file.state.identity
    }

    /// Whether both are one mapping in memory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    /// This mapping, without keeping its file mapped.
    pub(crate) fn downgrade(&self) -> WeakMapping {
        WeakMapping { path: self.path.clone(), file: Arc::downgrade(&self.file) }
    }

    /// Gives the pages that were looked at back to the system; they are read again when they are
    /// looked at again.
    pub(crate) fn forget_pages(&self) {
        // SAFETY: the mapping is of a file and is never written, so that dropped pages come back
        // with the same content.
        let advised = unsafe { self.file.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        // Where it is refused, a little memory stays in use.
        let _ = advised;
    }

    /// The file's path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.file.map
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
    fn a_file_is_mapped_once_by_all_its_names_and_anew_when_it_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let [first, link, other] = ["first", "link", "other"].map(|name| folder.path().join(name));
        std::fs::write(&first, b"weights").expect("written");
        std::fs::write(&other, b"weights").expect("written");
        std::fs::hard_link(&first, &link).expect("linked");
        let open = |path: &Path| Mapping::open(path).expect("mapped");
        let mapping = open(&first);
        let linked = open(&link);
        assert!(mapping.is(&linked) && mapping.bytes().as_ptr() == linked.bytes().as_ptr());
        assert_eq!((mapping.path(), linked.path()), (&*first, &*link));
        // The same bytes in another file are not the same file.
        assert!(!mapping.is(&open(&other)));
        std::fs::rename(&other, &first).expect("replaced");
        assert!(!mapping.is(&open(&first)));
        let mut file = File::options().append(true).open(&link).expect("opened");
        file.write_all(b" more").expect("written");
        let longer = open(&link);
        assert!(!linked.is(&longer) && longer.bytes() == b"weights more");
        // What nobody has any more is not kept.
        let weak = longer.downgrade();
        assert!(weak.upgrade().is_some_and(|same| same.is(&longer)));
        drop(longer);
        assert!(weak.upgrade().is_none());
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
