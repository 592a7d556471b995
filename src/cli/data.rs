//! `aios data`: what was kept, for people and for other programs.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use super::provenance::warn;
use crate::data::{Records, describe, write_csv, write_json};
use crate::provenance::Spread;

/// What was kept: described column by column, or as CSV or JSON.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios data stats provenance.ndjson
  aios data export provenance.ndjson --format csv -o answers.csv
  aios data export provenance.ndjson --format json | jq '.[].latency_ms'")]
pub(super) struct DataArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Stats(StatsArgs),
    Export(ExportArgs),
}

/// Say what every column holds: how many values, their spread, or which texts.
#[derive(Args, Debug)]
struct StatsArgs {
    /// A provenance file, or the folder of provenance.ndjson.
    #[arg(value_name = "FILE|FOLDER")]
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Write rows for another program.
#[derive(Args, Debug)]
#[command(after_help = "\
In CSV what is within an object has a dotted name (env.isa), null is an empty field, and a list is
its JSON. JSON is one array of the records as they are. Nothing is written over unless --force.")]
struct ExportArgs {
    /// A provenance file, or the folder of provenance.ndjson.
    #[arg(value_name = "FILE|FOLDER")]
    file: PathBuf,
    /// The form.
    #[arg(long, value_enum)]
    format: Format,
    /// Write to this file instead of stdout.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated values, RFC 4180.
    Csv,
    /// One JSON array.
    Json,
}

/// Runs `aios data`.
pub(super) fn run(args: &DataArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Stats(args) => stats(args),
        Command::Export(args) => export(args),
    }
}

fn stats(args: &StatsArgs) -> anyhow::Result<()> {
    let mut records = Records::new(args.file.clone());
    let description = describe(&mut records)?;
    records.verified().inspect(|verified| warn(verified));
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &description).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    writeln!(out, "{} rows", description.rows)?;
    for (name, column) in &description.columns {
        write!(out, "{:32} n {:<6}", name.escape_debug().to_string(), column.n)?;
        if let Some(Spread { min, p50, p95, max, mean, .. }) = column.numbers {
            write!(out, " min {min:.3}  p50 {p50:.3}  p95 {p95:.3}  max {max:.3}  mean {mean:.3}")?;
        }
        match &column.texts {
            Some(texts) => {
                let shown = |(text, n): (&String, &u64)| format!("{} ({n})", text.escape_debug());
                write!(out, " {}", texts.iter().map(shown).collect::<Vec<_>>().join(", "))?;
            }
            None if column.distinct > 0 => write!(out, " {} different texts", column.distinct)?,
            None => {}
        }
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let mut records = Records::new(args.file.clone());
    let mut write = |out: &mut dyn Write| match args.format {
        Format::Csv => write_csv(&mut records, out),
        Format::Json => write_json(&mut records, out),
    };
    match &args.output {
        None => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            write(&mut out)?;
            out.flush()?;
        }
        Some(path) => {
            let exists = path.exists() && !args.force;
            anyhow::ensure!(!exists, "{} exists; --force replaces it", path.display());
            whole(path, &mut write).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    records.verified().inspect(|verified| warn(verified));
    Ok(())
}

/// A file that has its name only when it is whole.
fn whole(
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let part = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    let mut out = io::BufWriter::new(part);
    write(&mut out)?;
    let part = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    let file: File = part.persist(path)?;
    Ok(file.sync_all()?)
}
