//! Where records are kept, as few operations as a log needs: so that tests can take a disk that
//! loses what was not synced.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Files in a folder, by name, to be read.
pub trait Files: Debug + Send {
    /// Waits for the lock, which processes and threads share.
    ///
    /// # Errors
    /// The system's.
    fn lock(&mut self) -> io::Result<()>;

    /// Gives the lock back.
    fn unlock(&mut self);

    /// The names of all files.
    ///
    /// # Errors
    /// The system's.
    fn names(&self) -> io::Result<Vec<String>>;

    /// The length of a file; `None` if there is none of that name.
    ///
    /// # Errors
    /// The system's.
    fn length(&self, name: &str) -> io::Result<Option<u64>>;

    /// The bytes of a file from `from` on, `most` of them at most.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, name: &str, from: u64, most: usize) -> io::Result<Vec<u8>>;
}

/// Files that can be changed, by whoever holds the lock.
pub trait Storage: Files {
    /// Makes an empty file that only its owner may read, and its name outlive a crash.
    ///
    /// # Errors
    /// The system's.
    fn create(&mut self, name: &str) -> io::Result<()>;

    /// Writes `bytes` at the end of a file, in one write, and has them outlive a crash. Where that
    /// fails any part of them may be there.
    ///
    /// # Errors
    /// The system's.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to `length` bytes.
    ///
    /// # Errors
    /// The system's.
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;

    /// Gives a file another name, which outlives a crash.
    ///
    /// # Errors
    /// The system's.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
}

/// A folder of the file system.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    /// An empty file beside the others; the system gives its lock back when the process ends.
    lock: File,
}

/// What only the owner may read and write.
const OWNERS: u32 = 0o600;

impl Disk {
    /// The files in `folder`, which is made if it is not there; `lock` is the name of the lock.
    ///
    /// # Errors
    /// The system's.
    pub fn open(folder: &Path, lock: &str) -> io::Result<Self> {
        make_folder(folder)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(OWNERS);
        let lock = options.open(folder.join(lock))?;
        Ok(Self { folder: folder.to_owned(), lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

/// Makes a folder and those above it, and their names outlive a crash.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folder(above)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        return File::open(above)?.sync_all();
    }
    Ok(())
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(path: &Path, from: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Files for Disk {
    fn lock(&mut self) -> io::Result<()> {
        self.lock.lock()
    }

    fn unlock(&mut self) {
        // It can fail only for a file that is not open.
        let _ = self.lock.unlock();
    }

    fn names(&self) -> io::Result<Vec<String>> {
        names(&self.folder)
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        length(&self.path(name))
    }

    fn read(&self, name: &str, from: u64, most: usize) -> io::Result<Vec<u8>> {
        read(&self.path(name), from, most)
    }
}

impl Storage for Disk {
    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.create_new(true).write(true).mode(OWNERS).open(self.path(name))?;
        self.sync_folder()
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.path(name))?;
        let meta = file.metadata()?;
        if meta.is_file() && meta.permissions().mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(OWNERS))?;
        }
        file.write_all(bytes)?;
        file.sync_data()
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        file.set_len(length)?;
        file.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.sync_folder()
    }
}

/// A folder of the file system that is only read. The lock is shared with other readers, and with
/// nobody where the file of it is not there or may not be opened.
#[derive(Debug)]
pub struct View {
    folder: PathBuf,
    lock: Option<File>,
}

impl View {
    /// The files in `folder`.
    ///
    /// # Errors
    /// The system's, if there is no such folder.
    pub fn open(folder: &Path, lock: &str) -> io::Result<Self> {
        fs::metadata(folder)?;
        Ok(Self { folder: folder.to_owned(), lock: File::open(folder.join(lock)).ok() })
    }
}

impl Files for View {
    fn lock(&mut self) -> io::Result<()> {
        self.lock.as_ref().map_or(Ok(()), File::lock_shared)
    }

    fn unlock(&mut self) {
        // It can fail only for a file that is not open.
        let _ = self.lock.as_ref().map(File::unlock);
    }

    fn names(&self) -> io::Result<Vec<String>> {
        names(&self.folder)
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        length(&self.folder.join(name))
    }

    fn read(&self, name: &str, from: u64, most: usize) -> io::Result<Vec<u8>> {
        read(&self.folder.join(name), from, most)
    }
}
