//! How alike layers are that could share weights: what aliasing one's to another's would need.

use super::files::{GgufFile, Matrix};
use super::levers::megabytes;
use super::{HeadroomError, Progress, step};
use crate::divergence::quantile;
use aios_contract::{Placement, Role};
use aios_kernels::Isa;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Bytes of a block, in the file.
pub const BLOCK_BYTES: usize = 64 << 10;
/// A block is a whole number of these elements: of the largest weight format's blocks.
const SUPER_BLOCK: usize = 256;
/// Elements whose moments are summed side by side.
const LANES: usize = 16;

/// A part of a model's depth, with the likeness that aliasing asks for there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Zone {
    /// The first and the last tenth of the layers.
    Ends,
    /// Between these and the middle.
    Flanks,
    /// From 40 to 60 % of the depth.
    Middle,
}

impl Zone {
    /// Every zone.
    pub const ALL: [Self; 3] = [Self::Ends, Self::Flanks, Self::Middle];

    /// The zone of layer `layer` of `layers`: layers that reach into a tenth at either end belong
    /// to the ends, those wholly between 40 and 60 % to the middle.
    pub const fn of(layer: usize, layers: usize) -> Self {
        // Layers number at most 2^24, so that nothing here overflows.
        let (start, end) = (10 * layer, 10 * (layer + 1));
        if start < layers || end > 9 * layers {
            Self::Ends
        } else if start >= 4 * layers && end <= 6 * layers {
            Self::Middle
        } else {
            Self::Flanks
        }
    }

    /// The least cosine at which a block could be aliased.
    pub const fn threshold(self) -> f64 {
        match self {
            Self::Ends => 0.99,
            Self::Flanks => 0.97,
            Self::Middle => 0.95,
        }
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ends => "first and last 10 %",
            Self::Flanks => "10-40 % and 60-90 %",
            Self::Middle => "40-60 %",
        }
    }
}

/// How alike layers are. Cosines are without their sign: a matrix that is another's
/// negative would be an alias as well.
#[derive(Clone, Debug, Serialize)]
pub struct Similarity {
    /// Bytes of a block in the file.
    pub block_bytes: usize,
    /// By role and zone; those that have no pair of layers are left out.
    pub groups: Vec<ZoneSimilarity>,
    /// The largest cosine of two blocks; `None` if there are none.
    pub block_largest: Option<f64>,
    /// The largest cosine of two whole tensors.
    pub tensor_largest: Option<f64>,
    /// Bytes of blocks that are alike enough to be aliased.
    pub alike_bytes: u64,
}

impl Similarity {
    /// What aliasing layers to one another would give, in words that go on after its name.
    pub fn verdict(&self) -> String {
        let Some(largest) = self.block_largest else {
            return "gives nothing: there are no two layers to share weights".to_owned();
        };
        let kilobytes = self.block_bytes >> 10;
        if self.alike_bytes == 0 {
            return format!(
                "gives nothing: the most alike {kilobytes} KB blocks of layers that could share \
                 them have a cosine of {largest:.2}, and sharing asks for 0.95 to 0.99"
            );
        }
        format!(
            "may save up to {} a token: so many bytes of {kilobytes} KB blocks are alike enough \
             (largest cosine {largest:.4}); what sharing them costs is not measured here, and \
             blocks that are equal count as duplicates",
            megabytes(self.alike_bytes)
        )
    }
}

/// The pairs of layers of one role in one zone: neighbours, of which a pair is in its first layer's
/// zone, and in the middle each two, since several layers may share one matrix there.
#[derive(Clone, Debug, Serialize)]
pub struct ZoneSimilarity {
    /// The role.
    pub role: Role,
    /// The zone.
    pub zone: Zone,
    /// The cosine that aliasing asks for.
    pub threshold: f64,
    /// Pairs of tensors.
    pub pairs: usize,
    /// The median cosine of whole tensors.
    pub tensor_median: f64,
    /// The largest.
    pub tensor_largest: f64,
    /// Pairs of blocks.
    pub blocks: usize,
    /// The median cosine of blocks.
    pub block_median: f64,
    /// The largest.
    pub block_largest: f64,
    /// The fraction of blocks at or above the threshold.
    pub alike: f64,
    /// Their bytes in the second layer of the pair, of each such layer with the one before it that
    /// has the most.
    pub alike_bytes: u64,
}

/// Σ a·b, Σ a² and Σ b².
type Moments = [f64; 3];

/// The blocks of two tensors compared.
struct Compared {
    /// The second one's layer.
    layer: usize,
    tensor: f64,
    /// The cosine and the bytes of each block.
    blocks: Vec<(f64, u64)>,
}

pub(super) fn measure(
    file: &GgufFile,
    layers: usize,
    progress: &mut Progress<'_>,
) -> Result<Similarity, HeadroomError> {
    let roles: Vec<Role> = Role::all().filter(|r| r.placement() == Placement::Layer).collect();
    let mut groups = Vec::new();
    for (done, &role) in roles.iter().enumerate() {
        step(progress, "comparing layers", done, roles.len())?;
        let mut zones = Zone::ALL.map(|_| Vec::new());
        for (first, second) in pairs(layers) {
            let pair = (file.matrix(role, first), file.matrix(role, second));
            let (Some(a), Some(b)) = pair else { continue };
            step(progress, "comparing layers", done, roles.len())?;
            if (a.rows, a.cols) == (b.rows, b.cols) {
                let compared = Compared { layer: second, ..compare(a, b) };
                zones[Zone::of(first, layers) as usize].push(compared);
            }
        }
        let of_zone = |(zone, pairs): (Zone, Vec<Compared>)| group(role, zone, &pairs);
        groups.extend(Zone::ALL.into_iter().zip(zones).filter_map(of_zone));
    }
    let largest = |of: fn(&ZoneSimilarity) -> f64| groups.iter().map(of).reduce(f64::max);
    Ok(Similarity {
        block_bytes: BLOCK_BYTES,
        block_largest: largest(|group| group.block_largest),
        tensor_largest: largest(|group| group.tensor_largest),
        alike_bytes: groups.iter().map(|group| group.alike_bytes).sum(),
        groups,
    })
}

/// The pairs of layers that could share weights, the earlier one first.
fn pairs(layers: usize) -> impl Iterator<Item = (usize, usize)> {
    let middle = move |layer| Zone::of(layer, layers) == Zone::Middle;
    (1..layers).flat_map(move |second| {
        let may = move |first| first + 1 == second || (middle(first) && middle(second));
        (0..second).filter(move |first| may(*first)).map(move |first| (first, second))
    })
}

/// The cosine of two matrices of one shape and those of their blocks.
fn compare(a: Matrix<'_>, b: Matrix<'_>) -> Compared {
    let isa = Isa::detect();
    let blocks = BLOCK_BYTES / a.dtype.block_bytes() * a.dtype.block_len();
    let size = (blocks / SUPER_BLOCK * SUPER_BLOCK).max(SUPER_BLOCK);
    let starts: Vec<usize> = (0..a.elements()).step_by(size).collect();
    let each: Vec<(Moments, u64)> = (starts.into_par_iter())
        .map_init(
            || (Vec::new(), Vec::new()),
            |(x, y), first| {
                let count = size.min(a.elements() - first);
                a.floats(isa, first, count, x);
                b.floats(isa, first, count, y);
                (moments(x, y), b.bytes_of(first, count).len() as u64)
            },
        )
        .collect();
    let sum = each.iter().fold([0.0; 3], |sum, (m, _)| [0, 1, 2].map(|i| sum[i] + m[i]));
    let blocks = each.iter().map(|(moments, bytes)| (cosine(*moments), *bytes)).collect();
    Compared { layer: 0, tensor: cosine(sum), blocks }
}

/// Sums in f64, in [`LANES`] partial sums.
fn moments(x: &[f32], y: &[f32]) -> Moments {
    let mut lanes = [[0.0f64; LANES]; 3];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            let (a, b) = (f64::from(x[lane]), f64::from(y[lane]));
            lanes[0][lane] += a * b;
            lanes[1][lane] += a * a;
            lanes[2][lane] += b * b;
        }
    }
    let mut sums = lanes.map(|lanes| lanes.iter().sum::<f64>());
    for (&x, &y) in x_rest.iter().zip(y_rest) {
        let (a, b) = (f64::from(x), f64::from(y));
        sums = [sums[0] + a * b, sums[1] + a * a, sums[2] + b * b];
    }
    sums
}

/// |cos|: 1 of two zero vectors, which are the same; 0 where one is zero or not finite.
fn cosine([product, a, b]: Moments) -> f64 {
    if a == 0.0 && b == 0.0 {
        return 1.0;
    }
    let cosine = (product / (a * b).sqrt()).abs();
    if cosine.is_finite() { cosine.min(1.0) } else { 0.0 }
}

/// The figures of a role in a zone; `None` if there is no pair.
fn group(role: Role, zone: Zone, pairs: &[Compared]) -> Option<ZoneSimilarity> {
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let tensors = sorted(pairs.iter().map(|pair| pair.tensor).collect());
    let all = || pairs.iter().flat_map(|pair| &pair.blocks);
    let blocks = sorted(all().map(|(cosine, _)| *cosine).collect());
    let threshold = zone.threshold();
    let is_alike = |(cosine, _): &&(f64, u64)| *cosine >= threshold;
    let mut of_layer = BTreeMap::new();
    for pair in pairs {
        let bytes: u64 = pair.blocks.iter().filter(is_alike).map(|(_, bytes)| bytes).sum();
        let most = of_layer.entry(pair.layer).or_insert(0);
        *most = bytes.max(*most);
    }
    Some(ZoneSimilarity {
        role,
        zone,
        threshold,
        pairs: pairs.len(),
        tensor_median: quantile(&tensors, 0.5),
        tensor_largest: *tensors.last()?,
        blocks: blocks.len(),
        block_median: quantile(&blocks, 0.5),
        block_largest: *blocks.last()?,
        alike: all().filter(is_alike).count() as f64 / blocks.len() as f64,
        alike_bytes: of_layer.values().sum(),
    })
}

/// The cosine of two matrices of one shape, as they are after dequantising.
pub(super) fn whole(a: Matrix<'_>, b: Matrix<'_>) -> Option<f64> {
    ((a.rows, a.cols) == (b.rows, b.cols)).then(|| compare(a, b).tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aios_contract::DType;

    #[test]
    fn zones_are_those_of_the_depth() {
        let zones: Vec<Zone> = (0..30).map(|layer| Zone::of(layer, 30)).collect();
        let count = |zone| zones.iter().filter(|z| **z == zone).count();
        assert_eq!([Zone::Ends, Zone::Flanks, Zone::Middle].map(count), [6, 18, 6]);
        assert_eq!((zones[2], zones[3], zones[12]), (Zone::Ends, Zone::Flanks, Zone::Middle));
        assert!((0..30).all(|layer| zones[layer] == zones[29 - layer]));
        assert_eq!((Zone::of(0, 1), Zone::of(1, 4)), (Zone::Ends, Zone::Flanks));
    }

    #[test]
    fn layers_of_the_middle_are_held_against_each_other() {
        let of = |layers: usize| pairs(layers).collect::<Vec<_>>();
        assert_eq!((of(1), of(3)), (vec![], vec![(0, 1), (1, 2)]));
        // The middle of ten layers is two neighbours; that of twenty is 8 to 11.
        assert_eq!(of(10), (1..10).map(|layer| (layer - 1, layer)).collect::<Vec<_>>());
        let far: Vec<_> = pairs(20).filter(|(first, second)| first + 1 < *second).collect();
        assert_eq!(far, [(8, 10), (8, 11), (9, 11)]);
        // A layer counts once, with the one that it is most like.
        let pair = |layer, blocks: [(f64, u64); 2]| Compared {
            layer,
            tensor: 0.5,
            blocks: blocks.to_vec(),
        };
        let compared = [
            pair(10, [(0.96, 100), (0.2, 50)]),
            pair(11, [(0.99, 100), (0.96, 50)]),
            pair(11, [(0.96, 100), (0.1, 50)]),
        ];
        let found = group(Role::FfnUp, Zone::Middle, &compared).expect("pairs");
        assert_eq!((found.pairs, found.blocks, found.alike_bytes), (3, 6, 250));
        assert!((found.alike - 4.0 / 6.0).abs() < 1e-12);
    }

    fn noise(seed: u64, elements: usize) -> Vec<u8> {
        let mut state = seed;
        let floats = (0..elements).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        });
        floats.flat_map(f32::to_le_bytes).collect()
    }

    #[test]
    fn a_tensor_is_like_itself_and_its_negative_and_unlike_noise() {
        let (rows, cols) = (40, 1024);
        let matrix = |data| Matrix { dtype: DType::F32, rows, cols, data };
        let (a, b) = (noise(1, rows * cols), noise(2, rows * cols));
        let negative: Vec<u8> = a
            .as_chunks::<4>()
            .0
            .iter()
            .copied()
            .flat_map(|x| (-f32::from_le_bytes(x)).to_le_bytes())
            .collect();
        for same in [&a, &negative] {
            let alike = compare(matrix(&a), matrix(same));
            assert_eq!(alike.blocks.len(), 3);
            assert!((alike.tensor - 1.0).abs() < 1e-12);
            assert!(alike.blocks.iter().all(|(cosine, _)| (cosine - 1.0).abs() < 1e-12));
        }
        let apart = compare(matrix(&a), matrix(&b));
        assert!(apart.tensor < 0.02, "{}", apart.tensor);
        assert!(apart.blocks.iter().all(|(cosine, _)| *cosine < 0.04), "{:?}", apart.blocks);
        assert_eq!(apart.blocks.iter().map(|(_, bytes)| bytes).sum::<u64>(), b.len() as u64);
        assert_eq!((cosine([0.0; 3]), cosine([0.0, 1.0, 0.0])), (1.0, 0.0));
        assert_eq!(cosine([f64::NAN, 1.0, 1.0]), 0.0);
    }
}
