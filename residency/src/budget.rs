//! Budgets of memory: how they are written, and what the system has to give.

use crate::text::read_text;
use std::path::Path;

/// The most of a file of the kernel's that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What follows a number of bytes, and what it multiplies by.
const UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// Reads `3G`, `2600M`, `1.5Gi` or a plain number of bytes (SPEC W1).
///
/// # Errors
/// A sentence that says what is understood.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "must be bytes like 2600M, 3G, 1.5Gi or 500000000".to_owned();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .unwrap_or((text, 1));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    // More places than these would be less than a byte of the largest unit.
    if !digits(whole) || !digits(fraction) || fraction.len() > 12 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let places: u128 = fraction.parse().map_err(|_| wrong())?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
    let part = places * u128::from(unit) / scale;
    let bytes = u128::from(whole) * u128::from(unit) + part;
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// Memory that this process can still have without swapping: the system's estimate, or what its
/// control group leaves, if that is less. `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    available_at(Path::new("/"))
}

/// As [`available_bytes`], with `/proc` and `/sys` below `root`.
fn available_at(root: &Path) -> Option<u64> {
    let text = |path: &str| read_text(&root.join(path), FILE_BYTES_MAX).ok();
    let system = text("proc/meminfo").and_then(|info| {
        let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = text("proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let folder = if controllers.is_empty() {
            root.join("sys/fs/cgroup")
        } else if controllers.split(',').any(|name| name == "memory") {
            root.join("sys/fs/cgroup/memory")
        } else {
            return None;
        };
        group_leaves(&folder.join(path.trim_start_matches('/')))
    });
    limits.chain(system).min()
}

/// What the limit of a control group leaves; pages of files count as free, since the kernel drops
/// them first. `None` if there is no limit.
fn group_leaves(folder: &Path) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        read_text(&folder.join(name), FILE_BYTES_MAX).ok()?.trim().parse().ok()
    };
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = read_text(&folder.join("memory.stat"), FILE_BYTES_MAX).unwrap_or_default();
    let of = |key: &str| -> u64 {
        let value = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    let files = of("inactive_file") + of("active_file");
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1", 1),
            ("2600M", 2_600_000_000),
            ("3G", 3_000_000_000),
            ("1.5Gi", 3 << 29),
            ("0.25k", 250),
            ("500000000", 500_000_000),
            ("12Ti", 12 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "M",
            "-1",
            "+1",
            "1.",
            ".5G",
            "3 G",
            "3GB",
            "3g",
            "1e9",
            "0.0001k",
            "nan",
            "99999999999T",
            "18446744073709551616",
            "1.0000000000001G",
            "1..2",
            "٣G",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    fn machine(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        available_at(root.path())
    }

    #[test]
    fn what_is_available_is_the_least_of_what_the_system_and_the_group_leave() {
        let info = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    1000 kB\n");
        assert_eq!(machine(&[]), None);
        assert_eq!(machine(&[info]), Some(1_024_000));
        let second = [
            info,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "900000\n"),
            ("sys/fs/cgroup/a/b/memory.current", "500000\n"),
            ("sys/fs/cgroup/a/b/memory.stat", "anon 1\ninactive_file 90000\nactive_file 10000\n"),
        ];
        assert_eq!(machine(&second), Some(500_000));
        let first = [
            info,
            ("proc/self/cgroup", "7:cpu:/\n4:memory:/x\n0::/\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "700000\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "100000\n"),
        ];
        assert_eq!(machine(&first), Some(600_000));
        let unlimited = [
            info,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/memory.current", "5\n"),
        ];
        assert_eq!(machine(&unlimited), Some(1_024_000));
    }
}
