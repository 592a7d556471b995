//! The KV cache of a sequence.

use crate::error::EngineError;
use aios_contract::ModelConfig;
use aios_kernels::{BLOCK, CacheShape, CacheType, Isa, KvLayer, KvLayerMut};
use aios_residency::KvArena;

/// Keys and values of the positions `0..len` of one sequence, in every layer.
///
/// Going back to an earlier length leaves no trace: what lies behind it is never looked at
/// before it is written again.
#[derive(Debug)]
pub(crate) struct KvCache {
    shape: CacheShape,
    context: usize,
    arena: KvArena,
}

impl KvCache {
    /// A cache for `context` positions.
    ///
    /// # Errors
    /// [`EngineError::CacheType`] if the heads cannot be stored so, [`EngineError::OutOfMemory`].
    pub(crate) fn new(
        config: &ModelConfig,
        context: usize,
        [key_type, value_type]: [CacheType; 2],
    ) -> Result<Self, EngineError> {
        let attention = &config.attention;
        for (kind, len) in [(key_type, attention.key_len), (value_type, attention.value_len)] {
            if !kind.fits(len) {
                return Err(EngineError::CacheType { kind, len });
            }
        }
        let shape = CacheShape {
            key_type,
            value_type,
            kv_heads: attention.kv_heads,
            key_len: attention.key_len,
            value_len: attention.value_len,
            capacity: context.next_multiple_of(BLOCK),
        };
        let arena = KvArena::new(config.layers, shape.key_bytes(), shape.value_bytes())?;
        Ok(Self { shape, context, arena })
    }

    /// Positions that fit.
    pub(crate) const fn context(&self) -> usize {
        self.context
    }

    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// The shape of a layer.
    pub(crate) const fn shape(&self) -> CacheShape {
        self.shape
    }

    /// A layer's keys and values.
    pub(crate) fn layer(&self, layer: usize) -> KvLayer<'_> {
        let [keys, values] = self.arena.layer(layer);
        KvLayer { shape: self.shape, keys, values }
    }

    /// Writes the keys and values of `n` positions from `start`: `k` is \[n\]\[kv_heads·key_len\],
    /// `v` likewise.
    pub(crate) fn write(&mut self, isa: Isa, layer: usize, start: usize, k: &[f32], v: &[f32]) {
        let [keys, values] = self.arena.layer_mut(layer);
        let mut to = KvLayerMut { shape: self.shape, keys, values };
        let k = k.chunks_exact(self.shape.kv_heads * self.shape.key_len);
        let v = v.chunks_exact(self.shape.kv_heads * self.shape.value_len);
        for (i, (k, v)) in k.zip(v).enumerate() {
            to.write(isa, start + i, k, v);
        }
    }
}
