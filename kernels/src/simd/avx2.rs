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

    /// Transposes an 8 × 8 block of dwords: pairs of rows, pairs of pairs, then halves.
    #[inline(always)]
    fn transpose8(self, r: [__m256i; 8]) -> [__m256i; 8] {
        simd!({
            let (mut t, mut u, mut out) = (r, r, r);
            for i in [0, 2, 4, 6] {
                t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
                t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
            }
            for i in [0, 4] {
                u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
                u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
                u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
                u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
            }
            for i in 0..4 {
                out[i] = _mm256_permute2x128_si256::<0x20>(u[i], u[i + 4]);
                out[i + 4] = _mm256_permute2x128_si256::<0x31>(u[i], u[i + 4]);
            }
            out
        })
    }

    /// The four bytes at `x[4k..]` in every lane.
    #[inline(always)]
    fn broadcast4(self, x: &[i8], k: usize) -> __m256i {
        let quad: [i8; 4] = [x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]];
        simd!(_mm256_set1_epi32(i32::from_le_bytes(quad.map(i8::cast_unsigned))))
    }

    #[inline(always)]
    fn tile<const C: usize, const ADDS: usize>(
        self,
        w: &[[u8; 64]],
        x: [&[i8]; C],
        scale: &[i16; 32],
        acc: &mut [I; C],
        pairs: impl Fn(__m256i, __m256i) -> __m256i,
    ) {
        let x = x.map(|x| &x[..4 * w.len()]);
        let scale: I = simd!([
            _mm256_loadu_si256(scale.as_ptr().cast()),
            _mm256_loadu_si256(scale[16..].as_ptr().cast()),
        ]);
        // Sums of pairs stay in 16 bits for as many steps as cannot overflow.
        for (group, w) in w.chunks(ADDS).enumerate() {
            let mut short = simd!([[_mm256_setzero_si256(); 2]; C]);
            for (k, w) in w.iter().enumerate() {
                let low = simd!(_mm256_loadu_si256(w.as_ptr().cast()));
                let high = simd!(_mm256_loadu_si256(w[32..].as_ptr().cast()));
                for c in 0..C {
                    let x = self.broadcast4(x[c], group * ADDS + k);
                    short[c][0] = simd!(_mm256_add_epi16(short[c][0], pairs(low, x)));
                    short[c][1] = simd!(_mm256_add_epi16(short[c][1], pairs(high, x)));
                }
            }
            for c in 0..C {
                for half in 0..2 {
                    let sums = simd!(_mm256_madd_epi16(short[c][half], scale[half]));
                    acc[c][half] = simd!(_mm256_add_epi32(acc[c][half], sums));
                }
            }
        }
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = I;

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
    fn interleave(self, rows: &[[u8; 256]; 16], out: &mut [[u8; 64]; 64]) {
        for part in 0..8 {
            for half in 0..2 {
                let mut block = simd!([_mm256_setzero_si256(); 8]);
                for (row, dwords) in rows[8 * half..].iter().zip(&mut block) {
                    *dwords = self.bytes(row, part);
                }
                for (dword, column) in self.transpose8(block).into_iter().enumerate() {
                    let to = &mut out[8 * part + dword][32 * half..32 * half + 32];
                    simd!(_mm256_storeu_si256(to.as_mut_ptr().cast(), column));
                }
            }
        }
    }
    #[inline(always)]
    fn tile_u8<const C: usize, const ADDS: usize>(
        self,
        w: &[[u8; 64]],
        x: [&[i8]; C],
        scale: &[i16; 32],
        acc: &mut [I; C],
    ) {
        self.tile::<C, ADDS>(w, x, scale, acc, |w, x| self.pairs_u8(w, x));
    }
    #[inline(always)]
    fn tile_i8<const C: usize>(
        self,
        w: &[[u8; 64]],
        x: [&[i8]; C],
        _sums: [i32; C],
        scale: &[i16; 32],
        acc: &mut [I; C],
    ) {
        // |w| may be 128, so that a pair sum fills 16 bits and none can be added to it.
        self.tile::<C, 1>(w, x, scale, acc, |w, x| self.pairs_i8(w, x));
    }
    #[inline(always)]
    fn tile_mins(self, mins: &[i16; 32], pair: [i16; 2], acc: I) -> I {
        let [a, b] = pair.map(i16::to_le_bytes);
        simd!({
            let pair = _mm256_set1_epi32(i32::from_le_bytes([a[0], a[1], b[0], b[1]]));
            let low = _mm256_madd_epi16(_mm256_loadu_si256(mins.as_ptr().cast()), pair);
            let high = _mm256_madd_epi16(_mm256_loadu_si256(mins[16..].as_ptr().cast()), pair);
            [_mm256_add_epi32(acc[0], low), _mm256_add_epi32(acc[1], high)]
        })
    }
}
