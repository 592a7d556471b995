//! Results (SPEC J): what the records of a benchmark come to, as tables, pictures and the cells of
//! a manuscript.
//!
//! ```text
//! logs -> Answer (complete, or refused) -> Stratum (one mode, one revision) -> Table -> RESULTS.md
//!                                                                           -> manuscript
//! ```
//!
//! Nothing stands in for what a record lacks: such a record is refused.

mod answer;
mod error;
mod golden;
pub mod manuscript;
mod pictures;
mod report;
mod stratum;
mod table;
mod tables;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use answer::Answer;
pub use error::ResultsError;
pub use golden::{BUILT_IN, Golden, Goldens};
pub use report::{Written, markdown, write};
pub use stratum::{Condition, Options, Results, Stratum, read};
pub use table::{Cell, Column, Table};
pub use tables::tables;

use crate::provenance::Tier;

/// A tier as it is written.
pub const fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Trivial => "trivial",
        Tier::Moderate => "moderate",
        Tier::High => "high",
    }
}

/// Every tier, the simplest first.
pub const TIERS: [Tier; 3] = [Tier::Trivial, Tier::Moderate, Tier::High];
