//! The vocabulary that every other crate of AIOS speaks: dtypes and their block sizes, tensor
//! roles and the GGUF names they go by, the configuration of a model, and the requirements that a
//! model is held against. It depends on nothing else in the workspace and holds the only copy of
//! each of these tables.

#![forbid(unsafe_code)]

mod config;
mod dtype;
pub mod requirements;
mod role;

pub use config::{
    ActivationFn, Architecture, AttentionConfig, BlockLayout, FfnConfig, FfnLayout, ModelConfig,
    NormConfig, NormKind, RopeConfig, RopePairing, RopeScaling, SlidingWindow,
};
pub use dtype::{DType, UnknownDType};
pub use role::{Placement, Role, RoleGroup, TensorName};
