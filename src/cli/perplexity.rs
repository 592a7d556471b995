//! `aios perplexity`: how well a model predicts a text, and how far it is from a reference run.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use aios_engine::{EngineError, Executor};
use aios_validation::base::{BaseReader, BaseWriter, Header};
use aios_validation::divergence::{DivergenceSummary, Divergences};
use aios_validation::perplexity::{Losses, WINDOW_MIN, Windows, evaluate};
use aios_validation::report::{SYNTHETIC, is_synthetic};
use anyhow::Context;
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::progress::bar;
use super::{ComputeArgs, ModelArgs, WeightArgs, model_file};
use crate::interrupt::Interrupt;

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} windows, PPL {msg}, {eta} left";
/// The buffer of the file of saved logits.
const BUFFER_BYTES: usize = 1 << 20;

/// Measure how well a model predicts a text, as llama-perplexity does.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios perplexity -m model.gguf -f text.txt
  aios perplexity -m model.gguf -f text.txt --exact --save-logits exact.base
  aios perplexity -m model.gguf -f text.txt --kl exact.base

The text is tokenised once and cut into windows of -c tokens, each beginning with BOS where the
model asks for it; the second half of each window is scored. Saved logits take two bytes for each
token of the vocabulary and position: 100 KB a position for a vocabulary of 50 thousand.")]
pub(super) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, in UTF-8.
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// Tokens of a window.
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(WINDOW_MIN as i64..))]
    ctx_size: u32,
    /// Save the logits to this file, for --kl.
    #[arg(long, value_name = "BASE", conflicts_with = "kl")]
    save_logits: Option<PathBuf>,
    /// Compare with the logits saved in this file.
    #[arg(long, value_name = "BASE")]
    kl: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Report {
    synthetic: bool,
    perplexity: f64,
    standard_error: f64,
    windows: usize,
    window_tokens: usize,
    scored_tokens: usize,
    exact: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<DivergenceSummary>,
}

/// Runs `aios perplexity`.
pub(super) fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let options = args.compute.options(usize::try_from(args.ctx_size)?)?;
    let text = fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read the text {}", args.file.display()))?;
    let weights = args.weights.unscreened()?.within(args.compute.memory.ram);
    let path = model_file(&args.model.model, &interrupt)?;
    let model = weights.load(&path, args.compute.exact, &interrupt)?;
    let windows = Windows::of_text(model.tokenizer()?, &text, options.context)?;
    let (vocab, synthetic) = (model.config().vocab, is_synthetic(model.metadata()));
    let mut save = match &args.save_logits {
        Some(to) => Some(Saving::start(to, &Header::new(vocab, &windows, sha256_of(&path)?))?),
        None => None,
    };
    let mut base = match &args.kl {
        Some(from) => Some(open_base(from, &Header::new(vocab, &windows, [0; 32]))?),
        None => None,
    };
    let mut executor = Executor::new(model, options)?;
    let mut losses = Losses::default();
    let mut divergences = Divergences::default();
    let bar = bar(TEMPLATE).with_message("...");
    bar.set_length(windows.count() as u64);
    evaluate(&mut executor, &windows, &mut |scored| {
        if interrupt.is_set() {
            return Err(EngineError::Cancelled.into());
        }
        losses.add(scored.loss());
        if let Some(save) = &mut save {
            save.writer.write(scored)?;
        }
        if let Some(base) = &mut base {
            divergences.add(&base.next_record()?, scored);
        }
        if bar.position() != scored.window as u64 {
            bar.set_position(scored.window as u64);
            bar.set_message(format!("{:.4}", losses.perplexity()));
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    if let Some(save) = save {
        save.finish()?;
    }
    let report = Report {
        synthetic,
        perplexity: losses.perplexity(),
        standard_error: losses.standard_error(),
        windows: windows.count(),
        window_tokens: windows.window(),
        scored_tokens: losses.count(),
        exact: args.compute.exact,
        kl: base.is_some().then(|| divergences.summary()),
    };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, &mut out)?;
    }
    Ok(())
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { perplexity, standard_error, windows, window_tokens, scored_tokens, .. } = report;
    if report.synthetic {
        writeln!(out, "{SYNTHETIC}\n")?;
    }
    writeln!(out, "PPL = {perplexity:.4} +/- {standard_error:.5}")?;
    writeln!(out, "  {windows} windows of {window_tokens} tokens, {scored_tokens} tokens scored")?;
    if let Some(kl) = &report.kl {
        let (base, error) = (kl.base_perplexity, kl.base_standard_error);
        writeln!(out, "base PPL = {base:.4} +/- {error:.5}")?;
        writeln!(out, "KL divergence from the base, in nats")?;
        writeln!(out, "  mean    {:.6} +/- {:.6}", kl.mean, kl.standard_error)?;
        writeln!(out, "  median  {:.6}", kl.median)?;
        writeln!(out, "  99 %    {:.6}", kl.p99)?;
        writeln!(out, "  max     {:.6}", kl.max)?;
        writeln!(out, "same likeliest token: {:.2} %", 100.0 * kl.top1_agreement)?;
    }
    Ok(())
}

/// Logits being saved: a file without a name yet, so that nothing half-written is left behind.
struct Saving<'a> {
    writer: BaseWriter<BufWriter<NamedTempFile>>,
    to: &'a Path,
}

impl<'a> Saving<'a> {
    fn start(to: &'a Path, header: &Header) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write {}", to.display());
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
        let file = NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).with_context(cannot)?;
        let buffered = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { writer: BaseWriter::new(buffered, header).with_context(cannot)?, to })
    }

    fn finish(self) -> anyhow::Result<()> {
        let cannot = || format!("cannot write {}", self.to.display());
        let buffered = self.writer.finish().with_context(cannot)?;
        let file = buffered.into_inner().map_err(io::IntoInnerError::into_error);
        file.with_context(cannot)?.persist(self.to).with_context(cannot)?;
        Ok(())
    }
}

fn open_base(path: &Path, ours: &Header) -> anyhow::Result<BaseReader<BufReader<File>>> {
    let cannot = || format!("cannot compare with {}", path.display());
    let file = File::open(path).with_context(cannot)?;
    let bytes = file.metadata().with_context(cannot)?.len();
    let buffered = BufReader::with_capacity(BUFFER_BYTES, file);
    BaseReader::new(buffered, bytes, ours).with_context(cannot)
}

fn sha256_of(path: &Path) -> anyhow::Result<[u8; 32]> {
    let cannot = || format!("cannot read {}", path.display());
    let mut digest = Sha256::new();
    let file = File::open(path).with_context(cannot)?;
    let mut from = BufReader::with_capacity(BUFFER_BYTES, file);
    loop {
        let bytes = from.fill_buf().with_context(cannot)?;
        if bytes.is_empty() {
            return Ok(digest.finalize().into());
        }
        digest.update(bytes);
        let read = bytes.len();
        from.consume(read);
    }
}
