//! Which tensors a model of a shape has, and what is in them.

use aios_contract::{Architecture, DType, Role};
use aios_engine::gguf::TensorSpec;

use super::fill::Noise;
use super::quant::{Quant, Site};
use super::shapes::{Rope, Shape};

/// A tensor of the file to be.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub spec: TensorSpec,
    pub content: Content,
}

/// What is in a tensor.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Random elements.
    Noise(Noise),
    /// These elements, as F32.
    Values(Vec<f32>),
}

/// The deviation of norm gains around 1 and of biases around 0.
const SMALL: f32 = 0.1;

/// The tensors of a model of `shape`, in the order of the file.
pub(super) fn tensors(shape: &Shape, quant: Quant) -> Vec<Tensor> {
    let mut layout = Layout { shape, quant, layer: 0, tensors: Vec::new() };
    layout.matrix(Role::TokenEmbedding, shape.d_model, shape.vocab);
    layout.rope_factors();
    for layer in 0..shape.layers {
        layout.layer = layer;
        layout.attention();
        layout.feed_forward();
    }
    layout.norm(Role::OutputNorm, shape.d_model);
    if shape.architecture == Architecture::Falcon {
        layout.bias(Role::OutputNormBias, shape.d_model);
    }
    if !shape.tied {
        layout.matrix(Role::Head, shape.d_model, shape.vocab);
    }
    layout.tensors
}

/// The tensors so far.
struct Layout<'a> {
    shape: &'a Shape,
    quant: Quant,
    /// The layer that tensors are added to.
    layer: u32,
    tensors: Vec<Tensor>,
}

impl Layout<'_> {
    fn attention(&mut self) {
        use Architecture::{Falcon, Gemma3, Phi3, Qwen2, Qwen3};
        let &Shape { architecture, d_model, head_len, .. } = self.shape;
        let (q_len, kv_len) = (self.shape.q_len(), self.shape.kv_len());
        self.norm(Role::AttnNorm, d_model);
        if architecture == Falcon {
            self.bias(Role::AttnNormBias, d_model);
        }
        if self.shape.two_norms {
            self.norm(Role::AttnNorm2, d_model);
            self.bias(Role::AttnNorm2Bias, d_model);
        }
        if matches!(architecture, Phi3 | Falcon) {
            self.matrix(Role::AttnQkv, d_model, q_len + 2 * kv_len);
        } else {
            self.matrix(Role::AttnQ, d_model, q_len);
            self.matrix(Role::AttnK, d_model, kv_len);
            self.matrix(Role::AttnV, d_model, kv_len);
        }
        if architecture == Qwen2 {
            self.bias(Role::AttnQBias, q_len);
            self.bias(Role::AttnKBias, kv_len);
            self.bias(Role::AttnVBias, kv_len);
        }
        if matches!(architecture, Qwen3 | Gemma3) {
            self.norm(Role::AttnQNorm, head_len);
            self.norm(Role::AttnKNorm, head_len);
        }
        self.matrix(Role::AttnOutput, q_len, d_model);
        if architecture == Gemma3 {
            self.post_norm(Role::AttnPostNorm, d_model);
        }
    }

    fn feed_forward(&mut self) {
        use Architecture::{Falcon, Gemma3, Phi3};
        let &Shape { architecture, d_model, ffn_len, .. } = self.shape;
        if architecture != Falcon {
            self.norm(Role::FfnNorm, d_model);
        }
        match architecture {
            Falcon => self.matrix(Role::FfnUp, d_model, ffn_len),
            Phi3 => self.matrix(Role::FfnUp, d_model, 2 * ffn_len),
            _ => {
                self.matrix(Role::FfnGate, d_model, ffn_len);
                self.matrix(Role::FfnUp, d_model, ffn_len);
            }
        }
        self.matrix(Role::FfnDown, ffn_len, d_model);
        if architecture == Gemma3 {
            self.post_norm(Role::FfnPostNorm, d_model);
        }
    }

    fn rope_factors(&mut self) {
        let pairs = self.shape.head_len / 2;
        match self.shape.rope {
            Rope::Plain | Rope::Linear { .. } => {}
            Rope::Llama3 { factor } => {
                let values = llama3_factors(self.shape, factor);
                self.values(Role::RopeFactors, values);
            }
            Rope::LongRope { original_context } => {
                let longest = self.shape.context as f32 / original_context as f32;
                let ramp = |end: f32| {
                    let step = (end - 1.0) / (pairs - 1) as f32;
                    (0..pairs).map(|i| 1.0 + step * i as f32).collect()
                };
                self.values(Role::RopeFactorsLong, ramp(longest));
                self.values(Role::RopeFactorsShort, ramp(2.0));
            }
        }
    }

    /// A matrix of `rows` rows of `row_len` elements. Elements have the deviation that keeps the
    /// scale of a vector, those of the head twice that, to spread the logits.
    fn matrix(&mut self, role: Role, row_len: u32, rows: u32) {
        let shape = self.shape;
        let is_head = role == Role::Head || (role == Role::TokenEmbedding && shape.tied);
        let gain = if is_head { 2.0 } else { 1.0 };
        let noise = Noise { mean: 0.0, deviation: gain / (row_len as f32).sqrt() };
        let dtype = self.quant.dtype(&Site {
            architecture: shape.architecture,
            role,
            layer: self.layer,
            layers: shape.layers,
            row_len,
            group: shape.heads / shape.kv_heads,
            tied: shape.tied,
        });
        self.add(role, vec![row_len.into(), rows.into()], dtype, Content::Noise(noise));
    }

    fn norm(&mut self, role: Role, len: u32) {
        let noise = Noise { mean: 1.0, deviation: SMALL };
        self.add(role, vec![len.into()], DType::F32, Content::Noise(noise));
    }

    /// A norm on a branch's output. The embedding, which is the head too, enters Gemma scaled up; a
    /// branch must be larger than that, or the model echoes the last token.
    fn post_norm(&mut self, role: Role, len: u32) {
        let noise = Noise { mean: 4.0, deviation: SMALL };
        self.add(role, vec![len.into()], DType::F32, Content::Noise(noise));
    }

    fn bias(&mut self, role: Role, len: u32) {
        let noise = Noise { mean: 0.0, deviation: SMALL };
        self.add(role, vec![len.into()], DType::F32, Content::Noise(noise));
    }

    fn values(&mut self, role: Role, values: Vec<f32>) {
        self.add(role, vec![values.len() as u64], DType::F32, Content::Values(values));
    }

    fn add(&mut self, role: Role, shape: Vec<u64>, dtype: DType, content: Content) {
        let name = role.gguf_name(self.layer as usize);
        self.tensors.push(Tensor { spec: TensorSpec { name, shape, dtype }, content });
    }
}

/// The factors of Llama 3.1 and 3.2, one for each pair of a head: 1 for wavelengths below a
/// quarter of the original context of 8192, `factor` for those beyond all of it, and between them
/// so that the inverse goes linearly with the number of turns in that context.
fn llama3_factors(shape: &Shape, factor: f32) -> Vec<f32> {
    const ORIGINAL_CONTEXT: f64 = 8192.0;
    const TURNS: [f64; 2] = [1.0, 4.0];
    let factor = f64::from(factor);
    let of_pair = |pair: u32| {
        let exponent = f64::from(2 * pair) / f64::from(shape.head_len);
        let wavelength = std::f64::consts::TAU * libm::pow(shape.rope_base.into(), exponent);
        let turns = ORIGINAL_CONTEXT / wavelength;
        let kept = ((turns - TURNS[0]) / (TURNS[1] - TURNS[0])).clamp(0.0, 1.0);
        (1.0 / (kept + (1.0 - kept) / factor)) as f32
    };
    (0..shape.head_len / 2).map(of_pair).collect()
}
