//! A decoded token allocates no memory, wherever the weights live (SPEC W5) and whatever of a plan
//! is followed.

use aios_engine::{Executor, ExecutorOptions, KvTiering, Model, PartMode, PlanModes, Scores, Want};
use aios_residency::Phase;
use aios_residency::plan::{Hardware, Plan};
use aios_validation::profile::{self, ProfileOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it is; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(start, layout, len) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

// There is one test in this file: another one's allocations would be counted with it.
#[test]
fn a_decoded_token_allocates_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    wherever_weights_live(folder.path());
    with_tiers();
    past_the_cache(folder.path());
    by_a_plan();
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![1]));
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > before, "the counter counts");
}

/// Asserts that decoding `measured` behind `warm`, in which buffers of kernels and threads grow to
/// their size, allocates nothing. `best` logits are asked for, if not all.
fn assert_none(
    executor: &mut Executor,
    [warm, measured]: [std::ops::Range<u32>; 2],
    best: Option<usize>,
    what: &str,
) {
    decode(executor, warm.clone(), None);
    decode(executor, warm, best);
    let (before, tokens) = (ALLOCATIONS.load(Ordering::SeqCst), measured.len());
    decode(executor, measured, best);
    let made = ALLOCATIONS.load(Ordering::SeqCst) - before;
    assert_eq!(made, 0, "{what}: allocations in {tokens} tokens");
}

fn micro(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(name)
}

fn packed(name: &str, folder: &Path) -> Arc<Model> {
    let made = Model::load_repacked(&micro(name), folder, &mut |_, _| true);
    let (packed, made) = made.expect("a micro model");
    made.expect("repacked");
    packed
}

fn wherever_weights_live(folder: &Path) {
    for name in ["micro-llama-q4km.gguf", "micro-falcon-q4km.gguf", "micro-gemma3-q4km.gguf"] {
        let plain = Model::load(&micro(name)).expect("a micro model");
        for model in [plain, packed(name, folder)] {
            for ram in [None, Some(least(&model)), Some(least(&model) + 300_000), Some(1 << 30)] {
                let executor = Executor::new(Arc::clone(&model), options(ram));
                let mut executor = executor.expect("enough memory");
                let what = format!("{name}, {ram:?}");
                assert_none(&mut executor, [0..8, 8..40], None, &what);
                assert_eq!(executor.residency().stream_bytes > 0, ram.is_some_and(|r| r < 1 << 30));
            }
        }
    }
}

/// Pages go from tier to tier, and positions into new blocks.
fn with_tiers() {
    for name in ["micro-llama-q4km.gguf", "micro-qwen2-q4km.gguf"] {
        let model = Model::load(&micro(name)).expect("a micro model");
        for kv_tiers in KvTiering::ALL {
            let options = ExecutorOptions { kv_tiers, context: 1300, ..options(None) };
            let mut executor = Executor::new(Arc::clone(&model), options).expect("an executor");
            let ids: Vec<u32> = (0..1100).map(|i| i % 90).collect();
            let sink = &mut |_, _: &[f32]| Ok(());
            executor.forward(&ids, Phase::Prefill, Want::None, sink).expect("a pass");
            let what = format!("{name}, {kv_tiers} tiers");
            assert_none(&mut executor, [0..8, 8..150], None, &what);
            let seen = executor.ledger().phase(Phase::Decode).kv_read_tiers;
            let colder = [seen.warm > 0, seen.cold > 0];
            let wanted = [kv_tiers != KvTiering::Off, kv_tiers == KvTiering::Cold];
            assert_eq!(colder, wanted, "{what}");
        }
    }
}

fn past_the_cache(folder: &Path) {
    let model = packed("micro-llama-q4km.gguf", folder);
    let mut executor = Executor::new(model, options(None)).expect("an executor");
    executor.keep_in_cache(Some(100_000));
    let kept = executor.kept().expect("panels in memory");
    assert!(kept.kept_bytes > 0 && kept.past_bytes > 0, "{kept:?}");
    assert_none(&mut executor, [0..8, 8..40], None, "past the cache");
}

/// The head screened, zero neurons skipped.
fn by_a_plan() {
    let hardware = Hardware { cpu: None, isa: String::new(), processors: 2, llc_bytes: None };
    let look = ProfileOptions { generate: 6, tokens: 24, ..ProfileOptions::new(hardware.clone()) };
    let (on, off) = (PartMode::On, PartMode::Off);
    let modes = PlanModes { screen: on, zeros: on, threshold: off, keep: off, budget: false };
    for (name, zeros) in [("micro-llama-q4km.gguf", false), ("micro-relu-q8.gguf", true)] {
        let model = Model::load(&micro(name)).expect("a micro model");
        let folder = tempfile::tempdir().expect("a folder");
        let go_on = &mut |_: &'static str, _, _| true;
        profile::run(&model, &options(None), None, &look, folder.path(), go_on).expect("a plan");
        let (_, stamp) = model.identity().expect("files");
        let plan = Plan::open(folder.path(), &stamp, &hardware).expect("sound");
        let followed = model.follow(plan, &modes).expect("of this model");
        assert_eq!((followed.screen, followed.zeros), (true, zeros), "{name}");
        for best in [1, 4] {
            let executor = Executor::new(Arc::clone(&model), options(None));
            let mut executor = executor.expect("an executor");
            let what = format!("{name}, the best {best} by a plan");
            assert_none(&mut executor, [0..8, 8..40], Some(best), &what);
            let (screened, skipped) = (executor.screen_stats(), executor.zero_stats());
            assert!(screened.positions > 0, "{what}: {screened:?}");
            assert_eq!(skipped.neurons > 0, zeros, "{what}: {skipped:?}");
        }
    }
}

fn options(ram: Option<u64>) -> ExecutorOptions {
    ExecutorOptions { ram, threads: 2, threads_batch: 2, ..ExecutorOptions::new(64) }
}

fn least(model: &Arc<Model>) -> u64 {
    match Executor::new(Arc::clone(model), options(Some(1))) {
        Err(aios_engine::EngineError::Ram { least, .. }) => least,
        _ => panic!("a byte is not enough"),
    }
}

/// Decodes these ids one after another, and asks for so many of the best logits, or for all.
fn decode(executor: &mut Executor, ids: std::ops::Range<u32>, best: Option<usize>) {
    for id in ids {
        let sink = &mut |_, _: Scores<'_>| Ok(true);
        let pass = executor.choose(&[id % 90], Phase::Decode, Want::Last, best, sink);
        pass.expect("a pass");
    }
}
