//! `--ram` as a person and a script see it (SPEC W).

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn aios(command: &str, args: &[&str]) -> Output {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let mut aios = Command::new(env!("CARGO_BIN_EXE_aios"));
    aios.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg(command);
    aios.arg("-m").arg(models.join("micro-llama-q4km.gguf"));
    aios.args(args).output().unwrap()
}

/// The least memory that works with a context of 64, as the error for too little says it.
fn least() -> String {
    let refused = aios("run", &["-p", "Hi", "-c", "64", "--ram", "1k"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let least = said.split("the least is ").nth(1).and_then(|rest| rest.split(" MB").next());
    format!("{}M", least.expect(&said))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_answer_is_the_same_and_its_statistics_tell_where_the_weights_were() {
    let run = ["-p", "Once upon a time", "-n", "12", "--temp", "0", "--stats", "json", "-c", "64"];
    let least = least();
    let plain = aios("run", &run);
    let limited = aios("run", &[&run[..], &["--ram", &least]].concat());
    let (plain_said, said) = (text(&plain.stderr), text(&limited.stderr));
    assert!(plain.status.success() && limited.status.success(), "{plain_said}{said}");
    assert_eq!(text(&plain.stdout), text(&limited.stdout));
    assert!(said.contains("MB/token from disk") && !plain_said.contains("from disk"), "{said}");
    let stats =
        |said: &str| -> Value { serde_json::from_str(said.lines().last().unwrap()).unwrap() };
    let residency = &stats(&said)["residency"];
    assert_eq!(residency["budget_bytes"], aios_residency::parse_bytes(&least).unwrap());
    for key in ["stream_bytes", "bytes_streamed", "disk_bytes", "reads", "blocks_resolved"] {
        assert!(residency[key].as_u64().unwrap() > 0, "{key} in {residency}");
    }
    let hits = residency["hot_hit_ratio"].as_f64().unwrap();
    assert!(hits < 1.0 && residency["warm_bytes"] == 0);
    let steps: Vec<&str> =
        residency["ladder"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert!(steps.contains(&"no_plan"), "{steps:?}");
    let mapped = &stats(&plain_said)["residency"];
    assert_eq!((&mapped["budget_bytes"], &mapped["stream_bytes"]), (&Value::Null, &0.into()));
    assert_eq!((&mapped["disk_bytes"], &mapped["ladder"]), (&0.into(), &Value::Array(vec![])));
    assert!(mapped["warm_bytes"].as_u64().unwrap() > 500_000);
    let disk = |stats: &Value| -> u64 {
        stats["bytes"].as_array().unwrap().iter().map(|phase| phase["disk"].as_u64().unwrap()).sum()
    };
    assert!(disk(&stats(&said)) > 0 && disk(&stats(&plain_said)) == 0);
}

#[test]
fn too_little_memory_is_an_error_that_names_enough() {
    let args = ["-p", "Hi", "-n", "2", "--temp", "0", "-c", "64", "--ram"];
    let enough = least();
    let run = aios("run", &[&args[..], &[&enough]].concat());
    assert!(run.status.success(), "{enough}: {}", text(&run.stderr));
    let wrong = aios("run", &[&args[..], &["3GB"]].concat());
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("must be bytes like 2600M"));
}

#[test]
fn every_command_that_loads_a_model_keeps_its_results_within_memory() {
    let logits = |ram: &[&str]| {
        let output = aios("logits", &[&["--ids", "1,2,3", "--predict", "4"], ram].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(logits(&[]), logits(&["--ram", "3M"]));
    let output = aios("bench", &["-p", "8", "-n", "4", "-r", "2", "--ram", &least(), "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["residency"]["reads"].as_u64().unwrap() > 0);
    for key in ["disk_gb_per_s", "disk_read_gb_per_s", "disk_fraction"] {
        assert_eq!(report[key]["samples"].as_array().unwrap().len(), 2, "{key}");
    }
    for command in ["chat", "perplexity", "baseline", "compliance", "headroom", "simulate"] {
        let help = Command::new(env!("CARGO_BIN_EXE_aios")).args([command, "--help"]).output();
        assert!(text(&help.unwrap().stdout).contains("--ram <BYTES>"), "{command}");
    }
}

#[test]
fn the_disk_can_be_measured() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models/micro-llama-q4km.gguf");
    let doctor = |args: &[&str]| {
        let mut aios = Command::new(env!("CARGO_BIN_EXE_aios"));
        aios.args(["doctor", "--no-bandwidth", "--disk"]).args(args).output().unwrap()
    };
    let output = doctor(&[model.to_str().unwrap(), "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["disk"]["gb_per_s"].as_f64().unwrap() > 0.0);
    assert!(text(&doctor(&[model.to_str().unwrap()]).stdout).contains("Disk (measured)"));
    let missing = doctor(&["/no/such/file"]);
    assert!(text(&missing.stderr).contains("/no/such/file") && !missing.status.success());
}

/// A plan for a budget: runs keep to it by themselves, `--ram` overrides it, and one that is too
/// little for a run is a step down and no error.
#[test]
fn runs_keep_to_the_budget_of_their_plan() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().to_str().unwrap();
    let made = aios("profile", &["--ram", "2M", "--out", plan]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let table = text(&made.stdout);
    assert!(table.contains("Within 2.0 MB of memory") && table.contains("| disk,"), "{table}");
    let refused = aios("profile", &["--ram", "1k", "--out", plan]);
    assert!(text(&refused.stderr).contains("the least is"), "{}", text(&refused.stderr));
    let run = |more: &[&str]| {
        let base = ["-p", "Once", "-n", "4", "--temp", "0", "--stats", "json", "--plan", plan];
        let output = aios("run", &[&base[..], more].concat());
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let stats: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        (text(&output.stdout), said, stats["residency"].clone())
    };
    let (answer, said, planned) = run(&["-c", "64"]);
    assert!(said.contains("following the plan: within 2.0 MB"), "{said}");
    assert_eq!(planned["budget_bytes"], 2_000_000);
    assert!(planned["ladder"].as_array().unwrap().iter().all(|step| step != "no_plan"));
    let (other, _, asked) = run(&["-c", "64", "--ram", "2100k"]);
    assert_eq!((other, &asked["budget_bytes"]), (answer.clone(), &2_100_000.into()));
    let (long, said, mapped) = run(&["-c", "60000"]);
    assert_eq!((long, &mapped["budget_bytes"]), (answer, &Value::Null));
    assert!(mapped["ladder"].as_array().unwrap().iter().any(|step| step == "mapped"), "{said}");
}
