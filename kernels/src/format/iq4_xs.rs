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

use super::{Format256, Super, iq4_nl};
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
    qs: [u8; 128],
}

const _: () = assert!(size_of::<Block>() == DType::IQ4_XS.block_bytes());

impl Format256 for Iq4Xs {
    const DTYPE: DType = DType::IQ4_XS;
    const SIGNED: bool = true;
    const PAIRED: bool = true;
    const HAS_MIN: bool = false;
    type Block = Block;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut Super) {
        let low = u32::from_le_bytes(block.scales_l);
        let high = u16::from_le_bytes(block.scales_h);
        out.scales = std::array::from_fn(|g| {
            let s = g / 2;
            let [low, ..] = ((low >> (4 * s)) & 15).to_le_bytes();
            let [high, _] = ((high >> (2 * s)) & 3).to_le_bytes();
            i16::from(low | (high << 4)) - 32
        });
        out.mins = [0; 16];
        out.d = [u16::from_le_bytes(block.d), 0];
        for (qs, out) in block.qs.chunks_exact(16).zip(out.w.chunks_exact_mut(32)) {
            iq4_nl::unpack_values(simd, qs, out);
        }
    }
}
