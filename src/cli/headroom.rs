//! `aios headroom`: how many bytes a token of a model could do without.

use std::path::PathBuf;

use aios_engine::{EngineError, Executor};
use aios_validation::headroom::{self, HeadroomError, HeadroomReport, Plan};
use aios_validation::prompts::Prompts;
use aios_validation::simulate::Behind;
use anyhow::Context;
use clap::Args;

use super::output::{deliver, prepare};
use super::progress::Stages;
use super::{ComputeArgs, ModelArgs, WeightArgs, model_file, simulate};
use crate::interrupt::{Interrupt, Interrupted};

const TEMPLATE: &str = "{msg:24} [{bar:30}] {pos}/{len}, {elapsed}, {eta} left";
const DEFAULT: Plan = Plan::new();
/// The simulated caches, if none are named: those of a person's own machine.
const CACHE: &str = "desktop-36mb";

/// Measure how many bytes of a token a model could do without, and at what loss.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios headroom -m model.gguf --calibration prompts.jsonl
  aios headroom -m model.gguf --calibration prompts.jsonl --out report
  aios headroom -m base.gguf --calibration prompts.jsonl --with finetune.gguf --json

A line of the calibration file is a JSON object with a \"text\" and perhaps a \"category\". Half of
the prompts calibrate thresholds, the others are scored. The report says for each lever how many
bytes of a token it saves at no loss, at a KL below 0.001 and at a perplexity of + 0.5 %; these
are measured in exact arithmetic, which makes the run slow: on two cores about a minute for 135
million parameters and a quarter of an hour for 1.5 billion. Time goes with --prompts; the report
has standard errors, and claims no more than what they leave.")]
pub struct HeadroomArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompts as JSON lines, each an object with a "text".
    #[arg(long, value_name = "PATH")]
    calibration: PathBuf,
    /// Look for copies of the model's blocks in this file too; may be given several times.
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// Use this many prompts, evenly spread over the file.
    #[arg(long, value_name = "N", default_value_t = DEFAULT.prompts as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..))]
    prompts: u32,
    /// Read at most this many tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = DEFAULT.tokens as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=65536))]
    tokens: u32,
    /// Continue this many prompts, for speculation by look-up.
    #[arg(long, value_name = "N", default_value_t = DEFAULT.continued as u32)]
    continued: u32,
    /// Generate at most this many tokens for each of these.
    #[arg(short = 'n', long, value_name = "N", default_value_t = DEFAULT.generate as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(..=65536))]
    generate: u32,
    /// Behind whose caches the re-read ratio is simulated: machine, or the name of a preset of aios
    /// simulate.
    #[arg(long, value_name = "NAME", default_value = CACHE)]
    cache: String,
    /// Write JSON, Markdown and pictures into this folder, instead of Markdown to stdout.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl HeadroomArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        Ok(Plan {
            prompts: usize::try_from(self.prompts)?,
            tokens: usize::try_from(self.tokens)?,
            continued: usize::try_from(self.continued)?,
            generate: usize::try_from(self.generate)?,
            with: self.with.clone(),
        })
    }
}

/// Runs `aios headroom`.
///
/// # Errors
/// Those of reading the prompts, loading the model and measuring; [`Interrupted`] on Ctrl-C.
pub fn run(args: &HeadroomArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    prepare(args.out.as_deref())?;
    let report = measure(args, &interrupt)?;
    let written = args.out.as_deref().map(|folder| Ok(report.write(folder)?));
    let json = report.json();
    deliver(written, args.json.then_some(&*json), || report.markdown(&[]))
}

/// Executors that a measurement has at a time.
const EXECUTORS: u64 = 3;

/// The report that `args` ask for.
///
/// # Errors
/// As [`run`].
pub fn measure(args: &HeadroomArgs, interrupt: &Interrupt) -> anyhow::Result<HeadroomReport> {
    // Prompts and names are read first: a mistake in them should not cost the loading of a model.
    let prompts = Prompts::read(&args.calibration)?;
    let (cache, design) = simulate::named(&args.cache)?;
    let plan = args.plan()?;
    let mut options = args.compute.options(plan.context())?;
    // Modified runs are compared side by side with others: so many executors share the memory.
    options.ram = options.ram.map(|ram| ram / EXECUTORS);
    let path = model_file(&args.model.model, interrupt)?;
    let model = args.weights.within(args.compute.memory.ram).load_to_judge(
        &path,
        args.compute.exact,
        interrupt,
    )?;
    let mut stages = Stages::new(TEMPLATE);
    let report = headroom::run(&model, &options, &prompts, &plan, &mut |now, done, total| {
        stages.show(now, done, total);
        !interrupt.is_set()
    });
    drop(stages);
    let mut report = match report {
        Err(HeadroomError::Interrupted) => return Err(Interrupted.into()),
        other => other?,
    };
    let mut executor = Executor::new(model, options)?;
    let mut go_on = || match interrupt.is_set() {
        true => Err(EngineError::Cancelled),
        false => Ok(()),
    };
    // As deep as the longest prompt may be.
    let found = simulate::decode(&mut executor, design, plan.tokens, &mut go_on)?;
    report.reread_ratio = Some(found.reread_ratio);
    report.reread_behind = Some(Behind::of(cache, &found));
    Ok(report)
}
