//! The report: RESULTS.md, a CSV file for each table, SVG and PNG of each picture.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::ResultsError;
use super::pictures::pictures;
use super::stratum::Results;
use super::tables::tables;

/// Files that were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// RESULTS.md.
    pub report: PathBuf,
    /// All of them.
    pub files: Vec<PathBuf>,
}

/// The report as Markdown. It names the pictures that [`write()`] writes beside it.
pub fn markdown(results: &Results) -> String {
    let mut out = "# Results\n\n\
        Made by `aios results` from provenance records. Intervals hold 95 %; those of medians, \
        quantiles and means are of the bootstrap over prompts (2000 draws, a fixed seed), in which \
        repeats of a prompt are drawn together.\n\n"
        .to_owned();
    for note in &results.notes {
        out += &format!("- {}\n", note.replace(['\n', '\r', '<'], " "));
    }
    if !results.notes.is_empty() {
        out.push('\n');
    }
    if results.strata.len() > 1 {
        out += "**Records of several modes or revisions stand beside each other here. Figures of \
                different chapters are not comparable.**\n\n";
    }
    for (condition, stratum) in &results.strata {
        let label = condition.label();
        let (first, rest) = label.split_at(1);
        out += &format!("## {}{rest}\n\n", first.to_uppercase());
        let failed: u64 = stratum.surroundings.iter().map(|s| s.failed).sum();
        out += &format!(
            "{} answers; {failed} failed attempts, of which {} cases were never answered.\n\n",
            stratum.answers.len(),
            stratum.unanswered
        );
        tables(stratum).iter().for_each(|table| out += &table.markdown(3));
    }
    let shown = pictures(results);
    if !shown.is_empty() {
        out += "## Pictures\n\n";
    }
    for (file, dots) in shown {
        out += &format!("![{}, {}]({file}.svg)\n\n", dots.title, dots.axis);
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

/// Writes the report into `folder`, which is made if it is not there. Files of the same names are
/// replaced.
///
/// # Errors
/// [`ResultsError::Io`], [`ResultsError::Plot`].
pub fn write(results: &Results, folder: &Path) -> Result<Written, ResultsError> {
    fs::create_dir_all(folder).map_err(|source| ResultsError::io("make", folder, source))?;
    let mut written = Written { report: folder.join("RESULTS.md"), files: Vec::new() };
    let mut put = |name: String, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| ResultsError::io("write", &path, source))?;
        written.files.push(path);
        Ok::<(), ResultsError>(())
    };
    put("RESULTS.md".to_owned(), markdown(results).as_bytes())?;
    for (name, csv) in csvs(results) {
        put(format!("{name}.csv"), &csv)?;
    }
    for (file, dots) in pictures(results) {
        put(format!("{file}.svg"), dots.svg()?.as_bytes())?;
        put(format!("{file}.png"), &dots.png()?)?;
    }
    Ok(written)
}

/// A file for each table; every row says of which mode and revision it is.
fn csvs(results: &Results) -> Vec<(&'static str, Vec<u8>)> {
    let mut files: Vec<(&'static str, Vec<u8>)> = Vec::new();
    for (condition, stratum) in &results.strata {
        for (index, table) in tables(stratum).iter().enumerate() {
            if index == files.len() {
                files.push((table.name, Vec::new()));
                // Writing to memory does not fail.
                let _ = table.csv_head(&["execution_mode", "git_rev"], &mut files[index].1);
            }
            let first = [condition.mode.name(), &condition.revision];
            let _ = table.csv_rows(&first, &mut files[index].1);
        }
    }
    files
}
