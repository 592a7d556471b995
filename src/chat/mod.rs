//! A conversation with a model, line by line.
//!
//! [`Repl`] is the conversation: it reads messages and commands, keeps the history, prints answers
//! as they come and says what they cost. It knows the model only as a [`Responder`], which renders
//! the history with a chat template and generates.

mod engine;
mod format;
mod input;
mod lines;
mod repl;
mod settings;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::AtomicBool;

pub use engine::{Conversation, framed, generate, prompt_ids, render};
pub use format::Format;
pub use input::{Assembler, HELP, Input};
pub use lines::{Editor, Event, Lines, Piped};
pub use repl::{Repl, Screen};
pub use settings::{Settings, penalty, seed, within};

use crate::stats::Stats;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The instructions that stand before the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// What goes wrong with one answer. The conversation can go on after it.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The conversation does not leave room for an answer.
    #[error(
        "the context is full: the conversation has {needed} tokens and the context {size}; \
         /clear starts afresh, -c sets a larger context"
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    ContextFull { needed: usize, size: usize },
    /// The answer could not be printed.
    #[error("cannot print the answer")]
    Output(#[from] io::Error),
    /// The template, the tokenizer or the engine failed.
    #[error(transparent)]
    Engine(#[from] anyhow::Error),
}

/// An answer that was generated, whole or up to where it was stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its text, without the end token.
    pub text: String,
    /// What it has cost.
    pub stats: Stats,
}

/// A model that answers conversations.
pub trait Responder {
    /// Answers the last of `messages`, which is the user's. Each piece of text goes to `emit` as
    /// soon as it is known, never half a character; an error of `emit` ends the answer. When
    /// `cancel` is set the answer ends where it is, with [`crate::stats::StopReason::Interrupted`].
    ///
    /// # Errors
    /// [`ChatError`]; the responder stays usable.
    fn respond(
        &mut self,
        messages: &[Message],
        settings: &Settings,
        cancel: &AtomicBool,
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, ChatError>;

    /// Forgets what it keeps of earlier conversations.
    fn forget(&mut self);

    /// What there is to say of the last answer besides its cost, once: that it was not recorded.
    fn remark(&mut self) -> Option<String> {
        None
    }

    /// The models that could answer, a line each for people.
    fn models(&self) -> Vec<String> {
        Vec::new()
    }

    /// Has the model called `name` answer from now on, and returns what there is to say of it.
    ///
    /// # Errors
    /// What keeps it from answering; the model so far then goes on.
    fn use_model(&mut self, name: &str) -> anyhow::Result<String> {
        anyhow::bail!("there is no model '{}' to change to here", name.escape_debug())
    }
}
