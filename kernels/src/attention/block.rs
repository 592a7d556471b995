//! What one block of positions gives for a few queries: scores, weights and their sum, and the
//! weighted sum of values.

use super::cache::{self, KvFormat, KvLayer, KvVisitor};
use super::partial::Partial;
use super::tiers::KeyBias;
use super::{AttentionParams, BLOCK, QUERIES};
use crate::isa::{Isa, Op};
use crate::math;
use crate::simd::{F32s, LANES, Simd, prefetch_line_by};
use std::marker::PhantomData;

/// Lanes' positions within a vector.
const IOTA: F32s =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// One block for a tile of queries, with what its two halves need.
#[derive(Clone, Copy)]
pub(super) struct BlockCall<'a> {
    pub(super) isa: Isa,
    pub(super) params: AttentionParams,
    pub(super) kv: KvLayer<'a>,
    /// The block's number in `kv`.
    pub(super) block: usize,
    /// For each query the positions that it sees, relative to the block, end excluded.
    pub(super) spans: [(usize, usize); QUERIES],
    /// The queries, rotated as the keys are; where the keys' bias is not in them, with the
    /// factors of the bias behind each.
    pub(super) q: [&'a [f32]; QUERIES],
    /// That bias, and the block's number in the sequence.
    pub(super) bias: Option<(KeyBias<'a>, usize)>,
    /// Whether memory that comes next is asked for.
    pub(super) fetch: bool,
}

impl BlockCall<'_> {
    pub(super) fn scores(
        self,
        kv_head: usize,
        count: usize,
        weights: &mut [[f32; BLOCK]; QUERIES],
        results: &mut [Partial; QUERIES],
    ) {
        let pages = self.kv.key_pages(kv_head, self.block);
        let format = self.kv.shape.key_type;
        let next = self.kv.value_rows(kv_head, self.block);
        cache::visit(format, ScoresCall { call: self, pages, next, count, weights, results });
    }

    pub(super) fn values(
        self,
        kv_head: usize,
        count: usize,
        weights: &[[f32; BLOCK]; QUERIES],
        results: &mut [Partial; QUERIES],
    ) {
        let rows = self.kv.value_rows(kv_head, self.block);
        let format = self.kv.shape.value_type;
        let next = self.kv.key_pages(kv_head, self.block);
        cache::visit(format, ValuesCall { call: self, rows, next, count, weights, results });
    }
}

/// Calls `queries` for as many queries as there are. Many tokens find keys and values in the cache
/// of the processor, and asking for them costs time.
macro_rules! for_queries {
    ($self:ident, $simd:ident) => {
        match ($self.0.call.fetch, $self.0.count) {
            (true, 1) => $self.queries::<S, 1, true>($simd),
            (true, 2) => $self.queries::<S, 2, true>($simd),
            (true, 3) => $self.queries::<S, 3, true>($simd),
            (true, _) => $self.queries::<S, QUERIES, true>($simd),
            (false, 1) => $self.queries::<S, 1, false>($simd),
            (false, 2) => $self.queries::<S, 2, false>($simd),
            (false, 3) => $self.queries::<S, 3, false>($simd),
            (false, _) => $self.queries::<S, QUERIES, false>($simd),
        }
    };
}

struct ScoresCall<'a, 'b> {
    call: BlockCall<'a>,
    /// The block's keys, 16 positions a page.
    pages: &'a [u8],
    /// Its values, which are asked for on the way.
    next: &'a [u8],
    /// Queries that count.
    count: usize,
    weights: &'b mut [[f32; BLOCK]; QUERIES],
    results: &'b mut [Partial; QUERIES],
}

impl KvVisitor for ScoresCall<'_, '_> {
    fn visit<K: KvFormat>(self) {
        self.call.isa.run(Scores::<K>(self, PhantomData));
    }
}

struct Scores<'a, 'b, K>(ScoresCall<'a, 'b>, PhantomData<K>);

impl<K: KvFormat> Op for Scores<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for_queries!(self, simd);
    }
}

impl<K: KvFormat> Scores<'_, '_, K> {
    /// Scores, their maximum, weights and the sum of weights of the first `Q` queries.
    #[inline(always)]
    fn queries<S: Simd, const Q: usize, const FETCH: bool>(self, simd: S) {
        let ScoresCall { call, pages, next, weights, results, .. } = self.0;
        let key_len = call.kv.shape.key_len;
        let q: [&[f32]; Q] = std::array::from_fn(|i| &call.q[i][..key_len]);
        let page_bytes = K::key_page_bytes(key_len);
        let end = call.spans[..Q].iter().map(|span| span.1).max().unwrap_or(0);
        let minus_infinity = simd.splat(f32::NEG_INFINITY);
        let lines = next.len().div_ceil(64);
        let mut max = [minus_infinity; Q];
        // Two vectors at a time, so that there are enough chains to hide their latency.
        for v in (0..BLOCK / LANES).step_by(2) {
            // Pages beyond the last position may hold anything; their scores are masked.
            let scores = if LANES * v < end {
                let (pages, _) = pages[v * page_bytes..].split_at(2 * page_bytes);
                let (first, second) = pages.split_at(page_bytes);
                let asked = v / 2 * key_len;
                let ask = |d| {
                    // One line a step: with half-precision numbers that is all of the values.
                    if FETCH && asked + d < lines {
                        prefetch_line_by(next, 0, asked + d, call.kv.past);
                    }
                };
                let mut acc = dots::<K, S, Q>(simd, q, [first, second], ask);
                for (v, (acc, page)) in (v..).zip(acc.iter_mut().zip([first, second])) {
                    if let Some(scale) = K::key_scale(simd, page, key_len) {
                        *acc = acc.map(|acc| simd.mul(acc, scale));
                    }
                    if let Some((bias, block)) = call.bias {
                        let angles = bias.group(block * (BLOCK / LANES) + v);
                        add_bias(simd, angles, call.q.map(|q| &q[key_len..]), acc);
                    }
                }
                acc
            } else {
                [[minus_infinity; Q]; 2]
            };
            for (v, scores) in (v..).zip(scores) {
                for i in 0..Q {
                    let score = finish_score(simd, call.params, scores[i]);
                    let score = mask(simd, score, call.spans[i], v);
                    max[i] = simd.max(score, max[i]);
                    store_vector(simd, score, &mut weights[i], v);
                }
            }
        }
        for i in 0..Q {
            let top = simd.reduce_max(max[i]);
            results[i].max = top;
            results[i].sum = 0.0;
            if call.spans[i].0 < call.spans[i].1 {
                results[i].sum = exponentiate(simd, &mut weights[i], top);
            } else {
                weights[i].fill(0.0);
            }
        }
    }
}

/// Products of queries with the keys of two pages, element by element in order; `ask` is called
/// with each element's number.
#[inline(always)]
fn dots<K: KvFormat, S: Simd, const Q: usize>(
    simd: S,
    q: [&[f32]; Q],
    [first, second]: [&[u8]; 2],
    ask: impl Fn(usize),
) -> [[S::F; Q]; 2] {
    let key_len = q[0].len();
    let q = q.map(|q| &q[..key_len]);
    let mut sums = [[simd.splat(0.0); Q]; 2];
    for d in 0..key_len {
        ask(d);
        let a = K::load_key(simd, first, key_len, d);
        let b = K::load_key(simd, second, key_len, d);
        for i in 0..Q {
            let q = simd.splat(q[i][d]);
            sums[0][i] = simd.fma(q, a, sums[0][i]);
            sums[1][i] = simd.fma(q, b, sums[1][i]);
        }
    }
    sums
}

/// Adds what the keys' bias gives: the last factor, and then the other factors times their angles
/// in one chain.
#[inline(always)]
fn add_bias<S: Simd, const Q: usize>(
    simd: S,
    angles: &[f32],
    factors: [&[f32]; QUERIES],
    scores: &mut [S::F; Q],
) {
    let (angles, _) = angles.as_chunks::<LANES>();
    for (score, factors) in scores.iter_mut().zip(factors) {
        *score = simd.add(*score, simd.splat(factors[angles.len()]));
    }
    for (i, angle) in angles.iter().enumerate() {
        let angle = simd.load(angle);
        for (score, factors) in scores.iter_mut().zip(factors) {
            *score = simd.fma(simd.splat(factors[i]), angle, *score);
        }
    }
}

/// Scale and soft cap of a raw score.
#[inline(always)]
fn finish_score<S: Simd>(simd: S, params: AttentionParams, score: S::F) -> S::F {
    let score = simd.mul(score, simd.splat(params.scale));
    match params.softcap {
        None => score,
        Some(cap) => {
            let cap = simd.splat(cap);
            simd.mul(cap, math::tanh(simd, simd.div(score, cap)))
        }
    }
}

/// −∞ outside the span; `v` is the vector's number in the block.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "positions within a block are below 64")]
fn mask<S: Simd>(simd: S, score: S::F, span: (usize, usize), v: usize) -> S::F {
    if span.0 <= LANES * v && LANES * (v + 1) <= span.1 {
        return score;
    }
    let outside = simd.splat(f32::NEG_INFINITY);
    let position = simd.add(simd.load(&IOTA), simd.splat((LANES * v) as f32));
    let from_start = simd.select_gt(position, simd.splat(span.0 as f32 - 0.5), score, outside);
    simd.select_gt(simd.splat(span.1 as f32 - 0.5), position, from_start, outside)
}

#[inline(always)]
fn store_vector<S: Simd>(simd: S, value: S::F, to: &mut [f32; BLOCK], v: usize) {
    let (vectors, _) = to.as_chunks_mut::<LANES>();
    simd.store(value, &mut vectors[v]);
}

/// Turns scores into weights e^(s − top) and returns their sum: the four vectors pairwise, then
/// the lanes by the canonical tree.
#[inline(always)]
fn exponentiate<S: Simd>(simd: S, scores: &mut [f32; BLOCK], top: f32) -> f32 {
    let top = simd.splat(top);
    let (vectors, _) = scores.as_chunks_mut::<LANES>();
    let mut sums = [simd.splat(0.0); BLOCK / LANES];
    for (vector, sum) in vectors.iter_mut().zip(&mut sums) {
        *sum = math::exp(simd, simd.sub(simd.load(vector), top));
        simd.store(*sum, vector);
    }
    simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

struct ValuesCall<'a, 'b> {
    call: BlockCall<'a>,
    /// The block's values, a row a position.
    rows: &'a [u8],
    /// Its keys; those of the block behind them are asked for on the way.
    next: &'a [u8],
    /// Queries that count.
    count: usize,
    weights: &'b [[f32; BLOCK]; QUERIES],
    results: &'b mut [Partial; QUERIES],
}

impl KvVisitor for ValuesCall<'_, '_> {
    fn visit<V: KvFormat>(self) {
        self.call.isa.run(Values::<V>(self, PhantomData));
    }
}

struct Values<'a, 'b, V>(ValuesCall<'a, 'b>, PhantomData<V>);

impl<V: KvFormat> Op for Values<'_, '_, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for_queries!(self, simd);
    }
}

impl<V: KvFormat> Values<'_, '_, V> {
    /// Σ weight · value over the positions in order, for the first `Q` queries. A position that
    /// a query does not see is left out of its sum: a weight of 0 would let in what is not finite.
    #[inline(always)]
    fn queries<S: Simd, const Q: usize, const FETCH: bool>(self, simd: S) {
        let ValuesCall { call, rows, next, weights, results, .. } = self.0;
        let value_len = call.kv.shape.value_len;
        let row_bytes = V::value_row_bytes(value_len);
        let low = |f: fn(&(usize, usize)) -> usize| call.spans[..Q].iter().map(f).min();
        let high = |f: fn(&(usize, usize)) -> usize| call.spans[..Q].iter().map(f).max();
        let mut scaled;
        let weights = match V::value_scales(simd, rows, value_len) {
            None => weights,
            Some(_) => {
                scaled = *weights;
                scale_weights::<S, V>(simd, rows, value_len, &mut scaled[..Q]);
                &scaled
            }
        };
        // Positions that some query sees, and among them those that all see.
        let (start, end) = (low(|span| span.0).unwrap_or(0), high(|span| span.1).unwrap_or(0));
        let from = high(|span| span.0).unwrap_or(0).clamp(start, end.max(start));
        let to = low(|span| span.1).unwrap_or(0).clamp(from, end.max(from));
        for part in (0..value_len.div_ceil(LANES)).step_by(2) {
            let past = call.kv.past;
            let pair =
                Pair::<V> { rows, next, row_bytes, value_len, part, past, format: PhantomData };
            let mut acc = [[simd.splat(0.0); Q]; 2];
            pair.add::<S, Q, FETCH, true>(simd, start..from, weights, &call.spans, &mut acc);
            pair.add::<S, Q, FETCH, false>(simd, from..to, weights, &call.spans, &mut acc);
            pair.add::<S, Q, FETCH, true>(simd, to..end, weights, &call.spans, &mut acc);
            for (part, acc) in (part..).zip(acc) {
                for (acc, result) in acc.into_iter().zip(results.iter_mut()) {
                    let (vectors, _) = result.out.as_chunks_mut::<LANES>();
                    if let Some(vector) = vectors.get_mut(part) {
                        simd.store(acc, vector);
                    }
                }
            }
        }
    }
}

/// Multiplies the weights of a block's positions with the scales of their values.
#[inline(always)]
fn scale_weights<S: Simd, V: KvFormat>(
    simd: S,
    rows: &[u8],
    value_len: usize,
    weights: &mut [[f32; BLOCK]],
) {
    for (v, rows) in rows.chunks_exact(LANES * V::value_row_bytes(value_len)).enumerate() {
        let Some(scales) = V::value_scales(simd, rows, value_len) else { return };
        for weights in weights.iter_mut() {
            let (vectors, _) = weights.as_chunks_mut::<LANES>();
            simd.store(simd.mul(simd.load(&vectors[v]), scales), &mut vectors[v]);
        }
    }
}

/// Two neighbouring vectors of every value in a block; the second one may not exist.
struct Pair<'a, V> {
    rows: &'a [u8],
    next: &'a [u8],
    row_bytes: usize,
    value_len: usize,
    part: usize,
    past: bool,
    format: PhantomData<V>,
}

impl<V: KvFormat> Pair<'_, V> {
    /// Adds weight · value for each position of `range`, with `CHECK` only where the query's
    /// span holds it.
    #[inline(always)]
    fn add<S: Simd, const Q: usize, const FETCH: bool, const CHECK: bool>(
        &self,
        simd: S,
        range: std::ops::Range<usize>,
        weights: &[[f32; BLOCK]; QUERIES],
        spans: &[(usize, usize); QUERIES],
        acc: &mut [[S::F; Q]; 2],
    ) {
        let Self { rows, next, row_bytes, value_len, part, past, .. } = *self;
        let second = if LANES * (part + 1) < value_len { part + 1 } else { part };
        let lines = next.len().div_ceil(64);
        let mut sums = *acc;
        for (j, row) in range.clone().zip(rows[range.start * row_bytes..].chunks_exact(row_bytes)) {
            if FETCH && part / 2 * BLOCK + j < lines {
                prefetch_line_by(next, next.len(), part / 2 * BLOCK + j, past);
            }
            let a = V::load_value(simd, row, value_len, part);
            let b = V::load_value(simd, row, value_len, second);
            for i in 0..Q {
                let (first, end) = spans[i];
                if !CHECK || (first <= j && j < end) {
                    let weight = simd.splat(weights[i][j % BLOCK]);
                    sums[0][i] = simd.fma(weight, a, sums[0][i]);
                    sums[1][i] = simd.fma(weight, b, sums[1][i]);
                }
            }
        }
        *acc = sums;
    }
}
