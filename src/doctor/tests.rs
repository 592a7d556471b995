//! The report against machines that are described in a folder.

use super::*;

/// A machine of the given files.
fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Report) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let report = Report::collect(dir.path());
    (dir, report)
}

const CPUINFO: &str = "\
processor\t: 0
model name\t: Some Processor @ 2.00GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 hypervisor

processor\t: 1
model name\t: Some Processor @ 2.00GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 hypervisor
";

fn counter<'a>(report: &'a Report, what: &str) -> &'a Counter {
    report.counters.kinds.iter().find(|kind| kind.what.starts_with(what)).unwrap()
}

#[test]
fn an_empty_machine_is_described_without_inventing_anything() {
    let (_dir, report) = machine(&[]);
    assert_eq!(report.cpu.model, None);
    assert_eq!((report.cpu.threads, report.cpu.cores), (0, None));
    assert_eq!(report.caches, []);
    assert_eq!(report.memory.total_bytes, None);
    assert_eq!(report.memory.huge_pages.transparent, None);
    assert!(!report.counters.may_count_machine_wide);
    for kind in &report.counters.kinds {
        assert!(kind.found.is_empty() && kind.remedy.is_some(), "{}", kind.what);
    }
}

#[test]
fn processor_and_caches_are_counted_once_where_they_are_shared() {
    let cache = |cpu: u32, index: u32, level: &str, kind: &str, size: &str, shared: &str| {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}");
        [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)]
            .map(|(name, text)| (format!("{folder}/{name}"), format!("{text}\n")))
    };
    let mut files = vec![("proc/cpuinfo".to_owned(), CPUINFO.to_owned())];
    for cpu in 0..2 {
        files.extend(cache(cpu, 0, "1", "Data", "48K", &cpu.to_string()));
        files.extend(cache(cpu, 1, "3", "Unified", "32M", "0-1"));
    }
    // Neither a cpu nor a whole description of a cache.
    files.push(("sys/devices/system/cpu/cpufreq/x".to_owned(), String::new()));
    files.push(("sys/devices/system/cpu/cpu0/cache/index9/level".to_owned(), "2".to_owned()));
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let (_dir, report) = machine(&files);
    assert_eq!(report.cpu.model.as_deref(), Some("Some Processor @ 2.00GHz"));
    assert_eq!((report.cpu.threads, report.cpu.cores), (2, Some(1)));
    assert!(report.cpu.hypervisor);
    let found: Vec<_> = report.caches.iter().map(|c| (c.level, c.bytes, c.instances)).collect();
    assert_eq!(found, [(1, 48 << 10, 2), (3, 32 << 20, 1)]);
    assert_eq!(report.last_level_cache_bytes(), Some(32 << 20));
}

#[test]
fn memory_is_read_with_its_limits() {
    let (_dir, report) = machine(&[
        ("proc/meminfo", "MemTotal: 2048 kB\nMemAvailable:  1024 kB\nHugePages_Total:  3\n"),
        ("proc/self/cgroup", "0::/a/b\n"),
        ("sys/fs/cgroup/a/b/memory.max", "524288\n"),
        ("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ("sys/devices/system/node/node0/x", ""),
        ("sys/devices/system/node/has_cpu", ""),
    ]);
    let memory = &report.memory;
    assert_eq!((memory.total_bytes, memory.available_bytes), (Some(2 << 20), Some(1 << 20)));
    assert_eq!((memory.limit_bytes, memory.nodes), (Some(512 << 10), 1));
    assert_eq!(memory.huge_pages.reserved, Some(3));
    assert_eq!(memory.huge_pages.transparent.as_deref(), Some("madvise"));
    assert_eq!(report.cpu.quota, Some(1.5));
    let (_dir, report) =
        machine(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "max 100000")]);
    assert_eq!(report.cpu.quota, None);
}

#[test]
fn counters_say_what_stands_in_their_way() {
    let folder = "sys/bus/event_source/devices";
    let path = |file: &str| format!("{folder}/{file}");
    let mut devices = vec![(path("cpu/type"), "4")];
    for (channel, number) in ["14", "15"].into_iter().enumerate() {
        for (file, text) in [
            ("type", number),
            ("cpumask", "0"),
            ("format/event", "config:0-7"),
            ("format/rdwrmask", "config:8-9"),
        ] {
            devices.push((path(&format!("amd_umc_{channel}/{file}")), text));
        }
    }
    let with = |more: &[(&str, &str)]| {
        let devices = devices.iter().map(|(path, text)| (path.as_str(), *text));
        machine(&devices.chain(more.iter().copied()).collect::<Vec<_>>()).1
    };
    let paranoid = "proc/sys/kernel/perf_event_paranoid";
    let report = with(&[(paranoid, "2\n")]);
    let memory = counter(&report, "memory controllers");
    assert_eq!(memory.found, ["amd_umc_0", "amd_umc_1"]);
    assert!(memory.detail.as_deref().unwrap().contains("on processor 0"));
    assert!(memory.remedy.as_deref().unwrap().contains("CAP_PERFMON"));
    assert_eq!(counter(&report, "core events").remedy, None);
    let report = with(&[(paranoid, "4\n"), ("proc/self/status", "CapEff:\t0000004000000000\n")]);
    assert!(report.counters.may_count_machine_wide);
    assert_eq!(counter(&report, "memory controllers").remedy, None);
    let report = with(&[(&path("amd_umc_1/cpumask"), "0-4000000000")]);
    let memory = counter(&report, "memory controllers");
    assert!(memory.found.is_empty() && memory.remedy.as_deref().unwrap().contains("umc_1/cpumask"));
    let (_dir, report) = machine(&[("proc/cpuinfo", CPUINFO)]);
    assert!(counter(&report, "memory").remedy.as_deref().unwrap().contains("hypervisor"));
    let (_dir, report) = machine(&[("proc/filesystems", "nodev\tresctrl\n")]);
    assert!(counter(&report, "resctrl").remedy.as_deref().unwrap().contains("mount -t resctrl"));
    let (_dir, report) = machine(&[("sys/fs/resctrl/mon_data/mon_L3_00/mbm_total_bytes", "1\n")]);
    let resctrl = counter(&report, "resctrl");
    assert_eq!((&resctrl.found[..], &resctrl.remedy), (&["mbm_total_bytes".to_owned()][..], &None));
}
