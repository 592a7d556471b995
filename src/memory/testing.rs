//! What tests of memory share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::{Embedder, Memory, Options, Store};

/// A store in a folder that goes with the first value.
pub(super) fn scratch_store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("memory.sqlite3")).unwrap();
    (folder, store)
}

/// A memory over such a store.
pub(super) fn scratch_memory(
    embedder: Option<Arc<dyn Embedder>>,
    options: Options,
) -> (TempDir, Arc<Memory>) {
    let (folder, store) = scratch_store();
    (folder, Arc::new(Memory::new(store, embedder, options).unwrap()))
}

/// SplitMix64.
pub(super) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A vector of length 1 in a direction that depends on `seed` alone.
pub(super) fn unit_vector(seed: u64, dim: usize) -> Vec<f32> {
    let mut state = seed;
    let values: Vec<f32> =
        (0..dim).map(|_| (random(&mut state) >> 40) as f32 / 8_388_608.0 - 1.0).collect();
    normalised(values)
}

fn normalised(mut values: Vec<f32>) -> Vec<f32> {
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter_mut().for_each(|value| *value /= length);
    values
}

/// So many dimensions that unrelated words are nearly at right angles.
const DIM: usize = 512;

/// An embedder that knows which words mean the same, because a test told it so.
pub(super) struct WordEmbedder {
    /// Words of one group share a direction.
    pub(super) groups: Vec<Vec<&'static str>>,
    pub(super) digest: &'static str,
    /// While it is set, nothing is embedded.
    pub(super) broken: AtomicBool,
}

impl WordEmbedder {
    pub(super) fn new(groups: &[&[&'static str]]) -> Self {
        let groups = groups.iter().map(|group| group.to_vec()).collect();
        Self { groups, digest: "words-1", broken: AtomicBool::new(false) }
    }
}

impl Embedder for WordEmbedder {
    fn name(&self) -> &str {
        "words"
    }

    fn digest(&self) -> &str {
        self.digest
    }

    fn dim(&self) -> usize {
        DIM
    }

    fn embed(&self, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
        anyhow::ensure!(!self.broken.load(Ordering::Relaxed), "it was broken by the test");
        let direction = |word: &str| {
            let group = self.groups.iter().position(|group| group.contains(&word));
            let seed = match group {
                Some(group) => group as u64,
                None => word.bytes().fold(1000, |sum, byte| sum * 31 + u64::from(byte)),
            };
            unit_vector(seed, DIM)
        };
        let vector = |text: &&str| {
            let mut sum = vec![1e-3; DIM];
            let text = text.to_lowercase();
            for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
                sum.iter_mut().zip(direction(word)).for_each(|(sum, value)| *sum += value);
            }
            normalised(sum)
        };
        Ok(texts.iter().map(vector).collect())
    }
}
