//! How a harness hands over its report.

use std::io::{self, Write};
use std::path::PathBuf;

/// Prints a report to stdout: JSON if it was asked for, else the paths of the files that were
/// `written`, or where there are none the text.
///
/// # Errors
/// Those of stdout.
pub(super) fn deliver(
    written: Option<Vec<PathBuf>>,
    json: Option<&str>,
    markdown: impl FnOnce() -> String,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match (json, written) {
        (Some(json), _) => out.write_all(json.as_bytes()),
        (None, Some(paths)) => {
            paths.iter().try_for_each(|path| writeln!(out, "{}", path.display()))
        }
        (None, None) => out.write_all(markdown().as_bytes()),
    }
}
