//! Memory that has become a file which nobody can change: what may be mapped in several places.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Resource, getrlimit};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file of memory, sealed against writing and against another length. There is no way to have one
/// that is not, so that mappings of it are memory like any other.
#[derive(Debug)]
pub(crate) struct SealedFile {
    file: File,
    len: usize,
}

impl SealedFile {
    /// A file of `len` bytes, zeros but for what `fill` writes within it.
    ///
    /// # Errors
    /// The operating system's and those of `fill`; a length beyond the process's limit of files.
    pub(crate) fn new(len: usize, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<Self> {
        // Going beyond the limit would be a signal, which ends the process.
        if let Some(most) = getrlimit(Resource::Fsize).current
            && len as u64 > most
        {
            let what = format!(
                "{len} bytes are more than files of this process may have ({most}, ulimit -f)"
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("aios prefix", flags)?);
        file.set_len(len as u64)?;
        fill(&file)?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        // What `fill` did is done, and the length is fixed from here on.
        match file.metadata()?.len() == len as u64 {
            true => Ok(Self { file, len }),
            false => Err(io::Error::other("its length has changed while it was filled")),
        }
    }

    /// Its bytes.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The file, to be mapped.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` with those from `at` on.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn read(&self, bytes: &mut [u8], at: usize) -> io::Result<()> {
        self.file.read_exact_at(bytes, at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Rlimit, setrlimit};
    use std::process::Command;

    #[test]
    fn nobody_writes_to_it_and_its_length_stays() {
        let sealed = SealedFile::new(9000, |file| file.write_all_at(b"abc", 5000)).expect("memory");
        assert_eq!(sealed.len(), 9000);
        let mut bytes = [9; 5];
        sealed.read(&mut bytes, 4999).expect("read");
        assert_eq!(bytes, [0, b'a', b'b', b'c', 0]);
        assert!(sealed.file().write_all_at(b"x", 0).is_err());
        assert!(sealed.file().set_len(0).is_err());
        assert!(sealed.file().set_len(1 << 20).is_err());
        assert!(sealed.read(&mut bytes, 8996).is_err());
        assert!(SealedFile::new(10, |file| file.set_len(5)).is_err());
        assert!(SealedFile::new(10, |_| Err(io::ErrorKind::Other.into())).is_err());
    }

    /// The limit holds for a whole process, so that another one has it: this test once more.
    #[test]
    fn a_limit_of_files_is_an_error_and_no_signal() {
        const CHILD: &str = "AIOS_TEST_FILE_LIMIT";
        if std::env::var_os(CHILD).is_some() {
            let limit = Rlimit { current: Some(1 << 16), maximum: Some(1 << 16) };
            setrlimit(Resource::Fsize, limit).expect("a lower limit");
            assert!(SealedFile::new(1 << 16, |_| Ok(())).is_ok());
            let error = SealedFile::new((1 << 16) + 1, |_| Ok(())).expect_err("too long");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert!(error.to_string().contains("ulimit -f"), "{error}");
            return;
        }
        let name = "sealed::tests::a_limit_of_files_is_an_error_and_no_signal";
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        let output = child.args(["--exact", name]).env(CHILD, "1").output().expect("started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{:?} {said}", output.status);
    }
}
