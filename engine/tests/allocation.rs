//! A decoded token allocates no memory, wherever the weights live (SPEC W5).

use aios_engine::{Executor, ExecutorOptions, Model, Want};
use aios_residency::Phase;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
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
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["micro-llama-q4km.gguf", "micro-falcon-q4km.gguf", "micro-gemma3-q4km.gguf"] {
        let path = models.join(name);
        let (packed, made) =
            Model::load_repacked(&path, folder.path(), &mut |_, _| true).expect("a micro model");
        made.expect("repacked");
        let plain = Model::load(&path).expect("a micro model");
        for model in [plain, packed] {
            for ram in [None, Some(least(&model)), Some(least(&model) + 300_000), Some(1 << 30)] {
                let executor = Executor::new(Arc::clone(&model), options(ram));
                let mut executor = executor.expect("enough memory");
                // Buffers of kernels and threads grow to their size in the first passes.
                decode(&mut executor, 0..8);
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                decode(&mut executor, 8..40);
                let made = ALLOCATIONS.load(Ordering::SeqCst) - before;
                assert_eq!(made, 0, "{name}, {ram:?}: allocations in 32 tokens");
                assert_eq!(executor.residency().stream_bytes > 0, ram.is_some_and(|r| r < 1 << 30));
            }
        }
    }
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![1]));
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > before, "the counter counts");
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

fn decode(executor: &mut Executor, ids: std::ops::Range<u32>) {
    for id in ids {
        let sink = &mut |_, _: &[f32]| Ok(());
        executor.forward(&[id], Phase::Decode, Want::Last, sink).expect("a pass");
    }
}
