//! The digests of the logits of every golden case (SPEC N): the arithmetic is frozen, so they
//! never change. The ids are those of `testdata/logits`; what the logits are worth is tested in
//! the engine's `logits`.

use aios_engine::{Executor, ExecutorOptions, Model};
use aios_validation::logits::record;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Names of golden files, and the catalogue's names of the real models among them.
const REAL: [(&str, &str); 4] = [
    ("gemma-3-270m", "gemma-3-270m"),
    ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b-instruct"),
    ("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b-instruct"),
    ("smollm2-135m", "smollm2-135m-instruct"),
];
/// The real model that CI has.
const REQUIRED: &str = "smollm2-135m";

/// Digests by golden file and case.
type Digests = BTreeMap<String, BTreeMap<String, String>>;

#[derive(Deserialize)]
struct Case {
    case: String,
    ids: Vec<u32>,
    n_predict: usize,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

fn recorded() -> Digests {
    let text = fs::read_to_string(testdata().join("digests.json")).expect("the digests");
    serde_json::from_str(&text).expect("digests by file and case")
}

/// The file of a golden model, if it is at hand.
fn model_path(golden: &str) -> Option<PathBuf> {
    let Some((_, name)) = REAL.iter().find(|(real, _)| *real == golden) else {
        return Some(testdata().join("models").join(format!("{golden}-q4km.gguf")));
    };
    let set = |key: &str| std::env::var_os(key).map(PathBuf::from);
    let cache = || set("AIOS_CACHE_DIR").or_else(|| Some(set("XDG_CACHE_HOME")?.join("aios")));
    let home = || Some(set("HOME")?.join(".cache/aios"));
    let folder = set("AIOS_MODEL_DIR").or_else(|| Some(cache().or_else(home)?.join("models")))?;
    Some(folder.join(format!("{name}.gguf"))).filter(|path| path.exists())
}

/// The digests of a golden file's cases, from panels made in `folder`, or from rows.
fn digests(golden: &str, path: &Path, folder: Option<&Path>) -> BTreeMap<String, String> {
    let model = match folder {
        None => Model::load(path).expect("a sound model"),
        Some(folder) => {
            let loaded = Model::load_repacked(path, folder, &mut |_, _| true);
            let (model, repacked) = loaded.expect("a sound model");
            repacked.expect("repacked");
            model
        }
    };
    let text = fs::read_to_string(testdata().join("logits").join(format!("{golden}.jsonl")));
    let text = text.expect("a golden file");
    let cases = text.lines().map(|line| serde_json::from_str::<Case>(line).expect("a case"));
    let digest = |case: Case| {
        let options = ExecutorOptions::new(case.ids.len() + case.n_predict);
        let mut executor = Executor::new(model.clone(), options).expect("an executor");
        let record = record(&mut executor, &case.ids, case.n_predict, &|| true).expect("logits");
        let hex = record.logits_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        (case.case, hex)
    };
    cases.map(digest).collect()
}

fn names() -> impl Iterator<Item = String> {
    let files = fs::read_dir(testdata().join("logits")).expect("golden files");
    files.map(|file| {
        let path = file.expect("a file").path();
        path.file_stem().expect("a name").to_string_lossy().into_owned()
    })
}

#[test]
fn the_logits_are_those_recorded_from_rows_and_from_panels() {
    let recorded = recorded();
    let folder = tempfile::tempdir().expect("a folder");
    let mut seen = 0;
    for golden in names() {
        let Some(path) = model_path(&golden) else {
            let required = golden == REQUIRED && std::env::var_os("CI").is_some();
            assert!(!required, "{golden} is missing; fetch it with 'aios pull'");
            println!("{golden} is not here, so that its digests are not tested");
            continue;
        };
        let expected = recorded.get(&golden).expect("digests of every golden file");
        assert_eq!(&digests(&golden, &path, Some(folder.path())), expected, "{golden}, panels");
        if golden.starts_with("micro") || golden == REQUIRED {
            assert_eq!(&digests(&golden, &path, None), expected, "{golden}, rows");
        }
        seen += 1;
    }
    assert!(seen >= 8, "the micro models are always here");
}

#[test]
#[ignore = "prints the digests to record after a new version of the arithmetic"]
fn print() {
    let all: Digests = names()
        .map(|golden| {
            let path = model_path(&golden).expect("every golden model");
            let digests = digests(&golden, &path, None);
            (golden, digests)
        })
        .collect();
    println!("{}", serde_json::to_string_pretty(&all).expect("JSON"));
}
