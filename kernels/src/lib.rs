//! Compute on slices, bit-exact: every kernel gives the same bits on every instruction set, for
//! every batch size and number of threads, by following the canonical arithmetic of SPEC.md.
//!
//! Kernels are written once over the private `simd` layer; [`Isa`] is the proof that the
//! processor has an instruction set and is passed as a value. This crate never looks at a file
//! and knows nothing of models; with quantised weights it never allocates on the token path.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests compare with std's"))]

mod act;
mod attention;
mod dequantize;
mod format;
mod isa;
mod layers;
mod math;
mod matmul;
mod neurons;
mod panel;
mod pool;
mod shared;
mod simd;
mod sketch;
#[cfg(test)]
mod testing;
mod tiles;

pub use act::{QuantRows, ScaleBlock};
pub use attention::{
    AngleTable, AttentionParams, AttentionScratch, BLOCK, CacheShape, CacheType, Colder, ColderMut,
    KeyBias, KvLayer, KvLayerMut, KvTier, KvTiers, MAX_HEAD_LEN, TierPlan, UnknownCacheType,
    attend, attend_all,
};
pub use dequantize::{ShapeError, dequantize};
pub use isa::{Isa, IsaError, IsaName};
pub use layers::{
    Norm, Rotation, activate, add, add_rows, cut, norm, norm_in_place, rotate, rotate_rows, scale,
    softcap,
};
pub use matmul::{
    Inner, Input, Matrix, MatrixError, Product, dot_rows, inner, matmul, scale_block,
};
pub use neurons::{
    ActiveNeurons, NeuronShape, Neurons, NotFiniteScale, finite_scales, neurons, pack_neurons,
};
pub use panel::{PANEL_ROWS, pack, packed_bytes};
pub use pool::{Pool, allowed_processors};
pub use sketch::{
    Activations, Bounds, DIRECTIONS, Limits, NotFinite, Peak, Query, Sketch, SketchBuilder,
    SketchError, SketchShape, front as sketch_front, refine, upper_bounds,
};
