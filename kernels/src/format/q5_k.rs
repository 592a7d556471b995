//! Q5_K: 256 elements in 176 bytes, 8 sub-blocks of 32: x = d · scale · q − dmin · min, 5-bit q.
//!
//! ```text
//! byte  0    2      4            16       48                    176
//!       | d  | dmin | scales[12] | qh[32] | qs[128]             |
//!         f16  f16    as in Q4_K   bit 4    bits 0 to 3
//! qh[i]       = Σ_k (q[32k + i] >> 4) << k                           (k < 8, i < 32)
//! qs[32j + i] = q[64j + i] & 15 | (q[64j + 32 + i] & 15) << 4        (j < 4, i < 32)
//! ```

use super::{Format256, Scales, Super, bit_to_4, columns, each, q4_k, quads};
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

/// The super-blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    dmin: [[u8; 2]; 16],
    /// Byte i of every row.
    scales: [[u8; 16]; 12],
    qh: [[u8; 64]; 8],
    qs: [[u8; 64]; 32],
}

impl Format256 for Q5K {
    const DTYPE: DType = DType::Q5_K;
    const MAX: u8 = 31;
    const PAIRED: bool = true;
    const HAS_MIN: bool = true;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut Super) {
        q4_k::unpack_scales(simd, &block.scales, out);
        out.d = [u16::from_le_bytes(block.d), u16::from_le_bytes(block.dmin)];
        for (j, qs) in block.qs.chunks_exact(32).enumerate() {
            for (i, q) in qs.iter().enumerate() {
                let high = block.qh[i] >> (2 * j);
                out.w[64 * j + i] = (q & 15) | ((high & 1) << 4);
                out.w[64 * j + 32 + i] = (q >> 4) | ((high & 2) << 3);
            }
        }
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel {
            d: each(rows, |b| b.d),
            dmin: each(rows, |b| b.dmin),
            scales: columns(rows, |b| b.scales),
            qh: quads(rows, |b| b.qh),
            qs: quads(rows, |b| b.qs),
        }
    }
    #[inline(always)]
    fn quad<S: Simd, const PART: usize>(simd: S, panel: &Panel, half: usize, k: usize) -> S::B {
        let v = simd.load_bytes(&panel.qs[16 * half + 8 * (PART / 2) + k]);
        let low = simd.bits(v, if PART.is_multiple_of(2) { 0 } else { 4 }, 15);
        let high = simd.upper_half(simd.load_bytes(&panel.qh[k]), half);
        simd.or(low, simd.bits(high, bit_to_4(PART), 16))
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> Scales {
        q4_k::panel_scales(&panel.scales)
    }
    #[inline(always)]
    fn factors(panel: &Panel) -> [&[[u8; 2]; 16]; 2] {
        [&panel.d, &panel.dmin]
    }
}
