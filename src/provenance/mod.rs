//! Provenance (SPEC Z): a record of every answer, from which it can be run again and proved, in a
//! log that shows what was lost or changed.
//!
//! [`Recorder`] makes the record of what a session did, [`Log`] keeps it, [`verify()`] reads a log
//! and says whether it is whole, [`replay()`] runs a record again.

pub mod digests;
mod error;
mod log;
mod record;
mod recorder;
mod replay;
mod storage;
mod summary;
#[cfg(test)]
mod tests;
mod verify;

pub use crate::router::Tier;
pub use error::ProvenanceError;
pub use log::{FILE_NAME, Log, Names, Options, Receipt};
pub use record::{
    Bench, Env, ExecutionMode, Figure, Layer, ModelFile, Phases, Plan, Quality, Record, Request,
    Retrieval, Routing, SCHEMA, Sampling, SpecDecode, Tokens,
};
pub use recorder::{
    Notes, Outcome, Part, Prompt, Recorder, SharedLog, Subject, environment, revision, used,
};
pub use replay::{
    Change, Difference, Replay, Unprovable, changes, first_difference, ids, options, replay,
};
pub use storage::{Disk, Files, Storage, View};
pub use summary::{Group, Spread, Summary};
pub use verify::{Each, Fault, Place, Torn, Verified, verify, verify_in};
