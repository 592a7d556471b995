//! The thread pool: a fork-join whose workers spin, then sleep.
//!
//! The plain algorithm is: publish a closure, let every thread run it with its number, wait for
//! all. The departures from it:
//! 1. Workers spin for a while before they sleep, because a token has hundreds of joins and
//!    waking a sleeping thread costs more than most of them.
//! 2. The caller is thread 0, so that one thread needs no other.
//! 3. The caller yields while it waits, once it has spun for a while, so that more threads than
//!    cores still make progress.
//! 4. A thread that waits asks memory for what it reads next ([`Ahead`]), because memory is what
//!    a token's time goes to.

use crate::simd::prefetch_address;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Rounds of spinning before a worker sleeps: some 100 µs, longer than the gap between two
/// tokens' joins and short against a person's pause.
const SPIN_ROUNDS: u32 = 4000;
/// Rounds of spinning before the waiting caller yields its core.
const CALLER_ROUNDS: u32 = 2000;

/// Cache lines that a waiting thread asks for in a round of spinning. More of them would fill
/// the processor's queue of loads, and the end of the wait would be seen late.
const AHEAD_LINES: usize = 4;
/// The most bytes that a waiting thread asks for: they should stay in its second-level cache.
const AHEAD_BYTES: usize = 128 << 10;

/// A closure that lives as long as one call of [`Pool::run`].
type Task = *const (dyn Fn(usize) -> Ahead + Sync);

/// Memory that a thread reads after the present join, to be asked for while it waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    at: *const u8,
    lines: usize,
}

impl Ahead {
    pub(crate) const NONE: Self = Self { at: std::ptr::null(), lines: 0 };

    /// The start of `memory`, which need not live on: what is asked for in vain does no harm.
    pub(crate) fn new(memory: &[u8]) -> Self {
        Self { at: memory.as_ptr(), lines: memory.len().min(AHEAD_BYTES) / 64 }
    }

    /// A round of waiting.
    #[inline]
    fn spin(&mut self) {
        for _ in 0..self.lines.min(AHEAD_LINES) {
            prefetch_address(self.at);
            self.at = self.at.wrapping_add(64);
            self.lines -= 1;
        }
        std::hint::spin_loop();
    }
}

#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// Counts the tasks; a change tells the workers that `task` is new.
    epoch: Padded<AtomicU32>,
    /// Workers that have not finished the present task.
    pending: Padded<AtomicUsize>,
    /// The present task. Written only while `pending` is 0, read only between the change of
    /// `epoch` and the reader's decrement of `pending`.
    task: UnsafeCell<Option<Task>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

// SAFETY: `task` is the only field that is not Sync; its comment states the protocol under which
// no two threads access it at once. The closure behind it is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to the thread that made it.
unsafe impl Send for Shared {}

/// Threads that run closures together. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Serialises callers, so that a pool can be shared.
    caller: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads, the caller among them (0 counts as 1). Workers are pinned
    /// to the processors that this process may use, where there are enough of them.
    ///
    /// # Errors
    /// The operating system's, if it cannot start a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: Padded(AtomicU32::new(0)),
            pending: Padded(AtomicUsize::new(0)),
            task: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let processors = allowed_processors();
        let mut pool = Self { shared, workers: Vec::new(), caller: Mutex::new(()) };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let processor = processors.get(index).copied().filter(|_| threads <= processors.len());
            let name = format!("aios-worker-{index}");
            let worker = std::thread::Builder::new().name(name).spawn(move || {
                if let Some(processor) = processor {
                    pin_to(processor);
                }
                work(&shared, index);
            })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(i)` for every thread i at once and returns when all have returned. A panic in
    /// any of them is raised again here.
    pub fn run(&self, task: &(dyn Fn(usize) + Sync)) {
        self.run_ahead(&|thread| {
            task(thread);
            Ahead::NONE
        });
    }

    /// As [`Self::run`]; each thread then asks for what its task returned while it waits.
    fn run_ahead(&self, task: &(dyn Fn(usize) -> Ahead + Sync)) {
        if self.workers.is_empty() {
            task(0);
            return;
        }
        let _guard = lock(&self.caller);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. This function does not return before `pending` is
        // 0, after which no worker touches the closure.
        let erased: Task = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        // SAFETY: `pending` is 0 and the callers' lock is held, so that no thread accesses it.
        unsafe { *shared.task.get() = Some(erased) };
        shared.pending.0.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| task(0)));
        let mut ahead = *own.as_ref().unwrap_or(&Ahead::NONE);
        let mut rounds = 0;
        while shared.pending.0.load(Ordering::Acquire) > 0 {
            rounds += 1;
            if rounds > CALLER_ROUNDS {
                std::thread::yield_now();
            } else {
                ahead.spin();
            }
        }
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Runs `task(piece)` for every piece in `0..pieces`, shared out among the threads as they
    /// come free. Which thread takes which piece is not fixed, so a piece's result must not
    /// depend on it.
    pub fn for_each(&self, pieces: usize, task: &(dyn Fn(usize) + Sync)) {
        if pieces <= 1 || self.workers.is_empty() {
            (0..pieces).for_each(task);
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return;
                }
                task(piece);
            }
        });
    }

    /// Runs `task` for runs of units that together are `0..units`, each of at least `least` of
    /// them. A thread takes [`Self::own`] first and then runs of what is left, the shorter the
    /// less is left, so that threads which run at different speeds end together. Each thread
    /// then asks for what `ahead` says of it while it waits.
    pub(crate) fn share(
        &self,
        units: usize,
        least: usize,
        task: &(dyn Fn(Range<usize>) + Sync),
        ahead: &(dyn Fn(usize) -> Ahead + Sync),
    ) {
        let threads = self.threads();
        if threads == 1 || units <= least {
            return task(0..units);
        }
        let next = AtomicUsize::new(self.own(units, threads).start);
        self.run_ahead(&|thread| {
            let own = self.own(units, thread);
            if !own.is_empty() {
                task(own);
            }
            loop {
                let run = |at: usize| ((units - at) / (2 * threads)).max(least).min(units - at);
                let take = |at| (at < units).then(|| at + run(at));
                match next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                    Ok(at) => task(at..at + run(at)),
                    Err(_) => return ahead(thread),
                }
            }
        });
    }

    /// The units of [`Self::share`] that are a thread's own: together three quarters of them.
    pub(crate) fn own(&self, units: usize, thread: usize) -> Range<usize> {
        let own = 3 * units / (4 * self.threads());
        own * thread..own * (thread + 1)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        {
            let _sleep = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so it cannot have died of one.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// A worker's life: wait for a new epoch, run the task, say so.
fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    let mut ahead = Ahead::NONE;
    loop {
        wait_for_change(shared, seen, ahead);
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: `epoch` has changed and this worker has not yet decremented `pending`.
        let task = unsafe { *shared.task.get() };
        if let Some(task) = task {
            // SAFETY: `run` keeps the closure alive until `pending` is 0.
            let task = unsafe { &*task };
            ahead = catch_unwind(AssertUnwindSafe(|| task(index))).unwrap_or_else(|panic| {
                *lock(&shared.panic) = Some(panic);
                Ahead::NONE
            });
        }
        shared.pending.0.fetch_sub(1, Ordering::Release);
    }
}

/// Returns when `epoch` is no longer `seen`: spins, then sleeps.
fn wait_for_change(shared: &Shared, seen: u32, mut ahead: Ahead) {
    for _ in 0..SPIN_ROUNDS {
        if shared.epoch.0.load(Ordering::Acquire) != seen {
            return;
        }
        ahead.spin();
    }
    let mut guard = lock(&shared.sleep);
    shared.sleepers.fetch_add(1, Ordering::SeqCst);
    while shared.epoch.0.load(Ordering::SeqCst) == seen {
        guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    shared.sleepers.fetch_sub(1, Ordering::SeqCst);
}

/// The processors that this process may run on, by number; empty where the system does not say.
pub fn allowed_processors() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and the size are those of a live cpu_set_t.
    let status = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if status != 0 {
        return Vec::new();
    }
    let limit = 8 * size_of::<libc::cpu_set_t>();
    // SAFETY: every number is below the set's size in bits.
    (0..limit).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Pins the calling thread; a refusal costs speed only, so it is not an error.
fn pin_to(processor: usize) {
    // SAFETY: an all-zero cpu_set_t is a valid, empty set; `processor` came from such a set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_and_every_piece_runs_once() {
        for threads in [0, 1, 2, 5, 9] {
            let pool = Pool::new(threads).expect("threads");
            assert_eq!(pool.threads(), threads.max(1));
            let ran: Vec<_> = (0..pool.threads()).map(|_| AtomicUsize::new(0)).collect();
            let pieces: Vec<_> = (0..37).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..200 {
                pool.run(&|i| {
                    ran[i].fetch_add(1, Ordering::Relaxed);
                });
                pool.for_each(pieces.len(), &|i| {
                    pieces[i].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(ran.iter().chain(&pieces).all(|n| n.load(Ordering::Relaxed) == 200));
        }
    }

    #[test]
    fn every_unit_is_shared_out_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).expect("threads");
            for (units, least) in [(0, 1), (1, 1), (2, 1), (5, 3), (36, 1), (97, 2), (1000, 1)] {
                let ran: Vec<_> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                let task = |run: Range<usize>| {
                    for unit in run {
                        ran[unit].fetch_add(1, Ordering::Relaxed);
                    }
                };
                let memory = [0; 1000];
                for _ in 0..50 {
                    pool.share(units, least, &task, &|_| Ahead::new(&memory));
                }
                let all = ran.iter().all(|n| n.load(Ordering::Relaxed) == 50);
                assert!(all, "{units} units on {threads} threads");
            }
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(3).expect("threads");
        let count = AtomicUsize::new(0);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.load(Ordering::Relaxed), 9);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2).expect("threads");
        for bad in 0..2 {
            let task = |i| assert!(i != bad, "planted");
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&task)));
            assert!(caught.is_err());
        }
        pool.run(&|_| {});
    }
}
