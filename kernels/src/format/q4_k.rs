//! Q4_K: 256 elements in 144 bytes, 8 sub-blocks of 32: x = d · scale · q − dmin · min.
//!
//! ```text
//! byte  0    2      4              16                    144
//!       | d  | dmin | scales[12]   | qs[128]             |
//!         f16  f16    8 × (6-bit scale, 6-bit min)
//! qs[32j + i] = q[64j + i] | q[64j + 32 + i] << 4          (j < 4, i < 32)
//! scales: for s < 4   scale = scales[s] & 63                 min = scales[s + 4] & 63
//!         for s ≥ 4   scale = scales[s + 4] & 15 | (scales[s − 4] >> 6) << 4
//!                     min   = scales[s + 4] >> 4 | (scales[s] >> 6) << 4
//! ```

use super::{Format256, Scales, Super, columns, each, quads};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q4K;

/// A super-block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qs: [u8; 128],
}

const _: () = assert!(size_of::<Block>() == DType::Q4_K.block_bytes());

/// Unpacks the 6-bit scales and mins that Q4_K and Q5_K share, each into a pair of groups of 16.
#[inline(always)]
pub(super) fn unpack_scales<S: Simd>(simd: S, packed: &[u8; 12], out: &mut Super) {
    let word =
        |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    const LOW6: u32 = 0x3f3f_3f3f;
    const LOW4: u32 = 0x0f0f_0f0f;
    const HIGH2: u32 = 0x0303_0303;
    let bytes = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    let scales = bytes(a & LOW6, (c & LOW4) | (((a >> 6) & HIGH2) << 4));
    let mins = bytes(b & LOW6, ((c >> 4) & LOW4) | (((b >> 6) & HIGH2) << 4));
    out.scales = simd.widen_twice(scales);
    out.mins = simd.widen_twice(mins);
}

/// The super-blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    dmin: [[u8; 2]; 16],
    /// Byte i of every row.
    scales: [[u8; 16]; 12],
    qs: [[u8; 64]; 32],
}

/// The scales and mins that Q4_K and Q5_K share, of 16 rows; `packed[i]` is byte i of each row.
#[inline(always)]
pub(super) fn panel_scales(packed: &[[u8; 16]; 12]) -> Scales {
    let mut out = Scales::ZERO;
    for g in 0..4 {
        let rows = packed[g].iter().zip(&packed[g + 4]).zip(&packed[g + 8]);
        for (r, ((&a, &b), &c)) in rows.enumerate() {
            out.scales[g][r] = (a & 63).cast_signed();
            out.mins[g][r] = (b & 63).cast_signed();
            out.scales[g + 4][r] = ((c & 15) | ((a >> 6) << 4)).cast_signed();
            out.mins[g + 4][r] = ((c >> 4) | ((b >> 6) << 4)).cast_signed();
        }
    }
    out
}

impl Format256 for Q4K {
    const DTYPE: DType = DType::Q4_K;
    const MAX: u8 = 15;
    const PAIRED: bool = true;
    const HAS_MIN: bool = true;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut Super) {
        unpack_scales(simd, &block.scales, out);
        out.d = [u16::from_le_bytes(block.d), u16::from_le_bytes(block.dmin)];
        for j in 0..4 {
            for i in 0..32 {
                let q = block.qs[32 * j + i];
                out.w[64 * j + i] = q & 15;
                out.w[64 * j + 32 + i] = q >> 4;
            }
        }
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel {
            d: each(rows, |b| b.d),
            dmin: each(rows, |b| b.dmin),
            scales: columns(rows, |b| b.scales),
            qs: quads(rows, |b| b.qs),
        }
    }
    #[inline(always)]
    fn quad<S: Simd, const PART: usize>(simd: S, panel: &Panel, half: usize, k: usize) -> S::B {
        let v = simd.load_bytes(&panel.qs[16 * half + 8 * (PART / 2) + k]);
        simd.bits(v, if PART.is_multiple_of(2) { 0 } else { 4 }, 15)
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> Scales {
        panel_scales(&panel.scales)
    }
    #[inline(always)]
    fn factors(panel: &Panel) -> [&[[u8; 2]; 16]; 2] {
        [&panel.d, &panel.dmin]
    }
}
