//! Memory bandwidth monitoring through resctrl: bytes between the L3 caches and memory, of the
//! whole machine. It does not tell reads from writes, so that it is the second choice.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use super::arithmetic::Count;
use super::machine::Machine;
use super::perf::Reader;
use super::sysfs::{SysfsError, names, text};

const FILE: &str = "mbm_total_bytes";
/// Folders of the top that are no control groups.
const NOT_GROUPS: [&str; 3] = ["info", "mon_data", "mon_groups"];

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
pub enum ResctrlError {
    /// A file cannot be used.
    #[error(transparent)]
    Unusable(#[from] SysfsError),
    /// The kernel has a word in place of a number: `Unavailable`, `Unassigned`, `Error`.
    #[error("{path:?} says \"{word}\" in place of a number of bytes")]
    NoNumber {
        /// The file.
        path: PathBuf,
        /// What it says, escaped.
        word: String,
    },
}

/// The files that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resctrl {
    files: Vec<PathBuf>,
}

impl Resctrl {
    /// The counters of every L3 cache, for the tasks of every control group (a control group's
    /// include those of its monitoring groups); `None` if resctrl is not mounted, or the
    /// processor does not count bandwidth.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn find(machine: &Machine) -> Result<Option<Self>, SysfsError> {
        let top = machine.path("sys/fs/resctrl");
        if !top.join("mon_data").is_dir() {
            return Ok(None);
        }
        let groups = names(&top)?.into_iter().filter(|name| !NOT_GROUPS.contains(&name.as_str()));
        let mut folders = vec![top.join("mon_data")];
        folders.extend(groups.map(|name| top.join(name).join("mon_data")).filter(|f| f.is_dir()));
        let mut files = Vec::new();
        for folder in folders {
            let domains = names(&folder)?.into_iter().filter(|name| name.starts_with("mon_L3_"));
            files.extend(domains.map(|name| folder.join(name).join(FILE)).filter(|f| f.exists()));
        }
        Ok((!files.is_empty()).then_some(Self { files }))
    }

    /// The number of files that are summed.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Starts counting: the first reading may be without meaning, or without a number, and is
    /// discarded; the second one must be a number.
    pub(super) fn start(&self) -> Result<Vec<Box<dyn Reader>>, ResctrlError> {
        let start = |path: &PathBuf| -> Result<Box<dyn Reader>, ResctrlError> {
            let reader = Domain { path: path.clone(), started: Instant::now() };
            drop(reader.bytes());
            reader.bytes()?;
            Ok(Box::new(reader))
        };
        self.files.iter().map(start).collect()
    }
}

/// One file.
struct Domain {
    path: PathBuf,
    started: Instant,
}

impl Domain {
    fn bytes(&self) -> Result<u64, ResctrlError> {
        let text = text(&self.path)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten().ok_or_else(|| {
            let word = text.chars().take(32).collect::<String>().escape_debug().to_string();
            ResctrlError::NoNumber { path: self.path.clone(), word }
        })
    }
}

impl Reader for Domain {
    fn read(&mut self) -> io::Result<Count> {
        let value = self.bytes().map_err(io::Error::other)?;
        // The hardware counts all the time.
        let time = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
        Ok(Count { value, enabled_ns: time, running_ns: time })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Tree;
    use super::*;

    fn tree() -> Tree {
        let tree = Tree::new();
        for (file, value) in [
            ("mon_data/mon_L3_00", "100\n"),
            ("mon_data/mon_L3_01", "20\n"),
            ("mon_groups/a/mon_data/mon_L3_00", "7\n"),
            ("batch/mon_data/mon_L3_00", "3\n"),
        ] {
            tree.file(&format!("sys/fs/resctrl/{file}/{FILE}"), value);
        }
        tree.file("sys/fs/resctrl/mon_data/mon_L3_00/llc_occupancy", "1\n");
        tree.file("sys/fs/resctrl/info/L3_MON/mon_features", "mbm_total_bytes\n");
        tree
    }

    #[test]
    fn every_domain_and_control_group_is_read() {
        let tree = tree();
        let found = Resctrl::find(&tree.machine()).expect("folders").expect("counters");
        let mut readers = found.start().expect("numbers");
        let values: Vec<u64> =
            readers.iter_mut().map(|reader| reader.read().expect("a number").value).collect();
        assert_eq!(values, [100, 20, 3]);
        assert_eq!(Resctrl::find(&Tree::new().machine()).expect("nothing"), None);
    }

    #[test]
    fn a_word_is_no_number() {
        let tree = tree();
        let file = format!("sys/fs/resctrl/mon_data/mon_L3_00/{FILE}");
        let found = Resctrl::find(&tree.machine()).expect("folders").expect("counters");
        let mut readers = found.start().expect("numbers");
        for word in ["Unavailable", "Error", "Unassigned", "", "-1", "+1", "1 2"] {
            tree.file(&file, word);
            let error = readers[0].read().expect_err("no number").to_string();
            assert!(error.contains(&format!("\"{word}\"")), "{error}");
            assert!(matches!(found.start(), Err(ResctrlError::NoNumber { .. })), "{word}");
        }
        tree.file(&file, "5\n");
        assert_eq!(readers[0].read().expect("a number").value, 5);
    }
}
