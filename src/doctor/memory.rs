//! The main memory and its pages.

use serde::Serialize;

use super::Files;
use super::cpu::control_group;

/// The main memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All of it.
    pub total_bytes: Option<u64>,
    /// What can be had without swapping, as the kernel estimates it.
    pub available_bytes: Option<u64>,
    /// What the control group allows, where it sets a limit.
    pub limit_bytes: Option<u64>,
    /// Swap space.
    pub swap_bytes: Option<u64>,
    /// NUMA nodes.
    pub nodes: usize,
    /// The most that this process may lock in memory (`ulimit -l`); absent means no limit.
    pub lockable_bytes: Option<u64>,
    /// Pages of more than the usual size.
    pub huge_pages: HugePages,
}

/// Pages of more than the usual size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// The policy of transparent huge pages: `always`, `madvise` or `never`.
    pub transparent: Option<String>,
    /// How hard the kernel tries to make one at once.
    pub defrag: Option<String>,
    /// The policy for shared memory and temporary files.
    pub shmem: Option<String>,
    /// Reserved pages.
    pub reserved: Option<u64>,
    /// Reserved pages that are free.
    pub free: Option<u64>,
    /// The size of a reserved page.
    pub page_bytes: Option<u64>,
}

impl Memory {
    pub(super) fn collect(files: &Files) -> Self {
        let info = files.text("proc/meminfo").unwrap_or_default();
        let value = |key: &str| -> Option<u64> {
            let line = info.lines().find(|line| line.split(':').next() == Some(key))?;
            let mut words = line.split(':').nth(1)?.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            if words.next() == Some("kB") { number.checked_mul(1024) } else { Some(number) }
        };
        let is_node = |name: &String| {
            let digits = name.strip_prefix("node").unwrap_or_default();
            !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit())
        };
        let limit = files.text(&format!("{}/memory.max", control_group(files)));
        let policy = |name: &str| {
            let path = format!("sys/kernel/mm/transparent_hugepage/{name}");
            files.text(&path).as_deref().and_then(chosen)
        };
        Self {
            total_bytes: value("MemTotal"),
            available_bytes: value("MemAvailable"),
            limit_bytes: limit.and_then(|text| text.parse().ok()),
            swap_bytes: value("SwapTotal"),
            nodes: files.names("sys/devices/system/node").iter().filter(|n| is_node(n)).count(),
            lockable_bytes: rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
            huge_pages: HugePages {
                transparent: policy("enabled"),
                defrag: policy("defrag"),
                shmem: policy("shmem_enabled"),
                reserved: value("HugePages_Total"),
                free: value("HugePages_Free"),
                page_bytes: value("Hugepagesize"),
            },
        }
    }
}

/// The choice in a line like `always [madvise] never`.
fn chosen(line: &str) -> Option<String> {
    Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())
}
