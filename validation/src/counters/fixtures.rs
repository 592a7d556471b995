//! Machines that are written into a folder, and counters that say what a test wants.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Machine;
use super::arithmetic::Count;
use super::perf::{Event, Opener, Reader};

/// Scale of a counter of 64-byte lines in MiB, as the kernel writes it.
const LINES: &str = "6.103515625e-5\n";

/// A folder with the files of a machine.
pub(crate) struct Tree {
    root: tempfile::TempDir,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self { root: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn machine(&self) -> Machine {
        Machine::at(self.root.path())
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Where a file of a device is.
    pub(crate) fn device_path(&self, path: &str) -> PathBuf {
        self.path(&format!("sys/bus/event_source/devices/{path}"))
    }

    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, content).expect("a file");
    }

    /// A file of a device.
    pub(crate) fn device_file(&self, path: &str, content: impl AsRef<[u8]>) {
        self.file(&format!("sys/bus/event_source/devices/{path}"), content);
    }

    /// A device; its events count lines of 64 bytes in MiB.
    fn device(&self, name: &str, pmu_type: u32, cpus: &str, format: &[[&str; 2]]) {
        self.device_file(&format!("{name}/type"), format!("{pmu_type}\n"));
        self.device_file(&format!("{name}/cpumask"), format!("{cpus}\n"));
        for [field, bits] in format {
            self.device_file(&format!("{name}/format/{field}"), format!("{bits}\n"));
        }
    }

    fn events(&self, name: &str, events: &[[&str; 2]]) {
        for [event, terms] in events {
            self.device_file(&format!("{name}/events/{event}"), format!("{terms}\n"));
            self.device_file(&format!("{name}/events/{event}.scale"), LINES);
            self.device_file(&format!("{name}/events/{event}.unit"), "MiB\n");
        }
    }

    /// Processors, the package of each, and a kernel that lets anyone count.
    fn packages(&self, of_cpus: &[(u32, u32)]) {
        for (cpu, package) in of_cpus {
            let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id");
            self.file(&path, format!("{package}\n"));
        }
        self.file("proc/sys/kernel/perf_event_paranoid", "-1\n");
        self.device_file("software/type", "1\n");
    }

    /// An Intel client with free-running counters of two controllers, beside the programmable ones
    /// for which the kernel names no events.
    pub(crate) fn client() -> Self {
        let tree = Self::new();
        tree.packages(&[(0, 0), (1, 0)]);
        let format = [["event", "config:0-7"], ["umask", "config:8-15"]];
        for controller in 0..2 {
            tree.device(&format!("uncore_imc_{controller}"), 20 + controller, "0", &format);
            let name = format!("uncore_imc_free_running_{controller}");
            tree.device(&name, 30 + controller, "0", &format);
            let events = [
                ["data_total", "event=0xff,umask=0x10"],
                ["data_read", "event=0xff,umask=0x20"],
                ["data_write", "event=0xff,umask=0x30"],
            ];
            tree.events(&name, &events);
        }
        tree
    }

    /// An Intel client of before that, with one device.
    pub(crate) fn old_client() -> Self {
        let tree = Self::new();
        tree.packages(&[(0, 0)]);
        tree.device("uncore_imc", 12, "0", &[["event", "config:0-7"]]);
        tree.events("uncore_imc", &[["data_reads", "event=0x01"], ["data_writes", "event=0x02"]]);
        tree
    }

    /// An Intel server of two packages with eight channels each, which has free-running counters of
    /// the same traffic as well.
    pub(crate) fn server() -> Self {
        let tree = Self::server_of(&[
            ["cas_count_read", "event=0x04,umask=0x03"],
            ["cas_count_write", "event=0x04,umask=0x0c"],
        ]);
        let format = [["event", "config:0-7"], ["umask", "config:8-15"]];
        for controller in 0..4 {
            let name = format!("uncore_imc_free_running_{controller}");
            tree.device(&name, 60 + controller, "0,28", &format);
            tree.events(
                &name,
                &[["read", "event=0xff,umask=0x20"], ["write", "event=0xff,umask=0x21"]],
            );
        }
        tree
    }

    /// Such a server whose channels have the given events, and nothing else.
    pub(crate) fn server_of(events: &[[&str; 2]]) -> Self {
        let tree = Self::new();
        tree.packages(&[(0, 0), (1, 0), (28, 1), (29, 1)]);
        let format = [
            ["event", "config:0-7"],
            ["umask", "config:8-15"],
            ["edge", "config:18"],
            ["thresh", "config:24-31"],
        ];
        for channel in 0..8 {
            let name = format!("uncore_imc_{channel}");
            tree.device(&name, 40 + channel, "0,28", &format);
            tree.events(&name, events);
        }
        tree
    }

    /// Two packages of AMD's with twelve channels each; a device is in one of them.
    pub(crate) fn amd() -> Self {
        let tree = Self::new();
        tree.packages(&[(0, 0), (95, 0), (96, 1), (191, 1)]);
        for channel in 0..24 {
            let cpus = if channel < 12 { "0" } else { "96" };
            let format = [["event", "config:0-7"], ["rdwrmask", "config:8-9"]];
            tree.device(&format!("amd_umc_{channel}"), 14 + channel, cpus, &format);
        }
        tree
    }

    /// No devices at all, and a resctrl with one number for each of two L3 domains.
    pub(crate) fn resctrl(values: [&str; 2]) -> Self {
        let tree = Self::new();
        tree.packages(&[(0, 0)]);
        for (domain, value) in values.into_iter().enumerate() {
            let path = format!("sys/fs/resctrl/mon_data/mon_L3_0{domain}/mbm_total_bytes");
            tree.file(&path, format!("{value}\n"));
        }
        tree
    }
}

/// What a counter says at its n-th reading.
pub(crate) type Script = dyn Fn(&Event, usize) -> io::Result<Count> + Send + Sync;

/// Counters that follow a script.
pub(crate) struct Fake {
    script: Arc<Script>,
    pub(crate) opened: RefCell<Vec<Event>>,
}

impl Fake {
    pub(crate) fn new(
        script: impl Fn(&Event, usize) -> io::Result<Count> + Send + Sync + 'static,
    ) -> Self {
        Self { script: Arc::new(script), opened: RefCell::default() }
    }

    /// Counters that have counted so much at each reading, with a second between the readings.
    pub(crate) fn of_values(values: &'static [u64]) -> Self {
        Self::new(|_, reading| {
            let time = 1_000_000_000 * (reading as u64 + 1);
            Ok(Count { value: values[reading], enabled_ns: time, running_ns: time })
        })
    }
}

impl Opener for Fake {
    fn open(&self, event: &Event) -> io::Result<Box<dyn Reader>> {
        self.opened.borrow_mut().push(*event);
        Ok(Box::new(Scripted { script: Arc::clone(&self.script), event: *event, reading: 0 }))
    }
}

struct Scripted {
    script: Arc<Script>,
    event: Event,
    reading: usize,
}

impl Reader for Scripted {
    fn read(&mut self) -> io::Result<Count> {
        let count = (self.script)(&self.event, self.reading);
        self.reading += 1;
        count
    }
}

/// An opener that always gets the same refusal.
pub(crate) struct Refusing(pub(crate) io::ErrorKind);

impl Opener for Refusing {
    fn open(&self, _: &Event) -> io::Result<Box<dyn Reader>> {
        Err(self.0.into())
    }
}
