//! The reference: plain Rust over arrays. It is the specification of every other token.

use super::{F32s, LANES, Simd};
use crate::isa::Op;
use half::{bf16, f16};

/// The token of the reference; every processor can run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalar;

#[inline(always)]
fn map<T: Copy, U: Copy + Default, const N: usize>(a: [T; N], f: impl Fn(T) -> U) -> [U; N] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: F32s, b: F32s, f: impl Fn(f32, f32) -> f32) -> F32s {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Σ_i w(i)·x(i) over a run of equal length.
#[inline(always)]
fn dot(w: &[u8], x: &[i8], weight: impl Fn(u8) -> i32) -> i32 {
    w.iter().zip(x).map(|(&w, &x)| weight(w) * i32::from(x)).sum()
}

#[inline(always)]
fn dot256(w: &[u8; 256], x: &[i8; 256], scales: &[i16; 16], f: impl Fn(u8) -> i32) -> [i32; 16] {
    std::array::from_fn(|g| {
        let at = 16 * g..16 * g + 16;
        i32::from(scales[g]) * dot(&w[at.clone()], &x[at], &f)
    })
}

#[inline(always)]
fn unsigned(w: u8) -> i32 {
    i32::from(w)
}

#[inline(always)]
fn signed(w: u8) -> i32 {
    i32::from(w.cast_signed())
}

impl Simd for Scalar {
    type F = F32s;
    type I = [i32; LANES];
    type B = [u8; 64];
    type P = [i32; LANES];
    type K = [i32; LANES];
    const WIDE: bool = true;
    const COLUMNS: usize = 2;
    const TILES: bool = cfg!(test);

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F32s {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &F32s) -> F32s {
        *x
    }
    #[inline(always)]
    fn store(self, v: F32s, out: &mut F32s) {
        *out = v;
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> F32s {
        map(*x, |bits| f16::from_bits(bits).to_f32_const())
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> F32s {
        map(*x, |bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> F32s {
        map(*x, f32::from)
    }
    #[inline(always)]
    fn levels16(self, codes: &[u8; 8], levels: &F32s) -> F32s {
        std::array::from_fn(|i| levels[usize::from(codes[i % 8] >> (i / 8 * 4) & 15)])
    }
    #[inline(always)]
    fn levels8(self, codes: &[u8; 6], levels: &F32s) -> F32s {
        std::array::from_fn(|i| {
            let low = codes[i / 4] >> (i % 4 * 2) & 3;
            let high = codes[4 + i / 8] >> (i % 8) & 1;
            levels[usize::from(low | high << 2)]
        })
    }
    #[inline(always)]
    fn store_f16(self, v: F32s, out: &mut [u16; LANES]) {
        *out = map(v, |x| f16::from_f32_const(x).to_bits());
    }
    #[inline(always)]
    fn add(self, a: F32s, b: F32s) -> F32s {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F32s, b: F32s) -> F32s {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F32s, b: F32s) -> F32s {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F32s, b: F32s) -> F32s {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F32s, b: F32s, c: F32s) -> F32s {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: F32s, b: F32s) -> F32s {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F32s, b: F32s) -> F32s {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: F32s) -> F32s {
        map(a, f32::abs)
    }
    #[inline(always)]
    fn copysign(self, a: F32s, b: F32s) -> F32s {
        zip(a, b, f32::copysign)
    }
    #[inline(always)]
    fn select_gt(self, a: F32s, b: F32s, yes: F32s, no: F32s) -> F32s {
        std::array::from_fn(|i| if a[i] > b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lanes are within ±2^30")]
    fn round_to_int(self, a: F32s) -> Self::I {
        map(a, |x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rounding is what the method promises")]
    fn int_to_float(self, a: Self::I) -> F32s {
        map(a, |x| x as f32)
    }
    #[inline(always)]
    fn pow2(self, n: Self::I) -> F32s {
        map(n, |n| f32::from_bits(((n + 127) << 23).cast_unsigned()))
    }
    #[inline(always)]
    fn load_int(self, x: &[i32; LANES]) -> Self::I {
        *x
    }
    #[inline(always)]
    fn store_int(self, v: Self::I, out: &mut [i32; LANES]) {
        *out = v;
    }
    #[inline(always)]
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn f16x8(self, x: &[u16; 8]) -> [f32; 8] {
        map(*x, |bits| f16::from_bits(bits).to_f32_const())
    }
    #[inline(always)]
    fn lookup32(self, index: &[u8; 32], table: &[i8; 16]) -> [u8; 32] {
        map(*index, |i| table[usize::from(i & 15)].cast_unsigned())
    }
    #[inline(always)]
    fn nibbles32(self, packed: &[u8; 16]) -> [u8; 32] {
        std::array::from_fn(|i| if i < 16 { packed[i] & 15 } else { packed[i - 16] >> 4 })
    }
    #[inline(always)]
    fn widen_twice(self, bytes: [u8; 8]) -> [i16; 16] {
        std::array::from_fn(|i| i16::from(bytes[i / 2]))
    }
    #[inline(always)]
    fn bits32(self, bits: [u8; 4], yes: u8) -> [u8; 32] {
        std::array::from_fn(|i| if (bits[i / 8] >> (i % 8)) & 1 == 1 { yes } else { 0 })
    }
    #[inline(always)]
    fn dot256_u8<const PAIRED: bool>(
        self,
        w: &[u8; 256],
        x: &[i8; 256],
        scales: &[i16; 16],
    ) -> Self::I {
        dot256(w, x, scales, unsigned)
    }
    #[inline(always)]
    fn dot256_i8<const PAIRED: bool>(
        self,
        w: &[u8; 256],
        x: &[i8; 256],
        scales: &[i16; 16],
    ) -> Self::I {
        dot256(w, x, scales, signed)
    }
    #[inline(always)]
    fn dot32x8_u8(self, w: &[u8; 256], x: &[i8; 256]) -> [i32; 8] {
        std::array::from_fn(|g| dot(&w[32 * g..32 * g + 32], &x[32 * g..32 * g + 32], unsigned))
    }
    #[inline(always)]
    fn dot32x8_i8(self, w: &[u8; 256], x: &[i8; 256]) -> [i32; 8] {
        std::array::from_fn(|g| dot(&w[32 * g..32 * g + 32], &x[32 * g..32 * g + 32], signed))
    }
    #[inline(always)]
    fn dot32_u8(self, w: &[u8; 32], x: &[i8; 32]) -> i32 {
        dot(w, x, unsigned)
    }
    #[inline(always)]
    fn dot32_i8(self, w: &[u8; 32], x: &[i8; 32]) -> i32 {
        dot(w, x, signed)
    }
    #[inline(always)]
    fn reduce_int(self, v: Self::I) -> i32 {
        v.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn dot16(self, a: &[i16; 16], b: &[i16; 16]) -> i32 {
        a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> [u8; 64] {
        *x
    }
    #[inline(always)]
    fn store_bytes(self, v: [u8; 64], out: &mut [u8; 64]) {
        *out = v;
    }
    #[inline(always)]
    fn bits(self, x: [u8; 64], shift: i32, mask: u8) -> [u8; 64] {
        x.map(|x| (if shift < 0 { x << -shift } else { x >> shift }) & mask)
    }
    #[inline(always)]
    fn sub_bytes(self, a: [u8; 64], x: u8) -> [u8; 64] {
        a.map(|a| a.wrapping_sub(x))
    }
    #[inline(always)]
    fn scale_bytes(self, a: [u8; 64], scales: &[i8; LANES]) -> [[u8; 64]; 2] {
        let mut out = [[0; 64]; 2];
        for (i, a) in a.into_iter().enumerate() {
            let product = i16::from(a.cast_signed()) * i16::from(scales[i / 4]);
            [out[0][i], out[1][i]] = product.to_le_bytes();
        }
        out
    }
    #[inline(always)]
    fn upper_half(self, x: [u8; 64], half: usize) -> [u8; 64] {
        x.map(|x| x >> (4 * half))
    }
    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn interleave(self, x: [[u8; 64]; 4]) -> [[u8; 64]; 4] {
        std::array::from_fn(|j| {
            std::array::from_fn(|at| {
                let (lane, source) = (at / 4, at % 4);
                x[source][16 * (lane / 4) + 4 * j + lane % 4]
            })
        })
    }
    #[inline(always)]
    fn lookup(self, x: [u8; 64], table: &[u8; 16]) -> [u8; 64] {
        x.map(|x| table[usize::from(x & 15)])
    }
    #[inline(always)]
    fn start(self, start: i32) -> Self::I {
        [start; LANES]
    }
    #[inline(always)]
    fn add_products(self, sums: Self::I, w: [u8; 64], x: i32) -> Self::I {
        let x = x.to_le_bytes().map(u8::cast_signed);
        std::array::from_fn(|r| sums[r] + dot(&w[4 * r..4 * r + 4], &x, unsigned))
    }
    #[inline(always)]
    fn add_biased(self, sums: Self::I, w: [u8; 64], x: i32) -> Self::I {
        self.add_products(sums, w, x)
    }
    #[inline(always)]
    fn add_dots(self, acc: Self::I, w: [u8; 64], x: &[i8; 64]) -> Self::I {
        std::array::from_fn(|i| acc[i] + dot(&w[4 * i..4 * i + 4], &x[4 * i..4 * i + 4], unsigned))
    }
    #[inline(always)]
    fn sum(self, sums: Self::I) -> Self::I {
        sums
    }
    #[inline(always)]
    fn scale(self, scales: &[i8; LANES]) -> Self::I {
        scales.map(i32::from)
    }
    #[inline(always)]
    fn double(self, scale: Self::I) -> Self::I {
        scale.map(|scale| 2 * scale)
    }
    #[inline(always)]
    fn sum_scaled(self, sums: Self::I, scale: Self::I) -> Self::I {
        std::array::from_fn(|r| sums[r] * scale[r])
    }
    #[inline(always)]
    fn pair(self, first: &[i8; LANES], second: &[i8; LANES]) -> Self::I {
        let pair = |r: usize| [i16::from(first[r]), i16::from(second[r])];
        std::array::from_fn(|r| bytemuck::cast(pair(r)))
    }
    #[inline(always)]
    fn add_pairs(self, acc: Self::I, pair: Self::I, x: i32) -> Self::I {
        let [a, b]: [i16; 2] = bytemuck::cast(x);
        std::array::from_fn(|r| {
            let [first, second]: [i16; 2] = bytemuck::cast(pair[r]);
            acc[r] + i32::from(first) * i32::from(a) + i32::from(second) * i32::from(b)
        })
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn shift_left(self, a: Self::I, shift: i32) -> Self::I {
        a.map(|a| a << shift)
    }
}

/// The bfloat16 bits of `x`, rounded to nearest even; used where a cache stores bfloat16.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    bf16::from_f32_const(x).to_bits()
}
