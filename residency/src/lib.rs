//! Where every byte of a model lives: files are mapped, tensors are entered in a block table as
//! ranges of the mappings, and a ledger counts what is read of them.
//!
//! Resolving a block is an index into a table: no allocation, no lookup by name, no system call.
//! Within a budget of memory blocks have tiers: hot ones are locked in memory of our own, the rest
//! is read from disk ahead of use in every pass.

mod budget;
mod disk;
mod keep;
mod ladder;
mod ledger;
mod mapping;
mod memory;
mod pages;
mod panels;
pub mod plan;
mod pointers;
mod prefix;
mod resident;
mod ring;
mod sealed;
mod speed;
mod store;
mod table;
mod telemetry;
mod text;
mod tiers;
mod trace;

pub use budget::{available_bytes, parse_bytes};
pub use disk::DiskError;
pub use keep::keep;
pub use ladder::{Ladder, Step};
pub use ledger::{Ledger, Phase, PhaseBytes, RoleBytes, TierBytes};
pub use mapping::{MapError, Mapping};
pub use memory::{KvArena, OutOfMemory, peak_resident_bytes, resident_bytes};
pub use panels::{Origin, PanelError, PanelWriter, Panels, open_panels, panel_origin};
pub use pointers::{BLOCK_BYTES_LEAST, BLOCK_BYTES_MOST, BlockFlags, Pointer, PointerTable};
pub use prefix::SharedPages;
pub use resident::{PartBytes, Resident, ResidentError, Run, Runs};
pub use speed::{DiskSpeed, measure_disk};
pub use store::BlockStore;
pub use table::{Block, BlockId, BlockTable, RangeError};
pub use telemetry::{Reserved, ResidencyStats};
pub use text::read_text;
pub use tiers::{BUFFER_BYTES, Tier};
pub use trace::{Access, Data};
