//! Products of tiles: 16 columns of activations with 16 rows of weights in one instruction, on
//! processors with AMX (SPEC L5).
//!
//! The sums are integers and exact, so that neither their order nor who computes them shows.

use crate::simd::LANES;
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
pub use amx::Amx;

/// Columns of a tile of sums.
pub(crate) const COLUMNS: usize = 16;

/// A cache line as 16 words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [i32; LANES]);

/// 256 bytes of each of 16 rows: line k holds bytes 4k to 4k + 3 of row r at 4r.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Plane(pub(crate) [[u8; 64]; 64]);

/// 16-bit weights as their low bytes, unsigned, and their high ones, signed.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Planes {
    pub(crate) low: Plane,
    pub(crate) high: Plane,
}

/// Sums, \[column\]\[row\].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[i32; LANES]; COLUMNS]);

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiles {
    /// AMX.
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    /// Plain code, so that all around the instructions is tested on every machine.
    #[cfg(test)]
    Plain,
}

/// Which products a thread is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// [`Ready::blocks`].
    Blocks,
    /// [`Ready::super_block`].
    Super,
}

impl Tiles {
    /// Makes this thread ready for products of a shape; it stays so until the value is dropped.
    #[inline(always)]
    pub(crate) fn ready(self, shape: Shape) -> Ready {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(amx) => amx.configure(shape),
            #[cfg(test)]
            Self::Plain => {}
        }
        Ready { tiles: self, shape, thread: PhantomData }
    }
}

/// Proof that this thread is ready for products.
pub(crate) struct Ready {
    tiles: Tiles,
    shape: Shape,
    /// Being ready is a thread's state.
    thread: PhantomData<*const ()>,
}

impl Ready {
    /// For each 32 elements the sums of x · w, both signed. `x` are the quants of a tile in blocks
    /// of 32.
    #[inline(always)]
    pub(crate) fn blocks(&mut self, x: &[Line; 64], w: &Plane, out: &mut [Sums; 8]) {
        assert_eq!(self.shape, Shape::Blocks);
        match self.tiles {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `configure` has been called on this thread for this shape, and nothing else
            // of this crate changes it until `self` is dropped.
            Tiles::Amx(amx) => unsafe { amx.blocks(x, w, out) },
            #[cfg(test)]
            Tiles::Plain => plain::blocks(x, w, out),
        }
    }

    /// Sums over 256 elements: the planes of `x` are those of a tile of a super-block, signed.
    /// The results are high · low, high · high, low · low and low · high, the plane of x first.
    #[inline(always)]
    pub(crate) fn super_block(&mut self, x: &[Line; 128], w: &Planes, out: &mut [Sums; 4]) {
        assert_eq!(self.shape, Shape::Super);
        match self.tiles {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Tiles::Amx(amx) => unsafe { amx.super_block(x, w, out) },
            #[cfg(test)]
            Tiles::Plain => plain::super_block(x, w, out),
        }
    }
}

impl Drop for Ready {
    #[inline(always)]
    fn drop(&mut self) {
        match self.tiles {
            #[cfg(target_arch = "x86_64")]
            Tiles::Amx(amx) => amx.release(),
            #[cfg(test)]
            Tiles::Plain => {}
        }
    }
}

#[cfg(test)]
mod plain;
#[cfg(test)]
mod tests;
