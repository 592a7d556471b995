//! IQ4_NL: 32 elements in 18 bytes, x = d · VALUES\[q\], 4-bit q.
//!
//! ```text
//! byte  0    2                      18
//!       | d  | qs[16]               |
//!         f16  qs[i] = q[i] | q[i + 16] << 4
//! ```

use super::Format32;
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

/// The values of 32 indices, packed as in a block of IQ4_NL.
#[inline(always)]
pub(super) fn unpack_values<S: Simd>(simd: S, qs: &[u8], out: &mut [u8]) {
    let mut index = [0; 32];
    for i in 0..16 {
        index[i] = qs[i] & 15;
        index[i + 16] = qs[i] >> 4;
    }
    out.copy_from_slice(&simd.lookup32(&index, &VALUES));
}

impl Format32 for Iq4Nl {
    const DTYPE: DType = DType::IQ4_NL;
    const SIGNED: bool = true;
    type Block = Block;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Block, out: &mut [u8; 32]) -> [u16; 2] {
        unpack_values(simd, &block.qs, out);
        [u16::from_le_bytes(block.d), 0]
    }
}
