//! Where every byte of a model lives: files are mapped, tensors are entered in a block table as
//! ranges of the mappings, and a ledger counts what is read of them.
//!
//! Resolving a block is an index into a table: no allocation, no lookup by name, no system call.

mod ledger;
mod mapping;
mod memory;
mod panels;
pub mod plan;
mod table;
mod trace;

pub use ledger::{Ledger, Phase, PhaseBytes, RoleBytes};
pub use mapping::{MapError, Mapping};
pub use memory::{KvArena, OutOfMemory, peak_resident_bytes, resident_bytes};
pub use panels::{Origin, PanelError, PanelWriter, Panels, open_panels, panel_origin};
pub use table::{Block, BlockId, BlockTable, RangeError};
pub use trace::{Access, Data};
