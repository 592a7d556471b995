//! What answers for a model: this engine, or whatever follows.

use std::path::PathBuf;

use serde::Serialize;

use super::LocalModel;
use crate::chat::Responder;
use crate::config::{Family, ModelEntry, ModelRole};

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionMode {
    /// A model with the weights that its makers trained.
    Real,
    /// A model with random weights (SPEC Y): its speed means something, its words do not.
    Synthetic,
    /// No model.
    Mock,
}

impl ExecutionMode {
    /// The word in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Synthetic => "synthetic",
            Self::Mock => "mock",
        }
    }
}

/// What a backend says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The name in the registry.
    pub name: String,
    /// What it is used for.
    pub role: ModelRole,
    /// What runs it: `engine` for this program.
    pub backend: &'static str,
    /// What its answers are worth.
    pub execution_mode: ExecutionMode,
    /// Its family, where that is known.
    #[serde(serialize_with = "family")]
    pub family: Option<Family>,
    /// Its architecture, as its file calls it.
    pub architecture: String,
    /// How its weights are quantised, read from its file.
    pub quantisation: String,
    /// Its files, in order.
    pub files: Vec<PathBuf>,
    /// The tokens that a session holds if nobody asks for another number.
    pub context: usize,
}

fn family<S: serde::Serializer>(of: &Option<Family>, serializer: S) -> Result<S::Ok, S::Error> {
    of.map(Family::name).serialize(serializer)
}

/// The weights that a backend keeps in this machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The same number for backends that share their weights.
    pub id: usize,
    /// Their bytes; 0 if they are elsewhere.
    pub bytes: u64,
}

/// What a session should be like. What is not said here the model's entry says, or a default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Tokens of context; 0 takes the length that the model was trained with.
    pub context: Option<u32>,
    /// Threads.
    pub threads: Option<usize>,
    /// Bytes of memory for weights, cache and activations.
    pub ram: Option<u64>,
}

/// A model that can be talked to, by several at once.
pub trait Backend: Send + Sync {
    /// What it is.
    fn describe(&self) -> Description;

    /// What its answers are worth.
    fn execution_mode(&self) -> ExecutionMode {
        self.describe().execution_mode
    }

    /// What it takes of this machine's memory.
    fn held(&self) -> Held;

    /// The SHA-256 of its files' bytes, one after another, in hexadecimal; `None` if it has none
    /// here.
    ///
    /// # Errors
    /// If they cannot be read.
    fn sha256(&self) -> anyhow::Result<Option<String>>;

    /// A conversation of its own cache. It keeps the weights alive.
    ///
    /// # Errors
    /// If the model cannot converse, or there is not enough memory.
    fn open(&self, options: &SessionOptions) -> anyhow::Result<Box<dyn Responder + Send>>;

    /// The model of this engine, if this is one.
    fn local(&self) -> Option<&LocalModel> {
        None
    }
}

/// Makes the backends of entries.
pub trait Source: Send + Sync {
    /// The backend of `entry`, loaded.
    ///
    /// # Errors
    /// What keeps it from being loaded.
    fn load(&self, entry: &ModelEntry) -> anyhow::Result<Box<dyn Backend>>;
}
