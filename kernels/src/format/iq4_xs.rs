//! IQ4_XS: 256 elements in 136 bytes, 8 sub-blocks of 32: x = d · scale · VALUES\[q\], 4-bit q.
//!
//! ```text
//! byte  0    2          4             8                   136
//!       | d  | scales_h | scales_l[4] | qs[128]           |
//!         f16  u16                      8 × a block of IQ4_NL without its d
//! with e[s] = scale[s] + 32, six bits:
//! scales_l[i] = e[2i] & 15 | (e[2i + 1] & 15) << 4      (i < 4)
//! scales_h    = Σ_s (e[s] >> 4) << 2s                   (s < 8)
//! ```

use super::{
    Format256, Scales, Super, columns, each,
    iq4_nl::{BIASED_VALUES, VALUES},
    quads,
};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Iq4Xs;

/// A super-block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    d: [u8; 2],
    scales_h: [u8; 2],
    scales_l: [u8; 4],
    qs: [[u8; 16]; 8],
}

const _: () = assert!(size_of::<Block>() == DType::IQ4_XS.block_bytes());

/// The eight scales of six bits, whose numbers are 32 too large in the file. Each step moves the
/// upper half of every run of fields to where its place is among the bytes of a word.
#[inline(always)]
fn spread_scales(low: [u8; 4], high: [u8; 2]) -> [u8; 8] {
    let mut low = u64::from(u32::from_le_bytes(low));
    low = (low | (low << 16)) & 0x0000_ffff_0000_ffff;
    low = (low | (low << 8)) & 0x00ff_00ff_00ff_00ff;
    low = (low | (low << 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    let mut high = u64::from(u16::from_le_bytes(high));
    high = (high | (high << 24)) & 0x0000_00ff_0000_00ff;
    high = (high | (high << 12)) & 0x000f_000f_000f_000f;
    high = (high | (high << 6)) & 0x0303_0303_0303_0303;
    (low | (high << 4)).to_le_bytes()
}

/// The super-blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    /// Byte i of every row: of `scales_h`, then of `scales_l`.
    scales_h: [[u8; 16]; 2],
    scales_l: [[u8; 16]; 4],
    qs: [[u8; 64]; 32],
}

impl Format256 for Iq4Xs {
    const DTYPE: DType = DType::IQ4_XS;
    const SIGNED: bool = true;
    const PAIRED: bool = true;
    const HAS_MIN: bool = false;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut Super) {
        let biased = spread_scales(block.scales_l, block.scales_h);
        out.scales = simd.widen_twice(biased).map(|scale| scale - 32);
        out.mins = [0; 16];
        out.d = [u16::from_le_bytes(block.d), 0];
        for (qs, out) in block.qs.iter().zip(out.w.chunks_exact_mut(32)) {
            out.copy_from_slice(&simd.lookup32(&simd.nibbles32(qs), &VALUES));
        }
    }

    fn pack(rows: &[Block; 16]) -> Panel {
        Panel {
            d: each(rows, |b| b.d),
            scales_h: columns(rows, |b| b.scales_h),
            scales_l: columns(rows, |b| b.scales_l),
            qs: quads(rows, |b| bytemuck::cast::<_, [u8; 128]>(b.qs)),
        }
    }
    #[inline(always)]
    fn quad<S: Simd, const PART: usize>(simd: S, panel: &Panel, half: usize, k: usize) -> S::B {
        let v = simd.load_bytes(&panel.qs[16 * half + 4 * PART + k % 4]);
        simd.lookup(simd.bits(v, if k < 4 { 0 } else { 4 }, 15), &BIASED_VALUES)
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> Scales {
        let mut scales = [[0; 16]; 16];
        for (g, scales) in scales.iter_mut().enumerate().take(8) {
            for (r, scale) in scales.iter_mut().enumerate() {
                let low = (panel.scales_l[g / 2][r] >> (4 * (g % 2))) & 15;
                let high = (panel.scales_h[g / 4][r] >> (2 * (g % 4))) & 3;
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
