//! Tensor roles and the GGUF names they go by: the only such table.

use serde::{Deserialize, Serialize};

/// What a tensor is for. A role and a layer number name a tensor; nothing after loading uses text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant is one row of the table below")]
pub enum Role {
    TokenEmbedding,
    OutputNorm,
    OutputNormBias,
    Head,
    RopeFactors,
    RopeFactorsLong,
    RopeFactorsShort,
    AttnNorm,
    AttnNormBias,
    AttnNorm2,
    AttnNorm2Bias,
    AttnQ,
    AttnQBias,
    AttnK,
    AttnKBias,
    AttnV,
    AttnVBias,
    AttnQkv,
    AttnQkvBias,
    AttnQNorm,
    AttnKNorm,
    AttnOutput,
    AttnOutputBias,
    AttnPostNorm,
    FfnNorm,
    FfnNormBias,
    FfnGate,
    FfnUp,
    FfnUpBias,
    FfnDown,
    FfnDownBias,
    FfnPostNorm,
    HeadSketch,
    PositionEmbedding,
    TokenTypeEmbedding,
    EmbeddingNorm,
    EmbeddingNormBias,
    AttnOutputNorm,
    AttnOutputNormBias,
    LayerOutputNorm,
    LayerOutputNormBias,
}

/// Where a role's tensors stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// One tensor for the whole model.
    Model,
    /// One tensor a layer, named `blk.N.…`.
    Layer,
}

/// The groups in which bytes are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleGroup {
    /// The token embedding: one row is read per token.
    Embedding,
    /// Attention projections and their biases.
    Attention,
    /// Feed-forward projections and their biases.
    Ffn,
    /// Norm gains and rope factors.
    Norm,
    /// The output matrix.
    Head,
}

impl RoleGroup {
    /// Every group, in the order of reports.
    pub const ALL: [Self; 5] =
        [Self::Embedding, Self::Attention, Self::Ffn, Self::Norm, Self::Head];

    /// The name in reports and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Ffn => "ffn",
            Self::Norm => "norm",
            Self::Head => "head",
        }
    }
}

type Row = (Role, Placement, RoleGroup, &'static str);

use Placement::{Layer, Model};

const TABLE: [Row; 41] = [
    (Role::TokenEmbedding, Model, RoleGroup::Embedding, "token_embd.weight"),
    (Role::OutputNorm, Model, RoleGroup::Norm, "output_norm.weight"),
    (Role::OutputNormBias, Model, RoleGroup::Norm, "output_norm.bias"),
    (Role::Head, Model, RoleGroup::Head, "output.weight"),
    (Role::RopeFactors, Model, RoleGroup::Norm, "rope_freqs.weight"),
    (Role::RopeFactorsLong, Model, RoleGroup::Norm, "rope_factors_long.weight"),
    (Role::RopeFactorsShort, Model, RoleGroup::Norm, "rope_factors_short.weight"),
    (Role::AttnNorm, Layer, RoleGroup::Norm, "attn_norm.weight"),
    (Role::AttnNormBias, Layer, RoleGroup::Norm, "attn_norm.bias"),
    (Role::AttnNorm2, Layer, RoleGroup::Norm, "attn_norm_2.weight"),
    (Role::AttnNorm2Bias, Layer, RoleGroup::Norm, "attn_norm_2.bias"),
    (Role::AttnQ, Layer, RoleGroup::Attention, "attn_q.weight"),
    (Role::AttnQBias, Layer, RoleGroup::Attention, "attn_q.bias"),
    (Role::AttnK, Layer, RoleGroup::Attention, "attn_k.weight"),
    (Role::AttnKBias, Layer, RoleGroup::Attention, "attn_k.bias"),
    (Role::AttnV, Layer, RoleGroup::Attention, "attn_v.weight"),
    (Role::AttnVBias, Layer, RoleGroup::Attention, "attn_v.bias"),
    (Role::AttnQkv, Layer, RoleGroup::Attention, "attn_qkv.weight"),
    (Role::AttnQkvBias, Layer, RoleGroup::Attention, "attn_qkv.bias"),
    (Role::AttnQNorm, Layer, RoleGroup::Norm, "attn_q_norm.weight"),
    (Role::AttnKNorm, Layer, RoleGroup::Norm, "attn_k_norm.weight"),
    (Role::AttnOutput, Layer, RoleGroup::Attention, "attn_output.weight"),
    (Role::AttnOutputBias, Layer, RoleGroup::Attention, "attn_output.bias"),
    (Role::AttnPostNorm, Layer, RoleGroup::Norm, "post_attention_norm.weight"),
    (Role::FfnNorm, Layer, RoleGroup::Norm, "ffn_norm.weight"),
    (Role::FfnNormBias, Layer, RoleGroup::Norm, "ffn_norm.bias"),
    (Role::FfnGate, Layer, RoleGroup::Ffn, "ffn_gate.weight"),
    (Role::FfnUp, Layer, RoleGroup::Ffn, "ffn_up.weight"),
    (Role::FfnUpBias, Layer, RoleGroup::Ffn, "ffn_up.bias"),
    (Role::FfnDown, Layer, RoleGroup::Ffn, "ffn_down.weight"),
    (Role::FfnDownBias, Layer, RoleGroup::Ffn, "ffn_down.bias"),
    (Role::FfnPostNorm, Layer, RoleGroup::Norm, "post_ffw_norm.weight"),
    // A plan's, which no model file may hold: a tensor of this name is left over when all are
    // found.
    (Role::HeadSketch, Model, RoleGroup::Head, "aios.head_sketch"),
    // An encoder's.
    (Role::PositionEmbedding, Model, RoleGroup::Embedding, "position_embd.weight"),
    (Role::TokenTypeEmbedding, Model, RoleGroup::Embedding, "token_types.weight"),
    (Role::EmbeddingNorm, Model, RoleGroup::Norm, "token_embd_norm.weight"),
    (Role::EmbeddingNormBias, Model, RoleGroup::Norm, "token_embd_norm.bias"),
    (Role::AttnOutputNorm, Layer, RoleGroup::Norm, "attn_output_norm.weight"),
    (Role::AttnOutputNormBias, Layer, RoleGroup::Norm, "attn_output_norm.bias"),
    (Role::LayerOutputNorm, Layer, RoleGroup::Norm, "layer_output_norm.weight"),
    (Role::LayerOutputNormBias, Layer, RoleGroup::Norm, "layer_output_norm.bias"),
];

impl Role {
    /// How many there are.
    pub const COUNT: usize = TABLE.len();

    /// Every role, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    const fn row(self) -> &'static Row {
        let row = &TABLE[self as usize];
        assert!(row.0 as usize == self as usize);
        row
    }

    /// Whether there is one such tensor a model or one a layer.
    pub const fn placement(self) -> Placement {
        self.row().1
    }

    /// The group under which its bytes are reported.
    pub const fn group(self) -> RoleGroup {
        self.row().2
    }

    /// The GGUF name without the `blk.N.` prefix.
    pub const fn suffix(self) -> &'static str {
        self.row().3
    }

    /// What is added to a product with a matrix of this role, or to what a gain has scaled.
    pub const fn bias(self) -> Option<Self> {
        Some(match self {
            Self::OutputNorm => Self::OutputNormBias,
            Self::AttnNorm => Self::AttnNormBias,
            Self::AttnNorm2 => Self::AttnNorm2Bias,
            Self::AttnQ => Self::AttnQBias,
            Self::AttnK => Self::AttnKBias,
            Self::AttnV => Self::AttnVBias,
            Self::AttnQkv => Self::AttnQkvBias,
            Self::AttnOutput => Self::AttnOutputBias,
            Self::FfnNorm => Self::FfnNormBias,
            Self::FfnUp => Self::FfnUpBias,
            Self::FfnDown => Self::FfnDownBias,
            Self::EmbeddingNorm => Self::EmbeddingNormBias,
            Self::AttnOutputNorm => Self::AttnOutputNormBias,
            Self::LayerOutputNorm => Self::LayerOutputNormBias,
            _ => return None,
        })
    }

    /// The full GGUF name; `layer` is ignored for a role that stands once a model.
    pub fn gguf_name(self, layer: usize) -> String {
        match self.placement() {
            Placement::Model => self.suffix().to_owned(),
            Placement::Layer => format!("blk.{layer}.{}", self.suffix()),
        }
    }
}

/// A tensor name understood: its role and, for a role that stands once a layer, the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorName {
    /// What the tensor is for.
    pub role: Role,
    /// Its layer, counted from 0; `None` for a tensor of the whole model.
    pub layer: Option<u32>,
}

impl TensorName {
    /// The name of the bias that goes with a matrix or a gain.
    pub fn bias(self) -> Option<Self> {
        Some(Self { role: self.role.bias()?, ..self })
    }

    /// Reads a GGUF tensor name; `None` for a name that is not in the table.
    pub fn parse(name: &str) -> Option<Self> {
        let (layer, suffix) = match name.strip_prefix("blk.") {
            None => (None, name),
            Some(rest) => {
                let (number, suffix) = rest.split_once('.')?;
                let canonical = number == "0" || !number.starts_with(['0', '+']);
                (Some(number.parse().ok().filter(|_| canonical)?), suffix)
            }
        };
        let placement = if layer.is_some() { Placement::Layer } else { Placement::Model };
        let row = TABLE.iter().find(|row| row.3 == suffix && row.1 == placement);
        // Some writers repeat the model's rope factors in each layer; they are all the same.
        let row = row
            .or_else(|| TABLE.iter().find(|row| row.3 == suffix && suffix.starts_with("rope_f")))?;
        Some(Self { role: row.0, layer: layer.filter(|_| row.1 == Placement::Layer) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_round_trips_through_its_name() {
        for role in Role::all() {
            let parsed = TensorName::parse(&role.gguf_name(17)).expect("a name of the table");
            let layer = (role.placement() == Placement::Layer).then_some(17);
            assert_eq!(parsed, TensorName { role, layer });
        }
    }

    #[test]
    fn biases_go_with_the_tensor_of_the_same_stem() {
        for role in Role::all() {
            let stem = role.suffix().strip_suffix(".weight");
            let bias = stem.map(|stem| format!("{stem}.bias"));
            let listed = Role::all().find(|other| Some(other.suffix()) == bias.as_deref());
            assert_eq!(role.bias(), listed, "{role:?}");
        }
    }

    #[test]
    fn foreign_names_are_refused() {
        for name in [
            "",
            "blk.",
            "blk.1",
            "blk.x.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.+1.attn_q.weight",
            "attn_q.weight",
            "blk.0.output.weight",
            "blk.0.attn_q",
        ] {
            assert_eq!(TensorName::parse(name), None, "{name}");
        }
    }
}
