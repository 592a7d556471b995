//! The loop of a conversation: read, answer, say what it cost.

use std::io::{self, Write};

use super::Settings;
use super::{Answer, Assembler, ChatError, Event, HELP, Input, Lines, Message, Responder, Role};
use crate::interrupt::{Interrupt, Interrupted};
use crate::stats::{Stats, StopReason};

const PROMPT: &str = "> ";
const PROMPT_PENDING: &str = ". ";

/// A conversation with a model.
pub struct Repl<R> {
    responder: R,
    settings: Settings,
    interrupt: Interrupt,
    system: Option<String>,
    history: Vec<Message>,
    /// The sum over all answers.
    total: Option<Stats>,
    /// The answers so far, each of which draws with a seed of its own.
    answers: u64,
}

/// Where answers and remarks go.
pub struct Screen<'a> {
    /// Takes the answers and nothing else.
    pub out: &'a mut dyn Write,
    /// Takes everything that is about the conversation.
    pub remarks: &'a mut dyn Write,
    /// Whether `out` is a terminal, which must not be sent control characters by a model.
    pub terminal: bool,
}

/// Whether the conversation goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Ended,
}

impl<R: Responder> Repl<R> {
    /// A conversation that begins with the system prompt, if there is one.
    pub fn new(
        responder: R,
        settings: Settings,
        system: Option<String>,
        interrupt: Interrupt,
    ) -> Self {
        Self {
            responder,
            settings,
            interrupt,
            system,
            history: Vec::new(),
            total: None,
            answers: 0,
        }
    }

    /// What answers.
    pub const fn responder(&self) -> &R {
        &self.responder
    }

    /// What answers, to be changed.
    pub const fn responder_mut(&mut self) -> &mut R {
        &mut self.responder
    }

    /// The sum over all answers, if there was one.
    pub fn total(&self) -> Option<&Stats> {
        self.total.as_ref()
    }

    /// Talks until the lines end. On a terminal an error is said and the talk goes on.
    ///
    /// # Errors
    /// What cannot be read or printed; from a pipe also the first error of an answer or a command,
    /// and [`Interrupted`].
    pub fn run(&mut self, lines: &mut dyn Lines, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        let interactive = lines.is_interactive();
        let mut assembler = Assembler::default();
        loop {
            let prompt = if assembler.is_pending() { PROMPT_PENDING } else { PROMPT };
            let (message, ended) = match lines.next(prompt)? {
                Event::Line(line) => (assembler.push(&line), false),
                Event::End => (assembler.is_pending().then(|| assembler.finish()), true),
                Event::Interrupt => {
                    assembler.discard();
                    writeln!(screen.remarks, "(/exit or Ctrl-D leaves)")?;
                    continue;
                }
            };
            if let Some(message) = message {
                if !message.trim().is_empty() {
                    lines.remember(&message);
                }
                match self.turn(&message, screen) {
                    Ok(Flow::Ended) => return Ok(()),
                    Ok(Flow::On) => {}
                    Err(error) if is_lost(&error) || !interactive => return Err(error),
                    Err(error) => writeln!(screen.remarks, "error: {error:#}")?,
                }
                if self.interrupt.is_set() && !interactive {
                    return Err(Interrupted.into());
                }
                self.interrupt.reset();
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Says one thing, without looking for commands in it.
    ///
    /// # Errors
    /// [`ChatError`]; the message is then not part of the conversation.
    pub fn say(&mut self, message: &str, screen: &mut Screen<'_>) -> Result<(), ChatError> {
        self.history.push(Message::new(Role::User, message));
        let answered = self.answer(screen);
        // What was not answered was not said: two messages of the user in a row would be refused
        // by many templates.
        self.history.pop_if(|last| last.role == Role::User);
        answered
    }

    fn turn(&mut self, message: &str, screen: &mut Screen<'_>) -> anyhow::Result<Flow> {
        let remarks = &mut *screen.remarks;
        match Input::parse(message).map_err(anyhow::Error::msg)? {
            Input::Nothing => {}
            Input::Say(text) => self.say(&text, screen)?,
            Input::Regen => self.regen(screen)?,
            Input::Help => writeln!(remarks, "{HELP}")?,
            Input::Exit => return Ok(Flow::Ended),
            Input::Clear => {
                self.history.clear();
                self.responder.forget();
                writeln!(remarks, "(the conversation is forgotten)")?;
            }
            Input::ShowSystem => match &self.system {
                Some(text) => writeln!(remarks, "{text}")?,
                None => writeln!(remarks, "(no system prompt)")?,
            },
            Input::SetSystem(text) => {
                self.system = text;
                writeln!(remarks, "(the next answer follows the new system prompt)")?;
            }
            Input::ShowSettings => {
                for (name, value) in self.settings.list() {
                    writeln!(remarks, "{name:15} {value}")?;
                }
            }
            Input::Set(name, value) => {
                self.settings.set(&name, &value).map_err(anyhow::Error::msg)?;
            }
            Input::ShowModels => {
                for line in self.responder.models() {
                    writeln!(remarks, "{line}")?;
                }
            }
            Input::UseModel(name) => {
                let said = self.responder.use_model(&name)?;
                writeln!(remarks, "({said})")?;
            }
            Input::Stats => match &self.total {
                Some(total) => writeln!(remarks, "answers so far: {} {total}", self.answers)?,
                None => writeln!(remarks, "(no answer yet)")?,
            },
        }
        Ok(Flow::On)
    }

    /// Answers the last message of the user once more, with the next seed.
    fn regen(&mut self, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        let Some(old) = self.history.pop_if(|last| last.role == Role::Assistant) else {
            anyhow::bail!("there is no answer to replace yet");
        };
        let answered = self.answer(screen);
        if self.history.last().is_none_or(|last| last.role != Role::Assistant) {
            self.history.push(old);
        }
        Ok(answered?)
    }

    /// Generates the answer to the history, prints it, and adds it to the history if there is any
    /// text in it.
    fn answer(&mut self, screen: &mut Screen<'_>) -> Result<(), ChatError> {
        let system = self.system.iter().map(|text| Message::new(Role::System, text));
        let messages: Vec<Message> = system.chain(self.history.iter().cloned()).collect();
        let mut settings = self.settings.clone();
        settings.seed = settings.seed.wrapping_add(self.answers);
        let terminal = screen.terminal;
        let out = &mut *screen.out;
        let mut emit = |piece: &str| {
            if terminal {
                out.write_all(harmless(piece).as_bytes())?;
            } else {
                out.write_all(piece.as_bytes())?;
            }
            out.flush()
        };
        let flag = self.interrupt.flag();
        let answered = self.responder.respond(&messages, &settings, flag, &mut emit);
        // The answer, or what there is of it, ends its line.
        writeln!(screen.out)?;
        screen.out.flush()?;
        if let Some(remark) = self.responder.remark() {
            writeln!(screen.remarks, "({remark})")?;
        }
        let Answer { text, stats } = answered?;
        self.answers += 1;
        match &mut self.total {
            Some(total) => total.add(&stats),
            None => self.total = Some(stats.clone()),
        }
        if !text.is_empty() {
            self.history.push(Message::new(Role::Assistant, text));
        }
        match stats.stop_reason {
            StopReason::ContextFull => {
                let hint = "/clear starts afresh, -c sets a larger context";
                writeln!(screen.remarks, "(the context is full: {hint})")?;
            }
            StopReason::Interrupted => writeln!(screen.remarks, "(stopped)")?,
            StopReason::End | StopReason::Length | StopReason::StopString => {}
        }
        writeln!(screen.remarks, "{stats}")?;
        Ok(())
    }
}

/// Whether there is no one to talk to any more.
fn is_lost(error: &anyhow::Error) -> bool {
    error.is::<io::Error>() || matches!(error.downcast_ref(), Some(ChatError::Output(_)))
}

/// Without control characters, which could do anything to a terminal; line breaks and tabs stay.
fn harmless(piece: &str) -> String {
    piece.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
