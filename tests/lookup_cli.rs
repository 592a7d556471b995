//! `aios lookup` as a script sees it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn lookup(folder: &Path, args: &[&str]) -> Output {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg("lookup");
    command.arg("-m").arg(models.join("micro-llama-q4km.gguf"));
    command.arg("--prompts").arg(folder.join("prompts.jsonl")).args(args).output().unwrap()
}

fn prompts(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("prompts.jsonl"), text).unwrap();
    folder
}

#[test]
fn figures_come_by_set_and_class_and_answers_are_kept() {
    let folder = prompts(
        "{\"class\":\"a\",\"set\":\"development\",\"user\":\"Hello\"}\n\
         {\"class\":\"a\",\"set\":\"held-out\",\"user\":\"one two one two one\"}\n\
         {\"class\":\"b\",\"set\":\"development\",\"user\":\"x\"}\n",
    );
    let file = folder.path().join("answers.json");
    let answers = file.to_str().unwrap();
    let args = ["-n", "40", "--json", "-t", "1", "--answers", answers];
    let output = lookup(folder.path(), &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let group = |row: &Value| (row["set"].clone(), row["class"].clone());
    let groups: Vec<_> = rows.iter().map(group).collect();
    assert_eq!(
        groups,
        [("development", "a"), ("held-out", "a"), ("development", "b")]
            .map(|(set, class)| (set.into(), class.into()))
    );
    for row in rows {
        let count = |name: &str| row[name].as_u64().unwrap();
        assert!(count("passes") <= count("tokens") && count("accepted") <= count("drafted"));
        // A pass gives its own token, and those of its draft that were right.
        assert_eq!(count("passes") + count("accepted"), count("tokens"));
    }

    // The second run takes the answers of the first, and comes to the same.
    let kept = fs::read(&file).unwrap();
    let again = lookup(folder.path(), &args);
    assert_eq!((again.stdout, fs::read(&file).unwrap()), (output.stdout, kept));
    // Where a pass costs as much as its tokens one by one, nothing is drafted for long.
    let steep = lookup(folder.path(), &[&args[..], &["--pass-costs", "1:1,16:16"]].concat());
    let report: Value = serde_json::from_slice(&steep.stdout).unwrap();
    assert_eq!(report["rows"][0]["drafted"], 0);
}

#[test]
fn mistakes_are_named() {
    let folder = prompts("{\"class\":\"a\",\"user\":\"Hello\"}\n");
    let file = folder.path().join("answers.json");
    fs::write(&file, r#"{"model":"other.gguf","bytes":1,"tokens":3,"answers":[]}"#).unwrap();
    let answers = file.to_str().unwrap();
    for (args, code, want) in [
        (&["--pass-costs", "2:1"][..], 2, "rise from 1"),
        (&["--class", "z"], 1, "no prompts of these classes"),
        (&["--answers", answers], 1, "has answers of other.gguf with at most 3 tokens"),
    ] {
        let output = lookup(folder.path(), args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(want), "{args:?}: {said}");
    }
}
