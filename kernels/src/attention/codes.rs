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
    /// The codes of elements that were divided by the first scale, and what they stand for.
    fn encode<S: Simd>(simd: S, x: S::F) -> (S::I, S::F);
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

/// A head whose scale is not above this is all zeros.
const LEAST: f32 = 1e-30;

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

/// The levels next to the elements among the first `N`: as many as there are midpoints below.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "codes are below 16")]
fn nearest<S: Simd, const N: usize>(simd: S, levels: &F32s, x: S::F) -> (S::I, S::F) {
    let (mut code, mut level) = (simd.splat(0.0), simd.splat(levels[0]));
    for (i, pair) in levels[..N].windows(2).enumerate() {
        let middle = simd.splat((pair[0] + pair[1]) * 0.5);
        code = simd.select_gt(x, middle, simd.splat((i + 1) as f32), code);
        level = simd.select_gt(x, middle, simd.splat(pair[1]), level);
    }
    (simd.round_to_int(code), level)
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
    fn encode<S: Simd>(simd: S, x: S::F) -> (S::I, S::F) {
        let held = simd.max(simd.splat(-127.0), simd.min(simd.splat(127.0), x));
        let code = simd.round_to_int(held);
        (code, simd.int_to_float(code))
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
    fn encode<S: Simd>(simd: S, x: S::F) -> (S::I, S::F) {
        nearest::<S, 16>(simd, &LEVELS_16, x)
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
    fn encode<S: Simd>(simd: S, x: S::F) -> (S::I, S::F) {
        nearest::<S, 8>(simd, &LEVELS_8, x)
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
    fn value_scales<S: Simd>(simd: S, rows: &[u8], value_len: usize) -> Option<S::F> {
        let row = Self::value_row_bytes(value_len);
        let bits = |i| u16::from_le_bytes([rows[(i + 1) * row - 2], rows[(i + 1) * row - 1]]);
        Some(simd.load_f16(&std::array::from_fn(bits)))
    }
    #[inline(always)]
    fn write<S: Simd>(simd: S, from: &[f32], to: &mut [u8], stride: usize, offset: usize) {
        let groups = from.len() * stride / LANES;
        let (codes, scales) = to.split_at_mut(groups * C::GROUP_BYTES);
        let first = C::first_scale(simd, from);
        let finite = from.iter().all(|x| x.is_finite());
        let usual = finite && first > LEAST;
        let inverse = if usual { 1.0 / first } else { 0.0 };
        let mut stands_for = [0.0; super::MAX_HEAD_LEN];
        let (levels, _) = stands_for.as_chunks_mut::<LANES>();
        let mut part = [0; LANES];
        for (i, (x, levels)) in from.chunks(LANES).zip(levels).enumerate() {
            let x = if usual { padded(x).map(|x| x * inverse) } else { [0.0; LANES] };
            let (code, level) = C::encode(simd, simd.load(&x));
            simd.store(level, levels);
            simd.store_int(code, &mut part);
            for (lane, code) in part.iter().enumerate() {
                let at = (LANES * i + lane) * stride + offset;
                let group = &mut codes[at / LANES * C::GROUP_BYTES..][..C::GROUP_BYTES];
                C::put(group, at % LANES, code.to_le_bytes()[0]);
            }
        }
        let scale = match (finite, C::FITTED) {
            (false, _) => f32::NAN,
            _ if !usual => 0.0,
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
