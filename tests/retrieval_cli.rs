//! `aios memory` as a program: what it prints, and that what it acknowledged outlives it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use aios::memory::Store;
use serde_json::Value;
use tempfile::TempDir;

struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.at("data/memory.sqlite3")
    }

    /// The program with a data folder of its own, which it makes.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
        command.arg("memory").args(args).current_dir(self.folder.path());
        command.env("AIOS_DATA_DIR", self.at("data")).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(args)).unwrap()
    }

    /// The exit code and the error of a command that fails.
    fn failure(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn documents_are_imported_found_forgotten_and_exported() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.at("docs")).unwrap();
    let ferry = "# Ferry\n\nIt leaves at nine.\n\n## Winter\n\nIce keeps it in the harbour.";
    fs::write(scratch.at("docs/ferry.md"), ferry).unwrap();
    fs::write(scratch.at("docs/copy.md"), ferry).unwrap();
    fs::write(scratch.at("docs/scan.pdf"), "%PDF-1.7").unwrap();
    let output = scratch.run(&["import", "docs"]);
    let (said, out) = (String::from_utf8(output.stderr).unwrap(), output.stdout);
    assert!(output.status.success() && said.contains("scan.pdf is a PDF"), "{said}");
    let out = String::from_utf8(out).unwrap();
    let copy = scratch.at("docs/copy.md").display().to_string();
    assert!(out.contains(&format!("docs/ferry.md: known as {copy}")), "{out}");
    assert!(out.ends_with(
        "2 fragments of 1 documents are new; 1 documents were known, 1 files were refused.\n"
    ));
    let (code, said) = scratch.failure(&["import", "docs/scan.pdf"]);
    assert!(code == 1 && said.contains("pdftotext"), "{said}");

    let found = scratch.json(&["search", "--json", "--use", "ice", "in", "the", "harbour"]);
    assert_eq!((&found["backend"], &found["mode"]), (&"carma".into(), &"bm25".into()));
    assert_eq!((&found["fragments_found"], &found["fragments_relevant"]), (&1.into(), &1.into()));
    assert_eq!(found["fragments"][0]["title"], "Ferry > Winter");
    assert!(found["note"].as_str().unwrap().contains("no embedder"));
    let text = scratch.stdout(&["search", "--backend", "bm25", "ice"]);
    assert!(
        text.contains("docs/copy.md: Ferry > Winter") && text.contains("BM25 place 1"),
        "{text}"
    );
    let none = scratch.stdout(&["search", "zeppelin"]);
    assert_eq!(none, "0 fragments found, 0 relevant (carma, by words).\n");

    let stats = scratch.json(&["stats", "--check", "--json"]);
    assert_eq!((&stats["fragments"], &stats["uses"]), (&2.into(), &1.into()));
    assert_eq!(stats["check"]["faults"], Value::Array(vec![]));
    assert!(scratch.stdout(&["stats", "--check"]).contains("The file is sound."));

    // What is exported can be added again, to a store of another place.
    scratch.stdout(&["export", "-o", "all.jsonl"]);
    let mode = fs::metadata(scratch.at("all.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut add = scratch.command(&["add", "--jsonl", "--store", "copy.sqlite3"]);
    add.stdin(fs::File::open(scratch.at("all.jsonl")).unwrap());
    assert_eq!(String::from_utf8(add.output().unwrap().stdout).unwrap(), "1\n2\n");
    let copied = scratch.json(&["search", "--store", "copy.sqlite3", "--json", "winter ice"]);
    assert_eq!(copied["fragments"][0]["source"], copy);

    assert_eq!(scratch.failure(&["forget", "1", "99"]).0, 1);
    assert_eq!(scratch.json(&["forget", "--source", "docs/copy.md", "--json"])["forgotten"], 2);
    assert_eq!(scratch.stdout(&["export"]), "");
}

#[test]
fn a_changed_document_is_kept_beside_unless_it_replaces() {
    let scratch = Scratch::new();
    let import = |text: &str, args: &[&str]| {
        fs::write(scratch.at("a.txt"), text).unwrap();
        scratch.stdout(&[&["import", "a.txt"], args].concat())
    };
    import("The first version.", &[]);
    assert!(
        import("The second version.", &[]).contains("1 fragments of earlier versions are kept")
    );
    let replaced = import("The third version.", &["--replace"]);
    assert!(replaced.contains("2 fragments of earlier versions are forgotten"), "{replaced}");
    assert_eq!(scratch.json(&["stats", "--json"])["fragments"], 1);
}

#[test]
fn wrong_usage_and_missing_stores_say_what_to_do() {
    let scratch = Scratch::new();
    let (code, said) = scratch.failure(&["search", "x"]);
    assert!(code == 1 && said.contains("aios memory import"), "{said}");
    assert!(!scratch.store().exists(), "looking makes no store");
    assert_eq!(scratch.stdout(&["add", "a note", "--source", "me"]), "1\n");
    assert_eq!(scratch.stdout(&["add", "a note"]), "1 (known)\n");
    for (args, code) in [
        (&["forget"][..], 2),
        (&["forget", "--all"], 2),
        (&["search"], 2),
        (&["search", "x", "--backend", "other"], 2),
        (&["search", "x", "-k", "0"], 2),
        (&["search", "x", "--max-tokens", "9"], 2),
        (&["import", "nowhere"], 1),
        (&["import", ".", "--chunk-chars", "5"], 2),
        (&["add", " "], 1),
        (&["embed"], 2),
        (&["bench", "--fragments", "0"], 2),
    ] {
        assert_eq!(scratch.failure(args).0, code, "{args:?}");
    }
    fs::write(scratch.at("other"), "not a database at all").unwrap();
    let (code, said) = scratch.failure(&["stats", "--store", "other"]);
    assert!(code == 1 && said.contains("is not a memory of this program"), "{said}");
}

#[test]
fn the_evaluation_is_a_command() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.at("docs")).unwrap();
    fs::write(scratch.at("docs/a.md"), "The ferry leaves at nine.").unwrap();
    let question = serde_json::json!({
        "id": "a", "split": "held_out", "class": "words", "question": "when does the ferry leave",
        "gold": [{ "document": "a.md", "quote": "leaves at nine" }],
    })
    .to_string();
    fs::write(scratch.at("q"), &question).unwrap();
    let args = ["evaluate", "--documents", "docs", "--questions", "q"];
    let (code, said) = scratch.failure(&args);
    assert!(code == 1 && said.contains("Simple_RAG needs an embedder"), "{said}");
    let alone = [&args[..], &["--words-alone"]].concat();
    assert!(scratch.stdout(&alone).contains("| held out | 1 | carma | 1.000 | 1.000 | 1.000 |"));
    fs::write(scratch.at("q"), question.replace("leaves at nine", "leaves at noon")).unwrap();
    let (code, said) = scratch.failure(&alone);
    assert!(code == 1 && said.contains("no fragment of a.md contains"), "{said}");
}

/// What a writer acknowledged before it was killed: numbers and texts.
type Acknowledged = Vec<(i64, String)>;

/// Starts a writer, feeds it texts as fast as it takes them, and kills it `after` its first
/// acknowledgement.
fn killed_writer(scratch: &Scratch, name: &str, after: Duration) -> Acknowledged {
    let mut child = scratch
        .command(&["add", "--jsonl", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let text = |n: usize| format!("{name} number {n} {}", "word ".repeat(n * 37 % 400));
    let feeder = thread::spawn({
        let name = name.to_owned();
        move || {
            for n in 0.. {
                let text = format!("{name} number {n} {}", "word ".repeat(n * 37 % 400));
                // The pipe breaks when the writer is gone.
                if writeln!(stdin, "{}", serde_json::json!({ "text": text })).is_err() {
                    break;
                }
            }
        }
    });
    let acknowledged = acknowledgements(&mut child, stdout, after);
    child.wait().unwrap();
    feeder.join().unwrap();
    acknowledged.into_iter().enumerate().map(|(n, id)| (id, text(n))).collect()
}

fn acknowledgements(
    child: &mut Child,
    mut stdout: BufReader<std::process::ChildStdout>,
    after: Duration,
) -> Vec<i64> {
    let mut ids = Vec::new();
    thread::scope(|scope| {
        let mut line = String::new();
        let mut killer = Some(child);
        loop {
            line.clear();
            let read = stdout.read_line(&mut line).unwrap();
            if read == 0 || !line.ends_with('\n') {
                break;
            }
            let added: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(added["known"], false);
            ids.push(added["id"].as_i64().unwrap());
            if let Some(child) = killer.take() {
                scope.spawn(move || {
                    thread::sleep(after);
                    // SIGKILL, on every Unix.
                    child.kill().unwrap();
                });
            }
        }
    });
    ids
}

fn assert_all_there(store: &Path, acknowledged: &HashMap<i64, String>) {
    let store = Store::open_existing(store).unwrap();
    for (id, text) in acknowledged {
        let fragment = store.fragment(*id).unwrap();
        let there = fragment.as_ref().map(|fragment| fragment.text.trim_end());
        assert_eq!(there, Some(text.trim_end()), "fragment {id} was acknowledged");
    }
    assert_eq!(store.check().unwrap().faults, [""; 0]);
}

/// SPEC.md, V1: kills `rounds` times two writers at once, while other threads keep the processors
/// busy, and looks for everything that was ever acknowledged.
fn kill_writers(rounds: usize) {
    let scratch = Scratch::new();
    let done = AtomicBool::new(false);
    let mut acknowledged = HashMap::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::black_box((0..10_000_u64).sum::<u64>());
                }
            });
        }
        for round in 0..rounds {
            let after =
                |writer: usize| Duration::from_millis((round * 13 + writer * 29) as u64 % 71);
            let write = |writer| {
                let name = format!("round {round} writer {writer}");
                killed_writer(&scratch, &name, after(writer))
            };
            let both = thread::scope(|scope| {
                let other = scope.spawn(|| write(1));
                [write(0), other.join().unwrap()]
            });
            for (id, text) in both.into_iter().flatten() {
                assert_eq!(acknowledged.insert(id, text), None, "{id} was given twice");
            }
            if round % 10 == 0 || round + 1 == rounds {
                assert_all_there(&scratch.store(), &acknowledged);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(acknowledged.len() >= 2 * rounds, "only {} were acknowledged", acknowledged.len());
    // The comparison is one that can fail.
    let wrong = HashMap::from([(*acknowledged.keys().next().unwrap(), "another text".to_owned())]);
    assert!(std::panic::catch_unwind(|| assert_all_there(&scratch.store(), &wrong)).is_err());
}

#[test]
fn killed_writers_lose_nothing_acknowledged() {
    kill_writers(6);
}

#[test]
#[ignore = "kills 240 writers, which takes a minute or two"]
fn many_killed_writers_lose_nothing_acknowledged() {
    kill_writers(120);
}
