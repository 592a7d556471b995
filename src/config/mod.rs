//! The configuration: `aios.toml`, which joins the settings of every part (SPEC O).
//!
//! Each part has its settings in a struct of its own, with defaults and a check. A part joins in
//! three places: a field of [`Config`], a line of `Config::sections`, and its commented settings
//! in `default.toml`.

mod error;
mod model;
mod nearest;
mod parse;
mod show;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::{ConfigError, Fault};
pub use model::{Bytes, Family, ModelEntry, ModelRole};
pub use nearest::{nearest, quoted};
pub use parse::{Lines, parse};
pub use show::{Origin, Setting};

use crate::{memory, persona, provenance, registry, router};

/// The name of the file.
pub const FILE_NAME: &str = "aios.toml";
/// The file that `aios config init` writes. It changes nothing.
pub const DEFAULT_FILE: &str = include_str!("default.toml");
/// No configuration is longer.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Every setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The models, each a `[[model]]`.
    #[serde(rename = "model")]
    pub models: Vec<ModelEntry>,
    /// `[registry]`.
    pub registry: registry::Options,
    /// `[router]`.
    pub router: router::Options,
    /// `[memory]`.
    pub memory: memory::Options,
    /// `[persona]`.
    pub persona: persona::Options,
    /// `[provenance]`.
    pub provenance: provenance::Options,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: vec![ModelEntry::builtin()],
            registry: registry::Options::default(),
            router: router::Options::default(),
            memory: memory::Options::default(),
            persona: persona::Options::default(),
            provenance: provenance::Options::default(),
        }
    }
}

impl Config {
    /// What the first model with `role` is called on a command line: its file, or its name in the
    /// catalogue.
    pub fn named(&self, role: ModelRole) -> Option<String> {
        let entry = self.models.iter().find(|entry| entry.role == role)?;
        let file = entry.file.as_ref().map(|file| file.to_string_lossy().into_owned());
        file.or_else(|| entry.catalogue.clone())
    }

    /// What each section's own check says of it.
    fn sections(&self) -> [(&'static str, Result<(), String>); 5] {
        [
            ("registry", self.registry.check()),
            ("router", self.router.check().map_err(|error| error.to_string())),
            ("memory", self.memory.check().map_err(|error| error.to_string())),
            ("persona", self.persona.check()),
            ("provenance", self.provenance.check()),
        ]
    }
}

/// Where a configuration is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file, which must exist: `--config` or `AIOS_CONFIG` names it.
    Named(PathBuf),
    /// In this file, if it exists.
    Usual(PathBuf),
    /// Nowhere: the environment names no folder.
    Nowhere,
}

impl Place {
    /// The place that `--config`, `AIOS_CONFIG`, `XDG_CONFIG_HOME` or `HOME` name, the first of
    /// them that is set.
    pub fn of(option: Option<&Path>) -> Self {
        Self::from(option, |name| std::env::var_os(name))
    }

    fn from(option: Option<&Path>, var: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = || set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        match option.map(Path::to_owned).or_else(|| set("AIOS_CONFIG")) {
            Some(path) => Self::Named(path),
            None => folder()
                .map_or(Self::Nowhere, |folder| Self::Usual(folder.join("aios").join(FILE_NAME))),
        }
    }

    /// The file, whether it exists or not.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Named(path) | Self::Usual(path) => Some(path),
            Self::Nowhere => None,
        }
    }
}

/// A configuration, and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    lines: Lines,
}

impl Loaded {
    /// The configuration in the file at `place`, or the built-in one.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, the line and the key.
    pub fn load(place: &Place) -> Result<Self, ConfigError> {
        match place {
            Place::Named(path) => Self::read(path),
            Place::Usual(path) => match Self::read(path) {
                Err(ConfigError::Unreadable { cause, .. })
                    if matches!(
                        cause.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    Ok(Self::builtin())
                }
                other => other,
            },
            Place::Nowhere => Ok(Self::builtin()),
        }
    }

    /// The defaults of this program.
    pub fn builtin() -> Self {
        Self { config: Config::default(), path: None, lines: Lines::default() }
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |cause| ConfigError::unreadable(path, cause);
        // Opening a pipe would wait for a writer, so the kind is looked at first.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(ConfigError::NotAFile { path: path.to_owned() });
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
            ConfigError::NotText { path: path.to_owned(), line }
        })?;
        let folder = std::path::absolute(path).map_err(unreadable)?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        let (config, lines) = parse(&text, folder)
            .map_err(|fault| ConfigError::Faulty { path: path.to_owned(), fault })?;
        Ok(Self { config, path: Some(path.to_owned()), lines })
    }
}

/// Writes [`DEFAULT_FILE`] to `path` and makes its folder. A file that is there is replaced only
/// with `force`, and in one step.
///
/// # Errors
/// [`ConfigError::Exists`] and [`ConfigError::Unwritable`].
pub fn write_default(path: &Path, force: bool) -> Result<(), ConfigError> {
    let failed = |cause| ConfigError::Unwritable { path: path.to_owned(), cause };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut whole = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    whole.write_all(DEFAULT_FILE.as_bytes()).map_err(failed)?;
    whole.as_file().sync_all().map_err(failed)?;
    let persisted = if force { whole.persist(path) } else { whole.persist_noclobber(path) };
    match persisted {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(ConfigError::Exists { path: path.to_owned() })
        }
        Err(error) => Err(failed(error.error)),
    }
}
