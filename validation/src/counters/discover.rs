//! Which devices of this machine count memory traffic, and what to ask them (SPEC B8, B9).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Diagnosis;
use super::machine::Machine;
use super::perf::{Event, Scope};
use super::sysfs::{self, CPUS_MAX, Device, SysfsError, names};

/// Where the kernel lists what can count.
const DEVICES: &str = "sys/bus/event_source/devices";
/// Bytes of a line, which a channel of AMD's controllers moves for each command that it counts.
const LINE_BYTES: f64 = 64.0;

/// More instances than any machine has; what they need is bounded by it.
const INSTANCES_MAX: usize = 4096;

/// A kind of memory controller's counters, the preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Intel server: column accesses of each channel, or of its two sub-channels.
    Server,
    /// Intel client since Tiger Lake: free-running counters of each controller.
    ClientFreeRunning,
    /// Intel server without the above: free-running counters of each controller.
    ServerFreeRunning,
    /// Intel client before Tiger Lake: one device for all of it.
    Client,
    /// AMD since Zen 4: column accesses of each channel.
    AmdUmc,
}

/// How a family's devices are asked for one direction of traffic.
enum Ask {
    /// By the events' names in sysfs, all of them.
    Named(&'static [&'static str]),
    /// By terms, where the kernel names no events.
    Terms(&'static str),
}

impl Family {
    const ALL: [Self; 5] = [
        Self::Server,
        Self::ClientFreeRunning,
        Self::ServerFreeRunning,
        Self::Client,
        Self::AmdUmc,
    ];

    /// What its devices' names begin with; a number may follow.
    fn prefix(self) -> &'static str {
        match self {
            Self::Server | Self::Client => "uncore_imc",
            Self::ClientFreeRunning | Self::ServerFreeRunning => "uncore_imc_free_running",
            Self::AmdUmc => "amd_umc",
        }
    }

    /// Ways to ask for a direction; a device takes the first that it knows.
    fn asks(self, traffic: Traffic) -> &'static [Ask] {
        use Ask::{Named, Terms};
        match (self, traffic) {
            (Self::Server, Traffic::Read) => &[
                Named(&["cas_count_read"]),
                Named(&["cas_count_read_sch0", "cas_count_read_sch1"]),
            ],
            (Self::Server, Traffic::Write) => &[
                Named(&["cas_count_write"]),
                Named(&["cas_count_write_sch0", "cas_count_write_sch1"]),
            ],
            (Self::ClientFreeRunning, Traffic::Read) => &[Named(&["data_read"])],
            (Self::ClientFreeRunning, Traffic::Write) => &[Named(&["data_write"])],
            (Self::ServerFreeRunning, Traffic::Read) => &[Named(&["read"])],
            (Self::ServerFreeRunning, Traffic::Write) => &[Named(&["write"])],
            (Self::Client, Traffic::Read) => &[Named(&["data_reads"])],
            (Self::Client, Traffic::Write) => &[Named(&["data_writes"])],
            (Self::AmdUmc, Traffic::Read) => &[Terms("event=0x0a,rdwrmask=1")],
            (Self::AmdUmc, Traffic::Write) => &[Terms("event=0x0a,rdwrmask=2")],
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "Intel server, column accesses",
            Self::ClientFreeRunning => "Intel client, free running",
            Self::ServerFreeRunning => "Intel server, free running",
            Self::Client => "Intel client, before Tiger Lake",
            Self::AmdUmc => "AMD, column accesses",
        }
    }

    /// Whether a device of that name may belong to the family.
    fn has(self, device: &str) -> bool {
        let number = device.strip_prefix(self.prefix()).map(|rest| {
            let digits = rest.strip_prefix('_').unwrap_or(rest);
            digits.len() < rest.len()
                && !digits.is_empty()
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                || rest.is_empty()
        });
        number.unwrap_or(false)
    }
}

/// A direction of traffic, seen from the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// From memory.
    Read,
    /// To memory.
    Write,
}

/// One counter of one device in one package.
#[derive(Clone, Debug, PartialEq)]
pub struct Counter {
    /// The kernel's name of the device.
    pub device: String,
    /// The processor on which it is opened, which stands for the package.
    pub cpu: u32,
    /// What it counts.
    pub traffic: Traffic,
    /// How it is opened.
    pub event: Event,
    /// Bytes that a count stands for.
    pub bytes_per_count: f64,
}

/// The memory controllers of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Uncore {
    /// Their kind.
    pub family: Family,
    /// What is to be opened, all of it.
    pub counters: Vec<Counter>,
}

impl Uncore {
    /// The devices, each once.
    pub fn devices(&self) -> Vec<&str> {
        let mut devices: Vec<&str> = self.counters.iter().map(|c| c.device.as_str()).collect();
        devices.dedup();
        devices
    }

    /// Whether writes are counted as well.
    pub fn counts_writes(&self) -> bool {
        self.counters.iter().any(|counter| counter.traffic == Traffic::Write)
    }

    /// What would be read, in short.
    pub fn summary(&self) -> String {
        let processors: BTreeSet<u32> = self.counters.iter().map(|counter| counter.cpu).collect();
        let processors: Vec<String> = processors.iter().map(u32::to_string).collect();
        let what = if self.counts_writes() { "reads and writes apart" } else { "reads" };
        let (devices, name) = (listed(&self.devices()), self.family.name());
        format!("{devices} on processor {} ({name}; {what})", processors.join(","))
    }
}

/// Few names as they are, many by the first and the last.
fn listed(names: &[&str]) -> String {
    match names {
        [first, _, _, _, .., last] => format!("{first} to {last} ({} devices)", names.len()),
        few => few.join(", "),
    }
}

/// Finds the counters of every memory controller of the machine. Whether they may be opened is
/// another matter.
///
/// # Errors
/// What there is in place of them.
pub fn discover(machine: &Machine) -> Result<Uncore, Diagnosis> {
    let folder = machine.path(DEVICES);
    let names = match names(&folder) {
        Err(SysfsError::Unreadable { .. }) if !folder.exists() => {
            return Err(machine.environment().absence(false));
        }
        names => names?,
    };
    for family in Family::ALL {
        let of_family = names.iter().filter(|name| family.has(name));
        let devices: Result<Vec<Device>, SysfsError> =
            of_family.map(|name| Device::read(&folder.join(name))).collect();
        let devices = devices?;
        are_different(&folder, &devices)?;
        if let Some(counters) = counters(family, &devices)? {
            covers_every_package(machine, &counters)?;
            return Ok(Uncore { family, counters });
        }
    }
    Err(machine.environment().absence(true))
}

/// The kernel knows a device by its number; of two with the same one would count twice.
fn are_different(folder: &Path, devices: &[Device]) -> Result<(), SysfsError> {
    let mut of_number = BTreeMap::new();
    for device in devices {
        if let Some(other) = of_number.insert(device.pmu_type, &device.name) {
            let (path, number) = (folder.join(&device.name).join("type"), device.pmu_type);
            let fault = format!("{other} has the same number");
            return Err(sysfs::malformed(&path, &number.to_string(), fault));
        }
    }
    Ok(())
}

/// The counters of a family's devices, `None` if they do not count what the family does.
fn counters(family: Family, devices: &[Device]) -> Result<Option<Vec<Counter>>, Diagnosis> {
    let instances = devices.iter().map(|device| device.cpus.len()).sum();
    if instances > INSTANCES_MAX {
        return Err(Diagnosis::TooMany { instances });
    }
    let reads = ask_all(family, devices, Traffic::Read)?;
    let knowing = reads.iter().filter(|counters| !counters.is_empty()).count();
    if knowing == 0 {
        return Ok(None);
    }
    if let Some(odd) = reads.iter().position(Vec::is_empty) {
        let lacks = "the event that counts reads".to_owned();
        return Err(Diagnosis::Incomplete { device: devices[odd].name.clone(), lacks });
    }
    // Writes are a courtesy: without those of one device the sum would be wrong.
    let mut writes = ask_all(family, devices, Traffic::Write)?;
    if writes.iter().any(Vec::is_empty) {
        writes = vec![Vec::new(); devices.len()];
    }
    let both = reads.into_iter().zip(writes).flat_map(|(reads, writes)| [reads, writes]);
    Ok(Some(both.flatten().collect()))
}

/// For each device its counters of one direction.
fn ask_all(
    family: Family,
    devices: &[Device],
    traffic: Traffic,
) -> Result<Vec<Vec<Counter>>, SysfsError> {
    devices.iter().map(|device| ask(family, device, traffic)).collect()
}

/// The counters of one direction on every processor that stands for the device; none if it does
/// not know the events.
fn ask(family: Family, device: &Device, traffic: Traffic) -> Result<Vec<Counter>, SysfsError> {
    for ask in family.asks(traffic) {
        let events: Vec<Option<sysfs::Event>> = match ask {
            Ask::Named(names) => {
                names.iter().map(|name| device.event(name)).collect::<Result<_, _>>()?
            }
            Ask::Terms(terms) => {
                let config = device.encode(terms).ok();
                let event = |config| sysfs::Event { config, bytes_per_count: LINE_BYTES };
                vec![config.map(event)]
            }
        };
        let Some(events) = events.into_iter().collect::<Option<Vec<_>>>() else { continue };
        let counter = |event: &sysfs::Event, cpu: u32| Counter {
            device: device.name.clone(),
            cpu,
            traffic,
            event: Event {
                pmu_type: device.pmu_type,
                config: event.config,
                scope: Scope::Cpu(cpu),
            },
            bytes_per_count: event.bytes_per_count,
        };
        let on_each = |event| device.cpus.iter().map(move |cpu| counter(event, *cpu));
        return Ok(events.iter().flat_map(on_each).collect());
    }
    Ok(Vec::new())
}

/// Each package has memory of its own, so that one without a counter would be missing from the
/// sum. Where the kernel does not describe the packages there is nothing to compare with.
fn covers_every_package(machine: &Machine, counters: &[Counter]) -> Result<(), Diagnosis> {
    let folder = machine.path("sys/devices/system/cpu");
    let package = |cpu: u32| -> Result<Option<u32>, SysfsError> {
        let path = folder.join(format!("cpu{cpu}/topology/physical_package_id"));
        let Some(text) = sysfs::text_if_any(&path)? else { return Ok(None) };
        // What the kernel says of a processor whose package it does not know.
        if text == "-1" {
            return Ok(None);
        }
        let number = text.parse().map(Some);
        number.map_err(|_| sysfs::malformed(&path, &text, "it is no number of a package"))
    };
    let mut uncovered = BTreeSet::new();
    let names = if folder.exists() { names(&folder)? } else { Vec::new() };
    for name in names {
        let cpu = name.strip_prefix("cpu").and_then(|number| number.parse().ok());
        if let Some(cpu) = cpu.filter(|cpu| *cpu < CPUS_MAX) {
            uncovered.extend(package(cpu)?);
        }
    }
    let processors: BTreeSet<u32> = counters.iter().map(|counter| counter.cpu).collect();
    for cpu in processors {
        if let Some(covered) = package(cpu)? {
            uncovered.remove(&covered);
        }
    }
    uncovered.first().map_or(Ok(()), |package| Err(Diagnosis::Uncovered { package: *package }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_know_their_devices_by_name() {
        let of = |device: &str| -> Vec<Family> {
            Family::ALL.into_iter().filter(|family| family.has(device)).collect()
        };
        assert_eq!(of("uncore_imc_10"), [Family::Server, Family::Client]);
        assert_eq!(of("uncore_imc"), [Family::Server, Family::Client]);
        let free = [Family::ClientFreeRunning, Family::ServerFreeRunning];
        assert_eq!(of("uncore_imc_free_running_1"), free);
        assert_eq!(of("uncore_imc_free_running"), free);
        assert_eq!(of("amd_umc_23"), [Family::AmdUmc]);
        for other in ["uncore_imc_", "uncore_imc1", "uncore_imc_x", "amd_df", "cpu", "amd_umc_1x"] {
            assert_eq!(of(other), [], "{other}");
        }
    }

    #[test]
    fn many_devices_are_listed_in_short() {
        assert_eq!(listed(&["a"]), "a");
        assert_eq!(listed(&["a", "b", "c", "d"]), "a, b, c, d");
        assert_eq!(listed(&["a", "b", "c", "d", "e"]), "a to e (5 devices)");
    }
}
