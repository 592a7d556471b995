//! What a processor's caches let through to memory: real passes of an executor, access by access,
//! through a model of the caches (SPEC B14 to B22).

mod cache;
mod hierarchy;
mod presets;
mod run;
mod traffic;

pub use cache::{Cache, Evicted, Geometry, GeometryError};
pub use hierarchy::{Design, Hierarchy, HierarchyError, Policy, THREADS_MAX};
pub use presets::{Machine, MachineError, PRESETS, Preset, cachegrind, machine, preset};
pub(crate) use run::reads;
pub use run::{Behind, GroupTraffic, Plan, Simulated, Smaller, SmallerTraffic, simulate};
pub use traffic::{Group, Traffic};
