//! Attention over the KV cache (SPEC N8).
//!
//! The plain algorithm, for one query: positions are cut into blocks of 64 by their absolute
//! number; each block gives its largest score m, l = Σ e^(s−m) and o = Σ e^(s−m)·v; the blocks'
//! results are merged in order. A block's result depends on nothing but the query and the keys
//! and values in it, so the work may be cut anywhere between blocks, queries and heads.
//!
//! The departures from it:
//! 1. Up to four queries that share a KV head go together, so that keys and values are loaded
//!    and widened once for them.
//! 2. Sixteen positions' keys lie interleaved, so that a lane owns a position and scores need no
//!    sums across lanes.
//! 3. For a single token, blocks are shared out among the threads; who ends a head's last block
//!    merges them.

mod all;
mod cache;
mod partial;

pub use all::attend_all;
pub use cache::{CacheShape, CacheType, KvLayer, KvLayerMut, UnknownCacheType};

use crate::isa::{Isa, Op};
use crate::math;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{F32s, LANES, Simd, prefetch_line};
use cache::{KvFormat, KvVisitor};
use partial::{Merge, Partial};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Positions in a block.
pub const BLOCK: usize = 64;
/// The longest head that attention is built for.
pub const MAX_HEAD_LEN: usize = 256;
/// Queries that go together.
const QUERIES: usize = 4;
/// From this many blocks on, a single token's blocks are shared out among the threads.
const SPLIT_FROM: usize = 2;
/// Lanes' positions within a vector.
const IOTA: F32s =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The parameters of a layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// Query heads, a multiple of the cache's KV heads.
    pub heads: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Scores are cap · tanh(score / cap).
    pub softcap: Option<f32>,
    /// A query sees this many positions up to its own.
    pub window: Option<usize>,
}

/// Partial results for [`attend`] with a single token; reused.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// \[kv_heads\]\[blocks\]\[tiles\]\[QUERIES\].
    partials: Vec<Partial>,
    /// For each KV head the runs of blocks that are done.
    done: Vec<AtomicUsize>,
}

impl AttentionScratch {
    /// Room for `heads` heads, `kv_heads` of them with keys and values, over `context` positions.
    pub fn with_capacity(heads: usize, kv_heads: usize, context: usize) -> Self {
        let mut scratch = Self::default();
        let tiles = (heads / kv_heads).div_ceil(QUERIES);
        scratch.resize(kv_heads, context.div_ceil(BLOCK) * tiles);
        scratch
    }

    /// Makes room for `tiles` tiles of queries a KV head, over all blocks, and starts to count.
    fn resize(&mut self, kv_heads: usize, tiles: usize) {
        let partials = (kv_heads * tiles * QUERIES).max(self.partials.len());
        self.partials.resize(partials, Partial::EMPTY);
        self.done.resize_with(kv_heads.max(self.done.len()), AtomicUsize::default);
        self.done.iter_mut().for_each(|done| *done.get_mut() = 0);
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.partials[..])
    }
}

/// Attention of the `n` newest tokens, whose keys and values are in the cache already: token i
/// stands at position `start + i`. `q` is \[n\]\[heads\]\[key_len\], `out`
/// \[n\]\[heads\]\[value_len\].
///
/// # Panics
/// If the shapes do not fit.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
pub fn attend(
    isa: Isa,
    pool: &Pool,
    params: AttentionParams,
    kv: KvLayer<'_>,
    start: usize,
    q: &[f32],
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let shape = kv.shape;
    let row = params.heads * shape.key_len;
    assert!(row > 0 && q.len().is_multiple_of(row));
    let n = q.len() / row;
    assert!(n > 0 && out.len() == n * params.heads * shape.value_len);
    assert!(params.heads.is_multiple_of(shape.kv_heads) && start + n <= shape.capacity);
    assert!(shape.key_len <= MAX_HEAD_LEN && shape.value_len <= MAX_HEAD_LEN);
    let job = Job { isa, params, kv, start, step: 1, q, out: Shared::new(out) };
    let tiles = (n * job.group()).div_ceil(QUERIES);
    let blocks = start / BLOCK + 1;
    if n == 1 && blocks >= SPLIT_FROM && pool.threads() > 1 {
        attend_split(pool, &job, tiles, blocks, scratch);
    } else {
        pool.for_each(shape.kv_heads * tiles, &|piece| job.tile(piece / tiles, piece % tiles));
    }
}

/// A single token: runs of blocks of each KV head are the pieces; the piece that is the last of
/// its head to be done merges the head's blocks.
fn attend_split(
    pool: &Pool,
    job: &Job<'_>,
    tiles: usize,
    blocks: usize,
    scratch: &mut AttentionScratch,
) {
    let kv_heads = job.kv.shape.kv_heads;
    scratch.resize(kv_heads, blocks * tiles);
    let first = job.first_position(job.start) / BLOCK;
    let total = kv_heads * (blocks - first);
    // A thread goes through memory in order for a while, which it can then ask for ahead.
    let run = (total / (8 * pool.threads())).clamp(1, 8);
    let runs = (blocks - first).div_ceil(run);
    let done = &scratch.done;
    let partials = Shared::new(&mut scratch.partials);
    let at = |kv_head, block, tile| ((kv_head * blocks + block) * tiles + tile) * QUERIES;
    pool.for_each(kv_heads * runs, &|piece| {
        let (kv_head, start) = (piece / runs, first + piece % runs * run);
        for block in start..blocks.min(start + run) {
            // All of a block's queries go together, so that it is read from memory once.
            for tile in 0..tiles {
                let queries = job.queries(kv_head, tile);
                // SAFETY: every KV head's block belongs to one piece, and nobody else touches its
                // results before all pieces of the head are counted as done.
                let results = unsafe { partials.range(at(kv_head, block, tile), QUERIES) };
                let results = results.first_chunk_mut().expect("a range of that length");
                job.block(&queries, block, results);
            }
        }
        if done[kv_head].fetch_add(1, Ordering::AcqRel) + 1 < runs {
            return;
        }
        for tile in 0..tiles {
            let queries = job.queries(kv_head, tile);
            for (slot, query) in queries.list().iter().enumerate() {
                let mut state = Partial::EMPTY;
                for block in first..blocks {
                    // SAFETY: all pieces of the head are done, as the count has shown, and only
                    // the one that was counted last comes here.
                    let block = unsafe { partials.range(at(kv_head, block, tile) + slot, 1) };
                    job.isa.run(Merge {
                        state: &mut state,
                        block: &block[0],
                        len: job.value_len(),
                    });
                }
                job.finish(*query, &state);
            }
        }
    });
}

/// One call of [`attend`] or [`attend_all`].
struct Job<'a> {
    isa: Isa,
    params: AttentionParams,
    kv: KvLayer<'a>,
    /// The position of the first token, and how far each lies behind the one before.
    start: usize,
    step: usize,
    q: &'a [f32],
    out: Shared<'a, f32>,
}

/// A token of the call and a query head.
#[derive(Clone, Copy, Debug)]
struct Query {
    token: usize,
    head: usize,
}

/// Queries that share a KV head. Unused slots repeat the last query.
struct Queries {
    kv_head: usize,
    count: usize,
    slots: [Query; QUERIES],
}

impl Queries {
    fn list(&self) -> &[Query] {
        &self.slots[..self.count]
    }
}

impl Job<'_> {
    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.params.heads / self.kv.shape.kv_heads
    }

    fn value_len(&self) -> usize {
        self.kv.shape.value_len
    }

    fn tokens(&self) -> usize {
        self.q.len() / (self.params.heads * self.kv.shape.key_len)
    }

    /// Up to where a query sees.
    fn position(&self, query: Query) -> usize {
        self.start + self.step * query.token
    }

    /// The first position that a query at `position` sees.
    fn first_position(&self, position: usize) -> usize {
        self.params.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn queries(&self, kv_head: usize, tile: usize) -> Queries {
        let group = self.group();
        let total = self.tokens() * group;
        let first = tile * QUERIES;
        let slots = std::array::from_fn(|slot| {
            let index = (first + slot).min(total - 1);
            Query { token: index / group, head: kv_head * group + index % group }
        });
        Queries { kv_head, count: QUERIES.min(total - first), slots }
    }

    /// All blocks of a tile of queries, merged as they come.
    fn tile(&self, kv_head: usize, tile: usize) {
        let queries = self.queries(kv_head, tile);
        let positions = |query: &Query| self.position(*query);
        let list = queries.list();
        let last = list.iter().map(positions).max().unwrap_or(0) / BLOCK;
        let first = list.iter().map(|q| self.first_position(positions(q))).min().unwrap_or(0);
        let mut states = [Partial::EMPTY; QUERIES];
        let mut results = [Partial::EMPTY; QUERIES];
        for block in first / BLOCK..=last {
            self.block(&queries, block, &mut results);
            for (state, block) in states.iter_mut().zip(&results).take(queries.count) {
                self.isa.run(Merge { state, block, len: self.kv.shape.value_len });
            }
        }
        for (query, state) in list.iter().zip(&states) {
            self.finish(*query, state);
        }
    }

    /// One block for a tile of queries.
    fn block(&self, queries: &Queries, block: usize, results: &mut [Partial; QUERIES]) {
        let shape = self.kv.shape;
        let spans = queries.slots.map(|query| {
            let position = self.position(query);
            let first = self.first_position(position).max(block * BLOCK);
            let end = (position + 1).min((block + 1) * BLOCK);
            // Relative to the block; empty if the query sees none of it.
            (first - block * BLOCK, end.saturating_sub(block * BLOCK))
        });
        let q = queries.slots.map(|query| {
            let at = (query.token * self.params.heads + query.head) * shape.key_len;
            &self.q[at..at + shape.key_len]
        });
        let Self { isa, params, kv, .. } = *self;
        let fetch = self.tokens() == 1;
        let call = BlockCall { isa, params, kv, block, spans, q, fetch };
        let mut weights = [[0.0; BLOCK]; QUERIES];
        call.scores(queries.kv_head, queries.count, &mut weights, results);
        call.values(queries.kv_head, queries.count, &weights, results);
    }

    /// Divides by the sum of weights and writes a head's output.
    fn finish(&self, query: Query, state: &Partial) {
        let len = self.kv.shape.value_len;
        // SAFETY: every query belongs to one piece, or to the caller after the pieces.
        let out =
            unsafe { self.out.range((query.token * self.params.heads + query.head) * len, len) };
        let inverse = 1.0 / state.sum;
        for (out, value) in out.iter_mut().zip(&state.out) {
            *out = value * inverse;
        }
    }
}

/// One block for a tile of queries, with what its two halves need.
#[derive(Clone, Copy)]
struct BlockCall<'a> {
    isa: Isa,
    params: AttentionParams,
    kv: KvLayer<'a>,
    block: usize,
    /// For each query the positions that it sees, relative to the block, end excluded.
    spans: [(usize, usize); QUERIES],
    q: [&'a [f32]; QUERIES],
    /// Whether memory that comes next is asked for.
    fetch: bool,
}

impl BlockCall<'_> {
    fn scores(
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

    fn values(
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
        let mut max = [minus_infinity; Q];
        // Two vectors at a time, so that there are enough chains to hide their latency.
        for v in (0..BLOCK / LANES).step_by(2) {
            // Pages beyond the last position may hold anything; their scores are masked.
            let scores = if LANES * v < end {
                let (pages, _) = pages[v * page_bytes..].split_at(2 * page_bytes);
                let (first, second) = pages.split_at(page_bytes);
                let mut acc = [[simd.splat(0.0); Q]; 2];
                for (d, _) in q[0].iter().enumerate() {
                    // One line a step: with half-precision numbers that is all of the values.
                    if FETCH {
                        prefetch_line(next, 0, v / 2 * key_len + d);
                    }
                    let a = K::load_key(simd, first, key_len, d);
                    let b = K::load_key(simd, second, key_len, d);
                    for i in 0..Q {
                        let q = simd.splat(q[i][d]);
                        acc[0][i] = simd.fma(q, a, acc[0][i]);
                        acc[1][i] = simd.fma(q, b, acc[1][i]);
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
        // Positions that some query sees, and among them those that all see.
        let (start, end) = (low(|span| span.0).unwrap_or(0), high(|span| span.1).unwrap_or(0));
        let from = high(|span| span.0).unwrap_or(0).clamp(start, end.max(start));
        let to = low(|span| span.1).unwrap_or(0).clamp(from, end.max(from));
        for part in (0..value_len.div_ceil(LANES)).step_by(2) {
            let pair = Pair::<V> { rows, next, row_bytes, value_len, part, format: PhantomData };
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

/// Two neighbouring vectors of every value in a block; the second one may not exist.
struct Pair<'a, V> {
    rows: &'a [u8],
    next: &'a [u8],
    row_bytes: usize,
    value_len: usize,
    part: usize,
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
        let Self { rows, next, row_bytes, value_len, part, .. } = *self;
        let second = if LANES * (part + 1) < value_len { part + 1 } else { part };
        let mut sums = *acc;
        for (j, row) in range.clone().zip(rows[range.start * row_bytes..].chunks_exact(row_bytes)) {
            if FETCH {
                prefetch_line(next, next.len(), part / 2 * BLOCK + j);
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

#[cfg(test)]
mod tests;
