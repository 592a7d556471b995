//! Q8_0: 32 elements in 34 bytes, x = d · q, q an i8.
//!
//! ```text
//! byte  0    2                      34
//!       | d  | qs[32]               |
//!         f16  qs[i] = q[i] in two's complement
//! ```

use super::{Format32, each, quads};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q8_0;

/// A block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    qs: [u8; 32],
}

const _: () = assert!(size_of::<Block>() == DType::Q8_0.block_bytes());

/// The blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    /// With 128 added.
    qs: [[u8; 64]; 8],
}

impl Format32 for Q8_0 {
    const DTYPE: DType = DType::Q8_0;
    const SIGNED: bool = true;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(_simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        *out = block.qs;
        [u16::from_le_bytes(block.d), 0]
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel { d: each(rows, |b| b.d), qs: quads(rows, |b| b.qs.map(|q| q ^ 128)) }
    }
    #[inline(always)]
    fn quad<S: Simd>(simd: S, panel: &Panel, k: usize) -> S::B {
        simd.load_bytes(&panel.qs[k])
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> &[[u8; 2]; 16] {
        &panel.d
    }
}
