//! `aios embed`: texts as vectors.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use aios_engine::{Encoder, EncoderOptions};
use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{Usage, model_file};
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::DEFAULT_EMBEDDER;

/// Texts that are computed together, and between which an interrupt is looked for.
const TOGETHER: usize = 32;

/// Turn texts into vectors whose angle tells how alike their meanings are.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios embed 'a cat sat on the mat' 'a kitten rests on a rug'
  aios embed -f sentences.txt --json > vectors.jsonl
  printf 'one text a line\\n' | aios embed -f - --json

Vectors have length 1, so that the cosine of two of them is their product. Without --json the
similarities of the first texts are shown; with it, each line is
{\"text\":…,\"tokens\":…,\"truncated\":…,\"vector\":[…]}.")]
pub(super) struct EmbedArgs {
    /// An encoder's GGUF file, or the name of one in the catalogue.
    #[arg(short, long, value_name = "FILE|NAME", default_value = DEFAULT_EMBEDDER)]
    model: String,
    /// Take a text from each line of this file; - is stdin.
    #[arg(short, long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// Refuse an encoder that takes more memory than this for its weights and a pass, such as 200M;
    /// encoders are not read from disk in part as language models are.
    #[arg(long, value_name = "BYTES", value_parser = aios_residency::parse_bytes)]
    ram: Option<u64>,
    /// Print one JSON object for each text.
    #[arg(long)]
    json: bool,
    /// The texts.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    tokens: usize,
    truncated: bool,
    vector: &'a [f32],
}

/// Runs `aios embed`.
pub(super) fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let texts = match &args.file {
        Some(path) => lines(path)?,
        None => args.texts.clone(),
    };
    if texts.is_empty() {
        return Err(Usage("there is no text; give some, or a file of them with -f".into()).into());
    }
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let path = model_file(&args.model, &interrupt)?;
    let encoder = Encoder::load(&path, EncoderOptions::default())?;
    if let Some(ram) = args.ram.filter(|ram| *ram < encoder.bytes()) {
        let [given, least] = [ram, encoder.bytes()].map(|bytes| bytes as f64 / 1e6);
        anyhow::bail!(
            "{given:.1} MB (--ram) are not enough for {}: its weights and a pass take {least:.1} \
             MB, and encoders are not read from disk in part; give that much, or use a smaller \
             encoder",
            path.display()
        );
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut table = Table::default();
    for some in texts.chunks(TOGETHER) {
        if interrupt.is_set() {
            return Err(Interrupted.into());
        }
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        for (text, vector) in some.iter().zip(encoder.embed(&some)?) {
            let (tokens, whole) = encoder.tokens(text);
            if args.json {
                let line = Line { text, tokens, truncated: !whole, vector: &vector };
                serde_json::to_writer(&mut out, &line).map_err(io::Error::from)?;
                writeln!(out)?;
            } else {
                table.add(text, (tokens, whole), vector);
            }
        }
    }
    if !args.json {
        writeln!(
            out,
            "{} numbers a vector, at most {} tokens",
            encoder.dim(),
            encoder.max_tokens()
        )?;
        table.print(&mut out)?;
    }
    Ok(out.flush()?)
}

fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let named = || format!("cannot read {}", path.display());
    let input: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(fs::File::open(path).with_context(named)?)
    };
    let lines: Result<Vec<String>, io::Error> = BufReader::new(input).lines().collect();
    lines.with_context(named)
}

/// Texts that the table compares, and characters of a text that it shows.
const SHOWN: usize = 12;
const SHOWN_CHARS: usize = 60;

/// How alike texts are, for people.
#[derive(Default)]
struct Table {
    vectors: Vec<Vec<f32>>,
    rows: Vec<String>,
}

impl Table {
    fn add(&mut self, text: &str, (tokens, whole): (usize, bool), vector: Vec<f32>) {
        let cut = if whole { "" } else { ", cut off" };
        let shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
        let mut row = String::new();
        if self.vectors.len() < SHOWN {
            self.vectors.push(vector);
            let own = &self.vectors[self.vectors.len() - 1];
            for other in &self.vectors {
                let cosine: f32 = other.iter().zip(own).map(|(a, b)| a * b).sum();
                row.push_str(&format!(" {cosine:5.2}"));
            }
        }
        self.rows.push(format!("{shown} ({tokens} tokens{cut})\n   {row}"));
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for (number, row) in (1..).zip(&self.rows) {
            writeln!(out, "{number:2}. {}", row.trim_end())?;
        }
        Ok(())
    }
}
