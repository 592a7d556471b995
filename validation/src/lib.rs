//! How a model and this engine are judged: logits that can be compared, perplexity, divergence
//! from a reference, and speed.
#![forbid(unsafe_code)]

pub mod logits;
