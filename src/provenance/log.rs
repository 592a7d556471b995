//! The log: records appended to a file, one a line, each with the digest of the one before it
//! (SPEC Z6 to Z8).

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::ProvenanceError;
use super::record::{Record, Request, SCHEMA};
use super::storage::{Disk, Storage};
use aios_residency::plan::hex;

/// The file in a folder.
pub const FILE_NAME: &str = "provenance.ndjson";

/// A line is looked for backwards from a file's end in pieces of this size.
const TAIL_BYTES: usize = 64 << 10;

/// How a log is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The file, or a folder for one; no records are kept without it.
    pub path: Option<PathBuf>,
    /// A file that would grow beyond so many bytes gets another name, and a new one is begun.
    pub rotate_bytes: u64,
    /// Keep digests of token ids instead of the ids.
    pub private: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { path: None, rotate_bytes: 64 << 20, private: false }
    }
}

impl Options {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        if self.rotate_bytes < 4096 {
            return Err(format!("rotate_bytes is {}; it must be 4096 or more", self.rotate_bytes));
        }
        if self.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err("path is empty; name a file or a folder, or leave it out".to_owned());
        }
        Ok(())
    }
}

/// The names of a log's files: the present one, and those it was before.
#[derive(Clone, Debug)]
pub struct Names {
    stem: String,
    extension: String,
}

impl Names {
    /// Folder and names of the log at `path`, a file or a folder.
    pub fn locate(path: &Path) -> (PathBuf, Self) {
        let shown = path.as_os_str().as_encoded_bytes();
        let path = match path.is_dir() || shown.ends_with(b"/") {
            true => path.join(FILE_NAME),
            false => path.to_owned(),
        };
        let text = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let names = Self { stem: text(path.file_stem()), extension: text(path.extension()) };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        (folder.unwrap_or(Path::new(".")).to_owned(), names)
    }

    fn named(&self, middle: &str) -> String {
        match self.extension.as_str() {
            "" => format!("{}{middle}", self.stem),
            extension => format!("{}{middle}.{extension}", self.stem),
        }
    }

    /// The file that is written.
    pub fn present(&self) -> String {
        self.named("")
    }

    /// The lock beside it.
    pub fn lock(&self) -> String {
        format!(".{}.lock", self.present())
    }

    fn earlier(&self, number: u64) -> String {
        self.named(&format!(".{number:06}"))
    }

    /// The number of an earlier file, if `name` is the name of one.
    fn number(&self, name: &str) -> Option<u64> {
        let rest = name.strip_prefix(&self.stem)?.strip_prefix('.')?;
        let digits = match self.extension.as_str() {
            "" => rest,
            extension => rest.strip_suffix(extension)?.strip_suffix('.')?,
        };
        let number = digits.parse().ok()?;
        (self.earlier(number) == name).then_some(number)
    }

    /// The files that are there, in the order in which they were written, and the highest number.
    pub(super) fn order(&self, names: &[String]) -> (Vec<String>, u64) {
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| self.number(name)).collect();
        numbers.sort_unstable();
        let last = numbers.last().copied().unwrap_or(0);
        let earlier = numbers.into_iter().map(|number| self.earlier(number));
        let present = names.iter().find(|name| **name == self.present()).cloned();
        (earlier.chain(present).collect(), last)
    }
}

/// The end of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Head {
    /// The last record's number; 0 if there is none.
    id: u64,
    /// Its digest.
    sha256: Option<String>,
}

/// What is at the end of the present file.
struct Tail {
    length: u64,
    head: Head,
    /// Whether the last line lacks its line break.
    open: bool,
}

/// What was appended, and is on the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The record's number.
    pub id: u64,
    /// The SHA-256 of its line.
    pub sha256: String,
    /// The record itself.
    pub record: Record,
}

/// A log that records are appended to.
#[derive(Debug)]
pub struct Log<S = Disk> {
    storage: S,
    folder: PathBuf,
    names: Names,
    rotate_bytes: u64,
}

impl Log {
    /// The log at `path`, a file, or a folder in which it has the name [`FILE_NAME`]. Makes what is
    /// not there, so that a place that cannot be written is known before any work is done.
    ///
    /// # Errors
    /// [`ProvenanceError`], which names the place.
    pub fn open(path: &Path, rotate_bytes: u64) -> Result<Self, ProvenanceError> {
        let (folder, names) = Names::locate(path);
        let failed = |source| ProvenanceError::io("open", &folder.join(names.present()), source);
        let disk = Disk::open(&folder, &names.lock()).map_err(failed)?;
        let mut log = Self::new(disk, &folder, names, rotate_bytes);
        // Under the lock, since somebody who rotates leaves no file for a moment.
        log.locked(|log| {
            log.tail()?;
            let tried = OpenOptions::new().append(true).open(log.path());
            tried.map(|_| ()).map_err(|source| log.failed("write", source))
        })?;
        Ok(log)
    }
}

impl<S: Storage> Log<S> {
    /// A log in `storage`, whose place is called `folder` in errors.
    pub fn new(storage: S, folder: &Path, names: Names, rotate_bytes: u64) -> Self {
        Self { storage, folder: folder.to_owned(), names, rotate_bytes }
    }

    /// The file that is written.
    pub fn path(&self) -> PathBuf {
        self.folder.join(self.names.present())
    }

    /// Where it is kept.
    pub const fn storage(&self) -> &S {
        &self.storage
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> ProvenanceError {
        ProvenanceError::io(doing, &self.path(), source)
    }

    fn locked<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, ProvenanceError>,
    ) -> Result<T, ProvenanceError> {
        self.storage.lock().map_err(|source| self.failed("lock", source))?;
        let outcome = work(self);
        self.storage.unlock();
        outcome
    }

    /// Appends the record of `request`. When this returns a receipt, the record is on the disk;
    /// when it returns an error, the record was not acknowledged, and the next may be tried.
    ///
    /// # Errors
    /// [`ProvenanceError`].
    pub fn append(&mut self, request: Request) -> Result<Receipt, ProvenanceError> {
        self.locked(|log| log.append_locked(request))
    }

    fn append_locked(&mut self, request: Request) -> Result<Receipt, ProvenanceError> {
        let tail = self.tail()?;
        let id = tail.head.id + 1;
        let record = Record { schema: SCHEMA, id, prev_sha256: tail.head.sha256, request };
        let mut line = serde_json::to_vec(&record).map_err(ProvenanceError::Form)?;
        let sha256 = hex(&Sha256::digest(&line));
        line.push(b'\n');
        let mut length = tail.length;
        let mut open = tail.open;
        if length > 0 && length + line.len() as u64 > self.rotate_bytes {
            self.rotate()?;
            (length, open) = (0, false);
        }
        if open {
            // What was torn stays as it is, on a line of its own.
            line.insert(0, b'\n');
        }
        let present = self.names.present();
        if let Err(source) = self.storage.append(&present, &line) {
            // What may be there of it was not acknowledged. If it cannot be taken away either, it
            // is a torn line.
            let _ = self.storage.truncate(&present, length);
            return Err(self.failed("write", source));
        }
        Ok(Receipt { id, sha256, record })
    }

    /// The present file gets the next number, and an empty one takes its place.
    fn rotate(&mut self) -> Result<(), ProvenanceError> {
        let names = self.storage.names().map_err(|source| self.failed("list", source))?;
        let (_, last) = self.names.order(&names);
        let (present, earlier) = (self.names.present(), self.names.earlier(last + 1));
        let renamed = self.storage.rename(&present, &earlier);
        let outcome = renamed.and_then(|()| self.storage.create(&present));
        outcome.map_err(|source| self.failed("rotate", source))
    }

    /// The end of the chain, which other processes may have moved. Makes the file if there is none.
    fn tail(&mut self) -> Result<Tail, ProvenanceError> {
        let present = self.names.present();
        let length = self.storage.length(&present);
        let length = match length.map_err(|source| self.failed("look at", source))? {
            Some(length) => length,
            None => {
                let made = self.storage.create(&present);
                made.map_err(|source| self.failed("create", source))?;
                0
            }
        };
        let (found, open) = self.last_record(&present)?;
        if let Some(head) = found {
            return Ok(Tail { length, head, open });
        }
        // An empty file follows those before it.
        let names = self.storage.names().map_err(|source| self.failed("list", source))?;
        let (files, _) = self.names.order(&names);
        for name in files.iter().rev().filter(|name| **name != present) {
            if let (Some(head), _) = self.last_record(name)? {
                return Ok(Tail { length, head, open });
            }
        }
        Ok(Tail { length, head: Head::default(), open })
    }

    /// The last line of a file that is a record, and whether the file ends without a line break.
    fn last_record(&self, name: &str) -> Result<(Option<Head>, bool), ProvenanceError> {
        let failed = |source| ProvenanceError::io("read", &self.folder.join(name), source);
        let length = self.storage.length(name).map_err(failed)?.unwrap_or(0);
        let mut tail: Vec<u8> = Vec::new();
        let mut from = length;
        let mut open = false;
        loop {
            let step = TAIL_BYTES.max(tail.len()) as u64;
            let start = from.saturating_sub(step);
            let piece = usize::try_from(from - start).unwrap_or(usize::MAX);
            let mut bytes = self.storage.read(name, start, piece).map_err(failed)?;
            if from == length {
                open = bytes.last().is_some_and(|last| *last != b'\n');
            }
            bytes.append(&mut tail);
            (tail, from) = (bytes, start);
            // The first line of the tail may have begun before it.
            let whole = match from {
                0 => 0,
                _ => match tail.iter().position(|byte| *byte == b'\n') {
                    Some(at) => at + 1,
                    None => continue,
                },
            };
            let lines = tail[whole..].split(|byte| *byte == b'\n').rev();
            let head = lines.filter(|line| !line.is_empty()).find_map(head_of);
            if head.is_some() || from == 0 {
                return Ok((head, open));
            }
        }
    }
}

/// What the chain needs to know of a line; `None` if it is no record.
fn head_of(line: &[u8]) -> Option<Head> {
    #[derive(Deserialize)]
    struct Link {
        id: u64,
    }
    let link: Link = serde_json::from_slice(line).ok()?;
    Some(Head { id: link.id, sha256: Some(hex(&Sha256::digest(line))) })
}
