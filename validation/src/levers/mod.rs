//! What each lever of the residency controller is worth for a model: the same tokens decoded with
//! it and without, bytes counted and simulated, time, and what it does to results (SPEC H10).

mod measure;
mod render;
mod shared;
#[cfg(test)]
mod tests;

use crate::divergence::DivergenceSummary;
use crate::headroom::{self, HeadroomError};
use crate::perplexity::{PerplexityError, Windows};
use crate::report::{Environment, ModelInfo, WriteError, write};
use crate::simulate::{Design, HierarchyError};
use aios_engine::{EngineError, Executor, ExecutorOptions, KvTiering, Model, ZeroLimits};
use aios_kernels::CacheType;
use aios_residency::MapError;
use measure::{Pair, Passes};
use serde::Serialize;
use std::sync::Arc;

/// The version of the report's JSON. Counts of the first one left gains and biases out.
pub const SCHEMA: u32 = 2;
const TIERS: [KvTiering; 2] = [KvTiering::Warm, KvTiering::Cold];
/// The longest passes of the run that streams weights.
const BATCH_STREAMED: usize = 16;
/// Lengths of passes in which a prompt is read, where they are shorter than it.
const CHUNKS: [usize; 4] = [64, 128, 512, 2048];
/// The line of all that saves bytes and changes no result.
pub const TOGETHER: &str = "exact levers together";
/// How many of the best tokens a sampler asks for, unless told otherwise.
const TOP_K: usize = 40;
/// How zero neurons are skipped where time does not count.
const ALL: &str = "skipping whatever saves bytes";

/// How much is measured.
#[derive(Clone, Debug)]
pub struct LeverOptions {
    /// Positions before the tokens that are decoded.
    pub depth: usize,
    /// Tokens that are decoded.
    pub generate: usize,
    /// Rounds with and without, alternating.
    pub rounds: usize,
    /// Tokens of a prompt that is read in passes of several lengths; 0 leaves it out.
    pub prompt: usize,
    /// Tokens of a window that is scored, for levers that change results.
    pub window: usize,
    /// Windows; 0 leaves scoring out.
    pub windows: usize,
    /// Memory of the run that streams weights; without it three fifths of what all takes.
    pub ram: Option<u64>,
    /// The simulated caches.
    pub design: Design,
    /// How they are called.
    pub cache: String,
}

impl LeverOptions {
    /// Positions that a context must hold.
    fn context(&self) -> usize {
        let decoded = self.depth + self.generate.max(measure::SIMULATED_TOKENS);
        decoded.max(self.prompt).max(1) + 1
    }
}

/// Is told what is being done and how many of how many steps are; `false` ends the work.
pub type Progress<'a> = dyn FnMut(&'static str, u64, u64) -> bool + 'a;

/// Why levers could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum LeverError {
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A text could not be scored.
    #[error(transparent)]
    Perplexity(#[from] PerplexityError),
    /// The layers could not be compared.
    #[error(transparent)]
    Headroom(#[from] HeadroomError),
    /// The caches cannot be simulated.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// The model's files could not be digested.
    #[error(transparent)]
    Files(#[from] MapError),
    /// Logits of the run without a lever could not be kept for the comparison.
    #[error("cannot keep logits in a temporary file ({0}); set TMPDIR to a folder with room")]
    Temporary(std::io::Error),
    /// There is no text.
    #[error("a text of {tokens} tokens is too short; give one of 2 or more")]
    NoText {
        /// Its tokens.
        tokens: usize,
    },
    /// What must not change a result did.
    #[error("{lever}: it gave other results than decoding without it; please report this")]
    Differs {
        /// The lever.
        lever: &'static str,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What a run cost, per token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Weights and cache, counted by the ledger.
    pub counted_bytes_per_token: f64,
    /// DRAM reads, loads and stores, behind the simulated caches.
    pub simulated_bytes_per_token: f64,
    /// Of these, for activations.
    pub simulated_activation_bytes_per_token: f64,
    /// What was read of the disk.
    pub disk_bytes_per_token: f64,
    /// The median time.
    pub ms_per_token: f64,
    /// Samples of it: tokens, or prompts.
    pub samples: usize,
}

/// What a lever does to results.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "results", rename_all = "snake_case")]
pub enum Quality {
    /// Nothing: all that was computed is equal, bit for bit.
    Identical {
        /// Tokens that were compared.
        tokens: usize,
    },
    /// Something, measured in exact arithmetic, in which nothing else differs.
    Changed {
        /// Distances from the run without it.
        kl: DivergenceSummary,
        /// The perplexity with it.
        perplexity: f64,
        /// Positions that were scored.
        positions: usize,
    },
    /// Something that was not measured.
    NotMeasured,
}

/// What was found of a lever.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Finding {
    /// It was measured.
    Measured {
        /// Without it.
        off: Figures,
        /// With it.
        on: Figures,
        /// What it does to results.
        quality: Quality,
    },
    /// There was nothing to measure.
    Nothing {
        /// Why.
        reason: String,
    },
}

/// A lever in one setting.
#[derive(Clone, Debug, Serialize)]
pub struct Lever {
    /// Its name.
    pub name: &'static str,
    /// How it was set.
    pub setting: String,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// The levers of a model.
#[derive(Clone, Debug, Serialize)]
pub struct LeverReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The model.
    pub model: ModelInfo,
    /// With what it was measured.
    pub environment: Environment,
    /// The simulated caches.
    pub cache: String,
    /// Positions before the tokens that were decoded.
    pub depth: usize,
    /// Tokens that were decoded, in each round.
    pub generated: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// The levers.
    pub levers: Vec<Lever>,
}

impl LeverReport {
    /// The report as JSON.
    ///
    /// # Panics
    /// Never: all of it can be written as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts")
    }

    /// Writes `levers.json` and `levers.md` into `folder`, and returns their paths.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, folder: &std::path::Path) -> Result<Vec<std::path::PathBuf>, WriteError> {
        write(folder, [("levers.json", self.json() + "\n"), ("levers.md", self.markdown())])
    }
}

/// Measures the levers of `model` on `text`. What plans bring is measured if the model has adopted
/// one. `options` say how to compute; their context and cache tiers are replaced.
///
/// # Errors
/// [`LeverError`].
pub fn run(
    model: &Arc<Model>,
    options: &ExecutorOptions,
    text: &str,
    plan: &LeverOptions,
    progress: &mut Progress<'_>,
) -> Result<LeverReport, LeverError> {
    let tokenizer = model.tokenizer().map_err(EngineError::from)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut ids: Vec<u32> = bos.into_iter().collect();
    ids.extend(tokenizer.encode(text, aios_engine::tokenizer::ParseSpecial::No));
    if ids.len() < 2 {
        return Err(LeverError::NoText { tokens: ids.len() });
    }
    let windows = match plan.windows {
        0 => None,
        most => {
            let scored: Vec<u32> = ids.iter().copied().take(plan.window * most).collect();
            Some(Windows::of_tokens(scored, bos, plan.window)?)
        }
    };
    let (context, kv_tiers) = (plan.context(), KvTiering::Off);
    let options = ExecutorOptions { context, kv_tiers, exact: false, ram: None, ..options.clone() };
    let mut bench = Bench { model, options, ids: &ids, plan, progress };
    let mut levers = bench.head()?;
    levers.extend(bench.zeros()?);
    levers.push(bench.together()?);
    levers.push(bench.threshold(windows.as_ref())?);
    levers.extend([bench.cache()?, bench.prefetch()?, bench.aliasing()?]);
    levers.extend(bench.tiers(windows.as_ref())?);
    levers.push(bench.streaming()?);
    levers.push(bench.shared()?);
    levers.extend(bench.chunks()?);
    let environment = Environment::new(&bench.options, bench.options.threads);
    let (progress, paths) = (bench.progress, model.files());
    let info = ModelInfo::of_files(model, &paths, &mut || progress("digesting the file", 0, 1))?;
    Ok(LeverReport {
        schema: SCHEMA,
        model: info.ok_or(LeverError::Interrupted)?,
        environment,
        cache: plan.cache.clone(),
        depth: plan.depth,
        generated: plan.generate,
        prompt: plan.prompt,
        levers,
    })
}

/// What all measurements share.
struct Bench<'a, 'p> {
    model: &'a Arc<Model>,
    options: ExecutorOptions,
    ids: &'a [u32],
    plan: &'a LeverOptions,
    progress: &'a mut Progress<'p>,
}

fn nothing(name: &'static str, reason: impl Into<String>) -> Lever {
    Lever { name, setting: String::new(), finding: Finding::Nothing { reason: reason.into() } }
}

impl<'a> Bench<'a, '_> {
    /// An executor without any lever.
    fn plain(&self, options: ExecutorOptions) -> Result<Executor, EngineError> {
        let mut executor = Executor::new(Arc::clone(self.model), options)?;
        executor.screen(None);
        executor.skip_zeros_by(None);
        executor.cut_by(None);
        executor.keep_in_cache(None);
        Ok(executor)
    }

    fn off(&self) -> Result<Executor, EngineError> {
        self.plain(self.options.clone())
    }

    const fn passes(&self, best: usize) -> Passes<'a> {
        Passes { ids: self.ids, plan: self.plan, best }
    }

    /// Decodes with both and says what came of it; `exact` levers must have changed nothing.
    fn compare(
        &mut self,
        name: &'static str,
        on: Executor,
        exact: bool,
    ) -> Result<(Figures, Figures, Quality), LeverError> {
        self.compare_best(name, on, exact, 1)
    }

    /// As [`Self::compare`], by the `best` likeliest tokens of each step.
    fn compare_best(
        &mut self,
        name: &'static str,
        on: Executor,
        exact: bool,
        best: usize,
    ) -> Result<(Figures, Figures, Quality), LeverError> {
        let off = self.off()?;
        let passes = self.passes(best);
        let mut pair = Pair { off, on };
        let measured = pair.decode(&passes, name, self.progress)?;
        let [off, on] = measured.figures;
        let quality = match (exact, measured.same) {
            (true, false) => return Err(LeverError::Differs { lever: name }),
            (true, true) => Quality::Identical { tokens: measured.tokens },
            (false, _) => Quality::NotMeasured,
        };
        Ok((off, on, quality))
    }

    fn exact(
        &mut self,
        name: &'static str,
        setting: String,
        on: Executor,
    ) -> Result<Lever, LeverError> {
        let (off, on, quality) = self.compare(name, on, true)?;
        Ok(Lever { name, setting, finding: Finding::Measured { off, on, quality } })
    }

    /// Greedily, and as a sampler asks that chooses among the best of the usual number.
    fn head(&mut self) -> Result<Vec<Lever>, LeverError> {
        const NAME: &str = "screened head";
        let Some(screen) = self.model.head_screen().cloned() else {
            let reason = "no plan has sketches of the head: run `aios profile` first";
            return Ok(vec![nothing(NAME, reason)]);
        };
        let mut levers = Vec::new();
        for (setting, best) in [("greedy".to_owned(), 1), (format!("top-k {TOP_K}"), TOP_K)] {
            let mut on = self.off()?;
            on.screen(Some(Arc::clone(&screen)));
            if !on.screens_head() {
                let reason = "the logits pass through a soft cap, so all are computed";
                return Ok(vec![nothing(NAME, reason)]);
            }
            let (off, on, quality) = self.compare_best(NAME, on, true, best)?;
            let finding = Finding::Measured { off, on, quality };
            levers.push(Lever { name: NAME, setting, finding });
        }
        Ok(levers)
    }

    /// Within the plan's limits, and wherever that saves bytes.
    fn zeros(&mut self) -> Result<Vec<Lever>, LeverError> {
        const NAME: &str = "FFN zeros";
        let function = self.model.config().ffn.activation;
        let Some(neurons) = self.model.ffn_neurons().cloned() else {
            let reason = match function.has_true_zeros() {
                true => "no plan has the neurons: run `aios profile` first".to_owned(),
                false => {
                    format!("the activation is {}, which has no true zeros", function.name())
                }
            };
            return Ok(vec![nothing(NAME, reason)]);
        };
        let mut levers = Vec::new();
        let limits = neurons.limits();
        let of_ten = |tenths| 10 * tenths;
        let planned = format!(
            "down up to {} % of its bytes, up to {} % of the gates",
            of_ten(limits.down_of_ten),
            of_ten(limits.up_of_ten)
        );
        for (setting, limits) in [(planned, limits), (ALL.to_owned(), ZeroLimits::BYTES)] {
            let mut on = self.off()?;
            on.skip_zeros_by(Some(Arc::new(neurons.within(limits))));
            levers.push(self.exact(NAME, setting, on)?);
            if limits == ZeroLimits::BYTES {
                break;
            }
        }
        Ok(levers)
    }

    /// All of a plan that saves bytes and changes no result.
    fn together(&mut self) -> Result<Lever, LeverError> {
        let (screen, neurons) = (self.model.head_screen(), self.model.ffn_neurons());
        let Some(parts) = (match (screen.is_some(), neurons.is_some()) {
            (true, true) => Some("screened head, FFN zeros"),
            (true, false) => Some("screened head"),
            (false, true) => Some("FFN zeros"),
            (false, false) => None,
        }) else {
            return Ok(nothing(TOGETHER, "no plan has any: run `aios profile` first"));
        };
        let mut on = self.off()?;
        on.screen(screen.cloned());
        on.skip_zeros_by(neurons.map(|neurons| Arc::new(neurons.within(ZeroLimits::BYTES))));
        self.exact(TOGETHER, format!("{parts}, {ALL}"), on)
    }

    fn threshold(&mut self, windows: Option<&Windows>) -> Result<Lever, LeverError> {
        const NAME: &str = "FFN threshold";
        let Some(thresholds) = self.model.ffn_thresholds().cloned() else {
            let reason = "no plan has thresholds: `aios profile --quality balanced` looks for some";
            return Ok(nothing(NAME, reason));
        };
        let mut on = self.off()?;
        on.cut_by(Some(Arc::clone(&thresholds)));
        let neurons = self.model.ffn_neurons();
        on.skip_zeros_by(neurons.map(|neurons| Arc::new(neurons.within(ZeroLimits::BYTES))));
        let (off, on, unknown) = self.compare(NAME, on, false)?;
        let scored = match windows {
            Some(windows) => {
                let exact = self.scored_options(windows);
                let mut other = self.plain(exact.clone())?;
                other.cut_by(Some(thresholds));
                let base = self.plain(exact)?;
                measure::scores(base, vec![other], windows, self.progress)?.pop()
            }
            None => None,
        };
        let quality = scored.unwrap_or(unknown);
        let setting = format!("the plan's, {ALL}");
        Ok(Lever { name: NAME, setting, finding: Finding::Measured { off, on, quality } })
    }

    /// Some weights kept in the last-level cache: as the plan has it, or three quarters of the
    /// simulated one.
    fn cache(&mut self) -> Result<Lever, LeverError> {
        const NAME: &str = "weights kept in the cache";
        let room = self.model.keep_room().unwrap_or(self.plan.design.shared.bytes() / 4 * 3);
        let mut on = self.off()?;
        on.keep_in_cache(Some(room));
        let Some(kept) = on.kept().filter(|kept| kept.past_bytes > 0) else {
            let reason = format!("{:.0} MB hold all panels of the weights", room as f64 / 1e6);
            return Ok(nothing(NAME, reason));
        };
        let of = |bytes: u64| bytes as f64 / 1e6;
        let setting =
            format!("{:.1} MB kept, {:.1} MB past it", of(kept.kept_bytes), of(kept.past_bytes));
        self.exact(NAME, setting, on)
    }

    /// Weights asked for as early as the plan found to be fastest.
    fn prefetch(&mut self) -> Result<Lever, LeverError> {
        const NAME: &str = "prefetch distance";
        let on = self.off()?;
        let (usual, ahead) = (self.options.isa.ahead(), on.asks_ahead());
        if ahead == usual {
            let reason = format!("no plan has found one that is faster than {usual} bytes");
            return Ok(nothing(NAME, reason));
        }
        let mut off = self.off()?;
        off.ask_ahead(usual);
        let passes = self.passes(1);
        let measured = Pair { off, on }.decode(&passes, NAME, self.progress)?;
        if !measured.same {
            return Err(LeverError::Differs { lever: NAME });
        }
        let ([off, on], tokens) = (measured.figures, measured.tokens);
        let finding = Finding::Measured { off, on, quality: Quality::Identical { tokens } };
        let setting = format!("{usual} → {ahead} bytes");
        Ok(Lever { name: NAME, setting, finding })
    }

    fn aliasing(&mut self) -> Result<Lever, LeverError> {
        const NAME: &str = "aliasing";
        let layers = self.model.config().layers;
        let alike = headroom::alike(self.model.path(), layers, self.progress);
        match alike {
            Ok(alike) => Ok(nothing(NAME, alike.verdict())),
            Err(HeadroomError::Interrupted) => Err(LeverError::Interrupted),
            Err(error) => Err(error.into()),
        }
    }

    fn tiers(&mut self, windows: Option<&Windows>) -> Result<Vec<Lever>, LeverError> {
        const NAME: &str = "KV tiers";
        let start = |bench: &Self, kv_tiers| {
            bench.plain(ExecutorOptions { kv_tiers, ..bench.options.clone() })
        };
        if let Err(error @ EngineError::KvTiers { .. }) = start(self, KvTiering::Warm) {
            return Ok(vec![nothing(NAME, error.to_string())]);
        }
        let mut scores = match windows {
            Some(windows) => self.tier_scores(windows)?,
            None => Vec::new(),
        }
        .into_iter();
        let mut levers = Vec::new();
        for kv_tiers in TIERS {
            let (first, depth) = (kv_tiers.first_position(), self.plan.depth);
            if depth < first {
                let reason = format!("{kv_tiers} begins behind {first} positions, not at {depth}");
                levers.push(nothing(NAME, reason));
                continue;
            }
            let on = start(self, kv_tiers)?;
            let (off, on, unknown) = self.compare(NAME, on, false)?;
            let quality = scores.next().unwrap_or(unknown);
            let finding = Finding::Measured { off, on, quality };
            levers.push(Lever { name: NAME, setting: kv_tiers.to_string(), finding });
        }
        Ok(levers)
    }

    /// How results are compared with those without a lever: in exact arithmetic, since in int8 a
    /// change of any size rounds differently from there on.
    fn scored_options(&self, windows: &Windows) -> ExecutorOptions {
        ExecutorOptions {
            context: windows.window(),
            cache_k: CacheType::F16,
            cache_v: CacheType::F16,
            exact: true,
            ..self.options.clone()
        }
    }

    /// How far results are from those without tiers.
    fn tier_scores(&mut self, windows: &Windows) -> Result<Vec<Quality>, LeverError> {
        let exact = self.scored_options(windows);
        let start = |kv_tiers| self.plain(ExecutorOptions { kv_tiers, ..exact.clone() });
        let reached = |tier: &KvTiering| tier.first_position() < windows.window();
        let others: Vec<_> =
            TIERS.into_iter().filter(reached).map(start).collect::<Result<_, _>>()?;
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let base = start(KvTiering::Off)?;
        measure::scores(base, others, windows, self.progress)
    }

    fn streaming(&mut self) -> Result<Lever, LeverError> {
        const NAME: &str = "weights streamed";
        // Activations of long passes would take what weights are to do without.
        let short = ExecutorOptions { batch: BATCH_STREAMED, ..self.options.clone() };
        let all = self.model.footprint(&short)?;
        let start = |ram| self.plain(ExecutorOptions { ram: Some(ram), ..short.clone() });
        let asked = self.plan.ram.unwrap_or(all / 5 * 3);
        let (ram, on) = match start(asked) {
            Err(EngineError::Ram { least, .. }) if self.plan.ram.is_none() => (least, start(least)),
            other => (asked, other),
        };
        let setting = format!("{:.1} of {:.1} MB", ram as f64 / 1e6, all as f64 / 1e6);
        match on {
            Ok(on) => self.exact(NAME, setting, on),
            Err(error) => Ok(nothing(NAME, format!("{setting}: {error}"))),
        }
    }

    /// The prompt in one pass, and in passes of fewer tokens.
    fn chunks(&mut self) -> Result<Vec<Lever>, LeverError> {
        const NAME: &str = "prompt in chunks";
        let prompt = self.plan.prompt;
        let mut levers = Vec::new();
        for chunk in CHUNKS.into_iter().filter(|chunk| *chunk < prompt) {
            let whole = ExecutorOptions { batch: prompt, ..self.options.clone() };
            let short = ExecutorOptions { batch: chunk, ..self.options.clone() };
            let mut pair = Pair { off: self.plain(whole)?, on: self.plain(short)? };
            let passes = self.passes(1);
            let measured = pair.prefill(&passes, NAME, self.progress)?;
            if !measured.same {
                return Err(LeverError::Differs { lever: NAME });
            }
            let ([off, on], tokens) = (measured.figures, measured.tokens);
            let quality = Quality::Identical { tokens };
            let finding = Finding::Measured { off, on, quality };
            let setting = format!("{chunk} of {prompt} tokens a pass");
            levers.push(Lever { name: NAME, setting, finding });
        }
        Ok(levers)
    }
}
