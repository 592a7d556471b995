//! The small vector layer on which every kernel is written once.
//!
//! A vector has 16 lanes of 32 bits in every instruction set: an array in [`Scalar`], two
//! registers in [`Avx2`], one in [`Avx512`]. The lane structure is therefore the same everywhere,
//! and so is every rounding: an algorithm over [`Simd`] gives the same bits on all of them,
//! provided that each method here does. That is what the tests of this module check.
//!
//! A token's only constructors are its `detect`, so holding one proves that the processor has the
//! instructions; that is why the methods are safe.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use scalar::Scalar;
pub(crate) use scalar::bf16_bits;

use crate::isa::Op;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// 16 floats in memory.
pub(crate) type F32s = [f32; LANES];

/// At most 16 floats, filled up with zeros.
#[inline(always)]
pub(crate) fn padded(part: &[f32]) -> F32s {
    let mut full = [0.0; LANES];
    full[..part.len()].copy_from_slice(part);
    full
}

/// Where a line that is asked for goes: the hints of the instruction.
mod hint {
    /// Into all levels of the cache.
    pub const ALL: i32 = 3;
    /// Into the second level and those behind it.
    pub const SECOND: i32 = 2;
    /// Where it leaves as little as the processor can behind.
    pub const PAST: i32 = 0;
}

/// Asks for the cache line at `address`, which may be anything: a prefetch neither faults nor has
/// a result.
#[inline(always)]
fn ask_for<const HINT: i32>(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, which takes any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<HINT>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the cache lines of the value that lies `ahead` bytes behind `at`.
#[inline(always)]
fn ask_for_value<T, const HINT: i32>(at: &T, ahead: usize) {
    for line in (0..size_of::<T>()).step_by(64) {
        ask_for::<HINT>(std::ptr::from_ref(at).cast::<u8>().wrapping_add(ahead + line));
    }
}

/// Asks for the cache lines of the value that lies `ahead` bytes behind `at`.
#[inline(always)]
pub(crate) fn prefetch<T>(at: &T, ahead: usize) {
    ask_for_value::<T, { hint::ALL }>(at, ahead);
}

/// As [`prefetch`], into the second level of the cache only.
#[inline(always)]
pub(crate) fn prefetch_second<T>(at: &T, ahead: usize) {
    ask_for_value::<T, { hint::SECOND }>(at, ahead);
}

/// Asks for the cache line at `address`, into the second level of the cache. The address may be
/// anything.
#[inline(always)]
pub(crate) fn prefetch_address(address: *const u8) {
    ask_for::<{ hint::SECOND }>(address);
}

/// As [`prefetch`], leaving as little as the processor can behind in the caches.
#[inline(always)]
pub(crate) fn prefetch_past<T>(at: &T, ahead: usize) {
    ask_for_value::<T, { hint::PAST }>(at, ahead);
}

/// Asks for cache line `line` of the memory that lies `ahead` bytes behind the start of `at`.
#[inline(always)]
pub(crate) fn prefetch_line(at: &[u8], ahead: usize, line: usize) {
    ask_for::<{ hint::ALL }>(at.as_ptr().wrapping_add(ahead + 64 * line));
}

/// As [`prefetch_line`], and where it is to go `past` the caches as [`prefetch_past`] does.
#[inline(always)]
pub(crate) fn prefetch_line_by(at: &[u8], ahead: usize, line: usize, past: bool) {
    let address = at.as_ptr().wrapping_add(ahead + 64 * line);
    if past { ask_for::<{ hint::PAST }>(address) } else { ask_for::<{ hint::ALL }>(address) }
}

/// The operations of one instruction set.
///
/// In integer products the activations x are within ±127 (−128 has no negative in a byte), and
/// the result and every part of it fit an i32; the formats' ranges see to that.
///
/// All float operations are the IEEE 754 ones with round to nearest even; `fma` rounds once.
pub(crate) trait Simd: Copy + 'static {
    /// 16 lanes of f32.
    type F: Copy;
    /// 16 lanes of i32.
    type I: Copy;
    /// 64 bytes: four neighbouring weights of each of 16 rows.
    type B: Copy;
    /// Sums of byte products on their way, for 16 rows.
    type P: Copy;
    /// Scales of 16 rows.
    type K: Copy;
    /// Whether [`Self::P`] has 32-bit lanes.
    const WIDE: bool;
    /// The most columns that a product of panels takes at once, at most 8: as many as the registers
    /// hold sums of.
    const COLUMNS: usize;
    /// Whether there is code for products of tiles around this instruction set.
    const TILES: bool = false;

    /// Runs `op` in a function compiled for this instruction set.
    fn vectorize<O: Op>(self, op: O) -> O::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lane i is `x[i]`.
    fn load(self, x: &F32s) -> Self::F;
    /// Stores lane i to `out[i]`.
    fn store(self, v: Self::F, out: &mut F32s);
    /// Lane i is the half-precision number with bits `x[i]`.
    fn load_f16(self, x: &[u16; LANES]) -> Self::F;
    /// Lane i is the bfloat16 number with bits `x[i]`.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F;
    /// Lane i is `x[i]` as a float.
    fn load_i8(self, x: &[i8; LANES]) -> Self::F;
    /// Lane i is `levels[code i]`: byte i < 8 holds code i in its lower half and code i + 8 in its
    /// upper one.
    fn levels16(self, codes: &[u8; 8], levels: &F32s) -> Self::F;
    /// Lane i is `levels[code i]` for codes of 3 bits: the lower two of all codes in order in the
    /// first 4 bytes, and the upper ones in the others.
    fn levels8(self, codes: &[u8; 6], levels: &F32s) -> Self::F;
    /// The half-precision bits of the lanes, rounded to nearest even.
    fn store_f16(self, v: Self::F, out: &mut [u16; LANES]);

    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a if a > b, else b; so b if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a if a < b, else b; so b if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// |a|.
    fn abs(self, a: Self::F) -> Self::F;
    /// The sign of b on the magnitude of a.
    fn copysign(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lane i is `yes` where a > b and `no` elsewhere, NaN included.
    fn select_gt(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; the lanes must be within ±2^30.
    fn round_to_int(self, a: Self::F) -> Self::I;
    /// The integer as a float, rounded to nearest even.
    fn int_to_float(self, a: Self::I) -> Self::F;
    /// 2^n for −126 ≤ n ≤ 127.
    fn pow2(self, n: Self::I) -> Self::F;
    /// Lane i is `x[i]`.
    fn load_int(self, x: &[i32; LANES]) -> Self::I;
    /// Lanes as integers in memory.
    fn store_int(self, v: Self::I, out: &mut [i32; LANES]);
    /// a − b, wrapping.
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// All lanes `x`.
    fn splat_int(self, x: i32) -> Self::I;
    /// The 8 half-precision numbers with bits `x`.
    fn f16x8(self, x: &[u16; 8]) -> [f32; 8];
    /// `table[index & 15]` for each of 32 indices.
    fn lookup32(self, index: &[u8; 32], table: &[i8; 16]) -> [u8; 32];

    /// The low nibbles of the 16 bytes, then their high ones.
    fn nibbles32(self, packed: &[u8; 16]) -> [u8; 32];
    /// Element i is `bytes[i / 2]`.
    fn widen_twice(self, bytes: [u8; 8]) -> [i16; 16];
    /// Byte i is `yes` if bit i of the little-endian `bits` is set, else 0.
    fn bits32(self, bits: [u8; 4], yes: u8) -> [u8; 32];

    /// The maximum of the lanes; the order does not matter, as no lane is NaN.
    #[inline(always)]
    fn reduce_max(self, v: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let mut best = lanes[0];
        for x in lanes {
            best = if x > best { x } else { best };
        }
        best
    }

    /// The sum of the lanes by the canonical tree: lane i + lane i+8, then i+4, i+2, i+1 (N3).
    #[inline(always)]
    fn reduce_add(self, v: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// Σ w·x over 256 elements, each group of 16 weighted by its scale: the 16 lanes of the
    /// result sum to Σ_g scale\[g\] · Σ_i w\[16g + i\] · x\[16g + i\].
    /// `w` holds unsigned weights of at most 127. With `PAIRED`, scales 2g and 2g+1 are equal.
    fn dot256_u8<const PAIRED: bool>(
        self,
        w: &[u8; 256],
        x: &[i8; 256],
        scales: &[i16; 16],
    ) -> Self::I;
    /// As [`Self::dot256_u8`] for weights that are i8 in two's complement.
    fn dot256_i8<const PAIRED: bool>(
        self,
        w: &[u8; 256],
        x: &[i8; 256],
        scales: &[i16; 16],
    ) -> Self::I;
    /// Sums of w·x over each of 8 groups of 32; weights unsigned, at most 127.
    fn dot32x8_u8(self, w: &[u8; 256], x: &[i8; 256]) -> [i32; 8];
    /// As [`Self::dot32x8_u8`] for weights that are i8 in two's complement.
    fn dot32x8_i8(self, w: &[u8; 256], x: &[i8; 256]) -> [i32; 8];
    /// The sum of w·x over 32 elements; weights unsigned, at most 127.
    fn dot32_u8(self, w: &[u8; 32], x: &[i8; 32]) -> i32;
    /// As [`Self::dot32_u8`] for weights that are i8 in two's complement.
    fn dot32_i8(self, w: &[u8; 32], x: &[i8; 32]) -> i32;
    /// The sum of the lanes.
    fn reduce_int(self, v: Self::I) -> i32;
    /// Σ a·b over 16 pairs of i16.
    fn dot16(self, a: &[i16; 16], b: &[i16; 16]) -> i32;

    /// 64 bytes.
    fn load_bytes(self, x: &[u8; 64]) -> Self::B;
    /// Stores 64 bytes.
    fn store_bytes(self, v: Self::B, out: &mut [u8; 64]);
    /// (x >> `SHIFT`, or x << −`SHIFT`) & `mask` of every byte, where the mask keeps nothing that
    /// came from a neighbour.
    fn bits(self, x: Self::B, shift: i32, mask: u8) -> Self::B;
    /// Every byte if `half` is 0, else its upper four bits moved to the lower ones; the upper bits
    /// of the result may be anything.
    fn upper_half(self, x: Self::B, half: usize) -> Self::B;
    /// a − x of every byte, wrapping.
    fn sub_bytes(self, a: Self::B, x: u8) -> Self::B;
    /// The products of row r's four signed bytes with `scales[r]`, which fit 16 bits: their low
    /// bytes, then their high ones.
    fn scale_bytes(self, a: Self::B, scales: &[i8; LANES]) -> [Self::B; 2];
    /// a | b.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Puts bytes of four vectors side by side: lane 4l + i of vector j of the result has byte
    /// 16l + 4j + i of each, in their order.
    fn interleave(self, x: [Self::B; 4]) -> [Self::B; 4];
    /// `table[x]` for each byte, all of which are below 16.
    fn lookup(self, x: Self::B, table: &[u8; 16]) -> Self::B;
    /// Partial sums that are all `start`, which only a set with [`Self::WIDE`] can hold.
    fn start(self, start: i32) -> Self::P;
    /// Adds w\[4r + i\] · x\[i\] to row r's partial sum; x are four i8 in a word. Without
    /// [`Self::WIDE`] the additions until the next [`Self::sum`] must fit 16 bits.
    fn add_products(self, sums: Self::P, w: Self::B, x: i32) -> Self::P;
    /// As [`Self::add_products`] for weights that are stored with 128 added; the sums then hold
    /// 128 · Σx too many if [`Self::WIDE`], and are right otherwise.
    fn add_biased(self, sums: Self::P, w: Self::B, x: i32) -> Self::P;
    /// Adds to each lane i the four products w\[4i..4i + 4\] · x\[4i..4i + 4\]; weights are at most
    /// 127.
    fn add_dots(self, acc: Self::I, w: Self::B, x: &[i8; 64]) -> Self::I;
    /// The rows' sums.
    fn sum(self, sums: Self::P) -> Self::I;
    /// The rows' scales, for [`Self::sum_scaled`].
    fn scale(self, scales: &[i8; LANES]) -> Self::K;
    /// Twice the scales; they stay within ±512.
    fn double(self, scale: Self::K) -> Self::K;
    /// The rows' sums times their scales.
    fn sum_scaled(self, sums: Self::P, scale: Self::K) -> Self::I;
    /// For each row a pair of numbers, for [`Self::add_pairs`].
    fn pair(self, first: &[i8; LANES], second: &[i8; LANES]) -> Self::I;
    /// acc\[r\] + first\[r\] · x\[0\] + second\[r\] · x\[1\]; x are two i16 in a word.
    fn add_pairs(self, acc: Self::I, pair: Self::I, x: i32) -> Self::I;
    /// a + b.
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// a · 2^shift, 0 ≤ shift < 32.
    fn shift_left(self, a: Self::I, shift: i32) -> Self::I;
}
