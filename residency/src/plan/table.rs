//! A plan's tables: files that are mapped (SPEC D3).
//!
//! ```text
//! byte 0        8           12     16       24                     152    4096
//!      | magic  | version   | kind | length | 16 numbers of 8 bytes | zeros | body
//!        8 B      u32         u32    u64
//! ```

use super::PlanError;
use super::manifest::{TableEntry, hex};
use crate::mapping::Mapping;
use crate::panels::{claim, reserve};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"AIOSPLAN";
const VERSION: u32 = 1;
/// Numbers of a table's header.
pub const NUMBERS: usize = 16;
/// Where the body begins, at the start of a page.
const BODY: usize = 4096;

/// What a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Sketches of the output matrix's rows (SPEC D7).
    HeadSketch,
    /// Down projections stored neuron by neuron (SPEC D14).
    FfnNeurons,
    /// Magnitudes below which neurons are left out (SPEC D18).
    FfnThresholds,
}

impl TableKind {
    const ALL: [Self; 3] = [Self::HeadSketch, Self::FfnNeurons, Self::FfnThresholds];

    /// The name in the manifest, with which its file's name begins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HeadSketch => "head_sketch",
            Self::FfnNeurons => "ffn_neurons",
            Self::FfnThresholds => "ffn_thresholds",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::HeadSketch => 1,
            Self::FfnNeurons => 2,
            Self::FfnThresholds => 3,
        }
    }
}

/// A table, mapped and checked against the manifest.
#[derive(Debug)]
pub struct Table {
    kind: TableKind,
    mapping: Mapping,
    numbers: [u64; NUMBERS],
    sha256: String,
}

impl Table {
    /// Maps the table that `entry` describes and checks length, header and digest.
    ///
    /// # Errors
    /// [`PlanError`], which names the file.
    pub fn open(folder: &Path, entry: &TableEntry) -> Result<Self, PlanError> {
        let path = folder.join(&entry.file);
        let damaged = |what| PlanError::Damaged { path: path.clone(), what };
        let kind = TableKind::ALL.into_iter().find(|kind| kind.name() == entry.kind);
        let kind = kind.ok_or(damaged("its kind is not known"))?;
        // The name is the plan's own, not a way to somewhere else.
        if Path::new(&entry.file).components().count() != 1 || entry.file.starts_with('.') {
            return Err(damaged("its name is not that of a file in the folder"));
        }
        let mapping = Mapping::open(&path)?;
        let bytes = mapping.bytes();
        if bytes.len() as u64 != entry.bytes || bytes.len() < BODY {
            return Err(damaged("its length is not that of the manifest"));
        }
        let numbers = header_numbers(bytes).ok_or(damaged("its first bytes are no number"))?;
        if bytes[..BODY] != header(kind, entry.bytes, &numbers)[..] {
            return Err(damaged("its header is not that of such a table, or of another version"));
        }
        let sha256 = hex(&Sha256::digest(bytes));
        if sha256 != entry.sha256 {
            return Err(damaged("its SHA-256 is not that of the manifest"));
        }
        Ok(Self { kind, mapping, numbers, sha256 })
    }

    /// What it holds.
    pub const fn kind(&self) -> TableKind {
        self.kind
    }

    /// The numbers of its header.
    pub const fn numbers(&self) -> &[u64; NUMBERS] {
        &self.numbers
    }

    /// The SHA-256 of its file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Its body.
    pub fn body(&self) -> &[u8] {
        &self.mapping.bytes()[BODY..]
    }
}

fn header_numbers(bytes: &[u8]) -> Option<[u64; NUMBERS]> {
    let (words, _) = bytes.get(24..24 + 8 * NUMBERS)?.as_chunks::<8>();
    let words: &[[u8; 8]; NUMBERS] = words.first_chunk()?;
    Some(words.map(u64::from_le_bytes))
}

/// The bytes before the body.
fn header(kind: TableKind, length: u64, numbers: &[u64; NUMBERS]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(kind.number().to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes.resize(BODY, 0);
    bytes
}

/// A table that is being written. Dropped before [`TableWriter::finish`] it leaves nothing behind.
#[derive(Debug)]
pub struct TableWriter {
    folder: PathBuf,
    temporary: PathBuf,
    kind: TableKind,
    file: Option<BufWriter<File>>,
    written: u64,
    length: u64,
}

impl TableWriter {
    /// Starts a table with a body of `bytes` bytes in `folder`, which is made. Room for it is asked
    /// for at once, so that a full disk shows before the work is done.
    ///
    /// # Errors
    /// The operating system's: no room, no permission, another process that writes the same table.
    pub fn create(folder: &Path, kind: TableKind, bytes: u64) -> Result<Self, PlanError> {
        let temporary = folder.join(format!("{}.part", kind.name()));
        let write = |source| PlanError::Write { path: temporary.clone(), source };
        fs::create_dir_all(folder).map_err(write)?;
        let file = claim(&temporary).map_err(write)?;
        let length = bytes.saturating_add(BODY as u64);
        let mut writer = Self {
            folder: folder.to_owned(),
            temporary: temporary.clone(),
            kind,
            file: None,
            written: 0,
            length,
        };
        reserve(&file, length).map_err(write)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&[0; BODY]).map_err(write)?;
        writer.file = Some(file);
        Ok(writer)
    }

    /// Writes bytes of the body.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PlanError> {
        self.written += bytes.len() as u64;
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        written.map_err(|source| PlanError::Write { path: self.temporary.clone(), source })
    }

    /// Writes the header, hands everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// The operating system's.
    ///
    /// # Panics
    /// If the body is not whole.
    pub fn finish(mut self, numbers: &[u64; NUMBERS]) -> Result<TableEntry, PlanError> {
        assert_eq!(self.written + BODY as u64, self.length, "the body is whole");
        let header = header(self.kind, self.length, numbers);
        let path = self.temporary.clone();
        let sha256 = self.place(&header).map_err(|source| PlanError::Write { path, source })?;
        let file = file_name(self.kind, &sha256);
        Ok(TableEntry { kind: self.kind.name().to_owned(), file, bytes: self.length, sha256 })
    }

    fn place(&mut self, header: &[u8]) -> io::Result<String> {
        use std::os::unix::fs::FileExt as _;
        let Some(file) = self.file.take() else { return Ok(String::new()) };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.write_all_at(header, 0)?;
        file.sync_all()?;
        // The digest is of the file as it stands there: header first.
        let written = Mapping::open(&self.temporary).map_err(io::Error::other)?;
        let sha256 = hex(&Sha256::digest(written.bytes()));
        fs::rename(&self.temporary, self.folder.join(file_name(self.kind, &sha256)))?;
        self.temporary = PathBuf::new();
        Ok(sha256)
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn file_name(kind: TableKind, sha256: &str) -> String {
    format!("{}-{}.table", kind.name(), sha256.get(..16).unwrap_or_default())
}

/// Whether the file of `entry` has the name that a table of its kind and digest is given.
pub(super) fn has_own_name(entry: &TableEntry) -> bool {
    let digits = entry.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    let kind = TableKind::ALL.into_iter().find(|kind| kind.name() == entry.kind);
    digits
        && entry.sha256.len() == 64
        && kind.is_some_and(|kind| entry.file == file_name(kind, &entry.sha256))
}
