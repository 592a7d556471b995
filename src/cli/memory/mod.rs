//! `aios memory`: fragments that are kept and found again.

mod add;
mod bench;
mod evaluate;
mod import;
mod manage;
mod search;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::memory::{Embedder, Memory, Options, Store, default_store};

/// Keep texts and find those that a question is about.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory import notes/ README.md        keep documents, cut into fragments
  aios memory add 'The ferry leaves at nine'  keep a fragment
  aios memory search when does the ferry leave
  aios memory stats --check                  what there is, and whether the file is sound
  aios memory forget --source notes/old.md
  aios memory export -o fragments.jsonl

The store is one file, memory.sqlite3 in AIOS_DATA_DIR, XDG_DATA_HOME/aios or ~/.local/share/aios,
unless --store names another. Nothing is deleted but by 'forget' and 'import --replace'.")]
pub(super) struct MemoryCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Add(add::AddArgs),
    Import(import::ImportArgs),
    Search(search::SearchArgs),
    Stats(manage::StatsArgs),
    Embed(manage::EmbedArgs),
    Forget(manage::ForgetArgs),
    Export(manage::ExportArgs),
    Evaluate(evaluate::EvaluateArgs),
    Bench(bench::BenchArgs),
}

/// Which store, and how to print.
#[derive(Args, Clone, Debug)]
struct StoreArgs {
    /// The file of the store.
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Which model makes vectors. This is the one place where an embedder joins the commands of memory;
/// without one, words alone decide, and every answer says so (SPEC.md, V11).
#[derive(Args, Clone, Debug)]
struct EmbedderArgs {}

/// Runs `aios memory`.
pub(super) fn run(command: &MemoryCommand) -> anyhow::Result<()> {
    match &command.action {
        Action::Add(args) => add::run(args),
        Action::Import(args) => import::run(args),
        Action::Search(args) => search::run(args),
        Action::Stats(args) => manage::stats(args),
        Action::Embed(args) => manage::embed(args),
        Action::Forget(args) => manage::forget(args),
        Action::Export(args) => manage::export(args),
        Action::Evaluate(args) => evaluate::run(args),
        Action::Bench(args) => bench::run(args),
    }
}

impl StoreArgs {
    fn path(&self) -> anyhow::Result<PathBuf> {
        Ok(match &self.store {
            Some(path) => path.clone(),
            None => default_store()?,
        })
    }

    /// The store, made if there is none.
    fn open(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.path()?)?)
    }

    /// The store, which must be there.
    fn open_existing(&self) -> anyhow::Result<Store> {
        Ok(Store::open_existing(&self.path()?)?)
    }
}

impl EmbedderArgs {
    fn embedder(&self) -> anyhow::Result<Option<Arc<dyn Embedder>>> {
        Ok(None)
    }

    fn memory(&self, store: Store, options: Options) -> anyhow::Result<Arc<Memory>> {
        Ok(Arc::new(Memory::new(store, self.embedder()?, options)?))
    }
}

/// The time, in milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A day and a time of `ms`, for people.
fn day(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(
        |_| format!("{ms} ms after 1970"),
        |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Text of a document on a terminal: control characters, which could do things there, are spelled
/// out, but for ends of lines and tabs.
fn harmless(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_nothing() {
        assert_eq!(harmless("a\n\u{1b}[31mé\u{9b}"), "a\n\\u{1b}[31mé\\u{9b}");
        assert_eq!(day(0), "1970-01-01 00:00 UTC");
    }
}
