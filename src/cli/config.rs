//! `aios config`: checking, showing and writing `aios.toml`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;

use super::models::catalog;
use crate::config::{Config, ConfigError, Loaded, ModelRole, Origin, Place, write_default};
use crate::models::{State, Store};
use crate::registry::{Direct, Local, Source};

/// Check, show or write the configuration, aios.toml.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios config init                 write a commented file to start from
  aios config check                is the file sound?
  aios config check --models x.toml  and are the models in it what it says they are?
  aios config show                 every setting in force, and where it comes from

The file is the one that --config names, or else AIOS_CONFIG, or else aios/aios.toml in
XDG_CONFIG_HOME or ~/.config. Without a file the defaults are in force.")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the file is sound; an error names the line and the key.
    Check {
        /// The file [default: the one that would be used].
        file: Option<PathBuf>,
        /// Also open each model and compare its architecture with the family declared.
        #[arg(long)]
        models: bool,
    },
    /// Print every setting in force, and where it comes from.
    Show {
        /// Print JSON: an object with 'path' and 'settings', whose 'line' is null for a default.
        #[arg(long)]
        json: bool,
    },
    /// Write a commented file that changes nothing, and print its path.
    Init {
        /// Where to [default: the place where it is looked for].
        file: Option<PathBuf>,
        /// Replace a file that is there.
        #[arg(long)]
        force: bool,
    },
}

/// Runs `aios config`.
pub(super) fn run(args: &ConfigArgs, place: &Place) -> anyhow::Result<()> {
    match &args.command {
        ConfigCommand::Check { file, models } => {
            let named = file.clone().map(Place::Named);
            check(named.as_ref().unwrap_or(place), *models)
        }
        ConfigCommand::Show { json } => show(&Loaded::load(place)?, *json),
        ConfigCommand::Init { file, force } => {
            let path = file.as_deref().or_else(|| place.path()).ok_or(ConfigError::NoFolder)?;
            write_default(path, *force)?;
            writeln!(io::stdout(), "{}", path.display())?;
            Ok(())
        }
    }
}

fn check(place: &Place, models: bool) -> anyhow::Result<()> {
    let loaded = Loaded::load(place)?;
    let mut out = io::stdout().lock();
    match (&loaded.path, place.path()) {
        (Some(path), _) => write!(out, "{} is sound: ", path.display())?,
        (None, Some(path)) => {
            write!(out, "there is no {}; the defaults are in force: ", path.display())?;
        }
        (None, None) => write!(out, "there is no configuration; the defaults are in force: ")?,
    }
    let roles = ModelRole::ALL.into_iter().filter_map(|role| {
        let model = loaded.config.models.iter().find(|model| model.role == role)?;
        Some(format!("{role} {}", model.name))
    });
    writeln!(out, "{}", roles.collect::<Vec<_>>().join(", "))?;
    if models { check_models(&loaded.config, &mut out) } else { Ok(()) }
}

/// Opens every model that is there. A catalogue model that is not is said to be so; anything else
/// that is wrong is an error, after all models have been looked at.
fn check_models(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let source = Local::new(Direct, None);
    let mut wrong = 0;
    for entry in &config.models {
        let mut entry = entry.clone();
        if let Some(name) = &entry.catalogue {
            let (catalog, store) = (catalog()?, Store::locate()?);
            let found = catalog
                .model(name)
                .map_err(anyhow::Error::from)
                .and_then(|model| Ok((store.path(model), store.state(model)? == State::Present)));
            match found {
                Ok((path, true)) => entry.file = Some(path),
                Ok((_, false)) => {
                    writeln!(out, "{}: not fetched; 'aios pull {name}' fetches it", entry.name)?;
                    continue;
                }
                Err(error) => {
                    wrong += 1;
                    writeln!(out, "{}: {error:#}", entry.name)?;
                    continue;
                }
            }
        }
        match source.load(&entry).map(|backend| backend.describe()) {
            Ok(found) => writeln!(
                out,
                "{}: {}, {}, {}",
                entry.name,
                found.architecture,
                found.quantisation,
                found.execution_mode.name()
            )?,
            Err(error) => {
                wrong += 1;
                writeln!(out, "{}: {error:#}", entry.name)?;
            }
        }
    }
    anyhow::ensure!(wrong == 0, "{wrong} of {} models cannot be used", config.models.len());
    Ok(())
}

fn show(loaded: &Loaded, as_json: bool) -> anyhow::Result<()> {
    let settings = loaded.settings().context("cannot show the configuration")?;
    let mut out = io::stdout().lock();
    if as_json {
        let path = loaded.path.as_deref().map(Path::to_string_lossy);
        serde_json::to_writer_pretty(&mut out, &json!({"path": path, "settings": settings}))
            .map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    match &loaded.path {
        Some(path) => writeln!(out, "# {}", path.display())?,
        None => writeln!(out, "# no file: the defaults")?,
    }
    let lines: Vec<(String, String)> = settings
        .into_iter()
        .map(|setting| {
            let origin = match setting.origin {
                Origin::Default => "default".to_owned(),
                Origin::Line(line) => format!("line {line}"),
            };
            (format!("{} = {}", setting.key, setting.value), origin)
        })
        .collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
    for (line, origin) in &lines {
        writeln!(out, "{line:width$}  # {origin}")?;
    }
    Ok(())
}
