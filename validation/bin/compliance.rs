//! The harness `aios compliance` as a program of its own: a model held against the Model Contract.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    aios::cli::main_of("compliance")
}
