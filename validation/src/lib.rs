//! Judging models and making some to judge with.

#![forbid(unsafe_code)]

pub mod synth;
