//! `aios memory bench`.

use std::io::{self, Write};

use anyhow::Context;
use clap::Args;

use super::super::progress::bar;
use super::print_json;
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::Error;
use crate::memory::bench::{Measured, Plan, run as measure};

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} fragments, {eta} left";

/// Measure searches in a store of fragments that are drawn at random.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory bench
  aios memory bench --fragments 1000000 --searches 50 --json

Texts have the frequencies of words of a language, vectors are random; the time to embed a question
is not part of it. The store is made in the folder for temporary files and removed.")]
pub(super) struct BenchArgs {
    /// Fragments in the store.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    fragments: u32,
    /// The length of a vector.
    #[arg(long, value_name = "N", default_value_t = 384)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=8192))]
    dim: u32,
    /// Searches of each backend.
    #[arg(long, value_name = "N", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    searches: u32,
    /// What the random numbers begin with.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `aios memory bench`.
pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let folder = tempfile::tempdir().context("cannot make a folder for the store")?;
    let plan = Plan {
        fragments: args.fragments as usize,
        dim: args.dim as usize,
        searches: args.searches as usize,
        seed: args.seed,
    };
    let bar = bar(TEMPLATE);
    bar.set_length(plan.fragments as u64);
    let outcome = measure(&folder.path().join("memory.sqlite3"), &plan, &mut |stored| {
        bar.set_position(stored as u64);
        if interrupt.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    });
    bar.finish_and_clear();
    let measured = match outcome {
        Err(Error::Interrupted) => return Err(Interrupted.into()),
        outcome => outcome?,
    };
    if args.json { print_json(&measured) } else { Ok(print(&measured)?) }
}

fn print(measured: &Measured) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{} fragments with vectors of {} numbers ({}), {:.0} MB; \
         stored in {:.1} s, opened in {:.0} ms",
        measured.fragments,
        measured.dim,
        measured.data,
        measured.bytes as f64 / 1e6,
        measured.build_ms / 1e3,
        measured.open_ms
    )?;
    writeln!(
        out,
        "{:10}  {:>6}  {:>9}  {:>9}  {:>9}",
        "backend", "n", "p50 ms", "p95 ms", "max ms"
    )?;
    for search in &measured.searches {
        writeln!(
            out,
            "{:10}  {:>6}  {:>9.2}  {:>9.2}  {:>9.2}",
            search.backend,
            search.n,
            search.latency_ms_p50,
            search.latency_ms_p95,
            search.latency_ms_max
        )?;
    }
    Ok(())
}
