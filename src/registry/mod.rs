//! The models of a program: which there are, which are loaded, who uses them (SPEC O).
//!
//! A model in use is a [`Lease`]: it stays loaded until the last of its leases is gone, whatever is
//! unloaded or swapped meanwhile. What a model is and how it answers is a [`Backend`], and a
//! [`Source`] makes these of entries; [`Local`] is the source of models that this engine runs.

mod backend;
mod error;
mod events;
mod lease;
mod local;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use backend::{Backend, Description, ExecutionMode, Held, SessionOptions, Source};
pub use error::RegistryError;
pub use events::Event;
pub use lease::Lease;
pub use local::{CONTEXT_DEFAULT, Direct, Fetch, Local, LocalModel};

use crate::config::{Bytes, Family, ModelEntry, ModelRole};
use lease::Slot;
use state::State;

/// The section `[registry]` of `aios.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The most bytes of weights that stay loaded; none for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

impl Options {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn check(&self) -> Result<(), String> {
        match self.memory {
            Some(Bytes(0)) => Err("memory must be more than 0; leave it out for no limit".into()),
            _ => Ok(()),
        }
    }
}

/// What became of a model that was to be unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unloaded {
    /// It was not loaded.
    NotLoaded,
    /// Its memory is free.
    Now,
    /// Its memory is free when these sessions have ended.
    After {
        /// How many there are.
        sessions: usize,
    },
}

/// A model of the registry and how it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// What the configuration says of it.
    pub entry: ModelEntry,
    /// The roles that it serves now.
    pub serves: Vec<ModelRole>,
    /// Whether it is loaded, and then how many use it.
    pub uses: Option<usize>,
}

/// The models of a program. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    source: Box<dyn Source>,
    budget: Option<u64>,
    /// One model is loaded at a time, without keeping those from being used that are there.
    loading: Mutex<()>,
    state: Mutex<State>,
}

impl Registry {
    /// A registry of `entries`, none of them loaded. The first with a role serves it.
    ///
    /// # Errors
    /// [`RegistryError::Duplicate`].
    pub fn new(
        entries: &[ModelEntry],
        options: &Options,
        source: Box<dyn Source>,
    ) -> Result<Self, RegistryError> {
        let budget = options.memory.map(|Bytes(bytes)| bytes);
        let (loading, state) = (Mutex::default(), Mutex::new(State::default()));
        let registry = Self { shared: Arc::new(Shared { source, budget, loading, state }) };
        entries.iter().try_for_each(|entry| registry.add(entry.clone()))?;
        Ok(registry)
    }

    /// Adds a model. It serves its role if no other does.
    ///
    /// # Errors
    /// [`RegistryError::Duplicate`].
    pub fn add(&self, entry: ModelEntry) -> Result<(), RegistryError> {
        self.state().add(entry)
    }

    /// The name of the model that serves `role`, if one does.
    pub fn serving(&self, role: ModelRole) -> Option<String> {
        self.state().serving.get(&role).cloned()
    }

    /// What the configuration says of the model called `name`.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn entry(&self, name: &str) -> Result<ModelEntry, RegistryError> {
        self.state().entry(name).cloned()
    }

    /// Every model, in the order of the configuration.
    pub fn list(&self) -> Vec<Listing> {
        self.state().list()
    }

    /// The same for people, a line each; a star stands before the model called `answering`.
    pub fn lines(&self, answering: Option<&str>) -> Vec<String> {
        let listings = self.list();
        let width = listings.iter().map(|of| of.entry.name.len()).max().unwrap_or(0);
        let line = |of: &Listing| {
            let mark = if Some(of.entry.name.as_str()) == answering { '*' } else { ' ' };
            let state = if of.uses.is_some() { "loaded" } else { "" };
            let family = of.entry.family.map_or("", Family::name);
            let (name, role) = (of.entry.name.escape_debug().to_string(), of.entry.role);
            let line = format!("{mark} {name:width$}  {:8}  {family:6}  {state}", role.name());
            line.trim_end().to_owned()
        };
        listings.iter().map(line).collect()
    }

    /// What has happened from event number `first` on, as far as it is remembered.
    pub fn events(&self, first: u64) -> Vec<(u64, Event)> {
        self.state().events.since(first)
    }

    /// The model that serves `role`, loaded if it was not.
    ///
    /// # Errors
    /// [`RegistryError::NoRole`], and those of loading.
    pub fn acquire(&self, role: ModelRole) -> Result<Lease<dyn Backend>, RegistryError> {
        loop {
            let name = {
                let mut state = self.state();
                let name = state.serving.get(&role).cloned();
                let name = name.ok_or(RegistryError::NoRole { role })?;
                if let Some(lease) = state.lease(&name) {
                    return Ok(lease);
                }
                name
            };
            match self.lease(&name, None) {
                // Another took its place meanwhile, which then has the memory.
                Err(_) if self.serving(role).is_some_and(|now| now != name) => {}
                outcome => return outcome,
            }
        }
    }

    /// The model called `name`, loaded if it was not.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], and those of loading.
    pub fn acquire_named(&self, name: &str) -> Result<Lease<dyn Backend>, RegistryError> {
        self.lease(name, None)
    }

    /// Loads the model called `name`, if it is not loaded.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Load`] and [`RegistryError::Memory`].
    pub fn load(&self, name: &str) -> Result<(), RegistryError> {
        self.lease(name, None).map(drop)
    }

    /// Lets go of the model called `name`. Who uses it goes on; who asks for it next has it loaded
    /// again.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn unload(&self, name: &str) -> Result<Unloaded, RegistryError> {
        // No model that is being loaded at this moment is overlooked.
        let _one = lock(&self.shared.loading);
        let mut state = self.state();
        state.entry(name)?;
        Ok(state.let_go(name))
    }

    /// Has `role` served by the model called `name` from now on. Sessions with the model that
    /// served it go on with that one. If the new one cannot be loaded, everything is as before.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], [`RegistryError::Load`] and [`RegistryError::Memory`].
    pub fn swap(&self, role: ModelRole, name: &str) -> Result<Lease<dyn Backend>, RegistryError> {
        self.swap_with(role, name, |lease| Ok(lease.clone()))
    }

    /// As [`Self::swap`], if `trial` succeeds with the new model: opening a session, say. What it
    /// makes is returned.
    ///
    /// # Errors
    /// Those of [`Self::swap`], and [`RegistryError::Refused`] with the error of `trial`.
    pub fn swap_with<T>(
        &self,
        role: ModelRole,
        name: &str,
        trial: impl FnOnce(&Lease<dyn Backend>) -> anyhow::Result<T>,
    ) -> Result<T, RegistryError> {
        let old = self.serving(role).ok_or(RegistryError::NoRole { role })?;
        let made = self.lease(name, Some(&old)).and_then(|lease| {
            let refused = |source| RegistryError::Refused { name: name.to_owned(), source };
            Ok((trial(&lease).map_err(refused)?, lease))
        });
        let mut state = self.state();
        match made {
            Ok((made, _lease)) => {
                state.serve(role, name);
                state.keep_within(self.shared.budget, name);
                Ok(made)
            }
            Err(error) => {
                let reason = sentence(&error);
                let (kept, refused) = (old, name.to_owned());
                state.events.push(Event::RolledBack { role, kept, refused, reason });
                // What the trial loaded must not stay beyond the budget either.
                let serving = state.serving.get(&role).cloned().unwrap_or_default();
                state.keep_within(self.shared.budget, &serving);
                Err(error)
            }
        }
    }

    /// A lease of the model called `name`. The memory of the model `leaving` counts as free.
    fn lease(
        &self,
        name: &str,
        leaving: Option<&str>,
    ) -> Result<Lease<dyn Backend>, RegistryError> {
        if let Some(lease) = self.state().lease(name) {
            return Ok(lease);
        }
        let _one = lock(&self.shared.loading);
        let entry = {
            let mut state = self.state();
            if let Some(lease) = state.lease(name) {
                return Ok(lease);
            }
            state.entry(name)?.clone()
        };
        let failed = |source| RegistryError::Load { name: name.to_owned(), source };
        let loaded = self.shared.source.load(&entry).map_err(failed);
        let mut state = self.state();
        let admitted = loaded.and_then(|backend| {
            state.admit(Slot::new(name.to_owned(), backend), self.shared.budget, leaving)
        });
        admitted.inspect_err(|error| {
            let (model, reason) = (name.to_owned(), sentence(error));
            state.events.push(Event::Failed { model, reason });
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

/// The guard, also of what a thread left that has panicked: each change of it is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error and its causes on one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    text
}
