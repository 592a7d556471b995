//! What every harness's report has in common: which model, with what, and how it is written.

use crate::logits::hex;
use crate::synth::SYNTHETIC_KEY;
use aios_engine::gguf::{Escaped, Metadata};
use aios_engine::{Executor, ExecutorOptions, Model};
use aios_residency::{MapError, Mapping};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Bytes that are digested between two looks at whether to go on.
const PIECE_BYTES: usize = 64 << 20;

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
    /// Its width: elements of the vectors between layers.
    pub d_model: usize,
    /// Bytes of its file's tensors by type, the most first.
    pub tensor_types: Vec<TypeBytes>,
}

/// Bytes of the tensors that are stored in one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TypeBytes {
    /// The type, such as `Q4_K`.
    pub name: &'static str,
    /// Their bytes.
    pub bytes: u64,
}

impl ModelInfo {
    /// Of the model in the file `name` of `bytes` bytes.
    pub fn new(model: &Model, name: &str, sha256: &[u8; 32], bytes: u64) -> Self {
        let config = model.config();
        Self {
            name: Escaped::new(name).to_string(),
            sha256: hex(sha256),
            bytes,
            synthetic: is_synthetic(model.metadata()),
            architecture: config.architecture.name(),
            layers: config.layers,
            d_model: config.d_model,
            tensor_types: tensor_types(model),
        }
    }

    /// Bytes of the tensors of a type.
    pub fn bytes_of(&self, name: &str) -> u64 {
        let found = self.tensor_types.iter().find(|entry| entry.name == name);
        found.map_or(0, |entry| entry.bytes)
    }

    /// Of the model whose files are at `paths`, in order. They are read whole; `goes_on` is asked
    /// now and then.
    ///
    /// # Errors
    /// [`MapError`]; `None` if `goes_on` said no.
    pub fn of_files(
        model: &Model,
        paths: &[PathBuf],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Self>, MapError> {
        let name = model.path().file_name().unwrap_or_default().to_string_lossy();
        let found = digest(paths, goes_on)?;
        Ok(found.map(|(sha256, bytes)| Self::new(model, &name, &sha256, bytes)))
    }
}

fn tensor_types(model: &Model) -> Vec<TypeBytes> {
    let mut types: Vec<TypeBytes> = Vec::new();
    for tensor in model.tensors() {
        let (name, bytes) = (tensor.dtype.name(), tensor.bytes());
        match types.iter_mut().find(|known| known.name == name) {
            Some(known) => known.bytes += bytes,
            None => types.push(TypeBytes { name, bytes }),
        }
    }
    types.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));
    types
}

/// SHA-256 of files one after another, and their bytes; `goes_on` is asked now and then, and if it
/// says no there is no result.
///
/// # Errors
/// [`MapError`].
pub fn digest(
    paths: &[PathBuf],
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Option<([u8; 32], u64)>, MapError> {
    let mut digest = Sha256::new();
    let mut bytes = 0;
    for path in paths {
        let mapping = Mapping::open(path)?;
        for piece in mapping.bytes().chunks(PIECE_BYTES) {
            if !goes_on() {
                return Ok(None);
            }
            digest.update(piece);
        }
        bytes += mapping.bytes().len() as u64;
    }
    Ok(Some((digest.finalize().into(), bytes)))
}

/// What reports on synthetic weights say at their top.
pub const SYNTHETIC: &str =
    "**Synthetic weights: speed and bytes only, what it says means nothing.**";

/// Whether a file is stamped as synthetic. A stamp of another type is one as well: who cannot be
/// trusted to write it is not to be taken for real.
pub fn is_synthetic(metadata: &Metadata) -> bool {
    metadata.get(SYNTHETIC_KEY).is_some()
        && !matches!(metadata.bool(SYNTHETIC_KEY), Ok(Some(false)))
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
    /// Threads that computed.
    pub threads: usize,
    /// Whether the arithmetic was exact, and not int8.
    pub exact: bool,
    /// The types of the cached keys and values.
    pub cache_types: [&'static str; 2],
    /// The tiers of older keys and values.
    pub kv_tiers: &'static str,
}

impl Environment {
    /// Of an executor that is set up by `options` and computes with `threads` threads.
    pub fn new(options: &ExecutorOptions, threads: usize) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            isa: options.isa.description(),
            threads,
            exact: options.exact,
            cache_types: [options.cache_k.name(), options.cache_v.name()],
            kv_tiers: options.kv_tiers.name(),
        }
    }
}

impl Environment {
    /// The cache's tiers, where it has some, as the end of a sentence about the cache.
    pub fn with_tiers(&self) -> String {
        match self.kv_tiers {
            "off" => String::new(),
            tiers => format!(", with {tiers} tiers"),
        }
    }
}

/// How an executor reads its weights, where an option or a plan decides that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// Whether matrices are read repacked.
    pub repacked: bool,
    /// The budget of memory, bytes.
    pub ram_bytes: Option<u64>,
    /// Bytes of weights that are kept in the last-level cache.
    pub kept_bytes: Option<u64>,
    /// How far ahead of their use weights are asked for, bytes.
    pub ahead_bytes: u64,
    /// SHA-256 of the table by which passes of one token skip zero neurons.
    pub zeros_sha256: Option<String>,
    /// SHA-256 of the thresholds below which neurons are left out, which changes results.
    pub thresholds_sha256: Option<String>,
}

impl InForce {
    /// What is in force in an executor.
    pub fn of(executor: &Executor) -> Self {
        let zeros = executor.model().ffn_neurons().filter(|_| executor.skips_zeros());
        let thresholds = executor.thresholds().and_then(|found| found.sha256());
        Self {
            repacked: executor.model().is_repacked(),
            ram_bytes: executor.options().ram,
            kept_bytes: executor.kept().map(|kept| kept.kept_bytes),
            ahead_bytes: executor.asks_ahead() as u64,
            zeros_sha256: zeros.map(|neurons| neurons.sha256().to_owned()),
            thresholds_sha256: thresholds.map(str::to_owned),
        }
    }

    /// The same in a line.
    pub fn summary(&self) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let mut parts = vec![if self.repacked { "repacked" } else { "as in the file" }.to_owned()];
        parts.push(format!("asked for {} bytes ahead", self.ahead_bytes));
        parts.extend(self.ram_bytes.map(|ram| format!("within {:.1} MB of memory", mb(ram))));
        let kept = self.kept_bytes.map(|kept| format!("{:.1} MB kept in the cache", mb(kept)));
        parts.extend(kept);
        let table = |sha256: &Option<String>, what: &str| {
            sha256.as_ref().map(|sha256| format!("{what} (table {:.12})", sha256))
        };
        parts.extend(table(&self.zeros_sha256, "zero neurons skipped"));
        parts.extend(table(&self.thresholds_sha256, "neurons left out, which changes results"));
        parts.join(", ")
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

/// A report that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: std::io::Error,
}

/// Writes files into `folder`, which is made if it is not there; files of the same names are
/// replaced. Returns their paths.
///
/// # Errors
/// [`WriteError`].
pub fn write(
    folder: &Path,
    files: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<Vec<PathBuf>, WriteError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| WriteError { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let mut written = Vec::new();
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(failed(&path))?;
        written.push(path);
    }
    Ok(written)
}
