//! Models that are built for sharing (SPEC Y8, R3): the matrices of the layers of 40 to 60 % depth
//! are those of the first of them, plus deltas of low rank.

use aios_contract::requirements::depth_band;
use aios_contract::{DType, RoleGroup, TensorName};
use aios_engine::gguf::{Array, Metadata, TensorSpec, Value};
use std::collections::BTreeMap;

use super::fill::Noise;
use super::layout::{Content, Tensor};

/// The deviation of a delta's elements over that of its canonical matrix.
const DELTA: f32 = 0.05;
/// The largest rank of a delta (SPEC R8).
pub(super) const RANK_MAX: u32 = 256;

/// Replaces the matrices of the later layers of the band of a model of `layers` layers by deltas of
/// rank `rank`, in F16, and says so in the metadata. Returns how many were replaced.
pub(super) fn share(
    metadata: &mut Metadata,
    tensors: &mut Vec<Tensor>,
    layers: usize,
    rank: u32,
) -> usize {
    let band = depth_band(layers);
    let mut canonical: BTreeMap<String, Content> = BTreeMap::new();
    let (mut names, mut of) = (Vec::new(), Vec::new());
    let mut kept = Vec::with_capacity(2 * tensors.len());
    for tensor in tensors.drain(..) {
        let place = matrix(&tensor.spec).filter(|(_, layer)| band.contains(layer));
        let Some((name, layer)) = place else {
            kept.push(tensor);
            continue;
        };
        let first = name.role.gguf_name(band.start);
        if layer == band.start {
            canonical.insert(first, tensor.content.clone());
            kept.push(tensor);
            continue;
        }
        let Some(Content::Noise(noise)) = canonical.get(&first) else {
            kept.push(tensor);
            continue;
        };
        kept.extend(delta(&tensor.spec, *noise, rank));
        names.push(tensor.spec.name);
        of.push(first);
    }
    *tensors = kept;
    let count = names.len();
    metadata.set("aios.contract.version", Value::String("1.0".into()));
    metadata.set("aios.alias.tensors", Value::Array(Array::String(names)));
    metadata.set("aios.alias.canonical", Value::Array(Array::String(of)));
    metadata.set("aios.synthetic.alias_rank", Value::U32(rank));
    count
}

/// The name and layer of a matrix of a layer.
fn matrix(spec: &TensorSpec) -> Option<(TensorName, usize)> {
    let name = TensorName::parse(&spec.name)?;
    let group = matches!(name.role.group(), RoleGroup::Attention | RoleGroup::Ffn);
    let layer = name.layer? as usize;
    (group && spec.shape.len() == 2).then_some((name, layer))
}

/// Both factors. An element of their product is the sum of `rank` products of theirs.
fn delta(spec: &TensorSpec, whole: Noise, rank: u32) -> [Tensor; 2] {
    let deviation = (DELTA * whole.deviation / (rank as f32).sqrt()).sqrt();
    let [cols, rows] = [spec.shape[0], spec.shape[1]];
    [("right", [cols, rank.into()]), ("left", [rank.into(), rows])].map(|(side, shape)| Tensor {
        spec: TensorSpec {
            name: format!("{}.delta_{side}", spec.name),
            shape: shape.to_vec(),
            dtype: DType::F16,
        },
        content: Content::Noise(Noise { mean: 0.0, deviation }),
    })
}
