//! R3's description of a model whose middle layers share weights (SPEC.md, R3 and R8).

use crate::TensorName;
use std::fmt;
use std::ops::Range;

/// A tensor that the file does not hold whole: it is a canonical tensor plus a delta.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alias {
    /// The tensor that is put together.
    pub tensor: TensorName,
    /// The tensor of the file that it is a variation of.
    pub canonical: TensorName,
    /// The Frobenius norm of the canonical tensor.
    pub canonical_norm: f64,
    /// The Frobenius norm of the delta; 0 if there is none.
    pub delta_norm: f64,
    /// Bytes that the tensor would take whole: as many as the canonical one takes.
    pub whole_bytes: u64,
    /// Bytes that its delta takes.
    pub delta_bytes: u64,
}

/// The aliases of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Aliases {
    /// Layers of the model.
    pub layers: usize,
    /// Bytes of the matrices of the layers in [`depth_band`] that the file holds whole.
    pub stored_bytes: u64,
    /// Every aliased tensor, also of layers outside of the band.
    pub aliases: Vec<Alias>,
}

/// The layers of 40 to 60 % depth: those whose middle, (l + ½) / `layers`, lies there. Models of 2
/// and of 4 layers have none.
pub const fn depth_band(layers: usize) -> Range<usize> {
    // 0.4 ≤ (l + ½) / n ≤ 0.6 is 4n ≤ 10·l + 5 ≤ 6n, in integers.
    let start = (layers.saturating_mul(4)).saturating_sub(5).div_ceil(10);
    let end = match layers.saturating_mul(6).checked_sub(5) {
        Some(last) => last / 10 + 1,
        None => 0,
    };
    start..if end < start { start } else { end }
}

impl Aliases {
    /// The aliases of the layers in the band.
    pub fn of_band(&self) -> impl Iterator<Item = &Alias> {
        let band = depth_band(self.layers);
        let inside = move |layer: u32| band.contains(&(layer as usize));
        self.aliases.iter().filter(move |alias| alias.tensor.layer.is_some_and(&inside))
    }

    /// Bytes that are not stored because they are shared, over those that storing every matrix of
    /// the band whole would take. Negative where deltas are larger than what they save; 0 where
    /// the band is empty.
    pub fn aliasing_ratio(&self) -> f64 {
        let sum = |bytes: fn(&Alias) -> u64| self.of_band().map(|alias| bytes(alias) as f64).sum();
        let (whole, delta): (f64, f64) = (sum(|a| a.whole_bytes), sum(|a| a.delta_bytes));
        let unshared = self.stored_bytes as f64 + whole;
        if unshared > 0.0 { (whole - delta) / unshared } else { 0.0 }
    }

    /// The largest norm of a delta over that of its canonical tensor, in the band; `None` if there
    /// is no alias or one of the norms makes no sense.
    pub fn delta_ratio_max(&self) -> Option<f64> {
        self.of_band().try_fold(None, |largest: Option<f64>, alias| {
            let ratio = alias.delta_norm / alias.canonical_norm;
            let sound = ratio.is_finite() && ratio >= 0.0;
            sound.then(|| Some(largest.map_or(ratio, |largest| largest.max(ratio))))
        })?
    }
}

impl fmt::Display for Aliases {
    /// A sentence for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let band = depth_band(self.layers);
        if band.is_empty() {
            return write!(f, "A model of {} layers has none at 40 to 60 % depth.", self.layers);
        }
        let (all, inside) = (self.aliases.len(), self.of_band().count());
        let (first, last) = (band.start, band.end - 1);
        write!(f, "{inside} of {all} aliased tensors are of layers {first} to {last}.")
    }
}
