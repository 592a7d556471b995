//! Bytes of DRAM as the memory controllers count them: finding the counters, reading them, and the
//! arithmetic that makes bytes per token of the readings (SPEC B7 to B13).
//!
//! [`discover`] reads the kernel's description of its devices, [`perf`] opens them, and
//! [`DramMeter`] measures. What cannot be measured is a [`Diagnosis`], with what to do about it.

pub mod arithmetic;
mod diagnosis;
mod discover;
mod machine;
mod measure;
#[allow(unsafe_code, reason = "the system call that opens a counter is found in no safe crate")]
pub mod perf;
mod resctrl;
pub mod sysfs;

pub use diagnosis::Diagnosis;
pub use discover::{Counter, Family, Traffic, Uncore, discover};
pub use machine::{Environment, Machine};
pub use measure::{BelowFloor, Counted, DramMeter, DramReading, Floor, MeterError, check_floor};
pub use resctrl::{Resctrl, ResctrlError};

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
