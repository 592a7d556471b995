//! `aios baseline`, `aios levers`, `aios compliance` and `aios catalog` as a script sees them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use aios_engine::gguf::Gguf;
use serde_json::{Value, json};

const LLAMA: &str = "micro-llama-q4km.gguf";
const RELU: &str = "micro-relu-q8.gguf";

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models").join(name)
}

/// A folder for reports, in which there are no plans of models either.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `aios COMMAND -m MODEL ARGS`.
    fn run(&self, command: &str, model: &Path, args: &[&str]) -> Output {
        let mut aios = self.aios(command);
        aios.arg("-m").arg(model).args(["-t", "2"]).args(args).output().unwrap()
    }

    fn aios(&self, command: &str) -> Command {
        let mut aios = Command::new(env!("CARGO_BIN_EXE_aios"));
        aios.env_remove("RUST_LOG").env_remove("AIOS_CATALOG").arg(command);
        aios.env("AIOS_CACHE_DIR", self.path("cache"));
        aios
    }

    /// The report of `aios compliance` on a model, for an assumed machine.
    fn comply(&self, model: &Path, args: &[&str]) -> Value {
        let args = [&["--json", "--hardware-profile", "desktop-36mb"], args].concat();
        let output = self.run("compliance", model, &args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A measure of a requirement.
fn measure<'a>(report: &'a Value, requirement: &str, what: &str) -> &'a Value {
    let mut measures = finding(report, requirement)["measures"].as_array().unwrap().iter();
    measures.find(|measure| measure["what"] == what).unwrap_or_else(|| panic!("{what}: {report}"))
}

fn finding<'a>(report: &'a Value, requirement: &str) -> &'a Value {
    let mut findings = report["findings"].as_array().unwrap().iter();
    findings.find(|finding| finding["requirement"] == requirement).unwrap()
}

#[test]
fn a_baseline_and_a_report_become_a_page() {
    let desk = Desk::new();
    let out = desk.path("report");
    let folder = ["--out", out.to_str().unwrap()];
    let sizes = ["--runs", "2", "--tokens", "4", "--cache", "desktop-36mb"];
    let output = desk.run("baseline", &model(LLAMA), &[&sizes[..], &folder].concat());
    let baseline = desk.json("report/baseline.json");
    // Whether so few tokens of so small a model are steady is the machine's affair.
    let passes = baseline["passes"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!passes)), "{}", stderr(&output));
    assert_eq!(passes, baseline["failures"].as_array().unwrap().is_empty(), "{baseline}");
    assert_eq!(baseline["plan"], json!({"runs": 2, "tokens": 4}));
    assert_eq!(baseline["runs"].as_array().unwrap().len(), 2);
    assert_eq!(baseline["mb_per_token"]["counted"]["cv"], 0.0, "counted bytes do not vary");
    assert!(baseline["mb_per_token"]["simulated"]["mb_per_token"].as_f64().unwrap() >= 0.0);
    assert!(out.join("baseline.md").exists());

    let args = [&folder[..], &["--hardware-profile", "desktop-36mb"]].concat();
    let output = desk.run("compliance", &model(LLAMA), &args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2, "two paths");
    let report = desk.json("report/compliance.json");
    assert_eq!((&report["schema"], &report["tier"]), (&1.into(), &"compatible".into()));
    assert_eq!(report["model"]["sha256"], baseline["model"]["sha256"]);
    assert_eq!(finding(&report, "R1")["verdict"], "fail");
    assert!(measure(&report, "R5", "profiler start")["value"].is_null());
    assert!(report["measured_reduction"].is_null());
    assert!(fs::read_to_string(out.join("compliance.md")).unwrap().contains("not measured"));

    let page = desk.path("CATALOG.md");
    let output = desk.aios("catalog").arg(&out).arg("--out").arg(&page).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = fs::read_to_string(page).unwrap();
    let row = page.lines().find(|line| line.starts_with(&format!("| {LLAMA} |"))).unwrap();
    assert!(row.ends_with(&format!(" | {} |", env!("CARGO_PKG_VERSION"))), "{row}");
    assert_eq!(row.contains("did not pass"), !passes, "{row}");
    assert_eq!(page.contains("\n## Baselines that did not pass\n"), !passes, "{page}");
    let printed = desk.aios("catalog").arg(&out).output().unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), page);
    let missing = desk.aios("catalog").arg(desk.path("nowhere")).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("`aios compliance --out` writes one"));
}

#[test]
fn zeros_are_measured_and_too_few_prompts_prove_nothing() {
    let desk = Desk::new();
    let prompts = desk.path("prompts.jsonl");
    let r1 = |count: u32| {
        let mut lines = String::new();
        for i in 0..count {
            writeln!(lines, "{{\"text\": \"{i} bytes of the file are read.\"}}").unwrap();
        }
        fs::write(&prompts, lines).unwrap();
        let args = ["--calibration", prompts.to_str().unwrap(), "--tokens", "8"];
        let report = desk.comply(&model(RELU), &args);
        let fraction = measure(&report, "R1", "mean zero fraction");
        assert_eq!(fraction["source"], "measured");
        let zeros = fraction["value"].as_f64().unwrap();
        assert_eq!(measure(&report, "R1", "calibration prompts")["value"], f64::from(count));
        (zeros, finding(&report, "R1").clone())
    };
    let (zeros, few) = r1(3);
    assert!((0.0..=1.0).contains(&zeros), "{zeros}");
    assert_eq!(few["verdict"], "unknown", "{few}");
    assert!(
        few["evidence"].as_str().unwrap().contains("3 different prompts prove nothing"),
        "{few}"
    );
    let (zeros, enough) = r1(1000);
    assert!((0.70..1.0).contains(&zeros), "{zeros}");
    assert_eq!(enough["verdict"], "pass", "{enough}");
}

#[test]
fn a_start_is_timed_where_a_manifest_says_what_lies_where() {
    let desk = Desk::new();
    let copy = desk.path("ordered.gguf");
    fs::copy(model(LLAMA), &copy).unwrap();
    let header = Gguf::parse(&fs::read(&copy).unwrap()).unwrap();
    let mut tensors: Vec<_> = header.tensors.iter().collect();
    tensors.sort_by_key(|tensor| tensor.range.start);
    let blocks = tensors.iter().map(|tensor| {
        let (offset, size) = (tensor.range.start, tensor.bytes());
        json!({
            "id": tensor.name, "access_frequency": 1.0, "tier": "HOT",
            "offset": offset, "size": size,
        })
    });
    let blocks: Vec<Value> = blocks.collect();
    let manifest = json!({"aios_contract_version": "1.0", "blocks": blocks});
    fs::write(desk.path("ordered.manifest.json"), manifest.to_string()).unwrap();
    let report = desk.comply(&copy, &[]);
    let start = measure(&report, "R5", "profiler start");
    let seconds = start["value"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds < 60.0, "{start}");
    assert_eq!((&start["source"], &start["unit"]), (&"measured".into(), &"s".into()));
    assert_eq!(finding(&report, "R5")["verdict"], "pass", "{report}");
    fs::write(desk.path("ordered.manifest.json"), "{}").unwrap();
    let broken = desk.comply(&copy, &[]);
    assert_eq!(finding(&broken, "R5")["verdict"], "fail", "{broken}");
    assert!(measure(&broken, "R5", "profiler start")["value"].is_null());
}

#[test]
fn what_levers_save_is_taken_from_their_report_of_this_model() {
    let desk = Desk::new();
    let out = desk.path("levers");
    let sizes = ["--depth", "32", "-n", "2", "--rounds", "1", "--prompt", "0", "--windows", "0"];
    let folder = ["--out", out.to_str().unwrap()];
    let output = desk.run("levers", &model(LLAMA), &[&sizes[..], &folder].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let path = out.join("levers.json");
    let file = ["--levers", path.to_str().unwrap()];
    let report = desk.comply(&model(LLAMA), &file);
    // Without a plan there is nothing to save with, which is said.
    assert_eq!(report["measured_reduction"]["percent"], 0.0);
    let of = report["measured_reduction"]["of"].as_str().unwrap();
    assert!(of.contains("`aios profile`"), "{of}");

    let mut levers = desk.json("levers/levers.json");
    let lines = levers["levers"].as_array_mut().unwrap();
    let line = lines.iter_mut().find(|line| line["name"] == "exact levers together").unwrap();
    let figures = |bytes: f64| json!({"counted_bytes_per_token": bytes});
    *line = json!({
        "name": "exact levers together", "setting": "", "state": "measured",
        "off": figures(8e6), "on": figures(5e6),
    });
    fs::write(&path, levers.to_string()).unwrap();
    let report = desk.comply(&model(LLAMA), &file);
    assert_eq!(report["measured_reduction"]["percent"], 37.5);

    let other = desk.run("compliance", &model(RELU), &file);
    assert_eq!(other.status.code(), Some(1));
    let said = stderr(&other);
    assert!(said.contains("SHA-256") && said.contains("run `aios levers` on this one"), "{said}");
    levers["schema"] = 99.into();
    fs::write(&path, levers.to_string()).unwrap();
    let later = desk.run("compliance", &model(LLAMA), &file);
    assert_eq!(later.status.code(), Some(1));
    assert!(stderr(&later).contains("schema 99"), "{}", stderr(&later));
}

#[test]
fn the_same_prompt_again_proves_nothing_more() {
    let desk = Desk::new();
    let prompts = desk.path("prompts.jsonl");
    fs::write(&prompts, "{\"text\": \"Once more.\"}\n".repeat(1000)).unwrap();
    let report = desk.comply(&model(RELU), &["--calibration", prompts.to_str().unwrap()]);
    let r1 = finding(&report, "R1");
    assert_eq!(r1["verdict"], "unknown", "{r1}");
    assert!(r1["evidence"].as_str().unwrap().contains("1 different prompts prove nothing"), "{r1}");
}

#[cfg(unix)]
#[test]
fn a_manifest_that_is_no_file_fails_r5_and_nothing_waits_for_it() {
    let desk = Desk::new();
    let copy = desk.path("odd.gguf");
    fs::copy(model(LLAMA), &copy).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(desk.path("odd.manifest.json")).unwrap();
    let evidence = |file: &Path| {
        let r5 = finding(&desk.comply(file, &[]), "R5").clone();
        assert_eq!(r5["verdict"], "fail", "{r5}");
        r5["evidence"].as_str().unwrap().to_owned()
    };
    let said = evidence(&copy);
    assert!(said.contains("not a regular file"), "{said}");
    // The name of a manifest beside it would be longer than names can be.
    let long = desk.path(&format!("{}.gguf", "b".repeat(245)));
    fs::copy(model(LLAMA), &long).unwrap();
    let said = evidence(&long);
    assert!(said.contains("no manifest"), "{said}");
}

#[test]
fn what_cannot_be_written_or_measured_is_said_before_the_work() {
    let desk = Desk::new();
    let blocked = desk.path("file");
    fs::write(&blocked, "no folder").unwrap();
    let out = blocked.join("report");
    for command in ["baseline", "compliance", "levers", "headroom"] {
        let mut args = vec!["--out", out.to_str().unwrap()];
        let prompts = blocked.to_str().unwrap();
        if command == "headroom" {
            args.extend(["--calibration", prompts]);
        }
        let output = desk.run(command, &desk.path("no model"), &args);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(stderr(&output).contains("cannot write into"), "{command}: {}", stderr(&output));
    }
    // What shows only at the end leaves the report on stdout.
    let taken = desk.path("taken");
    fs::create_dir_all(taken.join("compliance.json")).unwrap();
    let args = ["--hardware-profile", "desktop-36mb", "--out", taken.to_str().unwrap()];
    let late = desk.run("compliance", &model(LLAMA), &args);
    assert_eq!(late.status.code(), Some(1));
    assert!(stderr(&late).contains("cannot write"), "{}", stderr(&late));
    assert!(String::from_utf8_lossy(&late.stdout).contains("Tier: **Compatible**"));
    let screened = desk.run("baseline", &model(LLAMA), &["--screen", "on"]);
    assert_eq!(screened.status.code(), Some(2), "{}", stderr(&screened));
    assert!(stderr(&screened).contains("`aios levers` measures"), "{}", stderr(&screened));
}

#[cfg(unix)]
#[test]
fn an_interrupted_baseline_says_so_by_its_exit_code() {
    let desk = Desk::new();
    let mut aios = desk.aios("baseline");
    aios.arg("-m").arg(model(LLAMA)).args(["--runs", "1000", "--tokens", "400", "--verbose"]);
    aios.args(["--cache", "desktop-36mb"]).stderr(Stdio::null()).stdout(Stdio::null());
    let mut child = aios.spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // Some runs are over by then; a thousand of them take minutes.
    std::thread::sleep(Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn reports_on_synthetic_weights_are_stamped() {
    let desk = Desk::new();
    let file = desk.path("synthetic.gguf");
    let shape = ["--shape", "smollm2-135m", "--layers", "2", "--vocab", "600"];
    let made = desk.aios("synth").args(shape).arg(&file).output().unwrap();
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let text = desk.path("text.txt");
    fs::write(&text, "What nobody has read says nothing. ".repeat(20)).unwrap();
    let text = text.to_str().unwrap();
    let printed = |command: &str, args: &[&str]| {
        let output = desk.run(command, &file, args);
        assert_eq!(output.status.code(), Some(0), "{command}: {}", stderr(&output));
        (String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output))
    };
    const STAMP: &str = "Synthetic weights: speed and bytes only";
    assert!(printed("perplexity", &["-f", text, "-c", "32"]).0.contains(STAMP));
    let json: Value =
        serde_json::from_str(&printed("perplexity", &["-f", text, "-c", "32", "--json"]).0)
            .unwrap();
    assert_eq!(json["synthetic"], true);
    let logits = printed("logits", &["--ids", "1,2"]).0;
    assert_eq!(serde_json::from_str::<Value>(&logits).unwrap()["synthetic"], true);
    let plan = desk.path("plan");
    let made = printed("profile", &["--out", plan.to_str().unwrap(), "--no-repack"]).0;
    assert!(made.contains(STAMP), "{made}");
    // Nothing can be screened for 40 of 600 rows, which is not to have read more than there is.
    let whole = made.lines().find(|line| line.starts_with("| 40 best | 1.000 |")).unwrap();
    assert!(!whole.ends_with(" 0 of 0 |"), "{whole}");
    let (_, said) = printed("run", &["-p", "x", "-n", "4", "--no-plan", "--stats", "json"]);
    let stats: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(stats["synthetic"], true, "{said}");
}

#[test]
fn the_committed_page_is_made_of_the_committed_reports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("validation");
    let mut reports: Vec<PathBuf> =
        fs::read_dir(root.join("baselines")).unwrap().map(|entry| entry.unwrap().path()).collect();
    reports.sort();
    let output = Desk::new().aios("catalog").args(reports).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = fs::read_to_string(root.join("CATALOG.md")).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), page);
}
