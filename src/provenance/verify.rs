//! Reading a log back, and whether it is what was written (SPEC Z9).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aios_residency::plan::hex;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::ProvenanceError;
use super::log::Names;
use super::record::{Record, SCHEMA};
use super::storage::{Files, View};

/// Files are read in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.file.display(), self.line)
    }
}

/// What is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
#[expect(missing_docs, reason = "their messages name the fields")]
pub enum Fault {
    /// Records are gone.
    Missing { at: Place, from: u64, to: u64 },
    /// The record before is not the one that was there when this one was written.
    Changed { at: Place, id: u64 },
    /// A number that came before.
    Order { at: Place, id: u64, after: u64 },
    /// JSON that is no record of this version.
    Form { at: Place, reason: String },
    /// The record with the digest that was noted is not there: the tail was cut, or changed.
    Head { sha256: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { at, from, to } if from == to => {
                write!(f, "record {from} is missing before {at}")
            }
            Self::Missing { at, from, to } => {
                write!(f, "records {from} to {to} are missing before {at}")
            }
            Self::Changed { at, id } => write!(
                f,
                "{at}: record {id} does not follow from the one before it, which was changed or \
                 replaced after it was written"
            ),
            Self::Order { at, id, after } => {
                write!(f, "{at}: record {id} stands after record {after}")
            }
            Self::Form { at, reason } => write!(f, "{at}: {reason}"),
            Self::Head { sha256 } => write!(
                f,
                "no record has the digest {sha256}: records at the end were cut off or changed"
            ),
        }
    }
}

/// A line that a crash has torn. It was never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Torn {
    /// Where.
    #[serde(flatten)]
    pub at: Place,
    /// What there is of it.
    pub bytes: u64,
}

/// What a log was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Its files, in the order in which they were written.
    pub files: Vec<PathBuf>,
    /// Records.
    pub records: u64,
    /// The last one's number.
    pub last_id: Option<u64>,
    /// The last one's digest: what to note, so that a cut tail shows.
    pub head_sha256: Option<String>,
    /// Records after the one with the digest that was asked for.
    pub since_head: Option<u64>,
    /// Lines that crashes have torn.
    pub torn: Vec<Torn>,
    /// What is wrong; nothing, if it is whole.
    pub faults: Vec<Fault>,
}

/// What takes a record and its digest.
pub type Each<'a> = dyn FnMut(Record, &str) -> Result<(), ProvenanceError> + 'a;

/// The log at `path`, a file or a folder, read without changing anything: every record goes to
/// `each`, with its digest. With `head` the record of that digest must be there.
///
/// # Errors
/// [`ProvenanceError`], and those of `each`. What is wrong with the log is a [`Fault`], no error.
pub fn verify(
    path: &Path,
    head: Option<&str>,
    each: &mut Each<'_>,
) -> Result<Verified, ProvenanceError> {
    let (folder, names) = Names::locate(path);
    let failed = |source| ProvenanceError::io("read", &folder.join(names.present()), source);
    let mut view = match View::open(&folder, &names.lock()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ProvenanceError::Missing(folder.join(names.present())));
        }
        view => view.map_err(failed)?,
    };
    view.lock().map_err(failed)?;
    let verified = verify_in(&view, &folder, &names, head, each);
    view.unlock();
    verified
}

/// As [`verify`], in any storage.
///
/// # Errors
/// Those of [`verify`].
pub fn verify_in<S: Files>(
    storage: &S,
    folder: &Path,
    names: &Names,
    head: Option<&str>,
    each: &mut Each<'_>,
) -> Result<Verified, ProvenanceError> {
    let listed = storage.names().map_err(|source| ProvenanceError::io("list", folder, source))?;
    let (files, _) = names.order(&listed);
    if files.is_empty() {
        return Err(ProvenanceError::Missing(folder.join(names.present())));
    }
    let mut walk = Walk { verified: Verified::default(), head, each };
    for name in &files {
        let file = folder.join(name);
        lines(storage, name, &file, &mut |line, bytes| {
            walk.line(Place { file: file.clone(), line }, bytes)
        })?;
        walk.verified.files.push(file);
    }
    let Walk { mut verified, .. } = walk;
    if let (Some(head), None) = (head, verified.since_head) {
        verified.faults.push(Fault::Head { sha256: head.to_owned() });
    }
    Ok(verified)
}

type EachLine<'a> = dyn FnMut(u64, &[u8]) -> Result<(), ProvenanceError> + 'a;

/// Every line of a file that is not empty, with its number.
fn lines<S: Files>(
    storage: &S,
    name: &str,
    file: &Path,
    each: &mut EachLine<'_>,
) -> Result<(), ProvenanceError> {
    let mut rest: Vec<u8> = Vec::new();
    let (mut from, mut line) = (0, 0);
    loop {
        let read = storage.read(name, from, PIECE_BYTES);
        let piece = read.map_err(|source| ProvenanceError::io("read", file, source))?;
        from += piece.len() as u64;
        let ended = piece.is_empty();
        let known = rest.len();
        rest.extend(piece);
        let mut start = 0;
        let mut look = known;
        while let Some(at) = rest[look..].iter().position(|byte| *byte == b'\n') {
            line += 1;
            if look + at > start {
                each(line, &rest[start..look + at])?;
            }
            (start, look) = (look + at + 1, look + at + 1);
        }
        rest.drain(..start);
        if ended {
            return if rest.is_empty() { Ok(()) } else { each(line + 1, &rest) };
        }
    }
}

struct Walk<'a> {
    verified: Verified,
    head: Option<&'a str>,
    each: &'a mut Each<'a>,
}

impl Walk<'_> {
    fn line(&mut self, at: Place, bytes: &[u8]) -> Result<(), ProvenanceError> {
        let record = match serde_json::from_slice::<Record>(bytes) {
            Ok(record) if record.schema == SCHEMA => record,
            Ok(Record { schema, .. }) => {
                let reason = format!("a record of version {schema}; this program reads {SCHEMA}");
                self.verified.faults.push(Fault::Form { at, reason });
                return Ok(());
            }
            Err(error) => {
                // What is no JSON was torn; if it was a record that somebody made unreadable, the
                // next one does not follow.
                match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
                    Err(_) => self.verified.torn.push(Torn { at, bytes: bytes.len() as u64 }),
                    Ok(_) => {
                        let reason = format!("this is no provenance record: {error}");
                        self.verified.faults.push(Fault::Form { at, reason });
                    }
                }
                return Ok(());
            }
        };
        let sha256 = hex(&Sha256::digest(bytes));
        self.follows(at, &record);
        let verified = &mut self.verified;
        verified.records += 1;
        verified.last_id = Some(record.id);
        verified.since_head = verified.since_head.map(|count| count + 1);
        if self.head.is_some_and(|head| head.eq_ignore_ascii_case(&sha256)) {
            verified.since_head = Some(0);
        }
        (self.each)(record, &sha256)?;
        self.verified.head_sha256 = Some(sha256);
        Ok(())
    }

    /// Whether a record follows from the one before it.
    fn follows(&mut self, at: Place, record: &Record) {
        let last = self.verified.last_id.unwrap_or(0);
        let fault = match record.id {
            id if id > last + 1 => Fault::Missing { at, from: last + 1, to: id - 1 },
            id if id <= last => Fault::Order { at, id, after: last },
            id if record.prev_sha256 != self.verified.head_sha256 => Fault::Changed { at, id },
            _ => return,
        };
        self.verified.faults.push(fault);
    }
}
