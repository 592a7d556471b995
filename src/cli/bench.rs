//! `aios bench`: how fast a model runs here, and how near that is to what memory allows.

use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use aios_engine::{EngineError, Executor};
use aios_residency::{ResidencyStats, measure_disk};
use aios_validation::bench::{Plan, Speeds, Statistics, measure};
use aios_validation::report::{SYNTHETIC, is_synthetic};
use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::doctor::buffer_bytes;
use super::{ComputeArgs, ModelArgs, Usage, WeightArgs, model_file};
use crate::doctor::{Report as Machine, bandwidth};
use crate::interrupt::Interrupt;

/// Bytes of a file that are read to measure its disk.
const DISK_BYTES: u64 = 2_000_000_000;

/// Measure loading, reading a prompt and generating, as llama-bench does.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios bench -m model.gguf -p 512 -n 128 -t 2 -r 5
  aios bench -m model.gguf -p 0 -n 64 --depth 4096 -o json
  aios bench -m model.gguf -p 0 -n 64 --pass 4

There is one warm-up; then each repetition is a sample. Loading is mapping the file, checking it
and allocating the cache. Bytes per token are counted, weights and cache; GB/s are those bytes
over the time to generate; the streaming read is measured in the same run with as many threads,
and the fraction is GB/s over its median.")]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt; 0 leaves the prompt out.
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    n_prompt: u32,
    /// Tokens to generate; 0 leaves generating out.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    n_gen: u32,
    /// Tokens in the context before the first generated one.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    depth: u32,
    /// Do not read a prompt to fill the depth: bytes and times are the same, answers mean nothing.
    #[arg(long)]
    blank: bool,
    /// Tokens of a pass that generates, as when proposed tokens are verified.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=512))]
    pass: u32,
    /// Do not measure the streaming read, and leave the fraction of it out.
    #[arg(long)]
    no_bandwidth: bool,
    /// Repetitions.
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// The form of the results.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Md)]
    output: Format,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table in Markdown.
    Md,
    /// One JSON object.
    Json,
}

/// What was measured. A part that was left out is absent.
#[derive(Serialize)]
struct Report {
    model: String,
    /// Whether the weights are random (SPEC Y1).
    synthetic: bool,
    model_bytes: u64,
    isa: &'static str,
    exact: bool,
    threads: usize,
    threads_batch: usize,
    cache_type_k: &'static str,
    cache_type_v: &'static str,
    kv_tiers: &'static str,
    kv_cache_bytes: usize,
    n_prompt: usize,
    n_gen: usize,
    tokens_per_pass: usize,
    depth: usize,
    repetitions: usize,
    load_ms: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_tokens_per_s: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_tokens_per_s: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_token: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gb_per_s: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_gb_per_s: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth_fraction: Option<Statistics>,
    /// Of the last repetition.
    residency: ResidencyStats,
    /// What the disk gives when nothing else is done, and what decoding read of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_gb_per_s: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_read_gb_per_s: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_fraction: Option<Statistics>,
}

/// Runs `aios bench`.
pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if !args.n_gen.is_multiple_of(args.pass) {
        let said = format!("-n {} is not a number of passes of {}", args.n_gen, args.pass);
        return Err(Usage(said).into());
    }
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let plan = Plan {
        prompt: usize::try_from(args.n_prompt)?,
        generate: usize::try_from(args.n_gen)?,
        pass: usize::try_from(args.pass)?,
        depth: usize::try_from(args.depth)?,
        blank: args.blank,
        repetitions: usize::try_from(args.repetitions)?,
    };
    let weights = args.weights.unscreened()?.within(args.compute.memory.ram);
    let path = model_file(&args.model.model, &interrupt)?;
    let mut check = || match interrupt.is_set() {
        true => Err(EngineError::Cancelled),
        false => Ok(()),
    };
    let weights = |path: &Path| weights.load(path, args.compute.exact, &interrupt);
    // What is made once is not part of loading.
    drop(weights(&path)?);
    let mut load_ms = Vec::with_capacity(plan.repetitions);
    let mut load = || -> anyhow::Result<Executor> {
        check()?;
        let started = Instant::now();
        let options = args.compute.options(plan.context())?;
        let executor = Executor::new(weights(&path)?, options)?;
        load_ms.push(started.elapsed().as_secs_f64() * 1e3);
        Ok(executor)
    };
    // Each load is dropped before the next, so that there is only ever one cache.
    for _ in 1..plan.repetitions {
        drop(load()?);
    }
    let mut executor = load()?;
    let speeds = measure(&mut executor, &plan, &mut check)?;
    check()?;
    let threads = executor.options().threads;
    let stream = if plan.generate == 0 || args.no_bandwidth {
        None
    } else {
        let bytes = buffer_bytes(&Machine::collect(Path::new("/")));
        Some(bandwidth::measure(threads, bytes, plan.repetitions)?)
    };
    // Streamed weights are bounded by the disk, which is measured in the same run.
    let file = executor.streamed_file().filter(|_| plan.generate > 0).map(Path::to_owned);
    let residency = executor.residency();
    let stream = stream.as_ref();
    let mut report = report((&executor, residency), &plan, load_ms, speeds, stream);
    drop(executor);
    if let Some(file) = file {
        let read = |_| Ok(measure_disk(&file, DISK_BYTES)?.gb_per_s);
        report.add_disk((0..plan.repetitions).map(read).collect::<anyhow::Result<_>>()?);
    }
    let mut out = io::stdout().lock();
    match args.output {
        Format::Md => print(&report, &mut out)?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

impl Report {
    /// Puts what decoding read of the disk beside what the disk gives.
    fn add_disk(&mut self, samples: Vec<f64>) {
        let disk = Statistics::of(samples);
        let speeds = self.decode_tokens_per_s.as_ref().map(|speeds| &speeds.samples);
        let each = self.residency.disk_bytes_per_pass.zip(speeds);
        let tokens = self.tokens_per_pass as f64;
        let read: Vec<f64> = each.map_or_else(Vec::new, |(bytes, speeds)| {
            speeds.iter().map(|speed| speed / tokens * bytes / 1e9).collect()
        });
        let fraction = disk.as_ref().map(|disk| read.iter().map(|gb| gb / disk.median).collect());
        self.disk_gb_per_s = disk;
        self.disk_read_gb_per_s = Statistics::of(read);
        self.disk_fraction = fraction.and_then(Statistics::of);
    }
}

fn report(
    (executor, residency): (&Executor, ResidencyStats),
    plan: &Plan,
    load_ms: Vec<f64>,
    speeds: Speeds,
    stream: Option<&bandwidth::Measurement>,
) -> Report {
    let (model, options) = (executor.model(), executor.options());
    let both = || speeds.decode_tokens_per_s.iter().zip(&speeds.bytes_per_token);
    let read: Vec<f64> = both().map(|(tokens_per_s, bytes)| tokens_per_s * bytes / 1e9).collect();
    let fraction = stream.map(|s| read.iter().map(|gb| gb / s.median_gb_per_s).collect());
    let file = model.path().file_name().unwrap_or(model.path().as_os_str());
    Report {
        model: file.to_string_lossy().into_owned(),
        synthetic: is_synthetic(model.metadata()),
        model_bytes: model.tensors().iter().map(aios_engine::gguf::TensorInfo::bytes).sum(),
        isa: options.isa.description(),
        exact: options.exact,
        threads: options.threads,
        threads_batch: options.threads_batch,
        cache_type_k: options.cache_k.name(),
        cache_type_v: options.cache_v.name(),
        kv_tiers: options.kv_tiers.name(),
        kv_cache_bytes: executor.cache_bytes(),
        n_prompt: plan.prompt,
        n_gen: plan.generate,
        tokens_per_pass: plan.pass,
        depth: plan.depth,
        repetitions: plan.repetitions,
        load_ms: Statistics::of(load_ms),
        prefill_tokens_per_s: Statistics::of(speeds.prefill_tokens_per_s),
        decode_tokens_per_s: Statistics::of(speeds.decode_tokens_per_s),
        bytes_per_token: Statistics::of(speeds.bytes_per_token),
        read_gb_per_s: Statistics::of(read),
        stream_gb_per_s: stream.and_then(|s| Statistics::of(s.samples_gb_per_s.clone())),
        bandwidth_fraction: fraction.and_then(Statistics::of),
        residency,
        disk_gb_per_s: None,
        disk_read_gb_per_s: None,
        disk_fraction: None,
    }
}

/// A row for each figure; every repetition is shown, so that an outlier can be seen.
fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { model, isa, threads, threads_batch, n_prompt, n_gen, depth, .. } = report;
    let (k, v) = (report.cache_type_k, report.cache_type_v);
    let arithmetic = if report.exact { ", exact" } else { "" };
    let size = report.model_bytes as f64 / 1e6;
    let tiers = match report.kv_tiers {
        "off" => String::new(),
        tiers => format!(" with {tiers} tiers"),
    };
    let cache = format!("cache {k}/{v}{tiers}");
    if report.synthetic {
        writeln!(out, "{SYNTHETIC}\n")?;
    }
    writeln!(out, "{model}, {size:.1} MB of tensors; {isa}{arithmetic}, {cache},")?;
    writeln!(out, "{threads} threads to generate, {threads_batch} to read the prompt\n")?;
    writeln!(out, "| test | unit | mean ± sd | median | repetitions |")?;
    writeln!(out, "|---|---|---:|---:|---|")?;
    let prefill = format!("pp{n_prompt}");
    let at = if *depth > 0 { format!(" @ d{depth}") } else { String::new() };
    let each = match report.tokens_per_pass {
        1 => String::new(),
        tokens => format!(" in passes of {tokens}"),
    };
    let decode = format!("tg{n_gen}{each}{at}");
    for (test, unit, scale, digits, statistics) in [
        ("load", "ms", 1.0, 2, &report.load_ms),
        (&prefill, "tokens/s", 1.0, 2, &report.prefill_tokens_per_s),
        (&decode, "tokens/s", 1.0, 2, &report.decode_tokens_per_s),
        (&decode, "MB/token, counted", 1e-6, 2, &report.bytes_per_token),
        (&decode, "GB/s", 1.0, 2, &report.read_gb_per_s),
        ("streaming read", "GB/s", 1.0, 2, &report.stream_gb_per_s),
        (&decode, "of the streaming read", 1.0, 3, &report.bandwidth_fraction),
        (&decode, "GB/s from disk", 1.0, 2, &report.disk_read_gb_per_s),
        ("disk alone", "GB/s", 1.0, 2, &report.disk_gb_per_s),
        (&decode, "of the disk alone", 1.0, 3, &report.disk_fraction),
    ] {
        let Some(Statistics { median, mean, sd, samples }) = statistics else { continue };
        let shown = |x: &f64| format!("{:.digits$}", x * scale);
        let (mean, sd, median) = (shown(mean), shown(sd), shown(median));
        let samples = samples.iter().map(shown).collect::<Vec<_>>().join(" ");
        writeln!(out, "| {test} | {unit} | {mean} ± {sd} | {median} | {samples} |")?;
    }
    Ok(())
}
