//! `aios logits`: what a model says after given token ids, in a form to compare.

use std::io::{self, Write};

use aios_engine::Executor;
use aios_validation::logits::{LogitsReport, record};
use aios_validation::report::is_synthetic;
use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{ComputeArgs, ModelArgs, WeightArgs, model_file};
use crate::interrupt::Interrupt;

/// Print the logits after token ids: the likeliest ten, their moments, and a digest of all.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  aios logits -m model.gguf --ids 1,2,3 --predict 16

One JSON object: n_vocab; positions, for each id {top: [[id, logit]...], lse, mean, rms}; greedy,
[[id, margin to the second]...]; logits_sha256. The digest is over little-endian f32: the logits
at every given id, then those from feeding each greedy id but the last. It depends on the file,
the ids, --predict, --exact and the cache types; never on -t, --chunk, --isa or the machine.")]
pub(super) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The token ids, separated by commas; nothing is put in front.
    #[arg(long, value_name = "ID,...", value_delimiter = ',', required = true)]
    ids: Vec<u32>,
    /// Go on greedily for this many tokens.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 0)]
    predict: u32,
    /// Tokens in a pass over the weights.
    #[arg(long, value_name = "C", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    report: &'a LogitsReport,
    /// Left out for trained weights, so that files of an earlier version stay the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    synthetic: bool,
}

/// Runs `aios logits`.
pub(super) fn run(args: &LogitsArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let predict = usize::try_from(args.predict)?;
    let mut options = args.compute.options(args.ids.len() + predict)?;
    options.batch = usize::try_from(args.chunk)?;
    let weights = args.weights.unscreened()?.within(args.compute.memory.ram);
    let path = model_file(&args.model.model, &interrupt)?;
    let model = weights.load(&path, args.compute.exact, &interrupt)?;
    let synthetic = is_synthetic(model.metadata());
    let mut executor = Executor::new(model, options)?;
    let report = record(&mut executor, &args.ids, predict, &|| !interrupt.is_set())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut out, &Output { synthetic, report: &report })
        .map_err(io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}
