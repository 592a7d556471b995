//! The benchmark over architectures (SPEC J7): families of models x layers x backends of memory x
//! labelled prompts, cold and warm, each several times, recorded so that a run goes on where it
//! was stopped.
//!
//! What answers is an [`Answers`]; the plan and its progress know nothing of models.

mod plan;
mod run;
#[cfg(test)]
mod tests;

pub use plan::{Case, Family, Options, Plan, SECONDS_PER_CASE, cases, families, plan_done};
pub use run::{Answers, Progress, Tally, run};
