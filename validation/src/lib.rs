//! How a model and this engine are judged: logits that can be compared, perplexity, divergence
//! from a reference, speed, bytes of DRAM, drafts, the Model Contract; and synthetic models to
//! judge with where no real one is at hand.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests compare with std's"))]

pub mod acceptance;
pub mod base;
pub mod baseline;
pub mod bench;
pub mod compliance;
pub mod counters;
pub mod divergence;
pub mod dots;
pub mod headroom;
pub mod levers;
pub mod logits;
pub mod perplexity;
pub mod plot;
pub mod profile;
pub mod prompts;
mod raster;
pub mod report;
pub mod simulate;
pub mod synth;
