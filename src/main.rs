//! The `aios` program; everything is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    aios::cli::main()
}
