//! What the records of a log come to, by model and by what was behind it. A figure that no record
//! has is null, and every figure says of how many records it is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::{ExecutionMode, Record};

/// A figure over several records.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Records that have it.
    pub n: u64,
    /// The least.
    pub min: f64,
    /// Half of them are at most this.
    pub p50: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
    /// The most.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Spread {
    /// Of `values`; `None` if there are none. Percentiles are values that occurred: of n sorted
    /// ones, that with number ⌈p·n⌉ from 1.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (n, min, max) = (values.len(), *values.first()?, *values.last()?);
        let at = |percent: usize| values[(percent * n).div_ceil(100).max(1) - 1];
        let mean = values.iter().sum::<f64>() / n as f64;
        Some(Self { n: n as u64, min, p50: at(50), p95: at(95), max, mean })
    }
}

/// Records with the same mode, model and core.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Group {
    /// Records.
    pub records: u64,
    /// Of these, answers that failed.
    pub failed: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// From the request to the last token.
    pub latency_ms: Option<Spread>,
    /// Tokens generated in a second of generating.
    pub tokens_per_s: Option<Spread>,
    /// 10⁶ bytes read for a token, counted.
    pub mb_per_token: Option<Spread>,
    /// The share of drafted tokens that were taken, where any were drafted.
    pub accept_rate: Option<Spread>,
    /// Fragments that were retrieved.
    pub fragments_found: Option<Spread>,
    #[serde(skip)]
    values: Values,
}

#[derive(Clone, Debug, Default)]
struct Values {
    latency: Vec<f64>,
    speed: Vec<f64>,
    megabytes: Vec<f64>,
    accepted: Vec<f64>,
    fragments: Vec<f64>,
}

/// What records come to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    groups: BTreeMap<(ExecutionMode, String, String), Group>,
}

impl Summary {
    /// Takes a record in.
    pub fn add(&mut self, record: &Record) {
        let of = &record.request;
        let model = of.models.get("main").cloned().unwrap_or_default();
        let group = self.groups.entry((of.execution_mode, model, of.core.clone())).or_default();
        group.records += 1;
        if of.error.is_some() {
            // What a failed answer took and read is no figure of an answer.
            group.failed += 1;
            return;
        }
        group.output_tokens += of.tokens.output;
        let speed = of.phases.decode_ms.filter(|ms| *ms > 0.0 && of.tokens.output > 0);
        let speed = speed.map(|ms| of.tokens.output as f64 * 1e3 / ms);
        let found = of.retrieval.as_ref().and_then(|retrieval| retrieval.fragments_found);
        let Values { latency, speed: speeds, megabytes, accepted, fragments } = &mut group.values;
        latency.extend(of.latency_ms);
        speeds.extend(speed);
        megabytes.extend(of.mb_per_token.as_ref().map(|figure| figure.value));
        accepted.extend(of.spec_decode.as_ref().and_then(|spec| spec.accept_rate));
        fragments.extend(found.map(|found| found as f64));
    }

    /// The groups: mode, model, core.
    pub fn groups(&self) -> Vec<((ExecutionMode, &str, &str), Group)> {
        let mut groups = Vec::new();
        for ((mode, model, core), group) in &self.groups {
            let values = group.values.clone();
            let group = Group {
                latency_ms: Spread::of(values.latency),
                tokens_per_s: Spread::of(values.speed),
                mb_per_token: Spread::of(values.megabytes),
                accept_rate: Spread::of(values.accepted),
                fragments_found: Spread::of(values.fragments),
                values: Values::default(),
                ..*group
            };
            groups.push(((*mode, model.as_str(), core.as_str()), group));
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        assert_eq!(Spread::of(vec![]), None);
        let one = Spread::of(vec![4.0]).unwrap();
        assert_eq!(
            (one.n, one.min, one.p50, one.p95, one.max, one.mean),
            (1, 4.0, 4.0, 4.0, 4.0, 4.0)
        );
        let many = Spread::of((1..=20).rev().map(f64::from).collect()).unwrap();
        assert_eq!((many.p50, many.p95, many.max, many.mean), (10.0, 19.0, 20.0, 10.5));
    }
}
