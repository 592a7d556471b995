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
    assert_eq!(small["source"], "simulated");
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
}

#[test]
fn the_default_is_a_table_and_wrong_usage_is_refused() {
    let table = simulate(&["--cache", "desktop-36mb", "--warm-up", "0"]);
    let table = String::from_utf8(table.stdout).unwrap();
    for row in ["i9-13900K", "independent", "| head |", "| all |", "re-read ratio"] {
        assert!(table.contains(row), "{row}: {table}");
    }
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
