//! The pass of an encoder: some texts' tokens together through all layers (SPEC.md, A7 and A8).

use super::load::{Layer, Linear, NormPair};
use super::{Config, Encoder, Pooling};
use aios_contract::{ActivationFn, NormKind};
use aios_kernels::{
    AttentionParams, BLOCK, CacheShape, CacheType, Input, KvLayer, KvLayerMut, Norm, Product,
    activate, add, attend_all, matmul, norm_in_place, scale,
};
use std::ops::Range;

/// The vectors of texts, each given by its ids.
pub(super) fn vectors(encoder: &Encoder, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let mut pass = Pass::new(encoder, texts);
    pass.embed(texts);
    for layer in &encoder.weights.layers {
        pass.attention(layer);
        pass.feed_forward(layer);
    }
    pass.spans.iter().map(|span| pass.pooled(span.clone())).collect()
}

/// Bytes that a pass over `n` tokens takes: six rows of the model's width for each token, one of
/// the inner width, and the keys and values of a text in one layer.
pub(super) fn pass_bytes(config: &Config, n: usize) -> usize {
    let rows = n * (6 * config.d_model + config.ffn_len);
    let cache = 2 * n.next_multiple_of(BLOCK) * config.d_model;
    4 * (rows + cache)
}

/// Activations of `n` tokens, those of all texts one after the other.
struct Pass<'a> {
    encoder: &'a Encoder,
    /// Where each text's tokens are.
    spans: Vec<Range<usize>>,
    /// The hidden states, \[n\]\[d_model\].
    x: Vec<f32>,
    /// \[n\]\[d_model\] each.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    /// A branch's output, \[n\]\[d_model\].
    branch: Vec<f32>,
    /// \[n\]\[ffn_len\].
    inner: Vec<f32>,
    cache: Cache,
}

/// The keys and values of one text in one layer.
struct Cache {
    shape: CacheShape,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl<'a> Pass<'a> {
    fn new(encoder: &'a Encoder, texts: &[Vec<u32>]) -> Self {
        let config = &encoder.config;
        let mut n = 0;
        let mut spans = Vec::with_capacity(texts.len());
        for ids in texts {
            spans.push(n..n + ids.len());
            n += ids.len();
        }
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let shape = CacheShape {
            key_type: CacheType::F32,
            value_type: CacheType::F32,
            kv_heads: config.heads,
            key_len: config.head_len(),
            value_len: config.head_len(),
            capacity: longest.next_multiple_of(BLOCK),
        };
        let rows = || vec![0.0; n * config.d_model];
        Self {
            encoder,
            spans,
            x: rows(),
            q: rows(),
            k: rows(),
            v: rows(),
            attended: rows(),
            branch: rows(),
            inner: vec![0.0; n * config.ffn_len],
            cache: Cache {
                shape,
                keys: vec![0; shape.key_bytes()],
                values: vec![0; shape.value_bytes()],
            },
        }
    }

    /// x = norm((token + kind of text) + position).
    fn embed(&mut self, texts: &[Vec<u32>]) {
        let Encoder { mapping, config, weights, isa, .. } = self.encoder;
        let (file, d) = (mapping.bytes(), config.d_model);
        let mut position_row = vec![0.0; d];
        let positions = texts.iter().flat_map(|ids| ids.iter().enumerate());
        for (x, (position, &id)) in self.x.chunks_exact_mut(d).zip(positions) {
            weights.tokens.row(*isa, file, id as usize, x);
            weights.positions.row(*isa, file, position, &mut position_row);
            add(*isa, x, &weights.kind);
            add(*isa, x, &position_row);
        }
        normalise(self.encoder, &weights.norm, &mut self.x);
    }

    /// x = norm(x + attention(x)).
    fn attention(&mut self, layer: &Layer) {
        let Encoder { config, isa, pool, .. } = self.encoder;
        let (d, shape) = (config.d_model, self.cache.shape);
        let outs =
            [(&layer.q, &mut self.q[..]), (&layer.k, &mut self.k[..]), (&layer.v, &mut self.v[..])];
        project(self.encoder, &self.x, d, outs);
        let params = AttentionParams {
            heads: config.heads,
            scale: inverse_root(config.head_len()),
            softcap: None,
            window: None,
        };
        for span in &self.spans {
            let rows = span.start * d..span.end * d;
            let Cache { keys, values, .. } = &mut self.cache;
            let mut to = KvLayerMut { shape, keys, values };
            let pairs = self.k[rows.clone()].chunks_exact(d).zip(self.v[rows.clone()].chunks(d));
            for (position, (k, v)) in pairs.enumerate() {
                to.write(*isa, position, k, v);
            }
            let kv =
                KvLayer { shape, keys: &self.cache.keys, values: &self.cache.values, past: false };
            let out = &mut self.attended[rows.clone()];
            attend_all(*isa, pool, params, kv, &self.q[rows], out);
        }
        project(self.encoder, &self.attended, d, [(&layer.o, &mut self.branch)]);
        add(*isa, &mut self.x, &self.branch);
        normalise(self.encoder, &layer.attn_norm, &mut self.x);
    }

    /// x = norm(x + down(gelu(up(x)))).
    fn feed_forward(&mut self, layer: &Layer) {
        let Encoder { config, isa, pool, .. } = self.encoder;
        let len = config.ffn_len;
        project(self.encoder, &self.x, config.d_model, [(&layer.up, &mut self.inner)]);
        activate(*isa, pool, ActivationFn::GeluErf, None, len, &mut self.inner);
        project(self.encoder, &self.inner, len, [(&layer.down, &mut self.branch)]);
        add(*isa, &mut self.x, &self.branch);
        normalise(self.encoder, &layer.out_norm, &mut self.x);
    }

    /// The text's vector, of length 1.
    fn pooled(&self, span: Range<usize>) -> Vec<f32> {
        let Encoder { config, isa, .. } = self.encoder;
        let d = config.d_model;
        let mut rows = self.x[span.start * d..span.end * d].chunks_exact(d);
        let mut vector = rows.next().expect("a text has its frame").to_vec();
        if config.pooling == Pooling::Mean {
            rows.for_each(|row| add(*isa, &mut vector, row));
            scale(*isa, &mut vector, 1.0 / count(span.len()));
        }
        let length = sum_of_squares(&vector).sqrt();
        scale(*isa, &mut vector, 1.0 / length);
        vector
    }
}

/// `out` = weights · x + bias for projections that share the input `x`, \[n\]\[len\].
fn project<const N: usize>(
    encoder: &Encoder,
    x: &[f32],
    len: usize,
    outs: [(&Linear, &mut [f32]); N],
) {
    let file = encoder.mapping.bytes();
    let input = Input { x, len, q32: None, q256: None, exact: true };
    let mut products = outs.map(|(linear, out)| Product {
        weights: linear.weights.matrix(file),
        bias: Some(&linear.bias),
        out,
    });
    matmul(encoder.isa, &encoder.pool, input, &mut products, &[]);
}

fn normalise(encoder: &Encoder, weights: &NormPair, x: &mut [f32]) {
    let norm = Norm {
        kind: NormKind::Layer,
        epsilon: encoder.config.epsilon,
        gain: &weights.gain,
        bias: Some(&weights.bias),
    };
    norm_in_place(encoder.isa, &encoder.pool, norm, x);
}

#[expect(clippy::cast_precision_loss, reason = "texts and heads are short")]
const fn count(n: usize) -> f32 {
    n as f32
}

fn inverse_root(head_len: usize) -> f32 {
    1.0 / count(head_len).sqrt()
}

/// Σ x² by N3.
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (i, x) in x.iter().enumerate() {
        lanes[i % 16] = x.mul_add(*x, lanes[i % 16]);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
