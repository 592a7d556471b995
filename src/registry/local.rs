//! Models that this engine runs from files of this machine.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aios_contract::Architecture;
use aios_engine::{ExecutorOptions, Model, PrefixShelf, Session};
use aios_validation::report::is_synthetic;
use aios_validation::synth::Quant;
use anyhow::{Context, ensure};

use super::{Backend, Description, ExecutionMode, Held, SessionOptions, Source};
use crate::chat::{Conversation, Format, Responder};
use crate::config::{Bytes, Family, ModelEntry};
use crate::digests::{Stamp, of_files};
use crate::models::{Catalog, Observer, Store, Watch};

/// The context of a session where nothing else is said, in tokens.
pub const CONTEXT_DEFAULT: usize = 4096;

/// How files are found and models loaded from them.
pub trait Fetch: Send + Sync {
    /// The file of a catalogue model.
    ///
    /// # Errors
    /// If there is none and it cannot be had.
    fn catalogue(&self, name: &str) -> anyhow::Result<PathBuf>;

    /// The model in a file, for sessions that keep to so much memory if nobody asks for more or
    /// less.
    ///
    /// # Errors
    /// What keeps it from being loaded.
    fn load(&self, path: &Path, ram: Option<u64>) -> anyhow::Result<Arc<Model>>;
}

/// Loads models as they stand in their files; those of the built-in catalogue are fetched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

struct Silent;

impl Observer for Silent {
    fn notice(&self, line: &str) {
        tracing::info!("{line}");
    }
    fn progress(&self, _doing: &str, _done: u64, _total: u64) {}
}

impl Fetch for Direct {
    fn catalogue(&self, name: &str) -> anyhow::Result<PathBuf> {
        let watch = Watch { cancel: &AtomicBool::new(false), observer: &Silent };
        Ok(Store::locate()?.ensure(Catalog::builtin().model(name)?, &watch)?)
    }

    fn load(&self, path: &Path, _: Option<u64>) -> anyhow::Result<Arc<Model>> {
        Ok(Model::load(path)?)
    }
}

/// Makes backends of files, and maps identical bytes once: entries with the same file share a
/// model, and so do those whose files are copies of each other.
pub struct Local {
    fetch: Box<dyn Fetch>,
    /// Where digests are kept.
    digests: Option<PathBuf>,
    mapped: Mutex<Vec<Mapped>>,
}

/// A model that was loaded, for as long as somebody has it.
struct Mapped {
    files: Vec<(PathBuf, Stamp)>,
    model: Weak<Model>,
}

impl Local {
    /// A source that loads by `fetch` and keeps digests in the folder `digests`, if there is one.
    pub fn new(fetch: impl Fetch + 'static, digests: Option<PathBuf>) -> Self {
        Self { fetch: Box::new(fetch), digests, mapped: Mutex::default() }
    }

    /// The model in the file at `path`, for sessions of so much memory.
    fn model(&self, path: &Path, ram: Option<u64>) -> anyhow::Result<Arc<Model>> {
        let unreadable = || path.display().to_string();
        // What cannot be looked at is for loading to complain about, which does so in detail.
        let before = Stamp::of(path).ok();
        if let Some(stamp) = before
            && let Some(model) = self.shared(path, stamp)
        {
            return Ok(model);
        }
        let model = self.fetch.load(path, ram)?;
        let stamps = model.files().into_iter().map(|file| {
            let stamp = Stamp::of(&file)?;
            Ok((file, stamp))
        });
        let files: Vec<_> = stamps.collect::<std::io::Result<_>>().with_context(unreadable)?;
        let unchanged = files.first().map(|(_, stamp)| *stamp) == before;
        ensure!(unchanged, "{} changed while it was loaded; load it again", path.display());
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|known| known.model.strong_count() > 0);
        mapped.push(Mapped { files, model: Arc::downgrade(&model) });
        Ok(model)
    }

    /// A model that is loaded already and has the very bytes of the file at `path`.
    fn shared(&self, path: &Path, stamp: Stamp) -> Option<Arc<Model>> {
        let mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let is_as_loaded =
            |(file, then): &(PathBuf, Stamp)| Stamp::of(file).is_ok_and(|now| now == *then);
        let same = mapped.iter().filter(|known| {
            known.files.first().is_some_and(|(_, first)| *first == stamp)
                && known.files[1..].iter().all(is_as_loaded)
        });
        if let Some(model) = same.into_iter().find_map(|known| known.model.upgrade()) {
            return Some(model);
        }
        // Files of one length are likely copies, which is then worth the reading.
        let like = mapped.iter().filter(|known| match &known.files[..] {
            [only] => only.1.bytes == stamp.bytes && is_as_loaded(only),
            _ => false,
        });
        let digest = |path: &Path| {
            of_files(&[path.to_owned()], self.digests.as_deref(), &mut |_, _| true).ok()
        };
        let mut own = None;
        like.into_iter().find_map(|known| {
            let model = known.model.upgrade()?;
            let own = own.get_or_insert_with(|| digest(path)).as_ref()?;
            (digest(&known.files[0].0)? == *own).then_some(model)
        })
    }
}

impl Source for Local {
    fn load(&self, entry: &ModelEntry) -> anyhow::Result<Box<dyn Backend>> {
        let path = match (&entry.file, &entry.catalogue) {
            (Some(file), _) => file.clone(),
            (None, Some(name)) => self.fetch.catalogue(name)?,
            (None, None) => anyhow::bail!("the entry names neither a file nor a catalogue model"),
        };
        let model = self.model(&path, entry.ram.map(|Bytes(bytes)| bytes))?;
        check_family(entry, model.config().architecture)
            .with_context(|| path.display().to_string())?;
        let chosen = entry.chat_template.as_deref().map(Format::chosen).transpose()?;
        let digests = self.digests.clone();
        Ok(Box::new(LocalModel {
            entry: entry.clone(),
            model,
            chosen,
            digests,
            shelf: Arc::default(),
        }))
    }
}

fn check_family(entry: &ModelEntry, architecture: Architecture) -> anyhow::Result<()> {
    let found = Family::of(architecture);
    let declared = entry.family.unwrap_or(found);
    ensure!(
        declared == found,
        "the file's architecture is {}, of the family {found}, and '{}' is declared as {declared}; \
         correct its 'family', or name another file",
        architecture.name(),
        entry.name,
    );
    Ok(())
}

/// A model of this engine, ready for sessions.
pub struct LocalModel {
    entry: ModelEntry,
    model: Arc<Model>,
    /// The chat template that its entry names.
    chosen: Option<Format>,
    digests: Option<PathBuf>,
    /// What its conversations begin with, whoever has them.
    shelf: Arc<PrefixShelf>,
}

impl LocalModel {
    /// The model.
    pub const fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What the configuration says of it.
    pub const fn entry(&self) -> &ModelEntry {
        &self.entry
    }

    /// The format of its conversations: that which its entry names, or its own.
    ///
    /// # Errors
    /// If there is neither.
    pub fn format(&self) -> anyhow::Result<Format> {
        self.chosen.clone().map_or_else(|| Format::of_model(&self.model), Ok)
    }

    /// The set-up of a session: as `options` say, else as the entry says, else a default.
    pub fn executor_options(&self, options: &SessionOptions) -> ExecutorOptions {
        let trained = self.model.config().context;
        let context = match options.context.or(self.entry.context) {
            Some(0) => trained,
            Some(tokens) => usize::try_from(tokens).unwrap_or(usize::MAX),
            None => CONTEXT_DEFAULT,
        };
        let mut set_up = ExecutorOptions::new(context);
        let entry = self.entry.threads.and_then(|threads| usize::try_from(threads).ok());
        if let Some(threads) = options.threads.or(entry) {
            (set_up.threads, set_up.threads_batch) = (threads, threads);
        }
        set_up.ram = options.ram.or(self.entry.ram.map(|Bytes(bytes)| bytes));
        set_up
    }

    /// A session, which begins with what conversations before it have had in common of what the
    /// template and the system messages make.
    ///
    /// # Errors
    /// Those of [`Session::new`].
    pub fn session(&self, options: &SessionOptions) -> anyhow::Result<Session> {
        let (model, options) = (Arc::clone(&self.model), self.executor_options(options));
        Ok(match self.shelf.prefix() {
            Some(prefix) => Session::beginning_with(model, options, &prefix)?,
            None => Session::new(model, options)?,
        })
    }

    /// How most of its bytes are stored: the mix that the file names, or else the largest dtype.
    fn quantisation(&self) -> String {
        let named = self.model.metadata().u64("general.file_type").ok().flatten();
        let mix = Quant::all().find(|quant| Some(u64::from(quant.file_type())) == named);
        let largest = || self.model.dtypes().first().map(|(dtype, _)| dtype.to_string());
        mix.map(|quant| quant.name().to_owned()).or_else(largest).unwrap_or_default()
    }
}

impl Backend for LocalModel {
    fn describe(&self) -> Description {
        let architecture = self.model.config().architecture;
        Description {
            name: self.entry.name.clone(),
            role: self.entry.role,
            backend: "engine",
            execution_mode: self.execution_mode(),
            family: Some(Family::of(architecture)),
            architecture: architecture.name().to_owned(),
            quantisation: self.quantisation(),
            files: self.model.files(),
            context: self.executor_options(&SessionOptions::default()).context,
        }
    }

    fn execution_mode(&self) -> ExecutionMode {
        if is_synthetic(self.model.metadata()) {
            ExecutionMode::Synthetic
        } else {
            ExecutionMode::Real
        }
    }

    fn held(&self) -> Held {
        let bytes = self.model.dtypes().iter().map(|(_, bytes)| bytes).sum();
        Held { id: Arc::as_ptr(&self.model).addr(), bytes }
    }

    fn sha256(&self) -> anyhow::Result<Option<String>> {
        let files = self.model.files();
        let digest = of_files(&files, self.digests.as_deref(), &mut |_, _| true);
        let name = || format!("cannot digest the files of '{}'", self.entry.name);
        digest.map(Some).with_context(name)
    }

    fn open(&self, options: &SessionOptions) -> anyhow::Result<Box<dyn Responder + Send>> {
        let format = self.format()?;
        let conversation = Conversation::new(self.session(options)?, format.template().clone())?;
        Ok(Box::new(conversation.with_shelf(Arc::clone(&self.shelf))))
    }

    fn local(&self) -> Option<&LocalModel> {
        Some(self)
    }
}
