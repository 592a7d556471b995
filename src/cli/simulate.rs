//! `aios simulate`: what a token would read from DRAM behind given caches.

use std::io::{self, Write};
use std::path::Path;

use aios_engine::{EngineError, Executor, ExecutorOptions};
use aios_validation::report::{SYNTHETIC, is_synthetic};
use aios_validation::simulate::{
    Design, Geometry, Hierarchy, PRESETS, Plan, Policy, Simulated, Smaller, cachegrind, machine,
    preset, simulate,
};
use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::progress::bar;
use super::{ComputeArgs, ModelArgs, Usage, WeightArgs, model_file};
use crate::interrupt::Interrupt;

/// The name of this machine's own caches.
pub(super) const MACHINE: &str = "machine";
const TEMPLATE: &str = "[{bar:30}] {pos}/{len} passes, {eta} left";

/// Simulate the caches of a processor and say what a token reads from memory behind them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios simulate -m model.gguf --cache desktop-36mb
  aios simulate -m model.gguf --ll 33554432,16,64 -n 16 --depth 2048
  aios simulate -m model.gguf --cache stacked-96mb --pass 4 -t 8 --json
  aios simulate -m large.gguf -md small.gguf --pass 5 -n 20 --cache server-384mb --non-temporal

Caches: machine (this one), desktop-36mb (Intel Core i9-13900K), server-32mb (a die of AMD EPYC
9004), stacked-96mb (AMD Ryzen 7 7800X3D), server-384mb (AMD EPYC 9654). The accesses are those
of real passes, shared among -t threads, each with a private cache; the figures are simulated, not
measured. scripts/cachegrind.py measures the same with valgrind.")]
pub(super) struct SimulateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Whose caches: machine, or the name of a preset.
    #[arg(long, value_name = "NAME", default_value = MACHINE)]
    cache: String,
    /// Cachegrind's caches with this last level, in bytes.
    #[arg(long, value_name = "SIZE,WAYS,LINE", conflicts_with = "cache")]
    ll: Option<Geometry>,
    /// How private and shared caches relate: inclusive, victim or independent [default: as --cache
    /// has it].
    #[arg(long, value_name = "NAME", value_parser = policy)]
    policy: Option<Policy>,
    /// Tokens that count.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    n_gen: u32,
    /// Tokens in the context before the first one.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    depth: u32,
    /// Tokens of a pass; more than 1 is what verifying proposed tokens does.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=512))]
    pass: u32,
    /// Passes that warm the caches up before those that count.
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    warm_up: u32,
    /// A smaller model (-md) that makes as many passes of one token before each pass as that has
    /// tokens behind the first, as drafting does, or one: what both read behind the same caches.
    #[arg(long, value_name = "FILE|NAME")]
    model_draft: Option<String>,
    /// Read weights past the caches, leaving nothing of them behind; those of -md never are.
    #[arg(long)]
    non_temporal: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Report {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_draft: Option<String>,
    /// Whether the weights are random (SPEC Y1).
    synthetic: bool,
    cache: String,
    #[serde(flatten)]
    simulated: Simulated,
}

/// Runs `aios simulate`.
pub(super) fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    let plan = plan(args)?;
    let (cache, design) = caches(args)?;
    let mut options = args.compute.options(plan.context())?;
    let threads = options.threads;
    let hierarchy = Hierarchy::new(design, threads).map_err(|e| Usage(e.to_string()))?;
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    // Simulated threads need no real ones, which would only be in each other's way.
    let processors = ExecutorOptions::new(options.context).threads;
    options.threads = threads.min(processors);
    options.threads_batch = options.threads;
    let weights = args.weights.unscreened()?.within(args.compute.memory.ram);
    let path = model_file(&args.model.model, &interrupt)?;
    let model = weights.load(&path, args.compute.exact, &interrupt)?;
    let mut synthetic = is_synthetic(model.metadata());
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let passes = plan.tokens_per_pass.saturating_sub(1).max(1);
    let mut small = match &args.model_draft {
        Some(name) => {
            let path = model_file(name, &interrupt)?;
            let weights = WeightArgs { plan: None, ..weights.clone() };
            let model = weights.load(&path, args.compute.exact, &interrupt)?;
            synthetic |= is_synthetic(model.metadata());
            let context = plan.depth.saturating_add(plan.all_passes().saturating_mul(passes));
            Some(Executor::new(model, ExecutorOptions { context, ..options.clone() })?)
        }
        None => None,
    };
    let mut executor = Executor::new(model, options)?;
    let smaller = small.as_mut().map(|executor| Smaller { executor, passes });
    let bar = bar(TEMPLATE);
    bar.set_length(plan.all_passes() as u64);
    let simulated = simulate(&mut executor, smaller, &plan, hierarchy, &mut |ended| {
        bar.set_position(ended as u64);
        if interrupt.is_set() { Err(EngineError::Cancelled) } else { Ok(()) }
    })?;
    bar.finish_and_clear();
    let beside = args.model_draft.clone();
    let report = Report { model: file, model_draft: beside, synthetic, cache, simulated };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, &mut out)?;
    }
    Ok(())
}

fn plan(args: &SimulateArgs) -> anyhow::Result<Plan> {
    if !args.n_gen.is_multiple_of(args.pass) {
        let said = format!("-n {} is not a number of passes of {}", args.n_gen, args.pass);
        return Err(Usage(said).into());
    }
    Ok(Plan {
        depth: usize::try_from(args.depth)?,
        warm_up: usize::try_from(args.warm_up)?,
        passes: usize::try_from(args.n_gen / args.pass)?,
        tokens_per_pass: usize::try_from(args.pass)?,
        non_temporal: args.non_temporal,
    })
}

/// The caches that are meant, and how a report calls them.
fn caches(args: &SimulateArgs) -> anyhow::Result<(String, Design)> {
    let (name, mut design) = match args.ll {
        Some(ll) => {
            ("cachegrind".to_owned(), cachegrind(ll).map_err(|error| Usage(error.to_string()))?)
        }
        None => named(&args.cache)?,
    };
    design.policy = args.policy.unwrap_or(design.policy);
    Ok((name, design))
}

/// The caches of this machine or of a preset, and how a report calls them.
pub(super) fn named(cache: &str) -> anyhow::Result<(String, Design)> {
    if cache == MACHINE {
        let found = machine(Path::new("/")).context("the caches of this machine are not known")?;
        let name = format!("this machine, shared by {} processors", found.sharers);
        return Ok((name, found.design));
    }
    let found = preset(cache).ok_or_else(|| {
        let names = PRESETS.map(|preset| preset.name).join(", ");
        Usage(format!("--cache {cache}: known are {MACHINE}, {names}"))
    })?;
    Ok((format!("{} ({})", found.name, found.processor), found.design))
}

/// What a token that `executor` decodes reads behind `design`, with `depth` positions in the
/// context, or as many as it has room for. One thread is simulated, whatever the executor has: what
/// several read is nearly the same (`aios simulate -t`), and reports say so.
///
/// # Errors
/// Those of a pass, and of `between`, which is called before each.
pub(super) fn decode(
    executor: &mut Executor,
    design: Design,
    depth: usize,
    between: &mut dyn FnMut() -> Result<(), EngineError>,
) -> anyhow::Result<Simulated> {
    let mut plan =
        Plan { depth: 0, warm_up: 1, passes: 2, tokens_per_pass: 1, non_temporal: false };
    plan.depth = depth.min(executor.context().saturating_sub(plan.context()));
    let hierarchy = Hierarchy::new(design, 1).map_err(|error| Usage(error.to_string()))?;
    executor.truncate(0);
    Ok(simulate(executor, None, &plan, hierarchy, &mut |_| between())?)
}

fn policy(text: &str) -> Result<Policy, String> {
    let known = Policy::ALL.into_iter().find(|(_, name)| *name == text);
    let names = Policy::ALL.map(|(_, name)| name).join(", ");
    known.map(|(policy, _)| policy).ok_or(format!("known are {names}"))
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { model, model_draft, synthetic, cache, simulated: s } = report;
    if *synthetic {
        writeln!(out, "{SYNTHETIC}\n")?;
    }
    let past = if s.non_temporal { ", weights read past them" } else { "" };
    writeln!(out, "{model} behind {cache}:")?;
    writeln!(out, "{} x {}{past};", s.threads, s.caches)?;
    let (passes, tokens, depth) = (s.passes, s.tokens_per_pass, s.depth);
    writeln!(out, "{passes} passes of {tokens} at {depth} positions, simulated\n")?;
    writeln!(out, "| MB/token | DRAM reads | reads to write | DRAM writes |")?;
    writeln!(out, "|---|---:|---:|---:|")?;
    let mb = |bytes: f64| bytes / 1e6;
    let mut row = |name: &str, bytes: [f64; 3]| {
        let [read, ownership, written] = bytes.map(mb);
        writeln!(out, "| {name} | {read:.3} | {ownership:.3} | {written:.3} |")
    };
    for one in &s.groups {
        let reads = [one.dram_read_bytes_per_token, one.dram_ownership_bytes_per_token];
        let bytes = [reads[0], reads[1], one.dram_write_bytes_per_token];
        if bytes.into_iter().sum::<f64>() > 0.0 {
            row(one.group.name(), bytes)?;
        }
    }
    let reads = [s.dram_read_bytes_per_token, s.dram_ownership_bytes_per_token];
    row("all", [reads[0], reads[1], s.dram_write_bytes_per_token])?;
    writeln!(out, "\ntouched       {:.3} MB/token", mb(s.touched_bytes_per_token))?;
    writeln!(out, "counted       {:.3} MB/token", mb(s.counted_bytes_per_token))?;
    writeln!(out, "re-read ratio {:.4}", s.reread_ratio)?;
    if let (Some(name), Some(smaller)) = (model_draft, &s.smaller) {
        let (read, counted) = (smaller.dram_read_bytes_per_token, smaller.counted_bytes_per_token);
        writeln!(
            out,
            "\nPart of all that but the counted bytes: {name}, {} passes of one token before each \
             pass of the larger model:",
            smaller.passes
        )?;
        writeln!(out, "DRAM reads    {:.3} MB/token", mb(read))?;
        writeln!(out, "counted       {:.3} MB/token", mb(counted))?;
    }
    Ok(())
}
