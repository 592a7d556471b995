//! Which parts of a plan a model follows.

use super::{AdoptError, Model, ZeroLimits};
use aios_residency::plan::{FfnReport, Plan};

/// When a part of a plan is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartMode {
    /// Whenever the plan has it, for zero neurons wherever that saves bytes.
    On,
    /// Never.
    Off,
    /// Where the plan found that it saves time.
    #[default]
    Auto,
    /// As the plan has it, also where that saves no time.
    Always,
}

impl PartMode {
    /// Whether what pays or does not is followed.
    const fn follows(self, pays: bool) -> bool {
        match self {
            Self::On | Self::Always => true,
            Self::Off => false,
            Self::Auto => pays,
        }
    }
}

/// Which parts of a plan are to be followed.
#[derive(Clone, Copy, Debug)]
pub struct PlanModes {
    /// The screened head.
    pub screen: PartMode,
    /// Zero neurons that are skipped.
    pub zeros: PartMode,
    /// Neurons left out below thresholds, which changes results.
    pub threshold: PartMode,
    /// Weights kept in the last-level cache.
    pub keep: PartMode,
    /// Whether executors for which no budget of memory is asked for keep to the plan's.
    pub budget: bool,
}

/// Which parts of a plan are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each part is followed or not")]
pub struct Followed {
    /// The screened head.
    pub screen: bool,
    /// Zero neurons.
    pub zeros: bool,
    /// Thresholds.
    pub thresholds: bool,
    /// Weights kept in the last-level cache.
    pub keep: bool,
    /// The budget of memory.
    pub budget: bool,
    /// Another prefetch distance than the usual one.
    pub ahead: bool,
}

impl Followed {
    /// Whether any part is followed.
    pub const fn any(self) -> bool {
        self.screen || self.zeros || self.thresholds || self.keep || self.budget || self.ahead
    }
}

impl Model {
    /// Has the executors that are made from now on follow `plan`, which was opened for this model,
    /// as far as `modes` say.
    ///
    /// # Errors
    /// [`AdoptError`], where a part does not fit the model; some of the others may be followed then.
    pub fn follow(&self, mut plan: Plan, modes: &PlanModes) -> Result<Followed, AdoptError> {
        let mut followed = Followed::default();
        let ffn: Option<FfnReport> = plan.manifest.ffn.clone();
        let lossy = plan.manifest.threshold_in_force().is_some();
        if lossy && modes.threshold.follows(ffn.as_ref().is_some_and(|ffn| ffn.pays)) {
            self.adopt_thresholds(&plan)?;
            followed.thresholds = true;
        }
        // What pays with thresholds was not measured without.
        let pays = |ffn: &FfnReport| followed.thresholds || (ffn.pays && !lossy);
        if let Some(ffn) = ffn.filter(|ffn| modes.zeros.follows(pays(ffn))) {
            let everywhere = modes.zeros == PartMode::On;
            let limits = if everywhere { ZeroLimits::BYTES } else { ZeroLimits::of(&ffn) };
            self.adopt_neurons(&mut plan, limits)?;
            followed.zeros = true;
        }
        if let Some(keep) = plan.manifest.keep.filter(|keep| modes.keep.follows(keep.pays)) {
            self.adopt_keep(keep.room);
            followed.keep = true;
        }
        if let Some(memory) = plan.manifest.memory.filter(|_| modes.budget) {
            self.adopt_budget(memory.ram_bytes);
            followed.budget = true;
        }
        if let Some(found) = plan.manifest.prefetch.filter(|found| found.ahead != found.usual) {
            self.adopt_ahead(found.ahead);
            followed.ahead = true;
        }
        let screen = plan.manifest.screen.as_ref();
        if let Some(screen) = screen.filter(|screen| modes.screen.follows(screen.pays)) {
            let most = screen.positions_most;
            self.adopt(plan, most)?;
            followed.screen = true;
        }
        Ok(followed)
    }
}
