//! Synthetic models: GGUF files of published shapes with random weights, to measure with where the
//! real weights cannot be had. Speed and bytes depend on shapes and dtypes alone; what such a model
//! says means nothing, and its metadata says so (SPEC.md, rules Y1 to Y8).

mod alias;
mod fill;
mod layout;
mod metadata;
mod quant;
mod shapes;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use aios_contract::{ActivationFn, DType};
use aios_engine::gguf::{GgufError, Metadata, TensorSpec, WriteError, Writer};

pub use metadata::SYNTHETIC_KEY;
pub use quant::{Quant, UnknownQuant};
pub use shapes::{Rope, SHAPES, Shape, UnknownShape};

use fill::{BLOCKS_ALIGN, Filler};
use layout::{Content, Tensor};

/// The most layers: no model has as many.
const LAYERS_MAX: u32 = 512;
/// The largest vocabulary: four times that of any model.
const VOCAB_MAX: u32 = 1 << 20;
/// Tensor data is made and written in pieces of at most this many bytes.
const PIECE_BYTES_MAX: usize = 32 << 20;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// The shape.
    pub shape: &'static Shape,
    /// What it is quantised to.
    pub quant: Quant,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Layers, if not the shape's own number.
    pub layers: Option<u32>,
    /// Tokens of the vocabulary, if not the shape's own number.
    pub vocab: Option<u32>,
    /// The feed-forward activation, if not the architecture's own.
    pub activation: Option<ActivationFn>,
}

/// How far the writing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensor data written.
    pub done_bytes: u64,
    /// Bytes of tensor data in all.
    pub total_bytes: u64,
}

/// Why a synthetic model was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of layers makes no sense.
    #[error("{layers} layers: choose 1 to {LAYERS_MAX}")]
    Layers {
        /// The number asked for.
        layers: u32,
    },
    /// The vocabulary is too small for the byte tokens, or too large.
    #[error("a vocabulary of {vocab}: choose {} to {VOCAB_MAX}", metadata::VOCAB_MIN)]
    Vocab {
        /// The number asked for.
        vocab: u32,
    },
    /// The rank of deltas makes no sense, or the model has no layers that could share.
    #[error(
        "deltas of rank {rank} in {layers} layers: choose 1 to {}, and layers of which several lie \
         at 40 to 60 % depth",
        alias::RANK_MAX
    )]
    Alias {
        /// The rank asked for.
        rank: u32,
        /// Layers of the model.
        layers: u32,
    },
    /// There is something of that name, and it is not to be replaced.
    #[error("{} exists; give another name, or --force to replace it", path.display())]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// There is a directory or a device of that name.
    #[error("{} is not a file, so it cannot be replaced", path.display())]
    NotAFile {
        /// The name.
        path: PathBuf,
    },
    /// The file could not be written. Nothing was left behind.
    #[error("cannot write {} ({bytes} bytes)", path.display())]
    Write {
        /// The name.
        path: PathBuf,
        /// How long its tensor data would have been.
        bytes: u64,
        /// What failed.
        source: io::Error,
    },
    /// The output failed, or the header was refused.
    #[error(transparent)]
    Gguf(#[from] WriteError),
    /// The progress callback asked to stop. Nothing was left behind.
    #[error("interrupted")]
    Interrupted,
}

/// A file that is ready to be written: all but the bytes of its tensors.
#[derive(Debug)]
pub struct Plan {
    seed: u64,
    layers: u32,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    data_bytes: u64,
}

impl Recipe {
    /// Works out metadata and tensors.
    ///
    /// # Errors
    /// [`Error::Layers`] and [`Error::Vocab`] for numbers out of range.
    pub fn plan(&self) -> Result<Plan, Error> {
        let layers = self.layers.unwrap_or(self.shape.layers);
        let vocab = self.vocab.unwrap_or(self.shape.vocab);
        if !(1..=LAYERS_MAX).contains(&layers) {
            return Err(Error::Layers { layers });
        }
        if !(metadata::VOCAB_MIN..=VOCAB_MAX).contains(&vocab) {
            return Err(Error::Vocab { vocab });
        }
        let shape = Shape { layers, vocab, ..*self.shape };
        let tensors = layout::tensors(&shape, self.quant);
        let data_bytes = data_bytes(&tensors)?;
        let metadata = metadata::metadata(self, &shape);
        Ok(Plan { seed: self.seed, layers, metadata, tensors, data_bytes })
    }
}

fn data_bytes(tensors: &[Tensor]) -> Result<u64, Error> {
    let sizes = tensors.iter().map(|tensor| tensor.spec.bytes());
    Ok(sizes.sum::<Result<u64, GgufError>>().map_err(WriteError::from)?)
}

impl Plan {
    /// Has the layers of 40 to 60 % depth share the matrices of the first of them, with deltas of
    /// rank `rank` (SPEC Y8).
    ///
    /// # Errors
    /// [`Error::Alias`].
    pub fn with_aliases(mut self, rank: u32) -> Result<Self, Error> {
        let layers = self.layers;
        let possible = (1..=alias::RANK_MAX).contains(&rank);
        let Self { metadata, tensors, .. } = &mut self;
        if !possible || alias::share(metadata, tensors, layers as usize, rank) == 0 {
            return Err(Error::Alias { rank, layers });
        }
        self.data_bytes = data_bytes(&self.tensors)?;
        Ok(self)
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorSpec> {
        self.tensors.iter().map(|tensor| &tensor.spec)
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The size of all tensors in bytes, without padding.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Writes the file to `out`, on the threads of the current rayon pool, and gives `out` back.
    /// After every few megabytes `progress` is called; if it breaks, the writing ends.
    ///
    /// # Errors
    /// [`Error::Gguf`] and [`Error::Interrupted`]; what was written by then is no model.
    pub fn write<W: Write>(
        &self,
        out: W,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<W, Error> {
        let specs: Vec<TensorSpec> = self.tensors().cloned().collect();
        let mut writer = Writer::new(out, &self.metadata, &specs)?;
        let mut done_bytes = 0;
        let mut buffer = Vec::new();
        for Tensor { spec, content } in &self.tensors {
            writer.start(&spec.name)?;
            let bytes = spec.bytes().map_err(WriteError::from)?;
            let mut pieces = Pieces::new(self.seed, spec, content, bytes);
            while pieces.next_into(&mut buffer) {
                writer.append(&buffer)?;
                done_bytes += buffer.len() as u64;
                let now = Progress { done_bytes, total_bytes: self.data_bytes };
                if progress(now).is_break() {
                    return Err(Error::Interrupted);
                }
            }
        }
        Ok(writer.finish()?)
    }

    /// Makes the file `path`. It appears under that name only when it is whole; whatever goes wrong
    /// before, nothing is left behind. An existing file is replaced only if `replace` says so.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NotAFile`], [`Error::Write`] and those of [`Self::write`].
    pub fn create(
        &self,
        path: &Path,
        replace: bool,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let failed =
            |source| Error::Write { path: path.to_owned(), bytes: self.data_bytes, source };
        match fs::metadata(path) {
            Ok(_) if !replace => return Err(Error::Exists { path: path.to_owned() }),
            Ok(found) if !found.is_file() => {
                return Err(Error::NotAFile { path: path.to_owned() });
            }
            _ => {}
        }
        let file = temporary_beside(path).map_err(failed)?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let file = match self.write(out, progress) {
            Err(Error::Gguf(WriteError::Io(source))) => return Err(failed(source)),
            outcome => outcome?.into_inner().map_err(|e| failed(e.into_error()))?,
        };
        if replace {
            file.persist(path).map_err(|e| failed(e.error))?;
            return Ok(());
        }
        match file.persist_noclobber(path) {
            Ok(_) => Ok(()),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists { path: path.to_owned() })
            }
            Err(e) => Err(failed(e.error)),
        }
    }
}

/// A file in the folder of `path` that is removed unless it is renamed. It gets the permissions of
/// any new file, not those of a secret.
fn temporary_beside(path: &Path) -> io::Result<tempfile::NamedTempFile<File>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".aios-synth-").suffix(".gguf.part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder.unwrap_or(Path::new(".")))
}

/// The data of one tensor, piece by piece.
struct Pieces<'a> {
    source: Source<'a>,
    dtype: DType,
    blocks: u64,
    next_block: u64,
}

/// Where the data comes from.
enum Source<'a> {
    Noise(Filler),
    Values(&'a [f32]),
}

impl<'a> Pieces<'a> {
    fn new(seed: u64, spec: &TensorSpec, content: &'a Content, bytes: u64) -> Self {
        let source = match content {
            Content::Noise(noise) => {
                Source::Noise(Filler::new(seed, &spec.name, spec.dtype, *noise))
            }
            Content::Values(values) => Source::Values(values),
        };
        let blocks = bytes / spec.dtype.block_bytes() as u64;
        Self { source, dtype: spec.dtype, blocks, next_block: 0 }
    }

    /// Replaces the contents of `buffer` by the next piece; `false` if there is none.
    fn next_into(&mut self, buffer: &mut Vec<u8>) -> bool {
        let block_bytes = self.dtype.block_bytes();
        let blocks_max = PIECE_BYTES_MAX / block_bytes / BLOCKS_ALIGN * BLOCKS_ALIGN;
        let blocks = (self.blocks - self.next_block).min(blocks_max as u64);
        if blocks == 0 {
            return false;
        }
        match &self.source {
            Source::Noise(filler) => {
                buffer.resize(blocks as usize * block_bytes, 0);
                filler.fill(self.next_block, buffer);
            }
            Source::Values(values) => {
                buffer.clear();
                let rest = &values[self.next_block as usize..][..blocks as usize];
                buffer.extend(rest.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        self.next_block += blocks;
        true
    }
}
