//! `aios memory add`.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use super::super::Usage;
use super::{EmbedderArgs, StoreArgs, now_ms};
use crate::config::Config;
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::{Added, Chunk, Memory};

/// Keep a fragment, or one for each line of stdin.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory add 'The ferry leaves at nine in winter' --source harbour
  git log -1 --format=%B | aios memory add --source commits
  aios memory export | aios memory add --jsonl --store copy.sqlite3

Prints the number of the fragment once it is on the disk. With --jsonl each line of stdin is an
object with `text` and perhaps `source` and `title`, and each is acknowledged by a line. A text that
is kept already is not kept twice: the number is that of the first.")]
pub(super) struct AddArgs {
    /// The text [default: stdin].
    #[arg(conflicts_with = "jsonl")]
    text: Option<String>,
    /// Where it comes from.
    #[arg(long, value_name = "NAME", default_value = "note")]
    source: String,
    /// What stands above it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    title: String,
    /// Read an object on each line of stdin.
    #[arg(long)]
    jsonl: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    embedder: EmbedderArgs,
}

/// A line of `--jsonl`. What `aios memory export` says beyond it is not taken over.
#[derive(Deserialize)]
struct Line {
    text: String,
    source: Option<String>,
    title: Option<String>,
}

/// Runs `aios memory add`.
pub(super) fn run(args: &AddArgs, config: &Config) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let memory = args.embedder.memory(args.store.open(config)?, config.memory.clone(), config)?;
    if args.jsonl {
        return each_line(args, &memory, &interrupt);
    }
    let text = match &args.text {
        Some(text) => text.clone(),
        None if io::stdin().is_terminal() => {
            return Err(Usage("give a text, or pipe one in".to_owned()).into());
        }
        None => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).context("cannot read stdin")?;
            text
        }
    };
    add(args, &memory, &args.source, Chunk { title: args.title.clone(), text })
}

fn each_line(args: &AddArgs, memory: &Memory, interrupt: &Interrupt) -> anyhow::Result<()> {
    for (number, line) in (1..).zip(io::stdin().lock().lines()) {
        if interrupt.is_set() {
            return Err(Interrupted.into());
        }
        let named = || format!("line {number} of stdin cannot be kept");
        let line = line.with_context(named)?;
        let line: Line = serde_json::from_str(&line).with_context(named)?;
        let source = line.source.as_ref().unwrap_or(&args.source);
        let title = line.title.unwrap_or_else(|| args.title.clone());
        add(args, memory, source, Chunk { title, text: line.text }).with_context(named)?;
    }
    Ok(())
}

fn add(args: &AddArgs, memory: &Memory, source: &str, chunk: Chunk) -> anyhow::Result<()> {
    for added in memory.add(source, &[chunk], now_ms())? {
        acknowledge(added, args.store.json)?;
    }
    Ok(())
}

fn acknowledge(added: Added, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, &added).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}{}", added.id, if added.known { " (known)" } else { "" })?;
    }
    // Whoever waits for the acknowledgement shall have it now.
    out.flush()?;
    Ok(())
}
