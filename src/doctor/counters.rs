//! Which hardware counters of memory traffic exist here, and what stands in the way of the others.

use serde::Serialize;

use super::Files;

/// The capability that allows counting without being root (its bit in the kernel's mask).
const CAP_PERFMON: u32 = 38;
/// The capability that allowed it before there was that one.
const CAP_SYS_ADMIN: u32 = 21;

/// What can be counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// `kernel.perf_event_paranoid`: from -1 (anyone counts anything) to 4 (no one counts).
    pub perf_event_paranoid: Option<i64>,
    /// Whether this process may count for the whole machine, which memory controllers need.
    pub may_count_machine_wide: bool,
    /// Each kind of counter.
    pub kinds: Vec<Counter>,
}

/// One kind of counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// What it counts.
    pub what: &'static str,
    /// The kernel's names of what was found; empty if it is missing.
    pub found: Vec<String>,
    /// Why it is missing or of no use, and what to do about it.
    pub remedy: Option<String>,
}

impl Counters {
    pub(super) fn collect(files: &Files) -> Self {
        let devices = files.names("sys/bus/event_source/devices");
        let flags = files.text("proc/cpuinfo").unwrap_or_default();
        let virtual_machine = flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor"));
        let paranoid = files.number("proc/sys/kernel/perf_event_paranoid");
        let may_count = capable(files) || paranoid.is_some_and(|level| level <= 0);
        let named = |prefixes: &[&str]| -> Vec<String> {
            let hit = |name: &&String| prefixes.iter().any(|prefix| name.starts_with(prefix));
            devices.iter().filter(hit).cloned().collect()
        };
        let absent = if virtual_machine {
            "the hypervisor does not pass it on; run on the bare machine, or on an instance type \
             that exposes its performance counters"
        } else {
            "the kernel offers none; load the uncore driver of this processor (intel_uncore, or \
             amd_uncore with a kernel from 6.10 on)"
        };
        let locked = "this process may not use it: run as root, give the program CAP_PERFMON, or \
                      set kernel.perf_event_paranoid to 0";
        let machine_wide = |what, found: Vec<String>| {
            let remedy =
                if found.is_empty() { Some(absent) } else { Some(locked).filter(|_| !may_count) };
            Counter { what, found, remedy: remedy.map(str::to_owned) }
        };
        let core = named(&["cpu"]);
        let core_remedy = match (core.is_empty(), paranoid) {
            (true, _) => Some(absent.to_owned()),
            (false, Some(3..)) if !may_count => Some(locked.to_owned()),
            (false, _) => None,
        };
        let kinds = vec![
            machine_wide(
                "memory controllers (bytes of DRAM read and written)",
                named(&["uncore_imc", "amd_umc", "arm_cmn", "arm_dmc"]),
            ),
            machine_wide("data fabric (traffic between core complexes)", named(&["amd_df"])),
            resctrl(files),
            Counter {
                what: "core events (cycles, instructions, cache misses)",
                found: core,
                remedy: core_remedy,
            },
        ];
        Self { perf_event_paranoid: paranoid, may_count_machine_wide: may_count, kinds }
    }
}

/// Memory bandwidth monitoring per group of processes.
fn resctrl(files: &Files) -> Counter {
    let features = files.text("sys/fs/resctrl/info/L3_MON/mon_features").unwrap_or_default();
    let found: Vec<String> =
        features.lines().filter(|name| name.starts_with("mbm_")).map(str::to_owned).collect();
    let mounted = files.path("sys/fs/resctrl/info").exists();
    let supported = files
        .text("proc/filesystems")
        .is_some_and(|text| text.lines().any(|line| line.trim_end().ends_with("resctrl")));
    let remedy = match (found.is_empty(), mounted, supported) {
        (false, ..) => None,
        (true, true, _) => Some("the processor does not monitor bandwidth"),
        (true, false, true) => {
            Some("it is not mounted: as root, 'mount -t resctrl resctrl /sys/fs/resctrl'")
        }
        (true, false, false) => Some(
            "the kernel has no resctrl here: the processor (or the hypervisor) does not offer \
             memory bandwidth monitoring",
        ),
    };
    Counter {
        what: "resctrl (memory bandwidth of a group of processes)",
        found,
        remedy: remedy.map(str::to_owned),
    }
}

/// Whether this process has a capability that lifts `perf_event_paranoid`.
fn capable(files: &Files) -> bool {
    let status = files.text("proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    mask & (1 << CAP_PERFMON | 1 << CAP_SYS_ADMIN) != 0
}
