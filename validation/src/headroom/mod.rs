//! Headroom: how many bytes a token of a model could do without, measured on its real tensors and
//! on the activations of real prompts. SPEC.md's chapter H states what each figure means.
//!
//! Nothing here changes the model or the arithmetic of the engine. Each part gives figures, and
//! [`levers`] says what they come to: bytes saved for a token at no loss, at a small one, or none.

pub mod activations;
pub mod cache;
pub mod duplicates;
pub(crate) mod files;
pub mod levers;
pub mod lookup;
mod markdown;
mod plots;
pub mod report;
pub(crate) mod scores;
pub mod similarity;
pub mod sparsity;
#[cfg(test)]
mod tests;

use crate::plot::PlotError;
use crate::prompts::{Prompt, Prompts};
use crate::report::WriteError;
use aios_engine::gguf::GgufError;
use aios_engine::tokenizer::{ParseSpecial, TokenizerError};
use aios_engine::{EngineError, Executor, ExecutorOptions, Model};
use aios_residency::MapError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use activations::{Zeros, measure_zeros};
pub use report::HeadroomReport;

use files::GgufFile;

/// What is measured, and on how much.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Prompts, taken evenly from the file: half of them calibrate the thresholds, the others are
    /// scored.
    pub prompts: usize,
    /// The most tokens of a prompt.
    pub tokens: usize,
    /// Prompts that are continued, for speculation by look-up.
    pub continued: usize,
    /// The most tokens of a continuation.
    pub generate: usize,
    /// Other files, in which copies of the model's blocks are looked for.
    pub with: Vec<PathBuf>,
}

impl Plan {
    /// The defaults: a quarter of an hour for a model of 1.5 billion parameters on two cores.
    pub const fn new() -> Self {
        Self { prompts: 48, tokens: 128, continued: 16, generate: 64, with: Vec::new() }
    }

    /// Positions that the context must hold.
    pub fn context(&self) -> usize {
        self.tokens.saturating_add(self.generate).max(1)
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

/// Is told what is being done and how many of how many steps are; `false` ends the work.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) -> bool + 'a;

/// Why a model's headroom could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum HeadroomError {
    /// There is too little to calibrate with and to score.
    #[error(
        "{usable} of the prompts have 2 tokens or more; \
         give 2 such prompts at least, to calibrate with one and to score the other"
    )]
    TooFewPrompts {
        /// Prompts that can be scored.
        usable: usize,
    },
    /// A file could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A file is no sound GGUF file.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The vocabulary is not sound.
    #[error(transparent)]
    Tokenizer(#[from] Arc<TokenizerError>),
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A picture could not be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// A report could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Tells `progress` of a step done.
fn step(
    progress: &mut Progress<'_>,
    doing: &'static str,
    done: usize,
    total: usize,
) -> Result<(), HeadroomError> {
    let go_on = progress(doing, done as u64, total as u64);
    if go_on { Ok(()) } else { Err(HeadroomError::Interrupted) }
}

/// The tokens of prompts, BOS in front where the model begins a text with it, each cut after
/// `tokens` of them. Spellings of control tokens are plain text. Prompts without a token drop out.
///
/// # Errors
/// [`HeadroomError::Tokenizer`].
pub fn tokenise<'p>(
    model: &Model,
    prompts: &[&'p Prompt],
    tokens: usize,
) -> Result<Vec<(&'p Prompt, Vec<u32>)>, HeadroomError> {
    let tokenizer = model.tokenizer()?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut list = Vec::with_capacity(prompts.len());
    for &prompt in prompts {
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode(&prompt.text, ParseSpecial::No));
        ids.truncate(tokens);
        if !ids.is_empty() {
            list.push((prompt, ids));
        }
    }
    Ok(list)
}

/// How alike the layers of the model in the file at `path` are: which blocks the zones' thresholds
/// would let be aliased (SPEC H2).
///
/// # Errors
/// [`HeadroomError`].
pub fn alike(
    path: &Path,
    layers: usize,
    progress: &mut Progress<'_>,
) -> Result<similarity::Similarity, HeadroomError> {
    similarity::measure(&GgufFile::open(path)?, layers, progress)
}

/// Measures all parts. `options` says how to compute; their context is replaced by the plan's.
///
/// The figures depend on the files and the plan alone, and not on the threads or the instruction
/// set.
///
/// # Errors
/// [`HeadroomError`].
pub fn run(
    model: &Arc<Model>,
    options: &ExecutorOptions,
    prompts: &Prompts,
    plan: &Plan,
    progress: &mut Progress<'_>,
) -> Result<HeadroomReport, HeadroomError> {
    let options = ExecutorOptions { context: plan.context(), ..options.clone() };
    let file = GgufFile::open(model.path())?;
    let chosen = prompts.spread(plan.prompts);
    let texts = tokenise(model, &chosen, plan.tokens)?;
    let usable: Vec<&[u32]> =
        texts.iter().map(|(_, ids)| &**ids).filter(|ids| ids.len() >= 2).collect();
    if usable.len() < 2 {
        return Err(HeadroomError::TooFewPrompts { usable: usable.len() });
    }
    let others =
        plan.with.iter().map(|path| GgufFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    let about = report::about(model, &file, &options, prompts, &texts, progress)?;
    let mut executor = Executor::new(Arc::clone(model), options.clone())?;
    let similarity = similarity::measure(&file, model.config().layers, progress)?;
    let duplicates = duplicates::measure(&file, &others, progress)?;
    let ids: Vec<&[u32]> = texts.iter().map(|(_, ids)| &**ids).collect();
    let activations = activations::measure_tokens(&mut executor, &ids, progress)?;
    let sparsity = sparsity::measure(model, &options, &file, &usable, progress)?;
    let (lookup, head) = lookup::measure(&mut executor, &texts, plan, progress)?;
    let cache = cache::bytes(model.config());
    let parts =
        report::Parts { similarity, duplicates, activations, sparsity, lookup, head, cache };
    Ok(about.with(parts))
}
