#![forbid(unsafe_code)]

pub mod gguf;
pub mod template;
