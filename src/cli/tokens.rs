//! `aios tokenize` and `aios detokenize`: from texts to ids and back, a JSON line each.

use std::io::{self, BufRead, Write};

use aios_engine::gguf::Gguf;
use aios_engine::tokenizer::{ParseSpecial, RenderSpecial, Tokenizer};
use aios_residency::Mapping;
use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{ModelArgs, model_file};
use crate::interrupt::Interrupt;

/// Turn texts into token ids: a JSON string on each line of stdin.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '\"Hello world\"' | aios tokenize -m model.gguf --jsonl

Each line of stdout is {\"text\":…,\"ids\":[…]}. No BOS or EOS is added.")]
pub(super) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// One JSON value on each line, in and out; the only form there is.
    #[arg(long, required = true)]
    jsonl: bool,
    /// Take the spelling of a control token for plain text.
    #[arg(long)]
    no_parse_special: bool,
}

/// Turn token ids into texts: a JSON array, or an object with `ids`, on each line of stdin.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '[504, 2365]' | aios detokenize -m model.gguf --jsonl

Each line of stdout is {\"text\":…,\"ids\":[…]}. Bytes that are no whole character become U+FFFD.")]
pub(super) struct DetokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// One JSON value on each line, in and out; the only form there is.
    #[arg(long, required = true)]
    jsonl: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    ids: &'a [u32],
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    Bare(Vec<u32>),
    Named { ids: Vec<u32> },
}

/// Runs `aios tokenize`.
pub(super) fn tokenize(args: &TokenizeArgs) -> anyhow::Result<()> {
    let tokenizer = tokenizer(&args.model)?;
    let special = if args.no_parse_special { ParseSpecial::No } else { ParseSpecial::Yes };
    each_line(|line, out| {
        let text: String = serde_json::from_str(line).context("it is not a JSON string")?;
        let ids = tokenizer.encode(&text, special);
        serde_json::to_writer(&mut *out, &Line { text: &text, ids: &ids })?;
        Ok(())
    })
}

/// Runs `aios detokenize`.
pub(super) fn detokenize(args: &DetokenizeArgs) -> anyhow::Result<()> {
    let tokenizer = tokenizer(&args.model)?;
    each_line(|line, out| {
        let (Ids::Bare(ids) | Ids::Named { ids }) =
            serde_json::from_str(line).context("it is no JSON array of ids")?;
        let bytes = tokenizer.decode(&ids, RenderSpecial::Yes)?;
        let text = String::from_utf8_lossy(&bytes);
        serde_json::to_writer(&mut *out, &Line { text: &text, ids: &ids })?;
        Ok(())
    })
}

/// The tokenizer of the model; its weights are not looked at, so a file without any will do.
pub(super) fn tokenizer(args: &ModelArgs) -> anyhow::Result<Tokenizer> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let path = model_file(&args.model, &interrupt)?;
    let mapping = Mapping::open(&path)?;
    let unusable = || format!("{} cannot be used", path.display());
    let gguf = Gguf::parse(mapping.bytes()).with_context(unusable)?;
    Tokenizer::from_metadata(&gguf.metadata).with_context(unusable)
}

fn each_line(
    mut turn: impl FnMut(&str, &mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for (number, line) in (1..).zip(io::stdin().lock().lines()) {
        let named = || format!("line {number} of stdin cannot be used");
        let line = line.with_context(named)?;
        turn(&line, &mut out).with_context(named)?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}
