//! Bytes of keys and values that a token reads, by the length of its context.

use aios_contract::ModelConfig;
use aios_kernels::CacheType;
use serde::Serialize;

/// The contexts, in tokens.
pub const CONTEXTS: [usize; 7] = [512, 1024, 2048, 4096, 8192, 16384, 32768];

/// What one token at the end of a context reads of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CacheBytes {
    /// Tokens of the context.
    pub context: usize,
    /// Whether the model was made for so many.
    pub within_model: bool,
    /// Bytes with keys and values as f16.
    pub f16: u64,
    /// Bytes as q8_0; `None` where the heads do not fit its blocks.
    pub q8_0: Option<u64>,
}

/// What a token at the scored positions of some prompts reads of the cache, as means over these.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScoredCache {
    /// Positions in the cache, the token's own included.
    pub positions: f64,
    /// Bytes with keys and values as f16.
    pub f16: u64,
    /// Bytes as q8_0; `None` where the heads do not fit its blocks.
    pub q8_0: Option<u64>,
}

/// The means over tokens that each find one of `contexts` positions in the cache, their own
/// included; zeros of none.
pub(super) fn scored(config: &ModelConfig, contexts: &[usize]) -> ScoredCache {
    let count = contexts.len().max(1);
    let mean = |bytes, elements| {
        let of = |&context: &usize| read(config, context, bytes, elements);
        contexts.iter().map(of).sum::<u64>() / count as u64
    };
    ScoredCache {
        positions: contexts.iter().sum::<usize>() as f64 / count as f64,
        f16: mean(2, 1),
        q8_0: q8_0_fits(config).then(|| mean(34, 32)),
    }
}

/// The bytes for each of [`CONTEXTS`], computed from the configuration: layers with a sliding
/// window read at most the window.
pub fn bytes(config: &ModelConfig) -> Vec<CacheBytes> {
    let of = |context| CacheBytes {
        context,
        within_model: context <= config.context,
        f16: read(config, context, 2, 1),
        q8_0: q8_0_fits(config).then(|| read(config, context, 34, 32)),
    };
    CONTEXTS.into_iter().map(of).collect()
}

/// Whether the heads are whole blocks of q8_0.
pub(super) const fn q8_0_fits(config: &ModelConfig) -> bool {
    CacheType::Q8_0.fits(config.attention.key_len)
        && CacheType::Q8_0.fits(config.attention.value_len)
}

/// Bytes of the positions that a query at the end of `context` sees, where `elements` elements take
/// `bytes` bytes.
fn read(config: &ModelConfig, context: usize, bytes: u64, elements: u64) -> u64 {
    let attention = &config.attention;
    let seen = |layer| {
        let window = attention.window.filter(|window| window.applies_to(layer));
        window.map_or(context, |window| context.min(window.size)) as u64
    };
    let positions: u64 = (0..config.layers).map(seen).sum();
    // Counts of a configuration are at most 2^24 and heads 256 long, so that this is below 2^63.
    positions * (config.k_len() + config.v_len()) as u64 / elements * bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use aios_contract::SlidingWindow;
    use aios_engine::Model;
    use std::path::Path;

    #[test]
    fn windows_bound_what_is_read() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        let model = Model::load(&models.join("micro-llama-q4km.gguf")).expect("a micro model");
        let mut config = model.config().clone();
        config.layers = 6;
        config.attention.kv_heads = 2;
        (config.attention.key_len, config.attention.value_len) = (64, 32);
        config.attention.window = None;
        let row = 2 * (64 + 32);
        let list = bytes(&config);
        assert_eq!((list[2].context, list[2].f16), (2048, 6 * 2048 * row * 2));
        assert_eq!(list[2].q8_0, Some(6 * 2048 * row * 34 / 32));
        config.attention.window = Some(SlidingWindow { size: 600, global_period: 6 });
        let list = bytes(&config);
        assert_eq!(list[0].f16, 6 * 512 * row * 2);
        assert_eq!(list[6].f16, (5 * 600 + 32768) * row * 2);
        // Of the positions 1 and 1000 a window of 600 is read in five of six layers.
        let scored = scored(&config, &[1, 1000]);
        let f16 = u64::midpoint(6, 5 * 600 + 1000) * row * 2;
        assert_eq!((scored.positions, scored.f16), (500.5, f16));
        assert_eq!(scored.q8_0, Some(f16 / 64 * 34));
        config.attention.key_len = 48;
        assert_eq!(bytes(&config)[0].q8_0, None);
    }
}
