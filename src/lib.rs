//! What a person runs on top of the engine: the command line, the chat, models by name, and a
//! look at the machine.
#![forbid(unsafe_code)]

pub mod bench_arch;
pub mod chat;
pub mod cli;
pub mod data;
pub mod doctor;
pub mod interrupt;
pub mod models;
pub mod provenance;
pub mod results;
pub mod stats;
