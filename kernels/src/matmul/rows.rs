//! Products of one weight row at a time, for few activation rows.

use super::Piece;
use crate::act::{QuantRows, b32, b256};
use crate::dequantize::dequantize;
use crate::format::{self, Format32, Format256, Super, f16_pair};
use crate::isa::Op;
use crate::simd::{LANES, Simd, padded, prefetch};

/// How far ahead of their use weights are asked for, in bytes: the processor's own prefetching
/// stops at the end of each page.
const AHEAD: usize = 2048;
/// Formats with blocks of 32.
#[inline(always)]
pub(super) fn rows32<F: Format32, S: Simd>(simd: S, piece: &Piece<'_, '_>, x: &QuantRows) {
    let weights = piece.weights();
    let row_bytes = weights.bytes.len() / weights.rows;
    let (x, _) = x.single().as_chunks();
    for (row, bytes) in weights.bytes.chunks_exact(row_bytes).enumerate() {
        piece.out(0, row, 1)[0] = row32::<F, S, AHEAD>(simd, format::blocks(bytes), x);
    }
}

/// One weight row: eight blocks at a time up to the chain, which runs block by block. A last part
/// of fewer than eight goes one block at a time. Unless it is 0, the memory that lies `AHEAD` bytes
/// behind what is read is asked for.
#[inline(always)]
pub(super) fn row32<F: Format32, S: Simd, const AHEAD: usize>(
    simd: S,
    blocks: &[F::Block],
    x: &[[i32; b32::WORDS]],
) -> f32 {
    let mut acc = 0.0;
    let mut w = [0; 256];
    let (groups, rest) = blocks.as_chunks::<8>();
    for (blocks, x) in groups.iter().zip(x) {
        acc = eight32::<F, S, AHEAD>(simd, blocks, x, &mut w, acc);
    }
    if let Some(x) = x.get(groups.len()) {
        for (j, block) in rest.iter().enumerate() {
            acc = one32::<F, S>(simd, block, j, x, acc);
        }
    }
    acc
}

/// The quants of a tile of one row.
#[inline(always)]
fn quants<const WORDS: usize>(x: &[i32; WORDS]) -> &[i8; 256] {
    bytemuck::cast_ref(x.first_chunk::<64>().expect("a tile begins with its quants"))
}

/// A float whose bits are a word.
#[inline(always)]
fn float(word: i32) -> f32 {
    f32::from_bits(word.cast_unsigned())
}

/// Eight blocks; `w` is memory for their quants.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "N4 rounds integer sums to nearest even")]
fn eight32<F: Format32, S: Simd, const AHEAD: usize>(
    simd: S,
    blocks: &[F::Block; 8],
    x: &[i32; b32::WORDS],
    w: &mut [u8; 256],
    mut acc: f32,
) -> f32 {
    if AHEAD > 0 {
        prefetch(blocks, AHEAD);
    }
    let (mut d, mut m) = ([0; 8], [0; 8]);
    let (slots, _) = w.as_chunks_mut::<32>();
    for j in 0..8 {
        [d[j], m[j]] = F::unpack(simd, &blocks[j], &mut slots[j]);
    }
    let d = simd.f16x8(&d);
    let m = if F::HAS_MIN { simd.f16x8(&m) } else { [0.0; 8] };
    let q = quants(x);
    let dots = if F::SIGNED { simd.dot32x8_i8(w, q) } else { simd.dot32x8_u8(w, q) };
    let mut t = [0.0; 8];
    for j in 0..8 {
        t[j] = d[j] * (dots[j] + F::OFFSET * (x[b32::STARTS + j] >> 4)) as f32;
        if F::HAS_MIN {
            t[j] = m[j].mul_add(float(x[b32::FLOATS + j]), t[j]);
        }
    }
    for j in 0..8 {
        acc = float(x[b32::SCALES + j]).mul_add(t[j], acc);
    }
    acc
}

/// One block.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "N4 rounds integer sums to nearest even")]
fn one32<F: Format32, S: Simd>(
    simd: S,
    block: &F::Block,
    index: usize,
    x: &[i32; b32::WORDS],
    acc: f32,
) -> f32 {
    let mut w = [0; 32];
    let [d, m] = f16_pair(simd, F::unpack(simd, block, &mut w));
    let q = quants(x)[32 * index..].first_chunk::<32>().expect("one of eight blocks");
    let dot = if F::SIGNED { simd.dot32_i8(&w, q) } else { simd.dot32_u8(&w, q) };
    let mut t = d * (dot + F::OFFSET * (x[b32::STARTS + index] >> 4)) as f32;
    if F::HAS_MIN {
        t = m.mul_add(float(x[b32::FLOATS + index]), t);
    }
    float(x[b32::SCALES + index]).mul_add(t, acc)
}

/// Formats with super-blocks.
#[inline(always)]
pub(super) fn rows256<F: Format256, S: Simd>(simd: S, piece: &Piece<'_, '_>, x: &QuantRows) {
    let weights = piece.weights();
    let row_bytes = weights.bytes.len() / weights.rows;
    let (x, _) = x.single().as_chunks();
    for (row, bytes) in weights.bytes.chunks_exact(row_bytes).enumerate() {
        piece.out(0, row, 1)[0] = row256::<F, S, AHEAD>(simd, format::blocks(bytes), x);
    }
}

/// One weight row, as [`row32`].
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "N4 rounds integer sums to nearest even")]
pub(super) fn row256<F: Format256, S: Simd, const AHEAD: usize>(
    simd: S,
    blocks: &[F::Block],
    x: &[[i32; b256::WORDS]],
) -> f32 {
    let mut acc = 0.0;
    let mut unpacked = Super::ZERO;
    for (block, x) in blocks.iter().zip(x) {
        if AHEAD > 0 {
            prefetch(block, AHEAD);
        }
        F::unpack(simd, block, &mut unpacked);
        let Super { w, scales, mins, .. } = &mut unpacked;
        let shifts = &x[b256::SHIFTS..b256::HALVES];
        for (pair, shift) in scales.as_chunks_mut::<2>().0.iter_mut().zip(shifts) {
            pair[0] <<= shift;
            pair[1] <<= shift;
        }
        let q = quants(x);
        let products = match (F::SIGNED, F::PAIRED) {
            (false, false) => simd.dot256_u8::<false>(w, q, scales),
            (false, true) => simd.dot256_u8::<true>(w, q, scales),
            (true, false) => simd.dot256_i8::<false>(w, q, scales),
            (true, true) => simd.dot256_i8::<true>(w, q, scales),
        };
        let mut isum = simd.reduce_int(products);
        let halves: &[i16] = bytemuck::cast_slice(&x[b256::HALVES..b256::PAIRS]);
        let halves = halves.first_chunk::<16>().expect("a sum for each 16");
        let uses_mins = F::HAS_MIN || F::OFFSET != 0;
        let msum = if uses_mins { simd.dot16(mins, halves) } else { 0 };
        if !F::HAS_MIN {
            isum -= msum;
        }
        let [d, dmin] = f16_pair(simd, unpacked.d);
        let mut t = d * isum as f32;
        if F::HAS_MIN {
            t = (-dmin).mul_add(msum as f32, t);
        }
        acc = float(x[b256::SCALE]).mul_add(t, acc);
    }
    acc
}

/// Float weights, and any format in exact mode: each row is turned into floats first.
pub(super) fn floats(piece: &Piece<'_, '_>) {
    let weights = piece.weights();
    let row_bytes = weights.bytes.len() / weights.rows;
    let mut floats = vec![0.0; weights.cols];
    for (row, bytes) in weights.bytes.chunks_exact(row_bytes).enumerate() {
        dequantize(piece.isa, weights.dtype, bytes, &mut floats)
            .expect("a row of a checked matrix has the bytes of its elements");
        piece.isa.run(FloatRow { piece, row, w: &floats });
    }
}

/// One row of floats against every activation row.
struct FloatRow<'a, 'b> {
    piece: &'b Piece<'a, 'b>,
    row: usize,
    w: &'b [f32],
}

impl Op for FloatRow<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let n = self.piece.input.rows();
        let mut first = 0;
        while first < n {
            first += match n - first {
                8.. => self.columns::<S, 8>(simd, first),
                4.. => self.columns::<S, 4>(simd, first),
                _ => self.columns::<S, 1>(simd, first),
            };
        }
    }
}

impl FloatRow<'_, '_> {
    /// The results of activation rows `first..first + C`; returns `C`.
    #[inline(always)]
    fn columns<S: Simd, const C: usize>(&self, simd: S, first: usize) -> usize {
        let Self { piece, row, w } = *self;
        let x = &piece.input.x[first * w.len()..(first + C) * w.len()];
        let mut columns: [&[f32]; C] = [&[]; C];
        for (column, x) in columns.iter_mut().zip(x.chunks_exact(w.len())) {
            *column = x;
        }
        for (c, sum) in dot_floats(simd, w, &columns).into_iter().enumerate() {
            piece.out(first + c, row, 1)[0] = sum;
        }
        C
    }
}

/// Float dot products: lane i sums the products at i, i + 16, … with fma, and the lanes are
/// added by the canonical tree (N3). A last part of fewer than 16 is filled up with zeros.
#[inline(always)]
pub(super) fn dot_floats<S: Simd, const C: usize>(simd: S, w: &[f32], x: &[&[f32]; C]) -> [f32; C] {
    let mut acc = [simd.splat(0.0); C];
    let (chunks, tail) = w.as_chunks::<LANES>();
    let x = x.map(|x| x.as_chunks::<LANES>());
    for (i, w) in chunks.iter().enumerate() {
        let w = simd.load(w);
        for c in 0..C {
            acc[c] = simd.fma(w, simd.load(&x[c].0[i]), acc[c]);
        }
    }
    if !tail.is_empty() {
        let w = simd.load(&padded(tail));
        for c in 0..C {
            acc[c] = simd.fma(w, simd.load(&padded(x[c].1)), acc[c]);
        }
    }
    acc.map(|acc| simd.reduce_add(acc))
}
