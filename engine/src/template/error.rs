//! Why a template gave no text.

use std::error::Error as _;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a chat template could not be parsed or rendered.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model file has no `tokenizer.chat_template`.
    #[error(
        "the model has no chat template (`tokenizer.chat_template` is missing); \
         complete a plain prompt instead, use an instruction-tuned model, or choose a template \
         (--chat-template)"
    )]
    Missing,
    /// The template's source is longer than any real one.
    #[error("the chat template has {bytes} bytes; the limit is {max}")]
    SourceTooLong {
        /// Length of the source in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The source is not a valid template.
    #[error("the chat template is not valid at line {line}: {message}")]
    Syntax {
        /// Line of the source, from 1; 0 when unknown.
        line: usize,
        /// What the parser found.
        message: String,
    },
    /// The template refused the messages with `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// An operation of the template failed.
    #[error("the chat template failed at line {line}: {message}")]
    Failed {
        /// Line of the source, from 1; 0 when unknown.
        line: usize,
        /// What failed.
        message: String,
    },
    /// The template executed more instructions than it was given.
    #[error("the chat template did not end within {fuel} instructions")]
    OutOfFuel {
        /// The limit in instructions.
        fuel: u64,
    },
    /// The template ran for longer than it was given.
    #[error("the chat template did not end within {limit_ms} ms")]
    OutOfTime {
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// The template wanted more memory, or more stack, than it was given.
    #[error("the chat template ran out of memory or stack (limit {limit_bytes} bytes)")]
    OutOfMemory {
        /// The limit on the address space in bytes.
        limit_bytes: u64,
    },
    /// The rendered text is longer than allowed.
    #[error("the chat template's output is longer than {max_bytes} bytes")]
    OutputTooLong {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// The template does something with the messages that hides which part of its output came
    /// out of them, so control tokens cannot be told from quoted ones.
    #[error(
        "the chat template transforms the messages in a way that hides which control tokens \
         are its own; remove the characters that delimit control tokens from the messages"
    )]
    Unattributable,
    /// The template and the messages together use up the private-use characters.
    #[error("the messages leave no private-use characters to mark them with")]
    NoStandIns,
    /// The process did not call [`run_child_if_asked`](super::run_child_if_asked) at its start.
    #[error(
        "templates are rendered in a child process, for which this program must call \
         `run_child_if_asked` first thing in `main`"
    )]
    ChildNotEnabled,
    /// The child process could not be started or spoken to.
    #[error("the process that renders chat templates failed: {message}")]
    Child {
        /// What went wrong.
        message: String,
    },
}

/// Carries the words of `raise_exception` through the template engine.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The engine error that `raise_exception(message)` ends the template with.
pub(super) fn raised(message: String) -> minijinja::Error {
    minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, "raise_exception")
        .with_source(Raised(message))
}

/// Classifies an error of the template engine.
pub(super) fn from_engine(failure: &minijinja::Error) -> TemplateError {
    let mut source = failure.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TemplateError::Refused { message: message.clone() };
        }
        source = cause.source();
    }
    let line = failure.line().unwrap_or(0);
    let kind = failure.kind();
    let message = match failure.detail() {
        Some(detail) => format!("{kind}: {detail}"),
        None => kind.to_string(),
    };
    match kind {
        minijinja::ErrorKind::SyntaxError => TemplateError::Syntax { line, message },
        _ => TemplateError::Failed { line, message },
    }
}
