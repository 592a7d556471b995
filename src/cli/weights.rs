//! Loading a model's weights: repacked for speed where that pays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aios_engine::{Followed, Model, PartMode, PlanModes, RepackError};
use aios_residency::plan::{Manifest, Plan, PlanError};
use clap::{Args, ValueEnum};

use super::plan::{hardware, plan_folder};
use super::{Terminal, Usage};
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::{Observer, cache_folder};

/// Models of fewer bytes are not repacked: they run from the caches of the processor anyway.
const WORTH_BYTES: u64 = 16_000_000;

/// How weights are read.
#[derive(Args, Clone, Debug)]
pub struct WeightArgs {
    /// Read weights as they stand in the model file. Without this they are repacked once, which
    /// takes about as much disk as the model; results are the same.
    #[arg(long)]
    pub no_repack: bool,
    /// Do not look for a plan that `aios profile` has made.
    #[arg(long)]
    pub no_plan: bool,
    /// Follow the plan in this folder instead of the model's own.
    #[arg(long, value_name = "FOLDER", conflicts_with = "no_plan")]
    pub plan: Option<PathBuf>,
    /// Whether a plan's sketches screen the output matrix: auto where the profiler found that it
    /// saves time. Results are the same.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ScreenMode::Auto)]
    pub screen: ScreenMode,
    /// Whether passes of one token skip neurons whose output is zero, by a plan of a model with
    /// ReLU: auto where the profiler found that it saves time. Results are the same.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ScreenMode::Auto)]
    pub zeros: ScreenMode,
    /// Whether neurons below the thresholds of a plan are left out, where one was made with
    /// `aios profile --quality`: auto where the profiler found that it saves time. This changes
    /// results, by what the plan says.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ScreenMode::Auto)]
    pub threshold: ScreenMode,
    /// Whether some weights are kept in the processor's last-level cache and the others read past
    /// it, by a plan for a cache that is smaller than the model: auto where the profiler found that
    /// it saves time. Results are the same.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ScreenMode::Auto)]
    pub keep: ScreenMode,
}

/// When a part of a plan is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScreenMode {
    /// Whenever there is a plan.
    On,
    /// Never.
    Off,
    /// Where there is a plan that found it to save time.
    Auto,
    /// As the plan has it, also where that saves no time: for measurements.
    #[value(skip)]
    Always,
}

impl From<ScreenMode> for PartMode {
    fn from(mode: ScreenMode) -> Self {
        match mode {
            ScreenMode::On => Self::On,
            ScreenMode::Off => Self::Off,
            ScreenMode::Auto => Self::Auto,
            ScreenMode::Always => Self::Always,
        }
    }
}

impl WeightArgs {
    /// Loads the model in the file at `path` as [`Self::load_unplanned`] does, with its plan, if it
    /// has one: that is said on stderr, and so is why a plan is not followed. An `exact` run has no
    /// use for either.
    ///
    /// # Errors
    /// Those of loading, and [`Interrupted`].
    pub fn load(
        &self,
        path: &Path,
        exact: bool,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Arc<Model>> {
        let modes = self.modes();
        let options = ["--screen", "--zeros", "--threshold", "--keep"];
        for (option, mode) in options.into_iter().zip(modes) {
            if self.no_plan && mode == ScreenMode::On {
                let what = format!("{option} on follows a plan, which --no-plan does not look for");
                return Err(Usage(what).into());
            }
        }
        if exact {
            return Ok(Model::load(path)?);
        }
        let model = self.load_unplanned(path, interrupt)?;
        let unwanted = modes.iter().all(|mode| *mode == ScreenMode::Off);
        if !self.no_plan && !unwanted {
            self.follow(&model);
        }
        Ok(model)
    }

    /// As [`Self::load`], with all that a plan has, also where it saves no time: what is to be
    /// measured must be there.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_to_measure(
        &self,
        path: &Path,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Arc<Model>> {
        let always = |mode| if mode == ScreenMode::Auto { ScreenMode::Always } else { mode };
        let [screen, zeros, threshold, keep] = self.modes().map(always);
        Self { screen, zeros, threshold, keep, ..self.clone() }.load(path, false, interrupt)
    }

    /// As [`Self::load`], without thresholds: what judges a model must see the model.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_unchanged(
        &self,
        path: &Path,
        exact: bool,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Arc<Model>> {
        Self { threshold: ScreenMode::Off, ..self.clone() }.load(path, exact, interrupt)
    }

    /// As [`Self::load_unchanged`], with the sketches of a plan also where they save no time: what
    /// they save of bytes is to be measured.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_to_judge(
        &self,
        path: &Path,
        exact: bool,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Arc<Model>> {
        let screen = if self.screen == ScreenMode::Auto { ScreenMode::Always } else { self.screen };
        Self { screen, ..self.clone() }.load_unchanged(path, exact, interrupt)
    }

    const fn modes(&self) -> [ScreenMode; 4] {
        [self.screen, self.zeros, self.threshold, self.keep]
    }

    /// Follows the model's plan, if there is one.
    fn follow(&self, model: &Model) {
        let terminal = Terminal::new();
        let refused = |reason: &dyn std::fmt::Display| {
            terminal.notice(&format!(
                "the plan is not followed: {reason}; `aios profile` makes a new one \
                 (--no-plan does without)"
            ));
        };
        let asked = self.plan.is_some() || self.modes().contains(&ScreenMode::On);
        let Some(folder) = self.plan.clone().or_else(|| plan_folder(model).ok()) else { return };
        let plan = match model.identity() {
            Ok((_, stamp)) => Plan::open(&folder, &stamp, &hardware()),
            Err(error) => return refused(&error),
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(PlanError::Missing { .. }) if !asked => return,
            Err(error) => return refused(&error),
        };
        let manifest = plan.manifest.clone();
        let modes = PlanModes {
            screen: self.screen.into(),
            zeros: self.zeros.into(),
            threshold: self.threshold.into(),
            keep: self.keep.into(),
            // What is measured must have its own budget.
            budget: !self.modes().contains(&ScreenMode::Always),
        };
        match model.follow(plan, &modes) {
            Ok(followed) => self.tell(model, &manifest, followed),
            Err(error) => refused(&error),
        }
    }

    /// Says what of a plan is followed, and what was asked for and is not.
    fn tell(&self, model: &Model, manifest: &Manifest, followed: Followed) {
        let terminal = Terminal::new();
        self.tell_neurons(model, manifest, followed);
        self.tell_caches(manifest, followed);
        match &manifest.screen {
            Some(screen) if followed.screen => {
                let group = model.bytes_per_token();
                let head: u64 =
                    group.iter().filter(|(g, _)| g.name() == "head").map(|(_, bytes)| bytes).sum();
                terminal.notice(&format!(
                    "following the plan: the head is screened, {:.1} of {:.1} MB for a token, same \
                     results (--no-plan does without)",
                    megabytes(head) * screen.greedy.fraction,
                    megabytes(head),
                ));
            }
            Some(_) => tracing::info!("the head is not screened: it saves no time here, or is off"),
            None => {
                if let (ScreenMode::On, Some(why)) = (self.screen, &manifest.unscreened) {
                    terminal.notice(&format!("the head is not screened: {why}"));
                }
            }
        }
    }

    /// What is followed of the last-level cache, of memory, and of how early weights are asked for.
    fn tell_caches(&self, manifest: &Manifest, followed: Followed) {
        let terminal = Terminal::new();
        match &manifest.keep {
            Some(keep) if followed.keep => terminal.notice(&format!(
                "following the plan: {:.1} MB of weights stay in the last-level cache, {:.1} MB \
                 are read past it, same results (--keep off does without)",
                megabytes(keep.kept_bytes),
                megabytes(keep.past_bytes),
            )),
            Some(_) => tracing::info!("no weights are kept in the cache: no time saved, or off"),
            None if self.keep == ScreenMode::On => terminal.notice(
                "no weights are kept in the cache: the plan is for one that holds them all; \
                 `aios profile --llc BYTES` makes one for a smaller cache",
            ),
            None => {}
        }
        if let Some(memory) = manifest.memory.filter(|_| followed.budget) {
            terminal.notice(&format!(
                "following the plan: within {:.1} MB of memory, {:.1} MB of weights are read from \
                 disk for each pass, same results (--ram decides otherwise)",
                megabytes(memory.ram_bytes),
                megabytes(memory.stream_bytes),
            ));
        }
        if let Some(prefetch) = manifest.prefetch.filter(|_| followed.ahead) {
            tracing::info!("weights are asked for {} bytes ahead of use", prefetch.ahead);
        }
    }

    /// What is followed of thresholds and of zero neurons.
    fn tell_neurons(&self, model: &Model, manifest: &Manifest, followed: Followed) {
        let terminal = Terminal::new();
        match manifest.threshold_in_force() {
            Some(point) if followed.thresholds => terminal.notice(&format!(
                "following the plan: {:.0} % of the neurons are left out, which changes results: \
                 perplexity {:+.2} %, KL {:.4} as measured (--threshold off does without)",
                100.0 * point.target,
                100.0 * (point.perplexity_ratio - 1.0),
                point.kl,
            )),
            Some(_) => tracing::info!("no neurons are left out: no time saved here, or off"),
            None if self.threshold == ScreenMode::On => terminal.notice(
                "no neurons are left out: the plan has no thresholds; `aios profile --quality \
                 balanced` looks for some",
            ),
            None => {}
        }
        match &manifest.ffn {
            // What was measured with thresholds does not hold without.
            Some(_)
                if followed.zeros
                    && manifest.threshold_in_force().is_some()
                    && !followed.thresholds =>
            {
                terminal.notice("following the plan: zero neurons are skipped, same results");
            }
            Some(ffn) if followed.zeros => terminal.notice(&format!(
                "following the plan: zero neurons are skipped, {:.1} of {:.1} MB of feed-forward \
                 weights for a token, same results (--zeros off does without)",
                megabytes(ffn.read_bytes),
                megabytes(ffn.whole_bytes),
            )),
            Some(_) => tracing::info!("zero neurons are computed: no time saved here, or off"),
            None if self.zeros == ScreenMode::On => {
                let name = model.config().ffn.activation.name();
                terminal.notice(&format!(
                    "no neurons are skipped: the plan has none, as the model's activation is \
                     {name}, or its down projections are in a format for which there are none"
                ));
            }
            None => {}
        }
    }

    /// Loads the model in the file at `path`. Repacked weights are made on the first use of a
    /// model, which is said on stderr; where they cannot be made, the model runs without them.
    ///
    /// # Errors
    /// Those of loading, and [`Interrupted`].
    pub fn load_unplanned(&self, path: &Path, interrupt: &Interrupt) -> anyhow::Result<Arc<Model>> {
        // What cannot be looked at is for loading to complain about.
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        let folder = panel_folder().filter(|_| !self.no_repack && bytes >= WORTH_BYTES);
        let Some(folder) = folder else {
            return Ok(Model::load(path)?);
        };
        let terminal = Terminal::new();
        let started = Instant::now();
        let (model, repacked) = Model::load_repacked(path, &folder, &mut |done, total| {
            terminal.progress("repacking weights", done, total);
            !interrupt.is_set()
        })?;
        match repacked {
            Ok(repacked) if repacked.made => terminal.notice(&format!(
                "repacked the weights for speed: {:.0} MB more on the disk, {:.1} s, once; in {} \
                 (--no-repack does without)",
                megabytes(repacked.bytes),
                started.elapsed().as_secs_f64(),
                shown(&repacked.path).display(),
            )),
            Ok(_) | Err(RepackError::Nothing) => {}
            Err(RepackError::Stopped) => return Err(Interrupted.into()),
            Err(reason) => terminal.notice(&format!(
                "the weights are not repacked, which costs speed: {reason}; \
                 make room, set AIOS_CACHE_DIR, or pass --no-repack"
            )),
        }
        Ok(model)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The folder of repacked weights, if the environment names one.
pub fn panel_folder() -> Option<PathBuf> {
    cache_folder().map(|folder| folder.join("panels"))
}

/// The path with the home folder as `~`.
pub(super) fn shown(path: &Path) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home.and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => Path::new("~").join(rest),
        None => path.to_owned(),
    }
}
