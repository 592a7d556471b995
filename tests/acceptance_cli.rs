//! `aios acceptance` as a script sees it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn acceptance(prompts: &Path, args: &[&str]) -> Output {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let model = |name: &str| models.join(format!("micro-{name}-q4km.gguf"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg("acceptance");
    command.arg("-m").arg(model("llama")).arg("-md").arg(model("qwen2"));
    command.arg("--prompts").arg(prompts).args(args).output().unwrap()
}

fn prompts(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn rates_come_by_class_and_sampling() {
    let file = prompts(
        "{\"class\":\"a\",\"user\":\"Hello\"}\n{\"class\":\"b\",\"user\":\"x\"}\n\
         {\"class\":\"a\",\"user\":\"not this one\"}\n",
    );
    let output = acceptance(file.path(), &["--limit", "1", "-n", "6", "--json", "-t", "1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    // Two temperatures, with filters and without; classes a and b, and all.
    assert_eq!(rows.len(), 12);
    assert_eq!(rows[0]["class"], "a");
    assert!(rows[2]["class"].is_null() && rows[2]["filtered"] == true);
    for row in rows {
        let rate = |name: &str| row["rates"][name].as_f64().unwrap();
        assert!(rate("positions") <= 12.0 && rate("taken") <= 1.0);
        assert!(rate("shared_noise") <= rate("speculative") + 1e-9, "{row}");
    }
    let output = acceptance(file.path(), &["--class", "b", "-n", "3", "--temp", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("| 1 | filtered | b | 3 |"), "{text}");
}

#[test]
fn mistakes_are_named() {
    let file = prompts("{\"class\":\"a\",\"user\":\"Hello\"}\n{\"class\":\"a\"}\n");
    for (args, code, want) in [
        (&["--temp", "0"][..], 2, "above 0"),
        (&[], 1, "line 2: missing field `user`"),
        (&["--temp", "nan"], 2, "from 0 to 1000"),
    ] {
        let output = acceptance(file.path(), args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(want), "{args:?}: {said}");
    }
    let file = prompts("{\"class\":\"a\",\"user\":\"Hello\"}\n");
    let output = acceptance(file.path(), &["--class", "z"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no prompts of these classes"));
}
