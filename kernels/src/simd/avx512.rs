//! AVX-512: a vector is one register of 16 lanes. With `VNNI`, byte products accumulate in one
//! instruction; without it they go through 16-bit pair sums as in AVX2.

use super::{F32s, LANES, Simd};
use crate::isa::Op;
use std::arch::x86_64::*;

/// Proof that this processor has AVX-512 F, BW, DQ and VL with all that [`super::Avx2`] asks for,
/// and VNNI if that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        has.then_some(Self(()))
    }
}

/// Wraps intrinsics whose only requirement is the instruction set.
macro_rules! simd {
    ($body:expr) => {
        // SAFETY: `self` proves that the processor has these AVX-512 subsets (and VNNI where it
        // is used); pointers come from references to arrays of the length that is accessed.
        unsafe { $body }
    };
}

type F = __m512;
type I = __m512i;

impl<const VNNI: bool> Avx512<VNNI> {
    /// 64 bytes at element 64·i.
    #[inline(always)]
    fn bytes<T>(self, x: &[T; 256], i: usize) -> I {
        const { assert!(size_of::<T>() == 1) };
        let part: &[T] = &x[64 * i..64 * i + 64];
        simd!(_mm512_loadu_si512(part.as_ptr().cast()))
    }

    /// Pair sums of unsigned · signed bytes.
    #[inline(always)]
    fn pairs_u8(self, w: I, x: I) -> I {
        simd!(_mm512_maddubs_epi16(w, x))
    }

    /// Pair sums of signed · signed bytes: |w| · (x with the sign of w).
    #[inline(always)]
    fn pairs_i8(self, w: I, x: I) -> I {
        simd!({
            let negative = _mm512_movepi8_mask(w);
            let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            _mm512_maddubs_epi16(_mm512_abs_epi8(w), x)
        })
    }

    #[inline(always)]
    fn dot256(
        self,
        w: &[u8; 256],
        x: &[i8; 256],
        scales: &[i16; 16],
        pairs: impl Fn(I, I) -> I,
    ) -> I {
        simd!({
            let scales = _mm256_loadu_si256(scales.as_ptr().cast());
            let scales = _mm512_castsi256_si512(scales);
            let mut acc = _mm512_setzero_si512();
            // 16-bit lane l of part i belongs to elements 64i + 2l, so to scale 4i + l/8.
            let eighth = _mm512_set_epi64(
                0x0003_0003_0003_0003,
                0x0003_0003_0003_0003,
                0x0002_0002_0002_0002,
                0x0002_0002_0002_0002,
                0x0001_0001_0001_0001,
                0x0001_0001_0001_0001,
                0,
                0,
            );
            for i in 0..4_i16 {
                let index = _mm512_add_epi16(eighth, _mm512_set1_epi16(4 * i));
                let scale = _mm512_permutexvar_epi16(index, scales);
                let at = i.unsigned_abs().into();
                let products = pairs(self.bytes(w, at), self.bytes(x, at));
                acc = _mm512_add_epi32(acc, _mm512_madd_epi16(products, scale));
            }
            acc
        })
    }

    #[inline(always)]
    fn dot32x8(self, w: &[u8; 256], x: &[i8; 256], pairs: impl Fn(I, I) -> I) -> [i32; 8] {
        let ones = simd!(_mm512_set1_epi16(1));
        let mut out = [0; 8];
        simd!({
            // Part i holds blocks 2i (low half) and 2i + 1 (high half).
            let mut halves = [_mm256_setzero_si256(); 8];
            for i in 0..4 {
                let sums = _mm512_madd_epi16(pairs(self.bytes(w, i), self.bytes(x, i)), ones);
                halves[2 * i] = _mm512_castsi512_si256(sums);
                halves[2 * i + 1] = _mm512_extracti64x4_epi64::<1>(sums);
            }
            let h = |a, b| _mm256_hadd_epi32(a, b);
            let a = h(h(halves[0], halves[1]), h(halves[2], halves[3]));
            let b = h(h(halves[4], halves[5]), h(halves[6], halves[7]));
            let low = _mm256_permute2x128_si256::<0x20>(a, b);
            let high = _mm256_permute2x128_si256::<0x31>(a, b);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi32(low, high));
        });
        out
    }
}

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = F;
    type I = I;
    type B = I;
    type P = I;
    type K = I;
    const WIDE: bool = VNNI;
    const COLUMNS: usize = if VNNI { 8 } else { 4 };
    const TILES: bool = VNNI;

    #[inline]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        #[target_feature(enable = "bmi1,bmi2,popcnt")]
        fn run<O: Op>(simd: Avx512<false>, op: O) -> O::Output {
            op.run(simd)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        #[target_feature(enable = "bmi1,bmi2,popcnt")]
        fn run_vnni<O: Op>(simd: Avx512<true>, op: O) -> O::Output {
            op.run(simd)
        }
        // SAFETY: `self` proves that the processor has each of the features enabled above; VNNI
        // is enabled only where the token's parameter says so.
        unsafe { if VNNI { run_vnni(Avx512(()), op) } else { run(Avx512(()), op) } }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        simd!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &F32s) -> F {
        simd!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: F, out: &mut F32s) {
        simd!(_mm512_storeu_ps(out.as_mut_ptr(), v));
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> F {
        simd!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> F {
        simd!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> F {
        simd!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn levels16(self, codes: &[u8; 8], levels: &F32s) -> F {
        simd!({
            let low = _mm_loadl_epi64(codes.as_ptr().cast());
            let both = _mm_unpacklo_epi64(low, _mm_srli_epi64::<4>(low));
            // The permutation looks at the lower four bits of an index only.
            _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(both), self.load(levels))
        })
    }
    #[inline(always)]
    fn levels8(self, codes: &[u8; 6], levels: &F32s) -> F {
        let [a, b, c, d, e, f] = *codes;
        let (low, high) = (i32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]));
        simd!({
            let shifts =
                _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let low = _mm512_srlv_epi32(_mm512_set1_epi32(low), shifts);
            let low = _mm512_and_si512(low, _mm512_set1_epi32(3));
            let code = _mm512_mask_or_epi32(low, high, low, _mm512_set1_epi32(4));
            _mm512_permutexvar_ps(code, self.load(levels))
        })
    }
    #[inline(always)]
    fn store_f16(self, v: F, out: &mut [u16; LANES]) {
        simd!({
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), half);
        });
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        simd!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        simd!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        simd!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        simd!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        simd!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        simd!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        simd!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        simd!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn copysign(self, a: F, b: F) -> F {
        simd!({
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        })
    }
    #[inline(always)]
    fn select_gt(self, a: F, b: F, yes: F, no: F) -> F {
        simd!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), no, yes))
    }
    #[inline(always)]
    fn round_to_int(self, a: F) -> I {
        simd!(_mm512_cvtps_epi32(a))
    }
    #[inline(always)]
    fn int_to_float(self, a: I) -> F {
        simd!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn pow2(self, n: I) -> F {
        simd!({
            let biased = _mm512_add_epi32(n, _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn load_int(self, x: &[i32; LANES]) -> I {
        simd!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_int(self, v: I, out: &mut [i32; LANES]) {
        simd!(_mm512_storeu_si512(out.as_mut_ptr().cast(), v));
    }
    #[inline(always)]
    fn sub_int(self, a: I, b: I) -> I {
        simd!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> I {
        simd!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn f16x8(self, x: &[u16; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        // One by one: they have just been gathered, and a load of what eight narrow stores wrote
        // would wait for all of them.
        let [a, b, c, d, e, f, g, h] = *x;
        let s = u16::cast_signed;
        simd!({
            let wide =
                _mm256_cvtph_ps(_mm_set_epi16(s(h), s(g), s(f), s(e), s(d), s(c), s(b), s(a)));
            _mm256_storeu_ps(out.as_mut_ptr(), wide);
        });
        out
    }
    #[inline(always)]
    fn lookup32(self, index: &[u8; 32], table: &[i8; 16]) -> [u8; 32] {
        let mut out = [0; 32];
        simd!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            let index = _mm256_loadu_si256(index.as_ptr().cast());
            let index = _mm256_and_si256(index, _mm256_set1_epi8(15));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_shuffle_epi8(table, index));
        });
        out
    }
    #[inline(always)]
    fn nibbles32(self, packed: &[u8; 16]) -> [u8; 32] {
        let mut out = [0; 32];
        simd!({
            let packed = _mm256_broadcastsi128_si256(_mm_loadu_si128(packed.as_ptr().cast()));
            let shifted = _mm256_srlv_epi64(packed, _mm256_setr_epi64x(0, 0, 4, 4));
            let nibbles = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), nibbles);
        });
        out
    }
    #[inline(always)]
    fn widen_twice(self, bytes: [u8; 8]) -> [i16; 16] {
        let mut out = [0; 16];
        simd!({
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
            let twice = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, bytes));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), twice);
        });
        out
    }
    #[inline(always)]
    fn bits32(self, bits: [u8; 4], yes: u8) -> [u8; 32] {
        let mut out = [0; 32];
        simd!({
            let mask = u32::from_le_bytes(bits);
            let chosen = _mm256_maskz_set1_epi8(mask, yes.cast_signed());
            _mm256_storeu_si256(out.as_mut_ptr().cast(), chosen);
        });
        out
    }
    #[inline(always)]
    fn dot256_u8<const PAIRED: bool>(self, w: &[u8; 256], x: &[i8; 256], scales: &[i16; 16]) -> I {
        self.dot256(w, x, scales, |w, x| self.pairs_u8(w, x))
    }
    #[inline(always)]
    fn dot256_i8<const PAIRED: bool>(self, w: &[u8; 256], x: &[i8; 256], scales: &[i16; 16]) -> I {
        self.dot256(w, x, scales, |w, x| self.pairs_i8(w, x))
    }
    #[inline(always)]
    fn dot32x8_u8(self, w: &[u8; 256], x: &[i8; 256]) -> [i32; 8] {
        self.dot32x8(w, x, |w, x| self.pairs_u8(w, x))
    }
    #[inline(always)]
    fn dot32x8_i8(self, w: &[u8; 256], x: &[i8; 256]) -> [i32; 8] {
        self.dot32x8(w, x, |w, x| self.pairs_i8(w, x))
    }
    #[inline(always)]
    fn dot32_u8(self, w: &[u8; 32], x: &[i8; 32]) -> i32 {
        simd!({
            let w = _mm256_loadu_si256(w.as_ptr().cast());
            let x = _mm256_loadu_si256(x.as_ptr().cast());
            let sums = _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
            self.reduce_int(_mm512_zextsi256_si512(sums))
        })
    }
    #[inline(always)]
    fn dot32_i8(self, w: &[u8; 32], x: &[i8; 32]) -> i32 {
        simd!({
            let w = _mm256_loadu_si256(w.as_ptr().cast());
            let x = _mm256_loadu_si256(x.as_ptr().cast());
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            let sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            self.reduce_int(_mm512_zextsi256_si512(sums))
        })
    }
    #[inline(always)]
    fn reduce_int(self, v: I) -> i32 {
        simd!(_mm512_reduce_add_epi32(v))
    }
    #[inline(always)]
    fn dot16(self, a: &[i16; 16], b: &[i16; 16]) -> i32 {
        simd!({
            let a = _mm256_loadu_si256(a.as_ptr().cast());
            let b = _mm256_loadu_si256(b.as_ptr().cast());
            self.reduce_int(_mm512_zextsi256_si512(_mm256_madd_epi16(a, b)))
        })
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> I {
        simd!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_bytes(self, v: I, out: &mut [u8; 64]) {
        simd!(_mm512_storeu_si512(out.as_mut_ptr().cast(), v));
    }
    #[inline(always)]
    fn bits(self, x: I, shift: i32, mask: u8) -> I {
        simd!({
            let count = _mm_cvtsi32_si128(shift.abs());
            let x = match shift {
                0 => x,
                1.. => _mm512_srl_epi16(x, count),
                _ => _mm512_sll_epi16(x, count),
            };
            _mm512_and_si512(x, _mm512_set1_epi8(mask.cast_signed()))
        })
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "0 or 4")]
    fn upper_half(self, x: I, half: usize) -> I {
        simd!(_mm512_srl_epi16(x, _mm_cvtsi32_si128(4 * half as i32)))
    }
    #[inline(always)]
    fn sub_bytes(self, a: I, x: u8) -> I {
        simd!(_mm512_sub_epi8(a, _mm512_set1_epi8(x.cast_signed())))
    }
    #[inline(always)]
    fn scale_bytes(self, a: I, scales: &[i8; LANES]) -> [I; 2] {
        simd!({
            let scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(scales.as_ptr().cast()));
            let low = _mm512_set1_epi16(0xff);
            let scales =
                _mm512_mask_blend_epi16(0xaaaa_aaaa, scales, _mm512_slli_epi32::<16>(scales));
            let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a));
            let odd = _mm512_srai_epi16::<8>(a);
            let (even, odd) = (_mm512_mullo_epi16(even, scales), _mm512_mullo_epi16(odd, scales));
            let lows = _mm512_or_si512(_mm512_and_si512(even, low), _mm512_slli_epi16::<8>(odd));
            let highs =
                _mm512_or_si512(_mm512_srli_epi16::<8>(even), _mm512_andnot_si512(low, odd));
            [lows, highs]
        })
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        simd!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [I; 4]) -> [I; 4] {
        simd!({
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (high_ab, high_cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(high_ab, high_cd),
                _mm512_unpackhi_epi16(high_ab, high_cd),
            ]
        })
    }
    #[inline(always)]
    fn lookup(self, x: I, table: &[u8; 16]) -> I {
        simd!({
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, x)
        })
    }
    #[inline(always)]
    fn start(self, start: i32) -> I {
        simd!(if VNNI { _mm512_set1_epi32(start) } else { _mm512_setzero_si512() })
    }
    #[inline(always)]
    fn add_products(self, sums: I, w: I, x: i32) -> I {
        simd!({
            let x = _mm512_set1_epi32(x);
            if VNNI {
                _mm512_dpbusd_epi32(sums, w, x)
            } else {
                _mm512_add_epi16(sums, _mm512_maddubs_epi16(w, x))
            }
        })
    }
    #[inline(always)]
    fn add_biased(self, sums: I, w: I, x: i32) -> I {
        if VNNI {
            return self.add_products(sums, w, x);
        }
        simd!({
            let w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
            _mm512_add_epi16(sums, self.pairs_i8(w, _mm512_set1_epi32(x)))
        })
    }
    #[inline(always)]
    fn add_dots(self, acc: I, w: I, x: &[i8; 64]) -> I {
        simd!({
            let x = _mm512_loadu_si512(x.as_ptr().cast());
            if VNNI {
                _mm512_dpbusd_epi32(acc, w, x)
            } else {
                let pairs = _mm512_maddubs_epi16(w, x);
                _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
            }
        })
    }
    #[inline(always)]
    fn sum(self, sums: I) -> I {
        simd!(if VNNI { sums } else { _mm512_madd_epi16(sums, _mm512_set1_epi16(1)) })
    }
    #[inline(always)]
    fn scale(self, scales: &[i8; LANES]) -> I {
        if VNNI {
            return simd!(_mm512_cvtepi8_epi32(_mm_loadu_si128(scales.as_ptr().cast())));
        }
        self.pair(scales, scales)
    }
    #[inline(always)]
    fn double(self, scale: I) -> I {
        // Neither lane width overflows into its neighbour: VNNI has 32-bit lanes, else 16.
        simd!(if VNNI { _mm512_add_epi32(scale, scale) } else { _mm512_add_epi16(scale, scale) })
    }
    #[inline(always)]
    fn sum_scaled(self, sums: I, scale: I) -> I {
        simd!(if VNNI { _mm512_mullo_epi32(sums, scale) } else { _mm512_madd_epi16(sums, scale) })
    }
    #[inline(always)]
    fn pair(self, first: &[i8; LANES], second: &[i8; LANES]) -> I {
        simd!({
            let a = _mm_loadu_si128(first.as_ptr().cast());
            let b = _mm_loadu_si128(second.as_ptr().cast());
            let low = _mm_unpacklo_epi8(a, b);
            let both =
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), _mm_unpackhi_epi8(a, b));
            _mm512_cvtepi8_epi16(both)
        })
    }
    #[inline(always)]
    fn add_pairs(self, acc: I, pair: I, x: i32) -> I {
        simd!({
            let x = _mm512_set1_epi32(x);
            if VNNI {
                _mm512_dpwssd_epi32(acc, pair, x)
            } else {
                _mm512_add_epi32(acc, _mm512_madd_epi16(pair, x))
            }
        })
    }
    #[inline(always)]
    fn add_int(self, a: I, b: I) -> I {
        simd!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn shift_left(self, a: I, shift: i32) -> I {
        simd!(_mm512_sllv_epi32(a, _mm512_set1_epi32(shift)))
    }
}
