//! `aios profile`: looks at a model once and writes its plan.

use std::path::PathBuf;
use std::time::Instant;

use aios_engine::ExecutorOptions;
use aios_validation::headroom;
use aios_validation::profile::{self, ProfileError, ProfileOptions, markdown};
use aios_validation::prompts::Prompts;
use anyhow::Context;
use clap::{Args, ValueEnum};

use super::plan::{hardware, plan_folder};
use super::progress::Stages;
use super::{ModelArgs, ThreadArgs, WeightArgs, model_file};
use crate::interrupt::{Interrupt, Interrupted};

const TEMPLATE: &str = "{msg:24} [{bar:30}] {pos}/{len}, {elapsed}";

/// Look at a model once and write the plan that later runs follow.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios profile -m model.gguf
  aios profile -m model.gguf --calibration prompts.jsonl
  aios profile -m model.gguf --quality balanced
  aios plan show -m model.gguf

The plan goes into the cache folder, where every run of the model finds it. It changes no bit of any
result: it holds sketches of the output matrix's rows, by which greedy decoding and top-k sampling
find the best rows without reading the others. With a quality below exact it also holds thresholds
below which neurons are left out, as many as the budget allows. Whether any of it saves time here is
measured, and it is used only then. Everything is measured on prompts that fitted nothing.")]
pub(super) struct ProfileArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompts as JSON lines, each an object with a "text" [default: some that are built in].
    #[arg(long, value_name = "PATH")]
    calibration: Option<PathBuf>,
    /// What the plan may cost in perplexity and KL; a model with gates takes minutes for more than
    /// exact.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = QualityName::Exact)]
    quality: QualityName,
    /// Bytes of last-level cache to plan for [default: this machine's].
    #[arg(long, value_name = "BYTES", value_parser = aios_residency::parse_bytes)]
    llc: Option<u64>,
    /// Plan for so much memory, such as 2600M: the rest of the weights is read from disk for each
    /// pass. Runs that follow the plan keep to it, if they are not given another budget.
    #[arg(long, value_name = "BYTES", value_parser = aios_residency::parse_bytes)]
    ram: Option<u64>,
    /// Write the plan into this folder instead of the cache.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Say as well which blocks of layers are alike enough to be stored once: a cosine
    /// of 0.99 at both ends of the depth, 0.95 in its middle, 0.97 between. Nothing is changed.
    #[arg(long)]
    alias: bool,
    /// Print the manifest instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    weights: WeightArgs,
}

/// The qualities of SPEC D11.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum QualityName {
    /// No bit of any result changes.
    Exact,
    /// At most 0.1 % of perplexity and a KL of 0.001 nats.
    Conservative,
    /// At most 0.5 % and 0.005 nats.
    Balanced,
    /// At most 2 % and 0.02 nats.
    Aggressive,
}

/// Runs `aios profile`.
pub(super) fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    // The prompts are read first: a mistake in them should not cost the loading of a model.
    let prompts = args.calibration.as_deref().map(Prompts::read).transpose()?;
    let path = model_file(&args.model.model, &interrupt)?;
    let model = args.weights.load_unplanned(&path, &interrupt)?;
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => plan_folder(&model)?,
    };
    let mut options = ProfileOptions::new(hardware());
    options.llc_bytes = args.llc.or(options.llc_bytes);
    options.ram_bytes = args.ram;
    options.quality = match args.quality {
        QualityName::Exact => profile::Quality::Exact,
        QualityName::Conservative => profile::Quality::Conservative,
        QualityName::Balanced => profile::Quality::Balanced,
        QualityName::Aggressive => profile::Quality::Aggressive,
    };
    let mut compute = ExecutorOptions::new(options.context());
    (compute.threads, compute.threads_batch) = args.threads.resolve(compute.threads);
    let mut stages = Stages::new(TEMPLATE);
    let started = Instant::now();
    let mut progress = |now: &'static str, done, total| {
        stages.show(now, done, total);
        !interrupt.is_set()
    };
    let layers = model.config().layers;
    let alike = args.alias.then(|| headroom::alike(model.path(), layers, &mut progress));
    let made = profile::run(&model, &compute, prompts.as_ref(), &options, &folder, &mut progress);
    drop(stages);
    let manifest = match made {
        Err(ProfileError::Interrupted) => return Err(Interrupted.into()),
        other => other?,
    };
    if let Some(alike) = alike {
        eprintln!("aliasing of layers {}", alike?.verdict());
    }
    eprintln!("plan written in {:.1} s: {}", started.elapsed().as_secs_f64(), folder.display());
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&manifest)?),
        false => print!("{}", markdown(&manifest)),
    }
    Ok(())
}
