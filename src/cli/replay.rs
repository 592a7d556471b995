//! `aios provenance replay`: runs records again.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aios_engine::{EngineError, ExecutorOptions, Length, Lookup, Session, Speculation};
use aios_kernels::{Isa, IsaName};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::provenance::warn;
use super::recording::digest;
use super::weights::ScreenMode;
use super::{MemoryArgs, ThreadArgs, Usage, WeightArgs, model_file};
use crate::interrupt::{Interrupt, Interrupted};
use crate::provenance::{
    Env, ProvenanceError, Record, Replay, environment, ids, options, replay, used, verify,
};

/// Run records again and prove them: the same tokens, and the same states at every position.
#[derive(Args, Debug)]
#[command(after_help = "\
The numbers depend on the model's files, the tokens, the types of the cache and the length of the
context; these are taken from the record. Threads, instruction set, memory, plan and drafts change
nothing but speed, so that they are this machine's, or what is given here.
Exits with 1 if a record is not proved.")]
pub(super) struct ReplayArgs {
    /// The file, or the folder of provenance.ndjson.
    #[arg(value_name = "FILE|FOLDER")]
    file: PathBuf,
    /// Only the record with this number; several times for several.
    #[arg(long, value_name = "N")]
    id: Vec<u64>,
    /// Every record, as without --id.
    #[arg(long, conflicts_with = "id")]
    all: bool,
    /// The model's file, if it is not where it was: its SHA-256 must be the record's.
    #[arg(short, long, value_name = "FILE|NAME")]
    model: Option<String>,
    /// Compute with this instruction set: scalar, avx2, avx512 or amx [default: the best there is].
    #[arg(long, value_name = "NAME")]
    isa: Option<IsaName>,
    /// Draft tokens while running again.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Drafts::Off)]
    spec: Drafts,
    /// Print JSON, an object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// What drafts while a record is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Drafts {
    /// Nothing: a token a pass.
    Off,
    /// Look-up, eight tokens at a time.
    Lookup,
}

/// What became of a record.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
enum Verdict {
    /// It was run.
    Ran(Replay),
    /// It could not be.
    NotRun { id: u64, reason: String },
}

impl Verdict {
    fn is_proof(&self) -> bool {
        matches!(self, Self::Ran(replay) if replay.same)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let replay = match self {
            Self::NotRun { id, reason } => return write!(f, "record {id}: not run: {reason}"),
            Self::Ran(replay) => replay,
        };
        let Replay { id, tokens, ms, .. } = replay;
        let states = match replay.states {
            Some(true) => "the same states",
            Some(false) => "OTHER states",
            None => "no states on record",
        };
        match replay.first_difference {
            None => write!(f, "record {id}: the same {tokens} tokens, {states}, {ms:.0} ms")?,
            Some(at) => {
                let id_of = |id: Option<u32>| id.map_or("the end".to_owned(), |id| id.to_string());
                let (was, is) = (id_of(at.recorded), id_of(at.replayed));
                write!(f, "record {id}: DIFFERENT: token {} of the answer was {was} ", at.index)?;
                write!(f, "and is {is}; {states}")?;
            }
        }
        // Where all is the same it is a proof across these; where not, it may be the reason.
        for change in &replay.environment {
            write!(f, "\n  {}: then {}, now {}", change.field, change.recorded, change.now)?;
        }
        Ok(())
    }
}

/// Runs `aios provenance replay`.
pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let mut machine = ExecutorOptions::new(1);
    (machine.threads, machine.threads_batch) = args.threads.resolve(machine.threads);
    machine.isa = args.isa.map_or(Ok(machine.isa), Isa::request)?;
    machine.ram = args.memory.ram;
    let mut records = Vec::new();
    let verified = verify(&args.file, None, &mut |record, _| {
        if args.id.is_empty() || args.id.contains(&record.id) {
            records.push(record);
        }
        Ok(())
    })?;
    warn(&verified);
    if let Some(id) = args.id.iter().find(|id| records.iter().all(|record| record.id != **id)) {
        let (path, count) = (args.file.clone(), verified.records);
        let last = verified.last_id.unwrap_or(0);
        return Err(ProvenanceError::NoRecord { id: *id, path, count, last }.into());
    }
    if records.is_empty() {
        return Err(Usage(format!("{} has no records", args.file.display())).into());
    }
    let mut bench = Bench { args, interrupt, machine, env: environment(), ready: None };
    let mut proved = 0;
    for record in &records {
        let verdict = bench.verdict(record)?;
        proved += usize::from(verdict.is_proof());
        let mut out = io::stdout().lock();
        if args.json {
            serde_json::to_writer(&mut out, &verdict).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{verdict}")?;
        }
    }
    let all = records.len();
    if !args.json {
        writeln!(io::stdout(), "{proved} of {all} records proved")?;
    }
    anyhow::ensure!(proved == all, "{} of {all} records are not proved", all - proved);
    Ok(())
}

/// What runs records; the last session is kept for the next record.
struct Bench<'a> {
    args: &'a ReplayArgs,
    interrupt: Interrupt,
    machine: ExecutorOptions,
    env: Env,
    ready: Option<Ready>,
}

/// A session, and what it is for.
struct Ready {
    path: PathBuf,
    sha256: String,
    options: String,
    session: Session,
}

impl Bench<'_> {
    fn verdict(&mut self, record: &Record) -> anyhow::Result<Verdict> {
        let not_run = |reason: String| Ok(Verdict::NotRun { id: record.id, reason });
        if let Err(reason) = ids(&record.request) {
            return not_run(reason.to_string());
        }
        let options = match options(&record.request, self.machine.clone()) {
            Ok(options) => options,
            Err(reason) => return not_run(reason.to_string()),
        };
        let path = match self.file_of(record) {
            Ok(path) => path,
            Err(reason) => return not_run(reason.to_string()),
        };
        if let Err(reason) = self.make_ready(record, &path, options) {
            let stopped = reason.is::<Interrupted>();
            return if stopped { Err(reason) } else { not_run(format!("{reason:#}")) };
        }
        let Some(ready) = &mut self.ready else { return not_run("there is no session".into()) };
        let env = used(&self.env, &ready.session);
        match replay(record, &mut ready.session, &env, self.interrupt.flag()) {
            Ok(Ok(replay)) => Ok(Verdict::Ran(replay)),
            Ok(Err(reason)) => not_run(reason.to_string()),
            Err(EngineError::Cancelled) => Err(Interrupted.into()),
            Err(error) => not_run(error.to_string()),
        }
    }

    /// The file of a record's model: the one that was named, or where it was.
    fn file_of(&self, record: &Record) -> anyhow::Result<PathBuf> {
        if let Some(name) = &self.args.model {
            return model_file(name, &self.interrupt);
        }
        let files = record.request.model_files.get("main");
        let first = files.and_then(|files| files.first());
        let path = &first.ok_or_else(|| anyhow::anyhow!("it names no file of the model"))?.path;
        let there = path.is_file();
        anyhow::ensure!(there, "the model file {} is missing; give it with -m", path.display());
        Ok(path.clone())
    }

    /// Has a session with the model at `path`, whose digest must be the record's.
    fn make_ready(
        &mut self,
        record: &Record,
        path: &Path,
        options: ExecutorOptions,
    ) -> anyhow::Result<()> {
        let thresholds = record.request.quality.ffn_thresholds_sha256.as_deref();
        let shown = format!("{options:?} {thresholds:?}");
        let known = |ready: &Ready| ready.path == path && ready.options == shown;
        if !self.ready.as_ref().is_some_and(known) {
            self.ready = None;
            let threshold = match thresholds {
                None => ScreenMode::Off,
                // Without a plan there are none, which is said below.
                Some(_) if self.args.weights.no_plan => ScreenMode::Auto,
                Some(_) => ScreenMode::On,
            };
            let weights = WeightArgs { threshold, ..self.args.weights.clone() };
            let model = weights.load(path, options.exact, &self.interrupt)?;
            let here = model.ffn_thresholds().and_then(|found| found.sha256());
            anyhow::ensure!(
                here == thresholds,
                "neurons were left out below thresholds (SHA-256 {}) that the model's plan here \
                 has not; name the right plan with --plan",
                thresholds.unwrap_or_default()
            );
            let sha256 = digest(&model.files(), &self.interrupt)?;
            let session = Session::new(model, options)?;
            let path = path.to_owned();
            self.ready = Some(Ready { path, sha256, options: shown, session });
        }
        let Some(ready) = &mut self.ready else { return Ok(()) };
        let recorded = record.request.model_hashes.get("main").map_or("", String::as_str);
        anyhow::ensure!(
            ready.sha256 == recorded,
            "the model file {} has changed: its SHA-256 is {} and was {recorded}; \
             give the right one with -m",
            path.display(),
            ready.sha256
        );
        let drafts = (self.args.spec == Drafts::Lookup)
            .then(|| Speculation::new(vec![Box::new(Lookup::new(&[]))], Length::Fixed(8)));
        ready.session.speculate(drafts);
        Ok(())
    }
}
