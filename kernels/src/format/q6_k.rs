//! Q6_K: 256 elements in 210 bytes, 16 groups of 16: x = d · scale · (q − 32), 6-bit q.
//!
//! ```text
//! byte  0                      128          192          208   210
//!       | ql[128]              | qh[64]     | scales[16] | d   |
//!         bits 0 to 3 of q       bits 4, 5    i8           f16
//! ql[64h + i] = q[128h + i] & 15 | (q[128h + 64 + i] & 15) << 4     (h < 2, i < 64)
//! qh[32h + i] = Σ_s (q[128h + 32s + i] >> 4) << 2s                  (h < 2, s < 4, i < 32)
//! ```

use super::{Format256, Scales, Super, columns, each, quads};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q6K;

/// A super-block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    ql: [u8; 128],
    qh: [u8; 64],
    scales: [u8; 16],
    d: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::Q6_K.block_bytes());

/// The super-blocks of 16 rows in a panel. What a half needs lies together, so that memory is
/// read in order.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    /// Byte i of every row.
    scales: [[u8; 16]; 16],
    halves: [Half; 2],
}

/// 128 elements of 16 rows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Half {
    qh: [[u8; 64]; 8],
    ql: [[u8; 64]; 16],
}

impl Format256 for Q6K {
    const DTYPE: DType = DType::Q6_K;
    const MAX: u8 = 63;
    const OFFSET: i32 = 32;
    const PAIRED: bool = false;
    const HAS_MIN: bool = false;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(_simd: S, block: &Block, out: &mut Super) {
        out.scales = block.scales.map(|scale| i16::from(scale.cast_signed()));
        out.mins = out.scales.map(|scale| 32 * scale);
        out.d = [u16::from_le_bytes(block.d), 0];
        for (half, high) in block.qh.chunks_exact(32).enumerate() {
            for (i, high) in high.iter().enumerate() {
                let (a, b) = (block.ql[64 * half + i], block.ql[64 * half + 32 + i]);
                out.w[128 * half + i] = (a & 15) | ((high & 3) << 4);
                out.w[128 * half + 32 + i] = (b & 15) | ((high & 12) << 2);
                out.w[128 * half + 64 + i] = (a >> 4) | (high & 48);
                out.w[128 * half + 96 + i] = (b >> 4) | ((high & 192) >> 2);
            }
        }
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel {
            d: each(rows, |b| b.d),
            scales: columns(rows, |b| b.scales),
            halves: std::array::from_fn(|half| Half {
                qh: quads(rows, |b| b.qh.as_chunks::<32>().0[half]),
                ql: quads(rows, |b| b.ql.as_chunks::<64>().0[half]),
            }),
        }
    }
    #[inline(always)]
    fn quad<S: Simd, const PART: usize>(simd: S, panel: &Panel, half: usize, k: usize) -> S::B {
        let low = simd.load_bytes(&panel.halves[half].ql[8 * (PART % 2) + k]);
        let high = simd.load_bytes(&panel.halves[half].qh[k]);
        let low = simd.bits(low, if PART < 2 { 0 } else { 4 }, 15);
        simd.or(low, simd.bits(high, [-4, -2, 0, 2][PART], 48))
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> Scales {
        Scales { scales: bytemuck::cast(panel.scales), mins: bytemuck::cast(panel.scales) }
    }
    #[inline(always)]
    fn factors(panel: &Panel) -> [&[[u8; 2]; 16]; 2] {
        [&panel.d, &panel.d]
    }
}
