#![forbid(unsafe_code)]

pub mod gguf;
