//! Products of 16 weight rows at a time, for many activation rows: a lane owns a row.

use super::Piece;
use crate::act::{QuantRow, QuantRows};
use crate::format::{self, Format32, Format256, Super, f16_pair};
use crate::simd::{F32s, LANES, Simd};

/// Activation rows whose sums are kept beside the tile.
const CHUNK: usize = 256;
/// Activation rows that share each load of weights.
const COLUMNS: usize = 4;

/// Sums of a tile, \[column\]\[row\].
type Sums = [F32s; CHUNK];

/// 16 rows of a super-block (or of eight blocks of 32), turned: dword k of all rows together.
struct Tile {
    w: [[u8; 64]; 64],
    /// A scale for each 16 elements, twice for each row.
    scales: [[i16; 32]; 16],
    /// Mins of two neighbouring groups of 16 for each row.
    mins: [[i16; 32]; 8],
    /// Scales: of the super-block in `d[0]`, or of eight blocks.
    d: [F32s; 8],
    /// Likewise m, or −dmin.
    m: [F32s; 8],
    /// The rows before they are turned.
    rows: [[u8; 256]; 16],
}

impl Tile {
    const ZERO: Self = Self {
        w: [[0; 64]; 64],
        scales: [[0; 32]; 16],
        mins: [[0; 32]; 8],
        d: [[0.0; LANES]; 8],
        m: [[0.0; LANES]; 8],
        rows: [[0; 256]; 16],
    };
}

/// `simd.tile_u8` or `tile_i8` for a format whose unsigned quants are at most `max`.
#[inline(always)]
fn products<S: Simd, const C: usize>(
    simd: S,
    (signed, max): (bool, u8),
    w: &[[u8; 64]],
    x: [&[i8]; C],
    sums: [i32; C],
    scale: &[i16; 32],
    acc: &mut [S::I; C],
) {
    // A pair sum is at most 2 · 127 · max; so many of them fit 16 bits.
    match (signed, max) {
        (true, _) => simd.tile_i8(w, x, sums, scale, acc),
        (false, 0..=15) => simd.tile_u8::<C, 8>(w, x, scale, acc),
        (false, 16..=31) => simd.tile_u8::<C, 4>(w, x, scale, acc),
        (false, _) => simd.tile_u8::<C, 2>(w, x, scale, acc),
    }
}

/// Runs `fill` for each tile and group of blocks and `multiply` for each of its columns; both
/// are given the group's number. Rows beyond the last are zeros.
#[inline(always)]
fn for_tiles(
    piece: &Piece<'_, '_>,
    group_bytes: usize,
    mut fill: impl FnMut(&mut Tile, usize, &[&[u8]]),
    mut multiply: impl FnMut(&Tile, usize, usize, &mut [F32s]),
) {
    let weights = piece.weights();
    let row_bytes = weights.bytes.len() / weights.rows;
    let n = piece.input.rows();
    let mut tile = Tile::ZERO;
    let mut sums: Sums = [[0.0; LANES]; CHUNK];
    for (t, bytes) in weights.bytes.chunks(16 * row_bytes).enumerate() {
        let rows = bytes.len() / row_bytes;
        if rows < 16 {
            tile = Tile::ZERO;
        }
        for first in (0..n).step_by(CHUNK) {
            let sums = &mut sums[..CHUNK.min(n - first)];
            sums.fill([0.0; LANES]);
            for group in 0..row_bytes.div_ceil(group_bytes) {
                let mut parts: [&[u8]; 16] = [&[]; 16];
                for (row, part) in bytes.chunks_exact(row_bytes).zip(&mut parts) {
                    let end = ((group + 1) * group_bytes).min(row_bytes);
                    *part = &row[group * group_bytes..end];
                }
                fill(&mut tile, group, &parts[..rows]);
                multiply(&tile, group, first, sums);
            }
            for (column, sums) in sums.iter().enumerate() {
                piece.out(first + column, 16 * t, rows).copy_from_slice(&sums[..rows]);
            }
        }
    }
}

/// Splits columns `first..first + sums.len()` into groups of at most four.
macro_rules! for_columns {
    ($x:expr, $first:expr, $sums:expr, |$rows:ident, $out:ident| $body:expr) => {{
        let (groups, rest) = $sums.as_chunks_mut::<COLUMNS>();
        let mut at = $first;
        for $out in groups {
            // Written out, as calls of a closure are not inlined here.
            let $rows: [QuantRow<'_>; COLUMNS] =
                [$x.row(at), $x.row(at + 1), $x.row(at + 2), $x.row(at + 3)];
            at += COLUMNS;
            $body
        }
        for $out in rest.as_chunks_mut::<1>().0 {
            let $rows: [QuantRow<'_>; 1] = [$x.row(at)];
            at += 1;
            $body
        }
    }};
}

/// Formats with blocks of 32, eight blocks at a time.
#[inline(always)]
pub(super) fn tile32<F: Format32, S: Simd>(simd: S, piece: &Piece<'_, '_>, x: &QuantRows) {
    let block_bytes = size_of::<F::Block>();
    let blocks = piece.weights().cols / 32;
    let fill = |tile: &mut Tile, _: usize, parts: &[&[u8]]| {
        for (r, part) in parts.iter().enumerate() {
            let mut d = [0; 8];
            let mut m = [0; 8];
            let (slots, _) = tile.rows[r].as_chunks_mut::<32>();
            let part: &[F::Block] = format::blocks(part);
            for (j, (block, w)) in part.iter().zip(slots).enumerate() {
                [d[j], m[j]] = F::unpack(simd, block, w);
            }
            let (d, m) = (simd.f16x8(&d), simd.f16x8(&m));
            for j in 0..8 {
                tile.d[j][r] = d[j];
                tile.m[j][r] = m[j];
            }
        }
        simd.interleave(&tile.rows, &mut tile.w);
    };
    let multiply = |tile: &Tile, group: usize, first: usize, sums: &mut [F32s]| {
        let count = (blocks - 8 * group).min(8);
        for_columns!(x, first, sums, |rows, out| {
            columns32::<F, S, _>(simd, tile, group, count, &rows, out);
        });
    };
    for_tiles(piece, 8 * block_bytes, fill, multiply);
}

/// `count` blocks of a tile against `C` activation rows.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "sums of 32 quants are small")]
fn columns32<F: Format32, S: Simd, const C: usize>(
    simd: S,
    tile: &Tile,
    group: usize,
    count: usize,
    x: &[QuantRow<'_>; C],
    out: &mut [F32s; C],
) {
    let mut acc = out.map(|out| simd.load(&out));
    for j in 0..count {
        let block = 8 * group + j;
        let q = x.map(|x| &x.q[32 * block..32 * block + 32]);
        let sums = x.map(|x| x.block_sums[block]);
        let mut isum = [simd.splat_int(0); C];
        let w = &tile.w[8 * j..8 * j + 8];
        products(simd, (F::SIGNED, F::MAX), w, q, sums, &[1; 32], &mut isum);
        let d = simd.load(&tile.d[j]);
        for c in 0..C {
            let mut total = isum[c];
            if F::OFFSET != 0 {
                total = simd.sub_int(total, simd.splat_int(F::OFFSET * sums[c]));
            }
            let mut t = simd.mul(d, simd.int_to_float(total));
            if F::HAS_MIN {
                t = simd.fma(simd.load(&tile.m[j]), simd.splat(sums[c] as f32), t);
            }
            acc[c] = simd.fma(simd.splat(x[c].scales[block]), t, acc[c]);
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        simd.store(acc, out);
    }
}

/// Formats with super-blocks.
#[inline(always)]
pub(super) fn tile256<F: Format256, S: Simd>(simd: S, piece: &Piece<'_, '_>, x: &QuantRows) {
    let mut unpacked = Super::ZERO;
    let fill = |tile: &mut Tile, _: usize, parts: &[&[u8]]| {
        for (r, part) in parts.iter().enumerate() {
            let part: &[F::Block] = format::blocks(part);
            F::unpack(simd, &part[0], &mut unpacked);
            tile.rows[r] = unpacked.w;
            let [d, dmin] = f16_pair(simd, unpacked.d);
            tile.d[0][r] = d;
            tile.m[0][r] = -dmin;
            for g in 0..16 {
                tile.scales[g][2 * r..2 * r + 2].fill(unpacked.scales[g]);
                tile.mins[g / 2][2 * r + g % 2] = unpacked.mins[g];
            }
        }
        simd.interleave(&tile.rows, &mut tile.w);
    };
    let multiply = |tile: &Tile, group: usize, first: usize, sums: &mut [F32s]| {
        for_columns!(x, first, sums, |rows, out| {
            columns256::<F, S, _>(simd, tile, group, &rows, out);
        });
    };
    for_tiles(piece, size_of::<F::Block>(), fill, multiply);
}

/// A tile's super-blocks against `C` activation rows.
#[inline(always)]
fn columns256<F: Format256, S: Simd, const C: usize>(
    simd: S,
    tile: &Tile,
    group: usize,
    x: &[QuantRow<'_>; C],
    out: &mut [F32s; C],
) {
    let mut isum = [simd.splat_int(0); C];
    let step = if F::PAIRED { 2 } else { 1 };
    for g in (0..16).step_by(step) {
        let at = 256 * group + 16 * g;
        let q = x.map(|x| &x.q[at..at + 16 * step]);
        let sums = x.map(|x| x.sums[at / 16..at / 16 + step].iter().copied().map(i32::from).sum());
        let w = &tile.w[4 * g..4 * (g + step)];
        products(simd, (F::SIGNED, F::MAX), w, q, sums, &tile.scales[g], &mut isum);
    }
    let mut msum = [simd.splat_int(0); C];
    if F::HAS_MIN || F::OFFSET != 0 {
        for (p, mins) in tile.mins.iter().enumerate() {
            for c in 0..C {
                let at = 16 * group + 2 * p;
                let pair = [x[c].sums[at], x[c].sums[at + 1]];
                msum[c] = simd.tile_mins(mins, pair, msum[c]);
            }
        }
    }
    for c in 0..C {
        let total = if F::HAS_MIN { isum[c] } else { simd.sub_int(isum[c], msum[c]) };
        let mut t = simd.mul(simd.load(&tile.d[0]), simd.int_to_float(total));
        if F::HAS_MIN {
            t = simd.fma(simd.load(&tile.m[0]), simd.int_to_float(msum[c]), t);
        }
        let acc = simd.fma(simd.splat(x[c].scales[group]), t, simd.load(&out[c]));
        simd.store(acc, &mut out[c]);
    }
}
