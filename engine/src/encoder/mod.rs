//! Encoders: models of the BERT family, which turn a text into one vector (SPEC.md, A6 to A9).
//!
//! They share the kernels and the rules of the models that generate and nothing else: there is no
//! cache that outlives a text, no sampler, and weights are used as floats whatever the file holds
//! (exact products, N4), so that a vector has the same bits on every machine.

mod convert;
mod forward;
mod load;
#[cfg(test)]
mod tests;

pub use convert::{ConvertError, SentenceModel};

use crate::model::LoadError;
use crate::tokenizer::{TokenizerError, WordPiece};
use aios_kernels::{Isa, Pool, allowed_processors};
use aios_residency::Mapping;
use load::{Config, Weights};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The value of `general.architecture`.
pub const ENCODER_ARCHITECTURE: &str = "bert";
/// The version of the encoders' arithmetic, which their digests carry (A9).
const ARITHMETIC: u32 = 1;
/// Tokens of a pass; a longer text takes a pass of its own. It changes speed, not results.
const PASS_TOKENS: usize = 512;

/// How a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The vector of the class token, the first one.
    Class,
}

/// What an encoder runs on. It changes speed, not results.
#[derive(Clone, Copy, Debug)]
pub struct EncoderOptions {
    /// The instruction set.
    pub isa: Isa,
    /// Threads.
    pub threads: usize,
}

impl Default for EncoderOptions {
    /// The best instruction set, and all processors.
    fn default() -> Self {
        Self { isa: Isa::detect(), threads: allowed_processors().len().max(1) }
    }
}

/// Why an encoder could not be loaded, or a text has no vector.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// The file is not an encoder that this engine runs.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its vocabulary is not sound.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TokenizerError,
    },
    /// Threads must be 1 or more, and the system must start them.
    #[error("the system does not start {threads} threads: {source}")]
    Threads {
        /// The number asked for.
        threads: usize,
        /// The system's error.
        source: std::io::Error,
    },
    /// A vector is not finite, or zero, so that it has no direction.
    #[error(
        "the vector of text {index} is not finite or is zero: the weights hold NaN or infinity, \
         or an activation overflowed; check the file's digest"
    )]
    NoDirection {
        /// The text's index among those given, from 0.
        index: usize,
    },
}

/// An encoder, ready to run. It may be shared between threads; calls take turns on its pool.
pub struct Encoder {
    mapping: Mapping,
    config: Config,
    weights: Weights,
    tokenizer: WordPiece,
    isa: Isa,
    pool: Pool,
    digest: OnceLock<String>,
}

impl Encoder {
    /// Maps the GGUF file at `path` and checks everything that running it needs.
    ///
    /// # Errors
    /// [`EncoderError`], which names the file and what is wrong with it.
    pub fn load(path: &Path, options: EncoderOptions) -> Result<Self, EncoderError> {
        load::load(path, options)
    }

    /// One vector for each text, of [`Self::dim`] numbers and of length 1. A text's vector depends
    /// on nothing but the text and the file. Of a text of more than [`Self::max_tokens`] tokens
    /// only the beginning counts; [`Self::tokens`] tells.
    ///
    /// # Errors
    /// [`EncoderError::NoDirection`].
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncoderError> {
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| self.ids(text).0).collect();
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = &ids[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fit = rest.iter().take_while(|ids| {
                tokens += ids.len();
                tokens <= PASS_TOKENS
            });
            let (pass, later) = rest.split_at(fit.count().max(1));
            vectors.extend(forward::vectors(self, pass));
            rest = later;
        }
        let sound = |vector: &Vec<f32>| {
            vector.iter().all(|x| x.is_finite()) && vector.iter().any(|x| *x != 0.0)
        };
        match vectors.iter().position(|vector| !sound(vector)) {
            Some(index) => Err(EncoderError::NoDirection { index }),
            None => Ok(vectors),
        }
    }

    /// The ids of a text with its frame, and whether they are all of it.
    fn ids(&self, text: &str) -> (Vec<u32>, bool) {
        self.tokenizer.encode(text, self.config.max_tokens)
    }

    /// How many tokens of `text` count, with the two of its frame, and whether that is all of it.
    pub fn tokens(&self, text: &str) -> (usize, bool) {
        let (ids, whole) = self.ids(text);
        (ids.len(), whole)
    }

    /// The length of a vector.
    pub const fn dim(&self) -> usize {
        self.config.d_model
    }

    /// The most tokens of a text that count, with the two of its frame.
    pub const fn max_tokens(&self) -> usize {
        self.config.max_tokens
    }

    /// How a text's tokens become one vector.
    pub const fn pooling(&self) -> Pooling {
        self.config.pooling
    }

    /// The most memory that its weights and a pass take: weights are mapped whole and read in every
    /// pass, so that fewer bytes would have the system read them from disk each time.
    pub fn bytes(&self) -> u64 {
        let longest = self.config.max_tokens.max(PASS_TOKENS);
        let pass = forward::pass_bytes(&self.config, longest);
        (self.mapping.bytes().len() + pass) as u64
    }

    /// Its tokenizer.
    pub const fn tokenizer(&self) -> &WordPiece {
        &self.tokenizer
    }

    /// The file that it was loaded from.
    pub fn path(&self) -> &Path {
        self.mapping.path()
    }

    /// A digest of all that vectors depend on but the text: `e1-` for the version of the
    /// arithmetic, and the file's SHA-256. The first call reads the whole file.
    pub fn digest(&self) -> &str {
        self.digest.get_or_init(|| {
            use std::fmt::Write as _;
            let mut text = format!("e{ARITHMETIC}-");
            for byte in Sha256::digest(self.mapping.bytes()) {
                let _ = write!(text, "{byte:02x}");
            }
            text
        })
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("path", &self.path())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
