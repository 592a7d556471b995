//! Speculative decoding from the command line: which drafters, and what passes cost here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use aios_engine::tokenizer::ParseSpecial;
use aios_engine::{
    DraftModel, Drafter, ExecutorOptions, Length, Lookup, Model, PASS_MAX, PassCosts, Session,
    Speculation,
};
use anyhow::Context;
use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};

use super::{Usage, WeightArgs, model_file};
use crate::interrupt::Interrupt;
use crate::models::cache_folder;

/// The longest text that look-up is given besides the conversation.
const CORPUS_BYTES_MAX: u64 = 64 << 20;

/// How answers are drafted. Drafting changes their speed, never their tokens.
#[derive(Args, Clone, Debug)]
pub struct SpecArgs {
    /// Draft tokens and check several in one pass.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = SpecMode::Auto)]
    pub spec: SpecMode,
    /// A smaller model with the same vocabulary that drafts (-md).
    #[arg(long, value_name = "FILE|NAME")]
    pub model_draft: Option<String>,
    /// A text whose passages may come up again; look-up searches it as it does the conversation.
    #[arg(long, value_name = "PATH")]
    pub spec_corpus: Vec<PathBuf>,
    /// The most tokens to draft for a pass.
    #[arg(long, value_name = "N", default_value_t = PASS_MAX as u32 - 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..PASS_MAX as i64))]
    pub draft_max: u32,
}

/// Which drafters are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpecMode {
    /// None: a token a pass.
    Off,
    /// What followed the last tokens when they last stood in the conversation.
    Lookup,
    /// The draft model alone.
    Draft,
    /// Look-up, and the draft model if there is one, wherever they pay.
    Auto,
}

impl SpecMode {
    /// The spelling on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Lookup => "lookup",
            Self::Draft => "draft",
            Self::Auto => "auto",
        }
    }
}

impl SpecArgs {
    /// Lets `session` draft as the arguments say.
    ///
    /// # Errors
    /// Arguments that make no sense together, and a corpus or a draft model that cannot be used.
    pub fn set_up(
        &self,
        session: &mut Session,
        weights: &WeightArgs,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        self.check()?;
        if self.spec == SpecMode::Off {
            return Ok(());
        }
        let target = session.executor().model().clone();
        let options = session.executor().options().clone();
        let mut draft = match &self.model_draft {
            Some(name) => Some(self.draft(name, &target, &options, weights, interrupt)?),
            None => None,
        };
        let costs = costs(session, draft.as_mut())?;
        let length = Length::Auto { costs, most: usize::try_from(self.draft_max)? };
        let mut drafters: Vec<Box<dyn Drafter>> = Vec::new();
        if self.spec != SpecMode::Draft {
            drafters.push(Box::new(Lookup::new(&self.corpora(&target)?)));
        }
        if let Some(draft) = draft {
            drafters.push(Box::new(draft));
        }
        session.speculate(Some(Speculation::new(drafters, length)));
        Ok(())
    }

    /// Takes what the draft model needs off the memory that the target may use.
    ///
    /// # Errors
    /// A draft model that cannot be loaded.
    pub fn make_room(
        &self,
        options: &mut ExecutorOptions,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        if let (Some(ram), Some(name)) = (options.ram, &self.model_draft) {
            let draft = Model::load(&model_file(name, interrupt)?)?;
            options.ram = Some(ram.saturating_sub(draft.footprint(options)?));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Usage> {
        let refuse = |text: &str| Err(Usage(text.to_owned()));
        match (self.spec, &self.model_draft, self.spec_corpus.is_empty()) {
            (SpecMode::Draft, None, _) => refuse("--spec draft needs a draft model: give -md"),
            (SpecMode::Off | SpecMode::Lookup, Some(_), _) => {
                refuse("a draft model (-md) is of no use with --spec off or lookup")
            }
            (SpecMode::Off | SpecMode::Draft, _, false) => {
                refuse("--spec-corpus is of no use with --spec off or draft")
            }
            _ => Ok(()),
        }
    }

    fn draft(
        &self,
        name: &str,
        target: &Model,
        options: &ExecutorOptions,
        weights: &WeightArgs,
        interrupt: &Interrupt,
    ) -> anyhow::Result<DraftModel> {
        let path = model_file(name, interrupt)?;
        let model = weights.load(&path, false, interrupt)?;
        // It is small, and its bytes were taken off the target's budget.
        let options = ExecutorOptions { ram: None, ..options.clone() };
        DraftModel::new(model, target, options)
            .with_context(|| format!("{} cannot draft", path.display()))
    }

    fn corpora(&self, target: &Model) -> anyhow::Result<Vec<Vec<u32>>> {
        let tokenizer = target.tokenizer()?;
        let read = |path: &PathBuf| -> anyhow::Result<Vec<u32>> {
            let what = || format!("cannot read the corpus {}", path.display());
            let bytes = fs::metadata(path).with_context(what)?.len();
            if bytes > CORPUS_BYTES_MAX {
                let most = CORPUS_BYTES_MAX >> 20;
                anyhow::bail!("the corpus {} has more than {most} MiB", path.display());
            }
            let text = fs::read_to_string(path).with_context(what)?;
            Ok(tokenizer.encode(&text, ParseSpecial::No))
        };
        self.spec_corpus.iter().map(read).collect()
    }
}

/// What passes cost on this machine: as was measured before with the same files, threads and
/// program, or measured now.
fn costs(session: &mut Session, draft: Option<&mut DraftModel>) -> anyhow::Result<PassCosts> {
    let file = key(session, draft.as_deref())
        .and_then(|key| Some(cache_folder()?.join("passes").join(format!("{key}.json"))));
    if let Some(known) = file.as_deref().and_then(read_costs) {
        return Ok(known);
    }
    let draft = draft.map(DraftModel::executor);
    let costs = PassCosts::measure(session.idle_executor(), draft)?;
    if let Some(file) = file {
        // It can be measured again; a cache that cannot be written costs a moment each time.
        if let Err(error) = write_costs(&file, &costs) {
            tracing::debug!("pass costs are not kept: {error}");
        }
    }
    Ok(costs)
}

fn read_costs(file: &Path) -> Option<PassCosts> {
    let costs: PassCosts = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    costs.is_sound().then_some(costs)
}

fn write_costs(file: &Path, costs: &PassCosts) -> anyhow::Result<()> {
    let folder = file.parent().context("a file in a folder")?;
    fs::create_dir_all(folder)?;
    let mut whole = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut whole, costs)?;
    whole.persist(file)?;
    Ok(())
}

/// A name for everything that the costs depend on; `None` if a file cannot be looked at.
fn key(session: &Session, draft: Option<&DraftModel>) -> Option<String> {
    let executor = session.executor();
    let options = executor.options();
    let mut digest = Sha256::new();
    let mut part = |text: &str| {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    };
    part(concat!(env!("CARGO_PKG_VERSION"), env!("AIOS_REVISION")));
    part(&crate::doctor::Report::collect(Path::new("/")).cpu.model.unwrap_or_default());
    part(options.isa.description());
    part(&format!("{} {}", options.threads, options.threads_batch));
    part(&format!("{} {}", options.cache_k, options.cache_v));
    // Passes that read weights from disk cost something else.
    part(&executor.residency().stream_bytes.to_string());
    for model in std::iter::once(executor.model()).chain(draft.map(DraftModel::model)) {
        let path = fs::canonicalize(model.path()).ok()?;
        let meta = fs::metadata(&path).ok()?;
        let changed = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        part(&path.to_string_lossy());
        part(&format!("{} {changed:?} {}", meta.len(), model.is_repacked()));
    }
    use std::fmt::Write as _;
    let mut name = String::new();
    for byte in &digest.finalize()[..12] {
        write!(name, "{byte:02x}").ok()?;
    }
    Some(name)
}
