//! Q5_K: 256 elements in 176 bytes, 8 sub-blocks of 32: x = d · scale · q − dmin · min, 5-bit q.
//!
//! ```text
//! byte  0    2      4            16       48                    176
//!       | d  | dmin | scales[12] | qh[32] | qs[128]             |
//!         f16  f16    as in Q4_K   bit 4    bits 0 to 3
//! qh[i]       = Σ_k (q[32k + i] >> 4) << k                           (k < 8, i < 32)
//! qs[32j + i] = q[64j + i] & 15 | (q[64j + 32 + i] & 15) << 4        (j < 4, i < 32)
//! ```

use super::{Format256, Super, q4_k};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q5K;

/// A super-block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qh: [u8; 32],
    qs: [u8; 128],
}

const _: () = assert!(size_of::<Block>() == DType::Q5_K.block_bytes());

impl Format256 for Q5K {
    const DTYPE: DType = DType::Q5_K;
    const MAX: u8 = 31;
    const PAIRED: bool = true;
    const HAS_MIN: bool = true;
    type Block = Block;

    #[inline(always)]
    fn unpack<S: Simd>(_simd: S, block: &Block, out: &mut Super) {
        q4_k::unpack_scales(&block.scales, out);
        out.d = [u16::from_le_bytes(block.d), u16::from_le_bytes(block.dmin)];
        for (j, qs) in block.qs.chunks_exact(32).enumerate() {
            for (i, q) in qs.iter().enumerate() {
                let high = block.qh[i] >> (2 * j);
                out.w[64 * j + i] = (q & 15) | ((high & 1) << 4);
                out.w[64 * j + 32 + i] = (q >> 4) | ((high & 2) << 3);
            }
        }
    }
}
