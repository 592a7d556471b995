//! SPEC Z7: a process that is killed at any moment loses no record that it has acknowledged. The
//! writers are this program again, killed with SIGKILL while several of them write to one log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use aios::provenance::{Log, Request, verify};

const FOLDER: &str = "AIOS_TEST_LOG_FOLDER";
/// Small files, so that rotations are among the moments.
const ROTATE_BYTES: u64 = 60_000;

fn request(note: String) -> Request {
    let text = include_str!("../testdata/provenance/request.json");
    let request: Request = serde_json::from_str(text).unwrap();
    Request { error: Some(note), ..request }
}

/// Writes until it is killed, where the parent asks for it: a line on stdout acknowledges a record.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut log = Log::open(Path::new(&folder), ROTATE_BYTES).unwrap();
    let padding = "x".repeat(std::process::id() as usize % 3000);
    for number in 0.. {
        let receipt = log.append(request(format!("{number} {padding}"))).unwrap();
        let mut out = std::io::stdout().lock();
        // The parent has gone, and so should this.
        if writeln!(out, "acknowledged {} {}", receipt.id, receipt.sha256).is_err() {
            return;
        }
    }
}

fn spawn(folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "writer", "--nocapture"]).env(FOLDER, folder);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// What a writer acknowledges: digests by number.
struct Acknowledged(BufReader<ChildStdout>);

impl Iterator for Acknowledged {
    type Item = (u64, String);

    /// The next; `None` when the writer is dead and all it said was read.
    fn next(&mut self) -> Option<(u64, String)> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let said = line.split("acknowledged ").nth(1).and_then(|rest| rest.split_once(' '));
            // The last line may have been cut.
            if let Some((id, sha256)) = said
                && let Some(sha256) = sha256.strip_suffix('\n').filter(|text| text.len() == 64)
            {
                return Some((id.parse().ok()?, sha256.to_owned()));
            }
        }
    }
}

/// Kills `kills` writers, two at a time and at different moments; returns how many records they
/// had acknowledged.
fn kill(kills: u64) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let mut known: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..kills.div_ceil(2) {
        for mut writer in [spawn(folder.path()), spawn(folder.path())] {
            let mut said = Acknowledged(BufReader::new(writer.stdout.take().unwrap()));
            let mut seen = Vec::new();
            // Some are killed before their first record, most at some moment after it.
            if round % 4 != 0 {
                seen.extend(said.next());
            }
            std::thread::sleep(Duration::from_micros(311 * (round % 37)));
            writer.kill().unwrap();
            writer.wait().unwrap();
            seen.extend(said);
            for (id, sha256) in seen {
                assert_eq!(known.insert(id, sha256), None, "record {id} acknowledged twice");
            }
        }
        if folder.path().join("provenance.ndjson").exists() {
            let mut found = BTreeMap::new();
            let verified = verify(folder.path(), None, &mut |record, sha256| {
                found.insert(record.id, sha256.to_owned());
                Ok(())
            });
            assert_eq!(verified.unwrap().faults, [], "round {round}");
            for (id, sha256) in &known {
                assert_eq!(found.get(id), Some(sha256), "record {id} is lost, round {round}");
            }
        }
    }
    known.len() as u64
}

#[test]
fn a_dozen_kills_lose_nothing() {
    assert!(kill(12) >= 8, "the writers were killed before they wrote");
}

/// Takes seconds, and is run by name (CONTRIBUTING.md).
#[test]
#[ignore = "240 processes under load"]
fn hundreds_of_kills_lose_nothing() {
    let count = kill(240);
    assert!(count > 240, "{count} records");
    println!("240 kills, {count} acknowledged records, all there");
}
