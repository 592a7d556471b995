//! `aios acceptance`: how often a draft model's guesses are taken, and how often the rule of
//! speculative sampling would have taken them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use aios_engine::template::Template;
use aios_engine::tokenizer::ParseSpecial;
use aios_engine::{DraftModel, EngineError, Executor, Model, SamplerOptions};
use aios_validation::acceptance::{Plan, Prompt, Report, measure};
use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use super::output::deliver;
use super::progress::bar;
use super::{ComputeArgs, ModelArgs, Usage, WeightArgs, model_file};
use crate::chat::{Message, Role, framed, prompt_ids, within};
use crate::interrupt::Interrupt;

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} answers, {eta} left";
/// The longest file of prompts.
const PROMPTS_BYTES_MAX: u64 = 16 << 20;

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
    /// Prompts as JSON lines.
    #[arg(long, value_name = "PATH")]
    prompts: PathBuf,
    /// Only prompts of this class; may be given several times.
    #[arg(long, value_name = "NAME")]
    class: Vec<String>,
    /// So many prompts of each class; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: usize,
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

/// A line of the prompts' file; other fields are ignored.
#[derive(Deserialize)]
struct Line {
    class: String,
    user: String,
}

/// Runs `aios acceptance`.
pub(super) fn run(args: &AcceptanceArgs) -> anyhow::Result<()> {
    if args.temp.contains(&0.0) {
        return Err(Usage("--temp must be above 0: greedy answers need no rule".to_owned()).into());
    }
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    // The prompts are read first: a mistake in them should not cost the loading of a model.
    let lines = read(args)?;
    let load = |name: &str| -> anyhow::Result<(String, Arc<Model>)> {
        let path = model_file(name, &interrupt)?;
        let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok((file, args.weights.load(&path, args.compute.exact, &interrupt)?))
    };
    let ((model, target), (draft, small)) = (load(&args.model.model)?, load(&args.model_draft)?);
    let prompts = prompts(&target, lines)?;
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
    let report = Report { model, draft, rows };
    let json = args.json.then(|| report.json());
    Ok(deliver(None, json.as_deref(), || report.markdown())?)
}

/// Each temperature with the default filters and with none.
fn samplings(args: &AcceptanceArgs) -> Vec<SamplerOptions> {
    let of = |&temperature: &f32| {
        let filtered = SamplerOptions { temperature, seed: args.seed, ..SamplerOptions::default() };
        [filtered, SamplerOptions { top_k: 0, top_p: 1.0, min_p: 0.0, ..filtered }]
    };
    args.temp.iter().flat_map(of).collect()
}

fn read(args: &AcceptanceArgs) -> anyhow::Result<Vec<Line>> {
    let path = &args.prompts;
    let what = || format!("cannot read the prompts {}", path.display());
    let meta = fs::metadata(path).with_context(what)?;
    anyhow::ensure!(meta.is_file(), "{} is not a regular file", path.display());
    anyhow::ensure!(meta.len() <= PROMPTS_BYTES_MAX, "{} is too long", path.display());
    let mut kept: Vec<Line> = Vec::new();
    for (number, line) in (1..).zip(fs::read_to_string(path).with_context(what)?.lines()) {
        let line: Line = serde_json::from_str(line)
            .with_context(|| format!("{}, line {number}", path.display()))?;
        let known = kept.iter().filter(|known| known.class == line.class).count();
        let wanted = args.class.is_empty() || args.class.contains(&line.class);
        if wanted && (args.limit == 0 || known < args.limit) {
            kept.push(line);
        }
    }
    anyhow::ensure!(!kept.is_empty(), "{} has no prompts of these classes", path.display());
    Ok(kept)
}

/// What the models read: the prompts in the template of the one that answers, or as they are if it
/// has none.
fn prompts(model: &Model, lines: Vec<Line>) -> anyhow::Result<Vec<Prompt>> {
    let template = model.chat_template().map(|text| Template::of_model(Some(text))).transpose()?;
    let tokenizer = model.tokenizer()?;
    let prompt = |Line { class, user }| {
        let ids = match &template {
            Some(template) => prompt_ids(model, template, &[Message::new(Role::User, user)])?,
            None => framed(tokenizer, tokenizer.encode(&user, ParseSpecial::No)),
        };
        anyhow::ensure!(!ids.is_empty(), "a prompt of the class {class:?} is empty");
        Ok(Prompt { class, ids })
    };
    lines.into_iter().map(prompt).collect()
}
