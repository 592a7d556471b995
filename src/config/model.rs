//! An entry of the registry as `aios.toml` writes it, and the words that it may use.

use std::fmt;
use std::path::PathBuf;

use aios_contract::Architecture;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::nearest::{nearest, quoted};
use crate::models::DEFAULT_MODEL;

/// The largest context that an entry may ask for, in tokens.
const CONTEXT_MAX: u32 = 1 << 24;
/// The most threads that an entry may ask for.
const THREADS_MAX: u32 = 1024;
/// The longest name of a model.
const NAME_BYTES_MAX: usize = 64;

/// What a model is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelRole {
    /// Answers what is simple.
    Small,
    /// Answers everything else, and everything where no other model is named.
    Main,
    /// Drafts tokens for another model to check.
    Draft,
    /// Turns texts into vectors.
    Embedder,
}

impl ModelRole {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Small, Self::Main, Self::Draft, Self::Embedder];

    /// The word in `aios.toml`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Main => "main",
            Self::Draft => "draft",
            Self::Embedder => "embedder",
        }
    }
}

impl fmt::Display for ModelRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A family of architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Family {
    Llama,
    Qwen,
    Phi,
    Gemma,
    Falcon,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Qwen, Self::Phi, Self::Gemma, Self::Falcon];

    /// The name as it is printed; in `aios.toml` capitals do not matter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "LLaMA",
            Self::Qwen => "Qwen",
            Self::Phi => "Phi",
            Self::Gemma => "Gemma",
            Self::Falcon => "Falcon",
        }
    }

    /// The family that an architecture belongs to.
    pub const fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Llama => Self::Llama,
            Architecture::Qwen2 | Architecture::Qwen3 => Self::Qwen,
            Architecture::Phi3 => Self::Phi,
            Architecture::Falcon => Self::Falcon,
            Architecture::Gemma3 => Self::Gemma,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Family {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = Self::ALL.into_iter().find(|family| family.name().eq_ignore_ascii_case(&text));
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            let hint = nearest(&text, &names).map(|name| format!("; did you mean {name}?"));
            de::Error::custom(format!(
                "there is no family {}{}; there are {}",
                quoted(&text),
                hint.unwrap_or_default(),
                names.join(", ")
            ))
        })
    }
}

/// A number of bytes, written as a number or as `2600M`, `3G`, `1.5Gi` (SPEC W1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1000)];
        match units.into_iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl de::Visitor<'_> for Either {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes such as 2600M, \"3G\" or 1500000000")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Bytes, E> {
                u64::try_from(number).map(Bytes).map_err(|_| E::custom("bytes cannot be negative"))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bytes, E> {
                Ok(Bytes(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                let parsed = aios_residency::parse_bytes(text);
                parsed.map(Bytes).map_err(|error| E::custom(format!("{} {error}", quoted(text))))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// One model of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// The name that `/model` and the router use: ASCII letters, digits and `._-`.
    pub name: String,
    /// Its GGUF file. What is not absolute starts at the folder of `aios.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The catalogue model that it is instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogue: Option<String>,
    /// The family that its file must be of; only an embedder may do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// What it is used for.
    pub role: ModelRole,
    /// Tokens of context; 0 takes the length that the model was trained with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Threads of a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Memory of a session (SPEC W).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<Bytes>,
    /// The chat template instead of its file's: a name that is built in, or a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
}

impl ModelEntry {
    /// The model that answers where no configuration names another.
    pub fn builtin() -> Self {
        let catalogue = Some(DEFAULT_MODEL.to_owned());
        let family = Some(Family::Llama);
        Self { catalogue, family, ..Self::unnamed(DEFAULT_MODEL, ModelRole::Main) }
    }

    /// The model in `file`, of whatever family it is.
    pub fn of_file(name: &str, role: ModelRole, file: impl Into<PathBuf>) -> Self {
        Self { file: Some(file.into()), ..Self::unnamed(name, role) }
    }

    /// The model that the catalogue calls `catalogue`, of whatever family it is.
    pub fn of_catalogue(name: &str, role: ModelRole, catalogue: &str) -> Self {
        Self { catalogue: Some(catalogue.to_owned()), ..Self::unnamed(name, role) }
    }

    fn unnamed(name: &str, role: ModelRole) -> Self {
        let name = name.to_owned();
        let (file, catalogue, family, chat_template) = (None, None, None, None);
        let (context, threads, ram) = (None, None, None);
        Self { name, file, catalogue, family, role, context, threads, ram, chat_template }
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The key that is wrong, and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let name = &self.name;
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || !name.chars().all(plain)
            || name.to_ascii_lowercase().ends_with(".gguf")
        {
            let rule = "it takes 1 to 64 of the letters a to z, digits and '._-', and no '.gguf'";
            return Err(("name", format!("{} is no name for a model: {rule}", quoted(name))));
        }
        match (&self.file, &self.catalogue) {
            (Some(_), Some(_)) => {
                return Err((
                    "catalogue",
                    "a model has a 'file' or a 'catalogue', not both".into(),
                ));
            }
            (None, None) => {
                let remedy = "give the path of a GGUF file, or 'catalogue' with a name that \
                              'aios models' lists";
                return Err(("file", format!("model '{name}' has no file: {remedy}")));
            }
            _ => {}
        }
        if self.file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) {
            return Err(("file", "the path is empty".to_owned()));
        }
        if self.chat_template.as_ref().is_some_and(|named| named.as_os_str().is_empty()) {
            return Err(("chat_template", "it is empty; leave it out for the model's own".into()));
        }
        if self.family.is_none() && self.role != ModelRole::Embedder {
            let names = Family::ALL.map(Family::name).join(", ");
            return Err(("family", format!("model '{name}' has no family: one of {names}")));
        }
        if self.context.is_some_and(|context| context > CONTEXT_MAX) {
            return Err(("context", format!("must be from 0 to {CONTEXT_MAX}")));
        }
        if self.threads.is_some_and(|threads| !(1..=THREADS_MAX).contains(&threads)) {
            return Err(("threads", format!("must be from 1 to {THREADS_MAX}")));
        }
        if self.ram == Some(Bytes(0)) {
            return Err(("ram", "must be more than 0; leave it out for no limit".to_owned()));
        }
        Ok(())
    }
}
