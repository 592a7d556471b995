//! Q5_0: 32 elements in 22 bytes, x = d · (q − 16), 5-bit q.
//!
//! ```text
//! byte  0    2       6                      22
//!       | d  | qh[4] | qs[16]               |
//!         f16  bit i of the little-endian qh is bit 4 of q[i]
//!                      qs[i] = q[i] & 15 | (q[i + 16] & 15) << 4
//! ```

use super::Format32;
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q5_0;

/// A block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    qh: [u8; 4],
    qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::Q5_0.block_bytes());

impl Format32 for Q5_0 {
    const DTYPE: DType = DType::Q5_0;
    const MAX: u8 = 31;
    const OFFSET: i32 = 16;
    type Block = Block;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        let high = simd.bits32(block.qh, 16);
        for (i, q) in block.qs.iter().enumerate() {
            out[i] = (q & 15) | high[i];
            out[i + 16] = (q >> 4) | high[i + 16];
        }
        [u16::from_le_bytes(block.d), 0]
    }
}
