//! A model: files mapped and checked, tensors resolved to roles, configuration read.

mod alias;
mod follow;
mod kept;
mod load;
mod neurons;
mod repack;
mod screen;
mod share;
mod thresholds;
mod tuning;
mod weights;

pub use alias::AliasError;
pub use follow::{Followed, PartMode, PlanModes};
pub use kept::{RepackedFile, repacked_files};
pub use load::{LoadError, TensorError};
pub use neurons::{FfnNeurons, ZeroLimits};
pub use repack::{RepackError, Repacked};
pub use screen::{AdoptError, HeadScreen, ScreenLimits};
pub use share::Shared;
pub use thresholds::FfnThresholds;
pub(crate) use weights::{Delta, Ffn, FfnInput, Layer, NormWeights, Projection, Tensor, Weights};

use crate::gguf::{Metadata, TensorInfo};
use crate::rope::Ropes;
use crate::tokenizer::{Tokenizer, TokenizerError};
use aios_contract::{DType, ModelConfig, RoleGroup};
use aios_residency::{BlockStore, BlockTable};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A model, ready to run. It is shared: sessions hold an `Arc` of it.
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    config: ModelConfig,
    blocks: BlockTable,
    /// Bytes before the tensor data of each part.
    header_bytes: Vec<u64>,
    weights: Weights,
    ropes: Ropes,
    /// Rope factors beyond the training context (LongRoPE), if the file has them.
    long_ropes: Option<Ropes>,
    tokenizer: OnceLock<Result<Tokenizer, Arc<TokenizerError>>>,
    /// How its head is screened, once it has adopted a plan.
    screen: OnceLock<Arc<HeadScreen>>,
    /// Its down projections neuron by neuron, once it has adopted a plan that has them.
    neurons: OnceLock<Arc<FfnNeurons>>,
    /// Below what its neurons are left out, once it has adopted a plan that says so.
    thresholds: OnceLock<Arc<FfnThresholds>>,
    /// Bytes that its passes keep in the last-level cache, once it has adopted a plan that says so.
    keep: OnceLock<u64>,
    /// How far ahead of use weights are asked for, once it has adopted a plan that says so.
    ahead: OnceLock<usize>,
    /// The budget of memory for those who ask for none, once it has adopted a plan for one.
    budget: OnceLock<u64>,
}

impl Model {
    /// Maps the model at `path`, all parts if it is split, and checks everything that running
    /// it needs: keys, tensors, shapes, dtypes.
    ///
    /// # Errors
    /// [`LoadError`], which names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Arc<Self>, LoadError> {
        load::load(path).map(Arc::new)
    }

    /// As [`Model::load`], with the matrices repacked for speed: mapped from a file in `folder`,
    /// which is made if it is not there. It changes no result. `progress` is told the bytes made
    /// so far and those to make in all; if it returns false the making stops.
    ///
    /// A file that cannot be made (a full disk, a folder that may not be written) is no error:
    /// the model then runs from its own file, and what is returned beside it says why.
    ///
    /// # Errors
    /// Those of [`Model::load`].
    pub fn load_repacked(
        path: &Path,
        folder: &Path,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(Arc<Self>, Result<Repacked, RepackError>), LoadError> {
        let mut model = load::load(path)?;
        let repacked = repack::repack(&mut model, folder, progress);
        Ok((Arc::new(model), repacked))
    }

    /// As [`Model::load`], or as [`Model::load_repacked`] with the folder `panels`, with matrices
    /// that other models of `store` have read from these (SPEC W13). Digests are kept in the folder
    /// `digests`; where there are none yet, the files are read once to make them. What could not
    /// be repacked is read as it stands.
    ///
    /// # Errors
    /// Those of [`Model::load`].
    pub fn load_shared(
        path: &Path,
        panels: Option<&Path>,
        store: &BlockStore,
        digests: Option<&Path>,
    ) -> Result<(Arc<Self>, Shared), LoadError> {
        let mut model = load::load(path)?;
        if let Some(folder) = panels
            && let Err(error) = repack::repack(&mut model, folder, &mut |_, _| true)
        {
            tracing::info!("the weights are not repacked: {error}");
        }
        let shared = model.share(store, digests);
        Ok((Arc::new(model), shared))
    }

    /// The path that the model was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its files, in order: several if it is split.
    pub fn files(&self) -> Vec<PathBuf> {
        let parts = self.blocks.mappings().iter().take(self.header_bytes.len());
        parts.map(|mapping| mapping.path().to_owned()).collect()
    }

    /// The metadata of its (first) file.
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors, of all parts.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Its configuration.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its blocks.
    pub const fn blocks(&self) -> &BlockTable {
        &self.blocks
    }

    pub(crate) const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The ropes for a session of `context` positions.
    pub(crate) fn ropes(&self, context: usize) -> &Ropes {
        let original = self.config.rope.original_context.unwrap_or(usize::MAX);
        self.long_ropes.as_ref().filter(|_| context > original).unwrap_or(&self.ropes)
    }

    /// Its tokenizer, made from the metadata when it is first asked for.
    ///
    /// # Errors
    /// What is wrong with the vocabulary.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Arc<TokenizerError>> {
        let made = self
            .tokenizer
            .get_or_init(|| Tokenizer::from_metadata(&self.metadata).map_err(Arc::new));
        made.as_ref().map_err(Arc::clone)
    }

    /// Whether products read any of its matrices repacked.
    pub fn is_repacked(&self) -> bool {
        self.weights.factors().any(|tensor| tensor.panels.is_some())
    }

    /// The source of its chat template, if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.metadata.str("tokenizer.chat_template").ok().flatten()
    }

    /// The dtypes of its matrices by size, largest first, with their bytes.
    pub fn dtypes(&self) -> Vec<(DType, u64)> {
        let mut sums: Vec<(DType, u64)> = Vec::new();
        for tensor in &self.tensors {
            match sums.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
                Some((_, bytes)) => *bytes += tensor.bytes(),
                None => sums.push((tensor.dtype, tensor.bytes())),
            }
        }
        sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        sums
    }

    /// Weight bytes that one decoded token reads, by group of roles: the ledger's count, known
    /// beforehand. Of the embedding it is one row.
    pub fn bytes_per_token(&self) -> Vec<(RoleGroup, u64)> {
        let bytes = self.weights.bytes_per_token(&self.blocks);
        let of = |group: RoleGroup| -> u64 {
            bytes.iter().filter(|(role, _)| role.group() == group).map(|(_, bytes)| bytes).sum()
        };
        RoleGroup::ALL.into_iter().map(|group| (group, of(group))).collect()
    }
}
