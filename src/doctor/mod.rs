//! A look at the machine: what it can compute with, what it can remember, what it can count, and
//! how fast it reads. Everything comes from the kernel's own files or from a measurement; what
//! cannot be found out is absent, never assumed.

pub mod bandwidth;
mod counters;
mod cpu;
mod memory;
mod panels;

use std::fs;
use std::path::{Path, PathBuf};

use aios_residency::read_text;
use serde::Serialize;

pub use counters::{Counter, Counters};
pub use cpu::{Cache, Cpu, Feature};
pub use memory::{HugePages, Memory};
pub use panels::{PanelFile, Panels};

/// The most of a file of the kernel's that is read; one that lists thousands of processors has a
/// few million.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Everything that was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The processor.
    pub cpu: Cpu,
    /// Its caches, the smallest level first.
    pub caches: Vec<Cache>,
    /// The main memory.
    pub memory: Memory,
    /// The hardware counters of memory traffic.
    pub counters: Counters,
    /// The measured streaming read, unless it was left out.
    pub bandwidth: Option<Vec<bandwidth::Measurement>>,
    /// Repacked weights on the disk; absent where no folder is named for them.
    pub panels: Option<Panels>,
    /// The measured read of a file, if one was named.
    pub disk: Option<aios_residency::DiskSpeed>,
}

impl Report {
    /// Looks at the machine whose `/proc` and `/sys` are below `root` (`/`, except in tests).
    pub fn collect(root: &Path) -> Self {
        let files = Files { root: root.to_owned() };
        Self {
            cpu: Cpu::collect(&files),
            caches: Cache::collect(&files),
            memory: Memory::collect(&files),
            counters: Counters::collect(&files),
            bandwidth: None,
            panels: None,
            disk: None,
        }
    }

    /// The bytes of the last level of cache, all instances together, if the machine tells.
    pub fn last_level_cache_bytes(&self) -> Option<u64> {
        self.caches.last().map(|cache| cache.bytes.saturating_mul(cache.instances))
    }
}

/// The kernel's files below some root.
struct Files {
    root: PathBuf,
}

impl Files {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The trimmed text of a file, if it can be read.
    fn text(&self, path: &str) -> Option<String> {
        Some(read_text(&self.path(path), FILE_BYTES_MAX).ok()?.trim().to_owned())
    }

    /// The names in a folder, sorted; none if there is no such folder.
    fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests;
