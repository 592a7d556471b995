//! `aios simulate` as a script sees it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn simulate(args: &[&str]) -> Output {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg("simulate");
    command.arg("-m").arg(models.join("micro-llama-q4km.gguf")).args(args).output().unwrap()
}

fn report(args: &[&str]) -> Value {
    let output = simulate(&[args, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn figures_follow_the_caches_and_the_passes() {
    let figure = |report: &Value, key: &str| report[key].as_f64().unwrap();
    let small = report(&["--ll", "16384,16,64", "-t", "1"]);
    assert_eq!((&small["source"], &small["synthetic"]), (&"simulated".into(), &false.into()));
    assert_eq!(small["caches"]["private"]["bytes"], 32768);
    let counted = figure(&small, "counted_bytes_per_token");
    let read = figure(&small, "dram_read_bytes_per_token");
    assert!(read > 0.8 * counted && read < 1.1 * counted, "{small}");
    let large = report(&["--cache", "stacked-96mb", "-t", "3"]);
    assert_eq!((&large["threads"], &large["caches"]["policy"]), (&3.into(), &"victim".into()));
    assert!(figure(&large, "reread_ratio") < 0.1, "{large}");
    let four = report(&["--ll", "16384,16,64", "--pass", "4", "--depth", "20"]);
    assert_eq!((&four["phase"], &four["depth"]), (&"verify".into(), &20.into()));
    assert!(figure(&four, "dram_read_bytes_per_token") < 0.5 * read, "{four}");
    let past = report(&["--cache", "server-384mb", "--policy", "inclusive", "--non-temporal"]);
    assert_eq!(past["caches"]["policy"], "inclusive");
    assert!(figure(&past, "dram_read_bytes_per_token") > 0.9 * counted, "{past}");
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models/micro-qwen2-q4km.gguf");
    let small = small.to_str().unwrap();
    let three = ["--ll", "16384,16,64", "-t", "1", "--pass", "3", "-n", "6"];
    let alone = report(&three);
    assert!(alone.get("smaller").is_none() && alone.get("model_draft").is_none(), "{alone}");
    let pair = report(&[&three[..], &["-md", small]].concat());
    assert_eq!((&pair["smaller"]["passes"], &pair["model_draft"]), (&2.into(), &small.into()));
    let of_small = figure(&pair["smaller"], "dram_read_bytes_per_token");
    let all = |one| {
        figure(one, "dram_read_bytes_per_token") + figure(one, "dram_ownership_bytes_per_token")
    };
    let [alone, both] = [&alone, &pair].map(all);
    assert!(of_small > 0.5 * alone && (both - alone - of_small).abs() < 0.05 * both, "{pair}");
    let table = simulate(&[&three[..], &["-md", small]].concat());
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("2 passes of one token before each pass"), "{table}");
}

#[test]
fn the_default_is_a_table_and_wrong_usage_is_refused() {
    let table = simulate(&["--cache", "desktop-36mb", "--warm-up", "0"]);
    let table = String::from_utf8(table.stdout).unwrap();
    for row in ["i9-13900K", "independent", "| head |", "| all |", "DRAM writes |", "re-read ratio"]
    {
        assert!(table.contains(row), "{row}: {table}");
    }
    assert!(!table.contains("Synthetic"), "{table}");
    for (args, said) in [
        (&["--cache", "nonesuch"][..], "stacked-96mb"),
        (&["--ll", "1000,16,64"], "whole number of sets"),
        (&["--ll", "1000"], "SIZE,WAYS,LINE"),
        (&["--ll", "1048576,16,64", "--cache", "machine"], "cannot be used"),
        (&["--ll", "16384,16,64", "--policy", "inclusive"], "cannot include"),
        (&["--policy", "lucky"], "known are inclusive"),
        (&["-n", "6", "--pass", "4"], "passes of 4"),
        (&["-t", "0"], "from 1 to 1024"),
    ] {
        let output = simulate(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}

/// Every report that names a model says when its weights are random.
#[test]
fn reports_on_synthetic_weights_carry_the_stamp() {
    let folder = tempfile::tempdir().unwrap();
    let (model, prompts) = (folder.path().join("made.gguf"), folder.path().join("prompts.jsonl"));
    let (model, prompts) = (model.to_str().unwrap(), prompts.to_str().unwrap());
    std::fs::write(prompts, "{\"class\": \"a\", \"user\": \"one two one two\"}\n").unwrap();
    let aios = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
        command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG");
        let output = command.args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let larger = folder.path().join("larger.gguf");
    let larger = larger.to_str().unwrap();
    for (path, layers) in [(model, "1"), (larger, "2")] {
        let shape = ["--shape", "smollm2-135m", "--quant", "Q4_0", "--vocab", "512"];
        aios(&[&["synth"][..], &shape, &["--layers", layers, path]].concat());
    }
    let simulate = ["simulate", "-m", model, "--cache", "server-32mb", "-n", "1"];
    let bench = ["bench", "-m", model, "-p", "0", "-n", "1", "-r", "1", "--no-bandwidth"];
    let lookup = ["lookup", "-m", model, "--prompts", prompts, "-n", "4"];
    let acceptance = ["acceptance", "-m", larger, "-md", model, "--prompts", prompts, "-n", "2"];
    for (command, json) in [
        (&simulate[..], &["--json"][..]),
        (&bench, &["-o", "json"]),
        (&lookup, &["--json"]),
        (&acceptance, &["--json"]),
    ] {
        let text = aios(command);
        assert!(text.starts_with("**Synthetic weights"), "{command:?}: {text}");
        let report: Value = serde_json::from_str(&aios(&[command, json].concat())).unwrap();
        assert_eq!(report["synthetic"], true, "{command:?}: {report}");
    }
}
