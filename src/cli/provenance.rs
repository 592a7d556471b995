//! `aios provenance`: what was recorded, whether it is whole, and whether it is true.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::replay::{self, ReplayArgs};
use crate::provenance::{ProvenanceError, Record, Spread, Summary, Verified, verify};

/// Records of answers: verify, show, run again, sum up.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios run -p 'Once upon a time' -n 64 --deterministic --provenance provenance.ndjson
  aios provenance verify provenance.ndjson
  aios provenance show provenance.ndjson --id 1
  aios provenance replay provenance.ndjson --isa avx2
  aios provenance stats provenance.ndjson")]
pub(super) struct ProvenanceArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(VerifyArgs),
    Show(ShowArgs),
    Replay(ReplayArgs),
    Stats(StatsArgs),
}

/// Say whether any record was lost or changed; exits with 1 if one was.
#[derive(Args, Debug)]
#[command(after_help = "\
Each record holds the SHA-256 of the one before it, so that a change, a gap or a wrong order shows.
A cut tail shows only to who has noted the digest of a later record: --head DIGEST.")]
struct VerifyArgs {
    /// The file, or the folder of provenance.ndjson.
    #[arg(value_name = "FILE|FOLDER")]
    file: PathBuf,
    /// The digest of a record that must be there, as an earlier 'verify' has printed it.
    #[arg(long, value_name = "DIGEST")]
    head: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Print records: a line for each, or one whole.
#[derive(Args, Debug)]
struct ShowArgs {
    /// The file, or the folder of provenance.ndjson.
    #[arg(value_name = "FILE|FOLDER")]
    file: PathBuf,
    /// Print this record, as JSON.
    #[arg(long, value_name = "N")]
    id: Option<u64>,
    /// Print JSON, a record a line.
    #[arg(long)]
    json: bool,
}

/// Sum up latency, speed, bytes and drafts by model.
#[derive(Args, Debug)]
struct StatsArgs {
    /// The file, or the folder of provenance.ndjson.
    #[arg(value_name = "FILE|FOLDER")]
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `aios provenance`.
pub(super) fn run(args: &ProvenanceArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Verify(args) => check(args),
        Command::Show(args) => show(args),
        Command::Replay(args) => replay::run(args),
        Command::Stats(args) => stats(args),
    }
}

fn check(args: &VerifyArgs) -> anyhow::Result<()> {
    let verified = verify(&args.file, args.head.as_deref(), &mut |_, _| Ok(()))?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &verified).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &verified)?;
    }
    match verified.faults.len() {
        0 => Ok(()),
        1 => anyhow::bail!("{}: {}", args.file.display(), verified.faults[0]),
        n => {
            anyhow::bail!("{}: {n} faults, the first: {}", args.file.display(), verified.faults[0])
        }
    }
}

fn print(out: &mut dyn Write, verified: &Verified) -> io::Result<()> {
    let plural = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let whole = if verified.faults.is_empty() { "the chain is whole" } else { "NOT whole" };
    let files = plural(verified.files.len() as u64, "file");
    writeln!(out, "{} in {files}; {whole}", plural(verified.records, "record"))?;
    for fault in &verified.faults {
        writeln!(out, "  {fault}")?;
    }
    for torn in &verified.torn {
        writeln!(
            out,
            "  {}: {} of a line that a crash has torn; it was never acknowledged",
            torn.at,
            plural(torn.bytes, "byte")
        )?;
    }
    if let Some(since) = verified.since_head {
        writeln!(out, "the record with that digest is there, and {since} after it")?;
    }
    if let Some(head) = &verified.head_sha256 {
        writeln!(out, "head {head}")?;
    }
    Ok(())
}

/// Says on stderr that what follows comes from a log that is not whole.
pub(super) fn warn(verified: &Verified) {
    if let Some(fault) = verified.faults.first() {
        eprintln!(
            "warning: the log is not whole ({} faults, the first: {fault}); \
             see 'aios provenance verify'",
            verified.faults.len()
        );
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut seen, mut shown) = (0_u64, false);
    if args.id.is_none() && !args.json {
        writeln!(out, "{}", heading())?;
    }
    let verified = verify(&args.file, None, &mut |record, sha256| {
        seen += 1;
        shown |= args.id == Some(record.id);
        one(&mut out, args, &record, sha256).map_err(ProvenanceError::Output)
    })?;
    out.flush()?;
    warn(&verified);
    match args.id {
        Some(id) if !shown => {
            let (path, last) = (args.file.clone(), verified.last_id.unwrap_or(0));
            Err(ProvenanceError::NoRecord { id, path, count: seen, last }.into())
        }
        _ => Ok(()),
    }
}

/// Prints a record, if it was asked for.
fn one(out: &mut dyn Write, args: &ShowArgs, record: &Record, sha256: &str) -> io::Result<()> {
    match args.id {
        Some(id) if id == record.id => {
            serde_json::to_writer_pretty(&mut *out, record)?;
            writeln!(out)?;
            eprintln!("sha256 {sha256}");
            Ok(())
        }
        Some(_) => Ok(()),
        None if args.json => {
            serde_json::to_writer(&mut *out, record)?;
            writeln!(out)
        }
        None => writeln!(out, "{}", line(record)),
    }
}

/// The columns of the list.
fn columns(of: [&dyn Display; 10]) -> String {
    let [id, ts, core, mode, model, prompt, output, latency, states, end] = of;
    format!(
        "{id:>6}  {ts:24}  {core:4}  {mode:9}  {model:25} {prompt:>7} {output:>6} {latency:>8}  \
         {states:8}  {end}"
    )
}

fn heading() -> String {
    let names = ["id", "time", "core", "mode", "model", "prompt", "output", "latency", "states"];
    let [id, ts, core, mode, model, prompt, output, latency, states] = &names;
    columns([id, ts, core, mode, model, prompt, output, latency, states, &"end"])
}

fn line(record: &Record) -> String {
    let of = &record.request;
    let model = of.models.get("main").map_or("-", String::as_str);
    let hidden = of.hidden_sha256.as_deref().and_then(|digest| digest.get(..8)).unwrap_or("-");
    let latency = of.latency_ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
    let end = of.stop_reason.as_deref().or(of.error.as_deref()).unwrap_or("-");
    let shown = |text: &str| text.escape_debug().to_string();
    let tokens = &of.tokens;
    columns([
        &record.id,
        &shown(&of.ts),
        &shown(&of.core),
        &of.execution_mode.name(),
        &shown(model),
        &tokens.prompt,
        &tokens.output,
        &latency,
        &hidden,
        &shown(end),
    ])
}

fn stats(args: &StatsArgs) -> anyhow::Result<()> {
    let mut summary = Summary::default();
    let verified = verify(&args.file, None, &mut |record, _| {
        summary.add(&record);
        Ok(())
    })?;
    warn(&verified);
    let mut out = io::stdout().lock();
    if args.json {
        let group = |((mode, model, core), figures)| {
            let of = json!({"execution_mode": mode, "model": model, "core": core});
            json!({"of": of, "figures": figures})
        };
        let groups: Vec<_> = summary.groups().into_iter().map(group).collect();
        serde_json::to_writer_pretty(&mut out, &groups).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for ((mode, model, core), group) in summary.groups() {
        writeln!(
            out,
            "{} ({}, {core}): {} records, {} failed, {} tokens",
            model.escape_debug(),
            mode.name(),
            group.records,
            group.failed,
            group.output_tokens
        )?;
        for (name, spread) in [
            ("latency ms", group.latency_ms),
            ("tokens/s", group.tokens_per_s),
            ("MB/token (counted)", group.mb_per_token),
            ("accept rate", group.accept_rate),
            ("fragments found", group.fragments_found),
        ] {
            if let Some(Spread { n, min, p50, p95, max, mean }) = spread {
                writeln!(
                    out,
                    "  {name:20} n {n:<6} min {min:<10.3} p50 {p50:<10.3} p95 {p95:<10.3} \
                     max {max:<10.3} mean {mean:.3}"
                )?;
            }
        }
    }
    Ok(())
}
