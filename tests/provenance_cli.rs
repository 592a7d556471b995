//! Recording and running again as a person and a script see it (SPEC Z).

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aios_engine::gguf::{Gguf, TensorSpec, Writer};
use aios_kernels::Isa;
use serde_json::Value;

fn model(name: &str) -> PathBuf {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    models.join(format!("{name}-q4km.gguf"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a log, a cache and nothing else.
struct Bench {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Bench {
    fn new(model: PathBuf) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), model }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("p.ndjson")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut aios = Command::new(env!("CARGO_BIN_EXE_aios"));
        aios.env_remove("RUST_LOG").env_remove("AIOS_CATALOG");
        aios.env("AIOS_CACHE_DIR", self.folder.path().join("cache")).args(args);
        aios
    }

    fn aios(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.aios(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn run(&self, args: &[&str]) -> String {
        let (model, log) = (self.model.to_str().unwrap(), self.log());
        let run = ["run", "-m", model, "-p", "Once upon a time", "-n", "24", "--ignore-eos"];
        let run = [&run[..], &["-c", "128", "--provenance", log.to_str().unwrap()], args].concat();
        self.ok(&run)
    }

    fn provenance(&self, command: &str, args: &[&str]) -> Output {
        let log = self.log();
        self.aios(&[&["provenance", command, log.to_str().unwrap()], args].concat())
    }

    fn records(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.log()).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn prove(&self, args: &[&str]) {
        let output = self.provenance("replay", args);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{args:?}: {said}{}", text(&output.stderr));
        let all = self.records().len();
        assert!(said.contains(&format!("{all} of {all} records proved")), "{args:?}: {said}");
    }
}

/// The model at `from` with a chat template, at `to`, stamped as random.
fn with_template(from: &Path, to: PathBuf) -> PathBuf {
    const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                            {% if add_generation_prompt %}<assistant>{% endif %}";
    let bytes = fs::read(from).unwrap();
    let Gguf { mut metadata, tensors, .. } = Gguf::parse(&bytes).unwrap();
    metadata.set("tokenizer.chat_template", TEMPLATE);
    metadata.set("aios.synthetic", true);
    let specs: Vec<TensorSpec> = tensors.iter().map(TensorSpec::from).collect();
    let mut writer = Writer::new(fs::File::create(&to).unwrap(), &metadata, &specs).unwrap();
    for tensor in &tensors {
        writer.tensor(&tensor.name, tensor.data(&bytes).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    to
}

/// What `--isa` and drafts can be while running again.
fn ways() -> Vec<Vec<&'static str>> {
    let isas = Isa::available().into_iter().map(|isa| vec!["--isa", isa.name().name()]);
    isas.chain([vec!["--spec", "lookup", "-t", "1"], vec!["--no-repack", "-t", "2"]]).collect()
}

#[test]
fn every_kind_of_answer_is_proved_on_every_instruction_set() {
    let bench = Bench::new(model("micro-llama"));
    bench.run(&["--deterministic"]);
    bench.run(&["--temp", "0.9", "-s", "7", "--spec", "off"]);
    bench.run(&["--temp", "0.9", "-s", "7", "--spec", "lookup", "-t", "1"]);
    bench.run(&["-ctk", "q8_0", "-ctv", "q8_0", "-s", "3", "--repeat-penalty", "1.1"]);
    bench.run(&["--temp", "0", "--ram", "5M"]);
    let records = bench.records();
    assert_eq!(records.len(), 5);
    // Drafts leave no trace; another cache does.
    assert_eq!(records[1]["tokens"], records[2]["tokens"]);
    assert_eq!(records[1]["hidden_sha256"], records[2]["hidden_sha256"]);
    assert_eq!(records[0]["hidden_sha256"], records[4]["hidden_sha256"]);
    assert_ne!(records[3]["hidden_sha256"], records[1]["hidden_sha256"]);
    assert_eq!(records[1]["spec_decode"], Value::Null);
    assert!(records[2]["spec_decode"]["passes"].as_u64().unwrap() > 0);
    assert_eq!(records[0]["sampling"]["seed"], 42);
    assert_eq!(records[0]["sampling"]["temperature"], 0.0);
    assert_eq!(records[4]["plan"]["ram_bytes"], 5_000_000);
    for (number, record) in (1..).zip(&records) {
        assert_eq!(record["id"], number);
        assert_eq!(record["execution_mode"], "real");
        assert_eq!(record["models"]["main"], "micro-llama-q4km");
        assert_eq!(record["model_hashes"]["main"].as_str().unwrap().len(), 64);
        assert_eq!(record["tokens"]["output"], 24);
        assert_eq!(record["mb_per_token"]["source"], "counted");
        for unknown in ["router_tier", "retrieval", "layer", "error"] {
            assert_eq!(record[unknown], Value::Null, "{unknown}");
        }
        let git_rev = &record["git_rev"];
        assert!(git_rev.is_null() || !git_rev.as_str().unwrap().contains("dirty"), "{git_rev}");
    }
    ways().iter().for_each(|way| bench.prove(way));
    let mode = fs::metadata(bench.log()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn turns_of_a_conversation_that_reuse_the_cache_are_proved() {
    let bench = Bench::new(model("micro-qwen2"));
    let templated = bench.folder.path().join("chatty.gguf");
    let bench = Bench { model: with_template(&bench.model, templated), ..bench };
    let (model, log) = (bench.model.to_str().unwrap(), bench.log());
    let chat = ["chat", "-m", model, "-n", "12", "-s", "5", "-c", "512"];
    let chat = [&chat[..], &["--provenance", log.to_str().unwrap()]].concat();
    let mut command = bench.command(&chat);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"One\nTwo\n/regen\nThree\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let records = bench.records();
    assert_eq!(records.len(), 4);
    assert!(records[1..].iter().all(|r| r["tokens"]["reused"].as_u64().unwrap() > 0));
    assert!(records[0]["clock"].is_string() && records[0]["core"] == "chat");
    assert!(records.iter().all(|record| record["execution_mode"] == "synthetic"));
    ways().iter().for_each(|way| bench.prove(way));
}

#[test]
fn a_template_that_was_chosen_is_recorded() {
    let bench = Bench::new(model("micro-qwen2"));
    let (model, log) = (bench.model.to_str().unwrap(), bench.log());
    let chat = |template: &[&str]| {
        let chat = ["chat", "-m", model, "-p", "One", "-n", "4", "-s", "5", "-c", "512"];
        bench.aios(&[&chat[..], &["--provenance", log.to_str().unwrap()], template].concat())
    };
    let refused = chat(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--chat-template"), "{}", text(&refused.stderr));
    let refused = chat(&["--chat-template", "gemmma"]);
    assert!(text(&refused.stderr).contains("built in are chatml"), "{}", text(&refused.stderr));
    let own = bench.folder.path().join("own.jinja");
    fs::write(&own, "{{ messages[0].content }}:").unwrap();
    for template in ["chatml", own.to_str().unwrap()] {
        let output = chat(&["--chat-template", template]);
        assert!(output.status.success(), "{template}: {}", text(&output.stderr));
    }
    let records = bench.records();
    let digests: Vec<&str> =
        records.iter().map(|record| record["chat_template_sha256"].as_str().unwrap()).collect();
    assert!(digests.len() == 2 && digests[0] != digests[1], "{digests:?}");
    assert_eq!(records[0]["tokenizer_sha256"], records[1]["tokenizer_sha256"]);
    bench.prove(&[]);
}

#[test]
fn a_changed_record_a_cut_tail_and_another_model_are_found() {
    let bench = Bench::new(model("micro-llama"));
    for seed in ["1", "2", "3"] {
        bench.run(&["-s", seed]);
    }
    let verify = |args: &[&str]| bench.provenance("verify", args);
    let whole = verify(&["--json"]);
    let report: Value = serde_json::from_slice(&whole.stdout).unwrap();
    let head = report["head_sha256"].as_str().unwrap().to_owned();
    assert!(whole.status.success() && verify(&["--head", &head]).status.success());
    let log = fs::read_to_string(bench.log()).unwrap();
    let lines: Vec<&str> = log.lines().collect();

    fs::write(bench.log(), format!("{}\n{}\n", lines[0], lines[1])).unwrap();
    assert!(verify(&[]).status.success());
    let cut = verify(&["--head", &head]);
    assert!(!cut.status.success() && text(&cut.stderr).contains("cut off"));

    // The model file is another one now.
    let other = bench.provenance("replay", &["-m", model("micro-qwen2").to_str().unwrap()]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stdout).contains("has changed: its SHA-256 is"), "{}", text(&other.stdout));

    // A forged answer: the ids agree with their digest, and the chain is made anew.
    let mut record: Value = serde_json::from_str(lines[0]).unwrap();
    let id = record["tokens"]["output_ids"][5].as_u64().unwrap();
    record["tokens"]["output_ids"][5] = (id ^ 1).into();
    let ids = record["tokens"]["output_ids"].as_array().unwrap();
    let ids: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
    record["tokens"]["output_ids_sha256"] = aios::provenance::digests::of_ids(&ids).into();
    fs::write(bench.log(), format!("{record}\n")).unwrap();
    assert!(verify(&[]).status.success());
    let forged = bench.provenance("replay", &["--id", "1"]);
    let said = text(&forged.stdout);
    assert_eq!(forged.status.code(), Some(1));
    assert!(said.contains("DIFFERENT: token 5 of the answer was"), "{said}");

    // The same tokens, and states that were not these.
    let mut record: Value = serde_json::from_str(lines[0]).unwrap();
    record["hidden_sha256"] = "00".repeat(32).into();
    fs::write(bench.log(), format!("{record}\n")).unwrap();
    let forged = bench.provenance("replay", &[]);
    assert_eq!(forged.status.code(), Some(1));
    assert!(text(&forged.stdout).contains("OTHER states"));

    fs::write(bench.log(), format!("{}\n{}\n", lines[0], lines[2])).unwrap();
    let gap = verify(&[]);
    assert!(text(&gap.stderr).contains("record 2 is missing"), "{}", text(&gap.stderr));
}

#[test]
fn a_private_record_has_digests_and_is_not_run() {
    let bench = Bench::new(model("micro-llama"));
    bench.run(&["-s", "1", "--private"]);
    let record = &bench.records()[0];
    assert_eq!(record["tokens"]["prompt_ids"], Value::Null);
    assert_eq!(record["tokens"]["output_ids_sha256"].as_str().unwrap().len(), 64);
    let output = bench.provenance("replay", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("it is private"));
    let alone = bench.aios(&["run", "-p", "x", "--private"]);
    assert_eq!(alone.status.code(), Some(2));
    let both = bench.aios(&["run", "-p", "x", "--deterministic", "--temp", "1"]);
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn failures_are_recorded_and_a_log_that_fails_loses_no_answer() {
    let bench = Bench::new(model("micro-llama"));
    let (model, log) = (bench.model.to_str().unwrap(), bench.log());
    let long = "a b c d e f g h ".repeat(20);
    let run = |log: &str, prompt: &str| {
        let run = ["run", "-m", model, "-p", prompt, "-c", "32", "-n", "4", "--temp", "0"];
        bench.aios(&[&run[..], &["--ignore-eos", "--provenance", log]].concat())
    };
    assert_eq!(run(log.to_str().unwrap(), &long).status.code(), Some(1));
    let record = &bench.records()[0];
    assert!(record["error"].as_str().unwrap().contains("the context is full"), "{record}");
    assert_eq!((&record["stop_reason"], &record["hidden_sha256"]), (&Value::Null, &Value::Null));
    // Before any work is done, a place that cannot be one is refused.
    let refused = run(&format!("{model}/p.ndjson"), "Hi");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("provenance file") && refused.stdout.is_empty());
    // A device that is always full, in the place of the file.
    let full = bench.folder.path().join("full.ndjson");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let output = run(full.to_str().unwrap(), "Hi");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not recorded") && said.contains("full.ndjson"), "{said}");
    assert!(said.contains("make room") && !text(&output.stdout).trim().is_empty(), "{said}");
}

#[test]
fn records_are_shown_summed_up_and_exported() {
    let bench = Bench::new(model("micro-llama"));
    bench.run(&["--deterministic"]);
    bench.run(&["-s", "9"]);
    let said = text(&bench.provenance("show", &[]).stdout);
    assert_eq!(said.lines().count(), 3, "{said}");
    let one = bench.provenance("show", &["--id", "2"]);
    assert_eq!(serde_json::from_slice::<Value>(&one.stdout).unwrap()["sampling"]["seed"], 9);
    let none = bench.provenance("show", &["--id", "7"]);
    assert!(text(&none.stderr).contains("there is no record 7"), "{}", text(&none.stderr));
    let stats: Value =
        serde_json::from_slice(&bench.provenance("stats", &["--json"]).stdout).unwrap();
    assert_eq!(stats[0]["figures"]["latency_ms"]["n"], 2);
    assert_eq!(stats[0]["figures"]["fragments_found"], Value::Null);
    let log = bench.log();
    let log = log.to_str().unwrap();
    let json: Value =
        serde_json::from_str(&bench.ok(&["data", "export", log, "--format", "json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(json[0]["sha256"], json[1]["prev_sha256"]);
    let csv = bench.folder.path().join("out.csv");
    let export = ["data", "export", log, "--format", "csv", "-o", csv.to_str().unwrap()];
    bench.ok(&export);
    assert!(fs::read_to_string(&csv).unwrap().starts_with("schema,id,prev_sha256,ts,core,"));
    assert!(!bench.aios(&export).status.success(), "nothing is written over");
    assert!(bench.ok(&["data", "stats", log]).contains("latency_ms"));
}

/// SPEC N11: the tiers of the cache are part of a record, since they change results, and running it
/// again keeps them whatever the instruction set, threads and drafts.
#[test]
fn answers_with_tiers_of_the_cache_are_proved_with_them() {
    let bench = Bench::new(model("micro-qwen2"));
    let (model, log) = (bench.model.to_str().unwrap().to_owned(), bench.log());
    let prompt = "Once upon a time there was a page that grew cold. ".repeat(30);
    for more in [&[][..], &["--kv-tiers", "warm"], &["--kv-tiers", "cold", "--kv-budget", "40M"]] {
        let run = ["run", "-m", &model, "-p", &prompt, "-n", "24", "--ignore-eos", "--temp", "0"];
        let run = [&run[..], &["-c", "2048", "--provenance", log.to_str().unwrap()], more].concat();
        bench.ok(&run);
    }
    let records = bench.records();
    let tiers: Vec<&Value> = records.iter().map(|record| &record["quality"]["kv_tiers"]).collect();
    assert_eq!(tiers, [&Value::Null, &Value::from("warm"), &Value::from("cold")]);
    let states: Vec<&Value> = records.iter().map(|record| &record["hidden_sha256"]).collect();
    assert!(states[0] != states[1] && states[1] != states[2] && states[0] != states[2]);
    bench.prove(&[]);
    for args in ways() {
        bench.prove(&args);
    }
    // With other tiers it is another answer, which replay notices.
    let lines = fs::read_to_string(&log).unwrap().replace("\"cold\"", "\"warm\"");
    fs::write(&log, lines).unwrap();
    let output = bench.provenance("replay", &["--id", "3"]);
    assert!(!output.status.success(), "{}", text(&output.stdout));
    // What does not fit is said before anything runs.
    let run = ["run", "-m", &model, "-p", "x", "-n", "1"];
    let unknown = bench.aios(&[&run[..], &["--kv-tiers", "tepid"]].concat());
    let said = text(&unknown.stderr);
    assert!(unknown.status.code() == Some(2) && said.contains("off, warm, cold"), "{said}");
    let small = bench.aios(&[&run[..], &["--kv-budget", "1k"]].concat());
    let said = text(&small.stderr);
    assert!(small.status.code() == Some(1) && said.contains("--kv-budget"), "{said}");
}

/// The real model, where it is at hand: both instruction sets, with a plan that screens its head.
#[test]
fn answers_of_a_real_model_are_proved() {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let folder = std::env::var_os("AIOS_MODEL_DIR").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| home.join(".cache/aios/models"));
    let model = folder.join("smollm2-135m-instruct.gguf");
    if !model.exists() {
        assert!(std::env::var_os("CI").is_none(), "CI has the model");
        return eprintln!("skipped: {} is not there", model.display());
    }
    let bench = Bench::new(model);
    bench.run(&["--deterministic"]);
    bench.ok(&["profile", "-m", bench.model.to_str().unwrap()]);
    bench.run(&["--deterministic", "--screen", "on"]);
    bench.run(&["-s", "4", "--screen", "on", "--spec", "lookup"]);
    bench.run(&["-s", "4", "--no-plan", "--spec", "off", "--ram", "90M", "-t", "1"]);
    let records = bench.records();
    assert!(records[1]["plan"]["screen_sha256"].is_string(), "{}", records[1]["plan"]);
    assert_eq!(records[0]["hidden_sha256"], records[1]["hidden_sha256"]);
    assert_eq!(records[2]["hidden_sha256"], records[3]["hidden_sha256"]);
    assert_eq!(records[2]["tokens"]["output_ids"], records[3]["tokens"]["output_ids"]);
    bench.prove(&["--screen", "on"]);
    bench.prove(&["--isa", "avx2", "--no-plan"]);
}

/// SPEC D20: what neurons below thresholds came to is proved with the same thresholds, and with no
/// others.
#[test]
fn answers_without_small_neurons_are_proved_with_their_thresholds() {
    let bench = Bench::new(model("micro-llama"));
    let made =
        bench.aios(&["profile", "-m", bench.model.to_str().unwrap(), "--quality", "aggressive"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("**chosen**"), "{}", text(&made.stdout));
    bench.run(&["--deterministic", "--threshold", "on"]);
    bench.run(&["--deterministic", "--threshold", "off"]);
    let records = bench.records();
    let table = |record: &Value| record["quality"]["ffn_thresholds_sha256"].clone();
    assert_eq!(table(&records[0]).as_str().unwrap().len(), 64);
    assert_eq!(table(&records[1]), Value::Null);
    assert_ne!(records[0]["hidden_sha256"], records[1]["hidden_sha256"]);
    ways().iter().for_each(|way| bench.prove(way));
    let output = bench.provenance("replay", &["--no-plan"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.contains("record 1: not run: neurons were left out"), "{said}");
    assert!(said.contains("record 2: the same 24 tokens"), "{said}");
}
