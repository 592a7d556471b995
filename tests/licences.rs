//! Every dependency is under terms that this project may be passed on with. `deny.toml` says the
//! same for those who have cargo-deny.

use std::process::Command;

use serde_json::Value;

/// Licences that ask for no more than their text to be kept.
const ALLOWED: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Whether an SPDX expression can be met with allowed licences alone: one of the choices of each
/// `OR`, all sides of each `AND`. `/` is the old spelling of `OR`. What cannot be read is not met.
fn allowed(expression: &str) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    matches!(alternatives(&words), Some((true, [])))
}

/// Whether a part of an expression is met, and the words behind it; `None` if it is malformed.
type Met<'a> = Option<(bool, &'a [&'a str])>;

fn alternatives<'a>(words: &'a [&'a str]) -> Met<'a> {
    let (mut met, mut rest) = all_of(words)?;
    while let Some((&"OR", after)) = rest.split_first() {
        let (next, behind) = all_of(after)?;
        (met, rest) = (met || next, behind);
    }
    Some((met, rest))
}

fn all_of<'a>(words: &'a [&'a str]) -> Met<'a> {
    let (mut met, mut rest) = one(words)?;
    while let Some((&"AND", after)) = rest.split_first() {
        let (next, behind) = one(after)?;
        (met, rest) = (met && next, behind);
    }
    Some((met, rest))
}

fn one<'a>(words: &'a [&'a str]) -> Met<'a> {
    match words {
        ["(", inner @ ..] => match alternatives(inner)? {
            (met, [")", rest @ ..]) => Some((met, rest)),
            _ => None,
        },
        [name, "WITH", exception, rest @ ..] => {
            Some((ALLOWED.contains(&format!("{name} WITH {exception}").as_str()), rest))
        }
        [")" | "OR" | "AND" | "WITH", ..] | [] => None,
        [name, rest @ ..] => Some((ALLOWED.contains(name), rest)),
    }
}

/// The triple of this machine. Packages for other systems are not on the disk.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host").to_owned()
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", &host()])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "only {} packages were found", packages.len());
    let bad: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(allowed))
        .map(|package| {
            format!("{} {}: {}", package["name"], package["version"], package["license"])
        })
        .collect();
    assert!(bad.is_empty(), "licences that are not allowed:\n{}", bad.join("\n"));
}

#[test]
fn expressions_are_understood() {
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "(MIT OR GPL-3.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
    ] {
        assert!(allowed(good), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT",
        "MIT)",
        "MIT Apache-2.0",
        "MIT OR",
        "OR MIT",
        "GPL-3.0 WITH LLVM-exception",
        "GPL-3.0 OR MIT AND GPL-2.0",
    ] {
        assert!(!allowed(bad), "{bad}");
    }
}
