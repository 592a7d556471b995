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
//!
//! Where the cache has tiers (SPEC N11, [`tiers`]), blocks that a query sees in a rotated form
//! meet the rotated query, and are merged on their own; their sum is rotated back once.

mod all;
mod block;
mod cache;
mod codes;
mod partial;
mod tiers;
mod turn;

pub use all::attend_all;
pub use cache::{CacheShape, CacheType, KvLayer, KvLayerMut, UnknownCacheType};
pub use tiers::{AngleTable, Colder, ColderMut, KeyBias, KvTier, KvTiers, TierPlan};

use crate::isa::Isa;
use crate::pool::Pool;
use crate::shared::Shared;
use block::BlockCall;
use partial::{Merge, Partial};
use std::sync::atomic::{AtomicUsize, Ordering};
use turn::Turn;

/// Positions in a block.
pub const BLOCK: usize = 64;
/// The longest head that attention is built for.
pub const MAX_HEAD_LEN: usize = 256;
/// Queries that go together.
const QUERIES: usize = 4;
/// From this many blocks on, a single token's blocks are shared out among the threads.
const SPLIT_FROM: usize = 2;
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
    /// Rotated queries with the factors of the keys' bias, \[n\]\[heads\]\[turned row\].
    turned: Vec<f32>,
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
pub fn attend<'a>(
    isa: Isa,
    pool: &Pool,
    params: AttentionParams,
    kv: impl Into<KvTiers<'a>>,
    start: usize,
    q: &[f32],
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let kv = kv.into();
    let shape = kv.hot.shape;
    let row = params.heads * shape.key_len;
    assert!(row > 0 && q.len().is_multiple_of(row));
    let n = q.len() / row;
    assert!(n > 0 && out.len() == n * params.heads * shape.value_len);
    assert!(params.heads.is_multiple_of(shape.kv_heads));
    assert!(kv.colder.is_some() || start + n <= shape.capacity);
    assert!(shape.key_len <= MAX_HEAD_LEN && shape.value_len <= MAX_HEAD_LEN);
    let turned = std::mem::take(&mut scratch.turned);
    let mut job = Job { isa, params, kv, start, step: 1, q, turned, out: Shared::new(out) };
    job.turn(pool);
    let job = job;
    let tiles = (n * job.group()).div_ceil(QUERIES);
    let blocks = start / BLOCK + 1;
    if n == 1 && blocks >= SPLIT_FROM && pool.threads() > 1 {
        attend_split(pool, &job, tiles, blocks, scratch);
    } else {
        pool.for_each(shape.kv_heads * tiles, &|piece| job.tile(piece / tiles, piece % tiles));
    }
    scratch.turned = job.turned;
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
    let kv_heads = job.shape().kv_heads;
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
                job.block(&queries, block, job.tier(job.start, block), results);
            }
        }
        if done[kv_head].fetch_add(1, Ordering::AcqRel) + 1 < runs {
            return;
        }
        for tile in 0..tiles {
            let queries = job.queries(kv_head, tile);
            for (slot, query) in queries.list().iter().enumerate() {
                let (mut state, mut turned) = (Partial::EMPTY, Partial::EMPTY);
                for block in first..blocks {
                    let hot = job.tier(job.start, block) == KvTier::Hot;
                    let state = if hot { &mut state } else { &mut turned };
                    // SAFETY: all pieces of the head are done, as the count has shown, and only
                    // the one that was counted last comes here.
                    let block = unsafe { partials.range(at(kv_head, block, tile) + slot, 1) };
                    job.isa.run(Merge { state, block: &block[0], len: job.value_len() });
                }
                job.finish(*query, &mut state, &mut turned);
            }
        }
    });
}

/// One call of [`attend`] or [`attend_all`].
struct Job<'a> {
    isa: Isa,
    params: AttentionParams,
    kv: KvTiers<'a>,
    /// The position of the first token, and how far each lies behind the one before.
    start: usize,
    step: usize,
    q: &'a [f32],
    /// Rotated queries, as in [`AttentionScratch`]; empty if no tier needs them.
    turned: Vec<f32>,
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

impl<'a> Job<'a> {
    /// The shape of the hot tier, of which all have heads and lengths.
    fn shape(&self) -> CacheShape {
        self.kv.hot.shape
    }

    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.params.heads / self.shape().kv_heads
    }

    fn value_len(&self) -> usize {
        self.shape().value_len
    }

    fn tokens(&self) -> usize {
        self.q.len() / (self.params.heads * self.shape().key_len)
    }

    /// Up to where a query sees.
    fn position(&self, query: Query) -> usize {
        self.start + self.step * query.token
    }

    /// The first position that a query at `position` sees.
    fn first_position(&self, position: usize) -> usize {
        self.params.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The tier in which a query at `position` sees a block.
    fn tier(&self, position: usize, block: usize) -> KvTier {
        match position / BLOCK {
            // What is behind the query is not seen; the cache may not have it.
            own if own < block => KvTier::Hot,
            own => self.kv.tier(own, block),
        }
    }

    /// A query's head, rotated, and behind it the factors of the keys' bias.
    const fn turned_len(&self) -> usize {
        let factors = match &self.kv.colder {
            Some(Colder { bias: Some(bias), .. }) => bias.factors(),
            _ => 0,
        };
        self.kv.hot.shape.key_len + factors
    }

    /// Rotates the queries, if there are tiers that need them so.
    fn turn(&mut self, pool: &Pool) {
        let Some(colder) = self.kv.colder else { return };
        let (heads, len, row) = (self.params.heads, self.shape().key_len, self.turned_len());
        self.turned.resize(self.tokens() * heads * row, 0.0);
        let (isa, q, group, tokens) = (self.isa, self.q, self.group(), self.tokens());
        let turned = Shared::new(&mut self.turned);
        pool.for_each(tokens, &|token| {
            for head in token * heads..(token + 1) * heads {
                // SAFETY: each token is one piece, and a piece is given to one thread.
                let turned = unsafe { turned.range(head * row, row) };
                let (to, factors) = turned.split_at_mut(len);
                to.copy_from_slice(&q[head * len..(head + 1) * len]);
                if let Some(bias) = &colder.bias {
                    bias.project(head % heads / group, to, factors);
                }
                isa.run(Turn { head: to, back: false });
            }
        });
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
        // What was merged of hot blocks, and of those that are rotated.
        let mut states = [[Partial::EMPTY; QUERIES]; 2];
        let mut results = [Partial::EMPTY; QUERIES];
        for block in first / BLOCK..=last {
            for tier in KvTier::ALL {
                if list.iter().all(|query| self.tier(positions(query), block) != tier) {
                    continue;
                }
                self.block(&queries, block, tier, &mut results);
                let states = &mut states[usize::from(tier != KvTier::Hot)];
                for (state, block) in states.iter_mut().zip(&results).take(queries.count) {
                    self.isa.run(Merge { state, block, len: self.value_len() });
                }
            }
        }
        let [states, turned] = &mut states;
        for (query, (state, turned)) in list.iter().zip(states.iter_mut().zip(turned)) {
            self.finish(*query, state, turned);
        }
    }

    /// One block for those of a tile's queries that see it in `tier`; the others' sums are 0.
    fn block(
        &self,
        queries: &Queries,
        block: usize,
        tier: KvTier,
        results: &mut [Partial; QUERIES],
    ) {
        let spans = queries.slots.map(|query| {
            let position = self.position(query);
            if self.tier(position, block) != tier {
                return (0, 0);
            }
            let first = self.first_position(position).max(block * BLOCK);
            let end = (position + 1).min((block + 1) * BLOCK);
            // Relative to the block; empty if the query sees none of it.
            (first - block * BLOCK, end.saturating_sub(block * BLOCK))
        });
        let (from, row) = match tier {
            KvTier::Hot => (self.q, self.shape().key_len),
            KvTier::Warm | KvTier::Cold => (&*self.turned, self.turned_len()),
        };
        let q = queries.slots.map(|query| {
            let at = (query.token * self.params.heads + query.head) * row;
            &from[at..at + row]
        });
        let bias = self.kv.colder.and_then(|colder| colder.bias).filter(|_| tier != KvTier::Hot);
        let bias = bias.map(|bias| (bias, block));
        let (kv, place) = self.kv.place(tier, block);
        let Self { isa, params, .. } = *self;
        let fetch = self.tokens() == 1;
        let call = BlockCall { isa, params, kv, block: place, spans, q, bias, fetch };
        let mut weights = [[0.0; BLOCK]; QUERIES];
        call.scores(queries.kv_head, queries.count, &mut weights, results);
        call.values(queries.kv_head, queries.count, &weights, results);
    }

    /// Rotates back and adds what is rotated, divides by the sum of weights and writes a head's
    /// output.
    fn finish(&self, query: Query, state: &mut Partial, turned: &mut Partial) {
        let len = self.value_len();
        if turned.sum != 0.0 {
            self.isa.run(Turn { head: &mut turned.out[..len], back: true });
            self.isa.run(Merge { state, block: turned, len });
        }
        // SAFETY: every query belongs to one piece, or to the caller after the pieces.
        let out =
            unsafe { self.out.range((query.token * self.params.heads + query.head) * len, len) };
        let inverse = 1.0 / state.sum;
        for (out, value) in out.iter_mut().zip(&state.out) {
            *out = value * inverse;
        }
    }
}

#[cfg(test)]
mod tests;
