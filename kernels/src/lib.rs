//! Compute on slices, bit-exact: every kernel gives the same bits on every instruction set, for
//! every batch size and number of threads, by following the canonical arithmetic of SPEC.md.
//!
//! Kernels are written once over the private `simd` layer; [`Isa`] is the proof that the
//! processor has an instruction set and is passed as a value. This crate never looks at a file,
//! never allocates on the token path and knows nothing of models.

mod dequantize;
mod format;
mod isa;
mod simd;

pub use dequantize::{ShapeError, dequantize};
pub use isa::{Isa, IsaError, IsaName};
