//! AVX2 with FMA and F16C: a vector is two registers of 8 lanes.

use super::{F32s, LANES, Simd};
use crate::isa::Op;
use std::arch::x86_64::*;

/// Proof that this processor has AVX2, FMA, F16C, BMI1, BMI2 and POPCNT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt");
        has.then_some(Self(()))
    }
}

/// Wraps intrinsics whose only requirement is the instruction set.
macro_rules! simd {
    ($body:expr) => {
        // SAFETY: `self` proves that the processor has AVX2, FMA and F16C; pointers come from
        // references to arrays of the length that the instruction reads or writes.
        unsafe { $body }
    };
}

/// Two registers of floats.
type F = [__m256; 2];
/// Two registers of integers.
type I = [__m256i; 2];

impl Avx2 {
    #[inline(always)]
    fn zip(self, a: F, b: F, f: impl Fn(__m256, __m256) -> __m256) -> F {
        [f(a[0], b[0]), f(a[1], b[1])]
    }

    /// 32 bytes at element 32·i.
    #[inline(always)]
    fn bytes<T>(self, x: &[T; 256], i: usize) -> __m256i {
        const { assert!(size_of::<T>() == 1) };
        let part: &[T] = &x[32 * i..32 * i + 32];
        simd!(_mm256_loadu_si256(part.as_ptr().cast()))
    }

    /// Pair sums of unsigned · signed bytes.
    #[inline(always)]
    fn pairs_u8(self, w: __m256i, x: __m256i) -> __m256i {
        simd!(_mm256_maddubs_epi16(w, x))
    }

    /// Pair sums of signed · signed bytes: |w| · (x with the sign of w).
    #[inline(always)]
    fn pairs_i8(self, w: __m256i, x: __m256i) -> __m256i {
        simd!(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)))
    }

    #[inline(always)]
    fn dot256<const PAIRED: bool>(
        self,
        w: &[u8; 256],
        x: &[i8; 256],
        scales: &[i16; 16],
        pairs: impl Fn(__m256i, __m256i) -> __m256i,
    ) -> I {
        let mut acc = simd!([_mm256_setzero_si256(); 2]);
        for i in 0..8 {
            let products = pairs(self.bytes(w, i), self.bytes(x, i));
            let low = simd!(_mm_set1_epi16(scales[2 * i]));
            let high = if PAIRED { low } else { simd!(_mm_set1_epi16(scales[2 * i + 1])) };
            let scale = simd!(_mm256_set_m128i(high, low));
            let sums = simd!(_mm256_madd_epi16(products, scale));
            acc[i % 2] = simd!(_mm256_add_epi32(acc[i % 2], sums));
        }
        acc
    }

    #[inline(always)]
    fn dot32x8(
        self,
        w: &[u8; 256],
        x: &[i8; 256],
        pairs: impl Fn(__m256i, __m256i) -> __m256i,
    ) -> [i32; 8] {
        let ones = simd!(_mm256_set1_epi16(1));
        let mut sums = [ones; 8];
        for (i, sum) in sums.iter_mut().enumerate() {
            let products = pairs(self.bytes(w, i), self.bytes(x, i));
            *sum = simd!(_mm256_madd_epi16(products, ones));
        }
        // A tree of horizontal adds leaves block j's sum in lane j of both halves' sum.
        let h = |a, b| simd!(_mm256_hadd_epi32(a, b));
        let a = h(h(sums[0], sums[1]), h(sums[2], sums[3]));
        let b = h(h(sums[4], sums[5]), h(sums[6], sums[7]));
        let mut out = [0; 8];
        simd!({
            let low = _mm256_permute2x128_si256::<0x20>(a, b);
            let high = _mm256_permute2x128_si256::<0x31>(a, b);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_add_epi32(low, high));
        });
        out
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    type B = I;
    type P = I;
    type K = I;
    const WIDE: bool = false;
    const COLUMNS: usize = 4;

    #[inline]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt")]
        fn run<O: Op>(simd: Avx2, op: O) -> O::Output {
            op.run(simd)
        }
        // SAFETY: `self` proves that the processor has each of the features enabled above.
        unsafe { run(self, op) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        simd!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &F32s) -> F {
        simd!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, v: F, out: &mut F32s) {
        simd!({
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), v[1]);
        });
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> F {
        simd!([
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast())),
        ])
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> F {
        let half = |x: &[u16]| {
            simd!({
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(x[..8].as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            })
        };
        [half(&x[..8]), half(&x[8..])]
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> F {
        simd!({
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            let low = _mm256_cvtepi8_epi32(bytes);
            let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        })
    }
    #[inline(always)]
    fn levels16(self, codes: &[u8; 8], levels: &F32s) -> F {
        let [low, high] = self.load(levels);
        let pick = |code| {
            simd!({
                let code = _mm256_cvtepu8_epi32(code);
                // The permutation looks at three bits; the fourth, moved to the sign, chooses.
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
                let a = _mm256_permutevar8x32_ps(low, code);
                _mm256_blendv_ps(a, _mm256_permutevar8x32_ps(high, code), upper)
            })
        };
        simd!({
            let codes = _mm_loadl_epi64(codes.as_ptr().cast());
            [pick(codes), pick(_mm_srli_epi64::<4>(codes))]
        })
    }
    #[inline(always)]
    fn levels8(self, codes: &[u8; 6], levels: &F32s) -> F {
        let [a, b, c, d, e, f] = *codes;
        let (low, high) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]));
        let pick = |low: u32, high: u16| {
            simd!({
                let low = _mm256_set1_epi32(low.cast_signed());
                let low = _mm256_srlv_epi32(low, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
                let high = _mm256_set1_epi32(i32::from(high) << 2);
                let high = _mm256_srlv_epi32(high, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
                let low = _mm256_and_si256(low, _mm256_set1_epi32(3));
                let high = _mm256_and_si256(high, _mm256_set1_epi32(4));
                let code = _mm256_or_si256(low, high);
                _mm256_permutevar8x32_ps(self.load(levels)[0], code)
            })
        };
        [pick(low, high), pick(low >> 16, high >> 8)]
    }
    #[inline(always)]
    fn store_f16(self, v: F, out: &mut [u16; LANES]) {
        simd!({
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]);
            _mm_storeu_si128(out.as_mut_ptr().cast(), low);
            _mm_storeu_si128(out.as_mut_ptr().add(8).cast(), high);
        });
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        self.zip(a, b, |a, b| simd!(_mm256_add_ps(a, b)))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        self.zip(a, b, |a, b| simd!(_mm256_sub_ps(a, b)))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        self.zip(a, b, |a, b| simd!(_mm256_mul_ps(a, b)))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        self.zip(a, b, |a, b| simd!(_mm256_div_ps(a, b)))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        simd!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        self.zip(a, b, |a, b| simd!(_mm256_max_ps(a, b)))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        self.zip(a, b, |a, b| simd!(_mm256_min_ps(a, b)))
    }
    #[inline(always)]
    fn abs(self, a: F) -> F {
        let sign = simd!(_mm256_set1_ps(-0.0));
        simd!([_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])])
    }
    #[inline(always)]
    fn copysign(self, a: F, b: F) -> F {
        let sign = simd!(_mm256_set1_ps(-0.0));
        self.zip(a, b, |a, b| {
            simd!(_mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b)))
        })
    }
    #[inline(always)]
    fn select_gt(self, a: F, b: F, yes: F, no: F) -> F {
        simd!([
            _mm256_blendv_ps(no[0], yes[0], _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(no[1], yes[1], _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])),
        ])
    }
    #[inline(always)]
    fn round_to_int(self, a: F) -> I {
        simd!([_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])])
    }
    #[inline(always)]
    fn int_to_float(self, a: I) -> F {
        simd!([_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])])
    }
    #[inline(always)]
    fn pow2(self, n: I) -> F {
        let half = |n| {
            simd!({
                let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            })
        };
        [half(n[0]), half(n[1])]
    }
    #[inline(always)]
    fn load_int(self, x: &[i32; LANES]) -> I {
        let (first, second) = x.split_at(8);
        simd!([
            _mm256_loadu_si256(first.as_ptr().cast()),
            _mm256_loadu_si256(second.as_ptr().cast()),
        ])
    }
    #[inline(always)]
    fn store_int(self, v: I, out: &mut [i32; LANES]) {
        simd!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), v[1]);
        });
    }
    #[inline(always)]
    fn sub_int(self, a: I, b: I) -> I {
        simd!([_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> I {
        simd!([_mm256_set1_epi32(x); 2])
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
            // Byte i takes byte i / 8 of the bits and keeps bit i % 8 of it.
            let spread = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(bits)), spread);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
            let chosen = _mm256_and_si256(set, _mm256_set1_epi8(yes.cast_signed()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), chosen);
        });
        out
    }
    #[inline(always)]
    fn dot256_u8<const PAIRED: bool>(self, w: &[u8; 256], x: &[i8; 256], scales: &[i16; 16]) -> I {
        self.dot256::<PAIRED>(w, x, scales, |w, x| self.pairs_u8(w, x))
    }
    #[inline(always)]
    fn dot256_i8<const PAIRED: bool>(self, w: &[u8; 256], x: &[i8; 256], scales: &[i16; 16]) -> I {
        self.dot256::<PAIRED>(w, x, scales, |w, x| self.pairs_i8(w, x))
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
            let sums = _mm256_madd_epi16(self.pairs_u8(w, x), _mm256_set1_epi16(1));
            self.reduce_int([sums, _mm256_setzero_si256()])
        })
    }
    #[inline(always)]
    fn dot32_i8(self, w: &[u8; 32], x: &[i8; 32]) -> i32 {
        simd!({
            let w = _mm256_loadu_si256(w.as_ptr().cast());
            let x = _mm256_loadu_si256(x.as_ptr().cast());
            let sums = _mm256_madd_epi16(self.pairs_i8(w, x), _mm256_set1_epi16(1));
            self.reduce_int([sums, _mm256_setzero_si256()])
        })
    }
    #[inline(always)]
    fn reduce_int(self, v: I) -> i32 {
        simd!({
            let eight = _mm256_add_epi32(v[0], v[1]);
            let high = _mm256_extracti128_si256::<1>(eight);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), high);
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
            _mm_cvtsi128_si32(one)
        })
    }
    #[inline(always)]
    fn dot16(self, a: &[i16; 16], b: &[i16; 16]) -> i32 {
        simd!({
            let a = _mm256_loadu_si256(a.as_ptr().cast());
            let b = _mm256_loadu_si256(b.as_ptr().cast());
            self.reduce_int([_mm256_madd_epi16(a, b), _mm256_setzero_si256()])
        })
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> I {
        simd!([
            _mm256_loadu_si256(x.as_ptr().cast()),
            _mm256_loadu_si256(x.as_ptr().add(32).cast()),
        ])
    }
    #[inline(always)]
    fn store_bytes(self, v: I, out: &mut [u8; 64]) {
        simd!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), v[1]);
        });
    }
    #[inline(always)]
    fn bits(self, x: I, shift: i32, mask: u8) -> I {
        simd!({
            let mask = _mm256_set1_epi8(mask.cast_signed());
            let count = _mm_cvtsi32_si128(shift.abs());
            let [a, b] = match shift {
                0 => x,
                1.. => [_mm256_srl_epi16(x[0], count), _mm256_srl_epi16(x[1], count)],
                _ => [_mm256_sll_epi16(x[0], count), _mm256_sll_epi16(x[1], count)],
            };
            [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)]
        })
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "0 or 4")]
    fn upper_half(self, x: I, half: usize) -> I {
        simd!({
            let count = _mm_cvtsi32_si128(4 * half as i32);
            [_mm256_srl_epi16(x[0], count), _mm256_srl_epi16(x[1], count)]
        })
    }
    #[inline(always)]
    fn sub_bytes(self, a: I, x: u8) -> I {
        let x = simd!(_mm256_set1_epi8(x.cast_signed()));
        simd!([_mm256_sub_epi8(a[0], x), _mm256_sub_epi8(a[1], x)])
    }
    #[inline(always)]
    fn scale_bytes(self, a: I, scales: &[i8; LANES]) -> [I; 2] {
        let mut out = [a; 2];
        for half in 0..2 {
            simd!({
                let scales = _mm_loadl_epi64(scales[8 * half..].as_ptr().cast());
                let scales = _mm256_cvtepi8_epi32(scales);
                let low = _mm256_set1_epi16(0xff);
                let scales = _mm256_blend_epi16::<0xaa>(scales, _mm256_slli_epi32::<16>(scales));
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a[half]));
                let odd = _mm256_srai_epi16::<8>(a[half]);
                let even = _mm256_mullo_epi16(even, scales);
                let odd = _mm256_mullo_epi16(odd, scales);
                let (lows, highs) = (_mm256_and_si256(even, low), _mm256_andnot_si256(low, odd));
                out[0][half] = _mm256_or_si256(lows, _mm256_slli_epi16::<8>(odd));
                out[1][half] = _mm256_or_si256(highs, _mm256_srli_epi16::<8>(even));
            });
        }
        out
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        simd!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn interleave(self, x: [I; 4]) -> [I; 4] {
        let half = |h: usize| {
            let [a, b, c, d] = x.map(|x| x[h]);
            simd!({
                let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
                let (high_ab, high_cd) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
                [
                    _mm256_unpacklo_epi16(ab, cd),
                    _mm256_unpackhi_epi16(ab, cd),
                    _mm256_unpacklo_epi16(high_ab, high_cd),
                    _mm256_unpackhi_epi16(high_ab, high_cd),
                ]
            })
        };
        let [first, second] = [half(0), half(1)];
        std::array::from_fn(|j| [first[j], second[j]])
    }
    #[inline(always)]
    fn lookup(self, x: I, table: &[u8; 16]) -> I {
        simd!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, x[0]), _mm256_shuffle_epi8(table, x[1])]
        })
    }
    #[inline(always)]
    fn start(self, _start: i32) -> I {
        simd!([_mm256_setzero_si256(); 2])
    }
    #[inline(always)]
    fn add_products(self, sums: I, w: I, x: i32) -> I {
        simd!({
            let x = _mm256_set1_epi32(x);
            [
                _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(w[0], x)),
                _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(w[1], x)),
            ]
        })
    }
    #[inline(always)]
    fn add_biased(self, sums: I, w: I, x: i32) -> I {
        simd!({
            let x = _mm256_set1_epi32(x);
            let bias = _mm256_set1_epi8(-128);
            let (a, b) = (_mm256_xor_si256(w[0], bias), _mm256_xor_si256(w[1], bias));
            [
                _mm256_add_epi16(sums[0], self.pairs_i8(a, x)),
                _mm256_add_epi16(sums[1], self.pairs_i8(b, x)),
            ]
        })
    }
    #[inline(always)]
    fn add_dots(self, acc: I, w: I, x: &[i8; 64]) -> I {
        simd!({
            let ones = _mm256_set1_epi16(1);
            let x: [&[i8]; 2] = [&x[..32], &x[32..]];
            let part = |i: usize| {
                let x = _mm256_loadu_si256(x[i].as_ptr().cast());
                _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w[i], x), ones))
            };
            [part(0), part(1)]
        })
    }
    #[inline(always)]
    fn sum(self, sums: I) -> I {
        simd!({
            let ones = _mm256_set1_epi16(1);
            [_mm256_madd_epi16(sums[0], ones), _mm256_madd_epi16(sums[1], ones)]
        })
    }
    #[inline(always)]
    fn scale(self, scales: &[i8; LANES]) -> I {
        self.pair(scales, scales)
    }
    #[inline(always)]
    fn double(self, scale: I) -> I {
        simd!([_mm256_add_epi16(scale[0], scale[0]), _mm256_add_epi16(scale[1], scale[1])])
    }
    #[inline(always)]
    fn sum_scaled(self, sums: I, scale: I) -> I {
        simd!([_mm256_madd_epi16(sums[0], scale[0]), _mm256_madd_epi16(sums[1], scale[1])])
    }
    #[inline(always)]
    fn pair(self, first: &[i8; LANES], second: &[i8; LANES]) -> I {
        simd!({
            let a = _mm_loadu_si128(first.as_ptr().cast());
            let b = _mm_loadu_si128(second.as_ptr().cast());
            [
                _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)),
                _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)),
            ]
        })
    }
    #[inline(always)]
    fn add_pairs(self, acc: I, pair: I, x: i32) -> I {
        simd!({
            let x = _mm256_set1_epi32(x);
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(pair[0], x)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(pair[1], x)),
            ]
        })
    }
    #[inline(always)]
    fn add_int(self, a: I, b: I) -> I {
        simd!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn shift_left(self, a: I, shift: i32) -> I {
        simd!({
            let count = _mm256_set1_epi32(shift);
            [_mm256_sllv_epi32(a[0], count), _mm256_sllv_epi32(a[1], count)]
        })
    }
}
