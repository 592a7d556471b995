//! `aios bench` as a script sees it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg("bench");
    command.arg("-m").arg(models.join("micro-llama-q4km.gguf"));
    command.args(["--repetitions=3", "-t", "2"]).args(args).output().unwrap()
}

fn report(args: &[&str]) -> Value {
    let output = bench(&[args, &["-o", "json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

const DECODE: [&str; 5] = [
    "decode_tokens_per_s",
    "bytes_per_token",
    "read_gb_per_s",
    "stream_gb_per_s",
    "bandwidth_fraction",
];

#[test]
fn every_figure_has_its_samples_and_a_part_can_be_left_out() {
    let whole = report(&["-p", "16", "-n", "4"]);
    for key in ["load_ms", "prefill_tokens_per_s"].iter().chain(&DECODE) {
        let samples = whole[key]["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 3, "{key}");
        let samples: Vec<f64> = samples.iter().map(|x| x.as_f64().unwrap()).collect();
        assert!(samples.iter().all(|x| *x > 0.0), "{key}: {samples:?}");
        let mean = whole[key]["mean"].as_f64().unwrap() * 3.0 / samples.iter().sum::<f64>();
        assert!((mean - 1.0).abs() < 1e-9, "{key}");
        assert!(samples.contains(&whole[key]["median"].as_f64().unwrap()), "{key}");
        assert!(whole[key]["sd"].as_f64().unwrap() >= 0.0, "{key}");
    }
    let prompt = report(&["-p", "16", "-n", "0"]);
    assert!(prompt["prefill_tokens_per_s"].is_object());
    assert!(DECODE.iter().all(|key| prompt.get(key).is_none()), "{prompt}");
    let deep = report(&["-p", "0", "-n", "4", "--depth", "64"]);
    assert!(deep.get("prefill_tokens_per_s").is_none(), "{deep}");
    let bytes = |report: &Value| report["bytes_per_token"]["median"].as_f64().unwrap();
    assert!(bytes(&deep) > bytes(&whole), "the cache at depth 64 is read too");
    let blank = &["-p", "0", "-n", "4", "--depth", "64", "--blank", "--no-bandwidth"][..];
    let blank_deep = report(blank);
    assert_eq!(bytes(&blank_deep), bytes(&deep));
    assert!(blank_deep.get("bandwidth_fraction").is_none(), "{blank_deep}");
    let together = report(&[blank, &["--pass", "4"]].concat());
    assert!(bytes(&together) < 0.5 * bytes(&deep), "four tokens share a read");
}

#[test]
fn the_default_is_a_table_and_wrong_usage_is_refused() {
    let table = bench(&["-p", "8", "-n", "2", "--depth", "4"]);
    let table = String::from_utf8(table.stdout).unwrap();
    for row in ["| load | ms |", "| pp8 | tokens/s |", "| tg2 @ d4 | tokens/s |", "| GB/s |"] {
        assert!(table.contains(row), "{row}: {table}");
    }
    assert_eq!(bench(&["-o", "xml"]).status.code(), Some(2));
    assert_eq!(bench(&["-n", "5", "--pass", "4"]).status.code(), Some(2));
    assert_eq!(bench(&["--depth", "4294967295"]).status.code(), Some(1));
}
