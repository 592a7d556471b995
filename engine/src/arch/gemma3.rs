//! Gemma 3: norms before and after each branch, norms on q and k, GeGLU, scaled embeddings, and
//! five layers with a sliding window and a rope base of their own for each global one.

use super::{Shape, Spec, inverse_root_of_key_len};
use aios_contract::{ActivationFn, BlockLayout, FfnLayout, NormKind, RopePairing};

pub(super) const SPEC: Spec = Spec {
    norm: NormKind::Rms,
    block: BlockLayout::SequentialPostNorm,
    pairing: RopePairing::Halves,
    rope_base: None,
    local_rope_base: Some(10_000.0),
    fused_qkv: false,
    qk_norm: true,
    ffn: FfnLayout::Gated,
    activation: ActivationFn::GeluTanh,
    scaled_embedding: true,
    global_period: 6,
    attention_scale,
};

/// 1/√key_len, but 1/√(d_model / heads) for the 27B model, the only one with 62 layers.
#[expect(clippy::cast_precision_loss, reason = "sizes are small")]
fn attention_scale(shape: &Shape) -> f32 {
    if shape.layers == 62 {
        1.0 / (shape.d_model as f32 / shape.heads as f32).sqrt()
    } else {
        inverse_root_of_key_len(shape)
    }
}
