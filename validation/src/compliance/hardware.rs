//! What a configuration is recommended for: a class of machines, or the one at hand.

use serde::{Deserialize, Serialize};

/// The name of the profile that is made from the machine at hand.
pub const THIS_MACHINE: &str = "this-machine";

/// A machine, as far as a recommendation needs to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardwareProfile {
    /// The preset's name, or [`THIS_MACHINE`].
    pub name: String,
    /// Whether the figures are assumptions about a class of machines, not a look at one.
    pub assumed: bool,
    /// Cores.
    pub cores: usize,
    /// Main memory, if it is known.
    pub memory_bytes: Option<u64>,
    /// Second-level cache of all cores together, if it is known.
    pub l2_bytes: Option<u64>,
    /// Last-level cache, all instances together, if it is known.
    pub l3_bytes: Option<u64>,
    /// Streaming read of memory, 10⁹ bytes a second: measured on the machine at hand, in a preset
    /// channels · transfers a second · 8 bytes.
    pub stream_gb_per_s: Option<f64>,
}

/// A hardware profile that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown hardware profile {name:?}; known are {THIS_MACHINE}, {}", preset_names())]
pub struct UnknownProfile {
    /// What was asked for.
    pub name: String,
}

fn preset_names() -> String {
    PRESETS.map(|preset| preset.0).join(", ")
}

/// (name, cores, GB of memory, MiB of L2, MiB of L3, GB/s).
type Preset = (&'static str, usize, u64, u64, u64, f64);

/// Classes of machines, told apart by the last-level cache.
const PRESETS: [Preset; 4] = [
    // 8 large and 16 small cores; two channels of DDR5-5600.
    ("desktop-36mb", 24, 32, 32, 36, 89.6),
    // A die of a server, in a quarter of it with three of twelve channels of DDR5-4800.
    ("server-32mb", 8, 64, 8, 32, 115.2),
    // A desktop whose cache is stacked; two channels of DDR5-5200.
    ("stacked-96mb", 8, 32, 8, 96, 83.2),
    // Twelve channels of DDR5-4800.
    ("server-384mb", 96, 384, 96, 384, 460.8),
];

impl HardwareProfile {
    /// The names of the presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.into_iter().map(|preset| preset.0)
    }

    /// The preset of that name.
    ///
    /// # Errors
    /// [`UnknownProfile`], which lists those that exist.
    pub fn preset(name: &str) -> Result<Self, UnknownProfile> {
        let found = PRESETS.into_iter().find(|preset| preset.0 == name);
        let (name, cores, memory_gb, l2_mib, l3_mib, gb_per_s) =
            found.ok_or_else(|| UnknownProfile { name: name.to_owned() })?;
        Ok(Self {
            name: name.to_owned(),
            assumed: true,
            cores,
            memory_bytes: Some(memory_gb * 1_000_000_000),
            l2_bytes: Some(l2_mib << 20),
            l3_bytes: Some(l3_mib << 20),
            stream_gb_per_s: Some(gb_per_s),
        })
    }

    /// The machine at hand with `cores` cores, of which nothing else is known yet: the caller
    /// fills in what it has found out.
    pub fn this_machine(cores: usize) -> Self {
        Self {
            name: THIS_MACHINE.to_owned(),
            assumed: false,
            cores,
            memory_bytes: None,
            l2_bytes: None,
            l3_bytes: None,
            stream_gb_per_s: None,
        }
    }
}
