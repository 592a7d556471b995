//! The registry as the command line sets it up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aios_engine::Model;
use anyhow::Context;

use super::models::catalog;
use super::{Terminal, WeightArgs};
use crate::config::{Config, ModelEntry, ModelRole};
use crate::interrupt::Interrupt;
use crate::models::{Named, Store, Watch, cache_folder};
use crate::registry::{Fetch, Local, Registry};

/// Loads weights as the arguments say.
struct Files {
    weights: WeightArgs,
    interrupt: Interrupt,
}

impl Fetch for Files {
    fn catalogue(&self, name: &str) -> anyhow::Result<PathBuf> {
        let terminal = Terminal::new();
        let watch = Watch { cancel: self.interrupt.flag(), observer: &terminal };
        Ok(Store::locate()?.ensure(catalog()?.model(name)?, &watch)?)
    }

    fn load(&self, path: &Path, ram: Option<u64>) -> anyhow::Result<Arc<Model>> {
        // A budget of the command line goes before the entry's, as it does for sessions.
        self.weights.within(self.weights.ram.or(ram)).load(path, false, &self.interrupt)
    }
}

/// The registry of `config`, whose weights are loaded as `weights` says.
///
/// # Errors
/// Two models of one name.
pub(super) fn registry(
    config: &Config,
    weights: &WeightArgs,
    interrupt: &Interrupt,
) -> anyhow::Result<Registry> {
    let files = Files { weights: weights.clone(), interrupt: interrupt.clone() };
    let digests = cache_folder().map(|folder| folder.join("digests"));
    let source = Box::new(Local::new(files, digests));
    Ok(Registry::new(&config.models, &config.registry, source)?)
}

/// The name in the registry of what `-m` or `/model` call `text`: a model of the registry, else one
/// of the catalogue, else a file. What is not in the registry yet is added.
///
/// # Errors
/// If it is none of them.
pub(super) fn find(registry: &Registry, text: &str) -> anyhow::Result<String> {
    let Err(unknown) = registry.entry(text) else { return Ok(text.to_owned()) };
    let entry = match Named::parse(&catalog()?, text) {
        Ok(Named::Model(model)) => ModelEntry::of_catalogue(text, ModelRole::Main, &model.name),
        Ok(Named::File(path)) => ModelEntry::of_file(text, ModelRole::Main, path),
        Err(error) => return Err(anyhow::Error::from(unknown).context(error.to_string())),
    };
    registry.add(entry).with_context(|| format!("cannot use '{}'", text.escape_debug()))?;
    Ok(text.to_owned())
}
