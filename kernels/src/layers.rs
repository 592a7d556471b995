//! What lies between the matrix products: norms, rope, activations, sums (SPEC N3, N6, N7).

use crate::isa::{Isa, Op};
use crate::math;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{LANES, Simd, padded};
use aios_contract::{ActivationFn, NormKind, RopePairing};

/// From this many rows on, element-wise work is shared out among the threads.
pub(crate) const SHARE_FROM: usize = 4;

/// Elements of a piece of work, if rows are shorter: taking a piece costs as much as some hundreds.
const PIECE: usize = 4096;

/// Runs `task` for each of `rows` of `len` elements, on the pool if there are enough of them.
fn for_rows(pool: &Pool, rows: usize, len: usize, task: &(dyn Fn(usize) + Sync)) {
    if rows < SHARE_FROM {
        return (0..rows).for_each(task);
    }
    let run = (PIECE / len).max(1);
    pool.for_each(rows.div_ceil(run), &|piece| {
        (piece * run..rows.min((piece + 1) * run)).for_each(task);
    });
}

/// Norm parameters: gain and, for layer norms, bias, each of the row's length.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Which norm.
    pub kind: NormKind,
    /// Added under the root.
    pub epsilon: f32,
    /// Factor for each element.
    pub gain: &'a [f32],
    /// Added to each element.
    pub bias: Option<&'a [f32]>,
}

/// Normalises each row of `x`, \[n\]\[gain.len()\], into `out` of the same shape.
///
/// # Panics
/// If the lengths do not fit.
pub fn norm(isa: Isa, pool: &Pool, norm: Norm<'_>, x: &[f32], out: &mut [f32]) {
    let len = norm.gain.len();
    assert!(len > 0 && x.len() == out.len() && x.len().is_multiple_of(len));
    assert!(norm.bias.is_none_or(|bias| bias.len() == len), "the bias fits the gain");
    let out = Shared::new(out);
    for_rows(pool, x.len() / len, len, &|row| {
        // SAFETY: each row is one piece, and a piece is given to one thread.
        let out = unsafe { out.range(row * len, len) };
        isa.run(NormRow { norm, x: &x[row * len..(row + 1) * len], out });
    });
}

/// As [`norm`], in place; used for the norms of single heads and of a branch's output.
pub fn norm_in_place(isa: Isa, pool: &Pool, norm: Norm<'_>, x: &mut [f32]) {
    let len = norm.gain.len();
    assert!(len > 0 && x.len().is_multiple_of(len));
    assert!(norm.bias.is_none_or(|bias| bias.len() == len), "the bias fits the gain");
    let rows = x.len() / len;
    let x = Shared::new(x);
    for_rows(pool, rows, len, &|row| {
        // SAFETY: each row is one piece, and a piece is given to one thread.
        let x = unsafe { x.range(row * len, len) };
        isa.run(NormHere { norm, x });
    });
}

struct NormRow<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Op for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, x, out } = self;
        let (shift, scale) = statistics(simd, norm, x);
        for ((out, x), gain) in out.iter_mut().zip(x).zip(norm.gain) {
            *out = (x - shift) * scale * gain;
        }
        add_bias(norm.bias, out);
    }
}

struct NormHere<'a> {
    norm: Norm<'a>,
    x: &'a mut [f32],
}

impl Op for NormHere<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, x } = self;
        let (shift, scale) = statistics(simd, norm, x);
        for (x, gain) in x.iter_mut().zip(norm.gain) {
            *x = (*x - shift) * scale * gain;
        }
        add_bias(norm.bias, x);
    }
}

#[inline(always)]
fn add_bias(bias: Option<&[f32]>, x: &mut [f32]) {
    for (x, bias) in x.iter_mut().zip(bias.unwrap_or(&[])) {
        *x += bias;
    }
}

/// What a norm subtracts from each element and then multiplies it with.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "rows are far shorter than 2^24")]
fn statistics<S: Simd>(simd: S, norm: Norm<'_>, x: &[f32]) -> (f32, f32) {
    let count = x.len() as f32;
    let shift = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum(simd, x, |x, acc| simd.add(x, acc)) / count,
    };
    // The last, partial vector is filled up with the shift, which adds nothing to the squares.
    let shifts = simd.splat(shift);
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut acc = simd.splat(0.0);
    for x in chunks {
        let x = simd.sub(simd.load(x), shifts);
        acc = simd.fma(x, x, acc);
    }
    if !tail.is_empty() {
        let mut full = [shift; LANES];
        full[..tail.len()].copy_from_slice(tail);
        let x = simd.sub(simd.load(&full), shifts);
        acc = simd.fma(x, x, acc);
    }
    let mean = simd.reduce_add(acc) / count;
    (shift, 1.0 / (mean + norm.epsilon).sqrt())
}

/// Folds the vectors of a row, the last one filled up with zeros, and adds the lanes.
#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32], fold: impl Fn(S::F, S::F) -> S::F) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut acc = simd.splat(0.0);
    for x in chunks {
        acc = fold(simd.load(x), acc);
    }
    if !tail.is_empty() {
        acc = fold(simd.load(&padded(tail)), acc);
    }
    simd.reduce_add(acc)
}

/// a\[i\] += b\[i\].
pub fn add(isa: Isa, a: &mut [f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    isa.run(Add { a, b });
}

/// As [`add`] for rows of `len` elements, \[n\]\[len\], on the pool's threads.
pub fn add_rows(isa: Isa, pool: &Pool, a: &mut [f32], b: &[f32], len: usize) {
    assert!(len > 0 && a.len() == b.len() && a.len().is_multiple_of(len));
    let rows = a.len() / len;
    let a = Shared::new(a);
    for_rows(pool, rows, len, &|row| {
        // SAFETY: each row is one piece, and a piece is given to one thread.
        let a = unsafe { a.range(row * len, len) };
        add(isa, a, &b[row * len..(row + 1) * len]);
    });
}

struct Add<'a> {
    a: &'a mut [f32],
    b: &'a [f32],
}

impl Op for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for (a, b) in self.a.iter_mut().zip(self.b) {
            *a += b;
        }
    }
}

/// x\[i\] *= factor.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    isa.run(Scale { x, factor });
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Op for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for x in self.x {
            *x *= self.factor;
        }
    }
}

/// x\[i\] = cap · tanh(x\[i\] / cap).
pub fn softcap(isa: Isa, x: &mut [f32], cap: f32) {
    isa.run(Softcap { x, cap });
}

struct Softcap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Op for Softcap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        map(simd, self.x, Cap(self.cap));
    }
}

/// A function of one element. Not a closure, because a large one is not inlined, and without that
/// it is not compiled for the instruction set.
trait Elementwise: Copy {
    /// The function's value in every lane.
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F;
}

#[derive(Clone, Copy)]
struct Cap(f32);

impl Elementwise for Cap {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        let cap = simd.splat(self.0);
        simd.mul(cap, math::tanh(simd, simd.div(x, cap)))
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Elementwise for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        math::silu(simd, x)
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl Elementwise for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        math::gelu_tanh(simd, x)
    }
}

#[derive(Clone, Copy)]
struct GeluErf;

impl Elementwise for GeluErf {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        math::gelu_erf(simd, x)
    }
}

/// A NaN stays one, and what is not positive becomes +0 (SPEC N6).
#[derive(Clone, Copy)]
struct Relu;

impl Elementwise for Relu {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        // The second operand is what comes out if either is NaN or both are zeros; the sum turns
        // −0 into +0.
        let zero = simd.splat(0.0);
        simd.add(simd.max(zero, x), zero)
    }
}

#[derive(Clone, Copy)]
struct ReluSquared;

impl Elementwise for ReluSquared {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        let x = Relu.apply(simd, x);
        simd.mul(x, x)
    }
}

/// Applies `f` to every element, the last vector filled up with zeros.
#[inline(always)]
fn map<S: Simd>(simd: S, x: &mut [f32], f: impl Elementwise) {
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for x in chunks {
        let y = f.apply(simd, simd.load(x));
        simd.store(y, x);
    }
    if !tail.is_empty() {
        let mut full = padded(tail);
        let y = f.apply(simd, simd.load(&full));
        simd.store(y, &mut full);
        tail.copy_from_slice(&full[..tail.len()]);
    }
}

/// The feed-forward activation over rows of `len` neurons: `out`, \[n\]\[len\], holds the up
/// projection and becomes act(out), or with a gate of the same shape act(gate) · out.
///
/// # Panics
/// If the lengths do not fit.
pub fn activate(
    isa: Isa,
    pool: &Pool,
    function: ActivationFn,
    gate: Option<&[f32]>,
    len: usize,
    out: &mut [f32],
) {
    assert!(len > 0 && out.len().is_multiple_of(len));
    assert!(gate.is_none_or(|gate| gate.len() == out.len()));
    let rows = out.len() / len;
    let out = Shared::new(out);
    for_rows(pool, rows, len, &|row| {
        // SAFETY: each row is one piece, and a piece is given to one thread.
        let out = unsafe { out.range(row * len, len) };
        let gate = gate.map(|gate| &gate[row * len..(row + 1) * len]);
        isa.run(Activate { function, gate, out });
    });
}

/// Sets what is smaller in magnitude than `least`, \[len\], says of its neuron to zero, in rows of
/// `len` neurons; NaN stays.
///
/// # Panics
/// If the lengths do not fit.
pub fn cut(pool: &Pool, least: &[f32], out: &mut [f32]) {
    let len = least.len();
    assert!(len > 0 && out.len().is_multiple_of(len));
    let rows = out.len() / len;
    let out = Shared::new(out);
    for_rows(pool, rows, len, &|row| {
        // SAFETY: each row is one piece, and a piece is given to one thread.
        cut_part(least, unsafe { out.range(row * len, len) });
    });
}

/// As [`cut`] for some neurons of a row.
pub(crate) fn cut_part(least: &[f32], out: &mut [f32]) {
    for (x, least) in out.iter_mut().zip(least) {
        // Written for every element, so that the loop is one of vectors.
        *x = if x.abs() < *least { 0.0 } else { *x };
    }
}

/// As [`activate`] for some neurons of a row.
pub(crate) fn activate_part(
    isa: Isa,
    function: ActivationFn,
    gate: Option<&[f32]>,
    out: &mut [f32],
) {
    isa.run(Activate { function, gate, out });
}

struct Activate<'a> {
    function: ActivationFn,
    gate: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Op for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.function {
            ActivationFn::Silu => self.apply(simd, Silu),
            ActivationFn::GeluTanh => self.apply(simd, GeluTanh),
            ActivationFn::GeluErf => self.apply(simd, GeluErf),
            ActivationFn::Relu => self.apply(simd, Relu),
            ActivationFn::ReluSquared => self.apply(simd, ReluSquared),
        }
    }
}

impl Activate<'_> {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, f: impl Elementwise) {
        let Some(gate) = self.gate else { return map(simd, self.out, f) };
        let (chunks, tail) = self.out.as_chunks_mut::<LANES>();
        let (gates, gate_tail) = gate.as_chunks::<LANES>();
        for (out, gate) in chunks.iter_mut().zip(gates) {
            let y = simd.mul(f.apply(simd, simd.load(gate)), simd.load(out));
            simd.store(y, out);
        }
        if !tail.is_empty() {
            let mut full = padded(tail);
            let y = simd.mul(f.apply(simd, simd.load(&padded(gate_tail))), simd.load(&full));
            simd.store(y, &mut full);
            tail.copy_from_slice(&full[..tail.len()]);
        }
    }
}

/// The rotation of one position: cos and sin for each pair of elements.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// cos(angle of pair i), times the magnitude factor if there is one.
    pub cos: &'a [f32],
    /// sin likewise.
    pub sin: &'a [f32],
    /// Which elements form a pair.
    pub pairing: RopePairing,
}

/// Rotates the first 2 · cos.len() elements of each head of `head_len` elements in `x`:
/// (a, b) becomes (fma(a, cos, −(b·sin)), fma(a, sin, b·cos)).
pub fn rotate(isa: Isa, rotation: Rotation<'_>, head_len: usize, x: &mut [f32]) {
    let pairs = rotation.cos.len();
    assert!(rotation.sin.len() == pairs && 2 * pairs <= head_len);
    assert!(x.len().is_multiple_of(head_len), "whole heads");
    isa.run(Rotate { rotation, head_len, x });
}

/// As [`rotate`] for rows of heads, \[n\]\[row\], on the pool's threads; `rotation` gives that of a
/// row.
pub fn rotate_rows<'a>(
    isa: Isa,
    pool: &Pool,
    rotation: &(dyn Fn(usize) -> Rotation<'a> + Sync),
    (head_len, row): (usize, usize),
    x: &mut [f32],
) {
    assert!(row > 0 && x.len().is_multiple_of(row));
    let rows = x.len() / row;
    let x = Shared::new(x);
    for_rows(pool, rows, row, &|i| {
        // SAFETY: each row is one piece, and a piece is given to one thread.
        rotate(isa, rotation(i), head_len, unsafe { x.range(i * row, row) });
    });
}

struct Rotate<'a> {
    rotation: Rotation<'a>,
    head_len: usize,
    x: &'a mut [f32],
}

impl Op for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Rotation { cos, sin, pairing } = self.rotation;
        for head in self.x.chunks_exact_mut(self.head_len) {
            let rotated = &mut head[..2 * cos.len()];
            match pairing {
                RopePairing::Halves => {
                    let (first, second) = rotated.split_at_mut(cos.len());
                    let pairs = first.iter_mut().zip(second).zip(cos.iter().zip(sin));
                    for ((a, b), (c, s)) in pairs {
                        (*a, *b) = (a.mul_add(*c, -(*b * s)), a.mul_add(*s, *b * c));
                    }
                }
                RopePairing::Adjacent => {
                    let (pairs, _) = rotated.as_chunks_mut::<2>();
                    for ([a, b], (c, s)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                        (*a, *b) = (a.mul_add(*c, -(*b * s)), a.mul_add(*s, *b * c));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
