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
    /// The budget of memory that was asked for.
    #[arg(skip)]
    pub ram: Option<u64>,
    /// Whether what a plan has is to be measured.
    #[arg(skip)]
    pub(super) measuring: bool,
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
    /// The same for a run that is to keep to so many bytes of memory.
    #[must_use]
    pub fn within(&self, ram: Option<u64>) -> Self {
        Self { ram, ..self.clone() }
    }

    /// The same for a command that computes the scores of all tokens.
    ///
    /// # Errors
    /// [`Usage`], if a screened head is asked for.
    pub(super) fn unscreened(&self) -> Result<Self, Usage> {
        if self.screen == ScreenMode::On {
            let what = "--screen on: nothing is chosen here, so that the head is read whole; \
                        `aios levers` measures what its screening saves";
            return Err(Usage(what.to_owned()));
        }
        Ok(Self { screen: ScreenMode::Off, ..self.clone() })
    }

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
        let measuring = Self { screen, zeros, threshold, keep, measuring: true, ..self.clone() };
        measuring.load(path, false, interrupt)
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
        Self { screen, measuring: true, ..self.clone() }.load_unchanged(path, exact, interrupt)
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
            budget: !self.measuring,
        };
        match model.follow(plan, &modes) {
            Ok(followed) => {
                let parts = self.parts(model, &manifest, followed);
                if !parts.is_empty() {
                    let same = if followed.thresholds { "" } else { "; same results" };
                    let parts = parts.join("; ");
                    let line =
                        format!("following the plan: {parts}{same} (--no-plan does without)");
                    terminal.notice(&line);
                }
                self.tell_missing(model, &manifest);
            }
            Err(error) => refused(&error),
        }
    }

    /// What a run does that follows these parts of a plan. Under a budget of memory matrices are
    /// read as they come from the disk, so that nothing of them is left out or kept.
    fn parts(&self, model: &Model, manifest: &Manifest, followed: Followed) -> Vec<String> {
        let mut parts = Vec::new();
        if let Some(memory) = manifest.memory.filter(|_| followed.budget && self.ram.is_none()) {
            parts.push(format!(
                "within {:.1} MB of memory (--ram decides otherwise)",
                megabytes(memory.ram_bytes)
            ));
        }
        let mapped = !followed.budget && self.ram.is_none();
        if let Some(screen) = manifest.screen.as_ref().filter(|_| followed.screen && mapped) {
            let groups = model.bytes_per_token();
            let of_head = groups.iter().filter(|(group, _)| group.name() == "head");
            let head = megabytes(of_head.map(|(_, bytes)| bytes).sum());
            let read = head * screen.greedy.fraction;
            // Whoever asks for the screen has it for any number of best rows.
            let many = screen.top_40_positions_most > 0 || self.screen != ScreenMode::Auto;
            let of_40 = head * screen.top_40.fraction;
            let others = format!(", {of_40:.1} MB for one of the 40 best");
            parts.push(format!(
                "the head is screened, {read:.1} of {head:.1} MB for a greedy token{}",
                if many { &others } else { "" }
            ));
        }
        let point = manifest.threshold_in_force();
        if let Some(point) = point.filter(|_| followed.thresholds) {
            parts.push(format!(
                "{:.0} % of the neurons are left out, which changes results: perplexity {:+.2} %, \
                 KL {:.4} as measured (--threshold off does without)",
                100.0 * point.target,
                100.0 * (point.perplexity_ratio - 1.0),
                point.kl,
            ));
        }
        if let Some(ffn) = manifest.ffn.as_ref().filter(|_| followed.zeros && mapped) {
            // What was measured with thresholds does not hold without.
            let known = followed.thresholds || point.is_none();
            let (read, whole) = (megabytes(ffn.read_bytes), megabytes(ffn.whole_bytes));
            let bytes = format!(", {read:.1} of {whole:.1} MB of feed-forward weights for a token");
            parts.push(format!(
                "zero neurons are skipped{}",
                if known { bytes.as_str() } else { "" }
            ));
        }
        if let Some(keep) = manifest.keep.filter(|_| followed.keep && mapped) {
            parts.push(format!(
                "{:.1} MB of weights stay in the last-level cache, {:.1} MB are read past it",
                megabytes(keep.kept_bytes),
                megabytes(keep.past_bytes),
            ));
        }
        if let Some(found) = manifest.prefetch.filter(|_| followed.ahead) {
            parts.push(format!("weights are asked for {} bytes ahead of use", found.ahead));
        }
        parts
    }

    /// Says what was asked for and is not in the plan.
    fn tell_missing(&self, model: &Model, manifest: &Manifest) {
        let terminal = Terminal::new();
        if let (ScreenMode::On, Some(why)) = (self.screen, &manifest.unscreened) {
            terminal.notice(&format!("the head is not screened: {why}"));
        }
        if self.threshold == ScreenMode::On && manifest.threshold_in_force().is_none() {
            terminal.notice(
                "no neurons are left out: the plan has no thresholds; `aios profile --quality \
                 balanced` looks for some",
            );
        }
        if self.zeros == ScreenMode::On && manifest.ffn.is_none() {
            let name = model.config().ffn.activation.name();
            terminal.notice(&format!(
                "no neurons are skipped: the plan has none, as the model's activation is {name}, \
                 or its down projections are in a format for which there are none"
            ));
        }
        if self.keep == ScreenMode::On && manifest.keep.is_none() {
            terminal.notice(
                "no weights are kept in the cache: the plan is for one that holds them all; \
                 `aios profile --llc BYTES` makes one for a smaller cache",
            );
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
