//! Which parts of a plan a model follows.

use super::{AdoptError, Model, ScreenLimits, ZeroLimits};
use aios_residency::plan::{FfnReport, Plan, ScreenReport};
use std::sync::Arc;

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
    /// Positions of a pass up to which a head is screened.
    fn limits(self, screen: &ScreenReport) -> ScreenLimits {
        let ScreenReport { positions_most: greedy, top_40_positions_most: many, .. } = *screen;
        match self {
            Self::Auto => ScreenLimits { greedy, many },
            _ => ScreenLimits { greedy, many: many.max(1) },
        }
    }

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
    /// as far as `modes` say. A second plan changes nothing: what runs already stays as it is.
    ///
    /// # Errors
    /// [`AdoptError`], where a part does not fit the model; no part is followed then.
    pub fn follow(&self, mut plan: Plan, modes: &PlanModes) -> Result<Followed, AdoptError> {
        let ffn: Option<FfnReport> = plan.manifest.ffn.clone();
        let lossy = plan.manifest.threshold_in_force().is_some();
        let cut = lossy && modes.threshold.follows(ffn.as_ref().is_some_and(|ffn| ffn.pays));
        let thresholds = cut.then(|| self.thresholds_of(&plan)).transpose()?;
        // What pays with thresholds was not measured without.
        let pays = |ffn: &FfnReport| cut || (ffn.pays && !lossy);
        let everywhere = modes.zeros == PartMode::On;
        let limits = |ffn| if everywhere { ZeroLimits::BYTES } else { ZeroLimits::of(&ffn) };
        let ffn = ffn.filter(|ffn| modes.zeros.follows(pays(ffn)));
        let neurons = ffn.map(|ffn| self.neurons_of(&mut plan, limits(ffn))).transpose()?;
        let screen = plan.manifest.screen.as_ref();
        let screen = screen.filter(|screen| modes.screen.follows(screen.pays));
        let most = screen.map(|screen| modes.screen.limits(screen));
        let screen = most.map(|most| self.screen_of(&mut plan, most)).transpose()?;
        // All that could fail is behind us.
        let manifest = plan.manifest;
        let keep = manifest.keep.filter(|keep| modes.keep.follows(keep.pays));
        let memory = manifest.memory.filter(|_| modes.budget);
        let early = manifest.prefetch.filter(|found| found.ahead != found.usual);
        let followed = Followed {
            screen: screen.is_some(),
            zeros: neurons.is_some(),
            thresholds: cut,
            keep: keep.is_some(),
            budget: memory.is_some(),
            ahead: early.is_some(),
        };
        thresholds.into_iter().for_each(|part| drop(self.thresholds.set(Arc::new(part))));
        neurons.into_iter().for_each(|part| drop(self.neurons.set(Arc::new(part))));
        screen.into_iter().for_each(|part| drop(self.screen.set(Arc::new(part))));
        keep.iter().for_each(|keep| self.adopt_keep(keep.room));
        memory.iter().for_each(|memory| self.adopt_budget(memory.ram_bytes));
        early.iter().for_each(|found| self.adopt_ahead(found.ahead));
        Ok(followed)
    }
}
