//! What answers the cases of `aios bench-arch`: the system, with one family's models at a time.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use clap::Parser;

use super::ask::{Opener, memory};
use super::memory::EmbedderArgs;
use super::models::catalog;
use super::registry;
use super::seat::SeatArgs;
use crate::bench_arch::{Answers, Case, Family};
use crate::chat::{Message, Responder, Role, Settings};
use crate::config::{Config, Loaded, ModelEntry, ModelRole, Place};
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::{Backend as Memories, Memory};
use crate::models::Named;
use crate::persona::Layer;
use crate::provenance::{Bench, Log, Record, SharedLog};
use crate::router::Scorer;
use crate::system::{Choices, Recall, System};

/// The options of a session when none is given.
#[derive(Parser)]
struct Usual {
    #[command(flatten)]
    seat: SeatArgs,
    #[command(flatten)]
    sampling: super::SamplingArgs,
    #[command(flatten)]
    embedder: EmbedderArgs,
}

/// Answers cases.
struct Families {
    usual: Usual,
    config: Config,
    memory: Arc<Memory>,
    log: SharedLog,
    interrupt: Interrupt,
    settings: Settings,
    /// The family whose models are at hand, and what joins them.
    at_hand: Option<(Family, System)>,
}

/// What answers the cases of a benchmark, recording in `path`, with the memory and the budgets of
/// the configuration at `place`, each model within `ram` bytes.
///
/// # Errors
/// A configuration or a log that cannot be used, and a memory that is not there.
pub(super) fn connect(
    path: &Path,
    interrupt: &Interrupt,
    place: &Place,
    ram: Option<u64>,
) -> anyhow::Result<Box<dyn Answers>> {
    let mut usual = Usual::try_parse_from(["bench-arch", "--deterministic"])?;
    usual.seat.context.memory.ram = ram;
    let config = Loaded::load(place)?.config;
    let memory = memory(&config, None, &usual.embedder)?
        .map_err(|reason| anyhow::anyhow!("{reason}; fill it first: aios memory import FOLDER"))?;
    let log = Arc::new(Mutex::new(Log::open(path, config.provenance.rotate_bytes)?));
    let settings = usual.seat.record.settings(usual.sampling.settings(None));
    let interrupt = interrupt.clone();
    Ok(Box::new(Families { usual, config, memory, log, interrupt, settings, at_hand: None }))
}

/// The entries of a family's models. A model with two roles is there once, as main.
fn entries(family: &Family) -> anyhow::Result<Vec<ModelEntry>> {
    let catalog = catalog()?;
    let entry = |name: &str, role| match Named::parse(&catalog, name)? {
        Named::Model(model) => anyhow::Ok(ModelEntry::of_catalogue(name, role, &model.name)),
        Named::File(path) => {
            let called = path.file_name().context("it names no file")?.to_string_lossy();
            Ok(ModelEntry::of_file(&called, role, path.clone()))
        }
    };
    let mut entries = vec![entry(&family.main, ModelRole::Main)?];
    if family.small != family.main {
        entries.push(entry(&family.small, ModelRole::Small)?);
    }
    for entry in &mut entries {
        entry.chat_template.clone_from(&family.chat_template);
    }
    Ok(entries)
}

impl Families {
    /// The system of `family`.
    fn of(&mut self, family: &Family) -> anyhow::Result<&mut System> {
        if self.at_hand.as_ref().is_none_or(|(at_hand, _)| at_hand != family) {
            if let Some((_, mut before)) = self.at_hand.take() {
                before.unload()?;
            }
            let config = Config { models: entries(family)?, ..self.config.clone() };
            let seat = &self.usual.seat;
            let registry = registry::registry(&config, &seat.weights(), &self.interrupt)?;
            let choices = Choices {
                layer: Layer::Basic,
                persona: config.persona.persona()?,
                tier: None,
                recall: Recall::Off,
            };
            let (log, interrupt) = (Some(Arc::clone(&self.log)), self.interrupt.clone());
            let draft = family.draft.clone();
            let opener = Opener { args: seat.clone(), log, interrupt, draft };
            let scorer = Scorer::new(config.router)?;
            let system = System::new(registry, scorer, choices, Box::new(opener));
            self.at_hand = Some((family.clone(), system));
        }
        let (_, system) = self.at_hand.as_mut().context("no family is at hand")?;
        Ok(system)
    }
}

impl Answers for Families {
    fn answer(&mut self, case: &Case) -> anyhow::Result<Record> {
        let backend: Memories = case.backend.parse().map_err(anyhow::Error::msg)?;
        let recall = Recall::of(backend, Ok(Arc::clone(&self.memory)));
        let layer = match case.layer.as_str() {
            "basic" => Layer::Basic,
            _ => Layer::Luna,
        };
        let settings =
            Settings { max_tokens: Some(u32::try_from(case.tokens)?), ..self.settings.clone() };
        let interrupt = self.interrupt.clone();
        let system = self.of(&case.family)?;
        if !case.warm {
            system.unload()?;
        }
        system.forget();
        system.set_layer(layer);
        system.set_recall(recall);
        system.set_bench(Bench {
            run: case.run.clone(),
            prompt: case.prompt.id.clone(),
            family: Some(case.family.name.clone()),
            expected_tier: Some(case.prompt.tier),
            repeat: case.repeat,
            warm: Some(case.warm),
        });
        let messages = [Message::new(Role::User, case.prompt.text.as_str())];
        let answered = system.respond(&messages, &settings, interrupt.flag(), &mut |_| Ok(()));
        if interrupt.is_set() {
            return Err(Interrupted.into());
        }
        match (system.record(), answered) {
            (Some(record), _) => Ok(record.clone()),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(_)) => anyhow::bail!(
                "{}",
                system.remark().unwrap_or_else(|| "the answer is not recorded".to_owned())
            ),
        }
    }
}
