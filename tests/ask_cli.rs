//! The whole system as a person and a script see it: `aios ask` (SPEC O12 to O14).

#[path = "templated/mod.rs"]
mod templated;

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use templated::templated;

/// A folder with two models that can converse, a configuration, and a cache of its own.
struct House(tempfile::TempDir);

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [small, main] =
            ["micro-llama-q4km", "micro-qwen2-q4km"].map(|name| templated(name, folder.path()));
        let entry = |name: &str, path: &Path, family: &str, role: &str| {
            let file = path.file_name().unwrap().to_str().unwrap();
            format!(
                "[[model]]\nname = \"{name}\"\nfile = \"{file}\"\nfamily = \"{family}\"\n\
                 role = \"{role}\"\ncontext = 2048\n"
            )
        };
        let models =
            entry("quick", &small, "LLaMA", "small") + &entry("able", &main, "Qwen", "main");
        fs::write(folder.path().join("aios.toml"), models).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn aios(&self, lines: &str, args: &[&str]) -> Output {
        let mut aios = assert_cmd::Command::new(env!("CARGO_BIN_EXE_aios"));
        aios.env_remove("RUST_LOG").env_remove("AIOS_CATALOG");
        aios.env("AIOS_CACHE_DIR", self.0.path().join("cache"));
        aios.env("AIOS_DATA_DIR", self.0.path().join("data"));
        aios.env("AIOS_CONFIG", self.0.path().join("aios.toml"));
        aios.args(args).write_stdin(lines).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> (String, String) {
        self.said("", args)
    }

    /// What a command that must succeed prints and says, with `lines` on stdin.
    fn said(&self, lines: &str, args: &[&str]) -> (String, String) {
        let output = self.aios(lines, args);
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?}: {said}");
        (out, said)
    }

    /// The report of one request of a few tokens.
    fn ask(&self, args: &[&str]) -> Value {
        let ask = ["ask", "--json", "-n", "6", "--deterministic"];
        serde_json::from_str(&self.ok(&[&ask[..], args].concat()).0).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn requests_go_to_the_model_of_their_tier_and_their_records_are_proved() {
    let house = House::new();
    let log = house.path("p.ndjson");
    let hello = house.ask(&["--provenance", &log, "Hello!"]);
    assert_eq!((&hello["model"], &hello["route"]["tier"]), (&"quick".into(), &"trivial".into()));
    let why = house.ask(&["--provenance", &log, "Explain why the sky is blue."]);
    assert_eq!((&why["model"], &why["route"]["tier"]), (&"able".into(), &"moderate".into()));
    let forced = house.ask(&["--provenance", &log, "--tier", "trivial", "Explain why."]);
    assert_eq!((&forced["model"], &forced["route"]["basis"]), (&"quick".into(), &"forced".into()));
    let (shown, _) = house.ok(&["data", "export", &log, "--format", "json"]);
    let records: Vec<Value> = serde_json::from_str(&shown).unwrap();
    let tiers: Vec<&str> = records.iter().map(|r| r["router_tier"].as_str().unwrap()).collect();
    assert_eq!(tiers, ["trivial", "moderate", "trivial"]);
    assert!(records.iter().all(|record| record["core"] == "luna" && record["retrieval"].is_null()));
    assert_eq!(records[2]["router"]["forced"], true);
    let (proved, _) = house.ok(&["provenance", "replay", &log, "--all"]);
    assert!(proved.contains("3 of 3 records proved"), "{proved}");
}

#[test]
fn what_memory_knows_is_quoted_and_a_broken_memory_loses_no_answer() {
    let house = House::new();
    let (notes, store, log) = (house.path("ferry.md"), house.path("m.db"), house.path("p.ndjson"));
    fs::write(&notes, "# Ferry\n\nThe night ferry leaves Elmsund at nine.\n").unwrap();
    // The commands of memory and the answers find the store where the configuration says.
    let configuration = house.path("aios.toml");
    let models = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, models + "[memory]\nstore = \"m.db\"\n").unwrap();
    house.ok(&["memory", "import", &notes]);
    let ask = ["--provenance", &log, "Explain when the night ferry leaves Elmsund."];
    let answer = house.ask(&ask);
    assert_eq!(answer["passages_quoted"], 1);
    assert_eq!(answer["retrieval"]["fragments_found"], 1);
    fs::write(&store, "no database").unwrap();
    let answer = house.ask(&ask);
    assert_eq!(answer["passages_quoted"], 0);
    let remarks = answer["remarks"].to_string();
    assert!(remarks.contains("answered without memory"), "{remarks}");
    let lines = fs::read_to_string(&log).unwrap();
    let records: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(records[0]["retrieval"]["fragments_found"], 1);
    assert!(records[1]["retrieval"]["fragments_found"].is_null());
    assert!(records[1]["retrieval"]["degraded"].is_string());
}

#[test]
fn a_small_model_that_cannot_be_loaded_leaves_the_answer_to_main() {
    let house = House::new();
    fs::write(house.path("micro-llama-q4km.gguf"), "no model").unwrap();
    let hello = house.ask(&["Hello!"]);
    assert_eq!(hello["model"], "able");
    let remarks = hello["remarks"].to_string();
    assert!(remarks.contains("the small model cannot answer"), "{remarks}");
}

#[test]
fn instructions_of_the_user_reach_the_prompt() {
    let house = House::new();
    let tokens = |more: &[&str]| {
        let answer = house.ask(&[more, &["Hello!"]].concat());
        answer["stats"]["prompt_tokens"].as_u64().unwrap()
    };
    let bare = tokens(&["--layer", "basic"]);
    let luna = tokens(&[]);
    assert!(luna > bare + 100, "{luna} {bare}");
    assert!(tokens(&["--layer", "basic", "-sys", "Answer in Latin."]) > bare + 10);
    assert!(tokens(&["-sys", "Answer in Latin."]) > luna + 10);
}

#[test]
fn another_model_may_become_main_in_a_conversation() {
    let house = House::new();
    let talk = "Explain why.\n/model quick\nExplain why.\n/model nobody\n";
    let output = house.aios(talk, &["ask", "-n", "6", "--temp", "0"]);
    let said = text(&output.stderr);
    let [before, after] = ["answered by able", "answered by quick"].map(|by| said.find(by));
    assert!(before.is_some() && before < after, "{said}");
    assert!(said.contains("quick is the main model from now on"), "{said}");
    // A name that nobody has is an error, and a pipe ends with it.
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn unknown_memories_and_two_requests_are_wrong_usage() {
    let house = House::new();
    let output = house.aios("", &["ask", "--memory", "elephant", "Hi"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("only carma, simple_rag, bm25 and off"));
    assert_eq!(house.aios("", &["ask", "-p", "Hi", "Hi"]).status.code(), Some(2));
}
