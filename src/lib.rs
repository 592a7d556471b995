//! What a person runs on top of the engine: the command line, the chat, models by name, and a
//! look at the machine.
#![forbid(unsafe_code)]

pub mod bench_arch;
pub mod chat;
pub mod cli;
pub mod config;
pub mod data;
pub mod digests;
pub mod doctor;
pub mod interrupt;
pub mod memory;
pub mod models;
pub mod persona;
pub mod provenance;
pub mod registry;
pub mod results;
pub mod router;
pub mod statistics;
pub mod stats;
pub mod system;
pub mod whole;
