//! Falcon: layer norm, attention and FFN in parallel, one matrix for q, k, v, plain GELU.

use super::{Spec, inverse_root_of_key_len};
use aios_contract::{ActivationFn, BlockLayout, FfnLayout, NormKind, RopePairing};

pub(super) const SPEC: Spec = Spec {
    norm: NormKind::Layer,
    block: BlockLayout::Parallel,
    pairing: RopePairing::Halves,
    rope_base: Some(10_000.0),
    local_rope_base: None,
    fused_qkv: true,
    qk_norm: false,
    ffn: FfnLayout::Plain,
    activation: ActivationFn::GeluTanh,
    scaled_embedding: false,
    global_period: 0,
    attention_scale: inverse_root_of_key_len,
};
