//! How a harness hands over its report.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Sees that a report can be written into `folder` before work begins that may take an hour; the
/// folder is made if it is not there.
///
/// # Errors
/// The folder, and why not.
pub(super) fn prepare(folder: Option<&Path>) -> anyhow::Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    let probe = || {
        std::fs::create_dir_all(folder)?;
        tempfile::NamedTempFile::new_in(folder).map(drop)
    };
    probe().with_context(|| format!("cannot write into {}", folder.display()))
}

/// Prints a report to stdout: JSON if it was asked for, else the paths of the files that were
/// `written`, or where there are none the text. If writing them has failed, the text is all that is
/// left of the work, and is printed too.
///
/// # Errors
/// Those of stdout, and that of writing the files.
pub(super) fn deliver(
    written: Option<anyhow::Result<Vec<PathBuf>>>,
    json: Option<&str>,
    markdown: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let printed = match (json, &written) {
        (Some(json), _) => out.write_all(json.as_bytes()),
        (None, Some(Ok(paths))) => {
            paths.iter().try_for_each(|path| writeln!(out, "{}", path.display()))
        }
        (None, Some(Err(_)) | None) => out.write_all(markdown().as_bytes()),
    };
    // A reader that has seen enough is no error, but files that are missing are.
    written.transpose()?;
    Ok(printed?)
}
