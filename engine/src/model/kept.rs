//! What a folder of repacked weights holds, for people who want their disk back.

use aios_residency::panel_origin;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// The ending of a file of repacked weights, and of one that is being written.
const ENDINGS: [&str; 2] = ["panels", "part"];
/// The ending of the note beside it.
const NOTE: &str = "source";
/// No path is longer.
const NOTE_BYTES_MAX: u64 = 4096;

/// A file of repacked weights. Nothing but disk is lost with it: the next run of its model makes
/// it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepackedFile {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of the model that it was made from; `None` if it is not whole.
    pub source_sha256: Option<[u8; 32]>,
    /// Where that model was when it was last loaded; `None` if that is not known.
    pub source: Option<PathBuf>,
}

/// The files of repacked weights in `folder`, by name; none if there is no such folder. Files of
/// another kind are left out.
///
/// # Errors
/// The operating system's, if the folder cannot be looked into.
pub fn repacked_files(folder: &Path) -> io::Result<Vec<RepackedFile>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Ok(meta) = fs::metadata(&path) else { continue };
        let ending = path.extension().and_then(OsStr::to_str);
        if meta.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            let source_sha256 = panel_origin(&path).map(|origin| origin.digest);
            files.push(RepackedFile {
                bytes: meta.len(),
                source_sha256,
                source: noted(&path),
                path,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Notes beside the repacked weights at `panels` that they are those of the model at `source`.
/// Nothing depends on the note, so that one which cannot be written is no error.
pub(super) fn note(panels: &Path, source: &Path) {
    let Ok(source) = fs::canonicalize(source) else { return };
    if noted(panels).as_ref() != Some(&source)
        && let Err(error) = fs::write(panels.with_extension(NOTE), source.as_os_str().as_bytes())
    {
        tracing::debug!(%error, "no note of what was repacked");
    }
}

fn noted(panels: &Path) -> Option<PathBuf> {
    let path = panels.with_extension(NOTE);
    let sane = fs::metadata(&path).ok()?.len() <= NOTE_BYTES_MAX;
    let bytes = fs::read(&path).ok().filter(|bytes| sane && !bytes.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(bytes)))
}
