//! Recording from the command line: which answers, and where.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aios_engine::{Model, Session};
use anyhow::Context;
use clap::Args;
use jiff::civil::{DateTime, date};

use super::{SpecMode, Terminal};
use crate::chat::Settings;
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::{Observer, cache_folder};
use crate::provenance::{Log, Options, Part, Recorder, SharedLog, Subject};

/// The seed of `--deterministic`.
const SEED: u64 = 42;
/// The time that it tells templates.
const CLOCK: DateTime = date(2025, 1, 1).at(0, 0, 0, 0);

/// What is recorded, and where.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Provenance")]
pub struct RecordArgs {
    /// Append a record of every answer to this file, or to provenance.ndjson in this folder.
    /// 'aios provenance replay' runs it again and proves it.
    #[arg(long, value_name = "FILE|FOLDER")]
    pub provenance: Option<PathBuf>,
    /// Record the digests of token ids instead of the ids. Such an answer cannot be run again.
    #[arg(long, requires = "provenance")]
    pub private: bool,
    /// Seed 42, temperature 0, and 2025-01-01 00:00 as the time that a chat template is told.
    #[arg(long, conflicts_with_all = ["seed", "temp"])]
    pub deterministic: bool,
}

/// The models of a session, for its records.
#[derive(Debug)]
pub struct Named<'a> {
    /// As `-m` named it.
    pub main: &'a str,
    /// The draft model, as `-md` named it.
    pub draft: Option<(&'a str, Arc<Model>)>,
    /// What drafts.
    pub spec: SpecMode,
    /// The SHA-256 of the chat template, if there is one.
    pub chat_template_sha256: Option<String>,
}

impl RecordArgs {
    /// Opens the log, if there is to be one, to be kept as `options` say: before any model is
    /// loaded, so that a place that cannot be written is said at once.
    ///
    /// # Errors
    /// Those of [`Log::open`].
    pub fn open(&self, options: &Options) -> anyhow::Result<Option<SharedLog>> {
        let Some(path) = &self.provenance else { return Ok(None) };
        let log = Log::open(path, options.rotate_bytes)?;
        Ok(Some(Arc::new(Mutex::new(log))))
    }

    /// The settings, made deterministic if that was asked for.
    pub fn settings(&self, settings: Settings) -> Settings {
        match self.deterministic {
            true => Settings { temp: 0.0, seed: SEED, ..settings },
            false => settings,
        }
    }

    /// The time that a template is told, if it is not the present.
    pub fn clock(&self) -> Option<DateTime> {
        self.deterministic.then_some(CLOCK)
    }

    /// Records the answers of `session` by `core` in `log`, if there is one.
    ///
    /// # Errors
    /// A model file that cannot be digested, and [`Interrupted`].
    pub fn recorder(
        &self,
        log: Option<SharedLog>,
        core: &str,
        session: &mut Session,
        models: Named<'_>,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<Recorder>> {
        let Some(log) = log else { return Ok(None) };
        let main = Arc::clone(session.executor().model());
        let mut parts = vec![part("main", models.main, main, interrupt)?];
        if let Some((name, model)) = models.draft {
            parts.push(part("sd", name, model, interrupt)?);
        }
        let subject = Subject {
            core: core.to_owned(),
            parts,
            spec_mode: session.speculation().map(|_| models.spec.name().to_owned()),
            deterministic: self.deterministic,
            private: self.private,
            chat_template_sha256: models.chat_template_sha256,
        };
        Ok(Some(Recorder::new(log, subject, session)))
    }
}

/// A model's part in answers, with the digest of its files.
fn part(
    part: &'static str,
    name: &str,
    model: Arc<Model>,
    interrupt: &Interrupt,
) -> anyhow::Result<Part> {
    let path = model.path().to_owned();
    let made =
        with_progress(interrupt, |cache, progress| Part::new(part, name, model, cache, progress));
    digested(made, &path)
}

/// The SHA-256 of a model's files, kept in the cache folder; a bar shows where it takes long.
///
/// # Errors
/// A file that cannot be read, and [`Interrupted`].
pub(super) fn digest(files: &[PathBuf], interrupt: &Interrupt) -> anyhow::Result<String> {
    let made = with_progress(interrupt, |cache, progress| {
        crate::digests::of_files(files, cache, progress)
    });
    digested(made, files.first().map_or(Path::new(""), PathBuf::as_path))
}

fn with_progress<T>(
    interrupt: &Interrupt,
    work: impl FnOnce(Option<&Path>, &mut dyn FnMut(u64, u64) -> bool) -> T,
) -> T {
    let cache = cache_folder().map(|folder| folder.join("digests"));
    let terminal = Terminal::new();
    work(cache.as_deref(), &mut |done, total| {
        terminal.progress("digesting weights", done, total);
        !interrupt.is_set()
    })
}

fn digested<T>(made: std::io::Result<T>, path: &Path) -> anyhow::Result<T> {
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Err(Interrupted.into()),
        made => made.with_context(|| format!("cannot digest {}", path.display())),
    }
}

/// What there is to say at the end of a conversation of which some answers are not recorded.
///
/// # Errors
/// That.
pub(super) fn all_recorded(recorder: Option<&mut Recorder>) -> anyhow::Result<()> {
    let Some(recorder) = recorder else { return Ok(()) };
    if let Some(complaint) = recorder.complaint() {
        anyhow::bail!("{complaint}");
    }
    match recorder.unrecorded() {
        0 => Ok(()),
        1 => anyhow::bail!("an answer is not recorded; the reason is above"),
        many => anyhow::bail!("{many} answers are not recorded; the reasons are above"),
    }
}
