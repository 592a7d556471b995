//! IQ4_NL: 32 elements in 18 bytes, x = d · VALUES\[q\], 4-bit q.
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
pub(crate) struct Iq4Nl;

/// A block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    qs: [u8; 16],
}

const _: () = assert!(size_of::<Block>() == DType::IQ4_NL.block_bytes());

/// The 16 values of IQ4_NL and IQ4_XS: denser near zero, where most weights lie.
pub(super) const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    qs: [[u8; 64]; 4],
}

/// The same with 128 added.
pub(super) const BIASED_VALUES: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

impl Format32 for Iq4Nl {
    const DTYPE: DType = DType::IQ4_NL;
    const SIGNED: bool = true;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        *out = simd.lookup32(&simd.nibbles32(&block.qs), &VALUES);
        [u16::from_le_bytes(block.d), 0]
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel { d: each(rows, |b| b.d), qs: quads(rows, |b| b.qs) }
    }
    #[inline(always)]
    fn quad<S: Simd>(simd: S, panel: &Panel, k: usize) -> S::B {
        simd.lookup(nibbles(simd, &panel.qs, k), &BIASED_VALUES)
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> &[[u8; 2]; 16] {
        &panel.d
    }
}
