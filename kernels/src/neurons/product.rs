//! Products with matrices that are stored column after column.
//!
//! The plain algorithm is that of a panel: block by block, the integer sums of 16 rows in a
//! vector's lanes, then one step of the rows' chains of fma. The departures from it:
//! 1. Four columns at a time are read, a line each, and their bytes interleaved, so that a lane has
//!    the four weights of a row; columns whose input is zero are not among them.
//! 2. A block whose inputs are all zero takes no step, its scales being finite (SPEC D13).
//! 3. The lines are asked for some columns ahead: where they lie is known, and no processor could
//!    foretell it.

use super::active::Quad;
use super::{ActiveNeurons, LINE, Neurons, STRIPE_PARTS};
use crate::act::{QuantRows, b32, b256};
use crate::format::{self, Float, Format32, Format256, Visitor};
use crate::isa::{Isa, Op};
use crate::layers::add;
use crate::matmul::lanes::{add_weights, additions, float, half};
use crate::matmul::{Matrix, ahead, least};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{F32s, LANES, Simd, prefetch_line};
use std::marker::PhantomData;
use std::ops::Range;

/// Quads between asking for lines and using them.
const AHEAD: usize = 6;
/// Vectors of rows that a part has at most.
const VECTORS: usize = 8;

/// `out` = weights · x (+ bias) for the only row of `x`, whose inputs that are not zero are
/// `active`. The bits are those of [`crate::matmul`] with the rows that the matrix was made from;
/// `next` is as there.
///
/// # Panics
/// If a shape does not fit, or `active` is of another input.
pub fn neurons(
    isa: Isa,
    pool: &Pool,
    weights: Neurons<'_>,
    (x, active): (&QuantRows, &ActiveNeurons),
    bias: Option<&[f32]>,
    out: &mut [f32],
    next: &[Option<Matrix<'_>>],
) {
    let shape = weights.shape;
    assert_eq!((x.columns(), out.len()), (shape.cols, shape.rows));
    assert!(bias.is_none_or(|bias| bias.len() == shape.rows), "the bias fits the rows");
    active.check(shape);
    let job = Job { isa, weights, x, active, bias, out: Shared::new(out) };
    let units = shape.stripes();
    let task = |run: Range<usize>| {
        for stripe in run {
            format::visit(shape.dtype, Stripe { job: &job, stripe });
        }
    };
    let least = least(1, units, shape.read_bytes(active));
    pool.share(units, least, &task, &|thread| ahead(pool, thread, 1, next));
}

struct Job<'a> {
    isa: Isa,
    weights: Neurons<'a>,
    x: &'a QuantRows,
    active: &'a ActiveNeurons,
    bias: Option<&'a [f32]>,
    out: Shared<'a, f32>,
}

/// A stripe of a product.
#[derive(Clone, Copy)]
struct Stripe<'a> {
    job: &'a Job<'a>,
    stripe: usize,
}

impl Stripe<'_> {
    /// Stores the rows of part `part`.
    #[inline(always)]
    fn store(&self, part: usize, sums: &[F32s; VECTORS]) {
        let Job { isa, weights, bias, out, .. } = self.job;
        let shape = weights.shape;
        let first = (self.stripe * STRIPE_PARTS + part) * shape.part_rows;
        let rows = shape.part_rows.min(shape.rows - first);
        // SAFETY: a stripe is given to one thread, and its rows belong to no other.
        let out = unsafe { out.range(first, rows) };
        let sums = &sums.as_flattened()[..rows];
        out.copy_from_slice(sums);
        if let Some(bias) = bias {
            add(*isa, out, &bias[first..first + rows]);
        }
    }
}

/// A stripe with the steps that its format takes.
struct Striped<'a, B>(Stripe<'a>, PhantomData<B>);

impl Visitor for Stripe<'_> {
    type Output = ();

    fn float<F: Float>(self) {
        unreachable!("a shape is of a quantised format");
    }
    fn blocks32<F: Format32>(self) {
        self.job.isa.run(Striped::<Blocks32<F>>(self, PhantomData));
    }
    fn blocks256<F: Format256>(self) {
        self.job.isa.run(Striped::<Blocks256<F>>(self, PhantomData));
    }
}

/// A part's block: its scales, and the lines of all parts with which of them are its own.
#[derive(Clone, Copy)]
struct Part<'a> {
    scales: &'a [u8],
    lines: &'a [u8],
    part: usize,
    parts: usize,
    /// The number of the block's first column.
    first: u32,
}

impl<'a> Part<'a> {
    /// The line of a column.
    #[inline(always)]
    fn line(&self, column: u32) -> &'a [u8; LINE] {
        let at = ((column - self.first) as usize * self.parts + self.part) * LINE;
        self.lines[at..].first_chunk().expect("a line a column")
    }

    /// Four columns' weights of 16 rows each, one vector for each 16 rows; nibbles that belong to
    /// rows from 64 on come out in the upper halves of bytes.
    #[inline(always)]
    fn quad<S: Simd>(&self, simd: S, quad: &Quad) -> [S::B; 4] {
        let mut lines = [simd.load_bytes(self.line(quad.columns[0])); 4];
        for (line, column) in lines[1..].iter_mut().zip(&quad.columns[1..]) {
            *line = simd.load_bytes(self.line(*column));
        }
        simd.interleave(lines)
    }

    /// Field `field` of the scales of vector `vector`, half-precision numbers.
    #[inline(always)]
    fn half<S: Simd>(&self, simd: S, field: usize, vector: usize, part_rows: usize) -> S::F {
        let at = 2 * (field * part_rows + vector * LANES);
        let bits: &[u8; 2 * LANES] = self.scales[at..].first_chunk().expect("a number a row");
        half(simd, &bytemuck::cast(*bits))
    }
}

/// Asks for the lines of a quad, wherever in the stripe they are.
#[inline(always)]
fn ask<B: Steps>(stripe: &[u8], scale_bytes: usize, parts: usize, quad: &Quad) {
    for column in quad.columns {
        let column = column as usize;
        // The scales of all blocks up to its own, and the lines before it.
        let at = (column / B::LEN + 1) * scale_bytes + column * LINE;
        for part in 0..parts {
            prefetch_line(stripe, parts * at, part);
        }
    }
}

/// Adds the products of a quad to the sums of `V` vectors of rows.
#[inline(always)]
fn add_quad<S: Simd, const V: usize>(
    simd: S,
    signed: bool,
    weights: [S::B; 4],
    x: i32,
    sums: &mut [S::P; V],
) {
    for v in 0..4 {
        if V == 4 {
            sums[v] = add_weights(simd, signed, sums[v], weights[v], x);
        } else {
            sums[v] = simd.add_products(sums[v], simd.bits(weights[v], 0, 15), x);
            sums[4 + v] = simd.add_products(sums[4 + v], simd.bits(weights[v], 4, 15), x);
        }
    }
}

/// The steps of a format's chains: one for each block of columns.
trait Steps {
    /// Columns of a block: a constant, because divisions by others take long.
    const LEN: usize;
    /// The largest weight as it is stored.
    const MAX: u8;

    /// The bits of the scale that block `b` has in the words of an input row.
    fn scale(words: &[i32], b: usize) -> i32;

    /// Adds block `b` to the sums of a part's rows; `asked` asks for the lines of the quad that
    /// comes so many after the first of a group.
    fn step<S: Simd, const V: usize>(
        simd: S,
        of: Part<'_>,
        x: (&[i32], usize, &ActiveNeurons),
        asked: impl Fn(usize, usize),
        sums: &mut [F32s; VECTORS],
    );
}

/// A stripe, `V` vectors of rows a part.
#[inline(always)]
fn stripe<B: Steps, S: Simd, const V: usize>(simd: S, of: Stripe<'_>) {
    let Job { weights, x, active, .. } = of.job;
    let (shape, bytes) = (weights.shape, weights.stripe(of.stripe));
    let parts = shape.stripe_parts(of.stripe);
    let mut sums = [[[0.0; LANES]; VECTORS]; STRIPE_PARTS];
    let words = x.single();
    for (b, block) in bytes.chunks_exact(parts * shape.block_bytes()).enumerate() {
        if active.skips && B::scale(words, b) == 0 {
            continue;
        }
        let (scales, lines) = block.split_at(parts * shape.scale_bytes);
        for part in 0..parts {
            let scales = &scales[part * shape.scale_bytes..][..shape.scale_bytes];
            let first = (B::LEN * b) as u32;
            let asked = |group: usize, i: usize| {
                if let Some(quad) = active.later(group, i).filter(|_| part == 0) {
                    ask::<B>(bytes, shape.scale_bytes, parts, quad);
                }
            };
            let one = Part { scales, lines, part, parts, first };
            B::step::<S, V>(simd, one, (words, b, active), asked, &mut sums[part]);
        }
    }
    for (part, sums) in sums[..parts].iter().enumerate() {
        of.store(part, sums);
    }
}

impl<B: Steps> Op for Striped<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match B::MAX {
            0..=15 => stripe::<B, S, 8>(simd, self.0),
            _ => stripe::<B, S, 4>(simd, self.0),
        }
    }
}

/// Formats with blocks of 32, and with super-blocks.
struct Blocks32<F>(PhantomData<F>);
struct Blocks256<F>(PhantomData<F>);

impl<F: Format32> Steps for Blocks32<F> {
    const LEN: usize = 32;
    const MAX: u8 = F::MAX;

    #[inline(always)]
    fn scale(words: &[i32], b: usize) -> i32 {
        words.as_chunks::<{ b32::WORDS }>().0[b / 8][b32::SCALES + b % 8]
    }

    #[inline(always)]
    fn step<S: Simd, const V: usize>(
        simd: S,
        of: Part<'_>,
        (words, b, active): (&[i32], usize, &ActiveNeurons),
        asked: impl Fn(usize, usize),
        sums: &mut [F32s; VECTORS],
    ) {
        let (tile, j) = (&words.as_chunks::<{ b32::WORDS }>().0[b / 8], b % 8);
        let adds = additions(F::SIGNED, F::MAX);
        // What the unpacked bytes exceed the weights by, as far as sums count it.
        let excess = match (F::SIGNED, S::WIDE) {
            (true, true) => 8 * tile[b32::STARTS + j],
            (true, false) => 0,
            (false, _) => F::OFFSET * (tile[b32::STARTS + j] >> 4),
        };
        let mut totals = [simd.splat_int(excess); V];
        let mut partial = [simd.start(0); V];
        for (i, quad) in active.group(b).iter().enumerate() {
            asked(b, i + AHEAD);
            add_quad::<S, V>(simd, F::SIGNED, of.quad(simd, quad), quad.x, &mut partial);
            if !S::WIDE && (i + 1) % adds == 0 {
                for v in 0..V {
                    totals[v] = simd.add_int(totals[v], simd.sum(partial[v]));
                    partial[v] = simd.start(0);
                }
            }
        }
        for v in 0..V {
            let total = simd.add_int(totals[v], simd.sum(partial[v]));
            let mut t = simd.mul(of.half(simd, 0, v, V * LANES), simd.int_to_float(total));
            if F::HAS_MIN {
                let sum = float(simd, tile[b32::FLOATS + j]);
                t = simd.fma(of.half(simd, 1, v, V * LANES), sum, t);
            }
            let y = simd.fma(float(simd, tile[b32::SCALES + j]), t, simd.load(&sums[v]));
            simd.store(y, &mut sums[v]);
        }
    }
}

impl<F: Format256> Steps for Blocks256<F> {
    const LEN: usize = 256;
    const MAX: u8 = F::MAX;

    #[inline(always)]
    fn scale(words: &[i32], b: usize) -> i32 {
        words.as_chunks::<{ b256::WORDS }>().0[b][b256::SCALE]
    }

    #[inline(always)]
    #[expect(clippy::cast_sign_loss, reason = "a shift is 0, 1 or 2")]
    fn step<S: Simd, const V: usize>(
        simd: S,
        of: Part<'_>,
        (words, b, active): (&[i32], usize, &ActiveNeurons),
        asked: impl Fn(usize, usize),
        sums: &mut [F32s; VECTORS],
    ) {
        let tile = &words.as_chunks::<{ b256::WORDS }>().0[b];
        let adds = additions(F::SIGNED, F::MAX);
        let groups = if F::PAIRED { 8 } else { 16 };
        let front = if F::HAS_MIN { 4 } else { 2 } * V * LANES;
        let bytes = |at: usize, v: usize| -> &[i8; LANES] {
            let bytes: &[u8] = &of.scales[front + at * V * LANES + v * LANES..];
            bytemuck::cast_ref(bytes.first_chunk::<LANES>().expect("a scale a row"))
        };
        let mut isum = [simd.splat_int(0); V];
        for g in 0..groups {
            let quads = active.group(groups * b + g);
            if quads.is_empty() {
                continue;
            }
            let shift = tile[b256::SHIFTS + if F::PAIRED { g } else { g / 2 }] as usize & 3;
            let mut partial = [simd.start(0); V];
            let mut flush = |partial: &mut [S::P; V]| {
                for v in 0..V {
                    let once = simd.scale(bytes(g, v));
                    let twice = simd.double(once);
                    let scale = [once, twice, simd.double(twice), once][shift];
                    isum[v] = simd.add_int(isum[v], simd.sum_scaled(partial[v], scale));
                    partial[v] = simd.start(0);
                }
            };
            for (i, quad) in quads.iter().enumerate() {
                asked(groups * b + g, i + AHEAD);
                add_quad::<S, V>(simd, F::SIGNED, of.quad(simd, quad), quad.x, &mut partial);
                if !S::WIDE && (i + 1) % adds == 0 {
                    flush(&mut partial);
                }
            }
            flush(&mut partial);
        }
        let mut msum = [simd.splat_int(0); V];
        if F::HAS_MIN || F::OFFSET != 0 {
            // Without minima of their own, the scales' share of the offset takes their place.
            let mins = if F::HAS_MIN { groups } else { 0 };
            let words = if F::PAIRED { b256::PAIRS } else { b256::HALVES };
            for pair in 0..groups / 2 {
                let x = tile[words + pair];
                for (v, msum) in msum.iter_mut().enumerate() {
                    let of = simd.pair(bytes(mins + 2 * pair, v), bytes(mins + 2 * pair + 1, v));
                    *msum = simd.add_pairs(*msum, of, x);
                }
            }
        }
        for v in 0..V {
            let mut total = isum[v];
            if !F::HAS_MIN && F::OFFSET != 0 {
                let offset = F::OFFSET.trailing_zeros().cast_signed();
                total = simd.sub_int(total, simd.shift_left(msum[v], offset));
            }
            let mut t = simd.mul(of.half(simd, 0, v, V * LANES), simd.int_to_float(total));
            if F::HAS_MIN {
                let minus = simd.sub(simd.splat(-0.0), of.half(simd, 1, v, V * LANES));
                t = simd.fma(minus, simd.int_to_float(msum[v]), t);
            }
            let y = simd.fma(float(simd, tile[b256::SCALE]), t, simd.load(&sums[v]));
            simd.store(y, &mut sums[v]);
        }
    }
}
