//! Which hardware counters of memory traffic exist here, and what stands in the way of the others.

use aios_validation::counters::{Environment, Machine, Resctrl, discover};
use serde::Serialize;

use super::Files;

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
    /// What they count and where, if there is more to say than their names.
    pub detail: Option<String>,
    /// Why it is missing or of no use, and what to do about it.
    pub remedy: Option<String>,
}

impl Counters {
    pub(super) fn collect(files: &Files) -> Self {
        let machine = Machine::at(&files.root);
        let environment = machine.environment();
        let kinds = vec![
            memory(&machine, &environment),
            resctrl(files, &machine),
            fabric(files, &environment),
            core(files, &environment),
        ];
        Self {
            perf_event_paranoid: environment.perf_event_paranoid,
            may_count_machine_wide: environment.may_count_machine_wide(),
            kinds,
        }
    }
}

/// What a measurement of DRAM traffic would read, or the diagnosis.
fn memory(machine: &Machine, environment: &Environment) -> Counter {
    let what = "memory controllers (bytes of DRAM read and written)";
    match discover(machine) {
        Ok(found) => Counter {
            what,
            found: found.devices().into_iter().map(str::to_owned).collect(),
            detail: Some(found.summary()),
            remedy: environment.permission().err().map(|diagnosis| diagnosis.to_string()),
        },
        Err(diagnosis) => {
            let remedy = Some(diagnosis.to_string());
            Counter { what, found: Vec::new(), detail: None, remedy }
        }
    }
}

/// Memory bandwidth monitoring per group of processes.
fn resctrl(files: &Files, machine: &Machine) -> Counter {
    let mounted = files.path("sys/fs/resctrl/info").exists();
    let supported = files
        .text("proc/filesystems")
        .is_some_and(|text| text.lines().any(|line| line.trim_end().ends_with("resctrl")));
    let (files, remedy) = match (Resctrl::find(machine), mounted, supported) {
        (Ok(Some(found)), ..) => (found.files(), None),
        (Err(error), ..) => (0, Some(error.to_string())),
        (Ok(None), true, _) => (0, Some("the processor does not monitor bandwidth".to_owned())),
        (Ok(None), false, true) => {
            let mount = "it is not mounted: as root, 'mount -t resctrl resctrl /sys/fs/resctrl'";
            (0, Some(mount.to_owned()))
        }
        (Ok(None), false, false) => {
            let absent = "the kernel has no resctrl here: the processor (or the hypervisor) does \
                          not offer memory bandwidth monitoring";
            (0, Some(absent.to_owned()))
        }
    };
    let there = files > 0;
    Counter {
        what: "resctrl (bytes between L3 and memory, reads and writes together)",
        found: there.then(|| "mbm_total_bytes".to_owned()).into_iter().collect(),
        detail: there.then(|| format!("{files} of L3 domains and groups")),
        remedy,
    }
}

/// Devices of the kernel whose names begin so.
fn named(files: &Files, prefix: &str) -> Vec<String> {
    let mut names = files.names("sys/bus/event_source/devices");
    names.retain(|name| name.starts_with(prefix));
    names
}

/// What is missing in a virtual machine, or for want of a driver.
fn absent(environment: &Environment) -> String {
    let text = if environment.virtual_machine {
        "the hypervisor does not pass it on; run on the bare machine, or on an instance type that \
         exposes its performance counters"
    } else {
        "the kernel offers none; load the driver of this processor"
    };
    text.to_owned()
}

fn fabric(files: &Files, environment: &Environment) -> Counter {
    let found = named(files, "amd_df");
    let remedy = if found.is_empty() {
        Some(absent(environment))
    } else {
        environment.permission().err().map(|diagnosis| diagnosis.to_string())
    };
    let what = "data fabric (traffic between core complexes)";
    Counter { what, found, detail: None, remedy }
}

fn core(files: &Files, environment: &Environment) -> Counter {
    let found = named(files, "cpu");
    let remedy = match (found.is_empty(), environment.perf_event_paranoid) {
        (true, _) => Some(absent(environment)),
        // From this level on a process may not even count for itself.
        (false, Some(3..)) => environment.permission().err().map(|d| d.to_string()),
        (false, _) => None,
    };
    let what = "core events (cycles, instructions, cache misses)";
    Counter { what, found, detail: None, remedy }
}
