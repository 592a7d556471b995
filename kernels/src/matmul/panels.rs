//! Products of panels: 16 rows at a time, a vector lane owning a row, so that no sum crosses
//! lanes (SPEC N4, L1).
//!
//! For one activation row ("column") the plain loop is, block by block: unpack four weights of
//! each row, multiply them with the column's four quants in one instruction, add. The departures
//! from it:
//! 1. Up to eight columns go together ([`Simd::COLUMNS`]), so that an unpacked vector serves all;
//!    they lie interleaved ([`QuantRows`]), so that one address with constant distances reaches
//!    all.
//! 2. A few panels stay in the cache while all groups of columns pass over them; with many
//!    columns it is the group of columns that stays and larger runs of panels that pass.
//! 3. Without 32-bit sums (`Simd::WIDE`), pair sums stay in 16 bits for as many additions as
//!    cannot overflow, and for many columns weights are unpacked once into memory, because there
//!    are not registers enough for more than four columns.

use super::lanes::{add_weights, additions, float, half};
use super::{MANY, Piece};
use crate::act::{Group, QuantRows, b32, b256};
use crate::format::{self, Format32, Format256};
use crate::panel::PANEL_ROWS;
use crate::simd::{F32s, LANES, Simd, prefetch_past, prefetch_second};

/// Weight bytes that pass over a group of columns before the next group comes, for few columns
/// and for many.
const FEW_BYTES: usize = 24 << 10;
const MANY_BYTES: usize = 192 << 10;
/// How far ahead of their use weights are asked for, in bytes.
const AHEAD: usize = 4608;
/// As [`AHEAD`], of weights that are read past the caches where others are not asked for.
const AHEAD_PAST: usize = 2048;

/// The binary logarithm of what the unpacked bytes exceed the weights by, as far as sums count
/// it; 0 if that is nothing.
const fn excess(signed: bool, offset: i32, wide: bool) -> i32 {
    match (signed, offset) {
        (true, _) => {
            if wide {
                7
            } else {
                0
            }
        }
        (false, 0) => 0,
        (false, _) => offset.trailing_zeros().cast_signed(),
    }
}

/// What multiplies the blocks of a panel.
trait Multiply {
    type Panel: bytemuck::Pod;

    /// Unpacks the weights of a panel's blocks, in their order, into vectors of four a row.
    fn unpack<S: Simd>(simd: S, panel: &[Self::Panel], out: &mut [[u8; 64]]);

    /// The products with a group of `C` columns, whose tiles are `x`. With `UNPACKED` the weights
    /// are taken from `weights`; with `PAST` they are asked for past the caches.
    fn multiply<S: Simd, const C: usize, const UNPACKED: bool, const PAST: bool>(
        simd: S,
        weights: Weights<'_, Self::Panel>,
        x: &[i32],
    ) -> [S::F; C];
}

/// A tile of a group of `C` columns.
type Tile<const C: usize, const WORDS: usize> = [[i32; C]; WORDS];

/// The tiles of a group.
#[inline(always)]
fn tiles<const C: usize, const WORDS: usize>(x: &[i32]) -> &[Tile<C, WORDS>] {
    x.as_chunks::<C>().0.as_chunks::<WORDS>().0
}

/// A panel's blocks.
#[derive(Clone, Copy)]
struct Weights<'a, P> {
    panel: &'a [P],
    /// The weights as [`Multiply::unpack`] gives them, or nothing.
    unpacked: &'a [[u8; 64]],
    /// Unless this is 0, the memory that lies so many bytes behind what is read is asked for.
    ahead: usize,
}

impl<P> Weights<'_, P> {
    /// Asks for memory, `block` being what is about to be read.
    #[inline(always)]
    fn ask<const PAST: bool>(&self, block: &P) {
        if self.ahead > 0 {
            if PAST { prefetch_past(block, self.ahead) } else { prefetch_second(block, self.ahead) }
        }
    }
}

/// Products of a piece that is `bytes` of panels; `scratch` has the size of [`scratch_len`].
#[inline(always)]
fn panels<M: Multiply, S: Simd>(
    simd: S,
    piece: &Piece<'_, '_>,
    bytes: &[u8],
    x: &QuantRows,
    scratch: &mut [[u8; 64]],
) {
    let panel_bytes = bytes.len() / piece.rows.div_ceil(PANEL_ROWS);
    let n = piece.input.rows();
    let words = piece.input.len / 4;
    let unpacks = !S::WIDE && n >= MANY;
    let run = match n {
        _ if unpacks => scratch.len() / words,
        0..MANY => FEW_BYTES / panel_bytes,
        _ => MANY_BYTES / panel_bytes,
    };
    let run = run.max(1);
    for (r, bytes) in bytes.chunks(run * panel_bytes).enumerate() {
        let row = r * run * PANEL_ROWS;
        if unpacks {
            let panels = bytes.chunks_exact(panel_bytes).zip(scratch.chunks_exact_mut(words));
            for (panel, out) in panels {
                M::unpack(simd, format::blocks(panel), out);
            }
            let to = Target { piece, panel_bytes, bytes, unpacked: scratch, row };
            columns_of::<M, S, true>(simd, x, to);
        } else {
            let to = Target { piece, panel_bytes, bytes, unpacked: &[], row };
            columns_of::<M, S, false>(simd, x, to);
        }
    }
}

/// All columns, a group at a time.
#[inline(always)]
fn columns_of<M: Multiply, S: Simd, const UNPACKED: bool>(
    simd: S,
    x: &QuantRows,
    to: Target<'_, '_>,
) {
    let past = to.piece.job.weights.is_read_past(to.piece.input.rows());
    for group in x.groups() {
        match group.width {
            1 if past => columns::<M, S, 1, false, true>(simd, &group, to),
            2 if past => columns::<M, S, 2, false, true>(simd, &group, to),
            1 => columns::<M, S, 1, UNPACKED, false>(simd, &group, to),
            2 => columns::<M, S, 2, UNPACKED, false>(simd, &group, to),
            3 if S::COLUMNS >= 3 => columns::<M, S, 3, UNPACKED, false>(simd, &group, to),
            4 if S::COLUMNS >= 4 => columns::<M, S, 4, UNPACKED, false>(simd, &group, to),
            5 if S::COLUMNS >= 5 => columns::<M, S, 5, UNPACKED, false>(simd, &group, to),
            6 if S::COLUMNS >= 6 => columns::<M, S, 6, UNPACKED, false>(simd, &group, to),
            7 if S::COLUMNS >= 7 => columns::<M, S, 7, UNPACKED, false>(simd, &group, to),
            8 if S::COLUMNS >= 8 => columns::<M, S, 8, UNPACKED, false>(simd, &group, to),
            width => unreachable!("a group of {width} columns"),
        }
    }
}

/// Vectors of memory that a pass of `n` columns of `len` elements needs for unpacked weights.
pub(super) fn scratch_len<S: Simd>(_simd: S, n: usize, len: usize) -> usize {
    if S::WIDE || n < MANY { 0 } else { (len / 4).max(MANY_BYTES / 64 / (len / 4) * (len / 4)) }
}

/// Some panels, and which rows of the result they give.
#[derive(Clone, Copy)]
struct Target<'a, 'b> {
    piece: &'b Piece<'a, 'b>,
    panel_bytes: usize,
    bytes: &'b [u8],
    unpacked: &'b [[u8; 64]],
    /// The first row within the piece.
    row: usize,
}

/// A run of panels against a group of `C` columns.
#[inline(always)]
fn columns<M: Multiply, S: Simd, const C: usize, const UNPACKED: bool, const PAST: bool>(
    simd: S,
    group: &Group<'_>,
    to: Target<'_, '_>,
) {
    // One or two columns leave most processors' own prefetching time to keep up, and the columns
    // after the first ones find the panel in the cache.
    let ahead = match group.first {
        0 if C >= 3 => AHEAD,
        0 if PAST => to.piece.isa.ahead().max(AHEAD_PAST),
        0 => to.piece.isa.ahead(),
        _ => 0,
    };
    let words = to.piece.input.len / 4;
    let mut lanes: F32s = [0.0; LANES];
    for (p, panel) in to.bytes.chunks_exact(to.panel_bytes).enumerate() {
        let unpacked = if UNPACKED { &to.unpacked[p * words..(p + 1) * words] } else { &[] };
        let weights = Weights { panel: format::blocks(panel), unpacked, ahead };
        let sums = M::multiply::<S, C, UNPACKED, PAST>(simd, weights, group.tiles);
        let row = to.row + p * PANEL_ROWS;
        let rows = PANEL_ROWS.min(to.piece.rows - row);
        for (c, sum) in sums.into_iter().enumerate() {
            let out = to.piece.out(group.first + c, row, rows);
            if let Some(whole) = out.first_chunk_mut() {
                simd.store(sum, whole);
            } else {
                simd.store(sum, &mut lanes);
                out.copy_from_slice(&lanes[..rows]);
            }
        }
    }
}

/// Formats with blocks of 32.
struct Blocks32<F>(std::marker::PhantomData<F>);

#[inline(always)]
pub(super) fn panels32<F: Format32, S: Simd>(
    simd: S,
    piece: &Piece<'_, '_>,
    bytes: &[u8],
    x: &QuantRows,
    scratch: &mut [[u8; 64]],
) {
    panels::<Blocks32<F>, S>(simd, piece, bytes, x, scratch);
}

impl<F: Format32> Multiply for Blocks32<F> {
    type Panel = F::Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, panel: &[F::Panel], out: &mut [[u8; 64]]) {
        let (blocks, _) = out.as_chunks_mut::<8>();
        for (panel, out) in panel.iter().zip(blocks) {
            for (k, out) in out.iter_mut().enumerate() {
                simd.store_bytes(F::quad(simd, panel, k), out);
            }
        }
    }

    #[inline(always)]
    fn multiply<S: Simd, const C: usize, const UNPACKED: bool, const PAST: bool>(
        simd: S,
        weights: Weights<'_, F::Panel>,
        x: &[i32],
    ) -> [S::F; C] {
        let Weights { panel, unpacked, .. } = weights;
        let mut acc = [simd.splat(0.0); C];
        for (t, (x, panels)) in tiles(x).iter().zip(panel.chunks(8)).enumerate() {
            for (j, panel) in panels.iter().enumerate() {
                weights.ask::<PAST>(panel);
                let block = 8 * t + j;
                let ready =
                    if UNPACKED { &unpacked.as_chunks::<8>().0[block] } else { &[[0; 64]; 8] };
                block32::<F, S, C, UNPACKED>(simd, panel, ready, x, j % 8, &mut acc);
            }
        }
        acc
    }
}

/// Adds the products of 16 rows' blocks with block `j` of a tile.
#[inline(always)]
fn block32<F: Format32, S: Simd, const C: usize, const UNPACKED: bool>(
    simd: S,
    panel: &F::Panel,
    ready: &[[u8; 64]; 8],
    x: &Tile<C, { b32::WORDS }>,
    j: usize,
    acc: &mut [S::F; C],
) {
    const { assert!(8 % additions(F::SIGNED, F::MAX) == 0) };
    let offset = const { excess(F::SIGNED, F::OFFSET, S::WIDE) };
    let d = half(simd, F::scales(panel));
    let mut sums = [simd.start(0); C];
    let mut totals = [simd.splat_int(0); C];
    if offset != 0 {
        for c in 0..C {
            let start = times_power(x[b32::STARTS + j][c], offset - 4);
            sums[c] = simd.start(start);
            totals[c] = if S::WIDE { totals[c] } else { simd.splat_int(start) };
        }
    }
    for k in 0..8 {
        let w = if UNPACKED { simd.load_bytes(&ready[k]) } else { F::quad(simd, panel, k) };
        for c in 0..C {
            sums[c] = add_weights(simd, F::SIGNED, sums[c], w, x[8 * j + k][c]);
        }
        if !S::WIDE && (k + 1) % additions(F::SIGNED, F::MAX) == 0 {
            for c in 0..C {
                totals[c] = simd.add_int(totals[c], simd.sum(sums[c]));
                sums[c] = simd.start(0);
            }
        }
    }
    for c in 0..C {
        let total = if S::WIDE { simd.sum(sums[c]) } else { totals[c] };
        let mut t = simd.mul(d, simd.int_to_float(total));
        if F::HAS_MIN {
            let sum = float(simd, x[b32::FLOATS + j][c]);
            t = simd.fma(half(simd, F::mins(panel)), sum, t);
        }
        acc[c] = simd.fma(float(simd, x[b32::SCALES + j][c]), t, acc[c]);
    }
}

/// Formats with super-blocks.
struct Blocks256<F>(std::marker::PhantomData<F>);

#[inline(always)]
pub(super) fn panels256<F: Format256, S: Simd>(
    simd: S,
    piece: &Piece<'_, '_>,
    bytes: &[u8],
    x: &QuantRows,
    scratch: &mut [[u8; 64]],
) {
    panels::<Blocks256<F>, S>(simd, piece, bytes, x, scratch);
}

impl<F: Format256> Multiply for Blocks256<F> {
    type Panel = F::Panel;

    #[inline(always)]
    fn unpack<S: Simd>(simd: S, panel: &[F::Panel], out: &mut [[u8; 64]]) {
        let (halves, _) = out.as_chunks_mut::<32>();
        for (panel, halves) in panel.iter().zip(halves.as_chunks_mut::<2>().0) {
            for (half, out) in halves.iter_mut().enumerate() {
                for k in 0..8 {
                    simd.store_bytes(F::quad::<S, 0>(simd, panel, half, k), &mut out[k]);
                    simd.store_bytes(F::quad::<S, 1>(simd, panel, half, k), &mut out[8 + k]);
                    simd.store_bytes(F::quad::<S, 2>(simd, panel, half, k), &mut out[16 + k]);
                    simd.store_bytes(F::quad::<S, 3>(simd, panel, half, k), &mut out[24 + k]);
                }
            }
        }
    }

    #[inline(always)]
    fn multiply<S: Simd, const C: usize, const UNPACKED: bool, const PAST: bool>(
        simd: S,
        weights: Weights<'_, F::Panel>,
        x: &[i32],
    ) -> [S::F; C] {
        let Weights { panel, unpacked, .. } = weights;
        let mut acc = [simd.splat(0.0); C];
        for (b, (x, panel)) in tiles(x).iter().zip(panel).enumerate() {
            weights.ask::<PAST>(panel);
            let scales = F::scales(panel);
            let mut isum = [simd.splat_int(0); C];
            let ready = if UNPACKED { &unpacked.as_chunks::<64>().0[b] } else { &[[0; 64]; 64] };
            for half in 0..2 {
                let at = Half { panel, scales: &scales.scales, half, ready };
                group_sums::<F, S, C, UNPACKED, 0>(simd, at, x, &mut isum);
                group_sums::<F, S, C, UNPACKED, 1>(simd, at, x, &mut isum);
                group_sums::<F, S, C, UNPACKED, 2>(simd, at, x, &mut isum);
                group_sums::<F, S, C, UNPACKED, 3>(simd, at, x, &mut isum);
            }
            let offset = const { excess(F::SIGNED, F::OFFSET, S::WIDE) };
            let corrects = offset != 0 && !S::WIDE;
            let mut msum = [simd.splat_int(0); C];
            if F::HAS_MIN || corrects {
                for g in 0..if F::PAIRED { 4 } else { 8 } {
                    let pair = simd.pair(&scales.mins[2 * g], &scales.mins[2 * g + 1]);
                    let sums = if F::PAIRED { &x[b256::PAIRS + g] } else { &x[b256::HALVES + g] };
                    for c in 0..C {
                        msum[c] = simd.add_pairs(msum[c], pair, sums[c]);
                    }
                }
            }
            let [d, dmin] = F::factors(panel);
            let (d, dmin) = (half(simd, d), half(simd, dmin));
            for c in 0..C {
                let mut total = isum[c];
                if corrects {
                    total = simd.sub_int(total, simd.shift_left(msum[c], offset));
                }
                let mut t = simd.mul(d, simd.int_to_float(total));
                if F::HAS_MIN {
                    let minus = simd.sub(simd.splat(-0.0), dmin);
                    t = simd.fma(minus, simd.int_to_float(msum[c]), t);
                }
                acc[c] = simd.fma(float(simd, x[b256::SCALE][c]), t, acc[c]);
            }
        }
        acc
    }
}

/// Half a super-block of 16 rows.
#[derive(Clone, Copy)]
struct Half<'a, P> {
    panel: &'a P,
    scales: &'a [[i8; LANES]; 16],
    half: usize,
    /// The super-block's unpacked weights, where there are such.
    ready: &'a [[u8; 64]; 64],
}

/// Adds the scaled sums of 32 elements: part `PART` of a half of a super-block.
#[inline(always)]
#[expect(clippy::cast_sign_loss, reason = "a shift is 0, 1 or 2")]
fn group_sums<F: Format256, S: Simd, const C: usize, const UNPACKED: bool, const PART: usize>(
    simd: S,
    Half { panel, scales, half, ready }: Half<'_, F::Panel>,
    x: &Tile<C, { b256::WORDS }>,
    isum: &mut [S::I; C],
) {
    let group = 4 * half + PART;
    let offset = const { excess(F::SIGNED, F::OFFSET, S::WIDE) };
    // What is to be subtracted is in the sums from the start, where they can hold it.
    let starts = S::WIDE && offset != 0;
    // Four words share a scale, or eight; the starts are those of four.
    let span = if F::PAIRED && !starts { 8 } else { 4 };
    let adds = if S::WIDE { span } else { additions(F::SIGNED, F::MAX).min(span) };
    let mut table = [simd.scale(&scales[0]); 4];
    let mut sums = [simd.start(0); C];
    for k in 0..8 {
        if k % span == 0 {
            // Scales times each factor that a column may have for the group; the last repeats.
            let once = simd.scale(&scales[if F::PAIRED { group } else { 2 * group + k / 4 }]);
            let twice = simd.double(once);
            table = [once, twice, simd.double(twice), once];
            if starts {
                for c in 0..C {
                    let start = x[b256::STARTS + 2 * group + k / 4][c];
                    sums[c] = simd.start(times_power(start, offset - 5));
                }
            }
        }
        let w = if UNPACKED {
            simd.load_bytes(&ready[8 * group + k])
        } else {
            F::quad::<S, PART>(simd, panel, half, k)
        };
        for c in 0..C {
            sums[c] = add_weights(simd, F::SIGNED, sums[c], w, x[8 * group + k][c]);
        }
        if (k + 1) % adds == 0 {
            for c in 0..C {
                let scale = table[x[b256::SHIFTS + group][c] as usize & 3];
                isum[c] = simd.add_int(isum[c], simd.sum_scaled(sums[c], scale));
                sums[c] = simd.start(0);
            }
        }
    }
}

/// x · 2^power, where the result is whole.
#[inline(always)]
const fn times_power(x: i32, power: i32) -> i32 {
    if power < 0 { x >> -power } else { x << power }
}
