//! Files that are replaced as a whole.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// Writes `value` as JSON to `path`, whose folder is made, in one step: whoever reads it, or is
/// left with it after an interruption, has the old file or the new one.
///
/// # Errors
/// If the folder or the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut whole = tempfile::NamedTempFile::new_in(folder)?;
    whole.write_all(&serde_json::to_vec(value)?)?;
    whole.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file.json");
        for value in [vec![1, 2], vec![3]] {
            write_json(&path, &value).unwrap();
            let found: Vec<u32> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(found, value);
        }
        assert!(write_json(&path.join("below"), &1).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"[3]");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
