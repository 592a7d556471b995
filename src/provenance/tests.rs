//! The log on a disk that forgets what was not synced, that is full, and that others write too; and
//! what verifying finds of planted damage.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// A request with `note` as what failed, so that the records of a test differ.
fn request(note: &str) -> Request {
    let text = include_str!("../../testdata/provenance/request.json");
    let request: Request = serde_json::from_str(text).unwrap();
    Request { error: Some(note.to_owned()), ..request }
}

/// A file of the double.
#[derive(Clone, Debug, Default)]
struct Bytes {
    all: Vec<u8>,
    /// How many of them outlive a crash.
    synced: usize,
}

/// A disk in memory. A crash takes what was not synced, or leaves a part of it.
#[derive(Clone, Debug, Default)]
struct Double {
    files: BTreeMap<String, Bytes>,
    /// Writes that are allowed before one fails; it gets so many bytes through.
    fails_after: Option<(usize, usize)>,
    /// Whether the disk can be written at all after that.
    broken: bool,
}

impl Double {
    /// The disk after the power came back: `torn` bytes of what was not synced are there.
    fn crash(&mut self, torn: usize) {
        for file in self.files.values_mut() {
            file.all.truncate(file.synced + torn);
            file.synced = file.all.len();
        }
        (self.fails_after, self.broken) = (None, false);
    }

    fn file(&mut self, name: &str) -> io::Result<&mut Bytes> {
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for Double {
    fn lock(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn unlock(&mut self) {}

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn length(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.files.get(name).map(|file| file.all.len() as u64))
    }

    fn read(&self, name: &str, from: u64, most: usize) -> io::Result<Vec<u8>> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let rest = file.all.get(from as usize..).unwrap_or_default();
        Ok(rest[..most.min(rest.len())].to_vec())
    }
}

impl Storage for Double {
    fn create(&mut self, name: &str) -> io::Result<()> {
        self.files.insert(name.to_owned(), Bytes::default());
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let through = match &mut self.fails_after {
            Some((0, through)) => Some(*through),
            Some((writes, _)) => {
                *writes -= 1;
                None
            }
            None => None,
        };
        let broken = through.is_some();
        let file = self.file(name)?;
        let count = through.unwrap_or(bytes.len()).min(bytes.len());
        file.all.extend_from_slice(&bytes[..count]);
        if broken {
            self.broken = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.synced = file.all.len();
        Ok(())
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::Other.into());
        }
        let file = self.file(name)?;
        file.all.truncate(length as usize);
        file.synced = file.synced.min(file.all.len());
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let file = self.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.files.insert(to.to_owned(), file);
        Ok(())
    }
}

const FOLDER: &str = "folder";

fn names() -> Names {
    Names::locate(Path::new("folder/p.ndjson")).1
}

fn log_in(double: Double, rotate: u64) -> Log<Double> {
    Log::new(double, Path::new(FOLDER), names(), rotate)
}

fn check(double: &Double, head: Option<&str>) -> (Verified, Vec<String>) {
    let mut notes = Vec::new();
    let verified = verify_in(double, Path::new(FOLDER), &names(), head, &mut |record, _| {
        notes.push(record.request.error.unwrap_or_default());
        Ok(())
    });
    (verified.unwrap(), notes)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is written between crashes, in whatever state they leave the disk: what was
    /// acknowledged is there, in order, and the chain is whole.
    #[test]
    fn nothing_acknowledged_is_lost(
        steps in prop::collection::vec((1_usize..5, 0_usize..3, 0_usize..4000), 1..6),
        rotate in prop_oneof![Just(1_u64 << 30), Just(9000)],
    ) {
        let mut double = Double::default();
        let mut acknowledged = Vec::new();
        let mut number = 0;
        for (writes, before, torn) in steps {
            double.fails_after = Some((before, torn));
            let mut log = log_in(double, rotate);
            for _ in 0..writes {
                number += 1;
                let note = number.to_string();
                match log.append(request(&note)) {
                    Ok(_) => acknowledged.push(note),
                    Err(error) => prop_assert!(error.to_string().contains("make room"), "{error}"),
                }
            }
            double = log.storage().clone();
            double.crash(torn);
            if !double.files.is_empty() {
                let (verified, notes) = check(&double, None);
                prop_assert_eq!(&verified.faults, &[]);
                // A write that failed when all its bytes were through may be there after all.
                let known: Vec<_> = notes.iter().filter(|n| acknowledged.contains(n)).collect();
                prop_assert_eq!(known, acknowledged.iter().collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_torn_line_is_reported_and_stays_beside_what_follows() {
    let mut log = log_in(Double::default(), 1 << 30);
    let first = log.append(request("one")).unwrap();
    let mut double = log.storage().clone();
    let torn = b"{\"schema\":1,\"id\":2,\"prev";
    double.file("p.ndjson").unwrap().all.extend_from_slice(torn);
    let (verified, notes) = check(&double, Some(&first.sha256));
    assert_eq!((verified.faults.len(), verified.torn.len(), notes.len()), (0, 1, 1));
    assert_eq!((verified.torn[0].at.line, verified.torn[0].bytes), (2, torn.len() as u64));
    let mut log = log_in(double, 1 << 30);
    assert_eq!(log.append(request("two")).unwrap().id, 2);
    let (verified, notes) = check(log.storage(), Some(&first.sha256));
    assert_eq!((verified.faults.len(), verified.torn.len()), (0, 1));
    assert_eq!((notes, verified.since_head), (vec!["one".to_owned(), "two".to_owned()], Some(1)));
    // A record that lacks only its line break was complete: it stays a record.
    let mut double = log.storage().clone();
    double.file("p.ndjson").unwrap().all.pop();
    let mut log = log_in(double, 1 << 30);
    assert_eq!(log.append(request("three")).unwrap().id, 3);
    assert_eq!(check(log.storage(), None).1, ["one", "two", "three"]);
}

/// Three records, and the lines of their file.
fn three() -> (Double, Vec<Vec<u8>>) {
    let mut log = log_in(Double::default(), 1 << 30);
    for note in ["one", "two", "three"] {
        log.append(request(note)).unwrap();
    }
    let double = log.storage().clone();
    let lines = double.files["p.ndjson"].all.split_inclusive(|b| *b == b'\n');
    let lines = lines.map(<[u8]>::to_vec).collect();
    (double, lines)
}

fn faults(lines: &[Vec<u8>], head: Option<&str>) -> Vec<Fault> {
    let mut double = Double::default();
    double.create("p.ndjson").unwrap();
    double.append("p.ndjson", &lines.concat()).unwrap();
    check(&double, head).0.faults
}

#[test]
fn planted_damage_is_found() {
    let (double, lines) = three();
    let head = check(&double, None).0.head_sha256.unwrap();
    assert_eq!(faults(&lines, Some(&head)), []);
    let changed = |line: usize, from: &str, to: &str| {
        let mut lines = lines.clone();
        let text = String::from_utf8(lines[line].clone()).unwrap();
        assert!(text.contains(from));
        lines[line] = text.replacen(from, to, 1).into_bytes();
        lines
    };
    for edit in [("two", "TWO"), ("\"seed\":42", "\"seed\":43"), ("\"output\":2", "\"output\":3")] {
        let found = faults(&changed(1, edit.0, edit.1), None);
        assert!(matches!(found[..], [Fault::Changed { id: 3, .. }]), "{edit:?}: {found:?}");
    }
    let gone = faults(&[lines[0].clone(), lines[2].clone()], None);
    assert!(matches!(gone[..], [Fault::Missing { from: 2, to: 2, .. }]), "{gone:?}");
    let begun = faults(&lines[1..], None);
    assert!(matches!(begun[..], [Fault::Missing { from: 1, to: 1, .. }]), "{begun:?}");
    let swapped = faults(&[lines[1].clone(), lines[0].clone(), lines[2].clone()], None);
    assert!(swapped.iter().any(|fault| matches!(fault, Fault::Order { .. })), "{swapped:?}");
    let unreadable = faults(&changed(1, "{", "x"), None);
    assert!(matches!(unreadable[..], [Fault::Missing { from: 2, .. }]), "{unreadable:?}");
    let other = faults(&changed(2, "\"schema\":1", "\"schema\":9"), None);
    assert!(other[0].to_string().contains("version 9"), "{other:?}");
    let lacking = faults(&changed(2, "\"core\"", "\"kern\""), None);
    assert!(lacking[0].to_string().contains("missing field `core`"), "{lacking:?}");
    // A cut tail is a sound log to all but those who know its head; so is a changed last record.
    assert_eq!(faults(&lines[..2], None), []);
    assert_eq!(faults(&lines[..2], Some(&head)), [Fault::Head { sha256: head.clone() }]);
    assert_eq!(faults(&changed(2, "three", "3"), Some(&head)).len(), 1);
}

#[test]
fn files_are_rotated_and_the_chain_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/p.ndjson");
    let mut log = Log::open(&path, 5000).unwrap();
    let ids: Vec<u64> = (0..9).map(|n| log.append(request(&n.to_string())).unwrap().id).collect();
    assert_eq!(ids, (1..=9).collect::<Vec<_>>());
    let verified = verify(&path, None, &mut |_, _| Ok(())).unwrap();
    assert_eq!((verified.records, &verified.faults[..]), (9, &[][..]));
    assert!(verified.files.len() > 2, "{:?}", verified.files);
    assert!(verified.files[0].ends_with("p.000001.ndjson"));
    for file in &verified.files {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::metadata(file).unwrap().len() <= 5000);
    }
    // A crash between giving the old file its name and making the new one.
    fs::rename(&path, folder.path().join("new/p.000099.ndjson")).unwrap();
    assert_eq!(Log::open(&path, 5000).unwrap().append(request("on")).unwrap().id, 10);
    fs::remove_file(&verified.files[1]).unwrap();
    let found = verify(&path, None, &mut |_, _| Ok(())).unwrap().faults;
    assert!(matches!(found[..], [Fault::Missing { .. }]), "{found:?}");
}

#[test]
fn threads_and_logs_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let folder = folder.path();
            scope.spawn(move || {
                let mut log = Log::open(folder, 20_000).unwrap();
                for n in 0..20 {
                    log.append(request(&format!("{writer} {n}"))).unwrap();
                }
            });
        }
    });
    let verified = verify(folder.path(), None, &mut |_, _| Ok(())).unwrap();
    assert_eq!((verified.records, verified.last_id, verified.faults.len()), (80, Some(80), 0));
}

#[test]
fn a_place_that_cannot_be_written_is_said_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Log::open(&file.join("p.ndjson"), 5000).unwrap_err().to_string();
    assert!(error.contains("cannot open the provenance file") && error.contains("p.ndjson"));
    for (kind, remedy) in [
        (io::ErrorKind::StorageFull, "make room"),
        (io::ErrorKind::PermissionDenied, "a folder that you may write"),
        (io::ErrorKind::ReadOnlyFilesystem, "a folder that you may write"),
    ] {
        let error = ProvenanceError::io("write", &file, kind.into());
        assert!(error.to_string().contains(remedy), "{error}");
    }
    let missing = verify(&folder.path().join("none.ndjson"), None, &mut |_, _| Ok(()));
    assert!(missing.unwrap_err().to_string().contains("none.ndjson"));
    // Files that others may read are theirs no longer once they are written to.
    let open = folder.path().join("open.ndjson");
    fs::write(&open, "").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    Log::open(&open, 5000).unwrap().append(request("one")).unwrap();
    assert_eq!(fs::metadata(&open).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_record_survives_json_and_unknown_figures_stay_null() {
    let one = request("x");
    let text = serde_json::to_string(&one).unwrap();
    assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), one);
    for key in ["ts", "core", "execution_mode", "git_rev", "env", "models", "model_hashes", "quant"]
    {
        assert!(text.contains(&format!("\"{key}\":")), "{key}");
    }
    for key in ["router_tier", "retrieval", "hidden_sha256", "mb_per_token", "stop_reason"] {
        assert!(text.contains(&format!("\"{key}\":null")), "{key}: {text}");
    }
    assert_eq!(one.sampling.temperature.to_bits(), 0.8_f32.to_bits());
    assert_eq!(one.sampling.seed, 42);
}

#[test]
fn options_are_checked() {
    assert_eq!(Options::default().check(), Ok(()));
    let small = Options { rotate_bytes: 10, ..Options::default() };
    assert!(small.check().unwrap_err().contains("rotate_bytes"));
    let unnamed = Options { path: Some("".into()), ..Options::default() };
    assert!(unnamed.check().unwrap_err().contains("path"));
    assert!(toml::from_str::<Options>("rotate = 1").is_err());
}

#[test]
fn a_difference_names_the_first_token_and_the_environment() {
    assert_eq!(first_difference(&[1, 2, 3], &[1, 2, 3]), None);
    let at = |a: &[u32], b: &[u32]| first_difference(a, b).unwrap();
    let want = Difference { index: 1, recorded: Some(2), replayed: Some(9) };
    assert_eq!(at(&[1, 2, 3], &[1, 9, 3]), want);
    assert_eq!(at(&[1], &[1, 2]), Difference { index: 1, recorded: None, replayed: Some(2) });
    let then = request("x");
    let mut now = then.env.clone();
    assert_eq!(changes(&then, &now, then.git_rev.as_deref(), then.dirty_tree), []);
    now.kernels = Some("scalar".to_owned());
    let found = changes(&then, &now, None, then.dirty_tree);
    let fields: Vec<_> = found.iter().map(|change| (change.field, change.now.as_str())).collect();
    assert_eq!(fields, [("git_rev", "unknown"), ("env.kernels", "scalar")]);
}

#[test]
fn what_cannot_be_run_again_is_said() {
    let sound = Request { error: None, ..request("") };
    assert_eq!(ids(&sound).unwrap().1, [5, 6]);
    assert!(matches!(ids(&request("x")), Err(Unprovable::Failed(_))));
    let with = |change: &dyn Fn(&mut Request)| {
        let mut changed = sound.clone();
        change(&mut changed);
        ids(&changed).unwrap_err()
    };
    assert_eq!(with(&|of| of.tokens.output_ids = None), Unprovable::Private);
    assert_eq!(with(&|of| of.execution_mode = ExecutionMode::Mock), Unprovable::Mock);
    let edited = with(&|of| of.tokens.output_ids = Some(vec![5, 7]));
    assert_eq!(edited, Unprovable::Inconsistent("output ids"));
}
