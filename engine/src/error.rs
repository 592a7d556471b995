//! What can go wrong while a model runs.

use crate::tokenizer::TokenizerError;
use aios_kernels::{CacheType, IsaError};
use aios_residency::{DiskError, OutOfMemory, ResidentError};
use std::sync::Arc;

/// Why a session could not be started or could not go on. The session itself stays usable.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is nothing to run.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// A token id that the vocabulary does not have.
    #[error("token id {id} is outside the vocabulary of {vocab} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The prompt does not fit.
    #[error(
        "the prompt has {tokens} tokens and the context holds {context}; \
         shorten it or raise the context with -c"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the context.
        context: usize,
    },
    /// Threads must be 1 or more.
    #[error("0 threads cannot compute anything; give 1 or more with -t")]
    NoThreads,
    /// A context of 0 positions, or one beyond what positions can be counted exactly for.
    #[error("a context of {context} positions is not possible; choose 1 to {most}")]
    Context {
        /// The context asked for.
        context: usize,
        /// The largest possible.
        most: usize,
    },
    /// The cache type does not fit the model's heads.
    #[error("cache type {kind} needs heads of a multiple of 32 elements; this model's have {len}")]
    CacheType {
        /// The type.
        kind: CacheType,
        /// Elements of a head.
        len: usize,
    },
    /// Heads that tiers of the cache cannot keep.
    #[error(
        "tiers of the KV cache need heads of a multiple of 16 elements; this model's have {len}: \
         leave --kv-tiers off"
    )]
    KvTiers {
        /// Elements of a head.
        len: usize,
    },
    /// A budget that the cache does not fit.
    #[error(
        "{} for the KV cache (--kv-budget) are not enough: it takes {}{}; give that much{} shorten \
         the context (-c)",
        size(*given),
        size(*least),
        if *tiered { " with tiers" } else { "" },
        if *tiered { " or" } else { ", choose tiers (--kv-tiers warm or cold), or" }
    )]
    KvBudget {
        /// Bytes given.
        given: u64,
        /// Bytes that it takes.
        least: u64,
        /// Whether that is with tiers, which take less.
        tiered: bool,
    },
    /// A sampling parameter is out of range.
    #[error("{name} {value} is out of range: {problem}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        problem: &'static str,
    },
    /// The logits of a position are not finite.
    #[error(
        "the logits at position {position} are not finite: the weights hold NaN or infinity, \
         or an activation overflowed; check the file's digest"
    )]
    NotFinite {
        /// The position, counted from 0.
        position: usize,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// A budget of memory that is too small.
    #[error(
        "{} of memory (--ram) are not enough here: the least is {}, of which the cache \
         takes {}, activations {} and buffers {}; give that much, or shorten the context (-c)",
        size(*given), size(*least), size(*cache), size(*activations), size(*buffers)
    )]
    Ram {
        /// Bytes given.
        given: u64,
        /// The least that works.
        least: u64,
        /// What the cache takes of it.
        cache: u64,
        /// What activations take.
        activations: u64,
        /// What buffers take.
        buffers: u64,
    },
    /// Weights could not be read of the disk in time of need; the pass is lost.
    #[error(transparent)]
    Disk(Arc<DiskError>),
    /// Weights could not be given a place.
    #[error(transparent)]
    Resident(ResidentError),
    /// The system does not give the memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The beginning of a sequence could not be shared.
    #[error("the first positions of the cache cannot be shared: {0}")]
    Prefix(std::io::Error),
    /// The processor lacks the instruction set.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The system does not start threads.
    #[error("the system does not start {threads} threads: {source}")]
    Threads {
        /// The number asked for.
        threads: usize,
        /// The system's error.
        source: std::io::Error,
    },
    /// The vocabulary is not sound.
    #[error(transparent)]
    Tokenizer(#[from] Arc<TokenizerError>),
}

/// Megabytes, rounded up to a tenth: a number that is enough when it is given back. Less than that
/// is in bytes.
fn size(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000);
    match bytes {
        ..100_000 => format!("{bytes} bytes"),
        _ => format!("{}.{} MB", tenths / 10, tenths % 10),
    }
}
