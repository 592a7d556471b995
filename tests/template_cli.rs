//! `aios template` over every golden case.

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

#[test]
fn every_public_template_renders_exactly_or_fails() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/templates/templates.json");
    let golden: Value =
        serde_json::from_slice(&std::fs::read(path).expect("test data")).expect("JSON");
    let dir = tempfile::tempdir().expect("a scratch folder");
    let (file, messages) = (dir.path().join("t.jinja"), dir.path().join("m.json"));
    for template in golden["templates"].as_array().expect("templates") {
        let text = |key: &str| template[key].as_str().expect("a string");
        std::fs::write(&file, text("template")).expect("written");
        for case in template["cases"].as_array().expect("cases") {
            let conversation = case["conversation"].as_str().expect("a name");
            let json = golden["conversations"][conversation].to_string();
            std::fs::write(&messages, json).expect("written");
            let mut command = Command::cargo_bin("aios").expect("the program");
            command.arg("template").arg("--file").arg(&file).arg("--messages").arg(&messages);
            command.args(["--bos", text("bos_token"), "--eos", text("eos_token")]);
            command.args(["--now", text("now")]);
            if case["add_generation_prompt"] == true {
                command.arg("--add-generation-prompt");
            }
            match case["text"].as_str() {
                Some(expected) => drop(command.assert().success().stdout(expected.to_owned())),
                None => drop(command.assert().code(1).stdout("")),
            }
        }
    }
}
