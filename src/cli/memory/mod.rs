//! `aios memory`: fragments that are kept and found again.

mod add;
mod bench;
mod evaluate;
mod import;
mod manage;
mod search;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aios_engine::{Encoder, EncoderOptions};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::model_file;
use crate::config::{Config, Loaded, ModelRole, Place};
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::{Embedder, Encoding, Error, Memory, Options, Store, default_store, now_ms};

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

/// Which model makes vectors. Without one, words alone decide, and every answer says so (SPEC.md,
/// V11).
#[derive(Args, Clone, Debug, Default)]
pub(super) struct EmbedderArgs {
    /// An encoder's GGUF file, or the name of one in the catalogue, such as all-minilm-l6-v2:
    /// fragments are then found by meaning, too. Those that have no vector yet get one by
    /// 'aios memory embed'.
    #[arg(long, value_name = "FILE|NAME")]
    embedder: Option<String>,
}

/// Runs `aios memory` with the configuration at `place`.
pub(super) fn run(command: &MemoryCommand, place: &Place) -> anyhow::Result<()> {
    let config = &Loaded::load(place)?.config;
    match &command.action {
        Action::Add(args) => add::run(args, config),
        Action::Import(args) => import::run(args, config),
        Action::Search(args) => search::run(args, config),
        Action::Stats(args) => manage::stats(args, config),
        Action::Embed(args) => manage::embed(args, config),
        Action::Forget(args) => manage::forget(args, config),
        Action::Export(args) => manage::export(args, config),
        Action::Evaluate(args) => evaluate::run(args),
        Action::Bench(args) => bench::run(args),
    }
}

/// The file of the store: the one that is named, else that of the configuration, else the usual
/// one.
///
/// # Errors
/// Those of [`default_store`].
pub(super) fn store_path(named: Option<&Path>, config: &Config) -> Result<PathBuf, Error> {
    match named.or(config.memory.store.as_deref()) {
        Some(path) => Ok(path.to_owned()),
        None => default_store(),
    }
}

impl StoreArgs {
    /// The store, made if there is none.
    fn open(&self, config: &Config) -> anyhow::Result<Store> {
        Ok(Store::open(&store_path(self.store.as_deref(), config)?)?)
    }

    /// The store, which must be there.
    fn open_existing(&self, config: &Config) -> anyhow::Result<Store> {
        Ok(Store::open_existing(&store_path(self.store.as_deref(), config)?)?)
    }
}

impl EmbedderArgs {
    /// The embedder that the command line names, if it names one.
    fn embedder(&self) -> anyhow::Result<Option<Arc<dyn Embedder>>> {
        self.embedder.as_deref().map(Self::load).transpose()
    }

    /// The same, or else the configuration's.
    fn or_configured(&self, config: &Config) -> anyhow::Result<Option<Arc<dyn Embedder>>> {
        let configured = || config.named(ModelRole::Embedder);
        self.embedder.clone().or_else(configured).map(|name| Self::load(&name)).transpose()
    }

    /// The same for answers, which come without vectors where the configuration's embedder cannot
    /// be used; that is said.
    pub(super) fn for_answers(&self, config: &Config) -> anyhow::Result<Option<Arc<dyn Embedder>>> {
        match self.or_configured(config) {
            Err(error) if self.embedder.is_none() && !error.is::<Interrupted>() => {
                eprintln!("memory goes by words alone: {error:#}");
                Ok(None)
            }
            outcome => outcome,
        }
    }

    fn load(name: &str) -> anyhow::Result<Arc<dyn Embedder>> {
        let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
        let path = model_file(name, &interrupt)?;
        let encoder = Encoder::load(&path, EncoderOptions::default())?;
        Ok(Arc::new(Encoding::new(name, encoder)))
    }

    fn memory(
        &self,
        store: Store,
        options: Options,
        config: &Config,
    ) -> anyhow::Result<Arc<Memory>> {
        Ok(Arc::new(Memory::new(store, self.or_configured(config)?, options)?))
    }
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
