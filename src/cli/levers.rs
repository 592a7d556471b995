//! `aios levers`: what each lever of the residency controller is worth for a model.

use std::fs;
use std::path::PathBuf;

use aios_validation::levers::{self, LeverError, LeverOptions};
use aios_validation::profile::built_in_prompts;
use anyhow::Context;
use clap::Args;

use super::output::{deliver, prepare};
use super::progress::Stages;
use super::{ModelArgs, ThreadArgs, WeightArgs, model_file, simulate};
use crate::interrupt::{Interrupt, Interrupted};
use aios_engine::ExecutorOptions;

const TEMPLATE: &str = "{msg:24} [{bar:30}] {pos}/{len}, {elapsed}";
/// The simulated caches, if none are named: those of a person's own machine.
const CACHE: &str = "desktop-36mb";

/// Measure what each lever of the residency controller is worth: bytes, time and results with it
/// and without.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios levers -m model.gguf
  aios levers -m model.gguf -f text.txt -c 2048 --out report
  aios levers -m model.gguf --depth 4000 --windows 0 --json

The levers: the screened head (greedy and for top-k 40), zero neurons, thresholds and the prefetch
distance (of the plan that `aios profile` has made), weights kept in the last-level cache, layers
that share weights, tiers of the KV cache, weights streamed from disk, prompts that sessions share
and prompts in chunks. What must not change a result is compared bit for bit, and a difference is an
error. Tiers are scored in exact arithmetic, which takes most of the time; --windows 0 leaves that
out. Cold ones begin behind 1,152 positions: -c 2048 scores them, on a text of as many tokens.")]
pub(super) struct LeversArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, in UTF-8 [default: prompts that are built in]. It is repeated where it is short,
    /// but not to be scored.
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Positions before the tokens that are decoded.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    depth: u32,
    /// Tokens that are decoded in each round.
    #[arg(short, long, value_name = "N", default_value_t = 32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    n_gen: u32,
    /// Rounds, with and without in turns.
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Tokens of the prompt that is read in chunks; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(..=65_536))]
    prompt: u32,
    /// Tokens of a window that is scored, as in `aios perplexity`.
    #[arg(short, long, value_name = "N", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(8..))]
    ctx_size: u32,
    /// Windows that are scored; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 1)]
    windows: u32,
    /// Memory of the run that streams weights, such as 500M [default: three fifths of what the
    /// model takes].
    #[arg(long, value_name = "BYTES", value_parser = aios_residency::parse_bytes)]
    ram: Option<u64>,
    /// Whose caches are simulated: machine, or the name of a preset.
    #[arg(long, value_name = "NAME", default_value = CACHE)]
    cache: String,
    /// Write levers.json and levers.md into this folder, instead of Markdown to stdout.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl LeversArgs {
    fn plan(&self) -> anyhow::Result<LeverOptions> {
        let (cache, design) = simulate::named(&self.cache)?;
        Ok(LeverOptions {
            depth: usize::try_from(self.depth)?,
            generate: usize::try_from(self.n_gen)?,
            rounds: usize::try_from(self.rounds)?,
            prompt: usize::try_from(self.prompt)?,
            window: usize::try_from(self.ctx_size)?,
            windows: usize::try_from(self.windows)?,
            ram: self.ram,
            design,
            cache,
        })
    }
}

/// Runs `aios levers`.
///
/// # Errors
/// Those of reading the text, loading the model and measuring; [`Interrupted`] on Ctrl-C.
pub(super) fn run(args: &LeversArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    // What is wrong with the arguments should not cost the loading of a model.
    prepare(args.out.as_deref())?;
    let plan = args.plan()?;
    let text = match &args.file {
        Some(path) => fs::read_to_string(path)
            .with_context(|| format!("cannot read the text {}", path.display()))?,
        None => built_in_prompts().into_iter().map(|prompt| prompt.text + "\n\n").collect(),
    };
    let path = model_file(&args.model.model, &interrupt)?;
    let model = args.weights.load_to_measure(&path, &interrupt)?;
    let mut options = ExecutorOptions::new(1);
    (options.threads, options.threads_batch) = args.threads.resolve(options.threads);
    let mut stages = Stages::new(TEMPLATE);
    let report = levers::run(&model, &options, &text, &plan, &mut |now, done, total| {
        stages.show(now, done, total);
        !interrupt.is_set()
    });
    drop(stages);
    let report = match report {
        Err(LeverError::Interrupted) => return Err(Interrupted.into()),
        other => other?,
    };
    let written = args.out.as_deref().map(|folder| Ok(report.write(folder)?));
    let json = report.json();
    deliver(written, args.json.then_some(&*json), || report.markdown())
}
