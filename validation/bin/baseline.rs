//! The harness `aios baseline` as a program of its own: MB per token by every source there is, and how fast it goes.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    aios::cli::main_of("baseline")
}
