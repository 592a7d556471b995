//! The store: one SQLite file of fragments, their vectors and their links (SPEC.md, V1 to V4).

mod read;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

pub use read::{Check, Stats};
pub use schema::SCHEMA_VERSION;
pub use write::{Added, Chunk, Document, Imported, Selection};

use super::Error;
use schema::{APPLICATION_ID, Stamp};

/// How long a writer waits for another one.
const BUSY: Duration = Duration::from_secs(10);
/// How often a process asks again to start the log of a store that others open at the same time,
/// and how long it waits in between.
const LOG_TRIES: u32 = 100;
const LOG_WAIT: Duration = Duration::from_millis(20);
/// What every SQLite database begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// A passage as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fragment {
    /// Its number, which is never given to another.
    pub id: i64,
    /// Where it comes from: a path, an address or a name.
    pub source: String,
    /// The headings above it, from the outermost; may be empty.
    pub title: String,
    /// The passage itself.
    pub text: String,
    /// When it was stored, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it last served an answer.
    pub used_ms: Option<i64>,
    /// How many answers it has served.
    pub uses: i64,
}

/// A store that is open. Others may have it open too.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens the store at `path`, which is made if there is no file, with the folders above it.
    ///
    /// # Errors
    /// [`Error::Foreign`], [`Error::Newer`] and [`Error::Damaged`], none of which changes the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        make_private_file(path)?;
        Self::open_at(path, SCHEMA_VERSION)
    }

    /// Opens the store at `path`, which must be there.
    ///
    /// # Errors
    /// [`Error::Absent`], and those of [`Store::open`].
    pub fn open_existing(path: &Path) -> Result<Self, Error> {
        match fs::metadata(path) {
            Ok(_) => Self::open_at(path, SCHEMA_VERSION),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::Absent { path: path.to_owned() })
            }
            Err(e) => Err(Error::io("look at", path, e)),
        }
    }

    fn open_at(path: &Path, version: i64) -> Result<Self, Error> {
        check_magic(path)?;
        let sql = |action| move |cause| Error::sql(action, path, cause);
        // Without SQLITE_OPEN_URI a path is a path, whatever it looks like.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection =
            Connection::open_with_flags(path, flags).map_err(sql("open the memory"))?;
        connection.busy_timeout(BUSY).map_err(sql("open the memory"))?;
        let stamp = schema::stamp(&connection).map_err(sql("read the memory"))?;
        check_stamp(path, &stamp, version)?;
        make_private(path)?;
        set_up(&connection).map_err(sql("set up the memory"))?;
        if stamp.blank || stamp.version < version {
            schema::migrate(&mut connection, version).map_err(sql("bring up the memory"))?;
        }
        Ok(Self { connection, path: path.to_owned() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sql(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> Error {
        move |cause| Error::sql(action, &self.path, cause)
    }
}

/// Refuses a file that is no database before SQLite sees it.
fn check_magic(path: &Path) -> Result<(), Error> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut head))
        .map_err(|e| Error::io("read", path, e))?;
    if head.is_empty() || head == MAGIC {
        return Ok(());
    }
    Err(Error::Foreign { path: path.to_owned(), found: "it is no SQLite database".to_owned() })
}

fn check_stamp(path: &Path, stamp: &Stamp, known: i64) -> Result<(), Error> {
    let path = path.to_owned();
    if !stamp.blank && stamp.application_id != APPLICATION_ID {
        let found = format!("a SQLite database with application id {:#x}", stamp.application_id);
        return Err(Error::Foreign { path, found });
    }
    if stamp.version > known {
        return Err(Error::Newer { path, found: stamp.version, known });
    }
    Ok(())
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    // While another process starts the log, SQLite answers at once that it is busy.
    let mut tries = 0;
    loop {
        let set = connection
            .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0));
        match set {
            Ok(_) => break,
            Err(e) if tries < LOG_TRIES && is_busy(&e) => thread::sleep(LOG_WAIT),
            Err(e) => return Err(e),
        }
        tries += 1;
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "secure_delete", true)?;
    // Bounds what a hostile file may make SQLite do.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}

/// Makes an empty file that its owner alone may read, if there is none. SQLite gives its log the
/// same rights.
fn make_private_file(path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).map_err(|e| Error::io("create", folder, e))?;
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        // The name itself must outlive a crash too.
        Ok(_) => File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| Error::io("sync", folder, e)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::io("create", path, e)),
    }
}

/// Takes the rights of others away from a store that was copied carelessly.
fn make_private(path: &Path) -> Result<(), Error> {
    let mode = fs::metadata(path).map_err(|e| Error::io("look at", path, e))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), "others could read the memory; now they cannot");
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|e| Error::io("protect", path, e))
}
