//! Q4_0: 32 elements in 18 bytes, x = d · (q − 8), 4-bit q.
//!
//! ```text
//! byte  0    2                      18
//!       | d  | qs[16]               |
//!         f16  qs[i] = q[i] | q[i + 16] << 4
//! ```

use super::{Format32, each, nibbles, quads};
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

/// The blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    qs: [[u8; 64]; 4],
}

impl Format32 for Q4_0 {
    const DTYPE: DType = DType::Q4_0;
    const MAX: u8 = 15;
    const OFFSET: i32 = 8;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        *out = simd.nibbles32(&block.qs);
        [u16::from_le_bytes(block.d), 0]
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel { d: each(rows, |b| b.d), qs: quads(rows, |b| b.qs) }
    }
    #[inline(always)]
    fn quad<S: Simd>(simd: S, panel: &Panel, k: usize) -> S::B {
        nibbles(simd, &panel.qs, k)
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> &[[u8; 2]; 16] {
        &panel.d
    }
}
