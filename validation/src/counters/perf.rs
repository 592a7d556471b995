//! The system call `perf_event_open`, the only thing in this crate that needs trust.
//!
//! A counter is opened once, counts from then on, and is read as often as wanted: what counts is
//! the difference of two readings, so that it is never stopped or reset.

use std::io;

use super::arithmetic::Count;
use super::sysfs::Config;

/// Something that counts.
pub trait Reader: Send {
    /// What it has counted up to now.
    ///
    /// # Errors
    /// Those of the system, or a text that is no number.
    fn read(&mut self) -> io::Result<Count>;
}

/// What can open counters: the system, or a test's stand-in.
pub trait Opener {
    /// Opens a counter, which counts from now on.
    ///
    /// # Errors
    /// Those of the system: `PermissionDenied` if this process may not, `Unsupported` if the
    /// system has no such call.
    fn open(&self, event: &Event) -> io::Result<Box<dyn Reader>>;
}

/// What is to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The kernel's number of the device.
    pub pmu_type: u32,
    /// What the device shall count.
    pub config: Config,
    /// For whom.
    pub scope: Scope,
}

/// For whom it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// For all that happens on a processor, or on a device that is read through it.
    Cpu(u32),
    /// For the thread that opens it, outside of the kernel.
    ThisThread,
}

/// The system's own counters.
#[derive(Clone, Copy, Debug)]
pub struct System;

#[cfg(not(target_os = "linux"))]
impl Opener for System {
    fn open(&self, _: &Event) -> io::Result<Box<dyn Reader>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
impl Opener for System {
    fn open(&self, event: &Event) -> io::Result<Box<dyn Reader>> {
        Ok(Box::new(linux::Counter::open(event)?))
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::{self, Read as _};
    use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

    use super::{Count, Event, Reader, Scope};

    /// The kernel's `struct perf_event_attr` of its version 1, which every kernel since 2.6.33
    /// takes. All of it is 0 but what is set.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        wakeup_events: u32,
        breakpoint_type: u32,
        config1: u64,
        config2: u64,
    }

    const SIZE: usize = size_of::<Attributes>();
    const _: () = assert!(SIZE == 72);

    /// A reading has the times enabled (bit 0) and running (bit 1) behind the value.
    const READ_FORMAT: u64 = 0b11;
    /// Leave out what happens in the kernel (bit 5) and in a hypervisor (bit 6). Devices refuse it.
    const USER_ONLY: u64 = 0b110_0000;
    /// Close the file when another program is run.
    const CLOEXEC: libc::c_long = 8;

    /// An open counter.
    #[derive(Debug)]
    pub(super) struct Counter {
        file: File,
    }

    impl Counter {
        pub(super) fn open(event: &Event) -> io::Result<Self> {
            let [config, config1, config2] = event.config;
            // Of the call's arguments: the process (-1 is all, 0 this one), the processor (-1 is
            // any), the leader of a group (-1 is none).
            let (pid, cpu, flags) = match event.scope {
                Scope::Cpu(cpu) => (-1, libc::c_long::from(cpu), 0),
                Scope::ThisThread => (0, -1, USER_ONLY),
            };
            let mut attributes = Attributes {
                kind: event.pmu_type,
                size: SIZE as u32,
                config,
                read_format: READ_FORMAT,
                flags,
                config1,
                config2,
                ..Attributes::default()
            };
            let (pid, no_group): (libc::c_long, libc::c_long) = (pid, -1);
            // SAFETY: `attributes` is laid out as the kernel's structure of the size that it
            // states, nothing else refers to it, and it lives until the call is over. The kernel
            // reads it and writes nothing but the size that it would rather have. The other
            // arguments are numbers, each as wide as the kernel's registers.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_perf_event_open,
                    &raw mut attributes,
                    pid,
                    cpu,
                    no_group,
                    CLOEXEC,
                )
            };
            let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just made this descriptor for us, and nothing else has it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Self { file: File::from(fd) })
        }
    }

    impl Reader for Counter {
        fn read(&mut self) -> io::Result<Count> {
            let mut words = [[0; 8]; 3];
            // A counter is read in one go; the end of the file means that it is in error.
            self.file.read_exact(words.as_flattened_mut())?;
            let [value, enabled_ns, running_ns] = words.map(u64::from_ne_bytes);
            Ok(Count { value, enabled_ns, running_ns })
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    use super::super::{Diagnosis, Machine};
    use super::*;

    /// The kernel's numbers of its own counters.
    const SOFTWARE: u32 = 1;
    const CPU_CLOCK: u64 = 0;
    const TASK_CLOCK: u64 = 1;
    const PAGE_FAULTS: u64 = 2;

    /// Opens a counter of the kernel's. Where that is refused, the diagnosis must be the one that
    /// the machine's files lead to, and the test says that it has seen no more than that.
    fn open(config: u64, scope: Scope) -> Option<Box<dyn Reader>> {
        let event = Event { pmu_type: SOFTWARE, config: [config, 0, 0], scope };
        let source = match System.open(&event) {
            Ok(reader) => return Some(reader),
            Err(source) => source,
        };
        let environment = Machine::here().environment();
        let diagnosis = Diagnosis::of_refusal(&environment, "software", 0, source);
        match &diagnosis {
            // From level 3 on, some kernels let nobody count even for himself.
            Diagnosis::Paranoid { level } => {
                assert!(!environment.capable, "{diagnosis}");
                assert!(*level > if scope == Scope::ThisThread { 2 } else { 0 }, "{diagnosis}");
            }
            Diagnosis::Container { .. } => assert!(environment.container.is_some()),
            Diagnosis::MissingCapability { .. } => assert!(environment.container.is_none()),
            Diagnosis::NoPerfEvents => assert_eq!(environment.perf_event_paranoid, None),
            other => panic!("the kernel's own counters: {other}"),
        }
        eprintln!("skipped: {diagnosis}");
        None
    }

    fn spin(duration: Duration) {
        let started = Instant::now();
        while started.elapsed() < duration {
            black_box(());
        }
    }

    #[test]
    fn a_threads_own_time_is_counted() {
        let Some(mut reader) = open(TASK_CLOCK, Scope::ThisThread) else { return };
        let before = reader.read().expect("a reading");
        // So much work, and not so much time, of which others may take any part.
        (0..20_000_000).for_each(|step| {
            black_box(step);
        });
        let delta = reader.read().expect("a reading").since(before).expect("forward");
        let scaled = delta.scaled().expect("it ran");
        assert!((1e6..10e9).contains(&scaled), "{delta:?}");
        // Software counters do not take turns.
        assert_eq!(delta.enabled_ns, delta.running_ns);
    }

    #[test]
    fn page_faults_are_counted() {
        let Some(mut reader) = open(PAGE_FAULTS, Scope::ThisThread) else { return };
        let before = reader.read().expect("a reading");
        let bytes = black_box(vec![1u8; 64 << 20]);
        let delta = reader.read().expect("a reading").since(before).expect("forward");
        // One for each huge page at least.
        assert!(delta.value >= 16, "{delta:?} for {}", bytes.len());
    }

    #[test]
    fn a_processors_time_is_counted_if_the_files_say_that_it_may_be() {
        let Some(mut reader) = open(CPU_CLOCK, Scope::Cpu(0)) else { return };
        assert!(Machine::here().environment().may_count_machine_wide());
        let before = reader.read().expect("a reading");
        spin(Duration::from_millis(5));
        let delta = reader.read().expect("a reading").since(before).expect("forward");
        assert!(delta.scaled().expect("it ran") > 1e6, "{delta:?}");
        assert!(delta.enabled_ns >= 4_000_000, "{delta:?}");
    }

    #[test]
    fn what_cannot_be_opened_is_an_error() {
        let absent = Event { pmu_type: u32::MAX, config: [0; 3], scope: Scope::ThisThread };
        assert!(System.open(&absent).is_err());
        let nowhere = Event { pmu_type: SOFTWARE, config: [0; 3], scope: Scope::Cpu(u32::MAX) };
        assert!(System.open(&nowhere).is_err());
    }
}
