//! How a model and this engine are judged: logits that can be compared, perplexity, divergence
//! from a reference, speed, simulated memory traffic; and synthetic models to judge with where no
//! real one is at hand.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests compare with std's"))]

pub mod base;
pub mod bench;
pub mod divergence;
pub mod logits;
pub mod perplexity;
pub mod simulate;
pub mod synth;
