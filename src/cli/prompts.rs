//! Files of prompts, and what a model reads of them.

use std::path::{Path, PathBuf};

use aios_engine::Model;
use aios_engine::template::Template;
use aios_engine::tokenizer::ParseSpecial;
use aios_residency::read_text;
use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use crate::chat::{Message, Role, framed, prompt_ids};

/// The longest file of prompts.
const PROMPTS_BYTES_MAX: u64 = 16 << 20;

/// Which prompts.
#[derive(Args, Clone, Debug)]
pub(super) struct PromptArgs {
    /// Prompts as JSON lines.
    #[arg(long, value_name = "PATH")]
    pub prompts: PathBuf,
    /// Only prompts of this class; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub class: Vec<String>,
    /// So many prompts of each class; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub limit: usize,
}

/// A line of the file; other fields are ignored.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Line {
    /// By which figures are grouped.
    pub class: String,
    /// Whether settings may be chosen on it, or are only judged by it.
    #[serde(default)]
    pub set: String,
    /// What a user says.
    pub user: String,
}

impl PromptArgs {
    /// The lines that are asked for, at least one.
    ///
    /// # Errors
    /// A file that cannot be read or is too long, and a line that is no prompt, with its number.
    pub fn read(&self) -> anyhow::Result<Vec<Line>> {
        let path: &Path = &self.prompts;
        let what = || format!("cannot read the prompts {}", path.display());
        let mut kept: Vec<Line> = Vec::new();
        for (number, line) in
            (1..).zip(read_text(path, PROMPTS_BYTES_MAX).with_context(what)?.lines())
        {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("{}, line {number}", path.display()))?;
            let known = kept.iter().filter(|known| known.class == line.class).count();
            let wanted = self.class.is_empty() || self.class.contains(&line.class);
            if wanted && (self.limit == 0 || known < self.limit) {
                kept.push(line);
            }
        }
        anyhow::ensure!(!kept.is_empty(), "{} has no prompts of these classes", path.display());
        Ok(kept)
    }
}

/// What a model reads: the prompts in the template of the one that answers, or as they are if it
/// has none.
///
/// # Errors
/// A template that cannot be used, and a prompt without tokens.
pub(super) fn ids(model: &Model, lines: &[Line]) -> anyhow::Result<Vec<Vec<u32>>> {
    let template = model.chat_template().map(|text| Template::of_model(Some(text))).transpose()?;
    let tokenizer = model.tokenizer()?;
    let ids_of = |Line { class, user, .. }: &Line| {
        let ids = match &template {
            Some(template) => {
                prompt_ids(model, template, &[Message::new(Role::User, user.clone())])?
            }
            None => framed(tokenizer, tokenizer.encode(user, ParseSpecial::No)),
        };
        anyhow::ensure!(!ids.is_empty(), "a prompt of the class {class:?} is empty");
        Ok(ids)
    };
    lines.iter().map(ids_of).collect()
}
