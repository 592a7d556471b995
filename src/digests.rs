//! SHA-256 of model files (SPEC Z4). They are kept, since a large file takes seconds: as long as
//! path, length, times of change and file number are the same.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aios_residency::plan::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::whole::write_json;

/// A file that was changed less than this before it was read may change again within one tick of
/// its file system's clock, so that its digest is not kept.
const SETTLED_NS: i128 = 2_000_000_000;
/// Bytes per read.
const CHUNK_BYTES: usize = 1 << 20;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// When its content changed, in seconds and nanoseconds.
    modified: (i64, i64),
    /// When its content, name or owner changed.
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of the file that `path` stands for now.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    fn is_settled(&self, now_ns: i128) -> bool {
        let ns = |(s, ns): (i64, i64)| i128::from(s) * 1_000_000_000 + i128::from(ns);
        ns(self.modified).max(ns(self.changed)) + SETTLED_NS < now_ns
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    files: Vec<(PathBuf, Stamp)>,
    sha256: String,
}

/// The SHA-256 of the bytes of `files`, one after another, in hexadecimal; from `folder`, if it is
/// known there, and kept there. `progress` is told the bytes read and those to read; if it returns
/// false, the reading stops.
///
/// # Errors
/// The system's; [`io::ErrorKind::Interrupted`] when stopped, and one if a file changes while it is
/// read.
pub fn of_files(
    files: &[PathBuf],
    folder: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> io::Result<String> {
    let stamps = || -> io::Result<Vec<(PathBuf, Stamp)>> {
        let each = files.iter().map(|path| {
            let path = fs::canonicalize(path)?;
            let stamp = Stamp::of(&path)?;
            Ok((path, stamp))
        });
        each.collect()
    };
    let before = stamps()?;
    let kept = folder.map(|folder| folder.join(format!("{}.json", file_name(&before))));
    if let Some(known) = kept.as_deref().and_then(|kept| look_up(kept, &before)) {
        return Ok(known);
    }
    let total = before.iter().map(|(_, stamp)| stamp.bytes).sum();
    let (mut digest, mut done) = (Sha256::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    for (path, _) in &before {
        let mut file = File::open(path)?;
        loop {
            let read = match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            digest.update(&chunk[..read]);
            done += read as u64;
            if !progress(done, total) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }
    if stamps()? != before {
        return Err(io::Error::other("the file changed while it was read"));
    }
    let sha256 = hex(&digest.finalize());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    let now = i128::try_from(now).unwrap_or(0);
    if let Some(kept) = kept
        && before.iter().all(|(_, stamp)| stamp.is_settled(now))
        && let Err(error) = write_json(&kept, &Kept { files: before, sha256: sha256.clone() })
    {
        // It can be computed again; a folder that cannot be written costs a moment each time.
        tracing::debug!(%error, "the digest of a model is not kept");
    }
    Ok(sha256)
}

/// One file for each list of paths, so that what is out of date is replaced.
fn file_name(files: &[(PathBuf, Stamp)]) -> String {
    let mut digest = Sha256::new();
    for (path, _) in files {
        let path = path.as_os_str().as_encoded_bytes();
        digest.update((path.len() as u64).to_le_bytes());
        digest.update(path);
    }
    hex(&digest.finalize()[..12])
}

fn look_up(kept: &Path, files: &[(PathBuf, Stamp)]) -> Option<String> {
    let Kept { files: known, sha256 } = serde_json::from_slice(&fs::read(kept).ok()?).ok()?;
    let sound = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    (sound && known == files).then_some(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn age(path: &Path) {
        let long_ago = SystemTime::now() - std::time::Duration::from_secs(100);
        File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }

    #[test]
    fn digests_are_those_of_the_bytes_and_young_files_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "bc").unwrap();
        let cache = folder.path().join("cache");
        assert_eq!(of_files(&[a.clone(), b], Some(&cache), &mut |_, _| true).unwrap(), ABC);
        assert!(!cache.exists(), "the files are as young as their file system's clock");
        assert!(of_files(&[folder.path().join("none")], None, &mut |_, _| true).is_err());
        let mut seen = Vec::new();
        let stopped = of_files(std::slice::from_ref(&a), None, &mut |done, total| {
            seen.push((done, total));
            false
        });
        assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert_eq!(seen, [(1, 1)]);
        // Its times of change cannot be set back, so a young file stays one.
        age(&a);
        assert!(!Stamp::of(&a).unwrap().is_settled(0));
    }

    #[test]
    fn what_is_kept_is_used_for_the_same_state_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "abc").unwrap();
        let path = fs::canonicalize(&file).unwrap();
        let state = vec![(path.clone(), Stamp::of(&path).unwrap())];
        let kept = folder.path().join("cache").join(format!("{}.json", file_name(&state)));
        // A planted digest shows whether what is kept is used.
        let planted = "0".repeat(64);
        write_json(&kept, &Kept { files: state, sha256: planted.clone() }).unwrap();
        let cache = kept.parent();
        let digest = || of_files(std::slice::from_ref(&file), cache, &mut |_, _| true).unwrap();
        assert_eq!(digest(), planted);
        fs::write(&kept, "no JSON").unwrap();
        assert_eq!(digest(), ABC);
        let state = vec![(path.clone(), Stamp::of(&path).unwrap())];
        write_json(&kept, &Kept { files: state, sha256: planted.clone() }).unwrap();
        // The same length and time of modification, other bytes.
        age(&file);
        assert_eq!(digest(), ABC);
        assert!(Stamp::of(&path).unwrap().is_settled(i128::MAX));
    }
}
