//! Caches by name, and those of the machine (SPEC B21).

use super::cache::{Geometry, GeometryError};
use super::hierarchy::{Design, Policy};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A processor's caches by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name on the command line.
    pub name: &'static str,
    /// The processor whose published shape it is.
    pub processor: &'static str,
    /// The caches.
    pub design: Design,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const fn known(bytes: u64, ways: u32) -> Geometry {
    match Geometry::new(bytes, ways, 64) {
        Ok(geometry) => geometry,
        Err(_) => panic!("a published shape is a whole number of sets"),
    }
}

const fn design(private: Geometry, shared: Geometry, policy: Policy) -> Design {
    Design { private, shared, policy }
}

const ZEN4_PRIVATE: Geometry = known(MIB, 8);

/// Every preset.
pub const PRESETS: [Preset; 4] = [
    Preset {
        name: "desktop-36mb",
        processor: "Intel Core i9-13900K",
        design: design(known(2 * MIB, 16), known(36 * MIB, 12), Policy::Independent),
    },
    Preset {
        name: "server-32mb",
        processor: "AMD EPYC 9004, one die of eight cores",
        design: design(ZEN4_PRIVATE, known(32 * MIB, 16), Policy::Victim),
    },
    Preset {
        name: "stacked-96mb",
        processor: "AMD Ryzen 7 7800X3D",
        design: design(ZEN4_PRIVATE, known(96 * MIB, 16), Policy::Victim),
    },
    Preset {
        name: "server-384mb",
        processor: "AMD EPYC 9654, its twelve dies' caches taken as one",
        design: design(ZEN4_PRIVATE, known(384 * MIB, 16), Policy::Victim),
    },
];

/// The preset of a name.
pub fn preset(name: &str) -> Option<Preset> {
    PRESETS.into_iter().find(|preset| preset.name == name)
}

/// Cachegrind's hierarchy: its first level of data before the last level `ll`.
///
/// # Errors
/// [`GeometryError`] if the first level cannot have `ll`'s lines.
pub fn cachegrind(ll: Geometry) -> Result<Design, GeometryError> {
    let first = Geometry::new(32 * KIB, 8, ll.line_bytes())?;
    Ok(design(first, ll, Policy::Independent))
}

/// Why the caches of this machine are not known.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The kernel tells nothing.
    #[error("{}: {source}; name a preset instead", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file says something else than it should.
    #[error("{}: {text:?} is not {what}; name a preset instead", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it says, cut off if it is long.
        text: String,
        /// What it should be.
        what: &'static str,
    },
    /// Its caches do not make two levels.
    #[error("{} describes {found} levels of data caches, not two; name a preset instead",
        path.display())]
    Levels {
        /// The folder.
        path: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// A cache of a shape that cannot be.
    #[error("the cache of level {level} has {source}; name a preset instead")]
    Shape {
        /// Its level.
        level: u32,
        /// What is wrong.
        source: GeometryError,
    },
}

/// The caches of processor 0 and how many processors share the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The last two levels; how they relate is not known.
    pub design: Design,
    /// Processors that share the last.
    pub sharers: usize,
}

/// One of the kernel's descriptions.
struct Level {
    level: u32,
    geometry: Geometry,
    sharers: usize,
}

/// The caches of the machine whose `/sys` is below `root` (`/`, except in tests).
///
/// # Errors
/// Those of [`MachineError`].
pub fn machine(root: &Path) -> Result<Machine, MachineError> {
    let folder = root.join("sys/devices/system/cpu/cpu0/cache");
    let unreadable = |source| MachineError::Unreadable { path: folder.clone(), source };
    let mut levels = Vec::new();
    for entry in fs::read_dir(&folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().to_string_lossy().starts_with("index") {
            levels.extend(level(&entry.path())?);
        }
    }
    levels.sort_by_key(|level| level.level);
    levels.dedup_by_key(|level| level.level);
    let [.., private, shared] = levels.as_slice() else {
        return Err(MachineError::Levels { path: folder, found: levels.len() });
    };
    let design = design(private.geometry, shared.geometry, Policy::Independent);
    Ok(Machine { design, sharers: shared.sharers })
}

/// Reads one description; `None` of a cache that holds instructions alone.
fn level(folder: &Path) -> Result<Option<Level>, MachineError> {
    if text(&folder.join("type"))? == "Instruction" {
        return Ok(None);
    }
    let level = parse(folder, "level", "a level", |text| text.parse().ok())?;
    let bytes = parse(folder, "size", "a size such as 512K", size)?;
    let number = |name, what| parse(folder, name, what, |text| text.parse().ok());
    let ways = number("ways_of_associativity", "a number of ways")?;
    let line = number("coherency_line_size", "a length in bytes")?;
    let sharers = parse(folder, "shared_cpu_list", "a list of processors", processors)?;
    let geometry =
        Geometry::new(bytes, ways, line).map_err(|source| MachineError::Shape { level, source })?;
    Ok(Some(Level { level, geometry, sharers }))
}

/// The most of a file that is read; the kernel's have a page.
const FILE_BYTES_MAX: u64 = 4096;

fn text(path: &Path) -> Result<String, MachineError> {
    let read = aios_residency::read_text(path, FILE_BYTES_MAX);
    let read = read.map_err(|source| MachineError::Unreadable { path: path.to_owned(), source })?;
    Ok(read.trim().to_owned())
}

fn parse<T>(
    folder: &Path,
    name: &str,
    what: &'static str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, MachineError> {
    /// The most of a file that a message quotes.
    const QUOTED: usize = 40;
    let path = folder.join(name);
    let text = text(&path)?;
    read(&text).ok_or_else(|| {
        let text = text.chars().take(QUOTED).collect();
        MachineError::Malformed { path, text, what }
    })
}

/// `48K`, `32M`, `1G` or plain bytes.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], KIB),
        b'M' => (&text[..text.len() - 1], MIB),
        b'G' => (&text[..text.len() - 1], KIB * MIB),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// How many processors a list such as `0-3,8` names, at least one.
fn processors(text: &str) -> Option<usize> {
    let mut count: usize = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with caches of (type, level, size, ways, line, sharers).
    fn tree(caches: &[[&str; 6]]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (i, values) in caches.iter().enumerate() {
            let folder = root.path().join(format!("sys/devices/system/cpu/cpu0/cache/index{i}"));
            fs::create_dir_all(&folder).expect("a folder");
            let names = [
                "type",
                "level",
                "size",
                "ways_of_associativity",
                "coherency_line_size",
                "shared_cpu_list",
            ];
            for (name, value) in names.iter().zip(values) {
                fs::write(folder.join(name), format!("{value}\n")).expect("a file");
            }
        }
        root
    }

    const L1I: [&str; 6] = ["Instruction", "1", "32K", "8", "64", "0"];
    const L1D: [&str; 6] = ["Data", "1", "48K", "12", "64", "0"];
    const L2: [&str; 6] = ["Unified", "2", "1024K", "8", "64", "0-1"];
    const L3: [&str; 6] = ["Unified", "3", "36864K", "12", "64", "0-3,8,10-11"];

    #[test]
    fn presets_have_the_capacities_of_their_names() {
        for (name, mib, sets) in [
            ("desktop-36mb", 36, 49152),
            ("server-32mb", 32, 32768),
            ("stacked-96mb", 96, 98304),
            ("server-384mb", 384, 393_216),
        ] {
            let shared = preset(name).expect("a preset").design.shared;
            assert_eq!((shared.bytes(), shared.sets()), (mib << 20, sets), "{name}");
        }
        assert_eq!(preset("desktop"), None);
        let ll = "33554432,16,64".parse().expect("a shape");
        let like = cachegrind(ll).expect("a design");
        assert_eq!((like.private.bytes(), like.private.ways()), (32768, 8));
        let long = Geometry::new(1 << 20, 1, 1 << 20).expect("one line");
        assert!(cachegrind(long).is_err());
    }

    #[test]
    fn a_machine_has_its_last_two_levels() {
        let found = machine(tree(&[L1D, L1I, L2, L3]).path()).expect("a machine");
        assert_eq!(found.design.private, known(MIB, 8));
        assert_eq!(found.design.shared, known(36 * MIB, 12));
        assert_eq!(found.sharers, 7);
        let small = machine(tree(&[L2, L1I, L1D]).path()).expect("a machine without L3");
        assert_eq!((small.design.private.bytes(), small.sharers), (48 * KIB, 2));
    }

    #[test]
    fn malformed_trees_are_errors_that_name_the_file() {
        let error = |caches: &[[&str; 6]]| machine(tree(caches).path()).expect_err("an error");
        assert!(matches!(error(&[]), MachineError::Unreadable { .. }));
        assert!(matches!(error(&[L1I, L2]), MachineError::Levels { found: 1, .. }));
        for (at, value) in [
            (1, "three"),
            (2, "18446744073709551615K"),
            (2, "é"),
            (2, ""),
            (2, "K"),
            (3, "-1"),
            (4, "64 B"),
            (5, "3-1"),
            (5, "0,,1"),
            (5, ""),
            (5, "0-18446744073709551615"),
            (1, &"9".repeat(4000)),
        ] {
            let mut bad = L3;
            bad[at] = value;
            let said = error(&[L2, bad]);
            assert!(matches!(said, MachineError::Malformed { .. }), "{value}: {said}");
            assert!(said.to_string().len() < 400, "{said}");
        }
        let mut bad = L3;
        let endless = "9".repeat(5000);
        bad[1] = &endless;
        let long = error(&[L2, bad]).to_string();
        assert!(long.contains("index1/level: it has more than 4096 bytes"), "{long}");
        #[cfg(unix)]
        {
            let tree = tree(&[L2, L3]);
            let path = tree.path().join("sys/devices/system/cpu/cpu0/cache/index1/size");
            fs::remove_file(&path).expect("it");
            std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
            let odd = machine(tree.path()).expect_err("an endless file").to_string();
            assert!(odd.contains("index1/size: it is not a regular file"), "{odd}");
        }
        for (at, value) in [(2, "0"), (3, "0"), (4, "48"), (4, "0"), (2, "100"), (2, "99999999G")] {
            let mut bad = L3;
            bad[at] = value;
            let said = error(&[L2, bad]);
            assert!(matches!(said, MachineError::Shape { level: 3, .. }), "{value}: {said}");
        }
        let root = tree(&[L2, L3]);
        let gone = root.path().join("sys/devices/system/cpu/cpu0/cache/index1/size");
        fs::remove_file(&gone).expect("a file");
        let said = machine(root.path()).expect_err("an error").to_string();
        assert!(said.contains("index1") && said.contains("preset"), "{said}");
    }
}
