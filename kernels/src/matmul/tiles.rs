//! Products of panels with many columns by tiles (SPEC L5).
//!
//! The plain algorithm: for a panel and 16 columns, block by block, one tile of integer sums from
//! 16 rows' weights and the columns' quants; then, column by column, the same float operations
//! that [`super::panels`] does. The departures from it:
//! 1. A block of weights is unpacked once into bytes as tiles want them and serves all columns;
//!    two panels' blocks go together, so that a column's quants are loaded for both.
//! 2. Results therefore wait in memory between blocks, for as many panels as stay in the cache.
//! 3. Scales of super-blocks are multiplied into the weights, which then have 16 bits, in two
//!    planes of bytes; as have the quants with their shifts. Nothing is left to be done between
//!    the groups of a super-block, and four sums make one.

use super::Piece;
use super::lanes::{float, half};
use crate::act::QuantRows;
use crate::act::tiled::{t32, t256};
use crate::format::{self, Format32, Format256};
use crate::panel::PANEL_ROWS;
use crate::simd::{F32s, LANES, Simd, prefetch_second};
use crate::tiles::{COLUMNS, Line, Plane, Planes, Ready, Shape, Sums};
use bytemuck::Zeroable;

/// Panels whose blocks are unpacked at a time.
const TOGETHER: usize = 2;
/// Groups of columns that are few: weights take the time, and are best read in their order.
const FEW: usize = 2;
/// Bytes of results that wait in memory otherwise, and the most panels that they are of.
const WAITING: usize = 512 << 10;
const PANELS: usize = 16;

/// Panels that pass over a block of all columns before the next block comes.
fn run(x: &QuantRows) -> usize {
    match x.group_count() {
        0..=FEW => TOGETHER,
        groups => (WAITING / (groups * size_of::<Waiting>()))
            .next_multiple_of(TOGETHER)
            .clamp(TOGETHER, PANELS),
    }
}

/// Results of 16 columns with a panel: \[column\]\[row\].
type Waiting = [F32s; COLUMNS];

/// Lines of memory for results that wait.
pub(super) fn scratch_len(x: &QuantRows) -> usize {
    run(x) * x.group_count() * COLUMNS
}

/// What multiplies the blocks of a tile of 256 elements.
trait Multiply<S: Simd> {
    /// Blocks of 16 rows in a panel.
    type Panel: bytemuck::Pod;
    /// A tile's weights of a panel, unpacked.
    type Unpacked;

    /// Elements of a block.
    const BLOCK: usize;
    const SHAPE: Shape;

    /// Memory for weights.
    fn empty(simd: S) -> Self::Unpacked;

    /// Unpacks the blocks of a tile.
    fn unpack(simd: S, blocks: &[Self::Panel], out: &mut Self::Unpacked);

    /// Adds the products with a group's tile, for `columns` columns or more, to the results that
    /// wait; `sums` is memory.
    fn multiply(
        simd: S,
        ready: &mut Ready,
        tile: (&[Line], &Self::Unpacked),
        sums: &mut [Sums; 8],
        columns: usize,
        to: &mut Waiting,
    );
}

#[inline(always)]
fn products<M: Multiply<S>, S: Simd>(
    simd: S,
    piece: &Piece<'_, '_>,
    bytes: &[u8],
    x: &QuantRows,
    scratch: &mut [Line],
) {
    let tiles = piece.isa.tiles().expect("only an instruction set with tiles makes rows for them");
    let mut ready = tiles.ready(M::SHAPE);
    let panel_bytes = bytes.len() / piece.rows.div_ceil(PANEL_ROWS);
    let (groups, run) = (x.group_count(), run(x));
    let waiting: &mut [Waiting] = bytemuck::cast_slice_mut(scratch);
    let mut sums = [Sums::zeroed(); 8];
    let mut weights: [M::Unpacked; TOGETHER] = std::array::from_fn(|_| M::empty(simd));
    for (r, bytes) in bytes.chunks(run * panel_bytes).enumerate() {
        let waiting = &mut waiting[..bytes.len() / panel_bytes * groups];
        waiting.fill([[0.0; LANES]; COLUMNS]);
        for t in 0..piece.input.len.div_ceil(256) {
            let pairs = bytes.chunks(TOGETHER * panel_bytes);
            let pairs = pairs.zip(waiting.chunks_mut(TOGETHER * groups)).enumerate();
            for (pair, (panels, waiting)) in pairs {
                let panels = panels.chunks_exact(panel_bytes);
                let weights = &mut weights[..panels.len()];
                for (panel, out) in panels.zip(&mut *weights) {
                    M::unpack(simd, tile::<M, S>(panel, t), out);
                }
                ask_for_next::<M, S>(bytes, panel_bytes, pair + 1, t);
                for group in 0..groups {
                    let columns = COLUMNS.min(x.rows() - group * COLUMNS);
                    for (w, waiting) in weights.iter().zip(waiting.chunks_exact_mut(groups)) {
                        let (x, to) = ((x.tile(group, t), w), &mut waiting[group]);
                        M::multiply(simd, &mut ready, x, &mut sums, columns, to);
                    }
                }
            }
        }
        give_out(simd, piece, (x.rows(), groups), r * run * PANEL_ROWS, waiting);
    }
}

/// Asks memory for the blocks that are unpacked next: tile `t` of the panels that begin with pair
/// `pair`, or else the next tile of the first ones.
#[inline(always)]
fn ask_for_next<M: Multiply<S>, S: Simd>(bytes: &[u8], panel_bytes: usize, pair: usize, t: usize) {
    let (next, t) = match bytes.get(pair * TOGETHER * panel_bytes..) {
        Some(next) if !next.is_empty() => (next, t),
        _ => (bytes, t + 1),
    };
    for panel in next.chunks_exact(panel_bytes).take(TOGETHER) {
        for block in tile::<M, S>(panel, t) {
            prefetch_second(block, 0);
        }
    }
}

/// Puts the results of panels, the first row of which is `row`, where they belong: column by
/// column, since there the panels' rows lie side by side.
#[inline(always)]
fn give_out<S: Simd>(
    simd: S,
    piece: &Piece<'_, '_>,
    (columns, groups): (usize, usize),
    row: usize,
    waiting: &[Waiting],
) {
    for column in 0..columns {
        for (p, panel) in waiting.chunks_exact(groups).enumerate() {
            let (row, result) = (row + p * PANEL_ROWS, &panel.as_flattened()[column]);
            let rows = PANEL_ROWS.min(piece.rows - row);
            let out = piece.out(column, row, rows);
            match out.first_chunk_mut() {
                Some(whole) => simd.store(simd.load(result), whole),
                None => out.copy_from_slice(&result[..rows]),
            }
        }
    }
}

/// The blocks of tile `t` of a panel; none behind the last.
#[inline(always)]
fn tile<M: Multiply<S>, S: Simd>(panel: &[u8], t: usize) -> &[M::Panel] {
    let blocks = format::blocks(panel);
    let count = 256 / M::BLOCK;
    &blocks[blocks.len().min(t * count)..blocks.len().min((t + 1) * count)]
}

/// Formats with super-blocks.
struct Super<F>(std::marker::PhantomData<F>);

/// A super-block's weights of 16 rows.
struct Scaled<S: Simd> {
    planes: Planes,
    d: S::F,
    /// −dmin.
    minus: S::F,
    /// Pairs of mins, as they meet pairs of sums of quants.
    mins: [S::I; 8],
}

#[inline(always)]
pub(super) fn tiles256<F: Format256, S: Simd>(
    simd: S,
    piece: &Piece<'_, '_>,
    bytes: &[u8],
    x: &QuantRows,
    scratch: &mut [Line],
) {
    products::<Super<F>, S>(simd, piece, bytes, x, scratch);
}

/// Pairs of mins of a super-block.
const fn min_pairs<F: Format256>() -> usize {
    match (F::HAS_MIN, F::PAIRED) {
        (false, _) => 0,
        (true, true) => 4,
        (true, false) => 8,
    }
}

impl<F: Format256, S: Simd> Multiply<S> for Super<F> {
    type Panel = F::Panel;
    type Unpacked = Scaled<S>;

    const BLOCK: usize = 256;
    const SHAPE: Shape = Shape::Super;

    #[inline(always)]
    fn empty(simd: S) -> Scaled<S> {
        let (zero, none) = (simd.splat(0.0), simd.splat_int(0));
        Scaled { planes: Planes::zeroed(), d: zero, minus: zero, mins: [none; 8] }
    }

    #[inline(always)]
    fn unpack(simd: S, blocks: &[F::Panel], out: &mut Scaled<S>) {
        let [block] = blocks else { unreachable!("a tile is a super-block") };
        let scales = F::scales(block);
        for half in 0..2 {
            part::<F, S, 0>(simd, block, &scales.scales, half, &mut out.planes);
            part::<F, S, 1>(simd, block, &scales.scales, half, &mut out.planes);
            part::<F, S, 2>(simd, block, &scales.scales, half, &mut out.planes);
            part::<F, S, 3>(simd, block, &scales.scales, half, &mut out.planes);
        }
        for g in 0..min_pairs::<F>() {
            out.mins[g] = simd.pair(&scales.mins[2 * g], &scales.mins[2 * g + 1]);
        }
        let [d, dmin] = F::factors(block);
        out.d = self::half(simd, d);
        out.minus = simd.sub(simd.splat(-0.0), self::half(simd, dmin));
    }

    #[inline(always)]
    fn multiply(
        simd: S,
        ready: &mut Ready,
        (x, w): (&[Line], &Scaled<S>),
        sums: &mut [Sums; 8],
        columns: usize,
        to: &mut Waiting,
    ) {
        let planes = x.first_chunk().expect("two planes of quants");
        let sums = sums.first_chunk_mut().expect("four tiles of sums");
        ready.super_block(planes, &w.planes, sums);
        for (c, to) in to[..columns].iter_mut().enumerate() {
            let low = simd.shift_left(simd.load_int(&sums[0].0[c]), 2);
            let low = simd.add_int(low, simd.load_int(&sums[2].0[c]));
            let high = simd.shift_left(simd.load_int(&sums[1].0[c]), 2);
            let high = simd.add_int(high, simd.load_int(&sums[3].0[c]));
            let total = simd.add_int(low, simd.shift_left(high, 8));
            let mut t = simd.mul(w.d, simd.int_to_float(total));
            if F::HAS_MIN {
                let mut minimum = simd.splat_int(0);
                for g in 0..min_pairs::<F>() {
                    let field = if F::PAIRED { t256::PAIRS } else { t256::HALVES };
                    minimum = simd.add_pairs(minimum, w.mins[g], x[field + g].0[c]);
                }
                t = simd.fma(w.minus, simd.int_to_float(minimum), t);
            }
            let scale = float(simd, x[t256::SCALE].0[c]);
            simd.store(simd.fma(scale, t, simd.load(to)), to);
        }
    }
}

/// Unpacks 32 elements, part `PART` of a half of a super-block, times their scales.
#[inline(always)]
fn part<F: Format256, S: Simd, const PART: usize>(
    simd: S,
    block: &F::Panel,
    scales: &[[i8; LANES]; 16],
    half: usize,
    out: &mut Planes,
) {
    let group = 4 * half + PART;
    for k in 0..8 {
        let scale = &scales[if F::PAIRED { group } else { 2 * group + k / 4 }];
        let w = F::quad::<S, PART>(simd, block, half, k);
        let w = signed(simd, w, F::SIGNED, F::OFFSET);
        let [low, high] = simd.scale_bytes(w, scale);
        simd.store_bytes(low, &mut out.low.0[8 * group + k]);
        simd.store_bytes(high, &mut out.high.0[8 * group + k]);
    }
}

/// Unpacked bytes as the signed numbers that they stand for.
#[inline(always)]
fn signed<S: Simd>(simd: S, w: S::B, biased: bool, offset: i32) -> S::B {
    let less = if biased { 128 } else { offset.to_le_bytes()[0] };
    if less == 0 { w } else { simd.sub_bytes(w, less) }
}

/// Formats with blocks of 32.
struct Blocks<F>(std::marker::PhantomData<F>);

/// At most 8 blocks' weights of 16 rows.
struct Unscaled<S: Simd> {
    plane: Plane,
    /// How many blocks there are.
    count: usize,
    d: [S::F; 8],
    m: [S::F; 8],
}

#[inline(always)]
pub(super) fn tiles32<F: Format32, S: Simd>(
    simd: S,
    piece: &Piece<'_, '_>,
    bytes: &[u8],
    x: &QuantRows,
    scratch: &mut [Line],
) {
    products::<Blocks<F>, S>(simd, piece, bytes, x, scratch);
}

impl<F: Format32, S: Simd> Multiply<S> for Blocks<F> {
    type Panel = F::Panel;
    type Unpacked = Unscaled<S>;

    const BLOCK: usize = 32;
    const SHAPE: Shape = Shape::Blocks;

    #[inline(always)]
    fn empty(simd: S) -> Unscaled<S> {
        let zero = [simd.splat(0.0); 8];
        Unscaled { plane: Plane::zeroed(), count: 0, d: zero, m: zero }
    }

    #[inline(always)]
    fn unpack(simd: S, blocks: &[F::Panel], out: &mut Unscaled<S>) {
        out.count = blocks.len();
        let (planes, _) = out.plane.0.as_chunks_mut::<8>();
        for (j, (block, plane)) in blocks.iter().zip(planes).enumerate() {
            for (k, quad) in plane.iter_mut().enumerate() {
                let w = signed(simd, F::quad(simd, block, k), F::SIGNED, F::OFFSET);
                simd.store_bytes(w, quad);
            }
            out.d[j] = half(simd, F::scales(block));
            if F::HAS_MIN {
                out.m[j] = half(simd, F::mins(block));
            }
        }
    }

    #[inline(always)]
    fn multiply(
        simd: S,
        ready: &mut Ready,
        (x, w): (&[Line], &Unscaled<S>),
        sums: &mut [Sums; 8],
        _columns: usize,
        to: &mut Waiting,
    ) {
        ready.blocks(x.first_chunk().expect("quants"), &w.plane, sums);
        // All columns at once, since that many results fit the registers.
        let mut acc = [simd.splat(0.0); COLUMNS];
        for (acc, to) in acc.iter_mut().zip(&*to) {
            *acc = simd.load(to);
        }
        for (j, sums) in sums[..w.count].iter().enumerate() {
            for (c, acc) in acc.iter_mut().enumerate() {
                let total = simd.load_int(&sums.0[c]);
                let mut t = simd.mul(w.d[j], simd.int_to_float(total));
                if F::HAS_MIN {
                    t = simd.fma(w.m[j], float(simd, x[t32::FLOATS + j].0[c]), t);
                }
                *acc = simd.fma(float(simd, x[t32::SCALES + j].0[c]), t, *acc);
            }
        }
        for (acc, to) in acc.into_iter().zip(to) {
            simd.store(acc, to);
        }
    }
}
