//! `aios results`: tables, pictures and a manuscript from provenance records.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::provenance::ExecutionMode;
use crate::results::{Goldens, Options, manuscript, read, write};

/// The name of the filled manuscript.
const MANUSCRIPT: &str = "manuscript.md";

/// Make tables, pictures and a manuscript from the records of 'aios bench-arch'.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios results --input provenance.ndjson --outdir out
  aios results --input provenance.ndjson --outdir out --bench nightly --execution-mode real
  aios results --input provenance.ndjson --outdir out --manuscript paper.md --allow-mixed

Into the folder go RESULTS.md, a CSV file for each table, each picture as SVG and PNG, and the
manuscript with its cells filled. Labels come from the labelled prompts, never from the records. A
record that lacks a figure, a log that is not whole, records of several execution modes or
revisions, and a cell of the manuscript without a value are errors that name them.")]
pub(super) struct ResultsArgs {
    /// A provenance file, or the folder of provenance.ndjson; may be given several times.
    #[arg(long, value_name = "FILE|FOLDER", required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// The folder to write into; files of the same names are replaced.
    #[arg(long, value_name = "FOLDER")]
    outdir: PathBuf,
    /// Only runs of the benchmark that have this in their name.
    #[arg(long, value_name = "TEXT")]
    bench: Option<String>,
    /// Only records of this execution mode.
    #[arg(long, value_enum, value_name = "MODE")]
    execution_mode: Option<Mode>,
    /// Let records of several execution modes or revisions stand beside each other, with labels.
    #[arg(long)]
    allow_mixed: bool,
    /// Labelled prompts as JSON lines with id, text and tier, instead of those of the program.
    #[arg(long, value_name = "PATH")]
    labels: Option<PathBuf>,
    /// Fill the [AUTO-GENERATED] cells of this Markdown file.
    #[arg(long, value_name = "TEMPLATE")]
    manuscript: Option<PathBuf>,
    /// What stands in the manuscript for another [NAME]; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, requires = "manuscript")]
    set: Vec<(String, String)>,
    /// Print JSON: what was written, and notes.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Models with trained weights.
    Real,
    /// Models with random weights.
    Synthetic,
    /// No model.
    Mock,
}

impl From<Mode> for ExecutionMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Real => Self::Real,
            Mode::Synthetic => Self::Synthetic,
            Mode::Mock => Self::Mock,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("this is no NAME=VALUE".to_owned()),
    }
}

/// Runs `aios results`.
pub(super) fn run(args: &ResultsArgs) -> anyhow::Result<()> {
    let goldens = Goldens::read(args.labels.as_deref())?;
    // A template that cannot be read should not cost the reading of long logs.
    let template = args.manuscript.as_deref().map(template).transpose()?;
    let options = Options {
        bench: args.bench.clone(),
        mode: args.execution_mode.map(Into::into),
        allow_mixed: args.allow_mixed,
    };
    let results = read(&args.input, &goldens, &options)?;
    let mut files = write(&results, &args.outdir)?.files;
    let mut notes = results.notes.clone();
    if let Some(template) = template {
        let given: BTreeMap<String, String> = args.set.iter().cloned().collect();
        let filled = manuscript::fill(&template, &results, &given)?;
        let path = args.outdir.join(MANUSCRIPT);
        std::fs::write(&path, filled.text)
            .with_context(|| format!("cannot write {}", path.display()))?;
        files.push(path);
        notes.extend(filled.notes);
        notes.extend(filled.left.into_iter().map(|place| {
            let name = place.trim_matches(['[', ']']);
            format!("{place} of the manuscript is left as it is; --set {name}=VALUE fills it")
        }));
    }
    deliver(args.json, &files, &notes)
}

fn template(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the template {}", path.display()))
}

fn deliver(json: bool, files: &[PathBuf], notes: &[String]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let report = json!({"files": files, "notes": notes});
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    files.iter().try_for_each(|path| writeln!(out, "{}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;
    use crate::provenance::ExecutionMode;
    use crate::results::testing::{log, requests};

    fn results(folder: &Path, more: &[&str]) -> anyhow::Result<()> {
        let command = ResultsArgs::augment_args(clap::Command::new("results"));
        let (log, out) = (folder.join("provenance.ndjson"), folder.join("out"));
        let args = ["results".as_ref(), "--input".as_ref(), log.as_os_str()].into_iter();
        let args = args.chain(["--outdir".as_ref(), out.as_os_str()]);
        let matches = command.try_get_matches_from(args.chain(more.iter().map(|s| s.as_ref())))?;
        run(&ResultsArgs::from_arg_matches(&matches)?)
    }

    #[test]
    fn report_and_manuscript_come_of_one_command() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut requests = requests(&["LLaMA", "Qwen", "Gemma", "Phi"]);
        for request in requests.iter_mut().take(3 * 180) {
            request.execution_mode = ExecutionMode::Real;
        }
        log(folder, requests);
        let template =
            concat!(env!("CARGO_MANIFEST_DIR"), "/validation/data/manuscript_template.md");
        let all = ["--manuscript", template, "--allow-mixed", "--set", "X=y"];
        results(folder, &all).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.join("out").join(name)).unwrap();
        assert!(read("RESULTS.md").contains("## Real, revision 8ac42e2f0123"));
        assert!(read("manuscript.md").contains("| Phi | 100.0 % (5/5) (mock) |"));
        let refused = results(folder, &all[..2]).unwrap_err().to_string();
        assert!(refused.contains("--allow-mixed"), "{refused}");
        let real = results(folder, &[&all[..2], &["--execution-mode", "real"]].concat());
        assert!(real.unwrap_err().to_string().contains("Routing accuracy / Phi / Trivial"));
        let missing = results(folder, &["--manuscript", "absent.md"]).unwrap_err().to_string();
        assert_eq!(missing, "cannot read the template absent.md");
    }
}
