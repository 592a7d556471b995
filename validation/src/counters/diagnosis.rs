//! Why memory traffic cannot be measured here, and what to do about it (SPEC B12).

use std::io;

use super::machine::Environment;
use super::resctrl::ResctrlError;
use super::sysfs::SysfsError;

/// Why memory traffic cannot be measured.
#[derive(Debug, thiserror::Error)]
#[error("{}; {}", self.cause(), self.remedy())]
pub enum Diagnosis {
    /// The hypervisor keeps the memory controllers to itself.
    VirtualMachine,
    /// The container does not show the devices, or does not let them be opened.
    Container {
        /// What shows that this is a container.
        sign: String,
    },
    /// The system lets only the privileged count for the whole machine.
    Paranoid {
        /// `kernel.perf_event_paranoid`.
        level: i64,
    },
    /// The kernel refused, whatever the files say.
    MissingCapability {
        /// The device that it refused.
        device: String,
    },
    /// The kernel was built without perf events, or this is not Linux.
    NoPerfEvents,
    /// The kernel has no driver for this processor's memory controllers, or we do not know it.
    Unsupported {
        /// The processor's name.
        processor: String,
    },
    /// A device of the family does not count what its siblings do.
    Incomplete {
        /// The device.
        device: String,
        /// What it lacks.
        lacks: String,
    },
    /// A package has memory controllers of its own, but none of them can be read.
    Uncovered {
        /// The number of the package.
        package: u32,
    },
    /// More memory controllers are listed than any machine has.
    TooMany {
        /// Their number, each device counted once for each package.
        instances: usize,
    },
    /// A file of the kernel's is not as the kernel makes it.
    Unusable(SysfsError),
    /// The kernel would not open a counter for another reason than permission.
    Refused {
        /// The device.
        device: String,
        /// The processor on which it was to be opened.
        cpu: u32,
        /// The kernel's word for it.
        source: io::Error,
    },
    /// Memory bandwidth monitoring is there but gives no numbers.
    Resctrl(ResctrlError),
}

impl From<SysfsError> for Diagnosis {
    fn from(error: SysfsError) -> Self {
        Self::Unusable(error)
    }
}

impl From<ResctrlError> for Diagnosis {
    fn from(error: ResctrlError) -> Self {
        Self::Resctrl(error)
    }
}

impl Diagnosis {
    /// What a refusal to open `device` on `cpu` means here.
    pub fn of_refusal(
        environment: &Environment,
        device: &str,
        cpu: u32,
        source: io::Error,
    ) -> Self {
        let device = device.to_owned();
        let denied = source.kind() == io::ErrorKind::PermissionDenied;
        // A filter of system calls may also pretend that there is no such call.
        let filtered = denied || source.kind() == io::ErrorKind::Unsupported;
        match (environment.permission(), &environment.container) {
            (Err(Self::NoPerfEvents), _) => Self::NoPerfEvents,
            (Err(paranoid), _) if denied => paranoid,
            (_, Some(sign)) if filtered => Self::Container { sign: sign.clone() },
            _ if denied => Self::MissingCapability { device },
            _ => Self::Refused { device, cpu, source },
        }
    }

    /// Whether something is there that should be mended, rather than nothing to measure with.
    pub fn is_broken(&self) -> bool {
        matches!(
            self,
            Self::Incomplete { .. }
                | Self::Uncovered { .. }
                | Self::TooMany { .. }
                | Self::Unusable(_)
                | Self::Refused { .. }
                | Self::Resctrl(_)
        )
    }

    /// What is in the way.
    pub fn cause(&self) -> String {
        match self {
            Self::VirtualMachine => "this is a virtual machine, and its hypervisor does not pass \
                                     the memory controllers' counters on"
                .to_owned(),
            Self::Container { sign } => {
                format!("this is a container ({sign}) that keeps the counters away")
            }
            Self::Paranoid { level } => format!(
                "kernel.perf_event_paranoid is {level}, so that this process may not count for \
                 the whole machine, as memory controllers do"
            ),
            Self::MissingCapability { device } => {
                format!("the kernel does not let this process open {device}")
            }
            Self::NoPerfEvents => "this kernel has no perf events".to_owned(),
            Self::Unsupported { processor } => format!(
                "the kernel offers no counters of memory controllers that are known here \
                 (the processor is {})",
                processor.escape_debug()
            ),
            Self::Incomplete { device, lacks } => {
                format!("{device} lacks {lacks}, which the other memory controllers have")
            }
            Self::Uncovered { package } => {
                format!("no memory controller of package {package} can be read")
            }
            Self::TooMany { instances } => {
                format!("{instances} memory controllers are listed, more than any machine has")
            }
            Self::Unusable(error) => error.to_string(),
            Self::Refused { device, cpu, source } => {
                format!("cannot open {device} on processor {cpu}: {source}")
            }
            Self::Resctrl(error) => error.to_string(),
        }
    }

    /// What to do about it, in a sentence.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::VirtualMachine => {
                "measure on the bare machine, or on an instance type that has all of it (\"metal\")"
            }
            Self::Container { .. } => {
                "measure outside, or start it with CAP_PERFMON, with a seccomp profile that \
                 allows perf_event_open, and with the host's /sys"
            }
            Self::Paranoid { .. } => {
                "run as root, give the program CAP_PERFMON \
                 ('setcap cap_perfmon=ep PROGRAM'), or set kernel.perf_event_paranoid to 0"
            }
            Self::MissingCapability { .. } => {
                "give the program CAP_PERFMON in the first user namespace, and see whether a \
                 security module or a lockdown of the kernel forbids it"
            }
            Self::NoPerfEvents => "use a Linux kernel with CONFIG_PERF_EVENTS",
            Self::Unsupported { .. } => {
                "load the uncore driver of this processor (intel_uncore; amd_uncore with a kernel \
                 from 6.10 on for Zen 4 and later), or mount resctrl"
            }
            Self::Incomplete { .. } | Self::Uncovered { .. } => {
                "a part of the traffic would be missing, so that nothing is measured; use a newer \
                 kernel, or one whose driver knows every memory controller of this machine"
            }
            Self::Unusable(_) | Self::TooMany { .. } => {
                "see what is mounted there, and use a newer kernel if it is /sys"
            }
            Self::Refused { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "the kernel knows no such device or event, so that its files cannot be right: see \
                 what is mounted over /sys/bus/event_source/devices"
            }
            Self::Refused { .. } => {
                "see that the processor is online, that 'ulimit -n' allows a file for each \
                 counter, and that no other program uses the counters"
            }
            Self::Resctrl(_) => "remove the monitoring groups, or mount resctrl again",
        }
    }
}
