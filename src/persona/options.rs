//! The section `[persona]` of `aios.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, Layer, Persona};

/// Who answers, and how much is put around a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The file of the persona; none means the built-in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The layer.
    pub layer: Layer,
}

impl Options {
    /// The persona that answers.
    ///
    /// # Errors
    /// Those of [`Persona::read`].
    pub fn persona(&self) -> Result<Persona, Error> {
        self.file.as_deref().map_or_else(|| Ok(Persona::default()), Persona::read)
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn check(&self) -> Result<(), String> {
        match &self.file {
            Some(file) if file.as_os_str().is_empty() => {
                Err("file is empty; name one, or leave it out for the built-in persona".into())
            }
            _ => Ok(()),
        }
    }
}
