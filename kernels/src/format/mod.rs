//! The weight formats. Each is one file: its bit diagram, its block type and how a block unpacks
//! into plain bytes, scales and mins. Everything else (products of one row, tiles of 16 rows,
//! dequantisation) is written once, in [`crate::matmul`] and here, over the two traits below.

mod float;
mod iq4_nl;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
#[cfg(test)]
mod tests;

pub(crate) use float::{Bf16, F16, F32};

use crate::simd::{LANES, Simd};
use aios_contract::DType;
use bytemuck::{Pod, Zeroable};

/// A computation that is written once for each of the three kinds of format; [`visit`] picks the
/// format of a dtype.
pub(crate) trait Visitor {
    /// What it returns.
    type Output;

    /// For a format of plain floats.
    fn float<F: Float>(self) -> Self::Output;
    /// For a format with blocks of 32 elements.
    fn blocks32<F: Format32>(self) -> Self::Output;
    /// For a format with super-blocks of 256 elements.
    fn blocks256<F: Format256>(self) -> Self::Output;
}

/// Calls the method of `visitor` for the format of `dtype`: the only list of formats.
#[inline]
pub(crate) fn visit<V: Visitor>(dtype: DType, visitor: V) -> V::Output {
    match dtype {
        DType::F32 => float::<V, float::F32>(visitor),
        DType::F16 => float::<V, float::F16>(visitor),
        DType::BF16 => float::<V, float::Bf16>(visitor),
        DType::Q4_0 => blocks32::<V, q4_0::Q4_0>(visitor),
        DType::Q4_1 => blocks32::<V, q4_1::Q4_1>(visitor),
        DType::Q5_0 => blocks32::<V, q5_0::Q5_0>(visitor),
        DType::Q5_1 => blocks32::<V, q5_1::Q5_1>(visitor),
        DType::Q8_0 => blocks32::<V, q8_0::Q8_0>(visitor),
        DType::Q2_K => blocks256::<V, q2_k::Q2K>(visitor),
        DType::Q3_K => blocks256::<V, q3_k::Q3K>(visitor),
        DType::Q4_K => blocks256::<V, q4_k::Q4K>(visitor),
        DType::Q5_K => blocks256::<V, q5_k::Q5K>(visitor),
        DType::Q6_K => blocks256::<V, q6_k::Q6K>(visitor),
        DType::IQ4_NL => blocks32::<V, iq4_nl::Iq4Nl>(visitor),
        DType::IQ4_XS => blocks256::<V, iq4_xs::Iq4Xs>(visitor),
    }
}

// Each of these checks at compile time what a format says of itself before it hands it over.

#[inline]
fn float<V: Visitor, F: Float>(visitor: V) -> V::Output {
    const { assert!(F::DTYPE.block_len() == 1) };
    const { assert!(size_of::<F::Element>() == F::DTYPE.block_bytes()) };
    visitor.float::<F>()
}

#[inline]
fn blocks32<V: Visitor, F: Format32>(visitor: V) -> V::Output {
    const { assert!(F::DTYPE.block_len() == 32) };
    const { assert!(size_of::<F::Block>() == F::DTYPE.block_bytes()) };
    const { assert!(size_of::<F::Panel>() == 16 * F::DTYPE.block_bytes()) };
    const { assert!(F::MAX <= 127 && !(F::HAS_MIN && (F::SIGNED || F::OFFSET != 0))) };
    visitor.blocks32::<F>()
}

#[inline]
fn blocks256<V: Visitor, F: Format256>(visitor: V) -> V::Output {
    const { assert!(F::DTYPE.block_len() == 256) };
    const { assert!(size_of::<F::Block>() == F::DTYPE.block_bytes()) };
    const { assert!(size_of::<F::Panel>() == 16 * F::DTYPE.block_bytes()) };
    const { assert!(F::MAX <= 127 && !(F::HAS_MIN && (F::SIGNED || F::OFFSET != 0))) };
    visitor.blocks256::<F>()
}

/// The bytes of whole blocks, as they stand in the file at any alignment, as blocks.
///
/// # Panics
/// If `bytes` ends within a block; callers have checked its length.
#[inline(always)]
pub(crate) fn blocks<B: Pod>(bytes: &[u8]) -> &[B] {
    const { assert!(align_of::<B>() == 1) };
    bytemuck::cast_slice(bytes)
}

/// A format of plain floats, whose elements are converted exactly to f32.
pub(crate) trait Float: 'static {
    /// Its dtype, whose block size the element type must have.
    const DTYPE: DType;
    /// An element as it stands in the file.
    type Element: Pod;

    /// Lane i is `x[i]`.
    fn load<S: Simd>(simd: S, x: &[Self::Element; LANES]) -> S::F;
}

/// A format with blocks of 32 elements: element = d · (q − `OFFSET`) \[+ m\].
pub(crate) trait Format32: 'static {
    /// Its dtype, whose block size the block type must have.
    const DTYPE: DType;
    /// Whether the unpacked bytes are i8 in two's complement; else they are unsigned.
    const SIGNED: bool = false;
    /// The largest unpacked byte of an unsigned format.
    const MAX: u8 = 127;
    /// Subtracted from every unpacked byte.
    const OFFSET: i32 = 0;
    /// Whether a block has a minimum m.
    const HAS_MIN: bool = false;
    /// A block as it stands in the file.
    type Block: Pod;
    /// The blocks of 16 rows in a panel, as many bytes.
    type Panel: Pod;

    /// Unpacks the quants to `out`; returns the half-precision bits of d and m (0 if none).
    fn unpack<S: Simd>(simd: S, block: &Self::Block, out: &mut [u8; 32]) -> [u16; 2];

    /// Puts the blocks of 16 rows together.
    fn pack(rows: &[Self::Block; 16]) -> Self::Panel;
    /// Elements 4k to 4k + 3 of every row as unsigned bytes, 128 added if `SIGNED`.
    fn quad<S: Simd>(simd: S, panel: &Self::Panel, k: usize) -> S::B;
    /// The half-precision bits of every row's d.
    fn scales(panel: &Self::Panel) -> &[[u8; 2]; 16];
    /// Likewise of m; only with `HAS_MIN`.
    fn mins(panel: &Self::Panel) -> &[[u8; 2]; 16] {
        Self::scales(panel)
    }
}

/// A super-block of 256 elements, unpacked.
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(crate) struct Super {
    /// The quants.
    pub w: [u8; 256],
    /// A scale for each 16 elements (equal in pairs if `PAIRED`).
    pub scales: [i16; 16],
    /// With `HAS_MIN` a min for each 16 elements; else scale · `OFFSET`.
    pub mins: [i16; 16],
    /// Half-precision bits of d and, with `HAS_MIN`, dmin.
    pub d: [u16; 2],
}

impl Super {
    /// All zeros.
    pub(crate) const ZERO: Self = Self { w: [0; 256], scales: [0; 16], mins: [0; 16], d: [0; 2] };
}

/// A format with super-blocks of 256 elements: element = d · scale · (q − `OFFSET`), or with
/// `HAS_MIN` d · scale · q − dmin · min.
pub(crate) trait Format256: 'static {
    /// Its dtype, whose block size the block type must have.
    const DTYPE: DType;
    /// Whether the unpacked bytes are i8 in two's complement; else they are unsigned.
    const SIGNED: bool = false;
    /// The largest unpacked byte of an unsigned format.
    const MAX: u8 = 127;
    /// Subtracted from every unpacked byte.
    const OFFSET: i32 = 0;
    /// Whether scales (and mins) hold for 32 elements instead of 16.
    const PAIRED: bool;
    /// Whether there are dmin and mins.
    const HAS_MIN: bool;
    /// A super-block as it stands in the file.
    type Block: Pod;
    /// The super-blocks of 16 rows in a panel, as many bytes.
    type Panel: Pod;

    /// Unpacks a super-block.
    fn unpack<S: Simd>(simd: S, block: &Self::Block, out: &mut Super);

    /// Puts the super-blocks of 16 rows together.
    fn pack(rows: &[Self::Block; 16]) -> Self::Panel;
    /// Elements 128·half + 32·`PART` + 4k and the three after it of every row as unsigned bytes,
    /// 128 added if `SIGNED`. The part is a constant because shifts by one are cheaper.
    fn quad<S: Simd, const PART: usize>(
        simd: S,
        panel: &Self::Panel,
        half: usize,
        k: usize,
    ) -> S::B;
    /// Every row's scales and mins.
    fn scales(panel: &Self::Panel) -> Scales;
    /// The half-precision bits of every row's d and, with `HAS_MIN`, dmin.
    fn factors(panel: &Self::Panel) -> [&[[u8; 2]; 16]; 2];
}

/// Scales and mins of 16 rows in a panel: those of group g are at index g, a group being 32
/// elements if `PAIRED` and 16 otherwise. Without `HAS_MIN` the mins are the scales.
pub(crate) struct Scales {
    pub scales: [[i8; LANES]; 16],
    pub mins: [[i8; LANES]; 16],
}

impl Scales {
    const ZERO: Self = Self { scales: [[0; LANES]; 16], mins: [[0; LANES]; 16] };
}

/// A field of 16 rows' blocks, row after row.
fn each<B, const N: usize>(rows: &[B; 16], field: impl Fn(&B) -> [u8; N]) -> [[u8; N]; 16] {
    std::array::from_fn(|r| field(&rows[r]))
}

/// Byte i of a field of every row, for each i.
fn columns<B, const N: usize>(rows: &[B; 16], field: impl Fn(&B) -> [u8; N]) -> [[u8; 16]; N] {
    let fields = each(rows, field);
    std::array::from_fn(|i| std::array::from_fn(|r| fields[r][i]))
}

/// Bytes 4k to 4k + 3 of a field of every row, for each k.
fn quads<B, const N: usize, const K: usize>(
    rows: &[B; 16],
    field: impl Fn(&B) -> [u8; N],
) -> [[u8; 64]; K] {
    const { assert!(N == 4 * K) };
    let mut out = [[0; 64]; K];
    for (r, row) in rows.iter().enumerate() {
        for (out, quad) in out.iter_mut().zip(field(row).as_chunks::<4>().0) {
            out[4 * r..4 * r + 4].copy_from_slice(quad);
        }
    }
    out
}

/// Elements 4k to 4k + 3 of 16 rows whose low nibbles are elements 0 to 15 and high ones 16 to 31.
#[inline(always)]
fn nibbles<S: Simd>(simd: S, qs: &[[u8; 64]; 4], k: usize) -> S::B {
    simd.bits(simd.load_bytes(&qs[k % 4]), if k < 4 { 0 } else { 4 }, 15)
}

/// 32 bits, of which bit 4k + i moves to bit k of byte i.
fn spread_bits(bits: [u8; 4]) -> [u8; 4] {
    let bits = u32::from_le_bytes(bits);
    std::array::from_fn(|i| (0..8).fold(0, |byte, k| byte | ((bits >> (4 * k + i) & 1) as u8) << k))
}

/// Bit k of every byte as bit 4.
#[inline(always)]
fn fifth_bits<S: Simd>(simd: S, bits: &[[u8; 4]; 16], k: usize) -> S::B {
    simd.bits(simd.load_bytes(bytemuck::cast_ref(bits)), bit_to_4(k), 16)
}

/// The shift to the right that brings bit `bit` to bit 4.
#[inline(always)]
fn bit_to_4(bit: usize) -> i32 {
    [-4, -3, -2, -1, 0, 1, 2, 3][bit]
}

/// Half-precision bits as a float.
#[inline(always)]
pub(crate) fn f16_pair<S: Simd>(simd: S, bits: [u16; 2]) -> [f32; 2] {
    let wide = simd.f16x8(&[bits[0], bits[1], 0, 0, 0, 0, 0, 0]);
    [wide[0], wide[1]]
}

/// An unpacked byte as the number it stands for, without the offset.
#[inline(always)]
pub(crate) fn quant(byte: u8, signed: bool) -> i32 {
    if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
}

/// Converts a row of floats.
#[inline(always)]
pub(crate) fn convert<F: Float, S: Simd>(simd: S, elements: &[F::Element], out: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    for (elements, out) in elements.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let mut padded = [F::Element::zeroed(); LANES];
        padded[..elements.len()].copy_from_slice(elements);
        simd.store(F::load(simd, &padded), &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// Dequantises a row of 32-element blocks: d · (q − offset), then + m, each rounded (N4).
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "quants are small")]
pub(crate) fn dequantize32<F: Format32, S: Simd>(simd: S, blocks: &[F::Block], out: &mut [f32]) {
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(32)) {
        let mut w = [0; 32];
        let [d, m] = f16_pair(simd, F::unpack(simd, block, &mut w));
        for (w, out) in w.iter().zip(out) {
            let x = d * (quant(*w, F::SIGNED) - F::OFFSET) as f32;
            *out = if F::HAS_MIN { x + m } else { x };
        }
    }
}

/// Dequantises a row of super-blocks: (d · scale) · (q − offset), then − dmin · min, each
/// operation rounded (N4).
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "quants are small")]
pub(crate) fn dequantize256<F: Format256, S: Simd>(simd: S, blocks: &[F::Block], out: &mut [f32]) {
    let mut unpacked = Super::ZERO;
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(256)) {
        F::unpack(simd, block, &mut unpacked);
        let [d, dmin] = f16_pair(simd, unpacked.d);
        let groups = unpacked.w.chunks_exact(16).zip(out.chunks_exact_mut(16));
        for (group, (w, out)) in groups.enumerate() {
            let scale = d * f32::from(unpacked.scales[group]);
            let min = dmin * f32::from(unpacked.mins[group]);
            for (w, out) in w.iter().zip(out) {
                let x = scale * (quant(*w, F::SIGNED) - F::OFFSET) as f32;
                *out = if F::HAS_MIN { x - min } else { x };
            }
        }
    }
}
