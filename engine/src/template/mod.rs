//! Chat templates: a model's own Jinja, rendered as the model's training code rendered it.
//!
//! A template comes out of a file by a stranger and the messages out of a conversation with
//! strangers, so neither is trusted:
//!
//! - **The template** runs in a short-lived child process with limits on time, memory and output
//!   ([`Limits`]). The template engine's own fuel does not stop a string that doubles itself, nor
//!   one filter call that makes a gigabyte.
//! - **The messages** cannot forge control tokens. [`Rendered::plain`] says which bytes of the
//!   text came out of a message; the tokenizer parses a special token only where its whole
//!   spelling was written by the template.
//!
//! # How the origin of every character is known
//!
//! The text is rendered twice. The first rendering sees the messages as they are and gives
//! the text. The second sees them with each character that occurs in some control spelling
//! replaced, one for one, by a private-use character that occurs nowhere else. Where such a
//! character comes out, the text came from a message. That alone would not do, because templates
//! look at messages (`message.role == "user"`, `content.split("</think>")`), and would take other
//! branches in the second rendering. So the compiled template's comparisons, searches, look-ups,
//! methods and filters are this module's own: they decide on the text that a marked string stands
//! for, and cut and join the marked string itself. A comparison, an `in`, a `strip` or a `split`
//! therefore gives the same in both renderings. In the end the second rendering must equal the
//! first one with the marks resolved; where some filter was not seen through, they differ, and
//! the text is accepted only if no message has a character that a spelling starts or ends
//! with. Otherwise it is an error: a forged token is never the result.
//!
//! Alternatives that were rejected: looking for spellings in the message fields before rendering
//! misses those that span two fields or that the template assembles (`replace`, `split`);
//! comparing with a rendering of neutralised messages fails as soon as the template branches on
//! the content; string values of one's own type are not strings to the template engine.
//!
//! A role that is one of [`STANDARD_ROLES`] is not marked: templates spell control tokens around
//! it (`<|` + role + `|>`), and those words name the structure of a conversation.

mod args;
mod child;
mod error;
mod filters;
mod known;
mod marks;
mod methods;
mod ops;
mod program;
mod python;
mod source;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::DateTime;
use minijinja::value::Value;
use serde::{Deserialize, Serialize};

pub use child::run_child_if_asked;
pub use error::TemplateError;
pub use known::{KNOWN, known};

use marks::{DataMap, Marks, marked_value};

/// The roles that a template may build control spellings from.
pub const STANDARD_ROLES: [&str; 8] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython", "model"];

/// Longest source of a template, in bytes; real ones have up to some 20,000.
pub const SOURCE_MAX: usize = 1 << 20;

/// What a template is given.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RenderInput {
    /// The conversation: an array of objects with `role`, `content` and what else a template
    /// reads.
    pub messages: serde_json::Value,
    /// Tool descriptions; `None` is Python's `None`.
    pub tools: Option<serde_json::Value>,
    /// Whether the text is to end where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Spelling of the token that begins a text, if the model has one.
    pub bos_token: Option<String>,
    /// Spelling of the token that ends a text, if the model has one.
    pub eos_token: Option<String>,
    /// The time that `strftime_now` tells.
    #[serde(with = "civil")]
    pub now: DateTime,
    /// Further variables, such as `enable_thinking`.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl RenderInput {
    /// An input without tools, tokens and further variables.
    pub fn new(messages: serde_json::Value, now: DateTime) -> RenderInput {
        RenderInput {
            messages,
            tools: None,
            add_generation_prompt: false,
            bos_token: None,
            eos_token: None,
            now,
            extra: serde_json::Map::new(),
        }
    }

    /// The variables of the template, with the caller's text marked.
    fn context(&self, marks: &Arc<Marks>) -> Value {
        let optional = |value: &Option<serde_json::Value>| {
            value.as_ref().map_or_else(|| Value::from(()), |value| marked_value(marks, value))
        };
        let token = |token: &Option<String>| token.clone().map(Value::from);
        let mut context = vec![
            ("documents", Value::from(())),
            ("messages", messages_value(marks, &self.messages)),
            ("tools", optional(&self.tools)),
            ("add_generation_prompt", Value::from(self.add_generation_prompt)),
        ];
        context.extend(token(&self.bos_token).map(|token| ("bos_token", token)));
        context.extend(token(&self.eos_token).map(|token| ("eos_token", token)));
        context.extend(
            self.extra.iter().map(|(name, value)| (name.as_str(), marked_value(marks, value))),
        );
        Value::from_pairs(context)
    }

    /// Every string that the caller gave, keys included.
    fn texts(&self) -> Vec<&str> {
        let mut texts = Vec::new();
        collect_texts(&self.messages, &mut texts);
        for value in self.tools.iter().chain(self.extra.values()) {
            collect_texts(value, &mut texts);
        }
        texts
    }
}

/// A civil date and time as ISO 8601 text, on its way to the child process.
mod civil {
    use jiff::civil::DateTime;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(now: &DateTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(now)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

fn collect_texts<'a>(value: &'a serde_json::Value, texts: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::String(text) => texts.push(text),
        serde_json::Value::Array(items) => {
            items.iter().for_each(|item| collect_texts(item, texts));
        }
        serde_json::Value::Object(fields) => {
            for (key, item) in fields {
                texts.push(key);
                collect_texts(item, texts);
            }
        }
        _ => {}
    }
}

/// The messages, marked but for standard roles.
fn messages_value(marks: &Arc<Marks>, messages: &serde_json::Value) -> Value {
    let Some(items) = messages.as_array() else { return marked_value(marks, messages) };
    let message = |item: &serde_json::Value| {
        let Some(fields) = item.as_object() else { return marked_value(marks, item) };
        DataMap::value(
            marks,
            fields.iter().map(|(key, value)| {
                let standard = |role: &&str| key == "role" && STANDARD_ROLES.contains(role);
                let value = match value.as_str().filter(standard) {
                    Some(role) => Value::from(role),
                    None => marked_value(marks, value),
                };
                (key.as_str(), value)
            }),
        )
    };
    Value::from(items.iter().map(message).collect::<Vec<_>>())
}

/// A rendered conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// Byte ranges of `text`, ascending and disjoint, in which the characters came out of a
    /// message and occur in some control spelling. An occurrence of a control or
    /// end-of-generation spelling that overlaps one of them is plain text; every other one is the
    /// template's own.
    pub plain: Vec<Range<usize>>,
}

/// What a template may use up.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Instructions of the template engine, for each of the two renderings.
    pub fuel: u64,
    /// Time from starting the child process to its answer.
    pub time: Duration,
    /// Address space of the child process in bytes.
    pub memory_bytes: u64,
    /// Length of the text in bytes.
    pub output_bytes: usize,
}

impl Default for Limits {
    /// Ten million instructions, two seconds, 256 MiB, and 8 MiB of text: far more than a full
    /// context needs.
    fn default() -> Limits {
        Limits {
            fuel: 10_000_000,
            time: Duration::from_secs(2),
            memory_bytes: 256 << 20,
            output_bytes: 8 << 20,
        }
    }
}

/// A chat template that parses.
#[derive(Clone, Debug)]
pub struct Template {
    /// The source as the parser takes it.
    source: String,
}

impl Template {
    /// Parses `source`.
    ///
    /// # Errors
    /// [`TemplateError::SourceTooLong`] and [`TemplateError::Syntax`].
    pub fn parse(source: &str) -> Result<Template, TemplateError> {
        if source.len() > SOURCE_MAX {
            return Err(TemplateError::SourceTooLong { bytes: source.len(), max: SOURCE_MAX });
        }
        let source = source::prepare(source);
        program::check(&source)?;
        Ok(Template { source })
    }

    /// Parses the template that a model file has under `tokenizer.chat_template`.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] for `None`: no format is invented for a model without one; and
    /// those of [`Template::parse`].
    pub fn of_model(source: Option<&str>) -> Result<Template, TemplateError> {
        Template::parse(source.ok_or(TemplateError::Missing)?)
    }

    /// Renders `input` in a child process.
    ///
    /// `spellings` are those of the control and end-of-generation tokens of the model.
    ///
    /// # Errors
    /// What the template refuses or does wrong, a limit that it exceeds, and
    /// [`TemplateError::ChildNotEnabled`] in a program that did not call [`run_child_if_asked`].
    pub fn render(
        &self,
        input: &RenderInput,
        spellings: &[String],
        limits: &Limits,
    ) -> Result<Rendered, TemplateError> {
        child::render(&self.source, input, spellings, limits)
    }

    /// Renders `input` in this process, for trusted templates in tests: only the instructions are
    /// bounded, so a hostile template can exhaust the memory and overflow the stack.
    ///
    /// # Errors
    /// What the template refuses or does wrong, and [`TemplateError::OutOfFuel`].
    pub fn render_unconfined(
        &self,
        input: &RenderInput,
        spellings: &[String],
        fuel: u64,
    ) -> Result<Rendered, TemplateError> {
        render(&self.source, input, spellings, fuel)
    }
}

/// Renders twice and tells the origin of every character, as the module's documentation says.
fn render(
    source: &str,
    input: &RenderInput,
    spellings: &[String],
    fuel: u64,
) -> Result<Rendered, TemplateError> {
    let run =
        |marks: &Arc<Marks>| program::run(source, marks, input.now, input.context(marks), fuel);
    let text = run(&Arc::new(Marks::default()))?;
    let texts = input.texts();
    let tokens = input.bos_token.iter().chain(&input.eos_token).map(String::as_str);
    let visible = texts.iter().copied().chain(tokens).chain([source, text.as_str()]);
    let marks = Arc::new(Marks::choose(spellings, visible).ok_or(TemplateError::NoStandIns)?);
    if marks.is_empty() {
        return Ok(Rendered { text, plain: Vec::new() });
    }
    if let Ok(marked) = run(&marks) {
        let (resolved, plain) = marks.resolve(&marked);
        if resolved == text {
            return Ok(Rendered { text, plain });
        }
    }
    let edge = |c: char| spellings.iter().any(|s| s.starts_with(c) || s.ends_with(c));
    if texts.iter().any(|text| text.contains(edge)) {
        return Err(TemplateError::Unattributable);
    }
    Ok(Rendered { text, plain: Vec::new() })
}
