//! What is kept in the last-level cache and what is read past it: which matrices, that an observer
//! is told, and that no result changes.

use aios_engine::{DraftModel, Executor, ExecutorOptions, Length, Model, Observer, Session};
use aios_engine::{Kept, Speculation, Want};
use aios_residency::{Access, Data, Phase};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

fn micro(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(name)
}

fn load(name: &str, folder: &Path) -> Arc<Model> {
    let (model, made) =
        Model::load_repacked(&micro(name), folder, &mut |_, _| true).expect("a model");
    made.expect("repacked");
    model
}

fn executor(model: &Arc<Model>) -> Executor {
    let options = ExecutorOptions { threads: 2, threads_batch: 2, ..ExecutorOptions::new(64) };
    Executor::new(Arc::clone(model), options).expect("an executor")
}

/// Bytes that are read of weights, apart by whether they go past the caches.
#[derive(Debug, Default)]
struct Seen {
    past: usize,
    other: usize,
    /// Reads of keys and values, likewise.
    cache: [usize; 2],
}

#[derive(Debug)]
struct Recorder(Arc<Mutex<Seen>>);

impl Observer for Recorder {
    fn access(&mut self, access: Access) {
        let mut seen = self.0.lock().expect("no panic before");
        assert!(!(access.past && access.write));
        match (access.data, access.past) {
            (Data::Weights(_), true) => seen.past += access.bytes,
            (Data::Weights(_), false) => seen.other += access.bytes,
            (Data::Keys(_) | Data::Values(_), past) if !access.write => {
                seen.cache[usize::from(past)] += access.bytes;
            }
            (_, past) => assert!(!past, "{access:?}"),
        }
    }

    fn sees_feed_forward(&self) -> bool {
        false
    }
}

/// The bits of all logits of passes of `n` tokens, and what weights they read.
fn pass(executor: &mut Executor, n: usize) -> (Vec<u32>, Seen) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    executor.observe(Some(Box::new(Recorder(Arc::clone(&seen)))));
    let mut bits = Vec::new();
    executor.truncate(0);
    let ids: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 90).collect();
    for ids in ids.chunks_exact(n) {
        let mut keep = |_, logits: &[f32]| {
            bits.extend(logits.iter().map(|x| x.to_bits()));
            Ok(())
        };
        executor.forward(ids, Phase::Verify, Want::All, &mut keep).expect("a pass");
    }
    executor.observe(None);
    let seen = std::mem::take(&mut *seen.lock().expect("no panic before"));
    (bits, seen)
}

#[test]
fn what_does_not_fit_is_read_past_the_cache_and_nothing_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["micro-llama-q4km.gguf", "micro-gemma3-q4km.gguf", "micro-falcon-q4km.gguf"] {
        let model = load(name, folder.path());
        let mut executor = executor(&model);
        assert_eq!(executor.kept(), None);
        let plain: Vec<_> = [1, 2, 16].map(|n| pass(&mut executor, n)).into();
        assert!(plain.iter().all(|(_, seen)| seen.past == 0));
        executor.keep_in_cache(Some(u64::MAX));
        let all = executor.kept().expect("kept");
        assert_eq!(all.past_bytes, 0);
        for room in [0, all.kept_bytes / 3, all.kept_bytes - 1] {
            executor.keep_in_cache(Some(room));
            let Kept { kept_bytes, past_bytes, .. } = executor.kept().expect("kept");
            assert!(kept_bytes <= room && kept_bytes + past_bytes == all.kept_bytes, "{name}");
            // The largest matrix that does not fit may leave much of the room.
            assert!(room == 0 || kept_bytes > 0, "{name} {room}");
            for (n, (bits, before)) in [1, 2, 16].into_iter().zip(&plain) {
                let (found, seen) = pass(&mut executor, n);
                assert!(found == *bits, "{name} {room} {n}");
                assert_eq!(seen.past + seen.other, before.other, "{name} {room} {n}");
                // The whole of a short sequence's keys and values is a page a layer.
                let page = executor.cache_bytes() as u64;
                let expected = if page > room / 7 { [0, before.cache[0]] } else { before.cache };
                assert_eq!(seen.cache, expected, "{name} {room} {n}");
                // Long passes compute, and read as ever; panels are a little larger than rows.
                let passes = if n == 16 { 0 } else { 40 / n };
                let least = passes * usize::try_from(past_bytes).expect("small");
                assert!((least..=least + least / 8).contains(&seen.past), "{name} {room} {n}");
            }
        }
        let residency = executor.residency();
        assert_eq!(residency.past_bytes, executor.kept().expect("kept").past_bytes);
        executor.keep_in_cache(None);
        assert_eq!((executor.kept(), executor.residency().past_bytes), (None, 0));
    }
}

/// Rows as they stand in the file, and weights that stream, are read as ever.
#[test]
fn only_panels_in_memory_are_kept() {
    let rows = Model::load(&micro("micro-llama-q4km.gguf")).expect("a model");
    let mut plain = executor(&rows);
    plain.keep_in_cache(Some(0));
    assert_eq!(plain.kept(), Some(Kept { room: 0, kept_bytes: 0, past_bytes: 0 }));
    let folder = tempfile::tempdir().expect("a folder");
    let model = load("micro-llama-q4km.gguf", folder.path());
    let limited = ExecutorOptions { ram: Some(1 << 30), ..ExecutorOptions::new(64) };
    let mut streamed = Executor::new(model, limited).expect("an executor");
    streamed.keep_in_cache(Some(0));
    assert_eq!(streamed.kept(), None);
}

#[test]
fn what_a_model_has_adopted_holds_for_new_executors() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = load("micro-llama-q4km.gguf", folder.path());
    let usual = executor(&model).asks_ahead();
    model.adopt_keep(50_000);
    model.adopt_ahead(1536);
    let mut one = executor(&model);
    assert_eq!(one.kept().map(|kept| kept.room), Some(50_000));
    // Another instruction set than the best was not measured.
    let options = ExecutorOptions { isa: aios_kernels::Isa::SCALAR, ..one.options().clone() };
    let scalar = Executor::new(Arc::clone(&model), options).expect("an executor");
    assert_eq!(scalar.asks_ahead(), 0);
    if aios_kernels::Isa::detect() != aios_kernels::Isa::SCALAR {
        assert_eq!(one.asks_ahead(), 1536);
    }
    let (bits, _) = pass(&mut one, 1);
    one.ask_ahead(usual);
    assert!(bits == pass(&mut one, 1).0);
}

/// A draft model's weights are read several times in one pass of its target.
#[test]
fn a_draft_model_keeps_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let pair =
        ["micro-qwen2-q4km.gguf", "micro-qwen3-q4km.gguf"].map(|name| load(name, folder.path()));
    let bytes = |model: &Model| model.bytes_per_token().iter().map(|(_, b)| b).sum::<u64>();
    let [a, b] = pair;
    let (target, draft) = if bytes(&a) < bytes(&b) { (b, a) } else { (a, b) };
    target.adopt_keep(150_000);
    draft.adopt_keep(100_000);
    let options = ExecutorOptions::new(64);
    let mut session = Session::new(Arc::clone(&target), options.clone()).expect("a session");
    let room = |session: &Session| session.executor().kept().map(|kept| kept.room);
    assert_eq!(room(&session), Some(150_000));
    let drafter = DraftModel::new(draft, &target, options).expect("the same vocabulary");
    session.speculate(Some(Speculation::new(vec![Box::new(drafter)], Length::Fixed(4))));
    let left = room(&session).expect("kept");
    assert!((50_000..150_000).contains(&left), "{left}");
    session.speculate(None);
    assert_eq!(room(&session), Some(150_000));
}
