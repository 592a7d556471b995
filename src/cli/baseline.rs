//! `aios baseline`: MB per token by every source there is, and how fast it goes.

use std::path::{Path, PathBuf};

use aios_engine::gguf::Escaped;
use aios_engine::{EngineError, Executor, ExecutorOptions};
use aios_residency::read_text;
use aios_validation::baseline::{
    About, BaselineError, BaselineReport, Bench, Counters, Peer, PeerPlan, Plan, SimulatedFigure,
    Surroundings, measure,
};
use aios_validation::counters::Machine;
use aios_validation::report::{self, Environment, ModelInfo};
use aios_validation::simulate::Design;
use anyhow::Context;
use clap::{Args, ValueEnum};

use super::doctor::buffer_bytes;
use super::output::{deliver, prepare};
use super::progress::bar;
use super::simulate::{self, MACHINE};
use super::{ComputeArgs, ModelArgs, WeightArgs, model_file};
use crate::doctor::{Cache, Report as Doctor, bandwidth};
use crate::interrupt::{Interrupt, Interrupted};

const TEMPLATE: &str = "{msg} [{bar:30}] {pos}/{len}, {elapsed}";
/// Runs of the streaming read before each run; the median counts.
const STREAM_RUNS: usize = 3;

/// Measure MB of DRAM per token and the speed of decoding, over several runs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios baseline -m model.gguf
  aios baseline -m model.gguf --runs 5 --tokens 200 --peer llama-cpp --out report

Each run loads the model anew. Counted bytes are exact; measured ones need the memory controllers'
counters, and the report says what stands in their way. The caches are simulated for one thread,
whatever -t is. The exit code is 1 if figures vary by 5 % or more from run to run, if what was
measured cannot be, or if the kernel's description of the counters is broken.")]
pub(super) struct BaselineArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Runs.
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=1000))]
    runs: u32,
    /// Tokens decoded in each.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tokens: u32,
    /// Run another engine on the same file too.
    #[arg(long, value_name = "ENGINE", value_enum)]
    peer: Option<PeerName>,
    /// The Python that the other engine is installed in.
    #[arg(long, value_name = "PROGRAM", default_value = "python3", requires = "peer")]
    python: String,
    /// Whose caches are simulated: machine, or a preset of aios simulate.
    #[arg(long, value_name = "NAME", default_value = MACHINE)]
    cache: String,
    /// Write baseline.json and baseline.md into this folder, instead of Markdown to stdout.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PeerName {
    /// llama-cpp-python, as PyPI has it.
    LlamaCpp,
}

/// Runs `aios baseline`.
pub(super) fn run(args: &BaselineArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    prepare(args.out.as_deref())?;
    let report = baseline(args, &interrupt)?;
    let json = serde_json::to_string_pretty(&report)? + "\n";
    let files = || [("baseline.json", json.clone()), ("baseline.md", report.markdown())];
    let written = args.out.as_deref().map(|folder| Ok(report::write(folder, files())?));
    deliver(written, args.json.then_some(&*json), || report.markdown())?;
    anyhow::ensure!(report.passes, "the baseline does not pass: {}", report.failures.join("; "));
    Ok(())
}

fn stop_if(interrupt: &Interrupt) -> Result<(), EngineError> {
    if interrupt.is_set() { Err(EngineError::Cancelled) } else { Ok(()) }
}

/// What a token in the middle of a run reads behind the caches of this name and design.
fn simulated(
    executor: &mut Executor,
    plan: Plan,
    (cache, design): (String, Design),
    interrupt: &Interrupt,
) -> anyhow::Result<SimulatedFigure> {
    let mut go_on = || stop_if(interrupt);
    let found = simulate::decode(executor, design, plan.positions(), &mut go_on)?;
    let reads = found.dram_read_bytes_per_token + found.dram_ownership_bytes_per_token;
    Ok(SimulatedFigure {
        mb_per_token: reads / 1e6,
        reread_ratio: found.reread_ratio,
        cache,
        caches: found.caches,
        threads: found.threads,
        positions: found.depth,
    })
}

/// The most that caches can keep from one token to the next (SPEC B11). The kernel does not say
/// whether the last level contains what is before it, so that all of it counts.
fn kept_bytes(caches: &[Cache]) -> u64 {
    let data = caches.iter().filter(|cache| cache.kind != "Instruction");
    data.map(|cache| cache.bytes.saturating_mul(cache.instances)).fold(0, u64::saturating_add)
}

fn surroundings(options: &ExecutorOptions, doctor: &Doctor) -> Surroundings {
    let kernel = read_text(Path::new("/proc/sys/kernel/osrelease"), 4096).ok();
    Surroundings {
        environment: Environment::new(options, options.threads),
        kernel: kernel.map(|release| Escaped::new(release.trim()).to_string()),
        memory_bytes: doctor.memory.total_bytes,
        last_level_cache_bytes: doctor.last_level_cache_bytes(),
    }
}

/// The caches of this name, which are simulated. Unknown ones of this machine are no reason to
/// measure nothing else.
fn caches(name: &str) -> anyhow::Result<Option<(String, Design)>> {
    match simulate::named(name) {
        Ok(found) => Ok(Some(found)),
        Err(error) if name == MACHINE => {
            tracing::warn!("not simulated: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn baseline(args: &BaselineArgs, interrupt: &Interrupt) -> anyhow::Result<BaselineReport> {
    let plan = Plan { runs: usize::try_from(args.runs)?, tokens: usize::try_from(args.tokens)? };
    // A wrong name should not cost the loading of a model.
    let caches = caches(&args.cache)?;
    let weights = args.weights.unscreened()?.within(args.compute.memory.ram);
    let path = model_file(&args.model.model, interrupt)?;
    let options = args.compute.options(plan.context())?;
    let weights = |path: &Path| weights.load(path, args.compute.exact, interrupt);
    // What is made once is not part of loading.
    let model = weights(&path)?;
    let doctor = Doctor::collect(Path::new("/"));
    let bar = bar(TEMPLATE);
    bar.set_length(u64::from(args.runs));
    bar.set_message("runs");
    let info = ModelInfo::of_files(&model, &model.files(), &mut || !interrupt.is_set())?;
    let about = About {
        model: info.ok_or(Interrupted)?,
        environment: surroundings(&options, &doctor),
        processor: doctor.cpu.model.clone(),
        simulated: match caches {
            Some((name, design)) => {
                let mut executor = Executor::new(model.clone(), options.clone())?;
                Some(simulated(&mut executor, plan, (name, design), interrupt)?)
            }
            None => None,
        },
        peer: None,
    };
    drop(model);
    let bytes = buffer_bytes(&doctor);
    let machine = Machine::here();
    let mut bench = Bench {
        load: &mut || Ok(Executor::new(weights(&path)?, options.clone())?),
        stream: &mut || {
            let read = bandwidth::measure(options.threads, bytes, STREAM_RUNS)?;
            Ok(read.median_gb_per_s)
        },
        counters: Counters::of(&machine),
        cache_bytes: kept_bytes(&doctor.caches),
        between: &mut |done| {
            bar.set_position(done as u64);
            stop_if(interrupt)
        },
    };
    let measured = measure(plan, &mut bench);
    // What has ended the runs is what ends the program: on Ctrl-C it has an exit code of its own.
    let (runs, measured) = measured.map_err(|error| match error {
        BaselineError::Load(error) => error,
        BaselineError::Engine(error) => error.into(),
    })?;
    let peer = args.peer.map(|PeerName::LlamaCpp| {
        tracing::info!("running llama.cpp");
        bar.set_message("runs of llama.cpp");
        let (python, threads) = (&*args.python, options.threads);
        let plan = PeerPlan { python, path: &path, threads, tokens: plan.tokens, runs: plan.runs };
        Peer::llama_cpp(plan, &mut |done| {
            bar.set_position(done as u64);
            !interrupt.is_set()
        })
    });
    bar.finish_and_clear();
    stop_if(interrupt)?;
    let about = About { peer, ..about };
    BaselineReport::new(plan, about, runs, measured).context("there was no run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_data_cache_can_keep_something() {
        let cache = |level: u32, kind: &str, bytes, instances| Cache {
            level,
            kind: kind.to_owned(),
            bytes,
            instances,
            line_bytes: None,
            ways: None,
        };
        let victim = [
            cache(1, "Data", 32 << 10, 8),
            cache(1, "Instruction", 32 << 10, 8),
            cache(2, "Unified", 1 << 20, 8),
            cache(3, "Unified", 32 << 20, 2),
        ];
        assert_eq!(kept_bytes(&victim), (256 << 10) + (8 << 20) + (64 << 20));
        assert_eq!(
            (kept_bytes(&[]), kept_bytes(&[cache(3, "Unified", u64::MAX, 2)])),
            (0, u64::MAX)
        );
    }
}
