//! Tiers of the cache: which page a query sees in which form, and how a page gets there
//! (SPEC N11, B23).
//!
//! A page is a block of 64 positions. In which tier a query sees a page depends on the absolute
//! numbers of its own page and of that one, and on nothing else, so that results do not depend on
//! how positions were cut into passes.

use super::cache::{CacheShape, KvLayer, KvLayerMut};
use super::turn::Turn;
use super::{BLOCK, MAX_HEAD_LEN};
use crate::isa::Isa;
use crate::simd::LANES;
use aios_contract::RopePairing;
use std::ops::Range;

/// The form in which a query sees a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvTier {
    /// As it was written.
    Hot,
    /// Rotated: keys in 8 bits, values in 4.
    Warm,
    /// Rotated: keys in 4 bits, values in 3.
    Cold,
}

impl KvTier {
    /// Every tier, warmest first.
    pub const ALL: [Self; 3] = [Self::Hot, Self::Warm, Self::Cold];
}

/// Which pages are in which tier, and where they lie. All numbers count pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierPlan {
    /// The first so many pages are always hot.
    pub sink: usize,
    /// The query's own page and so many before it are hot.
    pub window: usize,
    /// Pages farther behind the query's than this are cold, if there is such a tier; at least
    /// `window`.
    pub warm: Option<usize>,
    /// Places of hot pages behind those of the first ones; pages take turns in them.
    pub hot_slots: usize,
    /// Places of warm pages; pages take turns in them.
    pub warm_slots: usize,
}

impl TierPlan {
    /// The tier in which a query of page `query` sees page `page`, which is not behind it.
    pub fn tier(&self, query: usize, page: usize) -> KvTier {
        if page < self.sink || query - page <= self.window {
            KvTier::Hot
        } else if self.warm.is_some_and(|warm| query - page > warm) {
            KvTier::Cold
        } else {
            KvTier::Warm
        }
    }

    /// The place of a page in a tier.
    pub const fn slot(&self, tier: KvTier, page: usize) -> usize {
        match tier {
            KvTier::Hot if page < self.sink => page,
            KvTier::Hot => self.sink + (page - self.sink) % self.hot_slots,
            KvTier::Warm => page % self.warm_slots,
            KvTier::Cold => page,
        }
    }

    /// Pages that some query of page `query` or before it sees in a colder tier than hot.
    pub fn demoted(&self, query: usize) -> Range<usize> {
        self.sink..query.saturating_sub(self.window).max(self.sink)
    }

    /// Where a position lies in the hot tier.
    pub const fn hot_position(&self, position: usize) -> usize {
        self.slot(KvTier::Hot, position / BLOCK) * BLOCK + position % BLOCK
    }
}

/// cos and sin of every position, in groups of 16 positions: \[group\]\[2·pairs\]\[16\], the
/// cosines of all pairs and then the sines.
#[derive(Clone, Debug)]
pub struct AngleTable {
    pairs: usize,
    pairing: RopePairing,
    angles: Vec<f32>,
}

impl AngleTable {
    /// A table of `pairs` pairs for `positions` positions, from what `of` gives for each: its
    /// cosines and sines.
    pub fn new<'a>(
        pairs: usize,
        pairing: RopePairing,
        positions: usize,
        mut of: impl FnMut(usize) -> [&'a [f32]; 2],
    ) -> Self {
        let mut angles = vec![0.0; positions.next_multiple_of(BLOCK) * 2 * pairs];
        for position in 0..positions {
            let [cos, sin] = of(position);
            let group = &mut angles[position / LANES * 2 * pairs * LANES..];
            for (i, angle) in cos.iter().chain(sin).enumerate() {
                group[i * LANES + position % LANES] = *angle;
            }
        }
        Self { pairs, pairing, angles }
    }

    /// Bytes that a table of so many pairs and positions takes.
    pub const fn bytes(pairs: usize, positions: usize) -> usize {
        positions.next_multiple_of(BLOCK) * 2 * pairs * size_of::<f32>()
    }

    /// Elements of pair `i` of a head.
    const fn pair(&self, i: usize) -> [usize; 2] {
        match self.pairing {
            RopePairing::Halves => [i, i + self.pairs],
            RopePairing::Adjacent => [2 * i, 2 * i + 1],
        }
    }
}

/// The bias of a layer's keys, which is left out of colder pages and whose part of a score is
/// worked out from the angles of positions.
#[derive(Clone, Copy, Debug)]
pub struct KeyBias<'a> {
    /// \[kv_heads\]\[key_len\].
    pub bias: &'a [f32],
    /// The rotations of the layer's positions.
    pub table: &'a AngleTable,
}

impl<'a> KeyBias<'a> {
    /// Factors of a query: one for each angle, and what does not depend on the position.
    pub(super) const fn factors(&self) -> usize {
        2 * self.table.pairs + 1
    }

    /// The angles of 16 positions, \[2·pairs\]\[16\].
    pub(super) fn group(&self, group: usize) -> &'a [f32] {
        let len = 2 * self.table.pairs * LANES;
        &self.table.angles[group * len..(group + 1) * len]
    }

    /// The factors of `q`, a query head after rope, towards the keys of `kv_head`: with these,
    /// q · rope(bias, position) = last + Σ factor · angle.
    pub(super) fn project(&self, kv_head: usize, q: &[f32], out: &mut [f32]) {
        let bias = &self.bias[kv_head * q.len()..(kv_head + 1) * q.len()];
        let pairs = self.table.pairs;
        for i in 0..pairs {
            let [a, b] = self.table.pair(i);
            out[i] = q[a].mul_add(bias[a], q[b] * bias[b]);
            out[pairs + i] = q[b].mul_add(bias[a], -(q[a] * bias[b]));
        }
        let rest = q[2 * pairs..].iter().zip(&bias[2 * pairs..]);
        out[2 * pairs] = rest.fold(0.0, |sum, (q, bias)| q.mul_add(*bias, sum));
    }

    /// Takes the rotated bias out of `key`, the key of `kv_head` at `position`.
    fn remove(&self, kv_head: usize, position: usize, key: &mut [f32]) {
        let bias = &self.bias[kv_head * key.len()..(kv_head + 1) * key.len()];
        let (pairs, angles) = (self.table.pairs, self.group(position / LANES));
        for i in 0..pairs {
            let [a, b] = self.table.pair(i);
            let angle = |i: usize| angles[i * LANES + position % LANES];
            let (cos, sin) = (angle(i), angle(pairs + i));
            key[a] -= bias[a].mul_add(cos, -(bias[b] * sin));
            key[b] -= bias[a].mul_add(sin, bias[b] * cos);
        }
        for (key, bias) in key.iter_mut().zip(bias).skip(2 * pairs) {
            *key -= bias;
        }
    }
}

/// One layer's cache in all its tiers.
#[derive(Clone, Copy, Debug)]
pub struct KvTiers<'a> {
    /// Pages as they were written; without other tiers at their own numbers.
    pub hot: KvLayer<'a>,
    /// The other tiers.
    pub colder: Option<Colder<'a>>,
}

/// What is not hot of a layer's cache.
#[derive(Clone, Copy, Debug)]
pub struct Colder<'a> {
    /// Which pages are where.
    pub plan: TierPlan,
    /// The warm tier.
    pub warm: KvLayer<'a>,
    /// The cold tier; there is one if the plan says so.
    pub cold: Option<KvLayer<'a>>,
    /// The bias of the keys, if they have one that was taken out.
    pub bias: Option<KeyBias<'a>>,
}

impl<'a> From<KvLayer<'a>> for KvTiers<'a> {
    fn from(hot: KvLayer<'a>) -> Self {
        Self { hot, colder: None }
    }
}

impl<'a> KvTiers<'a> {
    /// The tier in which a query of page `query` sees page `page`.
    pub fn tier(&self, query: usize, page: usize) -> KvTier {
        self.colder.map_or(KvTier::Hot, |colder| colder.plan.tier(query, page))
    }

    /// The memory of a tier, and the place of a page in it.
    pub fn place(&self, tier: KvTier, page: usize) -> (KvLayer<'a>, usize) {
        let Some(colder) = self.colder else { return (self.hot, page) };
        let layer = match tier {
            KvTier::Hot => self.hot,
            KvTier::Warm => colder.warm,
            KvTier::Cold => colder.cold.expect("a plan with cold pages has memory for them"),
        };
        (layer, colder.plan.slot(tier, page))
    }

    /// Asks for the memory that will be written at `position`.
    pub fn expect(&self, position: usize) {
        let plan = self.colder.map(|colder| colder.plan);
        self.hot.expect(plan.map_or(position, |plan| plan.hot_position(position)));
    }
}

/// One layer's colder tiers, to write.
#[derive(Debug)]
pub struct ColderMut<'a> {
    /// Which pages are where.
    pub plan: TierPlan,
    /// The warm tier.
    pub warm: KvLayerMut<'a>,
    /// The cold tier, if there is one.
    pub cold: Option<KvLayerMut<'a>>,
    /// The bias of the keys, which is taken out.
    pub bias: Option<KeyBias<'a>>,
}

impl ColderMut<'_> {
    /// Writes `page`, all of whose positions are written in the hot tier, to the colder ones.
    pub fn demote(&mut self, isa: Isa, hot: KvLayer<'_>, page: usize) {
        let CacheShape { kv_heads, key_len, value_len, .. } = hot.shape;
        let slot = self.plan.slot(KvTier::Hot, page);
        let (mut key, mut value) = ([0.0; MAX_HEAD_LEN], [0.0; MAX_HEAD_LEN]);
        let (key, value) = (&mut key[..key_len], &mut value[..value_len]);
        for head in 0..kv_heads {
            for j in 0..BLOCK {
                hot.read(isa, head, slot * BLOCK + j, key, value);
                if let Some(bias) = &self.bias {
                    bias.remove(head, page * BLOCK + j, key);
                }
                isa.run(Turn { head: key, back: false });
                isa.run(Turn { head: value, back: false });
                let place = self.plan.slot(KvTier::Warm, page) * BLOCK + j;
                self.warm.write_head(isa, head, place, key, value);
                if let Some(cold) = &mut self.cold {
                    cold.write_head(isa, head, page * BLOCK + j, key, value);
                }
            }
        }
    }
}
