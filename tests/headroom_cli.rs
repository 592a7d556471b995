//! `aios headroom` as a script sees it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROMPTS: &str = r#"{"text": "The river runs to the sea.", "category": "prose"}
{"text": "let x = 1; let y = 2; let x = 1; let y = 2;", "category": "code"}

{"text": "one two three one two three one two three"}
"#;

fn headroom(folder: &Path, prompts: &[u8], args: &[&str]) -> Output {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let file = folder.join("prompts.jsonl");
    fs::write(&file, prompts).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg("headroom");
    command.arg("-m").arg(models.join("micro-llama-q4km.gguf")).arg("--calibration").arg(file);
    command.args(["-t", "2", "--tokens", "16", "-n", "8"]).args(args).output().unwrap()
}

#[test]
fn the_report_goes_to_stdout_or_into_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let printed = headroom(folder.path(), PROMPTS.as_bytes(), &["--json"]);
    let said = String::from_utf8_lossy(&printed.stderr);
    assert_eq!(printed.status.code(), Some(0), "{said}");
    let json: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!((&json["schema_version"], &json["calibration"]["prompts"]), (&2.into(), &3.into()));
    assert_eq!(json["lookup"]["categories"][0]["name"], "code");
    let out = folder.path().join("report");
    let written = headroom(folder.path(), PROMPTS.as_bytes(), &["--out", out.to_str().unwrap()]);
    assert_eq!(String::from_utf8(written.stdout).unwrap().lines().count(), 5);
    let mut file: Value =
        serde_json::from_slice(&fs::read(out.join("headroom.json")).unwrap()).unwrap();
    // Which lines of a cache meet depends on the addresses that a process happens to get.
    let mut json = json;
    for report in [&mut file, &mut json] {
        let ratio = report.as_object_mut().unwrap().remove("reread_ratio").unwrap();
        assert!(ratio.as_f64().unwrap() >= 0.0, "{ratio}");
        let behind = &report["reread_behind"];
        assert!(behind["name"].as_str().unwrap().starts_with("desktop-36mb"), "{behind}");
        assert_eq!((&behind["threads"], &behind["depth"]), (&1.into(), &16.into()));
        assert_eq!(behind["caches"]["shared"]["ways"], 12);
    }
    assert_eq!(file, json);
    let other = ["--continued", "0", "--cache", "server-32mb"];
    let text = headroom(folder.path(), PROMPTS.as_bytes(), &other);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("Speculation by look-up is not measured"), "{text}");
    assert!(text.contains("behind server-32mb"), "{text}");
}

#[test]
fn hostile_prompts_and_wrong_usage_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = PROMPTS.as_bytes();
    for (bad, wanted) in [
        (b"{\"prompt\": \"x\"}".as_slice(), "line 5: the object has no \"text\""),
        (b"{\"text\": \"\xff\xfe\"}", "line 5: byte 11 is not UTF-8"),
        (b"\0\0\0\0", "line 5: it holds a NUL character"),
        (&vec![b' '; 10 << 20], "line 5: it is longer than 1048576 bytes"),
    ] {
        let output = headroom(folder.path(), &[good, bad].concat(), &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(wanted) && said.lines().count() == 1, "{wanted}: {said}");
    }
    let empty = headroom(folder.path(), b"", &[]);
    assert!(String::from_utf8_lossy(&empty.stderr).contains("has no prompts"));
    assert_eq!(headroom(folder.path(), good, &["--prompts", "1"]).status.code(), Some(2));
    let nameless = headroom(folder.path(), good, &["--cache", "nonesuch"]);
    assert_eq!(nameless.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nameless.stderr).contains("desktop-36mb"));
    let missing = headroom(folder.path(), good, &["--with", "no-such-file.gguf"]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("no-such-file.gguf does not exist"), "{said}");
}
