//! A chat with a model, on the library: fetch, load, answer, and say what each answer cost.
//!
//! `cargo run --example chat` talks to the default model; `-- --help` lists what can be set.

use std::process::ExitCode;

use aios::cli::{ChatArgs, report, run_chat, spell_out};
use clap::Parser;

/// Talk to a model.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    chat: ChatArgs,
}

fn main() -> ExitCode {
    // Chat templates come from strangers: a child process renders them, which is this program.
    aios_engine::template::run_child_if_asked();
    let cli = Cli::parse_from(spell_out(std::env::args_os()));
    match run_chat(&cli.chat) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}
