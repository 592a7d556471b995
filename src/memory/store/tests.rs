//! The store: what is kept, what is refused, and what a crash takes away.

use rusqlite::Connection;

use super::*;
use crate::memory::testing::{WordEmbedder, random, scratch_store, unit_vector};
use crate::memory::{Embedder, Int8Vector};

fn chunk(text: &str) -> Chunk {
    Chunk { title: "T".to_owned(), text: text.to_owned() }
}

fn add(store: &mut Store, text: &str) -> i64 {
    store.add("notes", &[chunk(text)], None, 5).unwrap()[0].id
}

fn document<'a>(source: &'a str, content: u8) -> Document<'a> {
    Document { source, digest: [content; 32], kind: "text", encoding: "UTF-8", bytes: 9 }
}

#[test]
fn what_was_added_is_there_after_opening_again() {
    let (folder, mut store) = scratch_store();
    let ids: Vec<i64> = ["a one", "a two"].map(|text| add(&mut store, text)).into();
    let path = store.path().to_owned();
    drop(store);
    let mut store = Store::open_existing(&path).unwrap();
    let fragment = store.fragment(ids[1]).unwrap().unwrap();
    assert_eq!((fragment.text.as_str(), fragment.source.as_str()), ("a two", "notes"));
    assert_eq!((fragment.created_ms, fragment.uses, fragment.used_ms), (5, 0, None));
    assert_eq!(store.check().unwrap().faults, [""; 0]);
    // SPEC.md, V4: the same content is recognised, a number is never given twice.
    let again = store.add("elsewhere", &[chunk("a two"), chunk("new")], None, 6).unwrap();
    assert_eq!(again[0], Added { id: ids[1], known: true });
    assert!(!again[1].known);
    store.forget(&Selection::Ids(vec![again[1].id])).unwrap();
    assert!(add(&mut store, "newer") > again[1].id);
    let empty = store.add("x", &[chunk("fine"), chunk(" \n")], None, 0);
    assert!(matches!(empty, Err(Error::EmptyFragment)));
    assert_eq!(store.count().unwrap(), 3);
    drop(folder);
}

#[test]
fn files_are_for_their_owner_alone() {
    let (_folder, mut store) = scratch_store();
    add(&mut store, "secret");
    let mode = |suffix: &str| {
        let path = format!("{}{suffix}", store.path().display());
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(suffix), 0o600, "{suffix}");
    }
    let path = store.path().to_owned();
    drop(store);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_log_is_synced_with_every_change() {
    let (_folder, store) = scratch_store();
    let pragma = |name| -> i64 {
        store.connection.pragma_query_value(None, name, |row| row.get(0)).unwrap()
    };
    // 2 is FULL: the log is synced before a transaction is acknowledged.
    assert_eq!((pragma("synchronous"), pragma("secure_delete")), (2, 1));
    let mode: String =
        store.connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    assert!(matches!(Store::open_existing(&path), Err(Error::Absent { .. })));
    let refused = |path: &Path| {
        let before = fs::read(path).unwrap();
        let error = Store::open(path).unwrap_err();
        assert_eq!(fs::read(path).unwrap(), before, "{error}");
        error
    };
    fs::write(&path, "just some text, longer than a header").unwrap();
    assert!(matches!(refused(&path), Error::Foreign { .. }));
    fs::write(&path, b"SQLite format 3\0 and then nothing of the kind").unwrap();
    assert!(matches!(refused(&path), Error::Foreign { .. } | Error::Damaged { .. }));

    let foreign = folder.path().join("foreign");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let said = refused(&foreign).to_string();
    assert!(said.contains("not a memory of this program"), "{said}");

    let newer = folder.path().join("newer");
    drop(Store::open(&newer).unwrap());
    let version = SCHEMA_VERSION + 1;
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", version).unwrap();
    let Error::Newer { found, known, .. } = refused(&newer) else { panic!("it is newer") };
    assert_eq!((found, known), (version, SCHEMA_VERSION));
    assert!(matches!(Store::open(folder.path()), Err(Error::Io { .. })));
}

#[test]
fn damage_is_found_and_named() {
    let (_folder, mut store) = scratch_store();
    for i in 0..200 {
        add(&mut store, &format!("number {i} {}", "long ".repeat(100)));
    }
    let path = store.path().to_owned();
    drop(store);
    let sound = fs::read(&path).unwrap();
    let mut state = 7;
    let mut found = 0;
    for _ in 0..20 {
        let mut bytes = sound.clone();
        // A page of noise somewhere behind the first.
        let page = 1 + random(&mut state) as usize % (bytes.len() / 4096 - 1);
        bytes[page * 4096..(page + 1) * 4096]
            .iter_mut()
            .for_each(|b| *b = random(&mut state) as u8);
        fs::write(&path, &bytes).unwrap();
        let faults = match Store::open_existing(&path) {
            Ok(store) => store.check().map(|check| check.faults.join("\n")),
            Err(error) => Err(error),
        };
        found += match faults {
            Ok(faults) => usize::from(!faults.is_empty()),
            Err(error) => usize::from(error.to_string().contains("aios memory export")),
        };
    }
    assert_eq!(found, 20, "every page is in use");
    fs::write(&path, &sound[..sound.len() / 2]).unwrap();
    let store = Store::open_existing(&path);
    let faults = store.and_then(|store| store.check()).map_or(1, |check| check.faults.len());
    assert!(faults > 0, "half of the file is gone");
}

#[test]
fn disagreement_within_a_sound_file_is_found() {
    let (_folder, mut store) = scratch_store();
    let embedder = WordEmbedder::new(&[]);
    let id = add(&mut store, "about rivers");
    let vector = Int8Vector::quantise(&unit_vector(1, embedder.dim()));
    store.add_vectors(&embedder, &[(id, vector), (999, Int8Vector::quantise(&[1.0]))]).unwrap();
    assert_eq!(store.check().unwrap().faults, [""; 0]);
    store.connection.execute("UPDATE embeddings SET vector = x'0102'", []).unwrap();
    assert!(store.check().unwrap().faults[0].contains("wrong length"));
    store.connection.execute("DELETE FROM embeddings", []).unwrap();
    store.connection.execute("UPDATE fragments SET text = 'about stones'", []).unwrap();
    assert_eq!(store.check().unwrap().faults.len(), 1, "the search index has the old text");
}

#[test]
fn an_older_schema_is_brought_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old");
    make_private_file(&path).unwrap();
    let mut old = Store::open_at(&path, 1).unwrap();
    let first = add(&mut old, "from version one");
    assert!(old.links(first).is_err(), "links came with version two");
    drop(old);
    let mut store = Store::open(&path).unwrap();
    let stamp = schema::stamp(&store.connection).unwrap();
    assert_eq!((stamp.version, stamp.application_id), (SCHEMA_VERSION, APPLICATION_ID));
    assert_eq!(store.fragment(first).unwrap().unwrap().text, "from version one");
    let second = add(&mut store, "from now");
    store.record_use(&[first, second, first, 99], 7).unwrap();
    assert_eq!(store.links(second).unwrap(), [(first, 0.0, 1)]);
    assert_eq!(store.fragment(first).unwrap().unwrap().uses, 1);
    assert_eq!(store.check().unwrap().faults, [""; 0]);
    // The older program refuses what it does not know.
    assert!(matches!(Store::open_at(&path, 1), Err(Error::Newer { .. })));
}

#[test]
fn documents_are_recognised_and_replaced_only_when_asked() {
    let (_folder, mut store) = scratch_store();
    let one = [chunk("one")];
    let first = store.add_document(&document("a.md", 1), &one, None, false, 0).unwrap();
    let same = store.add_document(&document("b.md", 1), &one, None, false, 0).unwrap();
    assert_eq!(same.known_as.as_deref(), Some("a.md"));
    assert_eq!(store.count().unwrap(), 1);
    let changed = [chunk("one, changed")];
    let beside = store.add_document(&document("a.md", 2), &changed, None, false, 1).unwrap();
    assert_eq!((beside.earlier, beside.replaced, store.count().unwrap()), (1, 0, 2));
    let last = [chunk("one, replaced")];
    let instead = store.add_document(&document("a.md", 3), &last, None, true, 2).unwrap();
    assert_eq!((instead.earlier, instead.replaced, store.count().unwrap()), (2, 2, 1));
    assert_eq!(store.fragment(first.fragments[0].id).unwrap(), None);
    // What was replaced may come back.
    let back = store.add_document(&document("a.md", 1), &one, None, false, 3).unwrap();
    assert_eq!((back.known_as, store.stats().unwrap().documents), (None, 2));
}

#[test]
fn what_is_forgotten_is_gone_from_the_files() {
    let (_folder, mut store) = scratch_store();
    let embedder = WordEmbedder::new(&[]);
    let kept = add(&mut store, "keep the harmless one");
    let vector = Int8Vector::quantise(&unit_vector(3, embedder.dim()));
    let vectors = [vector.clone()];
    let secret = [chunk("the xyzzyword is plugh")];
    let added = store.add("s", &secret, Some((&embedder, &vectors)), 0).unwrap();
    store.link_similar(&[(kept, added[0].id, 0.9)]).unwrap();
    let holds = |store: &Store, bytes: &[u8]| {
        [store.path().to_owned(), format!("{}-wal", store.path().display()).into()]
            .iter()
            .any(|path| fs::read(path).unwrap().windows(bytes.len()).any(|w| w == bytes))
    };
    assert!(holds(&store, b"xyzzyword") && holds(&store, &vector.bytes()));
    let unknown = store.forget(&Selection::Ids(vec![added[0].id, 999])).unwrap_err();
    assert!(matches!(unknown, Error::UnknownFragment { id: 999 }));
    assert_eq!(store.count().unwrap(), 2, "nothing is forgotten by halves");
    assert_eq!(store.forget(&Selection::Source("s".to_owned())).unwrap(), 1);
    assert!(!holds(&store, b"xyzzyword") && !holds(&store, &vector.bytes()));
    assert!(store.with_term("\"plugh\"", 9).unwrap().is_empty());
    assert_eq!(store.links(kept).unwrap(), []);
    assert_eq!(store.forget(&Selection::All).unwrap(), 1);
    assert_eq!(store.check().unwrap().faults, [""; 0]);
}

#[test]
fn two_processes_may_write() {
    let (_folder, mut store) = scratch_store();
    let path = store.path().to_owned();
    let others: Vec<_> = (0..3)
        .map(|writer| {
            let path = path.clone();
            thread::spawn(move || {
                let mut store = Store::open(&path).unwrap();
                for i in 0..20 {
                    add(&mut store, &format!("writer {writer} number {i}"));
                }
            })
        })
        .collect();
    for i in 0..20 {
        add(&mut store, &format!("mine {i}"));
    }
    others.into_iter().for_each(|other| other.join().unwrap());
    assert_eq!(store.count().unwrap(), 80);
}

/// Writes fragments and notes how long the log was when each was acknowledged.
fn written(store: &mut Store, count: usize) -> Vec<(i64, u64)> {
    store.connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    let log = format!("{}-wal", store.path().display());
    (0..count)
        .map(|i| {
            let id = add(store, &format!("number {i} {}", "word ".repeat(i * 7 % 300)));
            (id, fs::metadata(&log).unwrap().len())
        })
        .collect()
}

/// The acknowledged fragments that are missing when the log is cut at `kept` bytes and `tail`
/// follows, out of those that were acknowledged at that length.
fn lost(database: &[u8], log: &[u8], tail: &[u8], acknowledged: &[(i64, u64)], kept: u64) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.sqlite3");
    fs::write(&path, database).unwrap();
    let mut after = log[..kept as usize].to_vec();
    after.extend(tail);
    fs::write(folder.path().join("memory.sqlite3-wal"), after).unwrap();
    let store = Store::open_existing(&path).unwrap();
    assert_eq!(store.check().unwrap().faults, [""; 0]);
    let there = acknowledged.iter().filter(|(id, _)| store.fragment(*id).unwrap().is_some());
    acknowledged.len() - there.count()
}

/// SPEC.md, V1: the double of a disk that drops every byte which was not synced. SQLite syncs the
/// log before it acknowledges, so what may be lost is what came into the log behind that.
#[test]
fn a_writer_whose_unsynced_bytes_are_dropped_loses_nothing_acknowledged() {
    let (_folder, mut store) = scratch_store();
    let acknowledged = written(&mut store, 40);
    let database = fs::read(store.path()).unwrap();
    let log = fs::read(format!("{}-wal", store.path().display())).unwrap();
    let mut state = 11;
    for _ in 0..40 {
        let kept = random(&mut state) % (log.len() as u64 + 1);
        let safe: Vec<(i64, u64)> =
            acknowledged.iter().copied().filter(|(_, length)| *length <= kept).collect();
        let noise: Vec<u8> =
            (0..random(&mut state) % 9000).map(|_| random(&mut state) as u8).collect();
        let zeros = vec![0; 5000];
        for tail in [&[][..], &noise, &zeros] {
            assert_eq!(lost(&database, &log, tail, &safe, kept), 0, "cut at {kept}");
        }
    }
    // A disk that drops synced bytes too does lose the last one.
    let (_, length) = acknowledged[39];
    assert_eq!(lost(&database, &log, &[], &acknowledged, length - 1), 1);
}
