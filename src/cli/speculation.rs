//! Speculative decoding from the command line: which drafters, and what passes cost here.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
use crate::whole::write_json;

/// The most text that look-up is given besides the conversation: it takes some 40 bytes of memory
/// for each, and a second for half a megabyte.
const CORPUS_BYTES_MAX: u64 = 16 << 20;

/// In contexts of so many tokens and more, passes are timed alike.
const CONTEXT_TIMED: usize = 2048;

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
    /// May be given several times, for 16 MiB in all.
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
    /// Lets `session` draft as the arguments say. What it learns of costs is for the caller to
    /// keep in the end, by `KnownCosts::keep`.
    ///
    /// # Errors
    /// Arguments that make no sense together, and a corpus or a draft model that cannot be used.
    pub fn set_up(
        &self,
        session: &mut Session,
        weights: &WeightArgs,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<KnownCosts>> {
        self.check()?;
        if self.spec == SpecMode::Off {
            return Ok(None);
        }
        let target = session.executor().model().clone();
        let options = session.executor().options().clone();
        let mut draft = match &self.model_draft {
            Some(name) => Some(self.draft(name, &target, &options, weights, interrupt)?),
            None => None,
        };
        let known = KnownCosts::of(session, draft.as_mut())?;
        let length =
            Length::Auto { costs: known.costs.clone(), most: usize::try_from(self.draft_max)? };
        let mut drafters: Vec<Box<dyn Drafter>> = Vec::new();
        if self.spec != SpecMode::Draft {
            drafters.push(Box::new(Lookup::new(&self.corpora(&target)?)));
        }
        if let Some(draft) = draft {
            drafters.push(Box::new(draft));
        }
        session.speculate(Some(Speculation::new(drafters, length)));
        Ok(Some(known))
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
        if let Some(name) = &self.model_draft {
            let draft = Model::load(&model_file(name, interrupt)?)?;
            options.set_aside = draft.footprint(options)?;
        }
        Ok(())
    }

    /// The draft model and the name that it was given, if `set_up` has found that it drafts.
    pub fn drafting<'a>(&'a self, known: Option<&KnownCosts>) -> Option<(&'a str, Arc<Model>)> {
        self.model_draft.as_deref().zip(known.and_then(|known| known.draft.clone()))
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
        let options = ExecutorOptions { ram: None, set_aside: 0, ..options.clone() };
        let context = options.context;
        let draft = DraftModel::new(model, target, options)
            .with_context(|| format!("{} cannot draft", path.display()))?;
        if draft.context() < context {
            let most = draft.context();
            tracing::warn!(
                "{} was made for {most} tokens; of the context's {context}, those beyond are \
                 drafted without it",
                path.display()
            );
        }
        Ok(draft)
    }

    fn corpora(&self, target: &Model) -> anyhow::Result<Vec<Vec<u32>>> {
        let tokenizer = target.tokenizer()?;
        let mut left = CORPUS_BYTES_MAX;
        let read = |path: &PathBuf| -> anyhow::Result<Vec<u32>> {
            let text = read_corpus(path, left)?;
            left -= text.len() as u64;
            Ok(tokenizer.encode(&text, ParseSpecial::No))
        };
        self.spec_corpus.iter().map(read).collect()
    }
}

/// The text of a corpus, at most `most` bytes.
fn read_corpus(path: &Path, most: u64) -> anyhow::Result<String> {
    let what = || format!("cannot read the corpus {}", path.display());
    // A device or a pipe may never end, and opening it may wait for ever.
    anyhow::ensure!(
        fs::metadata(path).with_context(what)?.is_file(),
        "the corpus {} is not a regular file",
        path.display()
    );
    let mut bytes = Vec::new();
    let file = fs::File::open(path).with_context(what)?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).with_context(what)?;
    anyhow::ensure!(
        bytes.len() as u64 <= most,
        "{} makes more than {} MiB of corpora; give a part of it",
        path.display(),
        CORPUS_BYTES_MAX >> 20
    );
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!(
            "the corpus {} is not text: byte {at} is no part of a UTF-8 character",
            path.display()
        )
    })
}

/// What passes cost on this machine, and the file where that is kept.
#[derive(Debug)]
pub struct KnownCosts {
    costs: PassCosts,
    /// `None` where there is no folder to keep it in.
    file: Option<PathBuf>,
    draft: Option<Arc<Model>>,
}

impl KnownCosts {
    /// As was measured before with the same files, threads and program, or measured now.
    fn of(session: &mut Session, draft: Option<&mut DraftModel>) -> anyhow::Result<Self> {
        let model = draft.as_deref().map(|draft| Arc::clone(draft.model()));
        let file = key(session, draft.as_deref())
            .and_then(|key| Some(cache_folder()?.join("passes").join(format!("{key}.json"))));
        if let Some(costs) = file.as_deref().and_then(read_costs) {
            return Ok(Self { costs, file, draft: model });
        }
        let draft = draft.map(DraftModel::executor);
        let costs = PassCosts::measure(session.idle_executor(), draft)?;
        let known = Self { costs, file, draft: model };
        // What was measured while others used the machine is good for this once.
        if known.costs.is_steady() {
            known.write(&known.costs);
        }
        Ok(known)
    }

    /// Keeps what `session` has learned since, if that is another picture, or the first that was
    /// not made while others used the machine.
    pub fn keep(&self, session: &Session) {
        /// Fewer passes may all have been disturbed.
        const PASSES_MIN: u64 = 32;
        /// The least factor between two ratios of costs that changes decisions much.
        const FACTOR_MIN: f64 = 1.1;
        let Some(speculation) = session.speculation() else { return };
        let enough = speculation.stats().passes >= PASSES_MIN;
        if let Some(learned) = speculation.costs().filter(|_| enough)
            && learned.is_sound()
            && (!self.costs.is_steady() || learned.disagreement(&self.costs) > FACTOR_MIN)
        {
            self.write(learned);
        }
    }

    fn write(&self, costs: &PassCosts) {
        // It can be measured again; a cache that cannot be written costs a moment each time.
        if let Some(Err(error)) = self.file.as_deref().map(|file| write_json(file, costs)) {
            tracing::debug!("pass costs are not kept: {error}");
        }
    }
}

fn read_costs(file: &Path) -> Option<PassCosts> {
    let costs: PassCosts = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    costs.is_sound().then_some(costs)
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
    part(&format!("{} {} {}", options.cache_k, options.cache_v, options.kv_tiers));
    // Passes that read weights from disk cost something else.
    part(&format!("{:?} {}", options.ram, executor.streamed_file().is_some()));
    // In a short context there is less to time.
    part(&options.context.min(CONTEXT_TIMED).to_string());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use aios_engine::{Limits, PassCurve, SamplerOptions};

    use super::*;

    #[test]
    fn corpora_that_are_no_texts_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus");
        let refused = |most: u64| read_corpus(&path, most).unwrap_err().to_string();
        assert!(refused(9).contains("cannot read the corpus"));
        fs::write(&path, "four").unwrap();
        assert_eq!(read_corpus(&path, 4).unwrap(), "four");
        assert!(refused(3).contains("more than 16 MiB"));
        fs::write(&path, b"ab\xff").unwrap();
        assert!(refused(9).contains("not text: byte 2"), "{}", refused(9));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refused(9).contains("not a regular file"));
    }

    #[test]
    fn what_was_learned_is_kept_if_it_is_another_picture() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("passes").join("x.json");
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
        let model = Model::load(&models.join("micro-llama-q4km.gguf")).unwrap();
        let mut session = Session::new(model, ExecutorOptions::new(128)).unwrap();
        // A micro model's passes take less than a millisecond, and many tokens do not cost less.
        let wrong = PassCurve::new(vec![(1, 1000.0), (16, 1000.0)]).unwrap();
        let costs = PassCosts::known(wrong, None);
        let known = KnownCosts { costs: costs.clone(), file: Some(file.clone()), draft: None };
        let mut answer = |tokens, drafters: Vec<Box<dyn Drafter>>| {
            let length = Length::Auto { costs: costs.clone(), most: 3 };
            session.speculate(Some(Speculation::new(drafters, length)));
            let limits = Limits { max_tokens: Some(tokens), ignore_eos: true, ..Limits::default() };
            let mut answer = session.generate(&[1, 2], SamplerOptions::greedy(), limits).unwrap();
            let never = AtomicBool::new(false);
            while answer.next_text(&never).unwrap().is_some() {}
            known.keep(&session);
            read_costs(&file)
        };
        assert_eq!(answer(10, vec![]), None, "too few passes");
        // Passes of one token became cheaper than those of many were said to be.
        let kept = answer(100, vec![]).unwrap();
        assert!(kept.disagreement(&costs) > 1.1, "{kept:?}");
    }
}
