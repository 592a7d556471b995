//! The report: everything measured, in one value that is written as JSON, as text and as pictures.

use super::activations::Zeros;
use super::cache::CacheBytes;
use super::duplicates::Duplicates;
use super::files::GgufFile;
use super::levers::{Lever, TokenBytes, levers};
use super::lookup::Lookup;
use super::similarity::Similarity;
use super::sparsity::Sparsity;
use super::{HeadroomError, Progress};
use crate::logits::hex;
use crate::prompts::{Prompt, Prompts};
use crate::synth::SYNTHETIC_KEY;
use aios_contract::{FfnLayout, Role, RoleGroup};
use aios_engine::gguf::{Escaped, Metadata};
use aios_engine::{ExecutorOptions, Model};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The version of the JSON: a key that changes its meaning or goes raises it.
pub const SCHEMA_VERSION: u32 = 1;
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
    /// DRAM reads over the bytes that a token must read at least once, simulated by a model of a
    /// cache; `None` where that was not run.
    pub reread_ratio: Option<f64>,
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
    /// What it comes to.
    pub levers: Vec<Lever>,
}

/// Which model was measured.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInfo {
    /// Its file's name.
    pub name: String,
    /// SHA-256 of the file, or of its parts one after another.
    pub sha256: String,
    /// Their bytes.
    pub bytes: u64,
    /// Whether its weights are random (SPEC Y1), so that no figure says anything of a real model.
    pub synthetic: bool,
    /// Its architecture.
    pub architecture: &'static str,
    /// Its layers.
    pub layers: usize,
}

/// With what a model was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// The version of this program.
    pub version: &'static str,
    /// Operating system and processor architecture.
    pub platform: String,
    /// The instruction set.
    pub isa: &'static str,
    /// Threads that read prompts.
    pub threads: usize,
    /// Whether the arithmetic was exact, and not int8.
    pub exact: bool,
    /// The types of the cached keys and values.
    pub cache_types: [&'static str; 2],
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
    let config = model.config();
    Ok(About {
        model: ModelInfo {
            name: Escaped::new(&file.name()).to_string(),
            sha256: hex(&file.sha256(progress)?),
            bytes: file.bytes(),
            synthetic: is_synthetic(model.metadata()),
            architecture: config.architecture.name(),
            layers: config.layers,
        },
        environment: Environment {
            version: env!("CARGO_PKG_VERSION"),
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            isa: options.isa.description(),
            threads: options.threads_batch,
            exact: options.exact,
            cache_types: [options.cache_k.name(), options.cache_v.name()],
        },
        calibration: Calibration {
            sha256: hex(&prompts.sha256),
            file_prompts: prompts.prompts.len(),
            prompts: texts.len(),
            tokens: texts.iter().map(|(_, ids)| ids.len()).sum(),
        },
        bytes_per_token: token_bytes(model, file),
    })
}

/// Whether a file is stamped as synthetic. A stamp of another type is one as well: who cannot be
/// trusted to write it is not to be taken for real.
fn is_synthetic(metadata: &Metadata) -> bool {
    metadata.get(SYNTHETIC_KEY).is_some()
        && !matches!(metadata.bool(SYNTHETIC_KEY), Ok(Some(false)))
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
        let Parts { similarity, duplicates, activations, sparsity, lookup, cache } = parts;
        HeadroomReport {
            schema_version: SCHEMA_VERSION,
            model,
            environment,
            calibration,
            bytes_per_token,
            reread_ratio: None,
            similarity,
            duplicates,
            activations,
            sparsity,
            cache,
            lookup,
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
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| HeadroomError::Write { path, source }
        };
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        let pictures = self.pictures()?;
        let markdown = self.markdown(&pictures);
        let texts = [(JSON_FILE, self.json()), (MARKDOWN_FILE, markdown)];
        let pictures = pictures.into_iter().map(|picture| (picture.file, picture.svg));
        let mut written = Vec::new();
        for (name, content) in texts.into_iter().chain(pictures) {
            let path = folder.join(name);
            std::fs::write(&path, content).map_err(failed(&path))?;
            written.push(path);
        }
        Ok(written)
    }
}

/// A picture of a report.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Its file's name.
    pub file: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// The document.
    pub svg: String,
}
