//! Q4_1: 32 elements in 20 bytes, x = d · q + m, 4-bit q.
//!
//! ```text
//! byte  0    2    4                      20
//!       | d  | m  | qs[16]               |
//!         f16  f16  qs[i] = q[i] | q[i + 16] << 4
//! ```

use super::{Format32, each, nibbles, quads};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q4_1;

/// A block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    m: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::Q4_1.block_bytes());

/// The blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    m: [[u8; 2]; 16],
    qs: [[u8; 64]; 4],
}

impl Format32 for Q4_1 {
    const DTYPE: DType = DType::Q4_1;
    const MAX: u8 = 15;
    const HAS_MIN: bool = true;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        *out = simd.nibbles32(&block.qs);
        [u16::from_le_bytes(block.d), u16::from_le_bytes(block.m)]
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel { d: each(rows, |b| b.d), m: each(rows, |b| b.m), qs: quads(rows, |b| b.qs) }
    }
    #[inline(always)]
    fn quad<S: Simd>(simd: S, panel: &Panel, k: usize) -> S::B {
        nibbles(simd, &panel.qs, k)
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> &[[u8; 2]; 16] {
        &panel.d
    }
    #[inline(always)]
    fn mins(panel: &Panel) -> &[[u8; 2]; 16] {
        &panel.m
    }
}
