//! `aios persona`: shows and checks who answers.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::persona::Persona;
use crate::router::Tier;

/// Show or check a persona: who answers, and what each tier is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios persona show              the built-in persona, Luna
  aios persona show mine.toml    what a model is told by a persona of your own
  aios persona check mine.toml   exits with 1 and names what is wrong

A persona is a TOML file: name, voice, traits (a list), and [tiers] with trivial, moderate, high.")]
pub(super) struct PersonaArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the system message of every tier.
    Show {
        /// A persona [default: Luna].
        file: Option<PathBuf>,
    },
    /// Say whether a file can be used.
    Check {
        /// A persona.
        file: PathBuf,
    },
}

/// Runs `aios persona`.
pub(super) fn run(args: &PersonaArgs) -> anyhow::Result<()> {
    let read = |file: &PathBuf| {
        Persona::read(file).with_context(|| format!("{} cannot be used", file.display()))
    };
    let mut out = io::stdout().lock();
    match &args.action {
        Action::Check { file } => writeln!(out, "{}: sound", read(file)?.name)?,
        Action::Show { file } => {
            let persona = file.as_ref().map_or_else(|| Ok(Persona::default()), read)?;
            for tier in Tier::ALL {
                let name = tier.name();
                writeln!(out, "{} ({name})\n{}\n", persona.name, persona.instructions(tier))?;
            }
        }
    }
    Ok(())
}
