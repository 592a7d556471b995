//! `aios logits` as a script sees it: the form of its object, and one digest for a file and ids.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aios_kernels::{Isa, IsaName};
use serde_json::Value;

const IDS: &str = "1,17,4,99,250,3,7,7,12,31,64,5,200,18,2,90,41,33,8,150";

fn model(name: &str) -> PathBuf {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    models.join(format!("{name}-q4km.gguf"))
}

fn logits(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG");
    command.arg("logits").arg("-m").arg(model(name)).args(args).output().unwrap()
}

fn report(name: &str, args: &[&str]) -> Value {
    let output = logits(name, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn digest(name: &str, args: &[&str]) -> String {
    let args = [&["--ids", IDS, "--predict", "3"], args].concat();
    report(name, &args)["logits_sha256"].as_str().unwrap().to_owned()
}

#[test]
fn the_digest_depends_on_the_file_and_the_ids_only() {
    for name in ["micro-llama", "micro-gemma3"] {
        let reference = digest(name, &[]);
        for isa in Isa::available() {
            assert_eq!(digest(name, &["--isa", isa.name().name()]), reference, "{name} {isa:?}");
        }
        for threads in ["1", "2", "5"] {
            assert_eq!(digest(name, &["-t", threads]), reference, "{name} -t {threads}");
        }
        for chunk in ["1", "3", "7", "64", "512"] {
            assert_eq!(digest(name, &["--chunk", chunk]), reference, "{name} --chunk {chunk}");
        }
        let exact = digest(name, &["--exact"]);
        assert_ne!(exact, reference, "{name}");
        assert_eq!(digest(name, &["--exact", "-ctk", "f32", "-ctv", "f32"]), exact, "{name}");
        assert_ne!(digest(name, &["--exact", "-ctk", "f16"]), exact, "{name}");
    }
}

#[test]
fn the_object_has_the_form_of_the_golden_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/logits/micro-llama.jsonl");
    let golden = std::fs::read_to_string(golden).unwrap();
    let case: Value = serde_json::from_str(golden.lines().next().unwrap()).unwrap();
    let (ids, peer) = (case["ids"].as_array().unwrap(), &case["peer_int8"]);
    let listed = ids.iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    let found = report("micro-llama", &["--ids", &listed, "--predict", "4", "-t", "2"]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&found), [keys(peer), vec!["logits_sha256".to_owned()]].concat());
    assert_eq!(found["n_vocab"], peer["n_vocab"]);
    assert_eq!(found["greedy"].as_array().unwrap().len(), 4);
    let positions = found["positions"].as_array().unwrap();
    assert_eq!(positions.len(), ids.len());
    for (position, peer) in positions.iter().zip(peer["positions"].as_array().unwrap()) {
        assert_eq!(keys(position), keys(peer));
        assert_eq!(position["top"].as_array().unwrap().len(), 10);
        for moment in ["lse", "mean", "rms"] {
            let apart = position[moment].as_f64().unwrap() - peer[moment].as_f64().unwrap();
            assert!(apart.abs() < 0.1, "{moment}: {position} {peer}");
        }
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    for (args, code, want) in [
        (&["--ids", "1,999999"][..], 1, "token id 999999 is outside the vocabulary"),
        (&["--ids", "1,x"], 2, "invalid value 'x'"),
        (&["--ids", "-1"], 2, ""),
        (&["--ids", ""], 2, "invalid value ''"),
        (&[], 2, "--ids"),
        (&["--ids", "1", "--chunk", "0"], 2, "0 is not in"),
        (&["--ids", "1", "-t", "0"], 2, "from 1 to 1024"),
        (&["--ids", "1", "--isa", "neon"], 2, "known are scalar, avx2, avx512, amx"),
        (&["--ids", "1", "--predict", "4000000000"], 1, "a context of 4000000001 positions"),
    ] {
        let output = logits("micro-llama", args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(want), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    for isa in IsaName::ALL.into_iter().filter(|isa| Isa::request(*isa).is_err()) {
        let output = logits("micro-llama", &["--ids", "1", "--isa", isa.name()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{isa}: {said}");
        assert!(said.contains("this processor does not have"), "{isa}: {said}");
    }
}
