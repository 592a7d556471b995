//! The harness `aios compliance` as a program of its own.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    aios::cli::main_of("compliance")
}
