//! The engine: it reads GGUF files, tokenizes, renders chat templates, runs the forward pass and
//! samples. It joins `aios-residency`, which owns the bytes, with `aios-kernels`, which computes
//! on them; SPEC.md states the arithmetic and the formats.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests compare with std's"))]

mod arch;
mod blocks;
mod cache;
mod encoder;
mod error;
mod forward;
pub mod gguf;
mod memory;
mod meter;
mod model;
mod noise;
mod prefix;
mod rope;
mod sampler;
mod session;
mod speculate;
pub mod template;
pub mod tokenizer;

pub use arch::{ConfigError, read_config};
pub use blocks::{RowActivity, WeightBlock, WeightBlocks};
pub use cache::{KvTiering, UnknownTiering};
pub use encoder::{
    ConvertError, ENCODER_ARCHITECTURE, Encoder, EncoderError, EncoderOptions, Pooling,
    SentenceModel,
};
pub use error::EngineError;
pub use forward::{
    Chooser, Executor, ExecutorOptions, Judge, Kept, Scores, ScreenStats, Sink, StateDigest, Want,
    ZeroStats,
};
pub use meter::{Inner, Observer};
pub use model::{
    AdoptError, AliasError, FfnNeurons, FfnThresholds, Followed, HeadScreen, LoadError, Model,
    PartMode, PlanModes, RepackError, Repacked, RepackedFile, ScreenLimits, Shared, TensorError,
    ZeroLimits, repacked_files,
};
pub use prefix::{Prefix, PrefixShelf};
pub use sampler::{Sampler, SamplerOptions, argmax};
pub use session::{Generation, GenerationStats, Limits, Session, StopReason};
pub use speculate::{
    DraftError, DraftModel, Drafter, DrafterStats, Kind, KindStats, Length, Lookup, PASS_MAX,
    PassCosts, PassCurve, Replayed, SpecStats, Speculation, Target, replay,
};
