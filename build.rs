//! Tells the program which revision it was built from, without a network and without git where
//! there is none.

use std::path::Path;
use std::process::Command;

fn main() {
    // The revision changes with HEAD, and the dirty flag with any source file.
    for path in ["build.rs", "Cargo.toml", "Cargo.lock", "src", "examples", "contract", "kernels"] {
        watch(path);
    }
    for path in ["residency", "engine", "validation"] {
        watch(path);
    }
    println!("cargo::rustc-env=AIOS_REVISION={}", revision().as_deref().unwrap_or("unknown"));
}

fn watch(path: &str) {
    // Cargo takes a path that does not exist for one that always changes.
    if Path::new(path).exists() {
        println!("cargo::rerun-if-changed={path}");
    }
}

fn revision() -> Option<String> {
    // An unpacked archive inside of someone else's repository has no revision of its own.
    let top = std::fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()?;
    if top != std::fs::canonicalize(env!("CARGO_MANIFEST_DIR")).ok()? {
        return None;
    }
    for name in ["HEAD", "logs/HEAD"] {
        watch(&git(&["rev-parse", "--git-path", name])?);
    }
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { hash } else { format!("{hash}-dirty") })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}
