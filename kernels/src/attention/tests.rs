//! Attention against literal loops over the formulas of the module's documentation, by bits, and
//! against f64 within a tolerance.

use super::*;
use crate::testing::{self, Noise, assert_same, first_difference, tree};
use half::{bf16, f16};

/// What of a cache type a stored vector comes back as.
fn stored(kind: CacheType, x: &[f32]) -> Vec<f32> {
    match kind {
        CacheType::F32 => x.to_vec(),
        CacheType::F16 => x.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
        CacheType::Bf16 => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
        CacheType::Q8_0 => x.chunks_exact(32).flat_map(stored_block).collect(),
        code => tiers::decoded(code, x),
    }
}

/// q · scale with scale = half(largest / 127), q = x / scale rounded to nearest even.
fn stored_block(x: &[f32]) -> Vec<f32> {
    if x.iter().any(|x| !x.is_finite()) {
        return vec![f32::NAN; x.len()];
    }
    let scale = f16::from_f32(x.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0).to_f32();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    x.iter().map(|x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) * scale).collect()
}

/// A layer's attention with all its inputs: a position's key, value and query.
#[derive(Clone)]
struct Case {
    params: AttentionParams,
    shape: CacheShape,
    /// \[position\]\[kv_heads\]\[len\].
    keys: Vec<f32>,
    values: Vec<f32>,
    /// \[position\]\[heads\]\[key_len\].
    q: Vec<f32>,
}

impl Case {
    fn new(
        (kv_heads, group): (usize, usize),
        (key_len, value_len): (usize, usize),
        types: (CacheType, CacheType),
        positions: usize,
    ) -> Self {
        let heads = kv_heads * group;
        let mut noise = Noise::new((heads * key_len * positions) as u64);
        let scale = 1.0 / (key_len as f32).sqrt();
        let capacity = positions.next_multiple_of(BLOCK);
        let (key_type, value_type) = types;
        let q = noise.floats(positions * heads * key_len).into_iter().map(|q| 6.0 * q);
        Self {
            params: AttentionParams { heads, scale, softcap: None, window: None },
            shape: CacheShape { key_type, value_type, kv_heads, key_len, value_len, capacity },
            q: q.collect(),
            keys: noise.floats(positions * kv_heads * key_len),
            values: noise.floats(positions * kv_heads * value_len),
        }
    }

    fn windowed(mut self, window: usize) -> Self {
        self.params.window = Some(window);
        self
    }

    fn capped(mut self, cap: f32) -> Self {
        self.params.softcap = Some(cap);
        self
    }

    fn positions(&self) -> usize {
        self.q.len() / (self.params.heads * self.shape.key_len)
    }

    fn query(&self, position: usize, head: usize) -> &[f32] {
        let len = self.shape.key_len;
        &self.q[(position * self.params.heads + head) * len..][..len]
    }

    /// Keys and values as they come back from the cache, \[position\]\[kv_heads\]\[len\].
    fn cached(&self) -> (Vec<f32>, Vec<f32>) {
        let back =
            |kind, x: &[f32], len| x.chunks_exact(len).flat_map(|x| stored(kind, x)).collect();
        let CacheShape { key_type, value_type, key_len, value_len, .. } = self.shape;
        (back(key_type, &self.keys, key_len), back(value_type, &self.values, value_len))
    }

    /// The positions that a query sees.
    fn visible(&self, position: usize) -> std::ops::Range<usize> {
        let first = self.params.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }

    /// \[position\]\[heads\]\[value_len\], block by block.
    fn expected(&self) -> Vec<f32> {
        let cached = self.cached();
        let heads = self.params.heads;
        let queries = (0..self.positions()).flat_map(|p| (0..heads).map(move |h| (p, h)));
        queries.flat_map(|(p, h)| self.expected_head(&cached, p, h)).collect()
    }

    fn expected_head(&self, (keys, values): &(Vec<f32>, Vec<f32>), p: usize, h: usize) -> Vec<f32> {
        let CacheShape { kv_heads, key_len, value_len, .. } = self.shape;
        let kv_head = h / (self.params.heads / kv_heads);
        let visible = self.visible(p);
        let mut state: Option<(f32, f32, Vec<f32>)> = None;
        for block in 0..=p / BLOCK {
            let seen = |j: usize| visible.contains(&(block * BLOCK + j));
            if !(0..BLOCK).any(seen) {
                continue;
            }
            let mut scores = [f32::NEG_INFINITY; BLOCK];
            for j in (0..BLOCK).filter(|j| seen(*j)) {
                let key = &keys[((block * BLOCK + j) * kv_heads + kv_head) * key_len..][..key_len];
                let dot =
                    (self.query(p, h).iter().zip(key)).fold(0.0, |s, (q, k)| q.mul_add(*k, s));
                let score = dot * self.params.scale;
                scores[j] =
                    self.params.softcap.map_or(score, |cap| cap * testing::tanh(score / cap));
            }
            let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
            let weights = scores.map(|s| testing::exp(s - max));
            // The block's four vectors are added in pairs.
            let w = |v: usize, lane: usize| weights[16 * v + lane];
            let lanes = |i| (w(0, i) + w(1, i)) + (w(2, i) + w(3, i));
            let sum = tree(std::array::from_fn(lanes));
            let mut out = vec![0.0_f32; value_len];
            for j in (0..BLOCK).filter(|j| seen(*j)) {
                let value = &values[((block * BLOCK + j) * kv_heads + kv_head) * value_len..];
                for (out, value) in out.iter_mut().zip(value) {
                    *out = weights[j].mul_add(*value, *out);
                }
            }
            state = Some(match state {
                None => (max, sum, out),
                Some(state) => merged(state, (max, sum, out)),
            });
        }
        let (_, sum, out) = state.expect("a query sees its own position");
        let inverse = 1.0 / sum;
        out.iter().map(|out| out * inverse).collect()
    }

    /// The same in f64 over all visible positions at once.
    fn exact_head(&self, (keys, values): &(Vec<f32>, Vec<f32>), p: usize, h: usize) -> Vec<f64> {
        let CacheShape { kv_heads, key_len, value_len, .. } = self.shape;
        let kv_head = h / (self.params.heads / kv_heads);
        let score = |j: usize| {
            let key = &keys[(j * kv_heads + kv_head) * key_len..][..key_len];
            let products =
                self.query(p, h).iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k));
            let score = products.sum::<f64>() * f64::from(self.params.scale);
            self.params
                .softcap
                .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let weights: Vec<f64> = self.visible(p).map(|j| score(j).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let element = |d: usize| {
            let value = |j: usize| f64::from(values[(j * kv_heads + kv_head) * value_len + d]);
            self.visible(p).zip(&weights).map(|(j, w)| w * value(j)).sum::<f64>() / sum
        };
        (0..value_len).map(element).collect()
    }

    /// Writes and attends `chunks` of positions one after the other; what lies behind the newest
    /// position in the cache is 0xff, NaN where it is a float.
    fn found(&self, isa: Isa, pool: &Pool, chunks: &[usize]) -> Vec<f32> {
        let mut cache = Cache::new(self.shape);
        let mut out = vec![7.0; self.positions() * self.params.heads * self.shape.value_len];
        let mut start = 0;
        let mut scratch = AttentionScratch::default();
        for &n in chunks {
            for position in start..start + n {
                cache.write(isa, self, position);
            }
            let row = self.params.heads * self.shape.key_len;
            let out_row = self.params.heads * self.shape.value_len;
            let q = &self.q[start * row..(start + n) * row];
            let out = &mut out[start * out_row..(start + n) * out_row];
            attend(isa, pool, self.params, cache.layer(), start, q, out, &mut scratch);
            start += n;
        }
        assert_eq!(start, self.positions());
        out
    }

    fn check(&self, threads: &[usize], chunkings: &[Vec<usize>]) {
        let expected = self.expected();
        for &threads in threads {
            let pool = Pool::new(threads).expect("threads");
            for isa in Isa::available() {
                for chunks in chunkings {
                    let found = self.found(isa, &pool, chunks);
                    assert_same(&expected, &found, &|| {
                        let (shape, params) = (self.shape, self.params);
                        format!("{params:?} {shape:?}, {threads} threads, {chunks:?}, {isa:?}")
                    });
                }
            }
        }
    }
}

/// With M the larger maximum and a, b = e^(max − M): sums fma(l, a, l′·b), outputs likewise.
fn merged(old: (f32, f32, Vec<f32>), new: (f32, f32, Vec<f32>)) -> (f32, f32, Vec<f32>) {
    let max = if old.0 > new.0 { old.0 } else { new.0 };
    let (a, b) = (testing::exp(old.0 - max), testing::exp(new.0 - max));
    let out = old.2.iter().zip(&new.2).map(|(o, n)| o.mul_add(a, n * b)).collect();
    (max, old.1.mul_add(a, new.1 * b), out)
}

/// A cache of one layer.
struct Cache {
    shape: CacheShape,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Cache {
    fn new(shape: CacheShape) -> Self {
        Self { shape, keys: vec![0xff; shape.key_bytes()], values: vec![0xff; shape.value_bytes()] }
    }

    fn write(&mut self, isa: Isa, case: &Case, position: usize) {
        let CacheShape { kv_heads, key_len, value_len, .. } = self.shape;
        let key = &case.keys[position * kv_heads * key_len..][..kv_heads * key_len];
        let value = &case.values[position * kv_heads * value_len..][..kv_heads * value_len];
        self.layer_mut().write(isa, position, key, value);
    }

    fn layer_mut(&mut self) -> KvLayerMut<'_> {
        let Self { shape, keys, values } = self;
        KvLayerMut { shape: *shape, keys, values }
    }

    fn layer(&self) -> KvLayer<'_> {
        // How memory is asked for changes nothing.
        let past = self.shape.kv_heads.is_multiple_of(2);
        KvLayer { shape: self.shape, keys: &self.keys, values: &self.values, past }
    }
}

const F32: (CacheType, CacheType) = (CacheType::F32, CacheType::F32);

/// All at once, in uneven chunks, and one by one.
fn chunkings(positions: usize) -> Vec<Vec<usize>> {
    let uneven = vec![1, 63, 2, positions - 66];
    vec![vec![positions], uneven, vec![1; positions]]
}

#[test]
fn every_cache_type_and_head_length() {
    for kind in CacheType::ALL {
        for len in [64, 80, 96, 128, 256] {
            if kind.fits(len) {
                Case::new((1, 3), (len, len), (kind, kind), 70).check(&[1], &chunkings(70));
            }
        }
    }
    for types in [(CacheType::F16, CacheType::Q8_0), (CacheType::Q8_0, CacheType::F16)] {
        Case::new((2, 2), (96, 64), types, 70).check(&[2], &chunkings(70));
    }
    // Values that fill no whole vector.
    Case::new((2, 1), (24, 40), (CacheType::F16, CacheType::F16), 70).check(&[1], &chunkings(70));
}

#[test]
fn every_group_on_any_number_of_threads() {
    for group in [1, 3, 4, 7] {
        let case = Case::new((2, group), (64, 64), (CacheType::F16, CacheType::F16), 133);
        case.check(&[1, 2, 5], &chunkings(133));
    }
}

#[test]
fn windows_and_soft_caps() {
    let case = || Case::new((2, 3), (64, 64), F32, 150);
    for window in [1, 5, 63, 64, 65, 100, 1000] {
        case().windowed(window).check(&[2], &chunkings(150));
    }
    case().capped(2.0).check(&[2], &chunkings(150));
    case().capped(1.0).windowed(70).check(&[1], &chunkings(150));
}

/// A single token shares out its blocks among the threads from four blocks on.
#[test]
fn a_long_context_is_split_without_a_trace() {
    let positions = 330;
    let chunks = [vec![190, 1, 1, 1, 60, 1, 1, 1, 1, 63, 10], vec![positions]];
    for group in [1, 7] {
        let case = Case::new((2, group), (64, 64), (CacheType::Q8_0, CacheType::F16), positions);
        case.check(&[1, 2, 5], &chunks);
        case.windowed(100).check(&[2, 5], &chunks);
    }
}

/// Every token sees all others: what it has as the last of them.
#[test]
fn all_tokens_see_each_other() {
    for positions in [1, 5, 64, 65, 150] {
        let case = Case::new((3, 1), (32, 32), F32, positions);
        let row = case.params.heads * case.shape.key_len;
        let last = positions - 1;
        let expected: Vec<f32> = (0..positions)
            .flat_map(|token| {
                let mut seen = case.clone();
                seen.q[last * row..].copy_from_slice(&case.q[token * row..][..row]);
                seen.expected().split_off(last * row)
            })
            .collect();
        for isa in Isa::available() {
            for threads in [1, 2, 5] {
                let pool = Pool::new(threads).expect("threads");
                let mut cache = Cache::new(case.shape);
                (0..positions).for_each(|position| cache.write(isa, &case, position));
                let mut found = vec![7.0; expected.len()];
                attend_all(isa, &pool, case.params, cache.layer(), &case.q, &mut found);
                assert_same(&expected, &found, &|| format!("{positions} on {isa:?}, {threads}"));
            }
        }
    }
}

/// Positions written together, wherever they go, lie as those written one by one.
#[test]
fn rows_written_on_any_pool_lie_as_single_ones() {
    for kinds in CacheType::ALL.map(|kind| (kind, kind)) {
        let case = Case::new((3, 1), (64, 96), kinds, 90);
        let shape = CacheShape { capacity: 192, ..case.shape };
        let place = |position: usize| (position + 64) % 128;
        for (start, n) in [(0, 1), (5, 3), (0, 90), (61, 20)] {
            for isa in Isa::available() {
                let mut single = Cache::new(shape);
                for position in start..start + n {
                    let key = &case.keys[position * 192..][..192];
                    let value = &case.values[position * 288..][..288];
                    single.layer_mut().write(isa, place(position), key, value);
                }
                for threads in [1, 2, 5] {
                    let pool = Pool::new(threads).expect("threads");
                    let mut together = Cache::new(shape);
                    let keys = &case.keys[start * 192..(start + n) * 192];
                    let values = &case.values[start * 288..(start + n) * 288];
                    let to = (start, &place as &(dyn Fn(usize) -> usize + Sync));
                    together.layer_mut().write_rows(isa, &pool, to, (keys, values));
                    let same = single.keys == together.keys && single.values == together.values;
                    assert!(same, "{kinds:?}, {n} from {start} on {isa:?}, {threads} threads");
                }
            }
        }
    }
}

/// Greatest distance of `found` from f64, as a share of the largest value, which is 1.
fn distance(case: &Case, found: &[f32]) -> f64 {
    let cached = case.cached();
    let heads = found.chunks_exact(case.shape.value_len).enumerate();
    let errors = heads.flat_map(|(i, found)| {
        let exact = case.exact_head(&cached, i / case.params.heads, i % case.params.heads);
        found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).abs()).collect::<Vec<_>>()
    });
    errors.fold(0.0, |worst, e| if e > worst || e.is_nan() { e } else { worst })
}

/// Scores here are within ±6, a weight's relative error within some 10^-6.
const TOLERANCE: f64 = 4e-6;

#[test]
fn attention_is_near_the_exact_one() {
    let pool = Pool::new(1).expect("threads");
    let types = (CacheType::Q8_0, CacheType::F16);
    let case = Case::new((2, 2), (128, 128), types, 200);
    for case in [case.clone(), case.clone().windowed(70), case.capped(3.0)] {
        let found = case.found(Isa::detect(), &pool, &[200]);
        assert!(distance(&case, &found) < TOLERANCE, "{}", distance(&case, &found));
        // A value of the first position that is off by 2 % of one is seen in the first row.
        let mut wrong = found.clone();
        wrong[5] += 0.02;
        assert!(distance(&case, &wrong) > TOLERANCE);
        wrong[5] = f32::NAN;
        assert!(distance(&case, &wrong).is_nan() || distance(&case, &wrong) > TOLERANCE);
    }
}

/// What is not finite reaches every query that sees it and no other, however the positions are
/// cut into calls.
#[test]
fn what_is_not_finite_reaches_just_the_queries_that_see_it() {
    for kind in CacheType::ALL {
        let clean = Case::new((1, 3), (64, 64), (kind, kind), 80).windowed(40);
        for bad in [f32::NAN, f32::INFINITY] {
            let at = 33;
            let row = clean.params.heads * 64;
            let mut poisons = [clean.clone(), clean.clone(), clean.clone()];
            poisons[0].keys[at * 64 + 9] = bad;
            poisons[1].values[at * 64 + 9] = bad;
            poisons[2].q[at * row + 9] = bad;
            for (which, case) in poisons.iter().enumerate() {
                for threads in [1, 2] {
                    case.check(&[threads], &chunkings(80));
                }
                let found = case.found(Isa::detect(), &Pool::new(1).expect("threads"), &[80]);
                for (p, out) in found.chunks_exact(row).enumerate() {
                    let sees = if which == 2 { p == at } else { case.visible(p).contains(&at) };
                    let finite = out.iter().all(|y| y.is_finite());
                    // An infinite key may give a score of −∞, whose weight is rightly 0.
                    if which == 0 && bad.is_infinite() && sees {
                        continue;
                    }
                    assert_eq!(finite, !sees, "{kind}, {bad}, poison {which}, position {p}");
                }
            }
        }
    }
}

#[test]
fn a_planted_error_is_noticed() {
    let case = Case::new((2, 2), (64, 64), F32, 70);
    let expected = case.expected();
    let pool = Pool::new(1).expect("threads");
    let differs = |case: &Case| {
        let found = case.found(Isa::detect(), &pool, &[70]);
        first_difference(&expected, &found).is_some()
    };
    assert!(!differs(&case));
    let plants: [fn(&mut Case); 5] = [
        |case| case.keys[100] += 1e-3,
        |case| case.values[100] += 1e-3,
        |case| case.q[1000] += 1e-3,
        |case| case.params.window = Some(69),
        |case| case.params.softcap = Some(1e3),
    ];
    for plant in plants {
        let mut wrong = case.clone();
        plant(&mut wrong);
        assert!(differs(&wrong));
    }
}

mod tiers;
