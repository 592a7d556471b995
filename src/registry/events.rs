//! What the registry has done, for people and for records.

use std::collections::VecDeque;
use std::fmt;

use serde::Serialize;

use crate::config::ModelRole;

/// The latest events that are remembered.
const EVENTS_MAX: usize = 256;

/// Something that the registry has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum Event {
    /// A model was loaded.
    Loaded { model: String, bytes: u64, shares: Option<String> },
    /// A model could not be loaded.
    Failed { model: String, reason: String },
    /// A model was let go because somebody said so.
    Unloaded { model: String },
    /// A model was let go, and sessions still use it; its memory is free when they end.
    Retired { model: String, sessions: usize },
    /// A model was let go to make room.
    Evicted { model: String, bytes: u64, wanted_by: String },
    /// A role is served by another model.
    Swapped { role: ModelRole, from: String, to: String },
    /// A role goes on with its model, since another could not take it.
    RolledBack { role: ModelRole, kept: String, refused: String, reason: String },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "a size for people")]
        let megabytes = |bytes: &u64| *bytes as f64 / 1e6;
        match self {
            Self::Loaded { model, shares: Some(other), .. } => {
                write!(f, "{model} is loaded; it shares the weights of {other}")
            }
            Self::Loaded { model, bytes, shares: None } => {
                write!(f, "{model} is loaded: {:.1} MB of weights", megabytes(bytes))
            }
            Self::Failed { model, reason } => write!(f, "{model} is not loaded: {reason}"),
            Self::Unloaded { model } => write!(f, "{model} is unloaded"),
            Self::Retired { model, sessions } => {
                write!(f, "{model} is unloaded when its last session ends; {sessions} use it")
            }
            Self::Evicted { model, bytes, wanted_by } => {
                let size = megabytes(bytes);
                write!(f, "{model} is unloaded: {wanted_by} needs its {size:.1} MB")
            }
            Self::Swapped { role, from, to } => {
                write!(f, "{to} serves as {role} instead of {from}")
            }
            Self::RolledBack { role, kept, refused, reason } => {
                write!(f, "{kept} still serves as {role}: {refused} cannot: {reason}")
            }
        }
    }
}

/// The latest events, each with its number.
#[derive(Debug, Default)]
pub(super) struct Events {
    next: u64,
    latest: VecDeque<(u64, Event)>,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        tracing::info!("{event}");
        if self.latest.len() == EVENTS_MAX {
            self.latest.pop_front();
        }
        self.latest.push_back((self.next, event));
        self.next += 1;
    }

    /// Those from number `first` on.
    pub(super) fn since(&self, first: u64) -> Vec<(u64, Event)> {
        self.latest.iter().filter(|(number, _)| *number >= first).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_with_their_numbers() {
        let mut events = Events::default();
        for i in 0..300 {
            events.push(Event::Unloaded { model: format!("m{i}") });
        }
        let all = events.since(0);
        assert_eq!((all.len(), all[0].0, all[255].0), (256, 44, 299));
        assert_eq!(events.since(299), [(299, Event::Unloaded { model: "m299".to_owned() })]);
        assert_eq!(events.since(300), []);
    }
}
