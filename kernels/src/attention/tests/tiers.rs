//! Tiers (SPEC N11, N12) against literal loops over the formulas, by bits, and the rotation and
//! the codes against f64.

use super::*;
use proptest::prelude::*;

const LEVELS_16: [f32; 8] = [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326];
const LEVELS_8: [f32; 4] = [0.2451, 0.7560, 1.3439, 2.1520];

/// N3's sum of products.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (i, (x, y)) in x.iter().zip(y).enumerate() {
        lanes[i % 16] = x.mul_add(*y, lanes[i % 16]);
    }
    tree(lanes)
}

/// What a head is stored as: what each code stands for, and the scale.
fn coded(kind: CacheType, x: &[f32]) -> (Vec<f32>, f32) {
    if x.iter().any(|x| !x.is_finite()) {
        return (vec![1.0; x.len()], f32::NAN);
    }
    let half = |scale: f32| f16::from_f32(scale).to_f32();
    if kind == CacheType::Code8 {
        let scale = x.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let quant = |x: &f32| (x * inverse).round_ties_even().clamp(-127.0, 127.0) + 0.0;
        return (x.iter().map(quant).collect(), half(scale));
    }
    let positive: &[f32] = if kind == CacheType::Code4 { &LEVELS_16 } else { &LEVELS_8 };
    let negative = positive.iter().rev().map(|level| -level);
    let levels: Vec<f32> = negative.chain(positive.iter().copied()).collect();
    let root = (dot(x, x) / x.len() as f32).sqrt();
    let inverse = if root > 0.0 { 1.0 / root } else { 0.0 };
    let pick = |x: &f32| {
        let above = levels.windows(2).filter(|pair| x * inverse > (pair[0] + pair[1]) / 2.0);
        levels[above.count()]
    };
    let chosen: Vec<f32> = x.iter().map(pick).collect();
    let scale = half(dot(x, &chosen) / dot(&chosen, &chosen));
    (chosen, scale)
}

/// What comes back of a head.
pub(super) fn decoded(kind: CacheType, x: &[f32]) -> Vec<f32> {
    let (levels, scale) = coded(kind, x);
    levels.iter().map(|level| level * scale).collect()
}

fn signs(len: usize) -> Vec<f32> {
    let sign = |i: usize| {
        if Noise::new((i as u64).wrapping_mul(STEP)).word() & 1 == 1 { -1.0 } else { 1.0 }
    };
    (0..len).map(sign).collect()
}

/// What SplitMix64 adds to its state for each word.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Butterflies over all blocks, and the scale.
fn transformed(x: &[f32]) -> Vec<f32> {
    let len = 1 << x.len().trailing_zeros();
    let mut x = x.to_vec();
    let mut half = 1;
    while half < len {
        for i in (0..x.len()).filter(|i| i & half == 0) {
            (x[i], x[i + half]) = (x[i] + x[i + half], x[i] - x[i + half]);
        }
        half *= 2;
    }
    x.iter().map(|x| x * (1.0 / (len as f32).sqrt())).collect()
}

fn turned(x: &[f32]) -> Vec<f32> {
    let signed: Vec<f32> = x.iter().zip(signs(x.len())).map(|(x, sign)| x * sign).collect();
    transformed(&signed)
}

fn turned_back(x: &[f32]) -> Vec<f32> {
    transformed(x).iter().zip(signs(x.len())).map(|(x, sign)| x * sign).collect()
}

fn turn(isa: Isa, x: &[f32], back: bool) -> Vec<f32> {
    let mut head = x.to_vec();
    isa.run(Turn { head: &mut head, back });
    head
}

#[test]
fn a_rotation_keeps_products_comes_back_and_is_the_same_everywhere() {
    for len in [16, 64, 80, 96, 128, 256] {
        let mut noise = Noise::new(len as u64);
        let (x, y) = (noise.floats(len), noise.floats(len));
        for isa in Isa::available() {
            assert_same(&turned(&x), &turn(isa, &x, false), &|| format!("{len} {isa:?}"));
            assert_same(&turned_back(&x), &turn(isa, &x, true), &|| format!("{len} {isa:?}"));
        }
        let product = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        let after = product(&turned(&x), &turned(&y));
        assert!((product(&x, &y) - after).abs() < 1e-5 * len as f64, "{len}");
        for (x, back) in x.iter().zip(turned_back(&turned(&x))) {
            assert!((x - back).abs() < 1e-5, "{len}");
        }
    }
    // One large element is spread over its block.
    let mut one = vec![0.0; 64];
    one[5] = 8.0;
    assert!(turned(&one).iter().all(|x| x.abs() == 1.0));
}

/// Writes heads as keys and values of a cache of one page and reads them back by a score with unit
/// vectors, and by weights of 1.
fn round_trip(isa: Isa, kind: CacheType, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let len = x.len();
    let types = (kind, kind);
    let mut case = Case::new((1, 1), (len, len), types, 1);
    (case.keys, case.values) = (x.to_vec(), x.to_vec());
    let mut cache = Cache::new(case.shape);
    cache.write(isa, &case, 0);
    let pool = Pool::new(1).expect("threads");
    let mut out = vec![0.0; len];
    let params = AttentionParams { heads: 1, scale: 1.0, softcap: None, window: None };
    let q = vec![0.0; len];
    let mut scratch = AttentionScratch::default();
    attend(isa, &pool, params, cache.layer(), 0, &q, &mut out, &mut scratch);
    let key = (0..len).map(|d| cache.element(isa, 0, d)).collect();
    (key, out)
}

impl Cache {
    /// Element `d` of the key at `position` of head 0, its scale included.
    fn element(&self, isa: Isa, position: usize, d: usize) -> f32 {
        struct Get<'a>(&'a [u8], [usize; 3], Isa, &'a mut f32);
        struct Run<'a, K>(Get<'a>, std::marker::PhantomData<K>);
        impl cache::KvVisitor for Get<'_> {
            fn visit<K: cache::KvFormat>(self) {
                self.2.run(Run::<K>(self, std::marker::PhantomData));
            }
        }
        impl<K: cache::KvFormat> crate::isa::Op for Run<'_, K> {
            type Output = ();
            #[inline(always)]
            fn run<S: crate::simd::Simd>(self, simd: S) {
                let Get(page, [len, slot, d], _, to) = self.0;
                let mut lanes = [0.0; 16];
                let x = K::load_key(simd, page, len, d);
                let scale = K::key_scale(simd, page, len);
                simd.store(scale.map_or(x, |scale| simd.mul(x, scale)), &mut lanes);
                *to = lanes[slot];
            }
        }
        let mut element = 0.0;
        let [page, _] = self.layer().at(0, position..position + 1);
        let at = [self.shape.key_len, position % 16, d];
        cache::visit(self.shape.key_type, Get(page, at, isa, &mut element));
        element
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Codes are those of the formulas on every instruction set.
    #[test]
    fn codes_come_back_as_the_formulas_say(seed: u64, size in -6_i32..4, outlier in 0.0_f32..8.0) {
        let mut noise = Noise::new(seed);
        let mut x: Vec<f32> = noise.floats(64).iter().map(|x| x * 10.0_f32.powi(size)).collect();
        x[3] *= 1.0 + outlier;
        let x = turned(&x);
        for kind in [CacheType::Code8, CacheType::Code4, CacheType::Code3] {
            let want = decoded(kind, &x);
            for isa in Isa::available() {
                let (key, value) = round_trip(isa, kind, &x);
                assert_same(&want, &key, &|| format!("key {kind} {isa:?}"));
                // A single weight of 1: the scale comes to it first, then the level, from +0.
                let sum: Vec<f32> = want.iter().map(|x| x + 0.0).collect();
                assert_same(&sum, &value, &|| format!("value {kind} {isa:?}"));
            }
        }
    }
}

/// The error of 16 and 8 levels that are best for a normal distribution is 9.7 % and 18.6 % of its
/// norm (Max 1960, table I: mean square errors of 0.009497 and 0.03454); one fits the scale to the
/// 64 elements, which saves a little of it, and these are only about normal. Of 64 such elements
/// the largest is about 2.5 standard deviations, whose 127th part is the step of bytes.
#[test]
fn codes_err_as_their_levels_say() {
    let mut noise = Noise::new(11);
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    for (kind, bound) in [
        (CacheType::Code8, 2.5 / 127.0 / 12.0_f64.sqrt()),
        (CacheType::Code4, 0.009497_f64.sqrt()),
        (CacheType::Code3, 0.03454_f64.sqrt()),
    ] {
        let (mut lost, mut all) = (0.0, 0.0);
        for outlier in 0..400 {
            let mut x = noise.floats(64);
            x[3] *= (1 + outlier % 9) as f32;
            let x = turned(&x);
            let error = x.iter().zip(decoded(kind, &x)).map(|(x, y)| x - y);
            lost += squares(&mut { error });
            all += squares(&mut x.iter().copied());
        }
        let error = (lost / all).sqrt();
        assert!(error < 1.05 * bound && error > 0.8 * bound, "{kind}: {error} beside {bound}");
    }
}

/// A sequence over a cache with tiers.
struct Tiered {
    case: Case,
    plan: TierPlan,
    /// \[kv_heads\]\[key_len\], with its angles.
    bias: Option<(Vec<f32>, AngleTable)>,
}

fn types(tier: KvTier) -> (CacheType, CacheType) {
    match tier {
        KvTier::Hot => (CacheType::F16, CacheType::F16),
        KvTier::Warm => (CacheType::Code8, CacheType::Code4),
        KvTier::Cold => (CacheType::Code4, CacheType::Code3),
    }
}

fn angles(position: usize, pairs: usize) -> [Vec<f32>; 2] {
    let angle = |i: usize| (position as f32) * 0.7_f32.powi(i as i32);
    [(0..pairs).map(|i| angle(i).cos()).collect(), (0..pairs).map(|i| angle(i).sin()).collect()]
}

impl Tiered {
    fn new(positions: usize, cold: bool, pairs: Option<usize>) -> Self {
        let mut case = Case::new((2, 3), (64, 32), types(KvTier::Hot), positions);
        let pages = positions.div_ceil(BLOCK);
        let plan = TierPlan {
            sink: 1,
            window: 1,
            warm: cold.then_some(2),
            hot_slots: pages - 1,
            warm_slots: pages,
        };
        let bias = pairs.map(|pairs| {
            let bias: Vec<f32> = Noise::new(9).floats(128).iter().map(|x| x * 30.0).collect();
            let all: Vec<_> = (0..positions).map(|p| angles(p, pairs)).collect();
            let pairing = aios_contract::RopePairing::Halves;
            let of = |p: usize| all[p].each_ref().map(Vec::as_slice);
            (bias, AngleTable::new(pairs, pairing, positions, of))
        });
        case.params.scale = if pairs.is_some() { 1e-2 } else { case.params.scale };
        let mut tiered = Self { case, plan, bias };
        for p in 0..positions {
            for head in 0..2 {
                let rotated = tiered.rotated_bias(head, p);
                let key = &mut tiered.case.keys[(p * 2 + head) * 64..][..64];
                key.iter_mut().zip(rotated).for_each(|(key, bias)| *key += bias);
            }
        }
        tiered
    }

    /// The bias of a head as the angles turn it.
    fn rotated_bias(&self, head: usize, position: usize) -> Vec<f32> {
        let Some((bias, table)) = &self.bias else { return vec![0.0; 64] };
        let mut out = bias[head * 64..(head + 1) * 64].to_vec();
        let pairs = KeyBias { bias, table }.factors() / 2;
        let [cos, sin] = angles(position, pairs);
        for i in 0..pairs {
            let (a, b) = (out[i], out[i + pairs]);
            out[i] = a.mul_add(cos[i], -(b * sin[i]));
            out[i + pairs] = a.mul_add(sin[i], b * cos[i]);
        }
        out
    }

    fn shape(&self, tier: KvTier, pages: usize) -> CacheShape {
        let (key_type, value_type) = types(tier);
        CacheShape { key_type, value_type, capacity: pages * BLOCK, ..self.case.shape }
    }

    fn tier(&self, query: usize, block: usize) -> KvTier {
        let apart = query / BLOCK - block;
        match self.plan.warm {
            _ if block < 1 || apart <= 1 => KvTier::Hot,
            Some(warm) if apart > warm => KvTier::Cold,
            _ => KvTier::Warm,
        }
    }

    /// The raw score of position `j` for the query at `p`.
    fn score(&self, p: usize, h: usize, j: usize) -> f32 {
        let (kv_head, q) = (h / 3, self.case.query(p, h));
        let key = stored(CacheType::F16, &self.case.keys[(j * 2 + kv_head) * 64..][..64]);
        let chain = |q: &[f32], k: &[f32]| q.iter().zip(k).fold(0.0, |s, (q, k)| q.mul_add(*k, s));
        let tier = self.tier(p, j / BLOCK);
        if tier == KvTier::Hot {
            return chain(q, &key);
        }
        let plain = key.iter().zip(self.rotated_bias(kv_head, j)).map(|(k, b)| k - b);
        let key = if self.bias.is_some() { plain.collect() } else { key };
        let (levels, scale) = coded(types(tier).0, &turned(&key));
        let score = chain(&turned(q), &levels) * scale;
        let Some((bias, table)) = &self.bias else { return score };
        let pairs = KeyBias { bias, table }.factors() / 2;
        let bias = &bias[kv_head * 64..(kv_head + 1) * 64];
        let [cos, sin] = angles(j, pairs);
        let rest = 2 * pairs..64;
        let mut score = score + chain(&q[rest.clone()], &bias[rest]);
        for i in 0..pairs {
            let factor = q[i].mul_add(bias[i], q[i + pairs] * bias[i + pairs]);
            score = factor.mul_add(cos[i], score);
        }
        for i in 0..pairs {
            let factor = q[i + pairs].mul_add(bias[i], -(q[i] * bias[i + pairs]));
            score = factor.mul_add(sin[i], score);
        }
        score
    }

    fn expected_head(&self, p: usize, h: usize) -> Vec<f32> {
        let visible = self.case.visible(p);
        let mut states: [Option<(f32, f32, Vec<f32>)>; 2] = [None, None];
        for block in 0..=p / BLOCK {
            let seen = |j: &usize| visible.contains(&(block * BLOCK + j));
            if !(0..BLOCK).any(|j| seen(&j)) {
                continue;
            }
            let tier = self.tier(p, block);
            let mut scores = [f32::NEG_INFINITY; BLOCK];
            for j in (0..BLOCK).filter(seen) {
                scores[j] = self.score(p, h, block * BLOCK + j) * self.case.params.scale;
            }
            let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
            let weights = scores.map(|s| testing::exp(s - max));
            let w = |v: usize, lane: usize| weights[16 * v + lane];
            let sum = tree(std::array::from_fn(|i| (w(0, i) + w(1, i)) + (w(2, i) + w(3, i))));
            let mut out = vec![0.0_f32; 32];
            for j in (0..BLOCK).filter(seen) {
                let at = ((block * BLOCK + j) * 2 + h / 3) * 32;
                let value = stored(CacheType::F16, &self.case.values[at..at + 32]);
                let (value, weight) = match tier {
                    KvTier::Hot => (value, weights[j]),
                    _ => {
                        let (levels, scale) = coded(types(tier).1, &turned(&value));
                        (levels, weights[j] * scale)
                    }
                };
                for (out, value) in out.iter_mut().zip(value) {
                    *out = weight.mul_add(value, *out);
                }
            }
            let state = &mut states[usize::from(tier != KvTier::Hot)];
            *state = Some(match state.take() {
                None => (max, sum, out),
                Some(state) => merged(state, (max, sum, out)),
            });
        }
        let [hot, cold] = states;
        let cold = cold.map(|(max, sum, out)| (max, sum, turned_back(&out)));
        let (_, sum, out) = match (hot, cold) {
            (Some(hot), Some(cold)) => merged(hot, cold),
            (hot, cold) => hot.or(cold).expect("a query sees itself"),
        };
        out.iter().map(|out| out * (1.0 / sum)).collect()
    }

    fn expected(&self) -> Vec<f32> {
        let all = (0..self.case.positions()).flat_map(|p| (0..6).map(move |h| (p, h)));
        all.flat_map(|(p, h)| self.expected_head(p, h)).collect()
    }

    /// As [`Case::found`]; pages are demoted as the queries of a pass need them, and places of the
    /// hot tier are as few as `slots`.
    fn found(&self, isa: Isa, pool: &Pool, chunks: &[usize], slots: usize) -> Vec<f32> {
        let plan = TierPlan { hot_slots: slots, ..self.plan };
        let pages = self.case.positions().div_ceil(BLOCK);
        let mut hot = Cache::new(self.shape(KvTier::Hot, 1 + slots));
        let mut warm = Cache::new(self.shape(KvTier::Warm, pages));
        let mut cold = Cache::new(self.shape(KvTier::Cold, pages));
        let key_bias = || self.bias.as_ref().map(|(bias, table)| KeyBias { bias, table });
        let row = (6 * 64, 6 * 32);
        let mut out = vec![7.0; self.case.positions() * row.1];
        let (mut start, mut demoted) = (0, plan.sink);
        let mut scratch = AttentionScratch::default();
        for &n in chunks {
            for position in start..start + n {
                hot.write_at(isa, &self.case, position, plan.hot_position(position));
            }
            let until = plan.demoted((start + n - 1) / BLOCK).end;
            for page in demoted..until {
                let cold = plan.warm.map(|_| cold.layer_mut());
                let mut to = ColderMut { plan, warm: warm.layer_mut(), cold, bias: key_bias() };
                to.demote(isa, hot.layer(), page);
            }
            demoted = demoted.max(until);
            let cold = plan.warm.map(|_| cold.layer());
            let colder = Some(Colder { plan, warm: warm.layer(), cold, bias: key_bias() });
            let kv = KvTiers { hot: hot.layer(), colder };
            let q = &self.case.q[start * row.0..(start + n) * row.0];
            let out = &mut out[start * row.1..(start + n) * row.1];
            attend(isa, pool, self.case.params, kv, start, q, out, &mut scratch);
            start += n;
        }
        assert_eq!(start, self.case.positions());
        out
    }
}

impl Cache {
    fn write_at(&mut self, isa: Isa, case: &Case, position: usize, place: usize) {
        let CacheShape { kv_heads, key_len, value_len, .. } = self.shape;
        let key = &case.keys[position * kv_heads * key_len..][..kv_heads * key_len];
        let value = &case.values[position * kv_heads * value_len..][..kv_heads * value_len];
        self.layer_mut().write(isa, place, key, value);
    }
}

/// N11 and N12 in every bit, whatever the cuts, threads, instruction set and places.
#[test]
fn tiers_are_those_of_page_numbers_alone() {
    let positions = 4 * BLOCK + 9;
    let cuts = [vec![positions], vec![1, 63, 2, 100, 1, 60, positions - 227], vec![64, 200, 1]];
    for (cold, pairs) in [(false, None), (true, Some(32)), (true, Some(24)), (false, Some(32))] {
        let tiered = Tiered::new(positions, cold, pairs);
        let expected = tiered.expected();
        for isa in Isa::available() {
            for (i, cuts) in cuts.iter().enumerate() {
                let rest = positions - cuts.iter().sum::<usize>();
                let cuts: Vec<usize> = cuts.iter().copied().chain(vec![1; rest]).collect();
                let pool = Pool::new([1, 2, 5][i]).expect("threads");
                let slots = if cuts.contains(&positions) { 4 } else { 5 };
                let found = tiered.found(isa, &pool, &cuts, slots.max(4));
                assert_same(&expected, &found, &|| format!("{cold} {pairs:?} {cuts:?} {isa:?}"));
            }
        }
    }
    let mut windowed = Tiered::new(positions, true, None);
    windowed.case.params.window = Some(150);
    let found = windowed.found(Isa::detect(), &Pool::new(2).expect("threads"), &[positions], 4);
    assert_same(&windowed.expected(), &found, &|| "windowed".to_owned());
}

/// What a bias of thirty times the rest adds to a score is not coded with it: without that the
/// error of a score would be many times as large.
#[test]
fn a_bias_costs_no_precision() {
    let positions = 4 * BLOCK;
    let mut tiered = Tiered::new(positions, true, Some(32));
    let error = |tiered: &Tiered| {
        let error = |j: usize| {
            let (q, key) = (tiered.case.query(255, 0), &tiered.case.keys[j * 2 * 64..][..64]);
            let exact: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            (f64::from(tiered.score(255, 0, j)) - exact).abs()
        };
        assert_eq!(tiered.tier(255, 1), KvTier::Warm);
        (BLOCK..2 * BLOCK).map(error).sum::<f64>()
    };
    let without = error(&tiered);
    tiered.bias = None;
    let with = error(&tiered);
    assert!(4.0 * without < with, "{without} {with}");
}

/// Where attention lies on one key, an output's error is that of a value of 4 or 3 bits: a tenth or
/// a fifth of the values' size. No case here may exceed that much.
#[test]
fn tiers_are_near_the_exact_attention() {
    for (cold, pairs, bound) in
        [(false, None, 0.15), (true, None, 0.4), (false, Some(32), 0.15), (true, Some(32), 0.4)]
    {
        let positions = 4 * BLOCK;
        let mut tiered = Tiered::new(positions, cold, pairs);
        let found = |tiered: &Tiered| {
            tiered.found(Isa::detect(), &Pool::new(1).expect("threads"), &[positions], 4)
        };
        let near = found(&tiered);
        let mut exact = tiered.case.clone();
        (exact.shape.key_type, exact.shape.value_type) = F32;
        let distance = distance(&exact, &near);
        assert!(distance < bound && distance > 1e-4, "{cold} {pairs:?}: {distance}");
        // A key, a value and a tier's border that are off are seen.
        let expected = tiered.expected();
        assert!(first_difference(&expected, &near).is_none());
        let (keys, values) = (tiered.case.keys.clone(), tiered.case.values.clone());
        tiered.case.keys[70 * 2 * 64] += 0.5;
        assert!(first_difference(&expected, &found(&tiered)).is_some());
        tiered.case.keys = keys;
        tiered.case.values[70 * 2 * 32] += 0.5;
        assert!(first_difference(&expected, &found(&tiered)).is_some());
        tiered.case.values = values;
        tiered.plan.window += 1;
        assert!(first_difference(&expected, &found(&tiered)).is_some());
    }
}
