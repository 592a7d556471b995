//! Attention without a direction: every token sees every other, as encoders have it.

use super::{AttentionParams, Job, KvLayer, MAX_HEAD_LEN, QUERIES};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::shared::Shared;

/// Attention of all tokens of a text, whose keys and values are at the positions from 0 of `kv`,
/// to all of them: what [`super::attend`] gives for a query at the last position, for each. `q` is
/// \[n\]\[heads\]\[key_len\], `out` \[n\]\[heads\]\[value_len\]. A window is not looked at.
///
/// # Panics
/// If the shapes do not fit.
pub fn attend_all(
    isa: Isa,
    pool: &Pool,
    params: AttentionParams,
    kv: KvLayer<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let shape = kv.shape;
    let row = params.heads * shape.key_len;
    assert!(row > 0 && q.len().is_multiple_of(row));
    let n = q.len() / row;
    assert!(n > 0 && out.len() == n * params.heads * shape.value_len);
    assert!(params.heads.is_multiple_of(shape.kv_heads) && n <= shape.capacity);
    assert!(shape.key_len <= MAX_HEAD_LEN && shape.value_len <= MAX_HEAD_LEN);
    let params = AttentionParams { window: None, ..params };
    // Every query stands at the last position.
    let (kv, turned, out) = (kv.into(), Vec::new(), Shared::new(out));
    let job = Job { isa, params, kv, start: n - 1, step: 0, q, turned, out };
    let tiles = (n * job.group()).div_ceil(QUERIES);
    pool.for_each(shape.kv_heads * tiles, &|piece| job.tile(piece / tiles, piece % tiles));
}
