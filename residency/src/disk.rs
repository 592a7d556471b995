//! Reading files past the page cache.

use crate::mapping::{Identity, Mapping};
use crate::pages::{PAGE, Pages};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Why weights could not be read from disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system's error.
    #[error("reading {} failed: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file ends where it did not end before.
    #[error(
        "{} has become shorter while it was in use: nothing is left at byte {at}; \
         restore it and try again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where bytes are missing.
        at: u64,
    },
    /// Another file has taken its name.
    #[error("{} was replaced while it was being loaded; load it again", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// No thread could be started.
    #[error("the system does not start a thread that reads ahead: {0}")]
    Thread(io::Error),
}

/// A file that is read in whole pages.
#[derive(Debug)]
pub(crate) struct DiskFile {
    path: PathBuf,
    file: File,
    /// Whether reads bypass the page cache.
    direct: bool,
}

/// How files are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Past the page cache, where the file system allows it.
    Direct,
    /// Through the page cache.
    Buffered,
}

impl DiskFile {
    /// Opens the file of `mapping` once more.
    ///
    /// # Errors
    /// [`DiskError`]: it has gone or is another one.
    pub(crate) fn of(mapping: &Mapping, access: Access) -> Result<Self, DiskError> {
        let file = Self::open(mapping.path(), access)?;
        let same = file.file.metadata().is_ok_and(|meta| Identity::of(&meta) == mapping.identity());
        if same { Ok(file) } else { Err(DiskError::Replaced { path: file.path }) }
    }

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`DiskError::Read`].
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        let wrong = |source| DiskError::Read { path: path.to_owned(), source };
        if access == Access::Direct
            && let Ok(file) = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)
        {
            // Some file systems open the file so and then refuse to read.
            let mut page = Pages::new(PAGE).map_err(wrong)?;
            if file.read_at(&mut page, 0).is_ok() {
                return Ok(Self { path: path.to_owned(), file, direct: true });
            }
        }
        let file = File::open(path).map_err(wrong)?;
        Ok(Self { path: path.to_owned(), file, direct: false })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether reads bypass the page cache.
    pub(crate) const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Fills the first `needed` bytes of `buffer` with those from `offset` on, and whatever
    /// follows them in the file with more of it. Offset, buffer and its length are multiples of a
    /// page.
    ///
    /// # Errors
    /// [`DiskError::Read`], and [`DiskError::Truncated`] if the file ends before that.
    pub(crate) fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        needed: usize,
    ) -> Result<(), DiskError> {
        let mut done = 0;
        while done < needed {
            let at = offset + done as u64;
            match self.file.read_at(&mut buffer[done..], at) {
                Ok(0) => return Err(DiskError::Truncated { path: self.path.clone(), at }),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Behind an end that is not a whole page a direct read has nowhere to start.
                Err(_) if self.direct && !done.is_multiple_of(PAGE) => {
                    return Err(DiskError::Truncated { path: self.path.clone(), at });
                }
                Err(source) => return Err(DiskError::Read { path: self.path.clone(), source }),
            }
        }
        if !self.direct {
            // It only keeps the cache clean; where it is refused, nothing is lost.
            let _ = fadvise(&self.file, offset, NonZeroU64::new(done as u64), Advice::DontNeed);
        }
        Ok(())
    }

    /// Fills `buffer` with the bytes from `offset` on, which need not be at a page.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_exact(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_exact_at(buffer, offset).map_err(|source| {
            let path = self.path.clone();
            match source.kind() {
                io::ErrorKind::UnexpectedEof => DiskError::Truncated { path, at: offset },
                _ => DiskError::Read { path, source },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: usize) -> (tempfile::TempDir, Mapping, Vec<u8>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 / 5) as u8).collect();
        std::fs::write(&path, &bytes).expect("written");
        let mapping = Mapping::open(&path).expect("mapped");
        (folder, mapping, bytes)
    }

    #[test]
    fn both_ways_read_the_bytes_of_the_file_up_to_its_end() {
        let (_folder, mapping, bytes) = file(3 * PAGE + 100);
        for access in [Access::Direct, Access::Buffered] {
            let disk = DiskFile::of(&mapping, access).expect("opened");
            assert!(access == Access::Direct || !disk.is_direct());
            let mut buffer = Pages::new(4 * PAGE).expect("memory");
            disk.read(0, &mut buffer, bytes.len()).expect("read");
            assert_eq!(buffer[..bytes.len()], bytes);
            disk.read(2 * PAGE as u64, &mut buffer[..2 * PAGE], PAGE + 100).expect("read");
            assert_eq!(buffer[..PAGE + 100], bytes[2 * PAGE..]);
            let beyond = disk.read(2 * PAGE as u64, &mut buffer[..2 * PAGE], PAGE + 101);
            assert!(matches!(beyond, Err(DiskError::Truncated { .. })), "{beyond:?}");
        }
        let mut row = [0; 50];
        let disk = DiskFile::of(&mapping, Access::Buffered).expect("opened");
        disk.read_exact(4097, &mut row).expect("read");
        assert_eq!(row, bytes[4097..4147]);
        assert!(disk.read_exact(bytes.len() as u64 - 49, &mut row).is_err());
    }

    #[test]
    fn a_file_that_has_gone_was_replaced_or_is_shorter_is_named() {
        let (folder, mapping, bytes) = file(2 * PAGE);
        let path = mapping.path().to_owned();
        let disk = DiskFile::of(&mapping, Access::Direct).expect("opened");
        File::options().write(true).open(&path).expect("opened").set_len(10).expect("cut");
        let mut buffer = Pages::new(2 * PAGE).expect("memory");
        let short = disk.read(0, &mut buffer, 2 * PAGE).expect_err("it is shorter");
        assert!(short.to_string().contains("weights"), "{short}");
        let other = folder.path().join("other");
        std::fs::write(&other, &bytes).expect("written");
        std::fs::rename(&other, &path).expect("renamed");
        let replaced = DiskFile::of(&mapping, Access::Direct);
        assert!(matches!(replaced, Err(DiskError::Replaced { .. })), "{replaced:?}");
        std::fs::remove_file(&path).expect("removed");
        let gone = DiskFile::of(&mapping, Access::Direct).expect_err("it has gone");
        assert!(gone.to_string().contains("weights"), "{gone}");
    }
}
