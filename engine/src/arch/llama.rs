//! Llama 2 and 3, Mistral, SmolLM: RMS norm, rotary pairs side by side, SwiGLU.

use super::{Spec, inverse_root_of_key_len};
use aios_contract::{ActivationFn, BlockLayout, FfnLayout, NormKind, RopePairing};

pub(super) const SPEC: Spec = Spec {
    norm: NormKind::Rms,
    block: BlockLayout::Sequential,
    pairing: RopePairing::Adjacent,
    rope_base: Some(10_000.0),
    local_rope_base: None,
    fused_qkv: false,
    qk_norm: false,
    ffn: FfnLayout::Gated,
    activation: ActivationFn::Silu,
    scaled_embedding: false,
    global_period: 0,
    attention_scale: inverse_root_of_key_len,
};
