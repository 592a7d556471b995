//! SHA-256 of model files and tokenizers (SPEC Z4). Those of files are kept, since a large one
//! takes seconds: for as long as path, length, time of change and file number are the same.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aios_engine::Model;
use aios_engine::gguf::{Array, Value};
use aios_residency::plan::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A file that changed less than this before it was read may change again within the same instant
/// of its file system's clock; its digest is not kept.
const SETTLED: Duration = Duration::from_secs(2);

const PIECE_BYTES: usize = 1 << 20;

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    path: PathBuf,
    bytes: u64,
    changed: Duration,
    device: u64,
    inode: u64,
}

/// A digest that is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    states: Vec<State>,
    sha256: String,
}

impl State {
    fn of(path: &Path, meta: &Metadata) -> io::Result<Self> {
        let changed = meta.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let (bytes, device, inode) = (meta.len(), meta.dev(), meta.ino());
        Ok(Self { path: path.to_owned(), bytes, changed, device, inode })
    }
}

fn states(files: &[PathBuf]) -> io::Result<Vec<State>> {
    let state = |path: &PathBuf| {
        let path = fs::canonicalize(path)?;
        State::of(&path, &fs::metadata(&path)?)
    };
    files.iter().map(state).collect()
}

/// The SHA-256 of the bytes of `files`, one after another, in hexadecimal. What is known of files
/// in this state is taken from `folder`, and put there. `progress` is told the bytes read and those
/// to read; if it returns false, the reading stops.
///
/// # Errors
/// The system's; [`io::ErrorKind::Interrupted`] when stopped, and an error if a file changes while
/// it is read.
pub fn of_files(
    files: &[PathBuf],
    folder: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> io::Result<String> {
    let before = states(files)?;
    let name = hex(&Sha256::digest(serde_json::to_vec(&paths(&before))?)[..12]);
    let kept = folder.map(|folder| folder.join(format!("{name}.json")));
    if let Some(known) = kept.as_deref().and_then(|kept| look_up(kept, &before)) {
        return Ok(known);
    }
    let total = before.iter().map(|state| state.bytes).sum();
    let (mut digest, mut done) = (Sha256::new(), 0);
    let mut piece = vec![0; PIECE_BYTES];
    for path in files {
        let mut file = File::open(path)?;
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                break;
            }
            digest.update(&piece[..read]);
            done += read as u64;
            if !progress(done, total) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }
    if states(files)? != before {
        return Err(io::Error::other("the file changed while it was read"));
    }
    let sha256 = hex(&digest.finalize());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    if let Some(kept) = kept
        && before.iter().all(|state| state.changed + SETTLED < now)
    {
        let entry = Kept { states: before, sha256: sha256.clone() };
        // It can be computed again; a cache that cannot be written costs a moment each time.
        if let Err(error) = keep(&kept, &entry) {
            tracing::debug!("the digest of a model is not kept: {error}");
        }
    }
    Ok(sha256)
}

fn paths(states: &[State]) -> Vec<&Path> {
    states.iter().map(|state| state.path.as_path()).collect()
}

fn look_up(kept: &Path, states: &[State]) -> Option<String> {
    let entry: Kept = serde_json::from_slice(&fs::read(kept).ok()?).ok()?;
    let sound = entry.sha256.len() == 64 && entry.sha256.bytes().all(|c| c.is_ascii_hexdigit());
    (sound && entry.states == states).then_some(entry.sha256)
}

fn keep(kept: &Path, entry: &Kept) -> io::Result<()> {
    let folder = kept.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::create_dir_all(folder)?;
    let mut whole = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut whole, entry)?;
    whole.persist(kept)?;
    Ok(())
}

/// The SHA-256 of a model's tokenizer and chat template: of every key that begins with
/// `tokenizer.`, in the order of the file, with its value.
pub fn of_tokenizer(model: &Model) -> String {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    for (key, value) in model.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        part(key.as_bytes());
        part(value.type_of().to_string().as_bytes());
        match value {
            Value::Array(Array::String(texts)) => {
                part(&(texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| part(text.as_bytes()));
            }
            Value::Array(Array::F32(numbers)) => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                part(&bytes);
            }
            Value::Array(Array::I32(numbers)) => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                part(&bytes);
            }
            Value::String(text) => part(text.as_bytes()),
            // The rest are numbers and truths, and short.
            other => part(format!("{other:?}").as_bytes()),
        }
    }
    hex(&digest.finalize())
}

/// The SHA-256 of token ids, each four bytes, little-endian.
pub fn of_ids(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_kept_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, path) = (folder.path().join("cache"), folder.path().join("model.gguf"));
        let old = SystemTime::now() - Duration::from_secs(60);
        let put = |bytes: &[u8], changed| {
            fs::write(&path, bytes).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(changed).unwrap();
        };
        let digest = |read: &mut u64| {
            let files = [path.clone()];
            of_files(&files, Some(&cache), &mut |done, _| {
                *read = done;
                true
            })
            .unwrap()
        };
        put(b"weights", old);
        let mut read = 0;
        assert_eq!(digest(&mut read), hex(&Sha256::digest(b"weights")));
        assert_eq!(read, 7);
        read = 0;
        assert_eq!((digest(&mut read), read), (hex(&Sha256::digest(b"weights")), 0));
        put(b"Weights", old + Duration::from_secs(1));
        assert_eq!((digest(&mut read), read), (hex(&Sha256::digest(b"Weights")), 7));
        // What changed a moment ago is read again, and so is what the cache has nonsense of.
        put(b"weights", SystemTime::now());
        for _ in 0..2 {
            read = 0;
            assert_eq!((digest(&mut read), read), (hex(&Sha256::digest(b"weights")), 7));
        }
        for entry in fs::read_dir(&cache).unwrap() {
            fs::write(entry.unwrap().path(), "{").unwrap();
        }
        put(b"weights", old);
        read = 0;
        assert_eq!((digest(&mut read), read), (hex(&Sha256::digest(b"weights")), 7));
        let stopped = of_files(&[path], None, &mut |_, _| false).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }
}
