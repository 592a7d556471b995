//! The degradation ladder (SPEC W7): what a session does without, in fixed steps with names.

use serde::Serialize;

/// A step down. It is taken when a session starts, and no result changes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// No budget was given and the model exceeds the memory that is available: one is set.
    LargerThanMemory,
    /// More memory was asked for than is available: the budget is lowered to it.
    LessRam,
    /// Prompts are read in passes of fewer tokens, so that activations leave room for weights.
    SmallerBatch,
    /// The system does not give the memory for hot blocks: half as much is asked for.
    AllocationRefused,
    /// No transparent huge pages: hot blocks lie on ordinary ones.
    SmallPages,
    /// Memory may not be locked: hot blocks may be swapped out.
    Unlocked,
    /// The file system cannot bypass the page cache: what was read is dropped from it.
    BufferedReads,
    /// The disk is slow: more threads read ahead, which networked disks profit from.
    SlowDisk,
    /// No plan has measured the budget: a rule assigns the tiers.
    NoPlan,
    /// A budget that nobody asked for, or that a plan names, cannot be kept to: weights are mapped.
    Mapped,
}

impl Step {
    /// The name in telemetry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LargerThanMemory => "larger_than_memory",
            Self::LessRam => "less_ram",
            Self::SmallerBatch => "smaller_batch",
            Self::AllocationRefused => "allocation_refused",
            Self::SmallPages => "small_pages",
            Self::Unlocked => "unlocked",
            Self::BufferedReads => "buffered_reads",
            Self::SlowDisk => "slow_disk",
            Self::NoPlan => "no_plan",
            Self::Mapped => "mapped",
        }
    }
}

/// The steps that a session has taken, in the order of the ladder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ladder(Vec<Step>);

impl Ladder {
    /// Takes a step and logs it with what led to it; a step that was taken already stays as it is.
    pub fn take(&mut self, step: Step, why: &str) {
        let Err(place) = self.0.binary_search(&step) else { return };
        self.0.insert(place, step);
        let name = step.name();
        match step {
            // What a person should know of; the rest is for those who ask for logs.
            Step::LargerThanMemory
            | Step::LessRam
            | Step::AllocationRefused
            | Step::SlowDisk
            | Step::Mapped => {
                tracing::warn!("{name}: {why}");
            }
            _ => tracing::info!("{name}: {why}"),
        }
    }

    /// The steps taken.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_kept_once_in_order_and_their_names_are_those_of_telemetry() {
        let mut ladder = Ladder::default();
        for step in [Step::NoPlan, Step::Unlocked, Step::LessRam, Step::Unlocked] {
            ladder.take(step, "a test");
        }
        assert_eq!(ladder.steps(), [Step::LessRam, Step::Unlocked, Step::NoPlan]);
        for step in [
            Step::LargerThanMemory,
            Step::LessRam,
            Step::SmallerBatch,
            Step::AllocationRefused,
            Step::SmallPages,
            Step::Unlocked,
            Step::BufferedReads,
            Step::SlowDisk,
            Step::NoPlan,
            Step::Mapped,
        ] {
            // What serde makes of the variant is what `name` says.
            let json = serde_json::to_string(&step).expect("a name");
            assert_eq!(json, format!("\"{}\"", step.name()));
        }
    }
}
