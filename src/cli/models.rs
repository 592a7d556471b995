//! `aios models` and `aios pull`, and the way from `-m` to a file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::Terminal;
use crate::config::{Config, Family, Loaded, ModelEntry, ModelRole, Place};
use crate::interrupt::Interrupt;
use crate::models::{Catalog, Named, Pulled, State, Store, Watch};

/// List the models that can be had by name.
#[derive(Args, Debug)]
pub(super) struct ModelsArgs {
    /// Print JSON: an array with one object per model.
    #[arg(long)]
    json: bool,
    /// List the models of the registry alone, as aios.toml names them.
    #[arg(long)]
    registry: bool,
}

/// Fetch a model by name, verify it, and print its path.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios pull smollm2-135m-instruct
  aios pull gemma-3-270m --from ~/Downloads/gemma-3-270m-q4_k_m.gguf

A model that is there already is verified again. Nothing that fails its SHA-256 is kept.")]
pub(super) struct PullArgs {
    /// The name of the model; 'aios models' lists them.
    name: String,
    /// Take the bytes from this file instead of the catalogue's sources.
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
}

/// One row of `aios models --json`.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    about: &'a str,
    file: &'a str,
    bytes: u64,
    sha256: &'a str,
    licence: &'a str,
    terms: &'a str,
    state: &'static str,
    path: PathBuf,
    /// The names that it has in the registry.
    registry: Vec<&'a str>,
}

/// A model of the registry, as `aios models` lists it.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    role: ModelRole,
    family: &'static str,
    file: Option<&'a Path>,
    catalogue: Option<&'a str>,
    state: &'static str,
}

/// The catalogue in force: the file that `AIOS_CATALOG` names, or else the built-in one.
///
/// # Errors
/// Those of [`Catalog::read`].
pub(super) fn catalog() -> Result<Catalog, crate::models::Error> {
    match std::env::var_os("AIOS_CATALOG").filter(|path| !path.is_empty()) {
        Some(path) => Catalog::read(path.as_ref()),
        None => Ok(Catalog::builtin().clone()),
    }
}

/// The file that `-m` names, fetched first if it is a model of the catalogue that is not there.
///
/// # Errors
/// Those of [`Store::ensure`], and an unknown name.
pub fn model_file(model: &str, interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    let catalog = catalog()?;
    let named = Named::parse(&catalog, model)?;
    let terminal = Terminal::new();
    let watch = Watch { cancel: interrupt.flag(), observer: &terminal };
    Ok(named.file(&Store::locate()?, &watch)?)
}

/// Runs `aios models`.
pub(super) fn list(args: &ModelsArgs, place: &Place) -> anyhow::Result<()> {
    let (catalog, store) = (catalog()?, Store::locate()?);
    let loaded = Loaded::load(place)?;
    let entries = entries(&loaded.config, &catalog, &store)?;
    if args.registry {
        return list_registry(&entries, &loaded, args.json);
    }
    let mut rows = Vec::new();
    for model in catalog.models() {
        let state = match store.state(model)? {
            State::Absent => "absent",
            State::Present => "present",
            State::Stale(_) => "stale",
        };
        rows.push(Row {
            name: &model.name,
            about: &model.about,
            file: &model.file,
            bytes: model.bytes,
            sha256: &model.sha256,
            licence: &model.licence,
            terms: &model.terms,
            state,
            path: store.path(model),
            registry: entries
                .iter()
                .filter(|entry| entry.catalogue == Some(&model.name))
                .map(|entry| entry.name)
                .collect(),
        });
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &rows).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in &rows {
        writeln!(
            out,
            "{:width$}  {:>7.1} MB  {:7}  {}  [{}]",
            row.name,
            row.bytes as f64 / 1e6,
            row.state,
            row.about,
            row.licence
        )?;
    }
    writeln!(
        out,
        "\nThey are kept in {}; fetch one with 'aios pull NAME'.",
        store.folder().display()
    )?;
    drop(out);
    writeln!(io::stdout())?;
    list_registry(&entries, &loaded, false)
}

/// The models of the configuration, and whether their files are there.
fn entries<'a>(
    config: &'a Config,
    catalog: &Catalog,
    store: &Store,
) -> anyhow::Result<Vec<Entry<'a>>> {
    let entry = |model: &'a ModelEntry| {
        let state = match (&model.file, &model.catalogue) {
            (Some(file), _) if file.is_file() => "present",
            (Some(_), _) => "absent",
            (None, name) => match catalog.model(name.as_deref().unwrap_or_default()) {
                Err(_) => "unknown",
                Ok(model) => match store.state(model)? {
                    State::Absent => "absent",
                    State::Present => "present",
                    State::Stale(_) => "stale",
                },
            },
        };
        Ok(Entry {
            name: &model.name,
            role: model.role,
            family: model.family.map_or("", Family::name),
            file: model.file.as_deref(),
            catalogue: model.catalogue.as_deref(),
            state,
        })
    };
    config.models.iter().map(entry).collect()
}

fn list_registry(entries: &[Entry<'_>], loaded: &Loaded, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, entries).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    match &loaded.path {
        Some(path) => writeln!(out, "In the registry ({}):", path.display())?,
        None => writeln!(out, "In the registry (built in; 'aios config init' writes a file):")?,
    }
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    for Entry { name, role, family, file, catalogue, state } in entries {
        let role = role.name();
        write!(out, "{name:width$}  {role:8}  {family:6}  {state:7}  ")?;
        match (file, catalogue) {
            (Some(file), _) => writeln!(out, "{}", file.display())?,
            (None, name) => writeln!(out, "catalogue: {}", name.unwrap_or_default())?,
        }
    }
    Ok(())
}

/// Runs `aios pull`.
pub(super) fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let (catalog, store) = (catalog()?, Store::locate()?);
    let model = catalog.model(&args.name)?;
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let pulled = {
        let terminal = Terminal::new();
        let watch = Watch { cancel: interrupt.flag(), observer: &terminal };
        store.pull(model, args.from.as_deref(), &watch)?
    };
    let what = match pulled {
        Pulled::Verified => "was there already",
        Pulled::Fetched => "is fetched",
    };
    eprintln!("{} {what}; its SHA-256 is right.", model.name);
    writeln!(io::stdout(), "{}", store.path(model).display())?;
    Ok(())
}
