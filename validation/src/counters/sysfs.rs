//! How the kernel describes a device that counts: its number, the fields of an event, the events
//! it names, and the processors to open it on.
//!
//! The files are small and made by the kernel, but they are read as if they were not (SPEC B13): a
//! container can mount anything over them, and tests do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// The most bytes that a file has: the kernel gives an attribute one page.
pub const FILE_BYTES_MAX: usize = 4096;
/// The kernel numbers at most so many processors.
pub const CPUS_MAX: u32 = 8192;
/// The most names that a folder has; the fullest is that of the processors.
pub const NAMES_MAX: usize = 10_000;

/// Characters of a file that an error repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// It cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder, a pipe, a device.
    #[error("{path:?} is not a file")]
    NotAFile {
        /// What is not.
        path: PathBuf,
    },
    /// It is longer than [`FILE_BYTES_MAX`].
    #[error("{path:?} has more than {FILE_BYTES_MAX} bytes, unlike any file of the kernel's")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It has more entries than [`NAMES_MAX`].
    #[error("{path:?} has more than {NAMES_MAX} entries, unlike any folder of the kernel's")]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// It says something that cannot be used.
    #[error("{path:?} says \"{content}\": {fault}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its start, escaped.
        content: String,
        /// What is wrong with it.
        fault: String,
    },
}

/// The start of what a file says, safe to print.
fn shown(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    let text = text.trim_end();
    let start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let rest = if start.len() < text.len() { "..." } else { "" };
    format!("{}{rest}", start.escape_debug())
}

/// A file that says something that cannot be used.
pub(super) fn malformed(path: &Path, content: &str, fault: impl Into<String>) -> SysfsError {
    let content = shown(content.as_bytes());
    SysfsError::Malformed { path: path.to_owned(), content, fault: fault.into() }
}

/// The text of a file, without the line's end.
///
/// # Errors
/// Those of [`SysfsError`].
pub fn text(path: &Path) -> Result<String, SysfsError> {
    let unreadable = |source| SysfsError::Unreadable { path: path.to_owned(), source };
    // Opening a pipe would wait for a writer, so that the kind is looked at first.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SysfsError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() > FILE_BYTES_MAX {
        return Err(SysfsError::TooLong { path: path.to_owned() });
    }
    let text = String::from_utf8(content).map_err(|error| SysfsError::Malformed {
        path: path.to_owned(),
        content: shown(error.as_bytes()),
        fault: "it is not text".to_owned(),
    })?;
    Ok(text.trim_end().to_owned())
}

/// The text of a file, `None` if there is no such file.
///
/// # Errors
/// Those of [`text`].
pub fn text_if_any(path: &Path) -> Result<Option<String>, SysfsError> {
    match text(path) {
        Err(SysfsError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The names in a folder, in the order of their numbers; those that are not text are left out,
/// for the kernel gives none.
///
/// # Errors
/// A folder that cannot be read, and [`SysfsError::TooMany`].
pub fn names(folder: &Path) -> Result<Vec<String>, SysfsError> {
    let unreadable = |source| SysfsError::Unreadable { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)?.take(NAMES_MAX + 1) {
        names.push(entry.map_err(unreadable)?.file_name());
    }
    if names.len() > NAMES_MAX {
        return Err(SysfsError::TooMany { path: folder.to_owned() });
    }
    let mut names: Vec<String> = names.into_iter().flat_map(|name| name.into_string()).collect();
    names.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    Ok(names)
}

/// A number as the kernel writes it: decimal, or hexadecimal behind `0x`.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    // What std reads besides has a sign, or is empty.
    let starts = digits.starts_with(|c: char| c.is_ascii_hexdigit());
    starts.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// The two ends of `7` or of `0-7`, the second not below the first.
fn range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// Processors of a list such as `0,28` or `0-3`.
fn cpus(list: &str) -> Result<Vec<u32>, String> {
    let mut cpus = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = range(part)
            .ok_or_else(|| format!("\"{}\" is no range of processors", part.escape_debug()))?;
        let last = u32::try_from(last).ok().filter(|last| *last < CPUS_MAX);
        let last = last.ok_or_else(|| format!("processors have numbers below {CPUS_MAX}"))?;
        cpus.extend(u32::try_from(first).unwrap_or(last)..=last);
    }
    Ok(cpus.into_iter().collect())
}

/// The words `config`, `config1` and `config2` that select an event.
pub type Config = [u64; 3];

/// Where a field of an event stands: bits of one of the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    word: usize,
    mask: u64,
}

impl Field {
    /// Reads `config:0-7,21` or `config1:3`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (word, ranges) = text.split_once(':').ok_or("it is not WORD:BITS")?;
        let word = word_number(word).ok_or("its word is none of config, config1 and config2")?;
        let mut mask = 0;
        for part in ranges.split(',') {
            let bits = range(part).filter(|(_, last)| *last < 64);
            let (first, last) =
                bits.ok_or_else(|| format!("\"{}\" is no range of bits", part.escape_debug()))?;
            mask |= (u64::MAX >> (63 - (last - first))) << first;
        }
        Ok(Self { word, mask })
    }

    /// Puts the bits of `value`, the lowest first, where the field's bits are; `false` if there
    /// are too few of them.
    fn place(self, value: u64, config: &mut Config) -> bool {
        let mut rest = value;
        let mut placed = 0;
        for bit in (0..64).filter(|bit| self.mask >> bit & 1 == 1) {
            placed |= (rest & 1) << bit;
            rest >>= 1;
        }
        config[self.word] = config[self.word] & !self.mask | placed;
        rest == 0
    }
}

fn word_number(word: &str) -> Option<usize> {
    ["config", "config1", "config2"].iter().position(|name| *name == word)
}

/// An event that a device names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// What selects it.
    pub config: Config,
    /// Bytes of memory traffic that one count stands for.
    pub bytes_per_count: f64,
}

/// A device that counts.
#[derive(Clone, Debug)]
pub struct Device {
    path: PathBuf,
    /// The kernel's name of it.
    pub name: String,
    /// The kernel's number of it (the `type` of `perf_event_open`).
    pub pmu_type: u32,
    /// A processor for each package that has such a device.
    pub cpus: Vec<u32>,
    format: BTreeMap<String, Field>,
}

impl Device {
    /// Reads the folder of a device.
    ///
    /// # Errors
    /// A file that is missing or cannot be used.
    pub fn read(path: &Path) -> Result<Self, SysfsError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pmu_type = parsed(&path.join("type"), |text| {
            let value = number(text).and_then(|value| u32::try_from(value).ok());
            value.ok_or_else(|| "it is no number of a device".to_owned())
        })?;
        let cpus = parsed(&path.join("cpumask"), cpus)?;
        let folder = path.join("format");
        let mut format = BTreeMap::new();
        for name in names(&folder)? {
            let field = parsed(&folder.join(&name), Field::parse)?;
            format.insert(name, field);
        }
        Ok(Self { path: path.to_owned(), name, pmu_type, cpus, format })
    }

    /// What `event=0x04,umask=0x03` comes to.
    ///
    /// # Errors
    /// A field that the device does not have, or a value that does not fit.
    pub fn encode(&self, terms: &str) -> Result<Config, String> {
        let mut config = Config::default();
        for term in terms.split(',') {
            let (name, value) = term.split_once('=').unwrap_or((term, "1"));
            let whole = word_number(name).map(|word| Field { word, mask: u64::MAX });
            let field = whole.or_else(|| self.format.get(name).copied());
            let name = name.escape_debug();
            let field =
                field.ok_or_else(|| format!("\"{name}\" is no field of {}'s format", self.name))?;
            let value =
                number(value).ok_or_else(|| format!("the value of \"{name}\" is no number"))?;
            if !field.place(value, &mut config) {
                return Err(format!("the value of \"{name}\" has more bits than the field"));
            }
        }
        Ok(config)
    }

    /// An event of the device, `None` if it has none of that name. Its scale and its unit must
    /// come to bytes.
    ///
    /// # Errors
    /// A file that is missing or cannot be used.
    pub fn event(&self, name: &str) -> Result<Option<Event>, SysfsError> {
        let path = self.path.join("events").join(name);
        let Some(terms) = text_if_any(&path)? else { return Ok(None) };
        let config = self.encode(&terms).map_err(|fault| malformed(&path, &terms, fault))?;
        let beside = |ending: &str| self.path.join("events").join(format!("{name}.{ending}"));
        let unit_bytes = parsed(&beside("unit"), unit_bytes)?;
        let bytes_per_count = parsed(&beside("scale"), |text| bytes_per_count(text, unit_bytes))?;
        Ok(Some(Event { config, bytes_per_count }))
    }
}

/// What `parse` makes of a file.
fn parsed<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, SysfsError> {
    let text = text(path)?;
    parse(&text).map_err(|fault| malformed(path, &text, fault))
}

fn unit_bytes(text: &str) -> Result<f64, String> {
    match text {
        "B" | "Bytes" | "bytes" => Ok(1.0),
        "KiB" => Ok(1024.0),
        "MiB" => Ok(1_048_576.0),
        _ => Err("it is none of the units B, KiB and MiB".to_owned()),
    }
}

/// A scale times its unit. A controller counts bursts, which have 16 to 4096 bytes; before 5.10
/// some kernels gave 4 bytes for what counts 64.
fn bytes_per_count(scale: &str, unit_bytes: f64) -> Result<f64, String> {
    let scale: f64 = scale.parse().map_err(|_| "it is no number")?;
    let bytes = scale * unit_bytes;
    if (16.0..=4096.0).contains(&bytes) {
        return Ok(bytes);
    }
    Err("a count would not be 16 to 4096 bytes, as a memory controller's is (kernels before 5.10 \
         are wrong about some Intel controllers)"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_bits_of_a_word() {
        let field = Field::parse("config:0-7,21").expect("a field");
        assert_eq!(field, Field { word: 0, mask: 0x20_00ff });
        let mut config = [u64::MAX, 0, 0];
        assert!(field.place(0x1a5, &mut config));
        assert_eq!(config, [!0x20_00ff | 0x20_00a5, 0, 0]);
        assert!(!field.place(0x200, &mut config));
        let whole = Field::parse("config2:0-63").expect("a field");
        assert_eq!(whole, Field { word: 2, mask: u64::MAX });
        let bad = ["", "config", "config:", "config:64", "config:0-98", "config3:0", "config:7-0"];
        for text in bad.iter().chain(&["config:-1", "config:+1", "config:0-", "config:0,,1"]) {
            assert!(Field::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!((number("0x0a"), number("10"), number("0")), (Some(10), Some(10), Some(0)));
        for text in ["", "0x", "-1", "+1", " 1", "1 ", "0X1", "a", "99999999999999999999"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn processors_are_lists_of_ranges() {
        assert_eq!(cpus("0,28").expect("cpus"), [0, 28]);
        assert_eq!(cpus("2-4,3,0").expect("cpus"), [0, 2, 3, 4]);
        assert_eq!(cpus("8191").expect("cpus"), [8191]);
        let bad = ["", ",", "0-4000000000", "8192", "0-", "4-2", "0 1", "99999999999999999999"];
        for list in bad {
            assert!(cpus(list).is_err(), "{list}");
        }
    }

    #[test]
    fn a_scale_is_bytes() {
        assert_eq!(bytes_per_count("6.103515625e-5", 1_048_576.0), Ok(64.0));
        for scale in ["-6.1e-5", "NaN", "inf", "1e999", "0", "", "x", "3.814697266e-6"] {
            assert!(bytes_per_count(scale, 1_048_576.0).is_err(), "{scale}");
        }
        assert_eq!(unit_bytes("KiB"), Ok(1024.0));
        assert!(unit_bytes("Joules").is_err());
    }

    #[test]
    fn what_an_error_repeats_is_short_and_safe() {
        assert_eq!(shown(b"a\x1b[31m\n"), "a\\u{1b}[31m");
        assert_eq!(shown(&[b'x'; 100]), format!("{}...", "x".repeat(80)));
        assert_eq!(shown(&[0xff, b'a']), "\u{fffd}a");
    }
}
