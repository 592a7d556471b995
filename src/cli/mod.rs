//! The command line of `aios`. Each subcommand is a file with its arguments and its `run`; this
//! one chooses between them and turns their outcome into an exit code.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

mod acceptance;
mod args;
mod ask;
mod baseline;
mod bench;
mod bench_arch;
mod bench_system;
mod chat;
mod compliance;
mod config;
mod data;
mod doctor;
mod embed;
mod headroom;
mod inspect;
mod levers;
mod logits;
mod lookup;
mod memory;
mod models;
mod output;
mod perplexity;
mod persona;
mod plan;
mod profile;
mod progress;
mod prompts;
mod provenance;
mod recording;
mod registry;
mod replay;
mod results;
mod route;
mod run;
mod seat;
mod simulate;
mod speculation;
mod synth;
mod talk;
mod template;
mod tokens;
mod weights;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use aios_engine::EngineError;
use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub use args::{
    CacheArgs, ComputeArgs, ContextArgs, GenerateArgs, MemoryArgs, ModelArgs, SamplingArgs,
    StatsFormat, ThreadArgs, spell_out,
};
pub use bench_arch::{BenchArchArgs, Connect, bench_arch};
pub use chat::{ChatArgs, run as run_chat};
pub use headroom::{HeadroomArgs, measure as measure_headroom, run as run_headroom};
pub use models::model_file;
pub use plan::{hardware, plan_folder};
pub use progress::Terminal;
pub use recording::{Named, RecordArgs};
pub use speculation::{SpecArgs, SpecMode};
pub use weights::{WeightArgs, panel_folder};

use crate::config::Place;
use crate::interrupt::Interrupted;
use crate::models::Error as ModelError;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("AIOS_REVISION"), ")");

const AFTER_HELP: &str = "\
Examples:
  aios chat                            talk to the default model
  aios run -p 'Once upon a time' -n 64  complete a text
  aios models                          which models can be had by name
  aios pull smollm2-135m-instruct      fetch one and verify it
  aios inspect model.gguf              what a file holds and what a token of it reads
  aios doctor                          what this machine can do

Settings are read from --config, AIOS_CONFIG, or aios/aios.toml in XDG_CONFIG_HOME
or ~/.config; 'aios config init' writes a commented file.

Models are kept in AIOS_MODEL_DIR, or in the folder 'models' of AIOS_CACHE_DIR
(default: XDG_CACHE_HOME/aios or ~/.cache/aios). AIOS_CATALOG names another catalogue.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.";

/// Runs GGUF language models on a CPU and counts every byte.
#[derive(Debug, Parser)]
#[command(name = "aios", version = VERSION, after_help = AFTER_HELP)]
#[command(arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    /// Log what happens to stderr; twice for more. RUST_LOG overrides it.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Read the settings from this file [default: AIOS_CONFIG, or aios/aios.toml in
    /// XDG_CONFIG_HOME or ~/.config].
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Chat(chat::ChatArgs),
    Ask(ask::AskArgs),
    Run(run::RunArgs),
    Config(config::ConfigArgs),
    Models(models::ModelsArgs),
    Pull(models::PullArgs),
    Inspect(inspect::InspectArgs),
    Doctor(doctor::DoctorArgs),
    Synth(synth::SynthArgs),
    Embed(embed::EmbedArgs),
    Tokenize(tokens::TokenizeArgs),
    Detokenize(tokens::DetokenizeArgs),
    Template(template::TemplateArgs),
    Logits(logits::LogitsArgs),
    Perplexity(perplexity::PerplexityArgs),
    Bench(bench::BenchArgs),
    Baseline(baseline::BaselineArgs),
    Compliance(compliance::ComplianceArgs),
    Catalog(compliance::CatalogArgs),
    Headroom(headroom::HeadroomArgs),
    Levers(levers::LeversArgs),
    Simulate(simulate::SimulateArgs),
    Acceptance(acceptance::AcceptanceArgs),
    Lookup(lookup::LookupArgs),
    Memory(memory::MemoryCommand),
    Profile(profile::ProfileArgs),
    Plan(plan::PlanArgs),
    Provenance(provenance::ProvenanceArgs),
    Data(data::DataArgs),
    BenchArch(bench_arch::BenchArchArgs),
    Results(results::ResultsArgs),
    Route(route::RouteArgs),
    Persona(persona::PersonaArgs),
}

/// A combination of arguments that makes no sense; exits with 2, as clap's own refusals do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    // A chat template is rendered by a child process that is this program again.
    aios_engine::template::run_child_if_asked();
    main_with(std::env::args_os())
}

/// Runs one subcommand, as a program of its own, with the arguments of this process.
pub fn main_of(command: &str) -> ExitCode {
    aios_engine::template::run_child_if_asked();
    // Its help and refusals name the subcommand that it is.
    let own = ["aios", command].map(OsString::from);
    main_with(own.into_iter().chain(std::env::args_os().skip(1)))
}

fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(spell_out(args)) {
        Ok(cli) => cli,
        Err(error) => {
            // Where even this cannot be printed, the exit code still tells.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    start_logging(cli.verbose);
    let place = Place::of(cli.config.as_deref());
    let outcome = match cli.command {
        Command::Chat(args) => chat::run_with(&args, &place),
        Command::Ask(args) => ask::run(&args, &place),
        Command::Run(args) => run::run(&args),
        Command::Models(args) => models::list(&args, &place),
        Command::Config(args) => config::run(&args, &place),
        Command::Pull(args) => models::pull(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Tokenize(args) => tokens::tokenize(&args),
        Command::Detokenize(args) => tokens::detokenize(&args),
        Command::Template(args) => template::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Baseline(args) => baseline::run(&args),
        Command::Compliance(args) => compliance::run(&args),
        Command::Catalog(args) => compliance::run_catalog(&args),
        Command::Headroom(args) => headroom::run(&args),
        Command::Levers(args) => levers::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Acceptance(args) => acceptance::run(&args),
        Command::Lookup(args) => lookup::run(&args),
        Command::Memory(command) => memory::run(&command, &place),
        Command::Profile(args) => profile::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Provenance(args) => provenance::run(&args),
        Command::Data(args) => data::run(&args),
        Command::BenchArch(args) => bench_arch(&args, &mut |path, interrupt| {
            bench_system::connect(path, interrupt, &place, args.memory.ram)
        }),
        Command::Results(args) => results::run(&args),
        Command::Route(args) => route::run(&args, &place),
        Command::Persona(args) => persona::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Says what went wrong on stderr and chooses the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let pipe_closed = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().any(|e| e.downcast_ref().is_some_and(pipe_closed)) {
        // The reader of our output has seen enough.
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", causes(error));
    let interrupted = error.chain().any(|e| {
        e.is::<Interrupted>()
            || matches!(e.downcast_ref(), Some(ModelError::Interrupted))
            || matches!(e.downcast_ref(), Some(EngineError::Cancelled))
    });
    match () {
        () if interrupted => ExitCode::from(130),
        () if error.is::<Usage>() => ExitCode::from(2),
        () => ExitCode::FAILURE,
    }
}

/// The error and its causes on one line. A cause that the message before it quotes already is not
/// said twice.
fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| {
        if said.is_empty() {
            cause
        } else if said.contains(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
}

fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info,aios=debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // It can only fail if a logger is there already, which is then the one to use.
    let _ = logs.try_init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("no such file").context("x.gguf: no such file");
        assert_eq!(causes(&error.context("cannot start")), "cannot start: x.gguf: no such file");
    }
}
