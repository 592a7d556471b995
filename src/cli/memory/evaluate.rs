//! `aios memory evaluate`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::super::progress::bar;
use super::{EmbedderArgs, print_json};
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::evaluate::{evaluate, read_questions};
use crate::memory::{Error, Options};

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} documents and questions, {eta} left";

/// Measure how well CARMA, Simple_RAG and BM25 find known passages.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory evaluate --documents validation/data/memory_docs \\
      --questions validation/data/memory_questions.jsonl

A question is a line with `id`, `split` (development, held_out), `class` (words, paraphrase,
several, unanswerable), `question` and `gold`, an array of objects with `document` and `quote`. The
documents go into a store of their own, which is removed. It ends with 1 if CARMA's nDCG is below
another's, and, unless --words-alone is given, if there is no embedder and so nothing to compare
with.")]
pub(super) struct EvaluateArgs {
    /// The folder of documents.
    #[arg(long, value_name = "FOLDER")]
    documents: PathBuf,
    /// The questions.
    #[arg(long, value_name = "FILE")]
    questions: PathBuf,
    /// Settings of memory as TOML, such as min_cosine = 0.4.
    #[arg(long, value_name = "FILE")]
    options: Option<PathBuf>,
    /// Be content with what can be said without an embedder.
    #[arg(long)]
    words_alone: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    embedder: EmbedderArgs,
}

/// Runs `aios memory evaluate`.
pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let options: Options = match &args.options {
        Some(path) => fs::read_to_string(path)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(toml::from_str(&text)?))
            .with_context(|| format!("{} cannot be used", path.display()))?,
        None => Options::default(),
    };
    let asked = read_questions(&args.questions)?;
    let folder = tempfile::tempdir().context("cannot make a folder for the store")?;
    let places = (&*folder.path().join("memory.sqlite3"), &*args.documents);
    let bar = bar(TEMPLATE);
    let outcome = evaluate(places, &asked, args.embedder.embedder()?, &options, &mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        if interrupt.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    });
    bar.finish_and_clear();
    let report = match outcome {
        Err(Error::Interrupted) => return Err(Interrupted.into()),
        outcome => outcome?,
    };
    if args.json {
        print_json(&report)?;
    } else {
        io::stdout().lock().write_all(report.markdown().as_bytes())?;
    }
    match report.carma_is_not_below {
        Some(true) => Ok(()),
        Some(false) => anyhow::bail!("CARMA's nDCG is below another backend's"),
        None if args.words_alone => Ok(()),
        None => anyhow::bail!(
            "Simple_RAG needs an embedder and was not measured; --words-alone does without"
        ),
    }
}
