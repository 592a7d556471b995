//! `aios perplexity`: that saved logits are compared, and, where the models are at hand, that the
//! figures are those of the reference.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aios::models::{Catalog, Store};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Where a Debian system keeps the text that the reference figures are of.
const TEXT: &str = "/usr/share/common-licenses/GPL-3";

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn perplexity(model: &Path, text: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg("perplexity");
    command.arg("-m").arg(model).arg("-f").arg(text).args(args).output().unwrap()
}

fn report(model: &Path, text: &Path, args: &[&str]) -> Value {
    let output = perplexity(model, text, &[args, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A micro model and a text of a few windows of 32 tokens.
fn micro(folder: &Path) -> (PathBuf, PathBuf) {
    let text = folder.join("text.txt");
    fs::write(&text, "The quick brown fox jumps over the lazy dog. ".repeat(4)).unwrap();
    (testdata().join("models/micro-llama-q4km.gguf"), text)
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

#[test]
fn a_run_agrees_with_its_own_saved_logits_and_not_with_others() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text) = micro(folder.path());
    let base = folder.path().join("saved.base");
    let base = base.to_str().unwrap();
    let saved = report(&model, &text, &["-c", "32", "--save-logits", base]);
    assert!(saved.get("kl").is_none(), "{saved}");
    assert!(number(&saved, "perplexity") > 1.0 && number(&saved, "standard_error") > 0.0);
    assert_eq!(number(&saved, "scored_tokens"), number(&saved, "windows") * 15.0);

    let same = report(&model, &text, &["-c", "32", "-t", "1", "--kl", base]);
    assert_eq!(same["perplexity"], saved["perplexity"]);
    let kl = &same["kl"];
    assert_eq!(number(kl, "top1_agreement"), 1.0);
    assert!(number(kl, "max").abs() < 1e-4, "{kl}");
    let ratio = number(kl, "base_perplexity") / number(&saved, "perplexity");
    assert!((ratio - 1.0).abs() < 1e-6, "{kl}");

    let exact = report(&model, &text, &["-c", "32", "--exact", "--kl", base]);
    assert!(number(&exact["kl"], "max") > number(kl, "max"), "{exact}");
    assert_ne!(exact["perplexity"], saved["perplexity"]);
    let other = testdata().join("models/micro-qwen2-q4km.gguf");
    let other = report(&other, &text, &["-c", "32", "--kl", base]);
    assert!(number(&other["kl"], "mean") > 0.01, "{other}");

    let printed = perplexity(&model, &text, &["-c", "32", "--kl", base]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    for want in ["PPL = ", " +/- ", "base PPL = ", "mean", "median", "99 %", "max", "likeliest"] {
        assert!(printed.contains(want), "{want}: {printed}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text) = micro(folder.path());
    let base = folder.path().join("saved.base");
    let base = base.to_str().unwrap();
    report(&model, &text, &["-c", "32", "--save-logits", base]);
    let longer = folder.path().join("longer.txt");
    fs::write(&longer, "Something else entirely, as long as need be. ".repeat(4)).unwrap();
    let nowhere = folder.path().join("nowhere").join("x.base");
    let before = fs::read_dir(&folder).unwrap().count();
    for (text, args, code, want) in [
        (&text, &["-c", "16", "--kl", base][..], 1, "a window of 32, this run's is 16"),
        (&longer, &["-c", "32", "--kl", base], 1, "saved logits are of"),
        (&text, &["-c", "32", "--kl", text.to_str().unwrap()], 1, "no file of saved logits"),
        (&text, &["-c", "32", "--save-logits", nowhere.to_str().unwrap()], 1, "cannot write"),
        (&text, &["-c", "4096"], 1, "too few for a window of 4096"),
        (&text, &["-c", "7"], 2, "7 is not in"),
        (&text, &["--kl", base, "--save-logits", base], 2, "cannot be used with"),
        (&nowhere, &[], 1, "cannot read the text"),
    ] {
        let output = perplexity(&model, text, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(want), "{args:?}: {said}");
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), before);
}

#[derive(Deserialize)]
struct Reference {
    sha256: String,
    n_ctx: usize,
    chunks: u64,
    exact_f32: BTreeMap<String, f64>,
}

/// The bounds of the project: the exact path is the reference's arithmetic, the fast path may cost
/// 0.6 %.
#[test]
#[ignore = "needs three real models and takes minutes: cargo test --test perplexity -- --ignored"]
fn real_models_have_the_perplexity_of_the_reference() {
    let reference = fs::read_to_string(testdata().join("perplexity.json")).unwrap();
    let reference: Reference = serde_json::from_str(&reference).unwrap();
    let text = Path::new(TEXT);
    let bytes = fs::read(text).unwrap_or_else(|error| {
        panic!("{TEXT}: {error}; put the GPL-3 of a Debian system's base-files there")
    });
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, reference.sha256, "{TEXT} is another text");
    let store = Store::locate().unwrap();
    let window = reference.n_ctx.to_string();
    let mut failures = Vec::new();
    for (name, want) in &reference.exact_f32 {
        let path = store.path(Catalog::builtin().model(name).unwrap());
        assert!(path.exists(), "{name} is not there: fetch it with 'aios pull {name}'");
        let run = |args: &[&str]| {
            let report = report(&path, text, &[&["-c", window.as_str()], args].concat());
            assert_eq!(report["windows"], reference.chunks, "{name}");
            number(&report, "perplexity")
        };
        let (fast, exact) = (run(&[]), run(&["--exact"]));
        let (off, cost) = (exact / want - 1.0, fast / exact - 1.0);
        println!(
            "{name}: reference {want:.4}, exact {exact:.4} ({:+.4} %), int8 {fast:.4} ({:+.4} %)",
            100.0 * off,
            100.0 * cost
        );
        if off.abs() > 0.001 || cost.abs() > 0.006 {
            failures.push(name);
        }
    }
    assert!(failures.is_empty(), "out of bounds: {failures:?}");
}
