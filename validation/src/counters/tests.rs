//! Discovery, opening and measuring against machines that are written into a folder.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Duration;

use super::arithmetic::{Count, Rates};
use super::fixtures::{Fake, Refusing, Tree};
use super::perf::Scope;
use super::sysfs::SysfsError;
use super::*;

/// The words that select the events of one direction, each once.
fn configs(found: &Uncore, traffic: Traffic) -> BTreeSet<u64> {
    let counters = found.counters.iter().filter(|counter| counter.traffic == traffic);
    counters.map(|counter| counter.event.config[0]).collect()
}

fn refusal(tree: &Tree) -> Diagnosis {
    discover(&tree.machine()).expect_err("nothing that can be used")
}

/// Idle, one stretch of tokens, idle.
fn reading(tree: &Tree, fake: &Fake) -> Result<DramReading, MeterError> {
    let mut meter = DramMeter::open_with(&tree.machine(), fake).expect("counters");
    meter.idle(Duration::ZERO)?;
    meter.start()?;
    meter.stop()?;
    meter.idle(Duration::ZERO)?;
    meter.finish()
}

#[test]
fn a_client_with_two_controllers_has_both_read() {
    let found = discover(&Tree::client().machine()).expect("counters");
    assert_eq!(found.family, Family::ClientFreeRunning);
    assert_eq!(found.devices(), ["uncore_imc_free_running_0", "uncore_imc_free_running_1"]);
    assert_eq!(found.counters.len(), 4);
    assert_eq!(configs(&found, Traffic::Read), BTreeSet::from([0x20ff]));
    assert_eq!(configs(&found, Traffic::Write), BTreeSet::from([0x30ff]));
    let types: BTreeSet<u32> = found.counters.iter().map(|c| c.event.pmu_type).collect();
    assert_eq!(types, BTreeSet::from([30, 31]));
    assert!(found.counters.iter().all(|c| c.bytes_per_count == 64.0 && c.cpu == 0));
    assert!(found.summary().contains("uncore_imc_free_running_1 on processor 0"));
}

#[test]
fn an_older_client_has_one_device() {
    let found = discover(&Tree::old_client().machine()).expect("counters");
    assert_eq!((found.family, found.devices()), (Family::Client, vec!["uncore_imc"]));
    assert_eq!(configs(&found, Traffic::Read), BTreeSet::from([1]));
    assert_eq!(configs(&found, Traffic::Write), BTreeSet::from([2]));
}

#[test]
fn a_server_has_every_channel_of_every_package_read_once() {
    let found = discover(&Tree::server().machine()).expect("counters");
    assert_eq!((found.family, found.devices().len()), (Family::Server, 8));
    assert_eq!(configs(&found, Traffic::Read), BTreeSet::from([0x0304]));
    assert_eq!(configs(&found, Traffic::Write), BTreeSet::from([0x0c04]));
    let opened: BTreeSet<_> = found.counters.iter().map(|c| (&c.device, c.cpu)).collect();
    assert_eq!((opened.len(), found.counters.len()), (16, 32));
    assert!(found.counters.iter().all(|c| c.event.scope == Scope::Cpu(c.cpu)));
}

#[test]
fn both_sub_channels_of_a_channel_are_read() {
    let tree = Tree::server_of(&[
        ["cas_count_read_sch0", "event=0x05,umask=0xcf"],
        ["cas_count_read_sch1", "event=0x06,umask=0xcf"],
    ]);
    let found = discover(&tree.machine()).expect("counters");
    assert_eq!(configs(&found, Traffic::Read), BTreeSet::from([0xcf05, 0xcf06]));
    assert_eq!(found.counters.len(), 8 * 2 * 2);
    assert!(!found.counts_writes());
}

#[test]
fn free_running_counters_of_a_server_are_the_second_choice() {
    let tree = Tree::server();
    for channel in 0..8 {
        fs::remove_dir_all(tree.device_path(&format!("uncore_imc_{channel}/events"))).expect("it");
    }
    let found = discover(&tree.machine()).expect("counters");
    assert_eq!((found.family, found.devices().len()), (Family::ServerFreeRunning, 4));
    assert_eq!(configs(&found, Traffic::Write), BTreeSet::from([0x21ff]));
}

#[test]
fn amds_channels_are_read_in_both_packages() {
    let found = discover(&Tree::amd().machine()).expect("counters");
    assert_eq!((found.family, found.devices().len()), (Family::AmdUmc, 24));
    assert_eq!(configs(&found, Traffic::Read), BTreeSet::from([0x10a]));
    assert_eq!(configs(&found, Traffic::Write), BTreeSet::from([0x20a]));
    for cpu in [0, 96] {
        assert_eq!(found.counters.iter().filter(|c| c.cpu == cpu).count(), 24);
    }
    assert!(found.summary().starts_with("amd_umc_0 to amd_umc_23 (24 devices) on processor 0,96"));
}

#[test]
fn a_part_of_the_controllers_is_an_error() {
    let tree = Tree::server();
    fs::remove_file(tree.device_path("uncore_imc_5/events/cas_count_read")).expect("it");
    let diagnosis = refusal(&tree);
    assert!(matches!(&diagnosis, Diagnosis::Incomplete { device, .. } if device == "uncore_imc_5"));
    assert!(diagnosis.to_string().contains("a part of the traffic would be missing"));
    let tree = Tree::amd();
    for channel in 12..24 {
        fs::remove_dir_all(tree.device_path(&format!("amd_umc_{channel}"))).expect("it");
    }
    assert!(matches!(refusal(&tree), Diagnosis::Uncovered { package: 1 }));
    tree.file("sys/devices/system/cpu/cpu191/topology/physical_package_id", "1x\n");
    let broken = refusal(&tree).to_string();
    assert!(broken.contains("cpu191/topology/physical_package_id\" says \"1x\": it is no"));
    tree.file("sys/devices/system/cpu/cpu191/topology/physical_package_id", "-1\n");
    tree.file("sys/devices/system/cpu/cpu96/topology/physical_package_id", "-1\n");
    assert_eq!(discover(&tree.machine()).expect("no other package").devices().len(), 12);
    // Writes are left out instead.
    let tree = Tree::server();
    fs::remove_file(tree.device_path("uncore_imc_5/events/cas_count_write")).expect("it");
    let found = discover(&tree.machine()).expect("counters");
    assert!(!found.counts_writes() && found.counters.len() == 16);
}

/// Asserts that a device file with such a content is an error that names it and holds `words`.
fn assert_hostile(file: &str, content: impl AsRef<[u8]>, words: &str) {
    let tree = Tree::client();
    tree.device_file(&format!("uncore_imc_free_running_1/{file}"), content);
    let error = refusal(&tree).to_string();
    assert!(error.contains(&format!("uncore_imc_free_running_1/{file}")), "{error}");
    assert!(error.contains(words), "{file}: {error}");
    assert!(error.len() < 1000 && error.chars().all(|c| !c.is_control()), "{error:?}");
}

#[test]
fn a_hostile_file_is_one_error_that_names_it() {
    assert_hostile("type", "", "no number of a device");
    assert_hostile("type", "-1", "no number of a device");
    assert_hostile("type", "4294967296", "no number of a device");
    assert_hostile("type", vec![b'1'; 10 << 20], "more than 4096 bytes");
    assert_hostile("type", b"\xff\xfe\n", "not text");
    assert_hostile("type", "1\x1b[2J\x07", "1\\u{1b}[2J\\u{7}");
    assert_hostile("cpumask", "0-4000000000", "below 8192");
    assert_hostile("cpumask", "", "no range of processors");
    assert_hostile("cpumask", "zero", "no range of processors");
    assert_hostile("format/event", "config:0-98", "no range of bits");
    assert_hostile("format/event", "config9:0-7", "none of config, config1 and config2");
    assert_hostile("events/data_read", "event=0xff,mask=1", "\"mask\" is no field");
    assert_hostile("events/data_read", "event=0x1ff", "more bits than the field");
    assert_hostile("events/data_read", "event=?", "is no number");
    assert_hostile("events/data_read", "", "is no field");
    for scale in ["-6.103515625e-5", "NaN", "inf", "0", "1e300", "3.814697266e-6"] {
        assert_hostile("events/data_read.scale", scale, "16 to 4096");
    }
    assert_hostile("events/data_read.scale", "much", "is no number");
    assert_hostile("events/data_read.unit", "Joules", "none of the units");
}

#[test]
fn a_hostile_tree_is_an_error() {
    let tree = Tree::client();
    let file = tree.device_path("uncore_imc_free_running_0/type");
    fs::remove_file(&file).expect("it");
    assert!(matches!(refusal(&tree), Diagnosis::Unusable(SysfsError::Unreadable { .. })));
    fs::create_dir(&file).expect("a folder in its place");
    assert!(matches!(refusal(&tree), Diagnosis::Unusable(SysfsError::NotAFile { .. })));
    let tree = Tree::client();
    let folder = tree.device_path("uncore_imc_free_running_0/format");
    for name in 0..=sysfs::NAMES_MAX {
        fs::write(folder.join(name.to_string()), "config:0").expect("a file");
    }
    assert!(matches!(refusal(&tree), Diagnosis::Unusable(SysfsError::TooMany { .. })));
    let tree = Tree::amd();
    tree.device_file("amd_umc_3/cpumask", "0-4095");
    let diagnosis = refusal(&tree);
    assert!(matches!(diagnosis, Diagnosis::TooMany { instances: 4119 }), "{diagnosis}");
    let tree = Tree::client();
    tree.device_file("uncore_imc_free_running_1/type", "30");
    let twice = refusal(&tree).to_string();
    assert!(twice.contains("uncore_imc_free_running_0 has the same number"), "{twice}");
    let tree = Tree::new();
    tree.file("sys/bus/event_source/devices", "no folder");
    assert!(matches!(refusal(&tree), Diagnosis::Unusable(SysfsError::Unreadable { .. })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles_or_to_devices() {
    use std::os::unix::fs::symlink;
    let tree = Tree::client();
    let device = tree.device_path("uncore_imc_free_running_0");
    fs::rename(&device, tree.path("sys/elsewhere")).expect("moved");
    symlink("../../../elsewhere", &device).expect("a link");
    assert_eq!(discover(&tree.machine()).expect("counters").counters.len(), 4);
    let file = device.join("type");
    fs::remove_file(&file).expect("it");
    symlink("type", &file).expect("a circle");
    assert!(matches!(refusal(&tree), Diagnosis::Unusable(SysfsError::Unreadable { .. })));
    fs::remove_file(&file).expect("it");
    symlink("/dev/zero", &file).expect("a link");
    assert!(matches!(refusal(&tree), Diagnosis::Unusable(SysfsError::NotAFile { .. })));
    fs::remove_file(&device).expect("it");
    symlink("uncore_imc_free_running_0", &device).expect("a circle");
    assert!(matches!(refusal(&tree), Diagnosis::Unusable(SysfsError::Unreadable { .. })));
}

#[test]
fn without_devices_the_cause_is_named() {
    let tree = Tree::new();
    tree.device_file("software/type", "1\n");
    tree.file("proc/sys/kernel/perf_event_paranoid", "2\n");
    tree.file("proc/cpuinfo", "model name : Some CPU\x1b\nflags : fpu\n");
    let diagnosis = refusal(&tree).to_string();
    assert!(diagnosis.contains("Some CPU\\u{1b}") && diagnosis.contains("amd_uncore"));
    tree.file("proc/cpuinfo", "flags : fpu hypervisor\n");
    assert!(refusal(&tree).to_string().contains("bare machine"));
    let tree = Tree::new();
    tree.file("proc/sys/kernel/perf_event_paranoid", "2\n");
    tree.file(".dockerenv", "");
    assert!(refusal(&tree).to_string().contains("/.dockerenv"));
}

#[test]
fn a_refusal_is_told_by_what_stands_behind_it() {
    let open = |tree: &Tree, kind| {
        DramMeter::open_with(&tree.machine(), &Refusing(kind)).err().expect("a refusal")
    };
    let tree = Tree::server();
    let denied = io::ErrorKind::PermissionDenied;
    assert!(matches!(open(&tree, denied), Diagnosis::MissingCapability { .. }));
    tree.file("proc/sys/kernel/perf_event_paranoid", "4\n");
    let diagnosis = open(&tree, denied);
    assert!(matches!(diagnosis, Diagnosis::Paranoid { level: 4 }));
    assert!(diagnosis.to_string().contains("setcap cap_perfmon=ep"));
    tree.file("proc/self/status", "CapEff:\t0000004000000000\n");
    tree.file("run/.containerenv", "");
    assert!(matches!(open(&tree, denied), Diagnosis::Container { .. }));
    assert!(matches!(open(&tree, io::ErrorKind::Unsupported), Diagnosis::Container { .. }));
    let diagnosis = open(&tree, io::ErrorKind::NotFound);
    assert!(diagnosis.to_string().contains("cannot open uncore_imc_0 on processor 0"));
    assert!(diagnosis.is_broken() && !open(&tree, denied).is_broken());
    fs::remove_file(tree.path("proc/self/status")).expect("it");
    fs::remove_file(tree.path("proc/sys/kernel/perf_event_paranoid")).expect("it");
    assert!(matches!(open(&tree, io::ErrorKind::Unsupported), Diagnosis::NoPerfEvents));
}

#[test]
fn resctrl_steps_in_where_nothing_else_may_be_used() {
    let tree = Tree::resctrl(["5000", "70"]);
    let mut meter = DramMeter::open(&tree.machine()).expect("resctrl");
    meter.idle(Duration::from_millis(1)).expect("idle");
    meter.start().expect("start");
    tree.file("sys/fs/resctrl/mon_data/mon_L3_00/mbm_total_bytes", "6000\n");
    meter.stop().expect("stop");
    meter.idle(Duration::from_millis(1)).expect("idle");
    let reading = meter.finish().expect("a reading");
    assert_eq!((reading.gross_read_bytes, reading.read_bytes), (1000.0, 1000.0));
    assert_eq!(reading.counted, Counted::ReadsAndWritesTogether);
    assert!(reading.write_bytes.is_none() && reading.source.contains("2 of L3 domains and groups"));
    let tree = Tree::resctrl(["5000", "Unavailable"]);
    let error = DramMeter::open(&tree.machine()).err().expect("no number");
    assert!(error.to_string().contains("says \"Unavailable\""), "{error}");
    // Devices that are there but broken are not passed over.
    let tree = Tree::resctrl(["1", "2"]);
    tree.device_file("amd_umc_0/type", "x");
    let error = DramMeter::open(&tree.machine()).err().expect("broken");
    assert!(matches!(error, Diagnosis::Unusable(_)));
}

#[test]
fn instances_and_packages_are_summed_and_idle_traffic_is_taken_off() {
    // Idle 10 and 30 counts a second, 1000 while decoding.
    let fake = Fake::of_values(&[5, 15, 15, 1015, 1015, 1045]);
    let tree = Tree::server();
    let reading = reading(&tree, &fake).expect("a reading");
    assert_eq!(fake.opened.borrow().len(), 32);
    let counters = 16.0;
    assert_eq!(reading.seconds, 1.0);
    assert_eq!(reading.gross_read_bytes, 1000.0 * 64.0 * counters);
    assert_eq!(reading.read_bytes, 980.0 * 64.0 * counters);
    assert_eq!(reading.write_bytes, Some(980.0 * 64.0 * counters));
    let rate = |counts: f64| counts * 64.0 * counters;
    let rates = |counts| Rates { read_bytes_per_s: rate(counts), write_bytes_per_s: rate(counts) };
    assert_eq!((reading.idle_before, reading.idle_after), (rates(10.0), rates(30.0)));
    assert_eq!(reading.scheduled_fraction, 1.0);
    assert_eq!(reading.read_bytes_per_token(10), Some(98.0 * 64.0 * counters));
    assert_eq!(reading.write_bytes_per_token(0), None);
    assert_eq!(reading.read_bytes_per_token(0), None);
    assert!(reading.source.starts_with("measured: uncore_imc_0 to uncore_imc_7 (8 devices)"));
}

#[test]
fn a_machine_that_is_busier_at_rest_says_so() {
    let fake = Fake::of_values(&[0, 500, 500, 600, 600, 1100]);
    let error = reading(&Tree::client(), &fake).expect_err("nothing is left");
    assert!(matches!(error, MeterError::Restless { .. }), "{error}");
    // What is left of this is below the floor, which it would reach without the baseline.
    let fake = Fake::of_values(&[0, 90, 90, 190, 190, 280]);
    let reading = reading(&Tree::client(), &fake).expect("a reading");
    assert_eq!(reading.read_bytes, 10.0 * 64.0 * 2.0);
    let floor = Floor { counted_bytes_per_token: 12_800.0, cache_bytes: 0 };
    let error = reading.check_floor(1, floor).expect_err("a tenth is left");
    assert!(error.for_want_of_idle && error.to_string().contains("not at rest"), "{error}");
}

#[test]
fn counters_that_stand_still_are_no_measurement() {
    // A floor of 0, where the caches may hold everything, would let them pass.
    let fake = Fake::of_values(&[0, 500, 500, 500, 500, 900]);
    let error = reading(&Tree::client(), &fake).expect_err("nothing was counted");
    assert!(matches!(error, MeterError::StandsStill { .. }), "{error}");
    assert!(error.to_string().contains("uncore_imc_free_running_0"), "{error}");
}

#[test]
fn counters_that_take_turns_are_extrapolated() {
    // One device counts half of the time, and in the last stretch a quarter of it.
    let fake = Fake::new(|event, reading| {
        let time = 1000 * (reading as u64 + 1);
        let share = match event.pmu_type {
            30 => [2, 2, 2, 2, 2, 4][reading],
            _ => 1,
        };
        Ok(Count { value: 100 * reading as u64, enabled_ns: time, running_ns: time / share })
    });
    let error = reading(&Tree::client(), &fake).expect_err("a running time that shrinks");
    assert!(error.to_string().contains("uncore_imc_free_running_0: it went backwards"), "{error}");
    let fake = Fake::new(|event, reading| {
        let time = 1_000_000_000 * (reading as u64 + 1);
        let share = if event.pmu_type == 30 { 2 } else { 1 };
        Ok(Count { value: 100 * reading as u64, enabled_ns: time, running_ns: time / share })
    });
    let reading = reading(&Tree::client(), &fake).expect("a reading");
    assert_eq!(reading.scheduled_fraction, 0.5);
    assert_eq!(reading.gross_read_bytes, (200.0 + 100.0) * 64.0);
}

#[test]
fn counters_that_cannot_be_trusted_are_errors() {
    let never = Fake::new(|_, reading| {
        Ok(Count { value: 0, enabled_ns: 1000 * (reading as u64 + 1), running_ns: 0 })
    });
    let error = reading(&Tree::client(), &never).expect_err("never scheduled");
    assert!(error.to_string().contains("never scheduled"), "{error}");
    let error = reading(&Tree::client(), &Fake::of_values(&[9, 9, 9, 8])).expect_err("backwards");
    assert!(error.to_string().contains("from 9 to 8"), "{error}");
    let broken = Fake::new(|_, _| Err(io::ErrorKind::UnexpectedEof.into()));
    let error = reading(&Tree::client(), &broken).expect_err("unreadable");
    assert!(matches!(error, MeterError::Unreadable { .. }));
}

#[test]
fn the_steps_have_an_order() {
    let values = &[0, 1, 1, 11, 20, 30, 30, 31, 31, 32];
    let fake = Fake::of_values(values);
    let mut meter = DramMeter::open_with(&Tree::client().machine(), &fake).expect("counters");
    let order = |result: Result<(), MeterError>| {
        assert!(matches!(result, Err(MeterError::Order { .. })), "{result:?}");
    };
    order(meter.start());
    order(meter.stop());
    meter.idle(Duration::ZERO).expect("idle");
    for _ in 0..2 {
        meter.start().expect("start");
        order(meter.start());
        order(meter.idle(Duration::ZERO));
        meter.stop().expect("stop");
        order(meter.stop());
    }
    // What moved between the tokens does not count.
    meter.idle(Duration::ZERO).expect("idle");
    meter.idle(Duration::ZERO).expect("more of it");
    order(meter.start());
    let reading = meter.finish().expect("a reading");
    assert_eq!((reading.seconds, reading.gross_read_bytes), (2.0, 20.0 * 64.0 * 2.0));
    assert_eq!(reading.idle_after.read_bytes_per_s, 64.0 * 2.0);
    let fake = Fake::of_values(values);
    let mut meter = DramMeter::open_with(&Tree::client().machine(), &fake).expect("counters");
    meter.idle(Duration::ZERO).expect("idle");
    meter.start().expect("start");
    meter.stop().expect("stop");
    assert!(matches!(meter.finish(), Err(MeterError::Order { step: "finish" })));
}

#[test]
fn one_of_two_controllers_is_below_the_floor() {
    // The published case: 2340 MiB a token from one controller, 4.8 GB of weights.
    const LINES: u64 = (2340 << 20) / 64;
    let fake = || Fake::of_values(&[0, 0, 0, LINES, LINES, LINES]);
    let floor = Floor { counted_bytes_per_token: 4.8e9, cache_bytes: 36 << 20 };
    reading(&Tree::client(), &fake()).expect("a reading").check_floor(1, floor).expect("both");
    let tree = Tree::client();
    fs::remove_dir_all(tree.device_path("uncore_imc_free_running_1")).expect("it");
    let one = reading(&tree, &fake()).expect("a reading");
    let error = one.check_floor(1, floor).expect_err("one");
    assert!(!error.for_want_of_idle && error.floor == floor);
    let message = error.to_string();
    for word in ["2453.7 MB", "4762.3 MB", "0.52", "Falcon-7B", "uncore_imc_free_running_0 on"] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[test]
fn the_floor_is_what_the_caches_cannot_keep() {
    let floor = |cache_bytes| Floor { counted_bytes_per_token: 1000.0, cache_bytes };
    assert_eq!((floor(0).bytes(), floor(300).bytes(), floor(3000).bytes()), (1000.0, 700.0, 0.0));
    assert!(check_floor(1000.0, floor(0)).is_ok() && check_floor(999.9, floor(0)).is_err());
    assert!(check_floor(700.0, floor(300)).is_ok() && check_floor(0.0, floor(3000)).is_ok());
    assert!(check_floor(f64::NAN, floor(3000)).is_err());
}
