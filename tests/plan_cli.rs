//! Plans that are not followed, as a person and a script see it (SPEC D4): the reason on stderr,
//! the same answer, no failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn micro(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models").join(format!("{name}.gguf"))
}

/// Runs a command on the model that all plans of these tests are tried with.
fn aios(command: &[&str], args: &[&str]) -> Output {
    on("micro-llama-q4km", command, args)
}

fn on(model: &str, command: &[&str], args: &[&str]) -> Output {
    let mut aios = Command::new(env!("CARGO_BIN_EXE_aios"));
    aios.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").args(command);
    aios.arg("-m").arg(micro(model));
    aios.args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Has the plan of a model made in `folder`, and returns the folder as an argument.
fn profile<'a>(model: &str, folder: &'a Path) -> &'a str {
    let folder = folder.to_str().unwrap();
    let made = on(model, &["profile"], &["--out", folder]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    folder
}

/// An answer that follows the plan in a folder, if it can: what comes of it, and what is said.
fn run(plan: &[&str]) -> (String, String) {
    let base = ["-p", "Once upon a time", "-n", "12", "--temp", "0", "--ignore-eos"];
    let output = aios(&["run"], &[&base[..], plan].concat());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    (text(&output.stdout), said)
}

/// Asserts that the plan in `folder` is refused with a reason that has these words, by a run, which
/// goes on without it, and by `aios plan show`.
fn assert_refused(folder: &str, reason: &str) {
    let (plain, _) = run(&["--no-plan"]);
    assert!(!plain.trim().is_empty());
    let (answer, said) = run(&["--plan", folder]);
    assert_eq!(answer, plain);
    let refusals: Vec<&str> =
        said.lines().filter(|line| line.starts_with("the plan is not followed: ")).collect();
    assert!(refusals.len() == 1 && refusals[0].contains(reason), "{reason}: {said}");
    assert!(refusals[0].contains("`aios profile` makes a new one"), "{said}");
    assert!(!said.contains("following the plan"), "{said}");
    let shown = aios(&["plan", "show"], &["--plan", folder]);
    let said = text(&shown.stderr);
    assert!(shown.status.success() && !shown.stdout.is_empty(), "{said}");
    assert!(said.contains("a run refuses this plan: ") && said.contains(reason), "{said}");
}

#[test]
fn a_sound_plan_is_followed_and_shown_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let plan = profile("micro-llama-q4km", folder.path());
    let (plain, _) = run(&["--no-plan"]);
    let (answer, said) = run(&["--plan", plan, "--screen", "on"]);
    assert_eq!(answer, plain);
    assert!(said.contains("following the plan") && !said.contains("not followed"), "{said}");
    let shown = aios(&["plan", "show"], &["--plan", plan]);
    assert!(shown.status.success() && !text(&shown.stderr).contains("refuses"));
    // Without a model there is nothing to refuse it.
    let mut alone = Command::new(env!("CARGO_BIN_EXE_aios"));
    let alone = alone.args(["plan", "show", "--plan", plan]).output().unwrap();
    assert!(alone.status.success());
    assert_eq!(text(&alone.stdout), text(&shown.stdout));
}

#[test]
fn a_plan_of_another_model_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = profile("micro-qwen2-q4km", folder.path());
    assert_refused(plan, "from another state of the model's files");
}

#[test]
fn a_plan_of_another_machine_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = profile("micro-llama-q4km", folder.path());
    change(folder.path(), |manifest| manifest["hardware"]["processors"] = 4095.into());
    assert_refused(plan, "4095 processors");
}

/// Changes the manifest in `folder`.
fn change(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

#[test]
fn a_damaged_plan_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = profile("micro-llama-q4km", folder.path());
    let mut digest = Value::Null;
    change(folder.path(), |manifest| {
        let wrong = Value::from("0".repeat(64));
        digest = std::mem::replace(&mut manifest["tables"][0]["sha256"], wrong);
    });
    assert_refused(plan, "SHA-256 is not that of the manifest");
    let mut table = PathBuf::new();
    change(folder.path(), |manifest| {
        manifest["tables"][0]["sha256"] = digest;
        table = folder.path().join(manifest["tables"][0]["file"].as_str().unwrap());
    });
    let (_, said) = run(&["--plan", plan]);
    assert!(!said.contains("not followed"), "it is sound again: {said}");
    let bytes = fs::read(&table).unwrap();
    fs::write(&table, &bytes[..bytes.len() - 1]).unwrap();
    assert_refused(plan, "length is not that of the manifest");
    fs::remove_file(&table).unwrap();
    assert_refused(plan, table.file_name().unwrap().to_str().unwrap());
}

/// A folder without a plan is a reason too where one was named.
#[test]
fn a_plan_that_is_not_there_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, _) = run(&["--no-plan"]);
    let (answer, said) = run(&["--plan", folder.path().to_str().unwrap()]);
    assert_eq!(answer, plain);
    assert!(said.contains("the plan is not followed: there is no plan in"), "{said}");
    let shown = aios(&["plan", "show"], &["--plan", folder.path().to_str().unwrap()]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stderr).contains("`aios profile -m MODEL` makes one"));
}
