//! Qwen 2 and 2.5: as Llama, with rotary halves and biases on q, k and v.

use super::{Spec, inverse_root_of_key_len};
use aios_contract::{ActivationFn, BlockLayout, FfnLayout, NormKind, RopePairing};

pub(super) const SPEC: Spec = Spec {
    norm: NormKind::Rms,
    block: BlockLayout::Sequential,
    pairing: RopePairing::Halves,
    rope_base: None,
    local_rope_base: None,
    fused_qkv: false,
    qk_norm: false,
    ffn: FfnLayout::Gated,
    activation: ActivationFn::Silu,
    scaled_embedding: false,
    global_period: 0,
    attention_scale: inverse_root_of_key_len,
};
