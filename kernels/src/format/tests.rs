//! What each format promises of its unpacked blocks, and that every token unpacks them alike.

use super::*;
use crate::isa::{Isa, Op};

/// Pseudo-random bytes (SplitMix64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Unpacks one block of 32.
struct Unpack32<F: Format32>(F::Block);

impl<F: Format32> Op for Unpack32<F> {
    type Output = ([u8; 32], [u16; 2]);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let mut out = [0xaa; 32];
        let d = F::unpack(simd, &self.0, &mut out);
        (out, d)
    }
}

/// Unpacks one super-block.
struct Unpack256<F: Format256>(F::Block);

impl<F: Format256> Op for Unpack256<F> {
    type Output = Super;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Super {
        let dirty = [0x2aaa; 16];
        let mut out = Super { w: [0xaa; 256], scales: dirty, mins: dirty, d: [0xaaaa; 2] };
        F::unpack(simd, &self.0, &mut out);
        out
    }
}

/// Checks one block of random bytes.
struct Check<'a>(DType, &'a [u8]);

impl Visitor for Check<'_> {
    type Output = ();

    fn float<F: Float>(self) {
        assert_eq!(F::DTYPE, self.0);
    }

    fn blocks32<F: Format32>(self) {
        assert_eq!(F::DTYPE, self.0);
        let block = blocks::<F::Block>(self.1)[0];
        let (w, d) = Isa::SCALAR.run(Unpack32::<F>(block));
        assert!(F::SIGNED || w.iter().all(|w| *w <= F::MAX), "{}", self.0);
        assert!(F::HAS_MIN || d[1] == 0);
        for isa in Isa::available() {
            assert_eq!(isa.run(Unpack32::<F>(block)), (w, d), "{} on {isa:?}", self.0);
        }
    }

    fn blocks256<F: Format256>(self) {
        assert_eq!(F::DTYPE, self.0);
        let block = blocks::<F::Block>(self.1)[0];
        let unpacked = Isa::SCALAR.run(Unpack256::<F>(block));
        assert!(F::SIGNED || unpacked.w.iter().all(|w| *w <= F::MAX), "{}", self.0);
        for (scale, min) in unpacked.scales.into_iter().zip(unpacked.mins) {
            assert!(F::HAS_MIN || i32::from(min) == F::OFFSET * i32::from(scale), "{}", self.0);
        }
        for values in [unpacked.scales, unpacked.mins] {
            let mut pairs = values.chunks_exact(2);
            assert!(!F::PAIRED || pairs.all(|pair| pair[0] == pair[1]), "{}", self.0);
        }
        assert!(F::HAS_MIN || unpacked.d[1] == 0);
        for isa in Isa::available() {
            let other = isa.run(Unpack256::<F>(block));
            assert_eq!(other, unpacked, "{} on {isa:?}", self.0);
        }
    }
}

#[test]
fn unpacked_blocks_are_the_same_on_every_token_and_keep_the_promises_of_their_format() {
    for dtype in DType::ALL {
        for seed in 0..200 {
            visit(dtype, Check(dtype, &noise(seed, dtype.block_bytes())));
        }
        for byte in [0, 0xff] {
            visit(dtype, Check(dtype, &vec![byte; dtype.block_bytes()]));
        }
    }
}

/// Q5_0 with one bit of one byte wrong on vector tokens, to see that the check would notice.
struct Planted;

impl Format32 for Planted {
    const DTYPE: DType = DType::Q5_0;
    const MAX: u8 = 31;
    const OFFSET: i32 = 16;
    type Block = <q5_0::Q5_0 as Format32>::Block;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, block: &Self::Block, out: &mut [u8; 32]) -> [u16; 2] {
        let d = q5_0::Q5_0::unpack(simd, block, out);
        // Only the reference's vector is an array, whose alignment is that of a lane.
        out[31] ^= u8::from(align_of::<S::F>() > align_of::<f32>());
        d
    }

    type Panel = [Self::Block; 16];

    fn pack(rows: &[Self::Block; 16]) -> Self::Panel {
        *rows
    }
    fn quad<S: Simd>(_simd: S, _panel: &Self::Panel, _k: usize) -> S::B {
        unreachable!("only unpacking is planted")
    }
    fn scales(_panel: &Self::Panel) -> &[[u8; 2]; 16] {
        unreachable!("only unpacking is planted")
    }
}

#[test]
#[cfg_attr(target_arch = "x86_64", should_panic(expected = "Q5_0 on"))]
fn a_token_that_unpacks_otherwise_is_noticed() {
    if Isa::available().len() == 1 {
        panic!("Q5_0 on no other token: there is nothing to compare");
    }
    Check(DType::Q5_0, &noise(0, DType::Q5_0.block_bytes())).blocks32::<Planted>();
}
