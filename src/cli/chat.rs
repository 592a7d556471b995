//! `aios chat`: a conversation on the terminal, in a pipe, or of one answer.

use std::io::{self, IsTerminal};

use aios_engine::Session;
use anyhow::Context;
use clap::Args;

use super::recording::all_recorded;
use super::run::{finish, prompt_of};
use super::{
    ContextArgs, GenerateArgs, ModelArgs, Named, RecordArgs, SamplingArgs, SpecArgs, ThreadArgs,
    WeightArgs, model_file,
};
use crate::chat::{Conversation, Editor, Piped, Repl, Screen};
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::Store;

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
    #[command(flatten)]
    model: ModelArgs,
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

/// Runs `aios chat`.
///
/// # Errors
/// What keeps the conversation from starting or going on.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let prompt = prompt_of(&args.generate)?;
    let log = args.record.open()?;
    let path = model_file(&args.model.model, &interrupt)?;
    let model = args.weights.load(&path, false, &interrupt)?;
    let mut options = args.context.options(&args.threads, model.config().context);
    args.speculation.make_room(&mut options, &interrupt)?;
    let mut session = Session::new(model, options)?;
    let costs = args.speculation.set_up(&mut session, &args.weights, &interrupt)?;
    let settings = args.record.settings(args.sampling.settings(args.generate.max_tokens()));
    let models = Named {
        main: &args.model.model,
        draft: args.speculation.drafting(costs.as_ref()),
        spec: args.speculation.spec,
    };
    let recorder = args.record.recorder(log, "chat", &mut session, models, &interrupt)?;
    let system = args.system_prompt.clone();
    let responder = Conversation::new(session)?;
    let responder = responder.with_clock(args.record.clock()).with_recorder(recorder);
    let mut repl = Repl::new(responder, settings, system, interrupt.clone());
    let mut screen = Screen {
        out: &mut io::stdout(),
        remarks: &mut io::stderr(),
        terminal: io::stdout().is_terminal(),
    };
    let outcome = if let Some(prompt) = prompt {
        let said = repl.say(&prompt, &mut screen).map_err(anyhow::Error::from);
        said.and_then(|()| if interrupt.is_set() { Err(Interrupted.into()) } else { Ok(()) })
    } else if io::stdin().is_terminal() && io::stdout().is_terminal() {
        eprintln!("{}: /help lists the commands, Ctrl-D leaves.", args.model.model.escape_debug());
        let history = Store::locate().ok().map(|store| store.folder().join(".chat_history"));
        repl.run(&mut Editor::new(history)?, &mut screen)
    } else {
        repl.run(&mut Piped(io::stdin().lock()), &mut screen)
    };
    if let Some(costs) = costs {
        costs.keep(repl.responder().session());
    }
    let total = repl.total().map(|total| total.clone().with_mode(args.speculation.spec.name()));
    finish(args.generate.stats, total.as_ref())?;
    outcome?;
    all_recorded(repl.responder_mut().recorder())
}
