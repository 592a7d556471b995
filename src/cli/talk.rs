//! How a conversation is held: one request, a person at a terminal, or lines from a pipe.

use std::io::{self, IsTerminal};

use super::GenerateArgs;
use super::run::finish;
use super::speculation::SpecArgs;
use crate::chat::{Editor, Piped, Repl, Responder, Screen};
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::Store;

/// Asks `request`, or holds a conversation if there is none, which `greeting` begins at a terminal;
/// then prints the statistics that `generate` asks for. The first result is of the statistics, the
/// second of the conversation.
///
/// # Errors
/// Statistics that cannot be printed.
pub(super) fn converse<R: Responder>(
    repl: &mut Repl<R>,
    request: Option<&str>,
    greeting: &str,
    (generate, speculation): (&GenerateArgs, &SpecArgs),
    interrupt: &Interrupt,
) -> anyhow::Result<anyhow::Result<()>> {
    let mut screen = Screen {
        out: &mut io::stdout(),
        remarks: &mut io::stderr(),
        terminal: io::stdout().is_terminal(),
    };
    let outcome = if let Some(request) = request {
        let said = repl.say(request, &mut screen).map_err(anyhow::Error::from);
        said.and_then(|()| if interrupt.is_set() { Err(Interrupted.into()) } else { Ok(()) })
    } else if io::stdin().is_terminal() && io::stdout().is_terminal() {
        eprintln!("{greeting}");
        let history = Store::locate().ok().map(|store| store.folder().join(".chat_history"));
        Editor::new(history).map_err(Into::into).and_then(|mut at| repl.run(&mut at, &mut screen))
    } else {
        repl.run(&mut Piped(io::stdin().lock()), &mut screen)
    };
    let total = repl.total().map(|total| total.clone().with_mode(speculation.spec.name()));
    finish(generate.stats, total.as_ref())?;
    Ok(outcome)
}
