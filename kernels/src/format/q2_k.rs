//! Q2_K: 256 elements in 84 bytes, 16 groups of 16: x = d · scale · q − dmin · min, 2-bit q.
//!
//! ```text
//! byte  0            16                    80   82     84
//!       | scales[16] | qs[64]              | d  | dmin |
//!         4-bit scale, 4-bit min             f16  f16
//! scales[g] = scale[g] | min[g] << 4
//! qs[32h + i] = Σ_s q[128h + 32s + i] << 2s            (h < 2, s < 4, i < 32)
//! ```

use super::{Format256, Scales, Super, columns, each, quads};
use crate::simd::Simd;
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// The format.
pub(crate) struct Q2K;

/// A super-block as it stands in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    scales: [u8; 16],
    qs: [u8; 64],
    d: [u8; 2],
    dmin: [u8; 2],
}

const _: () = assert!(size_of::<Block>() == DType::Q2_K.block_bytes());

/// The super-blocks of 16 rows in a panel.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Panel {
    d: [[u8; 2]; 16],
    dmin: [[u8; 2]; 16],
    /// Byte i of every row.
    scales: [[u8; 16]; 16],
    qs: [[u8; 64]; 16],
}

impl Format256 for Q2K {
    const DTYPE: DType = DType::Q2_K;
    const MAX: u8 = 3;
    const PAIRED: bool = false;
    const HAS_MIN: bool = true;
    type Block = Block;
    type Panel = Panel;

    #[inline(always)]
    fn unpack<S: Simd>(_simd: S, block: &Block, out: &mut Super) {
        for (g, packed) in block.scales.iter().enumerate() {
            out.scales[g] = i16::from(packed & 15);
            out.mins[g] = i16::from(packed >> 4);
        }
        out.d = [u16::from_le_bytes(block.d), u16::from_le_bytes(block.dmin)];
        for (half, qs) in block.qs.chunks_exact(32).enumerate() {
            for (i, q) in qs.iter().enumerate() {
                out.w[128 * half + i] = q & 3;
                out.w[128 * half + 32 + i] = (q >> 2) & 3;
                out.w[128 * half + 64 + i] = (q >> 4) & 3;
                out.w[128 * half + 96 + i] = q >> 6;
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
        let v = simd.load_bytes(&panel.qs[8 * half + k]);
        simd.bits(v, [0, 2, 4, 6][PART], 3)
    }
    #[inline(always)]
    fn scales(panel: &Panel) -> Scales {
        let mut out = Scales::ZERO;
        for (g, packed) in panel.scales.iter().enumerate() {
            for (r, packed) in packed.iter().enumerate() {
                out.scales[g][r] = (packed & 15).cast_signed();
                out.mins[g][r] = (packed >> 4).cast_signed();
            }
        }
        out
    }
    #[inline(always)]
    fn factors(panel: &Panel) -> [&[[u8; 2]; 16]; 2] {
        [&panel.d, &panel.dmin]
    }
}
