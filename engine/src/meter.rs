//! What the executor tells of its work while it runs: the ledger counts always, and an observer,
//! where there is one, sees every access and what the feed-forward parts compute.

use crate::cache::KvCache;
use crate::model::NormWeights;
use aios_contract::TensorName;
use aios_kernels::{BLOCK, KvLayer, KvTier, KvTiers, Matrix};
use aios_residency::{Access, Data, Ledger, PartBytes, Phase, TierBytes};
use std::fmt::Debug;
use std::ops::Range;

/// Sees what an executor does. It is called on the thread that runs the pass, between kernels.
pub trait Observer: Debug + Send {
    /// A pass of `tokens` tokens begins.
    fn pass(&mut self, phase: Phase, tokens: usize) {
        let _ = (phase, tokens);
    }

    /// Memory is read or written.
    fn access(&mut self, access: Access) {
        let _ = access;
    }

    /// What the output matrix is about to read, \[n\]\[d_model\], for positions whose logits are
    /// wanted.
    fn head(&mut self, rows: &[f32]) {
        let _ = rows;
    }

    /// Whether it wants [`Self::feed_forward`] to be called. Where it does, zero neurons are
    /// computed as all others (SPEC D16).
    fn sees_feed_forward(&self) -> bool {
        true
    }

    /// What a layer's down projection is about to read, act(gate · x) ⊙ (up · x) for each token.
    /// What is changed of it, the pass goes on with.
    fn feed_forward(&mut self, inner: Inner<'_>) {
        let _ = inner;
    }
}

/// Inner activations of a layer's feed-forward part for the n tokens of a pass.
#[derive(Debug)]
pub struct Inner<'a> {
    /// The layer.
    pub layer: usize,
    /// Neurons: elements of a row.
    pub len: usize,
    /// gate · x before its activation, \[n\]\[len\]; `None` where there is no gate.
    pub gate: Option<&'a [f32]>,
    /// What goes into the down projection, \[n\]\[len\].
    pub rows: &'a mut [f32],
}

/// The ledger and the observer of an executor.
#[derive(Debug)]
pub(crate) struct Meter {
    pub ledger: Ledger,
    pub observer: Option<Box<dyn Observer>>,
}

impl Meter {
    pub(crate) fn new(layers: usize) -> Self {
        Self { ledger: Ledger::new(layers), observer: None }
    }

    pub(crate) fn start_pass(&mut self, phase: Phase, tokens: usize) {
        self.ledger.start_pass(phase, tokens);
        if let Some(observer) = &mut self.observer {
            observer.pass(phase, tokens);
        }
    }

    /// Whether an observer wants to see what goes into the down projections.
    pub(crate) fn shows_feed_forward(&self) -> bool {
        self.observer.as_ref().is_some_and(|observer| observer.sees_feed_forward())
    }

    fn observe(&mut self, access: impl FnOnce() -> Access) {
        if let Some(observer) = &mut self.observer {
            observer.access(access());
        }
    }

    /// A tensor, or a part of one, is read: `bytes` of it, which lie in `memory`. In panels that is
    /// a little more, the rows that fill up the last.
    pub(crate) fn weights<T>(&mut self, name: TensorName, bytes: usize, memory: &[T]) {
        self.ledger.read(name, bytes);
        self.observe(|| Access::read(Data::Weights(name), memory));
    }

    /// As [`Self::weights`], of `bytes` bytes of a matrix, for `n` tokens.
    pub(crate) fn matrix(&mut self, name: TensorName, bytes: usize, weights: Matrix<'_>, n: usize) {
        self.ledger.read(name, bytes);
        let past = weights.is_read_past(n);
        self.observe(|| Access { past, ..Access::read(Data::Weights(name), weights.bytes()) });
    }

    /// As [`Self::weights`], of a part that may have come from the disk.
    pub(crate) fn part(&mut self, name: TensorName, bytes: usize, part: &PartBytes<'_>) {
        self.ledger.read(name, bytes);
        let fresh = part.in_buffer();
        self.observe(|| Access { fresh, ..Access::read(Data::Weights(name), part) });
    }

    /// Some rows of a tensor are read, `bytes` in all.
    pub(crate) fn rows<'a>(
        &mut self,
        name: TensorName,
        bytes: usize,
        rows: impl Iterator<Item = &'a [u8]>,
    ) {
        self.ledger.read(name, bytes);
        if self.observer.is_some() {
            rows.for_each(|row| self.observe(|| Access::read(Data::Weights(name), row)));
        }
    }

    /// What goes with the matrix or the gain `of` is read.
    pub(crate) fn bias(&mut self, of: TensorName, bias: &[f32]) {
        self.weights(of.bias().unwrap_or(of), size_of_val(bias), bias);
    }

    /// The gain and bias of a norm are read; `layer` is `None` for that behind all layers.
    pub(crate) fn norm(&mut self, layer: Option<usize>, norm: &NormWeights) {
        let layer = layer.and_then(|layer| u32::try_from(layer).ok());
        let name = TensorName { role: norm.role, layer };
        self.weights(name, size_of_val(&*norm.gain), &norm.gain);
        if let Some(bias) = &norm.bias {
            self.bias(name, bias);
        }
    }

    /// Vectors between the layers' parts are read; they are not counted.
    pub(crate) fn read(&mut self, memory: &[f32]) {
        self.observe(|| Access::read(Data::Activations, memory));
    }

    /// Vectors between the layers' parts are written; they are not counted.
    pub(crate) fn wrote(&mut self, memory: &[f32]) {
        self.observe(|| Access::write(Data::Activations, memory));
    }

    /// Attention of `layer` has written the positions `new` to its cache, then the pages `demoted`
    /// to the colder tiers, and reads the positions `visible`. A pass reads each page of a tier
    /// once, however many of its tokens see it.
    pub(crate) fn cache(
        &mut self,
        layer: usize,
        cache: KvTiers<'_>,
        (new, demoted): (Range<usize>, Range<usize>),
        visible: Range<usize>,
    ) {
        let number = u32::try_from(layer).unwrap_or(u32::MAX);
        let (mut read, mut written) = (TierBytes::default(), TierBytes::default());
        if cache.colder.is_none() {
            let position = cache.hot.shape.page_bytes() / BLOCK;
            written.hot = (new.len() * position) as u64;
            self.run(number, (cache.hot, new), Access::write);
            read.hot = self.run(number, (cache.hot, visible), Access::read);
        } else {
            for page in new.start / BLOCK..new.end.div_ceil(BLOCK) {
                let (kv, range) = place(&cache, KvTier::Hot, page, &new);
                written.hot += (range.len() * kv.shape.page_bytes() / BLOCK) as u64;
                self.run(number, (kv, range), Access::write);
            }
            for page in demoted {
                self.demoted((number, page), &cache, &mut read, &mut written);
            }
            let queries = new.start / BLOCK..=(new.end - 1) / BLOCK;
            for page in visible.start / BLOCK..visible.end.div_ceil(BLOCK) {
                for tier in KvCache::seen(&cache, queries.clone(), page) {
                    let (kv, range) = place(&cache, tier, page, &visible);
                    let bytes = self.run(number, (kv, range), Access::read);
                    add(&mut read, tier, bytes);
                }
            }
        }
        self.ledger.kv(read, written);
    }

    /// A page of a layer is read as it was written, and written to the colder tiers.
    fn demoted(
        &mut self,
        (layer, page): (u32, usize),
        cache: &KvTiers<'_>,
        read: &mut TierBytes,
        written: &mut TierBytes,
    ) {
        let positions = page * BLOCK..(page + 1) * BLOCK;
        let of = |tier| place(cache, tier, page, &positions);
        // Row by row, as no product does: not past the caches.
        let (hot, range) = of(KvTier::Hot);
        read.hot += self.run(layer, (KvLayer { past: false, ..hot }, range), Access::read);
        written.warm += self.run(layer, of(KvTier::Warm), Access::write);
        if cache.colder.as_ref().is_some_and(|colder| colder.cold.is_some()) {
            written.cold += self.run(layer, of(KvTier::Cold), Access::write);
        }
    }

    /// Positions that lie side by side are read or written. Returns their bytes, keys in whole
    /// groups of 16.
    fn run(
        &mut self,
        layer: u32,
        (kv, positions): (KvLayer<'_>, Range<usize>),
        access: fn(Data, &[u8]) -> Access,
    ) -> u64 {
        if self.observer.is_some() {
            for head in 0..kv.shape.kv_heads {
                let [keys, values] = kv.at(head, positions.clone());
                for (data, bytes) in [(Data::Keys(layer), keys), (Data::Values(layer), values)] {
                    let access = access(data, bytes);
                    self.observe(|| Access { past: kv.past && !access.write, ..access });
                }
            }
        }
        let [keys, values] = kv.at(0, positions);
        (kv.shape.kv_heads * (keys.len() + values.len())) as u64
    }

    pub(crate) fn head(&mut self, rows: &[f32]) {
        if let Some(observer) = &mut self.observer {
            observer.head(rows);
        }
    }

    pub(crate) fn feed_forward(
        &mut self,
        layer: usize,
        len: usize,
        gate: Option<&[f32]>,
        rows: &mut [f32],
    ) {
        if let Some(observer) = &mut self.observer {
            observer.feed_forward(Inner { layer, len, gate, rows });
        }
    }
}

/// The memory of a tier, and where those of `positions` lie in it that are in `page`.
fn place<'a>(
    cache: &KvTiers<'a>,
    tier: KvTier,
    page: usize,
    positions: &Range<usize>,
) -> (KvLayer<'a>, Range<usize>) {
    let (kv, place) = cache.place(tier, page);
    let at = |position: usize| position - page * BLOCK + place * BLOCK;
    let start = positions.start.max(page * BLOCK);
    (kv, at(start)..at(positions.end.min((page + 1) * BLOCK)))
}

/// Counts bytes for a tier.
const fn add(sum: &mut TierBytes, tier: KvTier, bytes: u64) {
    let of = match tier {
        KvTier::Hot => &mut sum.hot,
        KvTier::Warm => &mut sum.warm,
        KvTier::Cold => &mut sum.cold,
    };
    *of += bytes;
}
