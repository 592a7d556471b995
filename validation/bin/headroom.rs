//! The harness `aios headroom` as a program of its own: how many bytes a token of a model could do without.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    aios::cli::main_of("headroom")
}
