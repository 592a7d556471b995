//! `aios memory stats`, `embed`, `forget` and `export`.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::super::Usage;
use super::super::progress::bar;
use super::{EmbedderArgs, StoreArgs, day, harmless, print_json};
use crate::config::Config;
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::{Check, Error, Selection, Stats, Store};

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} fragments, {eta} left";

/// Say what a store holds.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory stats
  aios memory stats --check --json

--check looks at every page, and whether fragments, search index and vectors agree; it ends with 1
if something is wrong.")]
pub(super) struct StatsArgs {
    /// Look whether the file is sound.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Give vectors to fragments that have none of the embedder in use.
#[derive(Args, Debug)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    embedder: EmbedderArgs,
}

/// Forget fragments, and overwrite their bytes in the file.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory forget 12 13
  aios memory forget --source notes/old.md
  aios memory forget --all --yes")]
pub(super) struct ForgetArgs {
    /// Numbers of fragments.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// All fragments of a source: a name, or the path of a file.
    #[arg(long, value_name = "NAME", conflicts_with = "ids")]
    source: Option<String>,
    /// Everything.
    #[arg(long, conflicts_with_all = ["ids", "source"], requires = "yes")]
    all: bool,
    /// Yes, everything.
    #[arg(long, requires = "all")]
    yes: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Print all fragments, a JSON object on each line.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory export | grep ferry
  aios memory export -o fragments.jsonl

'aios memory add --jsonl' reads what this prints. Numbers, times and uses are not taken over, and
vectors are made anew.")]
pub(super) struct ExportArgs {
    /// Write to a file that its owner alone can read, which is replaced when all is written.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// The file of the store.
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// For the sake of the other commands; the output is JSON in any case.
    #[arg(long, hide = true)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    stats: Stats,
    check: Option<Check>,
}

/// Runs `aios memory stats`.
pub(super) fn stats(args: &StatsArgs, config: &Config) -> anyhow::Result<()> {
    let store = args.store.open_existing(config)?;
    let check = if args.check { Some(store.check()?) } else { None };
    let report = Report { stats: store.stats()?, check };
    if args.store.json {
        print_json(&report)?;
    } else {
        print_stats(&report)?;
    }
    match report.check {
        Some(Check { faults }) if !faults.is_empty() => {
            let found = faults.join("; ");
            Err(Error::Damaged { path: store.path().to_owned(), found }.into())
        }
        _ => Ok(()),
    }
}

fn print_stats(report: &Report) -> io::Result<()> {
    let Report { stats, check } = report;
    let mut out = io::stdout().lock();
    writeln!(out, "{} (schema {})", harmless(&stats.path), stats.schema_version)?;
    writeln!(
        out,
        "  {} fragments of {} documents and notes, {} characters, {:.1} MB on disk",
        stats.fragments,
        stats.documents,
        stats.chars,
        stats.bytes as f64 / 1e6
    )?;
    if let Some((oldest, newest)) = stats.created_ms {
        writeln!(out, "  stored from {} to {}", day(oldest), day(newest))?;
    }
    writeln!(
        out,
        "  {} have served answers, {} times in all; {} links",
        stats.used_fragments, stats.uses, stats.links
    )?;
    for embedder in &stats.embedders {
        let name = harmless(&embedder.name);
        writeln!(out, "  {} have vectors of {name} ({})", embedder.vectors, embedder.dim)?;
    }
    for source in &stats.largest_sources {
        writeln!(out, "  {:>7}  {}", source.fragments, harmless(&source.source))?;
    }
    match check {
        Some(check) if check.faults.is_empty() => writeln!(out, "  The file is sound."),
        _ => Ok(()),
    }
}

/// Runs `aios memory embed`.
pub(super) fn embed(args: &EmbedArgs, config: &Config) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let store = args.store.open_existing(config)?;
    let fragments = store.count()?;
    let memory = args.embedder.memory(store, config.memory.clone(), config)?;
    if memory.embedder().is_none() {
        let said = "no embedder is present: name one with --embedder, or in aios.toml";
        return Err(Usage(said.to_owned()).into());
    }
    let bar = bar(TEMPLATE);
    bar.set_length(fragments);
    let outcome = memory.embed_missing(&mut |done| {
        bar.set_position(done as u64);
        if interrupt.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    });
    bar.finish_and_clear();
    let embedded = match outcome {
        Err(Error::Interrupted) => return Err(Interrupted.into()),
        outcome => outcome?,
    };
    if args.store.json {
        return print_json(&serde_json::json!({ "embedded": embedded, "fragments": fragments }));
    }
    writeln!(io::stdout(), "{embedded} of {fragments} fragments were given a vector.")?;
    Ok(())
}

/// Runs `aios memory forget`.
pub(super) fn forget(args: &ForgetArgs, config: &Config) -> anyhow::Result<()> {
    let selection = match (&args.source, args.all) {
        (Some(source), _) => Selection::Source(source.clone()),
        (None, true) => Selection::All,
        (None, false) if args.ids.is_empty() => {
            let said = "say what to forget: numbers, --source NAME or --all --yes";
            return Err(Usage(said.to_owned()).into());
        }
        (None, false) => Selection::Ids(args.ids.clone()),
    };
    let mut store = args.store.open_existing(config)?;
    let mut forgotten = store.forget(&selection)?;
    if let (0, Some(source)) = (forgotten, &args.source)
        && let Ok(path) = std::path::absolute(source)
    {
        // Files are known by their whole path.
        forgotten = store.forget(&Selection::Source(path.to_string_lossy().into_owned()))?;
    }
    if args.store.json {
        return print_json(&serde_json::json!({ "forgotten": forgotten }));
    }
    writeln!(io::stdout(), "{forgotten} fragments are forgotten.")?;
    Ok(())
}

/// Runs `aios memory export`.
pub(super) fn export(args: &ExportArgs, config: &Config) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let which = StoreArgs { store: args.store.clone(), json: args.json };
    let store = which.open_existing(config)?;
    let Some(path) = &args.output else {
        return write_all(&store, &mut io::stdout().lock(), &interrupt);
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let named = || format!("cannot write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(named)?;
    write_all(&store, file.as_file_mut(), &interrupt)?;
    file.as_file().sync_all().with_context(named)?;
    file.persist(path).with_context(named)?;
    eprintln!("{} fragments are in {}.", store.count()?, path.display());
    Ok(())
}

fn write_all(store: &Store, out: &mut dyn Write, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut out = BufWriter::new(out);
    store.each_fragment(&mut |fragment| -> anyhow::Result<()> {
        if interrupt.is_set() {
            return Err(Interrupted.into());
        }
        serde_json::to_writer(&mut out, &fragment).map_err(io::Error::from)?;
        Ok(writeln!(out)?)
    })?;
    Ok(out.flush()?)
}
