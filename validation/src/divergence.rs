//! How far a run's distributions are from those of a reference run.

use crate::base::Record;
use crate::perplexity::{Losses, Scored};
use aios_engine::argmax;
use serde::Serialize;

/// The divergences of scored positions; eight bytes for each.
#[derive(Clone, Debug, Default)]
pub struct Divergences {
    values: Vec<f64>,
    same_top: usize,
    base: Losses,
}

/// Divergences in short, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DivergenceSummary {
    /// The mean.
    pub mean: f64,
    /// The standard error of the mean.
    pub standard_error: f64,
    /// The median.
    pub median: f64,
    /// What 99 of 100 positions stay below, interpolated between neighbours.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// The fraction of positions whose likeliest token is the same.
    pub top1_agreement: f64,
    /// The perplexity of the reference run.
    pub base_perplexity: f64,
    /// Its standard error.
    pub base_standard_error: f64,
}

impl Divergences {
    /// Adds a position, as the reference run saw it and as this one does.
    pub fn add(&mut self, base: &Record<'_>, scored: Scored<'_>) {
        self.values.push(base.divergence(scored));
        self.same_top += usize::from(argmax(scored.logits).0 == base.top);
        self.base.add(base.loss);
    }

    /// The summary of at least one position.
    pub fn summary(mut self) -> DivergenceSummary {
        self.values.sort_by(f64::total_cmp);
        let n = self.values.len() as f64;
        let mean = self.values.iter().sum::<f64>() / n;
        let squares: f64 = self.values.iter().map(|x| (x - mean) * (x - mean)).sum();
        DivergenceSummary {
            mean,
            standard_error: (squares / (n * (n - 1.0).max(1.0))).sqrt(),
            median: quantile(&self.values, 0.5),
            p99: quantile(&self.values, 0.99),
            max: quantile(&self.values, 1.0),
            top1_agreement: self.same_top as f64 / n,
            base_perplexity: self.base.perplexity(),
            base_standard_error: self.base.standard_error(),
        }
    }
}

/// The value at a fraction of ascending values, interpolated between neighbours; NaN of none.
pub(crate) fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * sorted.len().saturating_sub(1) as f64;
    let low = at.floor() as usize;
    let (Some(a), Some(b)) = (sorted.get(low), sorted.get(at.ceil() as usize)) else {
        return f64::NAN;
    };
    a + (b - a) * (at - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let sorted: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&sorted, 0.5), 50.0);
        assert_eq!(quantile(&sorted, 0.99), 99.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!((quantile(&[4.0], 0.99), quantile(&[4.0], 1.0)), (4.0, 4.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
