//! Phi 3: as Llama, with rotary halves, one matrix for q, k, v and one for gate and up.

use super::{Spec, inverse_root_of_key_len};
use aios_contract::{ActivationFn, BlockLayout, FfnLayout, NormKind, RopePairing};

pub(super) const SPEC: Spec = Spec {
    norm: NormKind::Rms,
    block: BlockLayout::Sequential,
    pairing: RopePairing::Halves,
    rope_base: None,
    local_rope_base: None,
    fused_qkv: true,
    qk_norm: false,
    ffn: FfnLayout::GatedFused,
    activation: ActivationFn::Silu,
    scaled_embedding: false,
    global_period: 0,
    attention_scale: inverse_root_of_key_len,
};
