//! The profiler: looks at a model once, fits and makes what a plan holds, measures whether it pays
//! on this machine, and writes the plan (SPEC D).

mod build;
mod cache;
mod directions;
mod hidden;
mod measure;
mod memory;
mod neurons;
mod render;
#[cfg(test)]
mod tests;
mod thresholds;
mod ways;

use crate::headroom::{HeadroomError, tokenise};
use crate::prompts::{Prompt, Prompts};
use crate::report::is_synthetic;
use aios_engine::tokenizer::TokenizerError;
use aios_engine::{
    AdoptError, EngineError, Executor, ExecutorOptions, HeadScreen, Model, ScreenLimits,
};
use aios_kernels::{NotFinite, NotFiniteScale, SketchShape};
use aios_residency::plan::{
    Hardware, Manifest, PlanError, SCHEMA, ScreenReport, Source, Table, TableEntry, hex,
    write_manifest,
};
use std::path::Path;
use std::sync::Arc;

pub use aios_residency::plan::{POSITIONS_MOST, Quality};
pub(crate) use measure::ranked;
pub use render::{markdown, svg};

/// Prompts that calibrate a plan where the user gives none: prose, code, notes and talk.
const BUILT_IN: &str = include_str!("calibration.jsonl");

/// How much is looked at.
#[derive(Clone, Debug)]
pub struct ProfileOptions {
    /// Prompts, taken evenly from the calibration file; every other one fits, the rest measure.
    pub prompts: usize,
    /// The most tokens of a prompt.
    pub tokens: usize,
    /// Prompts that are continued, greedily, to measure.
    pub continued: usize,
    /// Tokens that each is continued by.
    pub generate: usize,
    /// What the plan may cost; what is exact costs nothing.
    pub quality: Quality,
    /// Last-level cache that the plan is made for.
    pub llc_bytes: Option<u64>,
    /// Memory that the plan is made for, if not all there is.
    pub ram_bytes: Option<u64>,
    /// The machine.
    pub hardware: Hardware,
}

impl ProfileOptions {
    /// The defaults: seconds for a model of a hundred million parameters.
    pub const fn new(hardware: Hardware) -> Self {
        Self {
            prompts: 48,
            tokens: 96,
            continued: 8,
            generate: 24,
            quality: Quality::Exact,
            llc_bytes: hardware.llc_bytes,
            ram_bytes: None,
            hardware,
        }
    }

    /// Positions that the context must hold.
    pub fn context(&self) -> usize {
        self.tokens.saturating_add(self.generate).max(POSITIONS_MOST + 1)
    }
}

/// Is told what is being done and how many of how many steps are; `false` ends the work.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) -> bool + 'a;

/// Why a model could not be profiled.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There is too little to fit with and to measure on.
    #[error(
        "{usable} of the prompts have 2 tokens or more; \
         give 2 such prompts at least, to fit with one and to measure on the other"
    )]
    TooFewPrompts {
        /// Prompts that can be used.
        usable: usize,
    },
    /// The output matrix is too small, or its rows too long, to be sketched.
    #[error("an output matrix of {rows} rows of {cols} elements is not screened")]
    Shape {
        /// Its rows.
        rows: usize,
        /// Elements of a row.
        cols: usize,
    },
    /// A soft cap may make logits equal that differ, so that their bounds do not rank them.
    #[error("the logits of this model pass through a soft cap, so that its head is not screened")]
    Softcap,
    /// The output matrix has numbers that no bound can be given for.
    #[error("row {row} of the output matrix has a number that is not finite or too large")]
    NotFinite {
        /// The row.
        row: usize,
    },
    /// A down projection has scales that nothing can be skipped of.
    #[error("the down projection of layer {layer}: {source}")]
    DownScale {
        /// The layer.
        layer: usize,
        /// What is wrong with it.
        source: NotFiniteScale,
    },
    /// Skipping zero neurons changed a result, which must never be.
    #[error(
        "skipping zero neurons gave other results than computing them, so that no plan is \
         written; please report this"
    )]
    NeuronsDiffer,
    /// Reading weights past the cache, or asking for them earlier, changed a result, which must
    /// never be.
    #[error(
        "reading weights another way gave other results, so that no plan is written; please \
         report this"
    )]
    CacheDiffers,
    /// What the screen found is not what the whole head says, which must never be.
    #[error(
        "the screened head gave other results than the whole one, so that no plan is written; \
         please report this"
    )]
    Differs,
    /// The model's files could not be looked at.
    #[error("the model's files: {0}")]
    Files(std::io::Error),
    /// The vocabulary is not sound.
    #[error(transparent)]
    Tokenizer(#[from] Arc<TokenizerError>),
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The plan could not be written.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What was written is not taken.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The tensors could not be looked at.
    #[error(transparent)]
    Tensors(Box<HeadroomError>),
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
) -> Result<(), ProfileError> {
    let go_on = progress(doing, done as u64, total as u64);
    if go_on { Ok(()) } else { Err(ProfileError::Interrupted) }
}

/// The prompts to calibrate with where the user gives none.
pub fn built_in_prompts() -> Vec<Prompt> {
    let texts = BUILT_IN.lines().filter_map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(value.get("text")?.as_str()?.to_owned())
    });
    (1..).zip(texts).map(|(line, text)| Prompt { line, text, category: None }).collect()
}

/// Profiles `model` and writes the plan into `folder`. `options` say how to compute; their context
/// is replaced.
///
/// # Errors
/// [`ProfileError`]. A plan that was in the folder before is then still there.
pub fn run(
    model: &Arc<Model>,
    options: &ExecutorOptions,
    prompts: Option<&Prompts>,
    plan: &ProfileOptions,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<Manifest, ProfileError> {
    let built_in = built_in_prompts();
    let chosen = match prompts {
        Some(prompts) => prompts.spread(plan.prompts),
        None => built_in.iter().collect(),
    };
    let texts = tokenise(model, &chosen, plan.tokens).map_err(|error| match error {
        HeadroomError::Tokenizer(error) => ProfileError::Tokenizer(error),
        // Nothing else goes wrong where texts are turned into tokens.
        _ => ProfileError::Interrupted,
    })?;
    let usable: Vec<&[u32]> =
        texts.iter().map(|(_, ids)| &**ids).filter(|ids| ids.len() >= 2).collect();
    if usable.len() < 2 {
        return Err(ProfileError::TooFewPrompts { usable: usable.len() });
    }
    let fitting: Vec<&[u32]> = usable.iter().copied().step_by(2).collect();
    let held: Vec<&[u32]> = usable.iter().copied().skip(1).step_by(2).collect();
    let options = ExecutorOptions { context: plan.context(), exact: false, ..options.clone() };
    let mut executor = Executor::new(Arc::clone(model), options)?;
    executor.screen(None);
    // A budget that is too small should not cost the rest of the work.
    let memory = memory::measure(&mut executor, held[0], plan, progress)?;
    let (table, screen, unscreened) =
        match head(&mut executor, (&fitting, &held), plan, folder, progress) {
            Ok((table, report)) => (Some(table), Some(report), None),
            // All else that a plan has is of use without it.
            Err(error) if error.is_of_head() => (None, None, Some(error.to_string())),
            Err(error) => return Err(error),
        };
    let texts = (&*fitting, &*held);
    let target = (plan.quality, folder);
    let made = thresholds::profile(model, executor.options(), texts, target, progress)?;
    let (entry, threshold) = match made {
        Some(thresholds::Made { entry, report, thresholds }) => {
            executor.cut_by(thresholds);
            (entry, Some(report))
        }
        None => (None, None),
    };
    let (neurons, ffn) = match neurons::profile(&mut executor, &held, plan, folder, progress)? {
        Some((table, report)) => (Some(table), Some(report)),
        None => (None, None),
    };
    let keep = cache::keep(&mut executor, &held, plan, progress)?;
    let prefetch = Some(cache::prefetch(&mut executor, &held, plan, progress)?);
    let tables = table.into_iter().chain(neurons).chain(entry).collect();
    let made = manifest(model, plan, tables)?;
    let manifest = Manifest { screen, unscreened, ffn, threshold, keep, prefetch, memory, ..made };
    write_manifest(folder, &manifest)?;
    Ok(manifest)
}

/// Sketches the head into a table, and measures what screening it comes to.
fn head(
    executor: &mut Executor,
    (fitting, held): (&[&[u32]], &[&[u32]]),
    plan: &ProfileOptions,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<(TableEntry, ScreenReport), ProfileError> {
    let model = Arc::clone(executor.model());
    let shape = model.head_shape();
    if shape.bytes().is_none() || shape.panels() < 2 || shape.cols < aios_kernels::DIRECTIONS {
        return Err(ProfileError::Shape { rows: shape.rows, cols: shape.cols });
    }
    if model.config().logit_softcap.is_some() {
        return Err(ProfileError::Softcap);
    }
    let fitted = hidden::capture(executor, fitting, "reading to fit", progress)?;
    let others = hidden::capture(executor, held, "reading to measure", progress)?;
    let directions = directions::fit(&fitted, progress)?;
    let table = build::write(&model, &directions, folder, progress)?;
    let mapped = Table::open(folder, &table)?;
    let screen = HeadScreen::new(model.head().0, shape, mapped, ScreenLimits::all(POSITIONS_MOST))?;
    let measured = measure::measure(executor, Arc::new(screen), held, plan, progress)?;
    let along = directions::along(&others, &directions);
    Ok((table, screened(&model, shape, measured, (fitted.rows(), along))))
}

/// What was measured of the screen, whose directions were fitted on so many positions and hold so
/// much of the states of others.
fn screened(
    model: &Model,
    shape: SketchShape,
    measured: measure::Measured,
    (fitted_positions, along): (usize, f64),
) -> ScreenReport {
    ScreenReport {
        pays: measured.positions_most > 0,
        positions_most: measured.positions_most.max(1),
        top_40_positions_most: measured.top_40_positions_most,
        head_bytes: model.head().1.len() as u64,
        base_bytes: (shape.front_bytes() + shape.panels_bytes()) as u64,
        refined_bytes: (shape.rows * shape.refined_bytes()) as u64,
        fitted_positions,
        along,
        greedy: measured.greedy,
        top_40: measured.top_40,
        times: measured.times,
    }
}

/// The manifest of a plan that holds `tables`.
fn manifest(
    model: &Model,
    plan: &ProfileOptions,
    tables: Vec<TableEntry>,
) -> Result<Manifest, ProfileError> {
    let named = |(group, bytes): (aios_contract::RoleGroup, u64)| (group.name().to_owned(), bytes);
    let (_, stamp) = model.identity().map_err(ProfileError::Files)?;
    let (sha256, bytes) = model.source();
    Ok(Manifest {
        schema: SCHEMA,
        source: Source { stamp: hex(&stamp), sha256: hex(&sha256), bytes },
        synthetic: is_synthetic(model.metadata()),
        head: model.head_matrix(),
        hardware: plan.hardware.clone(),
        quality: plan.quality,
        llc_bytes: plan.llc_bytes,
        tables,
        bytes_per_token: model.bytes_per_token().into_iter().map(named).collect(),
        screen: None,
        unscreened: None,
        ffn: None,
        threshold: None,
        keep: None,
        prefetch: None,
        memory: None,
    })
}

impl ProfileError {
    /// Whether it is the output matrix that cannot be screened, and nothing else is wrong.
    const fn is_of_head(&self) -> bool {
        matches!(self, Self::Shape { .. } | Self::Softcap | Self::NotFinite { .. })
    }

    fn not_finite(first: usize, error: NotFinite) -> Self {
        Self::NotFinite { row: first + error.row }
    }
}
