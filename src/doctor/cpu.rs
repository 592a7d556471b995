//! The processor, the cores that this process may use, and the caches.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Files;

/// The processor.
#[derive(Clone, Debug, Serialize)]
pub struct Cpu {
    /// The name that the processor gives itself.
    pub model: Option<String>,
    /// Hardware threads that are online.
    pub threads: usize,
    /// Physical cores, counted as distinct pairs of socket and core.
    pub cores: Option<usize>,
    /// Sockets.
    pub sockets: Option<usize>,
    /// The hardware threads that this process may run on, as the kernel's affinity mask has it.
    pub allowed: Vec<usize>,
    /// The cores that the control group allows, where it says so.
    pub cpuset: Option<String>,
    /// The processor time that the control group allows, in processors, where it sets a limit.
    pub quota: Option<f64>,
    /// Whether this is a virtual machine.
    pub hypervisor: bool,
    /// The instruction sets that matter to the kernels.
    pub features: Vec<Feature>,
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Its usual name.
    pub name: &'static str,
    /// Whether the processor and the operating system support it.
    pub present: bool,
}

/// All caches of one level and kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 is the nearest to the core.
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    /// The size of one of them.
    pub bytes: u64,
    /// How many of them there are.
    pub instances: u64,
    /// The bytes that are moved at a time.
    pub line_bytes: Option<u64>,
    /// Places that a line can be in.
    pub ways: Option<u64>,
}

impl Cpu {
    pub(super) fn collect(files: &Files) -> Self {
        let info = files.text("proc/cpuinfo").unwrap_or_default();
        let values = |key: &str| -> Vec<&str> {
            let lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim()).collect()
        };
        let sockets: BTreeSet<&str> = values("physical id").into_iter().collect();
        let pairs: BTreeSet<_> = values("physical id").into_iter().zip(values("core id")).collect();
        let flags = values("flags").into_iter().next().unwrap_or_default();
        let count = |n: usize| Some(n).filter(|n| *n > 0);
        let group = control_group(files);
        Self {
            model: values("model name").first().map(|name| (*name).to_owned()),
            threads: values("processor").len(),
            cores: count(pairs.len()),
            sockets: count(sockets.len()),
            allowed: allowed(),
            cpuset: files.text(&format!("{group}/cpuset.cpus.effective")).filter(|s| !s.is_empty()),
            quota: files.text(&format!("{group}/cpu.max")).as_deref().and_then(quota),
            hypervisor: flags.split_whitespace().any(|flag| flag == "hypervisor"),
            features: features(),
        }
    }
}

/// The folder of this process's control group (version 2), relative to the root.
pub(super) fn control_group(files: &Files) -> String {
    let text = files.text("proc/self/cgroup").unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    format!("sys/fs/cgroup{}", own.trim_end_matches('/'))
}

/// Reads `QUOTA PERIOD` in microseconds; `max` is no limit.
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    Some(quota / period).filter(|processors| processors.is_finite())
}

fn allowed() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<Feature> {
    macro_rules! detect {
        ($($name:tt),* $(,)?) => {
            vec![$(Feature { name: $name, present: std::is_x86_feature_detected!($name) }),*]
        };
    }
    detect![
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi2",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512vbmi",
        "avx512vnni",
        "avx512bf16",
        "avx512fp16",
    ]
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<Feature> {
    macro_rules! detect {
        ($($name:tt),* $(,)?) => {
            vec![$(Feature {
                name: $name,
                present: std::arch::is_aarch64_feature_detected!($name),
            }),*]
        };
    }
    detect!["neon", "dotprod", "i8mm", "fp16", "bf16", "sve", "sve2"]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<Feature> {
    Vec::new()
}

impl Cache {
    /// Every cache, each counted once however many cores share it.
    pub(super) fn collect(files: &Files) -> Vec<Self> {
        const CPUS: &str = "sys/devices/system/cpu";
        let mut seen = BTreeSet::new();
        let mut caches: BTreeMap<(u32, String), Self> = BTreeMap::new();
        for cpu in files.names(CPUS) {
            let digits = cpu.strip_prefix("cpu").unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                continue;
            }
            for index in files.names(&format!("{CPUS}/{cpu}/cache")) {
                let file = |name| files.text(&format!("{CPUS}/{cpu}/cache/{index}/{name}"));
                let found = (|| {
                    let level: u32 = file("level")?.parse().ok()?;
                    Some((level, file("type")?, size(&file("size")?)?, file("shared_cpu_list")?))
                })();
                let Some((level, kind, bytes, shared)) = found else { continue };
                if !seen.insert((level, kind.clone(), shared)) {
                    continue;
                }
                let number = |name| file(name).and_then(|text| text.parse().ok());
                let cache = caches.entry((level, kind.clone())).or_insert_with(|| Self {
                    level,
                    kind,
                    bytes,
                    instances: 0,
                    line_bytes: number("coherency_line_size"),
                    ways: number("ways_of_associativity"),
                });
                cache.instances += 1;
            }
        }
        caches.into_values().collect()
    }
}

/// Reads `48K`, `2M` or `1G`.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
