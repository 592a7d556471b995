//! Repacked weights that are kept on the disk.

use std::io;
use std::path::{Path, PathBuf};

use aios_engine::{RepackedFile, repacked_files};
use aios_validation::logits::hex;
use serde::Serialize;

use crate::models::Catalog;

/// The folder of repacked weights. Every file in it may be deleted: the next run of its model makes
/// it anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Panels {
    /// The folder, whether it is there or not.
    pub folder: PathBuf,
    /// Bytes of all files.
    pub bytes: u64,
    /// The files, by name.
    pub files: Vec<PanelFile>,
}

/// A file of repacked weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PanelFile {
    /// Its name in the folder.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// The name by which the catalogue knows the model, if it does.
    pub model: Option<String>,
    /// Where the model was when it was last loaded; absent if that is not known.
    pub source: Option<String>,
    /// Whether it still is there; absent as `source` is.
    pub source_exists: Option<bool>,
    /// The SHA-256 of the model; absent for a file that is not whole.
    pub source_sha256: Option<String>,
}

impl Panels {
    /// Looks into `folder`, with the models that `catalog` knows by their digests.
    ///
    /// # Errors
    /// The operating system's, if the folder is there and cannot be looked into.
    pub fn collect(folder: &Path, catalog: &Catalog) -> io::Result<Self> {
        let files: Vec<PanelFile> =
            repacked_files(folder)?.iter().map(|file| PanelFile::of(file, catalog)).collect();
        let bytes = files.iter().map(|file| file.bytes).sum();
        Ok(Self { folder: folder.to_owned(), bytes, files })
    }
}

impl PanelFile {
    fn of(file: &RepackedFile, catalog: &Catalog) -> Self {
        let sha256 = file.source_sha256.map(|digest| hex(&digest));
        let known = catalog.models().iter().find(|model| Some(&model.sha256) == sha256.as_ref());
        Self {
            file: file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: file.bytes,
            model: known.map(|model| model.name.clone()),
            source: file.source.as_ref().map(|path| path.to_string_lossy().into_owned()),
            source_exists: file.source.as_ref().map(|path| path.exists()),
            source_sha256: sha256,
        }
    }
}
