//! What the registry's lock guards: entries, loaded models, and the budget's arithmetic.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};

use super::events::Events;
use super::lease::Slot;
use super::{Backend, Event, Lease, Listing, RegistryError, Unloaded};
use crate::config::{ModelEntry, ModelRole, nearest};

#[derive(Default)]
pub(super) struct State {
    entries: Vec<ModelEntry>,
    /// Which model serves a role.
    pub(super) serving: BTreeMap<ModelRole, String>,
    /// Loaded models, the one used longest ago first.
    slots: Vec<Arc<Slot>>,
    /// Models that were let go of while they were used.
    retired: Vec<Weak<Slot>>,
    pub(super) events: Events,
}

impl State {
    pub(super) fn add(&mut self, entry: ModelEntry) -> Result<(), RegistryError> {
        if self.entries.iter().any(|known| known.name == entry.name) {
            return Err(RegistryError::Duplicate { name: entry.name });
        }
        self.serving.entry(entry.role).or_insert_with(|| entry.name.clone());
        self.entries.push(entry);
        Ok(())
    }

    pub(super) fn entry(&self, name: &str) -> Result<&ModelEntry, RegistryError> {
        self.entries.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
            let hint = nearest(name, &known).map(|near| format!("; did you mean '{near}'?"));
            RegistryError::Unknown {
                name: name.to_owned(),
                hint: hint.unwrap_or_default(),
                known: known.into_iter().map(str::to_owned).collect(),
            }
        })
    }

    pub(super) fn list(&self) -> Vec<Listing> {
        let listing = |entry: &ModelEntry| {
            let serves = self.serving.iter().filter(|(_, name)| **name == entry.name);
            let slot = self.slots.iter().find(|slot| slot.name == entry.name);
            Listing {
                entry: entry.clone(),
                serves: serves.map(|(role, _)| *role).collect(),
                uses: slot.map(|slot| slot.uses()),
            }
        };
        self.entries.iter().map(listing).collect()
    }

    /// A lease of a model that is loaded, which is now the one used last.
    pub(super) fn lease(&mut self, name: &str) -> Option<Lease<dyn Backend>> {
        let at = self.slots.iter().position(|slot| slot.name == name)?;
        self.slots[at..].rotate_left(1);
        self.slots.last().map(Slot::lease)
    }

    pub(super) fn serve(&mut self, role: ModelRole, name: &str) {
        let old = self.serving.insert(role, name.to_owned());
        if let Some(from) = old.filter(|old| old != name) {
            self.events.push(Event::Swapped { role, from, to: name.to_owned() });
        }
    }

    /// Takes a loaded model in and leases it. Unused ones make room for it, the one used longest
    /// ago first; nothing is let go of unless that suffices. The model `leaving` counts as gone.
    pub(super) fn admit(
        &mut self,
        slot: Slot,
        budget: Option<u64>,
        leaving: Option<&str>,
    ) -> Result<Lease<dyn Backend>, RegistryError> {
        let slot = Arc::new(slot);
        let victims = match budget {
            None => Vec::new(),
            Some(budget) => self.victims(&slot, budget, leaving)?,
        };
        for victim in victims {
            self.evict(&victim, &slot.name);
        }
        let same = self.alive().into_iter().find(|other| other.held.id == slot.held.id);
        self.events.push(Event::Loaded {
            model: slot.name.clone(),
            bytes: slot.held.bytes,
            shares: same.map(|other| other.name.clone()),
        });
        self.slots.push(Arc::clone(&slot));
        Ok(slot.lease())
    }

    /// The unused models that must go so that `slot` fits.
    fn victims(
        &mut self,
        slot: &Arc<Slot>,
        budget: u64,
        leaving: Option<&str>,
    ) -> Result<Vec<Arc<Slot>>, RegistryError> {
        let mut staying = self.alive();
        staying.retain(|other| leaving != Some(other.name.as_str()));
        let mut victims = Vec::new();
        loop {
            let used = bytes(&staying);
            let with = bytes(staying.iter().chain([slot]));
            if with <= budget {
                return Ok(victims);
            }
            // Weights are free when none of the models that share them is left or in use.
            let busy: HashSet<usize> = staying
                .iter()
                .filter(|other| other.uses() > 0)
                .chain([slot])
                .map(|other| other.held.id)
                .collect();
            let idle = staying.iter().map(|other| other.held.id).find(|id| !busy.contains(id));
            match idle {
                Some(id) => victims.extend(staying.extract_if(.., |other| other.held.id == id)),
                None => {
                    return Err(RegistryError::Memory {
                        name: slot.name.clone(),
                        bytes: slot.held.bytes,
                        budget,
                        used,
                        users: staying.iter().map(|other| other.name.clone()).collect(),
                    });
                }
            }
        }
    }

    /// Lets go of models other than `serving` until the budget holds: the unused ones at once, and
    /// then those in use, whose memory is free when their sessions end.
    pub(super) fn keep_within(&mut self, budget: Option<u64>, serving: &str) {
        let Some(budget) = budget else { return };
        while bytes(&self.slots) > budget {
            let others = || self.slots.iter().filter(|slot| slot.name != serving);
            let victim = others().find(|slot| slot.uses() == 0).or_else(|| others().next());
            let Some(victim) = victim.cloned() else { return };
            if victim.uses() == 0 {
                self.evict(&victim, serving);
            } else {
                self.let_go(&victim.name);
            }
        }
    }

    /// Lets go of a model: at once, or when its last lease is gone.
    pub(super) fn let_go(&mut self, name: &str) -> Unloaded {
        let Some(at) = self.slots.iter().position(|slot| slot.name == name) else {
            return Unloaded::NotLoaded;
        };
        let (slot, model) = (self.slots.remove(at), name.to_owned());
        match slot.uses() {
            0 => {
                self.events.push(Event::Unloaded { model });
                Unloaded::Now
            }
            sessions => {
                self.retired.push(Arc::downgrade(&slot));
                self.events.push(Event::Retired { model, sessions });
                Unloaded::After { sessions }
            }
        }
    }

    fn evict(&mut self, victim: &Arc<Slot>, wanted_by: &str) {
        self.slots.retain(|slot| !Arc::ptr_eq(slot, victim));
        self.events.push(Event::Evicted {
            model: victim.name.clone(),
            bytes: victim.held.bytes,
            wanted_by: wanted_by.to_owned(),
        });
    }

    /// Everything that takes memory, the one used longest ago first.
    fn alive(&mut self) -> Vec<Arc<Slot>> {
        self.retired.retain(|slot| slot.strong_count() > 0);
        let retired = self.retired.iter().filter_map(Weak::upgrade).filter(|slot| slot.uses() > 0);
        retired.chain(self.slots.iter().cloned()).collect()
    }
}

/// Bytes of the weights of all these, shared ones counted once.
fn bytes<'a>(slots: impl IntoIterator<Item = &'a Arc<Slot>>) -> u64 {
    let mut seen = HashSet::new();
    let own = slots.into_iter().filter(|slot| seen.insert(slot.held.id));
    own.map(|slot| slot.held.bytes).sum()
}
