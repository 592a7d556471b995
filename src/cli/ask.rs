//! `aios ask`: requests to the whole system, which routes, remembers, answers and records.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::memory::{EmbedderArgs, store_path};
use super::recording::all_recorded;
use super::run::prompt_of;
use super::seat::{Seat, SeatArgs};
use super::talk::converse;
use super::{GenerateArgs, SamplingArgs, Usage, registry};
use crate::chat::{Conversation, Message, Repl, Responder, Role, Settings};
use crate::config::{Config, Loaded, ModelRole, Place};
use crate::interrupt::{Interrupt, Interrupted};
use crate::memory::{Backend as Memories, Memory, Store as Fragments};
use crate::persona::Layer;
use crate::provenance::SharedLog;
use crate::registry::{Backend, Lease, Registry};
use crate::router::{Scorer, Tier};
use crate::system::{Choices, Open, Recall, Seated, System};

/// Ask the system: each request goes to the smallest model that can serve it.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  aios ask 'What is the capital of Peru?'
  aios ask --memory carma 'When does the night ferry leave, and why so late?'
  aios ask --tier high --layer basic 'Hi'
  aios ask --deterministic --provenance log.ndjson 'Explain TCP slow start'
  aios ask                                a conversation; /help lists the commands

A request is trivial (greetings, one fact), moderate (explanation) or high (steps, design); 'aios
route --explain' says why. Trivial ones go to the model with the role small in aios.toml, all others
to main. With --memory, fragments that 'aios memory import' has kept are quoted in the prompt. What
fails of this is said, and the answer comes without. Answers go to stdout, remarks to stderr.")]
pub(super) struct AskArgs {
    /// The request; several words are joined. Without one, a conversation.
    request: Vec<String>,
    /// How much is put around a request [default: luna, or as aios.toml says].
    #[arg(long, value_name = "LAYER", value_enum)]
    layer: Option<Layer>,
    /// The tier of every request, instead of the router's.
    #[arg(long, value_name = "TIER", value_enum)]
    tier: Option<Tier>,
    /// What is remembered: carma, simple_rag, bm25, or off [default: off, or as aios.toml says if
    /// that names a store].
    #[arg(long, value_name = "NAME", value_parser = remembering)]
    memory: Option<Remembering>,
    /// The file of the memory [default: as aios.toml says, or the one in the data folder].
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// Instructions for every answer, behind the persona's own (-sys).
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system_prompt: Option<String>,
    /// A persona, as a TOML file [default: as aios.toml says, or Luna].
    #[arg(long, value_name = "PATH")]
    persona: Option<PathBuf>,
    /// Print one JSON object: the answer, the route, what was found, the statistics.
    #[arg(long, requires = "request")]
    json: bool,
    #[command(flatten)]
    embedder: EmbedderArgs,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    seat: SeatArgs,
}

/// What `--memory` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remembering {
    Off,
    By(Memories),
}

fn remembering(text: &str) -> Result<Remembering, String> {
    match text {
        "off" => Ok(Remembering::Off),
        name => name.parse().map(Remembering::By).map_err(|_| {
            let known: Vec<&str> = Memories::ALL.iter().map(|backend| backend.name()).collect();
            format!("there is no memory '{name}', only {} and off", known.join(", "))
        }),
    }
}

/// Sets conversations up as the command line says.
pub(super) struct Opener {
    pub(super) args: SeatArgs,
    pub(super) log: Option<SharedLog>,
    pub(super) interrupt: Interrupt,
    /// The model that drafts for the main one, as the registry calls it or as a file.
    pub(super) draft: Option<String>,
}

impl Open for Opener {
    fn open(&self, lease: &Lease<dyn Backend>, role: ModelRole) -> anyhow::Result<Box<dyn Seated>> {
        let args = match &self.draft {
            Some(draft) if role == ModelRole::Main => self.args.drafting_with(draft),
            _ => self.args.clone(),
        };
        let seat = Seat::open(&args, "ask", self.log.clone(), lease, (None, &self.interrupt))?;
        Ok(Box::new(seat))
    }

    fn find(&self, registry: &Registry, text: &str) -> anyhow::Result<String> {
        registry::find(registry, text)
    }
}

impl Seated for Seat {
    fn conversation(&mut self) -> &mut Conversation {
        &mut self.conversation
    }

    fn close(mut self: Box<Self>) -> anyhow::Result<()> {
        self.keep_costs();
        all_recorded(self.conversation.recorder())
    }
}

/// The memory that `store` or `config` names, or why it cannot be opened, which answers then say.
///
/// # Errors
/// An embedder of the command line that cannot be used.
pub(super) fn memory(
    config: &Config,
    store: Option<&Path>,
    embedder: &EmbedderArgs,
) -> anyhow::Result<Result<Arc<Memory>, String>> {
    let embedder = embedder.for_answers(config)?;
    let opened = store_path(store, config)
        .and_then(|path| Fragments::open_existing(&path))
        .and_then(|fragments| Memory::new(fragments, embedder, config.memory.clone()));
    Ok(opened.map(Arc::new).map_err(|error| error.to_string()))
}

impl AskArgs {
    fn choices(&self, config: &Config) -> anyhow::Result<Choices> {
        let mut persona = config.persona.clone();
        persona.file = self.persona.clone().or(persona.file);
        let wanted = self.memory.unwrap_or(match (&self.store, &config.memory.store) {
            (None, None) => Remembering::Off,
            _ => Remembering::By(config.memory.backend),
        });
        let recall = match wanted {
            Remembering::Off => Recall::Off,
            Remembering::By(backend) => {
                Recall::of(backend, memory(config, self.store.as_deref(), &self.embedder)?)
            }
        };
        let layer = self.layer.unwrap_or(persona.layer);
        Ok(Choices { layer, persona: persona.persona()?, tier: self.tier, recall })
    }

    fn request(&self) -> anyhow::Result<Option<String>> {
        let option = prompt_of(&self.generate)?;
        match (self.request.is_empty(), option) {
            (true, option) => Ok(option),
            (false, None) => Ok(Some(self.request.join(" "))),
            (false, Some(_)) => {
                Err(Usage("the request is given twice: leave -p or -f out".to_owned()).into())
            }
        }
    }
}

/// Runs `aios ask` with the configuration at `place`.
pub(super) fn run(args: &AskArgs, place: &Place) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let request = args.request()?;
    let config = Loaded::load(place)?.config;
    let mut seat = args.seat.clone();
    seat.record.provenance = seat.record.provenance.or(config.provenance.path.clone());
    seat.record.private |= config.provenance.private;
    let log = seat.record.open(&config.provenance)?;
    let choices = args.choices(&config)?;
    let registry = registry::registry(&config, &seat.weights(), &interrupt)?;
    let scorer = Scorer::new(config.router)?;
    let settings = seat.record.settings(args.sampling.settings(args.generate.max_tokens()));
    let (interrupt_of, draft) = (interrupt.clone(), config.named(ModelRole::Draft));
    let opener = Opener { args: seat, log, interrupt: interrupt_of, draft };
    let system = System::new(registry, scorer, choices, Box::new(opener));
    if let (true, Some(request)) = (args.json, &request) {
        let instructions = args.system_prompt.iter().map(|text| Message::new(Role::System, text));
        let messages: Vec<Message> =
            instructions.chain([Message::new(Role::User, request)]).collect();
        return print_json(system, &messages, &settings, &interrupt);
    }
    let mut repl = Repl::new(system, settings, args.system_prompt.clone(), interrupt.clone());
    let greeting = "/help lists the commands, Ctrl-D leaves.";
    let options = (&args.generate, &args.seat.speculation);
    let outcome = converse(&mut repl, request.as_deref(), greeting, options, &interrupt);
    let closed = repl.responder_mut().close();
    outcome??;
    closed
}

/// Answers one request and prints what there is to say of it as JSON.
fn print_json(
    mut system: System,
    messages: &[Message],
    settings: &Settings,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let answer = system.respond(messages, settings, interrupt.flag(), &mut |_| Ok(()))?;
    let told = system.told().context("the answer has no account")?;
    let report = json!({
        "answer": answer.text,
        "model": told.model,
        "route": told.route,
        "retrieval": told.retrieval,
        "passages_quoted": told.passages,
        "remarks": told.remarks,
        "record": system.record().map(|record| record.id),
        "stats": answer.stats,
    });
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
    writeln!(out)?;
    system.close()?;
    if interrupt.is_set() { Err(Interrupted.into()) } else { Ok(()) }
}
