//! The KV cache of a sequence: pages of 64 positions, in up to three tiers (SPEC N11, B23).

use crate::error::EngineError;
use crate::forward::ExecutorOptions;
use crate::model::Model;
use crate::rope::RopeTable;
use aios_contract::ModelConfig;
use aios_kernels::{
    AngleTable, BLOCK, CacheShape, CacheType, Colder, ColderMut, Isa, KeyBias, KvLayer, KvLayerMut,
    KvTier, KvTiers, Pool, TierPlan,
};
use aios_residency::{KvArena, SharedPages};
use std::io;
use std::ops::Range;

/// Pages at the start of a sequence that stay as they were written.
const SINK_PAGES: usize = 1;
/// Pages before that of a query which it sees as they were written: 128 to 191 positions.
const WINDOW_PAGES: usize = 2;
/// Pages before that of a query which it sees at least warm, where there is a cold tier.
const WARM_PAGES: usize = 16;
/// Hot pages kept beyond those that passes need, so that a sequence can be taken back.
const SPARE_PAGES: usize = 8;

/// Which tiers a cache has besides the pages that are kept as they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvTiering {
    /// None.
    #[default]
    Off,
    /// Older pages are rotated and kept with keys in 8 bits and values in 4.
    Warm,
    /// Pages older still with keys in 4 bits and values in 3.
    Cold,
}

/// A tiering that this engine does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown tiers {0:?} of the KV cache; known are off, warm, cold")]
pub struct UnknownTiering(pub String);

impl KvTiering {
    /// Every tiering.
    pub const ALL: [Self; 3] = [Self::Off, Self::Warm, Self::Cold];

    /// The spelling on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }

    /// The first position of a sequence that sees a page of the oldest of these tiers: the first
    /// page behind those of the beginning is then older than those of the newer tiers.
    pub const fn first_position(self) -> usize {
        match self {
            Self::Off => 0,
            Self::Warm => (SINK_PAGES + WINDOW_PAGES + 1) * BLOCK,
            Self::Cold => (SINK_PAGES + WARM_PAGES + 1) * BLOCK,
        }
    }
}

impl std::str::FromStr for KvTiering {
    type Err = UnknownTiering;

    fn from_str(name: &str) -> Result<Self, UnknownTiering> {
        let known = Self::ALL.into_iter().find(|tiering| tiering.name() == name);
        known.ok_or_else(|| UnknownTiering(name.to_owned()))
    }
}

impl std::fmt::Display for KvTiering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How large the tiers of a cache are and where pages go: decided when a session starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvPlan {
    layers: usize,
    context: usize,
    /// The pages as they are written; the capacity is that of their places.
    hot: CacheShape,
    colder: Option<ColderPlan>,
    /// Bytes of the angles that the keys' bias is turned by.
    table_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct ColderPlan {
    tiers: TierPlan,
    warm: CacheShape,
    cold: Option<CacheShape>,
}

impl KvPlan {
    /// The plan of a cache for a model.
    ///
    /// # Errors
    /// [`EngineError::CacheType`] if the heads cannot be stored so, [`EngineError::KvBudget`].
    pub(crate) fn new(model: &Model, options: &ExecutorOptions) -> Result<Self, EngineError> {
        let config = model.config();
        let pages = options.context.div_ceil(BLOCK);
        let hot = shape(config, [options.cache_k, options.cache_v], pages)?;
        let (layers, context) = (config.layers, options.context);
        let mut plan = Self { layers, context, hot, colder: None, table_bytes: 0 };
        if options.kv_tiers != KvTiering::Off {
            plan.add_tiers(model, options, pages)?;
        }
        let Some(budget) = options.kv_budget else { return Ok(plan) };
        if let Some(colder) = plan.colder {
            // What the budget leaves goes to places of hot pages, from which a sequence can be
            // taken back farther.
            plan.set_hot(options, pages, 1);
            let left = budget.saturating_sub(plan.bytes() as u64);
            let place = (plan.layers * colder.page_bytes(&plan.hot)) as u64;
            let more = usize::try_from(left / place).unwrap_or(usize::MAX);
            plan.set_hot(options, pages, more.saturating_add(1));
        }
        if plan.bytes() as u64 > budget {
            let given = budget;
            let (least, tiered) = (plan.bytes() as u64, options.kv_tiers != KvTiering::Off);
            return Err(EngineError::KvBudget { given, least, tiered });
        }
        Ok(plan)
    }

    /// As [`Self::new`], and the tiers: those of `options`, or where the budget is to choose them
    /// the first of all that keep to it.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub(crate) fn choose(
        model: &Model,
        options: &ExecutorOptions,
    ) -> Result<(Self, KvTiering), EngineError> {
        if !options.kv_by_budget {
            return Self::new(model, options).map(|plan| (plan, options.kv_tiers));
        }
        let mut refused: Option<(u64, EngineError)> = None;
        for kv_tiers in KvTiering::ALL {
            match Self::new(model, &ExecutorOptions { kv_tiers, ..options.clone() }) {
                Ok(plan) if kv_tiers == KvTiering::Off => return Ok((plan, kv_tiers)),
                Ok(plan) => {
                    tracing::warn!(
                        "the KV cache keeps to its budget with tiers ({kv_tiers}), which changes \
                         results a little; --kv-tiers off does without"
                    );
                    return Ok((plan, kv_tiers));
                }
                // What takes least is what a larger budget must reach.
                Err(error @ EngineError::KvBudget { least, .. }) => {
                    if refused.as_ref().is_none_or(|(before, _)| least < *before) {
                        refused = Some((least, error));
                    }
                }
                // A model that cannot have tiers is told what it takes without.
                Err(error) => return Err(refused.map_or(error, |(_, refused)| refused)),
            }
        }
        Err(refused.expect("nothing else goes on with the loop").1)
    }

    fn add_tiers(
        &mut self,
        model: &Model,
        options: &ExecutorOptions,
        pages: usize,
    ) -> Result<(), EngineError> {
        let config = model.config();
        let warm = shape(config, [CacheType::Code8, CacheType::Code4], pages)?;
        let cold = match options.kv_tiers {
            KvTiering::Cold => Some(shape(config, [CacheType::Code4, CacheType::Code3], pages)?),
            _ => None,
        };
        let tiers = TierPlan {
            sink: SINK_PAGES,
            window: WINDOW_PAGES,
            warm: cold.map(|_| WARM_PAGES),
            hot_slots: pages,
            warm_slots: pages,
        };
        self.colder = Some(ColderPlan { tiers, warm, cold });
        if biases(model).any(|bias| bias.is_some()) {
            let ropes = model.ropes(self.context);
            let tables = 1 + usize::from(ropes.local.is_some());
            self.table_bytes = tables * AngleTable::bytes(ropes.global.pairs(), self.context);
        }
        self.set_hot(options, pages, SPARE_PAGES);
        Ok(())
    }

    /// Gives the hot tier so many places more than passes need, and the warm one, where there is
    /// a cold one, as many as that asks for; but no more than the context has pages.
    fn set_hot(&mut self, options: &ExecutorOptions, pages: usize, spare: usize) {
        let Some(colder) = &mut self.colder else { return };
        let tiers = &mut colder.tiers;
        let pass = options.batch.clamp(1, self.context).div_ceil(BLOCK) + 1;
        let most = pages.saturating_sub(tiers.sink).max(1);
        tiers.hot_slots = (tiers.window + pass).saturating_add(spare).min(most);
        self.hot.capacity = (tiers.sink + tiers.hot_slots) * BLOCK;
        tiers.warm_slots = tiers.warm.map_or(pages, |warm| (tiers.hot_slots + warm).min(pages));
        colder.warm.capacity = tiers.warm_slots * BLOCK;
    }

    /// Bytes that the cache takes.
    pub(crate) fn bytes(&self) -> usize {
        let colder = self.colder.iter();
        let shapes = colder.flat_map(|colder| [Some(colder.warm), colder.cold]).flatten();
        let bytes = |shape: CacheShape| shape.capacity / BLOCK * shape.page_bytes();
        let layer: usize = shapes.chain([self.hot]).map(bytes).sum();
        self.layers.saturating_mul(layer).saturating_add(self.table_bytes)
    }

    /// Positions of the context in whole pages.
    pub(crate) const fn positions(&self) -> usize {
        self.context.next_multiple_of(BLOCK)
    }
}

impl ColderPlan {
    /// Bytes of a layer that a place for a hot page takes, with the warm one that goes with it.
    fn page_bytes(&self, hot: &CacheShape) -> usize {
        hot.page_bytes() + self.tiers.warm.map_or(0, |_| self.warm.page_bytes())
    }
}

/// The shape of a tier with `pages` places.
fn shape(
    config: &ModelConfig,
    [key_type, value_type]: [CacheType; 2],
    pages: usize,
) -> Result<CacheShape, EngineError> {
    let attention = &config.attention;
    for (kind, len) in [(key_type, attention.key_len), (value_type, attention.value_len)] {
        if !kind.fits(len) {
            return Err(match kind {
                CacheType::Q8_0 => EngineError::CacheType { kind, len },
                _ => EngineError::KvTiers { len },
            });
        }
    }
    Ok(CacheShape {
        key_type,
        value_type,
        kv_heads: attention.kv_heads,
        key_len: attention.key_len,
        value_len: attention.value_len,
        capacity: pages * BLOCK,
    })
}

/// What is added to the keys of each layer before they are rotated by their positions, where
/// nothing comes between.
fn biases(model: &Model) -> impl Iterator<Item = Option<&[f32]>> {
    let layers = model.weights().layers.iter();
    layers.map(|layer| layer.k.bias.as_deref().filter(|_| layer.k_norm.is_none()))
}

/// Keys and values of the positions `0..len` of one sequence, in every layer.
///
/// Going back to an earlier length leaves no trace: what lies behind it is never looked at
/// before it is written again.
#[derive(Debug)]
pub(crate) struct KvCache {
    plan: KvPlan,
    hot: KvArena,
    colder: Option<ColderTiers>,
    /// Whether it is read past the processor's caches.
    past: bool,
}

/// What is added to a layer's keys, and the number of the table that it is turned by; `None` where
/// there is no bias.
type TurnedBias = Option<(Vec<f32>, usize)>;

#[derive(Debug)]
struct ColderTiers {
    plan: ColderPlan,
    warm: KvArena,
    cold: Option<KvArena>,
    /// For each layer its keys' bias and the number of its table.
    biases: Vec<TurnedBias>,
    /// For global and for local layers.
    tables: Vec<AngleTable>,
    /// Pages before this one, but the first ones, are in the colder tiers.
    demoted: usize,
    /// Hot pages before this one, but the first ones, have lost their places.
    oldest: usize,
}

impl KvCache {
    /// A cache as planned.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    pub(crate) fn new(model: &Model, plan: KvPlan) -> Result<Self, EngineError> {
        let arena =
            |shape: &CacheShape| KvArena::new(plan.layers, shape.key_bytes(), shape.value_bytes());
        let colder = match &plan.colder {
            None => None,
            Some(colder) => {
                let (biases, tables) = turned_biases(model, &plan);
                Some(ColderTiers {
                    plan: *colder,
                    warm: arena(&colder.warm)?,
                    cold: colder.cold.as_ref().map(arena).transpose()?,
                    biases,
                    tables,
                    demoted: 0,
                    oldest: 0,
                })
            }
        };
        Ok(Self { plan, hot: arena(&plan.hot)?, colder, past: false })
    }

    /// Positions that fit.
    pub(crate) const fn context(&self) -> usize {
        self.plan.context
    }

    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.plan.bytes()
    }

    /// A copy of the first `positions` positions, in whole pages, that other caches of the same
    /// plan can have; `None` where the cache has tiers, whose pages move.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn share(&self, positions: usize) -> Option<io::Result<SharedPages>> {
        if self.colder.is_some() {
            return None;
        }
        let CacheShape { kv_heads, capacity, .. } = self.plan.hot;
        let pages = positions.min(capacity) / BLOCK;
        let [keys, values] = [self.plan.hot.key_bytes(), self.plan.hot.value_bytes()];
        let of = |bytes: usize| {
            let head = bytes / kv_heads;
            let len = head / (capacity / BLOCK) * pages;
            (0..kv_heads).map(|number| number * head..number * head + len).collect()
        };
        Some(SharedPages::copy(&self.hot, [of(keys), of(values)]))
    }

    /// Takes the positions that another cache of the same plan has shared.
    ///
    /// # Errors
    /// The operating system's; the cache must not be used then.
    pub(crate) fn take(&mut self, pages: &SharedPages) -> io::Result<()> {
        pages.give(&mut self.hot)
    }

    /// Bytes of the first `len` positions as they were written.
    pub(crate) fn bytes_of(&self, len: usize) -> usize {
        self.plan.layers * self.plan.hot.page_bytes() * len.div_ceil(BLOCK)
    }

    /// From now on it is read past the processor's caches, or not.
    pub(crate) fn read_past(&mut self, past: bool) {
        self.past = past;
    }

    /// A layer's keys and values.
    pub(crate) fn layer(&self, layer: usize) -> KvTiers<'_> {
        let of = |arena, shape| KvLayer { past: self.past, ..view(arena, shape, layer) };
        let colder = self.colder.as_ref().map(|colder| Colder {
            plan: colder.plan.tiers,
            warm: of(&colder.warm, colder.plan.warm),
            cold: colder.cold.as_ref().zip(colder.plan.cold).map(|(cold, shape)| of(cold, shape)),
            bias: bias_of(&colder.biases, &colder.tables, layer),
        });
        KvTiers { hot: of(&self.hot, self.plan.hot), colder }
    }

    /// Writes the keys and values of `n` positions from `start`: `k` is \[n\]\[kv_heads·key_len\],
    /// `v` likewise.
    pub(crate) fn write(
        &mut self,
        (isa, pool): (Isa, &Pool),
        layer: usize,
        start: usize,
        rows: (&[f32], &[f32]),
    ) {
        let shape = self.plan.hot;
        let tiers = self.colder.as_ref().map(|colder| colder.plan.tiers);
        let place = |position| tiers.map_or(position, |tiers| tiers.hot_position(position));
        view_mut(&mut self.hot, shape, layer).write_rows(isa, pool, (start, &place), rows);
    }

    /// Writes to the colder tiers what queries up to the page of position `last` see there, in one
    /// layer. Returns the pages.
    pub(crate) fn demote(&mut self, isa: Isa, layer: usize, last: usize) -> Range<usize> {
        let Some(colder) = &mut self.colder else { return 0..0 };
        let hot = view(&self.hot, self.plan.hot, layer);
        let ColderPlan { tiers, warm, cold } = colder.plan;
        let pages = tiers.demoted(last / BLOCK);
        let pages = pages.start.max(colder.demoted)..pages.end;
        let mut to = ColderMut {
            plan: tiers,
            warm: view_mut(&mut colder.warm, warm, layer),
            cold: colder.cold.as_mut().zip(cold).map(|(cold, shape)| view_mut(cold, shape, layer)),
            bias: bias_of(&colder.biases, &colder.tables, layer),
        };
        for page in pages.clone() {
            to.demote(isa, hot, page);
        }
        pages
    }

    /// All layers have written the positions up to `len` and what goes with them.
    pub(crate) fn commit(&mut self, len: usize) {
        let Some(colder) = &mut self.colder else { return };
        let (tiers, last) = (colder.plan.tiers, len.saturating_sub(1) / BLOCK);
        colder.demoted = colder.demoted.max(tiers.demoted(last).end);
        colder.oldest = colder.oldest.max((last + 1).saturating_sub(tiers.hot_slots));
    }

    /// Forgets the positions from `len` on. Returns how many are left: `len`, or where hot pages
    /// that are needed to go on from there have lost their places, those of the first pages.
    pub(crate) fn truncate(&mut self, len: usize) -> usize {
        let Some(colder) = &mut self.colder else { return len };
        let (tiers, page) = (colder.plan.tiers, len / BLOCK);
        let first = page.saturating_sub(tiers.window).max(tiers.sink);
        let len = match colder.oldest <= first || page < tiers.sink {
            true => len,
            false => tiers.sink * BLOCK,
        };
        // Places behind the first pages hold what is written after this, page by page.
        if len <= tiers.sink * BLOCK {
            colder.oldest = 0;
        }
        colder.demoted = colder.demoted.min(len / BLOCK);
        len
    }

    /// The tiers in which queries of the pages `queries` see `page`.
    pub(crate) fn seen(
        tiers: &KvTiers<'_>,
        queries: std::ops::RangeInclusive<usize>,
        page: usize,
    ) -> impl Iterator<Item = KvTier> {
        let (first, last) = (*queries.start().max(&page), *queries.end());
        let (warmest, coldest) = (tiers.tier(first, page), tiers.tier(last, page));
        let between = (first..=last).any(|query| tiers.tier(query, page) == KvTier::Warm);
        KvTier::ALL.into_iter().filter(move |tier| {
            *tier == warmest || *tier == coldest || (*tier == KvTier::Warm && between)
        })
    }
}

fn view(arena: &KvArena, shape: CacheShape, layer: usize) -> KvLayer<'_> {
    let [keys, values] = arena.layer(layer);
    KvLayer { shape, keys, values, past: false }
}

fn view_mut(arena: &mut KvArena, shape: CacheShape, layer: usize) -> KvLayerMut<'_> {
    let [keys, values] = arena.layer_mut(layer);
    KvLayerMut { shape, keys, values }
}

fn bias_of<'a>(
    biases: &'a [TurnedBias],
    tables: &'a [AngleTable],
    layer: usize,
) -> Option<KeyBias<'a>> {
    let (bias, table) = biases[layer].as_ref()?;
    Some(KeyBias { bias, table: &tables[*table] })
}

/// The keys' bias of each layer with the number of its table, and the tables: none if no layer has
/// a bias.
fn turned_biases(model: &Model, plan: &KvPlan) -> (Vec<TurnedBias>, Vec<AngleTable>) {
    let attention = &model.config().attention;
    let ropes = model.ropes(plan.context);
    let is_local = |layer| {
        let window = attention.window.filter(|window| window.applies_to(layer));
        ropes.local.is_some() && window.is_some()
    };
    let of = |(layer, bias): (usize, Option<&[f32]>)| {
        bias.map(|bias| (bias.to_vec(), usize::from(is_local(layer))))
    };
    let biases: Vec<_> = biases(model).enumerate().map(of).collect();
    if biases.iter().all(Option::is_none) {
        return (biases, Vec::new());
    }
    let tables = [Some(&ropes.global), ropes.local.as_ref()].into_iter().flatten().map(|rope| {
        let mut table = RopeTable::default();
        table.fill(rope, 0, plan.context);
        AngleTable::new(rope.pairs(), rope.pairing(), plan.context, |position| {
            let rotation = table.rotation(rope, position);
            [rotation.cos, rotation.sin]
        })
    });
    (biases, tables.collect())
}
