//! `aios memory search`.

use std::io::{self, Write};

use aios_engine::tokenizer::ParseSpecial;
use clap::Args;

use super::super::{ModelArgs, Usage, tokens};
use super::{EmbedderArgs, StoreArgs, harmless, now_ms, print_json};
use crate::config::Config;
use crate::memory::{Backend, Budget, Hit, Mode, Options, Question, Retrieval, retriever};

/// Find the fragments that a question is about.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios memory search when does the ferry leave
  aios memory search -k 3 --backend bm25 --json ferry
  aios memory search --max-tokens 512 -m smollm2-135m-instruct ferry fares

Backends: carma (words and vectors fused; only what is relevant), simple_rag (the nearest vectors)
and bm25 (words). Without an embedder all of them go by words alone, and say so. No fragment is an
answer too. --json prints what a record of an answer keeps: backend, mode, fragments_found,
fragments_relevant, note, and the fragments with what they were ranked by.")]
pub(super) struct SearchArgs {
    /// The question; several words are joined.
    #[arg(required = true)]
    question: Vec<String>,
    /// The most fragments [default: as aios.toml says, or 5].
    #[arg(short = 'k', long, value_name = "N")]
    limit: Option<usize>,
    /// What chooses: carma, simple_rag or bm25 [default: as aios.toml says, or carma].
    #[arg(long, value_name = "NAME")]
    backend: Option<Backend>,
    /// The most tokens of all fragments, as the model of -m counts them.
    #[arg(long, value_name = "N", requires = "model")]
    max_tokens: Option<usize>,
    /// A GGUF file, or the name of a catalogue model, whose tokens are counted.
    #[arg(short, long, value_name = "FILE|NAME", requires = "max_tokens")]
    model: Option<String>,
    /// Record that the fragments served an answer, which ranks them a little higher from now on.
    #[arg(long = "use")]
    record_use: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    embedder: EmbedderArgs,
}

/// Runs `aios memory search`.
pub(super) fn run(args: &SearchArgs, config: &Config) -> anyhow::Result<()> {
    let limit = args.limit.unwrap_or(config.memory.limit);
    let candidates = config.memory.candidates.max(limit);
    let options = Options { limit, candidates, ..config.memory.clone() };
    options.check().map_err(|e| Usage(e.to_string()))?;
    let tokenizer = match &args.model {
        Some(model) => Some(tokens::tokenizer(&ModelArgs { model: model.clone() })?),
        None => None,
    };
    let count =
        |text: &str| tokenizer.as_ref().map_or(0, |t| t.encode(text, ParseSpecial::No).len());
    let budget = args.max_tokens.map(|tokens| Budget { tokens, count: &count });
    let memory = args.embedder.memory(args.store.open_existing(config)?, options, config)?;
    let retriever = retriever(args.backend.unwrap_or(config.memory.backend), memory);
    let text = args.question.join(" ");
    let now_ms = now_ms();
    let question = Question { text: &text, limit: None, budget, now_ms };
    let retrieval = retriever.retrieve(&question)?;
    if args.record_use {
        retriever.record_use(&retrieval.ids(), now_ms)?;
    }
    if args.store.json {
        return print_json(&retrieval);
    }
    if let Some(note) = &retrieval.note {
        eprintln!("note: {}", harmless(note));
    }
    Ok(print(&retrieval)?)
}

fn print(retrieval: &Retrieval) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (place, hit) in (1..).zip(&retrieval.fragments) {
        writeln!(out, "{place}. [{}] {}{}", hit.id, harmless(&hit.source), heading(hit))?;
        writeln!(out, "   {}", grounds(hit))?;
        for line in harmless(&hit.text).lines() {
            writeln!(out, "   | {line}")?;
        }
    }
    let mode = match retrieval.mode {
        Mode::Hybrid => "by words and vectors",
        Mode::Dense => "by vectors",
        Mode::Bm25 => "by words",
        Mode::Failed => "memory failed",
    };
    writeln!(
        out,
        "{} fragments found, {} relevant ({}, {mode}).",
        retrieval.fragments_found, retrieval.fragments_relevant, retrieval.backend
    )
}

fn heading(hit: &Hit) -> String {
    if hit.title.is_empty() { String::new() } else { format!(": {}", harmless(&hit.title)) }
}

/// What the fragment was ranked by.
fn grounds(hit: &Hit) -> String {
    let mut said = vec![format!("score {:.4}", hit.score)];
    said.extend(hit.bm25_rank.map(|rank| format!("BM25 place {rank}")));
    said.push(format!("covers {:.0} %", hit.coverage * 100.0));
    said.extend(hit.cosine.map(|cosine| format!("cosine {cosine:.3}")));
    said.extend(hit.tokens.map(|tokens| format!("{tokens} tokens")));
    if !hit.relevant {
        said.push("below the threshold".to_owned());
    }
    said.join(", ")
}
