//! Q4_0: 32 elements in 18 bytes, x = d · (q − 8), 4-bit q.
//!
//! ```text
//! byte  0    2                      18
//!       | d  | qs[16]               |
//!         f16  qs[i] = q[i] | q[i + 16] << 4
//! ```

use super::Format32;
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q4_0;

/// A block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::Q4_0.block_bytes());

impl Format32 for Q4_0 {
    const DTYPE: DType = DType::Q4_0;
    const MAX: u8 = 15;
    const OFFSET: i32 = 8;
    type Block = Block;

    #[inline(always)]
    fn unpack<S: Simd>(_simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        for (i, q) in block.qs.iter().enumerate() {
            out[i] = q & 15;
            out[i + 16] = q >> 4;
        }
        [u16::from_le_bytes(block.d), 0]
    }
}
