//! A private cache for each thread, a cache that all share, and the memory behind them (SPEC B16).

use super::cache::{Cache, Evicted, Geometry};
use super::traffic::{Group, Traffic};
use aios_residency::Access;
use serde::Serialize;
use std::fmt;
use std::ops::RangeInclusive;

/// The most threads that are simulated.
pub const THREADS_MAX: usize = 1024;

/// How the two levels relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The shared cache holds all that private ones hold: what it drops, they drop.
    Inclusive,
    /// The shared cache holds what private ones dropped; a hit moves the line back.
    Victim,
    /// A miss fills both, and each forgets on its own.
    Independent,
}

impl Policy {
    /// Every policy and its name on the command line.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::Inclusive, Self::Inclusive.name()),
        (Self::Victim, Self::Victim.name()),
        (Self::Independent, Self::Independent.name()),
    ];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inclusive => "inclusive",
            Self::Victim => "victim",
            Self::Independent => "independent",
        }
    }
}

/// Two levels of caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Design {
    /// Each thread's own.
    pub private: Geometry,
    /// The one behind them.
    pub shared: Geometry,
    /// How they relate.
    pub policy: Policy,
}

impl fmt::Display for Design {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { private, shared, policy } = self;
        let (line, policy) = (shared.line_bytes(), policy.name());
        write!(f, "{private} before {shared}, lines of {line} bytes, {policy}")
    }
}

/// Why there is no such hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HierarchyError {
    /// Levels with lines of their own length are not simulated.
    #[error("lines of {private} bytes before lines of {shared}: they must be of one length")]
    Lines {
        /// Those of private caches.
        private: u32,
        /// Those of the shared one.
        shared: u32,
    },
    /// Inclusion makes no sense where the private cache is the larger one.
    #[error("a shared cache of {shared} bytes cannot include a private one of {private}")]
    Inclusion {
        /// The size of a private cache.
        private: u64,
        /// That of the shared one.
        shared: u64,
    },
    /// None, or too many threads.
    #[error("{0} threads: it must be from 1 to {THREADS_MAX}")]
    Threads(usize),
}

/// The caches while they are used.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    design: Design,
    private: Vec<Cache>,
    shared: Cache,
    traffic: Traffic,
}

/// One use of a line.
#[derive(Clone, Copy)]
struct Use {
    thread: usize,
    line: u64,
    write: bool,
    group: Group,
}

impl Use {
    /// What it writes, if it is a store.
    fn written(self) -> Option<Group> {
        self.write.then_some(self.group)
    }
}

impl Hierarchy {
    /// Empty caches for `threads` threads.
    ///
    /// # Errors
    /// Those of [`HierarchyError`].
    pub fn new(design: Design, threads: usize) -> Result<Self, HierarchyError> {
        let Design { private, shared, policy } = design;
        if private.line_bytes() != shared.line_bytes() {
            let (private, shared) = (private.line_bytes(), shared.line_bytes());
            return Err(HierarchyError::Lines { private, shared });
        }
        if policy == Policy::Inclusive && shared.bytes() < private.bytes() {
            let (private, shared) = (private.bytes(), shared.bytes());
            return Err(HierarchyError::Inclusion { private, shared });
        }
        if !(1..=THREADS_MAX).contains(&threads) {
            return Err(HierarchyError::Threads(threads));
        }
        Ok(Self {
            design,
            private: vec![Cache::new(private); threads],
            shared: Cache::new(shared),
            traffic: Traffic::default(),
        })
    }

    /// What it is built from.
    pub const fn design(&self) -> Design {
        self.design
    }

    /// Its threads.
    pub fn threads(&self) -> usize {
        self.private.len()
    }

    /// What went to and from memory since the last reset.
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Sets the counts back to zero; the caches keep what they hold.
    pub fn reset_traffic(&mut self) {
        self.traffic = Traffic::default();
    }

    /// Numbers of the first and the last line of an access, if it has any bytes.
    pub fn lines(&self, access: &Access) -> Option<(u64, u64)> {
        let shift = self.design.shared.line_bytes().trailing_zeros();
        let last = access.bytes.checked_sub(1)?;
        let (start, end) = (access.start as u64, access.start.saturating_add(last) as u64);
        Some((start >> shift, end >> shift))
    }

    /// The threads share an access among them (SPEC B18). A read that does not `keep` is
    /// non-temporal: it leaves no line behind.
    pub fn access(&mut self, access: &Access, keep: bool) {
        let Some((first, last)) = self.lines(access) else { return };
        if access.fresh {
            self.forget(first..=last);
        }
        let group = Group::of(access.data);
        let (count, threads) = (last - first + 1, self.private.len() as u64);
        // Thread t takes the lines from t · count / threads on; split so as not to overflow.
        let start = |t: u64| first + count / threads * t + count % threads * t / threads;
        for turn in 0..count.div_ceil(threads) {
            for (thread, t) in (0..threads).enumerate() {
                let line = start(t) + turn;
                if line < start(t + 1) {
                    let one = Use { thread, line, write: access.write, group };
                    if keep || access.write { self.use_line(one) } else { self.pass_by(one) }
                }
            }
        }
    }

    /// Lines whose memory a device has written.
    fn forget(&mut self, lines: RangeInclusive<u64>) {
        for line in lines {
            for cache in self.private.iter_mut().chain([&mut self.shared]) {
                cache.remove(line);
            }
        }
    }

    /// A non-temporal read.
    fn pass_by(&mut self, Use { line, group, .. }: Use) {
        let held = self.shared.holds(line) || self.private.iter().any(|cache| cache.holds(line));
        if !held {
            self.traffic.fetch(group, false);
        }
    }

    fn use_line(&mut self, one: Use) {
        let Use { thread, line, write, .. } = one;
        let hit = self.private[thread].touch(line, one.written());
        let taken = write && self.private.len() > 1 && self.take_from_others(one);
        if hit {
            return;
        }
        match self.design.policy {
            Policy::Inclusive => self.miss_inclusive(one),
            Policy::Victim => self.miss_victim(one, taken),
            Policy::Independent => self.miss_independent(one, taken),
        }
    }

    /// A store leaves no copy with other threads, and none in a victim cache, where it would be
    /// written to memory a second time. Says whether another thread held it.
    fn take_from_others(&mut self, Use { thread, line, .. }: Use) -> bool {
        if self.design.policy == Policy::Victim && self.private[thread].holds(line) {
            self.shared.remove(line);
        }
        let mut held = false;
        for (other, cache) in self.private.iter_mut().enumerate() {
            held |= other != thread && cache.remove(line).is_some();
        }
        held
    }

    /// Reads a line from memory unless another thread's cache holds it.
    fn fetch(&mut self, Use { thread, line, write, group }: Use) {
        let mut others = self.private.iter().enumerate();
        if !others.any(|(other, cache)| other != thread && cache.holds(line)) {
            self.traffic.fetch(group, write);
        }
    }

    fn write_back(&mut self, evicted: Option<Evicted>) {
        if let Some(group) = evicted.and_then(|evicted| evicted.dirty) {
            self.traffic.write(group);
        }
    }

    /// Takes a line into the shared cache, without caring what private ones hold.
    fn fill_shared(&mut self, line: u64, written: Option<Group>) {
        let (_, evicted) = self.shared.access(line, written);
        self.write_back(evicted);
    }

    fn miss_inclusive(&mut self, one: Use) {
        if !self.shared.touch(one.line, None) {
            // No private cache can hold what the shared one does not.
            self.traffic.fetch(one.group, one.write);
            if let Some(Evicted { line, dirty }) = self.shared.fill(one.line, None) {
                let copies = self.private.iter_mut().map(|cache| cache.remove(line).flatten());
                // What a private cache has was written later.
                let dirty = copies.fold(None, Option::or).or(dirty);
                self.write_back(Some(Evicted { line, dirty }));
            }
        }
        self.fill_private(one);
    }

    fn miss_independent(&mut self, one: Use, taken: bool) {
        if !self.shared.touch(one.line, None) {
            if !taken {
                self.fetch(one);
            }
            self.fill_shared(one.line, None);
        }
        self.fill_private(one);
    }

    /// Takes a line into a private cache; what was written and makes room goes to the shared one if
    /// that holds it, else to memory.
    fn fill_private(&mut self, one: Use) {
        let evicted = self.private[one.thread].fill(one.line, one.written());
        let Some(Evicted { line, dirty: Some(group) }) = evicted else { return };
        if !self.shared.mark(line, group) {
            self.traffic.write(group);
        }
    }

    fn miss_victim(&mut self, one: Use, taken: bool) {
        let Use { thread, line, .. } = one;
        let held = self.shared.remove(line);
        if held.is_none() && !taken {
            self.fetch(one);
        }
        let evicted = self.private[thread].fill(line, one.written().or(held.flatten()));
        if let Some(Evicted { line, dirty }) = evicted {
            // Another thread may have dropped its copy there before.
            self.fill_shared(line, dirty);
        }
    }
}

#[cfg(test)]
#[path = "hierarchy_tests.rs"]
mod tests;
