//! `aios chat`: a conversation on the terminal, in a pipe, or of one answer.

use std::io::{self, IsTerminal};
use std::sync::atomic::AtomicBool;

use aios_engine::Session;
use anyhow::Context;
use clap::Args;

use super::recording::all_recorded;
use super::run::{finish, prompt_of};
use super::speculation::KnownCosts;
use super::{
    ContextArgs, GenerateArgs, Named, RecordArgs, SamplingArgs, SpecArgs, ThreadArgs, WeightArgs,
    registry,
};
use crate::chat::{
    Answer, ChatError, Conversation, Editor, Message, Piped, Repl, Responder, Screen, Settings,
};
use crate::config::{Family, Loaded, ModelRole, Place};
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::Store;
use crate::provenance::SharedLog;
use crate::registry::{Backend, Lease, Listing, Registry, RegistryError, SessionOptions};

/// Talk to a model in the format of its own chat template.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  aios chat
  aios chat -m model.gguf -sys 'Answer in one sentence.'
  aios chat -p 'What is a GGUF file?' --temp 0
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
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpecArgs,
    #[command(flatten)]
    record: RecordArgs,
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

/// A session, and the right to its model.
struct Seat {
    conversation: Conversation,
    costs: Option<KnownCosts>,
    lease: Lease<dyn Backend>,
}

impl Seat {
    /// Sets a session up with the model of `lease`.
    fn open(
        args: &ChatArgs,
        log: Option<SharedLog>,
        lease: &Lease<dyn Backend>,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let local = lease.local().context("it is not run by this engine")?;
        let model = local.model();
        let entry = local.executor_options(&SessionOptions::default());
        let mut options = args.context.over(entry, &args.threads, model.config().context);
        args.speculation.make_room(&mut options, interrupt)?;
        let mut session = Session::new(model.clone(), options)?;
        let costs = args.speculation.set_up(&mut session, &args.weights, interrupt)?;
        let models = Named {
            main: lease.name(),
            draft: args.speculation.drafting(costs.as_ref()),
            spec: args.speculation.spec,
        };
        let recorder = args.record.recorder(log, "chat", &mut session, models, interrupt)?;
        let conversation = Conversation::new(session)?.with_clock(args.record.clock());
        let conversation = conversation.with_recorder(recorder);
        Ok(Self { conversation, costs, lease: lease.clone() })
    }

    /// Keeps what was learned of the cost of passes.
    fn keep_costs(&self) {
        if let Some(costs) = &self.costs {
            costs.keep(self.conversation.session());
        }
    }
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
        let open = |lease: &Lease<dyn Backend>| Seat::open(args, log.clone(), lease, interrupt);
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
        let listings = self.registry.list();
        let width = listings.iter().map(|of| of.entry.name.len()).max().unwrap_or(0);
        let line = |of: &Listing| {
            let mark = if of.entry.name == self.seat.lease.name() { '*' } else { ' ' };
            let state = if of.uses.is_some() { "loaded" } else { "" };
            let family = of.entry.family.map_or("", Family::name);
            let (name, role) = (of.entry.name.escape_debug().to_string(), of.entry.role);
            format!("{mark} {name:width$}  {:8}  {family:6}  {state}", role.name())
                .trim_end()
                .to_owned()
        };
        listings.iter().map(line).collect()
    }

    fn use_model(&mut self, name: &str) -> anyhow::Result<String> {
        let Self { args, interrupt, registry, log, seat, lost } = self;
        let old = seat.lease.name().to_owned();
        let opened = registry::find(registry, name).and_then(|name| {
            let open = |lease: &Lease<dyn Backend>| Seat::open(args, log.clone(), lease, interrupt);
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
    let log = args.record.open()?;
    let config = Loaded::load(place)?.config;
    let registry = registry::registry(&config, &args.weights, &interrupt)?;
    let talk = Talk::start(args, registry, log, &interrupt)?;
    let settings = args.record.settings(args.sampling.settings(args.generate.max_tokens()));
    let system = args.system_prompt.clone();
    let name = talk.seat.lease.name().escape_debug().to_string();
    let mut repl = Repl::new(talk, settings, system, interrupt.clone());
    let mut screen = Screen {
        out: &mut io::stdout(),
        remarks: &mut io::stderr(),
        terminal: io::stdout().is_terminal(),
    };
    let outcome = if let Some(prompt) = prompt {
        let said = repl.say(&prompt, &mut screen).map_err(anyhow::Error::from);
        said.and_then(|()| if interrupt.is_set() { Err(Interrupted.into()) } else { Ok(()) })
    } else if io::stdin().is_terminal() && io::stdout().is_terminal() {
        eprintln!("{name}: /help lists the commands, Ctrl-D leaves.");
        let history = Store::locate().ok().map(|store| store.folder().join(".chat_history"));
        repl.run(&mut Editor::new(history)?, &mut screen)
    } else {
        repl.run(&mut Piped(io::stdin().lock()), &mut screen)
    };
    repl.responder().seat.keep_costs();
    let total = repl.total().map(|total| total.clone().with_mode(args.speculation.spec.name()));
    finish(args.generate.stats, total.as_ref())?;
    outcome?;
    let talk = repl.responder_mut();
    talk.lost.take().map_or(Ok(()), Err)?;
    all_recorded(talk.seat.conversation.recorder())
}
