//! Q3_K: 256 elements in 110 bytes, 16 groups of 16: x = d · scale · (q − 4), 3-bit q.
//!
//! ```text
//! byte  0           32                    96           108   110
//!       | hmask[32] | qs[64]              | scales[12] | d   |
//!         bit 2 of q  bits 0 and 1 of q     16 × 6-bit   f16
//! hmask[i]    = Σ_k (q[32k + i] >> 2) << k             (k < 8, i < 32)
//! qs[32h + i] = Σ_s (q[128h + 32s + i] & 3) << 2s      (h < 2, s < 4)
//! scales: with e[g] = scale[g] + 32, six bits
//!         scales[i]     = e[i] & 15 | (e[i + 8] & 15) << 4      (i < 8)
//!         scales[8 + i] = Σ_s (e[4s + i] >> 4) << 2s            (i < 4)
//! ```

use super::{Format256, Scales, Super, columns, each, quads};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q3K;

/// A super-block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    hmask: [u8; 32],
    qs: [u8; 64],
    scales: [u8; 12],
    d: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::Q3_K.block_bytes());

/// Unpacks the 16 scales of six bits, whose numbers are 32 too large in the file.
#[inline(always)]
fn unpack_scales(packed: &[u8; 12]) -> [i16; 16] {
    std::array::from_fn(|g| {
        let low = (packed[g % 8] >> (4 * (g / 8))) & 15;
        let high = (packed[8 + g % 4] >> (2 * (g / 4))) & 3;
        i16::from(low | (high << 4)) - 32
    })
}

/// The super-blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    /// Byte i of every row.
    scales: [[u8; 16]; 12],
    hmask: [[u8; 64]; 8],
    qs: [[u8; 64]; 16],
}

impl Format256 for Q3K {
    const DTYPE: DType = DType::Q3_K;
    const MAX: u8 = 7;
    const OFFSET: i32 = 4;
    const PAIRED: bool = false;
    const HAS_MIN: bool = false;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(_simd: S, block: &Block, out: &mut Super) {
        out.scales = unpack_scales(&block.scales);
        out.mins = out.scales.map(|scale| 4 * scale);
        out.d = [u16::from_le_bytes(block.d), 0];
        for (half, qs) in block.qs.chunks_exact(32).enumerate() {
            for (i, q) in qs.iter().enumerate() {
                let high = block.hmask[i] >> (4 * half);
                out.w[128 * half + i] = (q & 3) | ((high & 1) << 2);
                out.w[128 * half + 32 + i] = ((q >> 2) & 3) | ((high & 2) << 1);
                out.w[128 * half + 64 + i] = ((q >> 4) & 3) | (high & 4);
                out.w[128 * half + 96 + i] = (q >> 6) | ((high & 8) >> 1);
            }
        }
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel {
            d: each(rows, |b| b.d),
            scales: columns(rows, |b| b.scales),
            hmask: quads(rows, |b| b.hmask),
            qs: quads(rows, |b| b.qs),
        }
    }
    #[inline(always)]
    fn quad<S: Simd, const PART: usize>(simd: S, panel: &Panel, half: usize, k: usize) -> S::B {
        let low = simd.load_bytes(&panel.qs[8 * half + k]);
        let low = simd.bits(low, [0, 2, 4, 6][PART], 3);
        let high = simd.upper_half(simd.load_bytes(&panel.hmask[k]), half);
        simd.or(low, simd.bits(high, [-2, -1, 0, 1][PART], 4))
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> Scales {
        let mut scales = [[0; 16]; 16];
        for (g, scales) in scales.iter_mut().enumerate() {
            for (r, scale) in scales.iter_mut().enumerate() {
                let low = (panel.scales[g % 8][r] >> (4 * (g / 8))) & 15;
                let high = (panel.scales[8 + g % 4][r] >> (2 * (g / 4))) & 3;
                *scale = (low | (high << 4)).cast_signed() - 32;
            }
        }
        Scales { scales, mins: scales }
    }
    #[inline(always)]
    fn factors(panel: &Panel) -> [&[[u8; 2]; 16]; 2] {
        [&panel.d, &panel.d]
    }
}
