//! `aios memory import`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::super::Usage;
use super::super::progress::bar;
use super::{EmbedderArgs, StoreArgs, harmless, now_ms, print_json};
use crate::config::Config;
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::import::{files, read};
use crate::memory::{Error, Memory, Options};

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} files, {eta} left  {wide_msg}";

/// Keep documents, cut into fragments: text, Markdown, HTML and source code.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory import README.md docs/
  aios memory import --replace docs/    forget the earlier versions of what has changed
  aios memory import --json src/ --chunk-chars 1500

In a folder, files that cannot be imported (PDF, images, archives) are listed and passed over;
hidden ones and links are not looked at. A document whose content is kept is not kept twice.")]
pub(super) struct ImportArgs {
    /// Files and folders.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Forget the fragments of earlier versions of the same file.
    #[arg(long)]
    replace: bool,
    /// The most characters of a fragment [default: as aios.toml says, or 900].
    #[arg(long, value_name = "N")]
    chunk_chars: Option<usize>,
    /// The most characters that a fragment repeats of the one before it [default: as aios.toml
    /// says, or 120].
    #[arg(long, value_name = "N")]
    overlap_chars: Option<usize>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    embedder: EmbedderArgs,
}

/// What became of one document.
#[derive(Serialize)]
struct Row {
    source: String,
    kind: Option<&'static str>,
    encoding: Option<&'static str>,
    /// Whether the encoding is a guess.
    guessed: bool,
    fragments: usize,
    known_as: Option<String>,
    earlier_fragments: usize,
    replaced_fragments: usize,
    refused: Option<String>,
}

/// Runs `aios memory import`.
pub(super) fn run(args: &ImportArgs, config: &Config) -> anyhow::Result<()> {
    let options = Options {
        chunk_chars: args.chunk_chars.unwrap_or(config.memory.chunk_chars),
        overlap_chars: args.overlap_chars.unwrap_or(config.memory.overlap_chars),
        ..config.memory.clone()
    };
    options.check().map_err(|e| Usage(e.to_string()))?;
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let mut found = Vec::new();
    for path in &args.paths {
        // Two projects may each have a file of the same relative path.
        let path = &std::path::absolute(path).context("cannot tell where a path is")?;
        let of_folder = path.is_dir();
        found.extend(files(path)?.into_iter().map(|file| (file, of_folder)));
    }
    let memory = args.embedder.memory(args.store.open(config)?, options, config)?;
    let bar = bar(TEMPLATE);
    bar.set_length(found.len() as u64);
    let mut rows = Vec::new();
    for (path, of_folder) in &found {
        bar.set_message(harmless(&path.to_string_lossy()));
        let row = import(args, &memory, path, &interrupt);
        let row = match row {
            Err(error @ (Error::Refused { .. } | Error::Io { .. })) if *of_folder => {
                bar.suspend(|| eprintln!("passed over: {}", harmless(&error.to_string())));
                refused(path.to_string_lossy().into_owned(), &error)
            }
            Err(Error::Interrupted) => return Err(Interrupted.into()),
            row => row?,
        };
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.store.json { print_json(&rows) } else { Ok(print(&rows)?) }
}

fn import(
    args: &ImportArgs,
    memory: &Memory,
    path: &std::path::Path,
    interrupt: &Interrupt,
) -> Result<Row, Error> {
    let mut go_on = |_| if interrupt.is_set() { Err(Error::Interrupted) } else { Ok(()) };
    go_on(0)?;
    let parsed = read(path, memory.options())?;
    let (document, how) = (parsed.document(), (args.replace, now_ms()));
    let imported = memory.add_document(&document, &parsed.chunks, how, &mut go_on)?;
    Ok(Row {
        kind: Some(parsed.kind),
        encoding: Some(parsed.encoding),
        guessed: parsed.guessed,
        fragments: imported.fragments.len(),
        known_as: imported.known_as,
        earlier_fragments: imported.earlier,
        replaced_fragments: imported.replaced,
        refused: None,
        source: parsed.source,
    })
}

fn refused(source: String, error: &Error) -> Row {
    Row {
        source,
        kind: None,
        encoding: None,
        guessed: false,
        fragments: 0,
        known_as: None,
        earlier_fragments: 0,
        replaced_fragments: 0,
        refused: Some(error.to_string()),
    }
}

fn print(rows: &[Row]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for row in rows.iter().filter(|row| row.refused.is_none()) {
        let source = harmless(&row.source);
        if let Some(known) = &row.known_as {
            writeln!(out, "{:>5}  {source}: known as {}", 0, harmless(known))?;
            continue;
        }
        write!(out, "{:>5}  {source}", row.fragments)?;
        if let (Some(encoding), true) = (row.encoding, row.guessed) {
            write!(out, "; read as {encoding}, a guess")?;
        }
        match (row.replaced_fragments, row.earlier_fragments) {
            (0, 0) => {}
            (0, n) => write!(out, "; {n} fragments of earlier versions are kept (--replace)")?,
            (n, _) => write!(out, "; {n} fragments of earlier versions are forgotten")?,
        }
        writeln!(out)?;
    }
    let count = |which: fn(&&Row) -> bool| rows.iter().filter(which).count();
    writeln!(
        out,
        "{} fragments of {} documents are new; {} documents were known, {} files were refused.",
        rows.iter().map(|row| row.fragments).sum::<usize>(),
        count(|row| row.fragments > 0),
        count(|row| row.known_as.is_some()),
        count(|row| row.refused.is_some()),
    )
}
