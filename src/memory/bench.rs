//! How long a search takes in a large store, of fragments and vectors that are drawn at random.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::store::{Chunk, Store};
use super::vectors::Int8Vector;
use super::{Backend, Embedder, Error, Memory, Options, Question, retriever};

/// Words of the made-up language, and of a fragment and a question of it.
const VOCABULARY: u64 = 30_000;
const FRAGMENT_WORDS: usize = 80;
const QUESTION_WORDS: usize = 8;
/// Fragments that are stored in one transaction.
const BATCH: usize = 1000;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many fragments the store has.
    pub fragments: usize,
    /// The length of their vectors.
    pub dim: usize,
    /// How many questions are asked of each backend.
    pub searches: usize,
    /// What the random numbers begin with.
    pub seed: u64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// What the texts and vectors are: drawn at random.
    pub data: &'static str,
    /// How many fragments the store has.
    pub fragments: usize,
    /// The length of their vectors.
    pub dim: usize,
    /// How long it took to store them.
    pub build_ms: f64,
    /// How long it took to open the store and to read its vectors.
    pub open_ms: f64,
    /// The bytes of the store.
    pub bytes: u64,
    /// For each backend, what a search took.
    pub searches: Vec<Latency>,
}

/// What the searches of one backend took, without the embedding of the question.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Which backend.
    pub backend: Backend,
    /// How many searches.
    pub n: usize,
    /// Half of them took no longer.
    pub latency_ms_p50: f64,
    /// 95 of 100 took no longer.
    pub latency_ms_p95: f64,
    /// The slowest.
    pub latency_ms_max: f64,
}

/// Builds a store at `path`, which must not be there, and asks it. `progress` is told how many
/// fragments are stored and may end the work.
///
/// # Errors
/// Those of the store and of `progress`.
pub fn run(
    path: &Path,
    plan: &Plan,
    progress: &mut dyn FnMut(usize) -> Result<(), Error>,
) -> Result<Measured, Error> {
    let mut draw = Draw { state: plan.seed };
    let started = Instant::now();
    build(path, plan, &mut draw, progress)?;
    let build_ms = millis(started);
    let started = Instant::now();
    let store = Store::open_existing(path)?;
    let bytes = store.stats()?.bytes;
    let embedder = Arc::new(Drawn { dim: plan.dim });
    let memory = Arc::new(Memory::new(store, Some(embedder), Options::default())?);
    let open_ms = millis(started);
    let questions: Vec<String> = (0..plan.searches).map(|_| draw.words(QUESTION_WORDS)).collect();
    let mut searches = Vec::new();
    for backend in Backend::ALL {
        let retriever = retriever(backend, memory.clone());
        let mut took = Vec::new();
        for text in &questions {
            progress(plan.fragments)?;
            let question = Question { text, limit: None, budget: None, now_ms: 0 };
            let started = Instant::now();
            retriever.retrieve(&question)?;
            took.push(millis(started));
        }
        searches.push(latency(backend, took));
    }
    Ok(Measured {
        data: "synthetic",
        fragments: plan.fragments,
        dim: plan.dim,
        build_ms,
        open_ms,
        bytes,
        searches,
    })
}

fn build(
    path: &Path,
    plan: &Plan,
    draw: &mut Draw,
    progress: &mut dyn FnMut(usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut store = Store::open(path)?;
    let embedder = Drawn { dim: plan.dim };
    let mut stored = 0;
    while stored < plan.fragments {
        progress(stored)?;
        let count = BATCH.min(plan.fragments - stored);
        let chunks: Vec<Chunk> = (0..count)
            .map(|_| Chunk { title: String::new(), text: draw.words(FRAGMENT_WORDS) })
            .collect();
        let vectors: Vec<Int8Vector> =
            (0..count).map(|_| Int8Vector::quantise(&draw.vector(plan.dim))).collect();
        store.add("synthetic", &chunks, Some((&embedder, &vectors)), 0)?;
        stored += count;
    }
    Ok(())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn latency(backend: Backend, mut took: Vec<f64>) -> Latency {
    took.sort_by(f64::total_cmp);
    // The nearest rank: the least value that this share of all does not exceed.
    let share = |percent: usize| {
        let rank = (took.len() * percent).div_ceil(100);
        took[rank.clamp(1, took.len()) - 1]
    };
    Latency {
        backend,
        n: took.len(),
        latency_ms_p50: share(50),
        latency_ms_p95: share(95),
        latency_ms_max: share(100),
    }
}

/// SplitMix64, and what is drawn with it.
struct Draw {
    state: u64,
}

impl Draw {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Words whose n-th is about n times as rare as the first, as in languages.
    fn words(&mut self, count: usize) -> String {
        let largest = VOCABULARY as f64;
        let word = |draw: &mut Self| {
            let rank = libm::pow(largest, draw.share()) as u64;
            spell(rank)
        };
        (0..count).map(|_| word(self)).collect::<Vec<_>>().join(" ")
    }

    /// A vector of length 1.
    fn vector(&mut self, dim: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..dim).map(|_| (self.share() * 2.0 - 1.0) as f32).collect();
        let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        values.iter_mut().for_each(|value| *value /= length);
        values
    }
}

/// A number as a word of syllables that no stemmer touches.
fn spell(mut number: u64) -> String {
    let mut word = String::new();
    for _ in 0..4 {
        word.push(char::from(b"bdfgklmnprtvz"[(number % 13) as usize]));
        word.push(char::from(b"aou"[(number / 13 % 3) as usize]));
        number /= 39;
    }
    word + "k"
}

/// Gives texts vectors that are drawn with the text for a seed.
struct Drawn {
    dim: usize,
}

impl Embedder for Drawn {
    fn name(&self) -> &str {
        "synthetic"
    }

    fn digest(&self) -> &str {
        "synthetic"
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn embed(&self, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
        let seed = |text: &str| {
            text.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
        };
        Ok(texts.iter().map(|text| Draw { state: seed(text) }.vector(self.dim)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(fragments: usize, searches: usize) -> Measured {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan { fragments, dim: 384, searches, seed: 1 };
        run(&folder.path().join("store"), &plan, &mut |_| Ok(())).unwrap()
    }

    #[test]
    fn a_small_store_is_measured() {
        let small = measured(300, 5);
        assert_eq!((small.fragments, small.searches.len(), small.data), (300, 3, "synthetic"));
        assert!(small.searches.iter().all(|s| s.n == 5 && s.latency_ms_p50 <= s.latency_ms_p95));
        let known = latency(Backend::Carma, (1..=100).rev().map(f64::from).collect());
        assert_eq!(
            (known.latency_ms_p50, known.latency_ms_p95, known.latency_ms_max),
            (50.0, 95.0, 100.0)
        );
        let distinct: std::collections::HashSet<String> = (0..VOCABULARY).map(spell).collect();
        assert_eq!(distinct.len() as u64, VOCABULARY);
    }

    /// Builds a store of 100,000 fragments, which takes half a minute.
    #[test]
    #[ignore = "half a minute; run it by name on a machine that does nothing else"]
    fn a_search_among_100_000_fragments_takes_less_than_100_ms() {
        for search in measured(100_000, 200).searches {
            assert!(search.latency_ms_p95 < 100.0, "{search:?}");
        }
    }
}
