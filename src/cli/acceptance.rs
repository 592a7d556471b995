//! `aios acceptance`: how often a draft model's guesses are taken, and how often the rule of
//! speculative sampling would have taken them.

use std::sync::Arc;

use aios_engine::{DraftModel, EngineError, Executor, Model, SamplerOptions};
use aios_validation::acceptance::{Plan, Prompt, Report, measure};
use aios_validation::report::is_synthetic;
use anyhow::Context;
use clap::Args;

use super::output::deliver;
use super::progress::bar;
use super::prompts::{Line, PromptArgs, ids};
use super::{ComputeArgs, ModelArgs, Usage, WeightArgs, model_file};
use crate::chat::within;
use crate::interrupt::Interrupt;

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} answers, {eta} left";

/// Measure how often a draft model's guesses are taken, beside speculative sampling's rule.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios acceptance -m qwen2.5-coder-1.5b-instruct --model-draft qwen2.5-coder-0.5b-instruct \\
      --prompts validation/data/speculation_prompts.jsonl --limit 2 -n 64
  aios acceptance -m large.gguf -md small.gguf --prompts p.jsonl --temp 0.8 --temp 1 --json

A line of the prompts' file is a JSON object with a \"class\" and a \"user\", what a user says; a
model without a chat template reads it as it is. The model answers as it would without drafts, once
for each temperature with the default top-k, top-p and min-p, and once with none; at each position
of the answer both models choose with the same random numbers, as in `aios run -md`, and their
distributions say what speculative sampling (arXiv 2211.17192) would have taken.")]
pub(super) struct AcceptanceArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A smaller model with the same vocabulary that drafts (-md).
    #[arg(long, value_name = "FILE|NAME")]
    model_draft: String,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Generate at most this many tokens for each.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 96)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65536))]
    predict: u32,
    /// A temperature, above 0; may be given several times.
    #[arg(long, value_name = "T", default_values_t = [0.8, 1.0], value_parser = within::<0, 1000>)]
    temp: Vec<f32>,
    /// The seed of the random choices.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs `aios acceptance`.
pub(super) fn run(args: &AcceptanceArgs) -> anyhow::Result<()> {
    if args.temp.contains(&0.0) {
        return Err(Usage("--temp must be above 0: greedy answers need no rule".to_owned()).into());
    }
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    // The prompts are read first: a mistake in them should not cost the loading of a model.
    let lines = args.prompts.read()?;
    let load = |name: &str| -> anyhow::Result<(String, Arc<Model>)> {
        let path = model_file(name, &interrupt)?;
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok((
            file,
            args.weights.within(args.compute.memory.ram).load(
                &path,
                args.compute.exact,
                &interrupt,
            )?,
        ))
    };
    let ((model, target), (draft, small)) = (load(&args.model.model)?, load(&args.model_draft)?);
    let synthetic = [&target, &small].into_iter().any(|model| is_synthetic(model.metadata()));
    let read = ids(&target, &lines)?;
    let with_class = |(line, ids): (Line, Vec<u32>)| Prompt { class: line.class, ids };
    let prompts: Vec<Prompt> = lines.into_iter().zip(read).map(with_class).collect();
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    let tokens = usize::try_from(args.predict)?;
    let options = args.compute.options(longest + tokens)?;
    let mut drafter = DraftModel::new(small, &target, options.clone())
        .with_context(|| format!("{draft} cannot draft"))?;
    let mut target = Executor::new(target, options)?;
    let plan = Plan { tokens, samplings: samplings(args) };
    let bar = bar(TEMPLATE);
    let mut between = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if interrupt.is_set() { Err(EngineError::Cancelled) } else { Ok(()) }
    };
    let rows = measure([&mut target, drafter.executor()], &prompts, &plan, &mut between)?;
    bar.finish_and_clear();
    let report = Report { model, draft, synthetic, rows };
    let json = args.json.then(|| report.json());
    deliver(None, json.as_deref(), || report.markdown())
}

/// Each temperature with the default filters and with none.
fn samplings(args: &AcceptanceArgs) -> Vec<SamplerOptions> {
    let of = |&temperature: &f32| {
        let filtered = SamplerOptions { temperature, seed: args.seed, ..SamplerOptions::default() };
        [filtered, SamplerOptions { top_k: 0, top_p: 1.0, min_p: 0.0, ..filtered }]
    };
    args.temp.iter().flat_map(of).collect()
}
