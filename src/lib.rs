//! What a person runs on top of the engine: the command line, the chat, models by name, and a
//! look at the machine.
#![forbid(unsafe_code)]

pub mod chat;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod interrupt;
pub mod models;
pub mod registry;
pub mod stats;
