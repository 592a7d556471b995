//! `aios chat`: a conversation on the terminal, in a pipe, or of one answer.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::Args;

use super::recording::all_recorded;
use super::run::prompt_of;
use super::seat::{Seat, SeatArgs};
use super::talk::converse;
use super::{GenerateArgs, SamplingArgs, registry};
use crate::chat::{Answer, ChatError, Format, Message, Repl, Responder, Settings};
use crate::config::{Loaded, ModelRole, Place};
use crate::interrupt::Interrupt;
use crate::provenance::SharedLog;
use crate::registry::{Backend, Lease, Registry, RegistryError};

/// Talk to a model in the format of its chat template.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  aios chat
  aios chat -m model.gguf -sys 'Answer in one sentence.'
  aios chat -p 'What is a GGUF file?' --temp 0
  aios chat -m base.gguf --chat-template gemma
  printf 'Hi\\nAnd now in French\\n' | aios chat

In the chat /help lists the commands. Answers go to stdout, everything else to stderr.")]
pub struct ChatArgs {
    /// A model of the registry, the name of a catalogue model, which is fetched if it is not there,
    /// or a GGUF file [default: the registry's main model].
    #[arg(short, long, value_name = "FILE|NAME")]
    model: Option<String>,
    /// Instructions that stand before the conversation (-sys).
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system_prompt: Option<String>,
    /// The format of the conversation instead of the model's own: chatml, gemma, llama3, phi3, or a
    /// file with a Jinja template. A model that /model names has its own again.
    #[arg(long, value_name = "NAME|FILE")]
    chat_template: Option<PathBuf>,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    seat: SeatArgs,
}

/// What answers: a session of the model that serves as main, or of another that `/model` chose.
struct Talk<'a> {
    args: &'a ChatArgs,
    interrupt: &'a Interrupt,
    registry: Registry,
    log: Option<SharedLog>,
    seat: Seat,
    /// What was not recorded of a model's answers that answers no more.
    lost: Option<anyhow::Error>,
}

impl<'a> Talk<'a> {
    /// Starts with the model that the arguments name, or the registry's main one.
    fn start(
        args: &'a ChatArgs,
        registry: Registry,
        log: Option<SharedLog>,
        interrupt: &'a Interrupt,
    ) -> anyhow::Result<Self> {
        let name = match &args.model {
            Some(text) => registry::find(&registry, text)?,
            None => registry
                .serving(ModelRole::Main)
                .ok_or(RegistryError::NoRole { role: ModelRole::Main })?,
        };
        let format = args.chat_template.as_deref().map(Format::chosen).transpose()?;
        let open = |lease: &Lease<dyn Backend>| {
            Seat::open(&args.seat, "chat", log.clone(), lease, (format, interrupt))
        };
        let seat = registry.swap_with(ModelRole::Main, &name, open)?;
        Ok(Self { args, interrupt, registry, log, seat, lost: None })
    }
}

impl Responder for Talk<'_> {
    fn respond(
        &mut self,
        messages: &[Message],
        settings: &Settings,
        cancel: &AtomicBool,
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, ChatError> {
        self.seat.conversation.respond(messages, settings, cancel, emit)
    }

    fn forget(&mut self) {
        self.seat.conversation.forget();
    }

    fn remark(&mut self) -> Option<String> {
        self.seat.conversation.remark()
    }

    fn models(&self) -> Vec<String> {
        self.registry.lines(Some(self.seat.lease.name()))
    }

    fn use_model(&mut self, name: &str) -> anyhow::Result<String> {
        let Self { args, interrupt, registry, log, seat, lost } = self;
        let old = seat.lease.name().to_owned();
        let opened = registry::find(registry, name).and_then(|name| {
            let open = |lease: &Lease<dyn Backend>| {
                Seat::open(&args.seat, "chat", log.clone(), lease, (None, interrupt))
            };
            Ok(registry.swap_with(ModelRole::Main, &name, open)?)
        });
        let new = opened.with_context(|| format!("{} still answers", old.escape_debug()))?;
        seat.keep_costs();
        *lost = lost.take().or(all_recorded(seat.conversation.recorder()).err());
        *seat = new;
        let found = seat.lease.describe();
        Ok(format!(
            "{} answers from now on: {}, {}; the conversation goes on",
            found.name.escape_debug(),
            found.architecture,
            found.quantisation
        ))
    }
}

/// Runs `aios chat` with the configuration that the environment names.
///
/// # Errors
/// What keeps the conversation from starting or going on.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    run_with(args, &Place::of(None))
}

/// Runs `aios chat` with the configuration at `place`.
///
/// # Errors
/// What keeps the conversation from starting or going on.
pub fn run_with(args: &ChatArgs, place: &Place) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let prompt = prompt_of(&args.generate)?;
    let config = Loaded::load(place)?.config;
    let log = args.seat.record.open(&config.provenance)?;
    let registry = registry::registry(&config, &args.seat.weights(), &interrupt)?;
    let talk = Talk::start(args, registry, log, &interrupt)?;
    let settings = args.seat.record.settings(args.sampling.settings(args.generate.max_tokens()));
    let system = args.system_prompt.clone();
    let name = talk.seat.lease.name().escape_debug().to_string();
    let mut repl = Repl::new(talk, settings, system, interrupt.clone());
    let greeting = format!("{name}: /help lists the commands, Ctrl-D leaves.");
    let options = (&args.generate, &args.seat.speculation);
    let outcome = converse(&mut repl, prompt.as_deref(), &greeting, options, &interrupt);
    repl.responder().seat.keep_costs();
    outcome??;
    let talk = repl.responder_mut();
    talk.lost.take().map_or(Ok(()), Err)?;
    all_recorded(talk.seat.conversation.recorder())
}
