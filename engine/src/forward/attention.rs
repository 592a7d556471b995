//! A layer's attention.

use super::{Executor, State};
use crate::model::{Layer, Model};
use aios_kernels::{AttentionParams, attend, norm_in_place, rotate_rows};

impl Executor {
    /// branch = o · attention(q, k, v) of the normed stream.
    pub(super) fn attention(&mut self, model: &Model, index: usize, layer: &Layer, start: usize) {
        let Self { context, state, cache, meter, .. } = self;
        let State { normed, branch, q, k, v, attended, scratch, .. } = state;
        let (config, blocks) = (model.config(), model.blocks());
        let attention = &config.attention;
        let (isa, pool) = (context.isa, context.pool());
        if context.single {
            cache.layer(index).expect(start);
        }
        let next = [Some(&layer.o.tensor), None, None];
        let qkv = [layer.q.entry(q), layer.k.entry(k), layer.v.entry(v)];
        context.project((blocks, meter), normed, config.d_model, qkv, next);
        for (norm, heads) in [(&layer.q_norm, &mut *q), (&layer.k_norm, &mut *k)] {
            if let Some(norm) = norm {
                norm_in_place(isa, &pool, norm.with(config.norm), heads);
            }
        }
        let window = attention.window.filter(|window| window.applies_to(index));
        let ropes = model.ropes(cache.context());
        let (rope, table) = match (&ropes.local, window) {
            (Some(local), Some(_)) => (local, &state.local_rope),
            _ => (&ropes.global, &state.global_rope),
        };
        let rotation = |row| table.rotation(rope, row);
        for (x, row) in [(&mut *q, config.q_len()), (&mut *k, config.k_len())] {
            rotate_rows(isa, &pool, &rotation, (attention.key_len, row), x);
        }
        cache.write((isa, &pool), index, start, (k, v));
        let end = start + k.len() / config.k_len();
        let demoted = cache.demote(isa, index, end - 1);
        let params = AttentionParams {
            heads: attention.heads,
            scale: attention.scale,
            softcap: attention.score_softcap,
            window: window.map(|window| window.size),
        };
        attend(isa, &pool, params, cache.layer(index), start, q, attended, scratch);
        let first = params.window.map_or(0, |window| (start + 1).saturating_sub(window));
        meter.cache(index, cache.layer(index), (start..end, demoted), first..end);
        let len = attention.heads * attention.value_len;
        let output = [layer.o.entry(branch)];
        context.project((blocks, meter), attended, len, output, layer.ffn.first());
    }
}
