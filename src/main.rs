//! The `aios` program.
fn main() {}
