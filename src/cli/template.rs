//! `aios template`: renders a conversation with a chat template and prints the text.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aios_engine::gguf::{Gguf, Metadata};
use aios_engine::template::{Limits, RenderInput, Template};
use aios_residency::Mapping;
use anyhow::Context;
use clap::Args;
use jiff::civil::DateTime;

/// Render a conversation with a chat template, as the model would be given it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios template -m model.gguf --messages chat.json --add-generation-prompt
  aios template --file chat.jinja --messages chat.json --bos '<s>' --now 2026-11-22T12:00:00

The messages are a JSON array of objects such as {\"role\": \"user\", \"content\": \"Hi\"}. The text
is printed as it is, without a newline after it.")]
pub(super) struct TemplateArgs {
    /// A GGUF file, whose own template and special tokens are used.
    #[arg(short, long, value_name = "FILE", required_unless_present = "file")]
    model: Option<PathBuf>,
    /// A Jinja template.
    #[arg(long, value_name = "T.jinja", conflicts_with = "model")]
    file: Option<PathBuf>,
    /// The conversation.
    #[arg(long, value_name = "M.json")]
    messages: PathBuf,
    /// End the text where the model's answer begins.
    #[arg(long)]
    add_generation_prompt: bool,
    /// Spelling of the token that begins a text [default: the model's].
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    bos: Option<String>,
    /// Spelling of the token that ends a text [default: the model's].
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    eos: Option<String>,
    /// The local time that the template is told, in ISO 8601 [default: now].
    #[arg(long, value_name = "ISO")]
    now: Option<DateTime>,
}

/// Runs `aios template`.
pub(super) fn run(args: &TemplateArgs) -> anyhow::Result<()> {
    let source = match (&args.file, &args.model) {
        (Some(file), _) => Source { template: Some(read(file)?), bos: None, eos: None },
        (None, Some(model)) => Source::of_model(model)?,
        (None, None) => anyhow::bail!("either --model or --file is needed"),
    };
    let template = Template::of_model(source.template.as_deref())?;
    let messages = serde_json::from_str(&read(&args.messages)?)
        .with_context(|| format!("{} is not valid JSON", args.messages.display()))?;
    let now = args.now.unwrap_or_else(|| jiff::Zoned::now().datetime());
    let mut input = RenderInput::new(messages, now);
    input.add_generation_prompt = args.add_generation_prompt;
    input.bos_token = args.bos.clone().or(source.bos);
    input.eos_token = args.eos.clone().or(source.eos);
    // Only the text is printed, so no spelling needs to be told from the messages.
    let rendered = template.render(&input, &[], &Limits::default())?;
    io::stdout().lock().write_all(rendered.text.as_bytes())?;
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} could not be read", path.display()))
}

/// What a model file says about its template.
struct Source {
    template: Option<String>,
    bos: Option<String>,
    eos: Option<String>,
}

impl Source {
    fn of_model(path: &Path) -> anyhow::Result<Source> {
        let mapping = Mapping::open(path)?;
        let gguf = Gguf::parse(mapping.bytes())
            .with_context(|| format!("{} could not be read", path.display()))?;
        let metadata = &gguf.metadata;
        Ok(Source {
            template: metadata.str("tokenizer.chat_template")?.map(str::to_owned),
            bos: special_token(metadata, "tokenizer.ggml.bos_token_id")?,
            eos: special_token(metadata, "tokenizer.ggml.eos_token_id")?,
        })
    }
}

/// The spelling of the token whose id is under `key`, if the file has that key.
fn special_token(metadata: &Metadata, key: &str) -> anyhow::Result<Option<String>> {
    let Some(id) = metadata.u64(key)? else { return Ok(None) };
    let tokens = metadata.require_strings("tokenizer.ggml.tokens")?;
    let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
    let token = token.with_context(|| {
        format!("{key} is {id}, but the vocabulary has {} tokens", tokens.len())
    })?;
    Ok(Some(token.clone()))
}
