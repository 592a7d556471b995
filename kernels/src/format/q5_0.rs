//! Q5_0: 32 elements in 22 bytes, x = d · (q − 16), 5-bit q.
//!
//! ```text
//! byte  0    2       6                      22
//!       | d  | qh[4] | qs[16]               |
//!         f16  bit i of the little-endian qh is bit 4 of q[i]
//!                      qs[i] = q[i] & 15 | (q[i + 16] & 15) << 4
//! ```

use super::{Format32, each, fifth_bits, nibbles, quads, spread_bits};
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

/// The blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    /// Bit k of byte i is bit 4 of q[4k + i].
    qh: [[u8; 4]; 16],
    qs: [[u8; 64]; 4],
}

impl Format32 for Q5_0 {
    const DTYPE: DType = DType::Q5_0;
    const MAX: u8 = 31;
    const OFFSET: i32 = 16;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        let low = simd.nibbles32(&block.qs);
        let high = simd.bits32(block.qh, 16);
        *out = std::array::from_fn(|i| low[i] | high[i]);
        [u16::from_le_bytes(block.d), 0]
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel {
            d: each(rows, |b| b.d),
            qh: each(rows, |b| spread_bits(b.qh)),
            qs: quads(rows, |b| b.qs),
        }
    }
    #[inline(always)]
    fn quad<S: Simd>(simd: S, panel: &Panel, k: usize) -> S::B {
        simd.or(nibbles(simd, &panel.qs, k), fifth_bits(simd, &panel.qh, k))
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> &[[u8; 2]; 16] {
        &panel.d
    }
}
