//! What a record says of a request besides what its model did.

use std::time::Duration;

use super::{Assembled, Choices};
use crate::memory::{Mode, Retrieval};
use crate::persona;
use crate::provenance::{self, Layer, Notes, Routing};
use crate::router::{Basis, NAMES, Route};

/// The notes of a request that went by `route` and was assembled so.
pub(super) fn of(
    choices: &Choices,
    route: &Route,
    retrieval: Option<&Retrieval>,
    took: Duration,
    assembled: &Assembled,
) -> Notes {
    let (core, name, persona) = match choices.layer {
        persona::Layer::Luna => ("luna", "luna", Some(choices.persona.name.clone())),
        persona::Layer::Basic => ("basic", "basic", None),
    };
    let dropped_messages = Some(2 * assembled.exchanges_dropped as u64);
    Notes {
        core: Some(core.to_owned()),
        router_tier: Some(route.tier),
        router: Some(routing(route)),
        retrieval: retrieval.map(|of| recorded(of, took)),
        layer: Some(Layer { name: name.to_owned(), persona, dropped_messages }),
        ..Notes::default()
    }
}

fn routing(route: &Route) -> Routing {
    let values = route.features.values();
    Routing {
        scorer_version: route.scorer_version.to_owned(),
        score: Some(route.score),
        margin: Some(route.margin),
        features: NAMES.iter().map(|name| (*name).to_owned()).zip(values).collect(),
        budget: Some(u64::from(route.budget.max_tokens)),
        reason: Some(route.reason.clone()),
        forced: route.basis == Basis::Forced,
    }
}

fn recorded(of: &Retrieval, took: Duration) -> provenance::Retrieval {
    let failed = of.mode == Mode::Failed;
    let count = |n: usize| Some(n as u64).filter(|_| !failed);
    let dense = match of.mode {
        Mode::Hybrid | Mode::Dense => Some(true),
        Mode::Bm25 => Some(false),
        Mode::Failed => None,
    };
    provenance::Retrieval {
        backend: of.backend.name().to_owned(),
        fragments_found: count(of.fragments_found),
        fragments_relevant: count(of.fragments_relevant),
        dense,
        fragments: of.fragments.iter().map(|hit| (hit.id.unsigned_abs(), hit.score)).collect(),
        ms: Some(took.as_secs_f64() * 1e3),
        degraded: of.note.clone().filter(|_| failed),
    }
}
