//! Plans: folders of what was decided once about a model (SPEC D). A manifest says what a plan was
//! made from and measured; its tables are mapped. What a table means is the caller's business; this
//! module makes sure that a plan is whole, unchanged, and of this model and machine.

mod check;
mod manifest;
mod table;
#[cfg(test)]
mod tests;

pub use manifest::{
    FfnReport, Hardware, HeadMatrix, KeepReport, Manifest, MemoryReport, PrefetchReport, Quality,
    SCHEMA, ScreenReport, Screened, Source, TableEntry, ThresholdPoint, ThresholdReport, Times,
    hex,
};
pub use table::{NUMBERS, Table, TableKind, TableWriter};

use crate::mapping::MapError;
use check::check;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";
/// The longest manifest, in bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// The farthest that weights are asked for ahead of their use, in bytes.
pub const AHEAD_MOST: usize = 1 << 16;
/// The most positions of a pass whose head is ever screened.
pub const POSITIONS_MOST: usize = 8;

/// Why a plan cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There is none.
    #[error("there is no plan in {}", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// The manifest could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The manifest is not such a one.
    #[error("{}: {what}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        what: String,
    },
    /// The manifest has another version.
    #[error("{}: schema {found} is not {SCHEMA}, which this program reads", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// The version.
        found: u64,
    },
    /// A table is not what the manifest says.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A table could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// It was made for something else.
    #[error("it was made {what}")]
    Stale {
        /// From what, or where.
        what: String,
    },
    /// It could not be written.
    #[error("{}: {source}{}", path.display(), remedy(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// What helps where a plan cannot be written.
fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            "; make room there, or have the plan written to a folder on another disk with --out"
        }
        PermissionDenied | ReadOnlyFilesystem => {
            "; have the plan written to a folder of yours with --out"
        }
        _ => "",
    }
}

/// A plan, its tables mapped.
#[derive(Debug)]
pub struct Plan {
    /// Its folder.
    pub folder: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Its tables, in the manifest's order.
    pub tables: Vec<Table>,
}

impl Plan {
    /// Opens the plan in `folder` for a model whose files have this stamp, on this machine.
    ///
    /// # Errors
    /// [`PlanError`], which says what is wrong.
    pub fn open(folder: &Path, stamp: &[u8; 32], hardware: &Hardware) -> Result<Self, PlanError> {
        let manifest = read_manifest(folder)?;
        let stale = |what: String| Err(PlanError::Stale { what });
        if manifest.source.stamp != hex(stamp) {
            return stale("from another state of the model's files".to_owned());
        }
        if manifest.hardware != *hardware {
            let was = describe(&manifest.hardware);
            return stale(format!("on another machine ({was}; here: {})", describe(hardware)));
        }
        let open = |entry| Table::open(folder, entry);
        let tables = manifest.tables.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { folder: folder.to_owned(), manifest, tables })
    }
}

fn describe(hardware: &Hardware) -> String {
    let Hardware { cpu, isa, processors, llc_bytes } = hardware;
    let cpu = cpu.as_deref().unwrap_or("a processor without a name");
    let cache = llc_bytes.map_or(String::new(), |bytes| format!(", {} MiB cache", bytes >> 20));
    format!("{cpu}, {isa}, {processors} processors{cache}")
}

/// Reads the manifest in `folder`, whatever it was made for.
///
/// # Errors
/// [`PlanError`].
pub fn read_manifest(folder: &Path) -> Result<Manifest, PlanError> {
    let path = folder.join(MANIFEST);
    let read = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => PlanError::Missing { path: folder.to_owned() },
        _ => PlanError::Read { path: path.clone(), source },
    };
    let wrong = |what: String| PlanError::Manifest { path: path.clone(), what };
    // Opening a pipe would wait for a writer, so the kind is looked at first.
    if !fs::metadata(&path).map_err(read)?.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(read)?;
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(wrong(format!("it has more than {MANIFEST_BYTES_MAX} bytes")));
    }
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(SCHEMA) => {
            Err(PlanError::Schema { path: path.clone(), found })
        }
        _ => {
            let manifest: Manifest =
                serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
            check(&manifest).map_err(|what| wrong(what.to_owned()))?;
            Ok(manifest)
        }
    }
}

/// Gives `folder`, in which the tables are, its manifest; files of the tables before it are
/// removed.
///
/// # Errors
/// [`PlanError::Write`].
pub fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<(), PlanError> {
    let path = folder.join(MANIFEST);
    let old = read_manifest(folder).map(|old| old.tables).unwrap_or_default();
    let write = |source| PlanError::Write { path: path.clone(), source };
    let mut json =
        serde_json::to_vec_pretty(manifest).map_err(|error| write(io::Error::other(error)))?;
    json.push(b'\n');
    let temporary = folder.join(format!("{MANIFEST}.part"));
    let written = (|| {
        // A plan without tables has no folder yet.
        fs::create_dir_all(folder)?;
        let mut file = File::create(&temporary)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    })();
    if let Err(source) = written {
        // Nothing more can be done about a file that cannot be removed.
        let _ = fs::remove_file(&temporary);
        return Err(write(source));
    }
    for entry in old {
        // What the manifest says is a table may be any file; only tables have such names.
        let own = table::has_own_name(&entry);
        if own && manifest.tables.iter().all(|table| table.file != entry.file) {
            // A table that stays takes room, and nothing else.
            let _ = fs::remove_file(folder.join(entry.file));
        }
    }
    Ok(())
}
