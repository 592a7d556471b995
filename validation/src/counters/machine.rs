//! The machine as its kernel describes it below `/proc` and `/sys`, and what of it decides whether
//! this process may count.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::Diagnosis;

/// The capability that allows counting without being root (its bit in the kernel's mask).
const CAP_PERFMON: u32 = 38;
/// The capability that allowed it before there was that one.
const CAP_SYS_ADMIN: u32 = 21;
/// As much of a file as is looked at: of `/proc/cpuinfo` that is more than one processor.
const LOOK_BYTES: u64 = 64 << 10;

/// Files that only a container has.
const CONTAINER_FILES: [&str; 3] = [".dockerenv", "run/.containerenv", "run/systemd/container"];
/// Words in the first process's control group that only a container has.
const CONTAINER_GROUPS: [&str; 5] = ["docker", "kubepods", "containerd", "lxc", "libpod"];

/// A machine whose `/proc` and `/sys` are below some root.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self::at(Path::new("/"))
    }

    /// The one that the files below `root` describe.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where a file of the machine is; `path` is relative.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The start of a file, `None` if it is none or cannot be read.
    fn look(&self, path: &str) -> Option<String> {
        let path = self.path(path);
        // A pipe would be waited for.
        let file = path.is_file().then(|| File::open(path).ok()).flatten()?;
        let mut start = Vec::new();
        file.take(LOOK_BYTES).read_to_end(&mut start).ok()?;
        Some(String::from_utf8_lossy(&start).into_owned())
    }

    /// What decides whether this process may count.
    pub fn environment(&self) -> Environment {
        let cpuinfo = self.look("proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let of_name = |line: &str| {
                let (key, value) = line.split_once(':')?;
                (key.trim_end() == name).then(|| value.trim().to_owned())
            };
            cpuinfo.lines().find_map(of_name)
        };
        let flags = field("flags").unwrap_or_default();
        let paranoid = self.look("proc/sys/kernel/perf_event_paranoid");
        Environment {
            perf_event_paranoid: paranoid.and_then(|level| level.trim().parse().ok()),
            capable: self.capable(),
            virtual_machine: flags.split_whitespace().any(|flag| flag == "hypervisor")
                || self.path("sys/hypervisor/type").exists(),
            container: self.container(),
            processor: field("model name"),
        }
    }

    /// Whether this process has a capability that lifts `perf_event_paranoid`.
    fn capable(&self) -> bool {
        let status = self.look("proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        mask & (1 << CAP_PERFMON | 1 << CAP_SYS_ADMIN) != 0
    }

    /// What shows that this is a container.
    fn container(&self) -> Option<String> {
        let file = CONTAINER_FILES.iter().find(|file| self.path(file).exists());
        let of_file = file.map(|file| format!("there is /{file}"));
        of_file.or_else(|| {
            let groups = self.look("proc/1/cgroup")?;
            let word = CONTAINER_GROUPS.iter().find(|word| groups.contains(**word))?;
            Some(format!("/proc/1/cgroup names {word}"))
        })
    }
}

/// What decides whether this process may count for the whole machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `kernel.perf_event_paranoid`: from -1 (anyone counts anything) to 4 (no one counts); `None`
    /// where the kernel has no perf events.
    pub perf_event_paranoid: Option<i64>,
    /// Whether this process has a capability that makes that level meaningless.
    pub capable: bool,
    /// Whether a hypervisor stands between this system and the hardware.
    pub virtual_machine: bool,
    /// What shows that this is a container.
    pub container: Option<String>,
    /// The processor's name.
    pub processor: Option<String>,
}

impl Environment {
    /// Whether this process may count for the whole machine, which memory controllers need.
    pub fn may_count_machine_wide(&self) -> bool {
        self.capable || self.perf_event_paranoid.is_some_and(|level| level <= 0)
    }

    /// Says what is in the way of counting for the whole machine, as far as files tell.
    ///
    /// # Errors
    /// [`Diagnosis::Paranoid`] and [`Diagnosis::NoPerfEvents`].
    pub fn permission(&self) -> Result<(), Diagnosis> {
        match self.perf_event_paranoid {
            _ if self.may_count_machine_wide() => Ok(()),
            Some(level) => Err(Diagnosis::Paranoid { level }),
            None => Err(Diagnosis::NoPerfEvents),
        }
    }

    /// Why no device that counts memory traffic was found.
    pub(super) fn absence(&self, devices_are_visible: bool) -> Diagnosis {
        match &self.container {
            _ if self.virtual_machine => Diagnosis::VirtualMachine,
            _ if self.perf_event_paranoid.is_none() => Diagnosis::NoPerfEvents,
            Some(sign) if !devices_are_visible => Diagnosis::Container { sign: sign.clone() },
            _ => {
                let processor = self.processor.clone().unwrap_or("of an unknown kind".to_owned());
                Diagnosis::Unsupported { processor }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Tree;
    use super::*;

    #[test]
    fn an_unknown_machine_is_not_taken_for_anything() {
        let tree = Tree::new();
        let environment = tree.machine().environment();
        let nothing = Environment {
            perf_event_paranoid: None,
            capable: false,
            virtual_machine: false,
            container: None,
            processor: None,
        };
        assert_eq!(environment, nothing);
        assert!(matches!(environment.permission(), Err(Diagnosis::NoPerfEvents)));
    }

    #[test]
    fn permission_is_a_level_or_a_capability() {
        let at = |level: &str, mask: &str| {
            let tree = Tree::new();
            tree.file("proc/sys/kernel/perf_event_paranoid", level);
            tree.file("proc/self/status", format!("Name:\tx\nCapEff:\t{mask}\n"));
            tree.machine().environment()
        };
        assert!(at("0\n", "0").permission().is_ok());
        assert!(at("-1", "0").permission().is_ok());
        assert!(at("4", "0000004000000000").permission().is_ok());
        assert!(at("4", "0000000000200000").permission().is_ok());
        let error = at("2\n", "000001bfffdfffff").permission().expect_err("neither");
        assert!(matches!(error, Diagnosis::Paranoid { level: 2 }), "{error}");
    }

    #[test]
    fn virtual_machines_and_containers_give_themselves_away() {
        let tree = Tree::new();
        tree.file("proc/cpuinfo", "processor\t: 0\nmodel name\t: X 1\nflags\t\t: fpu hypervisor\n");
        let environment = tree.machine().environment();
        assert!(environment.virtual_machine && environment.container.is_none());
        assert_eq!(environment.processor.as_deref(), Some("X 1"));
        let tree = Tree::new();
        tree.file("proc/cpuinfo", "flags : fpu\nvmx flags : hypervisor\n");
        assert!(!tree.machine().environment().virtual_machine);
        tree.file("sys/hypervisor/type", "xen\n");
        assert!(tree.machine().environment().virtual_machine);
        for file in CONTAINER_FILES {
            let tree = Tree::new();
            tree.file(file, "");
            let sign = tree.machine().environment().container;
            assert_eq!(sign, Some(format!("there is /{file}")));
        }
        let tree = Tree::new();
        tree.file("proc/1/cgroup", "0::/init.scope\n");
        assert_eq!(tree.machine().environment().container, None);
        tree.file("proc/1/cgroup", "12:cpu:/kubepods/besteffort/pod1\n");
        assert!(tree.machine().environment().container.is_some_and(|sign| sign.contains("kube")));
    }

    #[test]
    fn the_absence_of_devices_has_the_nearest_cause() {
        let mut environment = Environment {
            perf_event_paranoid: Some(2),
            capable: false,
            virtual_machine: true,
            container: Some("a sign".to_owned()),
            processor: Some("X 1".to_owned()),
        };
        assert!(matches!(environment.absence(true), Diagnosis::VirtualMachine));
        environment.virtual_machine = false;
        assert!(matches!(environment.absence(false), Diagnosis::Container { .. }));
        assert!(matches!(environment.absence(true), Diagnosis::Unsupported { .. }));
        environment.container = None;
        assert!(environment.absence(false).to_string().contains("X 1"));
        environment.perf_event_paranoid = None;
        assert!(matches!(environment.absence(false), Diagnosis::NoPerfEvents));
    }
}
