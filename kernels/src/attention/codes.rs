//! Keys and values as codes of a few bits with one scale each, for vectors that were rotated, so
//! that their elements look alike (SPEC N12).
//!
//! Sixteen codes make a group: those of element d of 16 positions in a page of keys, and 16
//! neighbouring elements of a value. Half-precision scales lie behind the groups: 16 in a page,
//! one in a row.

use super::cache::KvFormat;
use crate::simd::{F32s, LANES, Simd, padded};
use half::f16;
use std::marker::PhantomData;

/// How elements become codes.
pub(super) trait Code: 'static {
    /// Bytes of 16 codes.
    const GROUP_BYTES: usize;
    /// What the 16 codes of a group stand for, before the scale.
    fn load<S: Simd>(simd: S, group: &[u8]) -> S::F;
    /// The scale with which elements are turned into codes.
    fn first_scale<S: Simd>(simd: S, x: &[f32]) -> f32;
    /// The code of an element that was divided by the first scale, and what it stands for.
    fn encode(x: f32) -> (u8, f32);
    /// Puts a code in its place in a group.
    fn put(group: &mut [u8], lane: usize, code: u8);
    /// Whether the scale is fitted to the codes by least squares.
    const FITTED: bool;
}

/// −127 … 127, the scale being a 127th of the largest magnitude.
pub(super) struct Eight;

/// The 16 levels that err least, in the mean square, for a normal distribution (Lloyd and Max).
pub(super) struct Four;

/// The 8 levels likewise.
pub(super) struct Three;

/// Levels in ascending order; the distribution is symmetric.
const LEVELS_16: F32s = [
    -2.7326, -2.0690, -1.6181, -1.2562, -0.9424, -0.6568, -0.3881, -0.1284, //
    0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326,
];

/// The first eight count; the others fill up a vector.
const LEVELS_8: F32s = [
    -2.1520, -1.3439, -0.7560, -0.2451, 0.2451, 0.7560, 1.3439, 2.1520, //
    0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
];

/// The level next to `x` among the first `N`: as many as there are midpoints below it.
#[inline(always)]
fn nearest<const N: usize>(levels: &F32s, x: f32) -> (u8, f32) {
    let mut code = 0_u8;
    for pair in levels[..N].windows(2) {
        code += u8::from(x > (pair[0] + pair[1]) * 0.5);
    }
    (code, levels[usize::from(code)])
}

/// √(Σ x² / n), the sum in the canonical order (N3).
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "heads have at most 256 elements")]
fn root_mean_square<S: Simd>(simd: S, x: &[f32]) -> f32 {
    (dot(simd, x, x) / x.len() as f32).sqrt()
}

/// Σ x·y in the canonical order.
#[inline(always)]
fn dot<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f32 {
    let mut acc = simd.splat(0.0);
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        acc = simd.fma(simd.load(&padded(x)), simd.load(&padded(y)), acc);
    }
    simd.reduce_add(acc)
}

impl Code for Eight {
    const GROUP_BYTES: usize = 16;
    const FITTED: bool = false;

    #[inline(always)]
    fn load<S: Simd>(simd: S, group: &[u8]) -> S::F {
        simd.load_i8(bytemuck::cast_slice(group).first_chunk().expect("a group"))
    }
    #[inline(always)]
    fn first_scale<S: Simd>(_simd: S, x: &[f32]) -> f32 {
        x.iter().fold(0.0_f32, |m, x| if x.abs() > m { x.abs() } else { m }) / 127.0
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "quants are held within ±127")]
    fn encode(x: f32) -> (u8, f32) {
        let q = x.round_ties_even().clamp(-127.0, 127.0);
        ((q as i8).cast_unsigned(), q)
    }
    #[inline(always)]
    fn put(group: &mut [u8], lane: usize, code: u8) {
        group[lane] = code;
    }
}

impl Code for Four {
    const GROUP_BYTES: usize = 8;
    const FITTED: bool = true;

    #[inline(always)]
    fn load<S: Simd>(simd: S, group: &[u8]) -> S::F {
        simd.levels16(group.first_chunk().expect("a group"), &LEVELS_16)
    }
    #[inline(always)]
    fn first_scale<S: Simd>(simd: S, x: &[f32]) -> f32 {
        root_mean_square(simd, x)
    }
    #[inline(always)]
    fn encode(x: f32) -> (u8, f32) {
        nearest::<16>(&LEVELS_16, x)
    }
    #[inline(always)]
    fn put(group: &mut [u8], lane: usize, code: u8) {
        let (byte, shift) = (lane % 8, lane / 8 * 4);
        group[byte] = (group[byte] & !(15 << shift)) | (code << shift);
    }
}

impl Code for Three {
    const GROUP_BYTES: usize = 6;
    const FITTED: bool = true;

    #[inline(always)]
    fn load<S: Simd>(simd: S, group: &[u8]) -> S::F {
        simd.levels8(group.first_chunk().expect("a group"), &LEVELS_8)
    }
    #[inline(always)]
    fn first_scale<S: Simd>(simd: S, x: &[f32]) -> f32 {
        root_mean_square(simd, x)
    }
    #[inline(always)]
    fn encode(x: f32) -> (u8, f32) {
        nearest::<8>(&LEVELS_8, x)
    }
    #[inline(always)]
    fn put(group: &mut [u8], lane: usize, code: u8) {
        let (byte, shift) = (lane / 4, lane % 4 * 2);
        group[byte] = (group[byte] & !(3 << shift)) | ((code & 3) << shift);
        let (byte, bit) = (4 + lane / 8, lane % 8);
        group[byte] = (group[byte] & !(1 << bit)) | ((code >> 2) << bit);
    }
}

/// Keys and values as codes of type `C`.
pub(super) struct Codes<C>(PhantomData<C>);

impl<C: Code> KvFormat for Codes<C> {
    fn key_page_bytes(key_len: usize) -> usize {
        key_len * C::GROUP_BYTES + LANES * 2
    }
    fn value_row_bytes(value_len: usize) -> usize {
        value_len / LANES * C::GROUP_BYTES + 2
    }
    #[inline(always)]
    fn load_key<S: Simd>(simd: S, page: &[u8], _key_len: usize, d: usize) -> S::F {
        C::load(simd, &page[d * C::GROUP_BYTES..])
    }
    #[inline(always)]
    fn load_value<S: Simd>(simd: S, row: &[u8], _value_len: usize, part: usize) -> S::F {
        C::load(simd, &row[part * C::GROUP_BYTES..])
    }
    #[inline(always)]
    fn key_scale<S: Simd>(simd: S, page: &[u8], key_len: usize) -> Option<S::F> {
        let scales = &page[key_len * C::GROUP_BYTES..];
        let bits = |i| u16::from_le_bytes([scales[2 * i], scales[2 * i + 1]]);
        Some(simd.load_f16(&std::array::from_fn(bits)))
    }
    #[inline(always)]
    fn value_scale<S: Simd>(simd: S, row: &[u8], value_len: usize) -> Option<S::F> {
        let scale = &row[value_len / LANES * C::GROUP_BYTES..];
        Some(simd.load_f16(&[u16::from_le_bytes([scale[0], scale[1]]); LANES]))
    }
    #[inline(always)]
    fn write<S: Simd>(simd: S, from: &[f32], to: &mut [u8], stride: usize, offset: usize) {
        let groups = from.len() * stride / LANES;
        let (codes, scales) = to.split_at_mut(groups * C::GROUP_BYTES);
        let first = C::first_scale(simd, from);
        let finite = from.iter().all(|x| x.is_finite());
        let inverse = if first > 0.0 && finite { 1.0 / first } else { 0.0 };
        let mut stands_for = [0.0; super::MAX_HEAD_LEN];
        for (i, (x, level)) in from.iter().zip(&mut stands_for).enumerate() {
            let at = i * stride + offset;
            let x = if finite { x * inverse } else { 0.0 };
            let code;
            (code, *level) = C::encode(x);
            let group = &mut codes[at / LANES * C::GROUP_BYTES..][..C::GROUP_BYTES];
            C::put(group, at % LANES, code);
        }
        let scale = match (finite, C::FITTED) {
            (false, _) => f32::NAN,
            (true, false) => first,
            (true, true) => {
                let levels = &stands_for[..from.len()];
                dot(simd, from, levels) / dot(simd, levels, levels)
            }
        };
        let half = f16::from_f32_const(scale).to_bits().to_le_bytes();
        scales[2 * offset..2 * offset + 2].copy_from_slice(&half);
    }
}
