//! Q4_K: 256 elements in 144 bytes, 8 sub-blocks of 32: x = d · scale · q − dmin · min.
//!
//! ```text
//! byte  0    2      4              16                    144
//!       | d  | dmin | scales[12]   | qs[128]             |
//!         f16  f16    8 × (6-bit scale, 6-bit min)
//! qs[32j + i] = q[64j + i] | q[64j + 32 + i] << 4          (j < 4, i < 32)
//! scales: for s < 4   scale = scales[s] & 63                 min = scales[s + 4] & 63
//!         for s ≥ 4   scale = scales[s + 4] & 15 | (scales[s − 4] >> 6) << 4
//!                     min   = scales[s + 4] >> 4 | (scales[s] >> 6) << 4
//! ```

use super::{Format256, Super};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q4K;

/// A super-block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qs: [u8; 128],
}

const _: () = assert!(size_of::<Block>() == DType::Q4_K.block_bytes());

/// Unpacks the 6-bit scales and mins that Q4_K and Q5_K share, each into a pair of groups of 16.
#[inline(always)]
pub(super) fn unpack_scales(packed: &[u8; 12], out: &mut Super) {
    let word =
        |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    const LOW6: u32 = 0x3f3f_3f3f;
    const LOW4: u32 = 0x0f0f_0f0f;
    const HIGH2: u32 = 0x0303_0303;
    let scales = [a & LOW6, (c & LOW4) | (((a >> 6) & HIGH2) << 4)];
    let mins = [b & LOW6, ((c >> 4) & LOW4) | (((b >> 6) & HIGH2) << 4)];
    for s in 0..8 {
        let byte = |words: [u32; 2]| i16::from(words[s / 4].to_le_bytes()[s % 4]);
        out.scales[2 * s..2 * s + 2].fill(byte(scales));
        out.mins[2 * s..2 * s + 2].fill(byte(mins));
    }
}

impl Format256 for Q4K {
    const DTYPE: DType = DType::Q4_K;
    const MAX: u8 = 15;
    const PAIRED: bool = true;
    const HAS_MIN: bool = true;
    type Block = Block;

    #[inline(always)]
    fn unpack<S: Simd>(_simd: S, block: &Block, out: &mut Super) {
        unpack_scales(&block.scales, out);
        out.d = [u16::from_le_bytes(block.d), u16::from_le_bytes(block.dmin)];
        for j in 0..4 {
            for i in 0..32 {
                let q = block.qs[32 * j + i];
                out.w[64 * j + i] = q & 15;
                out.w[64 * j + 32 + i] = q >> 4;
            }
        }
    }
}
