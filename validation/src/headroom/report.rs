//! The report: everything measured, in one value that is written as JSON, as text and as pictures.

use super::activations::Zeros;
use super::cache::CacheBytes;
use super::duplicates::Duplicates;
use super::files::GgufFile;
use super::levers::{Lever, TokenBytes, levers};
use super::lookup::{Lookup, ScreenedHead};
use super::similarity::Similarity;
use super::sparsity::Sparsity;
use super::{HeadroomError, Progress};
use crate::logits::hex;
use crate::prompts::{Prompt, Prompts};
use crate::report::{Environment, ModelInfo, Picture};
use crate::simulate::Behind;
use aios_contract::{FfnLayout, Role, RoleGroup};
use aios_engine::{ExecutorOptions, Model};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The version of the JSON: a key that changes its meaning or goes raises it.
pub const SCHEMA_VERSION: u32 = 2;
/// Files of a report.
const JSON_FILE: &str = "headroom.json";
const MARKDOWN_FILE: &str = "headroom.md";

/// A model's headroom.
#[derive(Clone, Debug, Serialize)]
pub struct HeadroomReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The model.
    pub model: ModelInfo,
    /// With what it was measured. No figure depends on it.
    pub environment: Environment,
    /// The prompts.
    pub calibration: Calibration,
    /// Weight bytes that a token reads, counted.
    pub bytes_per_token: TokenBytes,
    /// DRAM reads over the bytes of all lines that a token reads or writes (SPEC B20), simulated by
    /// a model of caches; `None` where that was not run.
    pub reread_ratio: Option<f64>,
    /// Which caches these are, for how many threads and at which depth.
    pub reread_behind: Option<Behind>,
    /// How alike layers are.
    pub similarity: Similarity,
    /// What is stored twice.
    pub duplicates: Duplicates,
    /// Zeros and active sets of the feed-forward parts.
    pub activations: Zeros,
    /// What leaving out neurons costs.
    pub sparsity: Sparsity,
    /// Bytes of the cache, computed.
    pub cache: Vec<CacheBytes>,
    /// Speculation by look-up.
    pub lookup: Lookup,
    /// What these read of the head by a plan's sketches; `None` without such a plan.
    pub head: Option<ScreenedHead>,
    /// What it comes to.
    pub levers: Vec<Lever>,
}

/// The prompts of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// SHA-256 of their file.
    pub sha256: String,
    /// Prompts in the file.
    pub file_prompts: usize,
    /// Prompts that were used.
    pub prompts: usize,
    /// Tokens of these.
    pub tokens: usize,
}

/// What the parts measured.
pub(super) struct Parts {
    pub similarity: Similarity,
    pub duplicates: Duplicates,
    pub activations: Zeros,
    pub sparsity: Sparsity,
    pub lookup: Lookup,
    pub head: Option<ScreenedHead>,
    pub cache: Vec<CacheBytes>,
}

/// What is known before anything is measured.
pub(super) struct About {
    model: ModelInfo,
    environment: Environment,
    calibration: Calibration,
    bytes_per_token: TokenBytes,
}

pub(super) fn about(
    model: &Model,
    file: &GgufFile,
    options: &ExecutorOptions,
    prompts: &Prompts,
    texts: &[(&Prompt, Vec<u32>)],
    progress: &mut Progress<'_>,
) -> Result<About, HeadroomError> {
    Ok(About {
        model: ModelInfo::new(model, &file.name(), &file.sha256(progress)?, file.bytes()),
        environment: Environment::new(options, options.threads_batch),
        calibration: Calibration {
            sha256: hex(&prompts.sha256),
            file_prompts: prompts.prompts.len(),
            prompts: texts.len(),
            tokens: texts.iter().map(|(_, ids)| ids.len()).sum(),
        },
        bytes_per_token: token_bytes(model, file),
    })
}

fn token_bytes(model: &Model, file: &GgufFile) -> TokenBytes {
    let groups = model.bytes_per_token();
    let of = |group| groups.iter().filter(|(g, _)| *g == group).map(|(_, bytes)| bytes).sum();
    let up = file.role_bytes(Role::FfnUp);
    let fused = model.config().ffn.layout == FfnLayout::GatedFused;
    TokenBytes {
        total: groups.iter().map(|(_, bytes)| bytes).sum(),
        attention: of(RoleGroup::Attention),
        ffn: of(RoleGroup::Ffn),
        up: if fused { up / 2 } else { up },
        down: file.role_bytes(Role::FfnDown),
        head: of(RoleGroup::Head),
    }
}

impl About {
    pub fn with(self, parts: Parts) -> HeadroomReport {
        let Self { model, environment, calibration, bytes_per_token } = self;
        let levers = levers(&bytes_per_token, &parts);
        let Parts { similarity, duplicates, activations, sparsity, lookup, head, cache } = parts;
        HeadroomReport {
            schema_version: SCHEMA_VERSION,
            model,
            environment,
            calibration,
            bytes_per_token,
            reread_ratio: None,
            reread_behind: None,
            similarity,
            duplicates,
            activations,
            sparsity,
            cache,
            lookup,
            head,
            levers,
        }
    }
}

impl HeadroomReport {
    /// The report as pretty JSON with a line break at the end.
    pub fn json(&self) -> String {
        let mut json =
            serde_json::to_string_pretty(self).expect("numbers, strings, lists and fixed keys");
        json.push('\n');
        json
    }

    /// The report for people, with the names of the pictures that `pictures` are.
    pub fn markdown(&self, pictures: &[Picture]) -> String {
        super::markdown::render(self, pictures)
    }

    /// The pictures; those that would show nothing are left out.
    ///
    /// # Errors
    /// [`HeadroomError::Plot`].
    pub fn pictures(&self) -> Result<Vec<Picture>, HeadroomError> {
        super::plots::draw(self)
    }

    /// Writes JSON, text and pictures into `folder`, which is made if it is not there; files of the
    /// same names are replaced. Returns their paths.
    ///
    /// # Errors
    /// [`HeadroomError::Write`], [`HeadroomError::Plot`].
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, HeadroomError> {
        let pictures = self.pictures()?;
        let markdown = self.markdown(&pictures);
        let texts = [(JSON_FILE, self.json()), (MARKDOWN_FILE, markdown)];
        let pictures = pictures.into_iter().map(|picture| (picture.file, picture.svg));
        Ok(crate::report::write(folder, texts.into_iter().chain(pictures))?)
    }
}
