//! How often the router is right on labelled prompts, with intervals.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{Scorer, Tier};
use crate::statistics::{Z95, wilson_at};

/// The quantile of the normal distribution that leaves 5 % above it.
const Z90: f64 = 1.644_853_626_951_472_7;

/// Lower ends of the calibration's bins of the margin, in log-odds.
const BINS: [f64; 5] = [0.0, 0.5, 1.0, 2.0, 4.0];

/// A labelled prompt: one line of the file of prompts.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name, unique in the file.
    pub id: String,
    /// The prompt.
    pub text: String,
    /// The label.
    pub tier: Tier,
    /// What it is about.
    #[serde(default)]
    pub topic: Option<String>,
    /// Two letters.
    pub language: String,
    /// `dev` or `heldout`.
    #[serde(default)]
    pub split: Option<String>,
    /// `plain` or what is hard about it.
    pub kind: String,
}

/// A file of prompts that cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A line is no labelled prompt; a missing label is never a match.
    #[error("line {line} is no labelled prompt")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Line { line: usize, source: serde_json::Error },
    /// An id occurs twice.
    #[error("line {line}: the id {id:?} was there before; ids are unique")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Twice { line: usize, id: String },
    /// A tier has no prompts, so that its accuracy would be missing.
    #[error("no prompt is labelled {0}; every tier needs some")]
    NoCases(&'static str),
}

/// The labelled prompts of a JSON Lines text, those of `split` if one is named.
///
/// # Errors
/// [`Error::Line`] and [`Error::Twice`], for any line, also of other splits.
pub fn cases(jsonl: &str, split: Option<&str>) -> Result<Vec<Case>, Error> {
    let mut seen = std::collections::HashSet::new();
    let mut cases = Vec::new();
    for (at, line) in jsonl.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line_number = at + 1;
        let case: Case = serde_json::from_str(line)
            .map_err(|source| Error::Line { line: line_number, source })?;
        if !seen.insert(case.id.clone()) {
            return Err(Error::Twice { line: line_number, id: case.id });
        }
        if split.is_none_or(|split| case.split.as_deref() == Some(split)) {
            cases.push(case);
        }
    }
    Ok(cases)
}

/// A share with its Wilson score intervals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// How many were right.
    pub right: usize,
    /// Of how many.
    pub n: usize,
    /// `right / n`.
    pub share: f64,
    /// The two-sided 90 % interval.
    pub wilson90: [f64; 2],
    /// The two-sided 95 % interval.
    pub wilson95: [f64; 2],
}

impl Share {
    /// The share of `right` in `n`, or `None` where `n` is 0.
    pub fn of(right: usize, n: usize) -> Option<Self> {
        let interval = |z| wilson_at(right as u64, n as u64, z);
        let (of90, of95) = (interval(Z90)?, interval(Z95)?);
        let [wilson90, wilson95] = [of90, of95].map(|of| [of.low, of.high]);
        Some(Self { right, n, share: of95.value, wilson90, wilson95 })
    }
}

/// The prompts whose margin lies in one range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// The least margin, in log-odds; the greatest is the next bin's least.
    pub margin_from: f64,
    /// The mean of the probabilities that the margins stand for.
    pub predicted: f64,
    /// How often the tier was right.
    pub observed: Share,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The version of the scorer.
    pub scorer_version: &'static str,
    /// Over all prompts.
    pub overall: Share,
    /// By label, in the order of [`Tier::ALL`].
    pub by_tier: Vec<(Tier, Share)>,
    /// By language, in the order of their names.
    pub by_language: Vec<(String, Share)>,
    /// By kind, in the order of their names.
    pub by_kind: Vec<(String, Share)>,
    /// `confusion[label][given]`.
    pub confusion: [[usize; 3]; 3],
    /// The bins that have prompts. Prompts without a recognised cue are in the first one.
    pub calibration: Vec<Bin>,
}

/// Routes every case and compares with its label.
///
/// # Errors
/// [`Error::NoCases`].
pub fn evaluate(scorer: &Scorer, cases: &[Case]) -> Result<Evaluation, Error> {
    let mut confusion = [[0; 3]; 3];
    let mut judged = Vec::with_capacity(cases.len());
    for case in cases {
        let route = scorer.route(&case.text);
        confusion[case.tier as usize][route.tier as usize] += 1;
        judged.push((case, route.tier == case.tier, route.margin));
    }
    let count = |keep: &dyn Fn(&Case) -> bool| {
        let kept = || judged.iter().filter(|(case, ..)| keep(case));
        Share::of(kept().filter(|(_, right, _)| *right).count(), kept().count())
    };
    let by_tier = Tier::ALL
        .into_iter()
        .map(|tier| {
            let share = count(&|case| case.tier == tier).ok_or(Error::NoCases(tier.name()))?;
            Ok((tier, share))
        })
        .collect::<Result<_, Error>>()?;
    let by = |key: &dyn Fn(&Case) -> &str| {
        let names: std::collections::BTreeSet<&str> = cases.iter().map(key).collect();
        let share = |name: &str| count(&|case| key(case) == name).map(|s| (name.to_owned(), s));
        names.into_iter().filter_map(share).collect::<Vec<_>>()
    };
    Ok(Evaluation {
        scorer_version: super::SCORER_VERSION,
        overall: count(&|_| true).ok_or(Error::NoCases("anything"))?,
        by_tier,
        by_language: by(&|case| &case.language),
        by_kind: by(&|case| &case.kind),
        confusion,
        calibration: calibration(&judged),
    })
}

fn calibration(judged: &[(&Case, bool, f64)]) -> Vec<Bin> {
    let bin = |(at, &from): (usize, &f64)| {
        let to = BINS.get(at + 1).copied().unwrap_or(f64::INFINITY);
        let inside: Vec<_> = judged.iter().filter(|j| (from..to).contains(&j.2)).collect();
        let observed = Share::of(inside.iter().filter(|j| j.1).count(), inside.len())?;
        let sum: f64 = inside.iter().map(|j| 1.0 / (1.0 + libm::exp(-j.2))).sum();
        Some(Bin { margin_from: from, predicted: sum / inside.len() as f64, observed })
    };
    BINS.iter().enumerate().filter_map(bin).collect()
}

impl Evaluation {
    /// The tables for a person.
    pub fn tables(&self) -> String {
        let mut out = format!("scorer {}\n\n", self.scorer_version);
        let head = "right     n  share    Wilson 90 %     Wilson 95 %";
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:14} {head}", "label");
        let _ = writeln!(out, "{:14} {}", "all", row(&self.overall));
        for (tier, share) in &self.by_tier {
            let _ = writeln!(out, "{:14} {}", tier.name(), row(share));
        }
        for (title, shares) in [("language", &self.by_language), ("kind", &self.by_kind)] {
            let _ = writeln!(out, "\n{title:14} {head}");
            for (name, share) in shares {
                let _ = writeln!(out, "{name:14} {}", row(share));
            }
        }
        let _ = writeln!(out, "\nlabel \\ given  trivial  moderate  high");
        for (tier, [a, b, c]) in Tier::ALL.iter().zip(self.confusion) {
            let _ = writeln!(out, "{:14} {a:7}  {b:8}  {c:4}", tier.name());
        }
        let _ = writeln!(out, "\nmargin from    predicted  {head}");
        for bin in &self.calibration {
            let predicted = 100.0 * bin.predicted;
            let row = row(&bin.observed);
            let _ = writeln!(out, "{:<14.1} {predicted:7.1} %  {row}", bin.margin_from);
        }
        out
    }
}

fn row(share: &Share) -> String {
    let interval = |[low, high]: [f64; 2]| format!("{:5.1} .. {:5.1}", 100.0 * low, 100.0 * high);
    format!(
        "{:5} {:5}  {:5.1}  {}  {}",
        share.right,
        share.n,
        100.0 * share.share,
        interval(share.wilson90),
        interval(share.wilson95)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(id: &str, text: &str, tier: Tier) -> Case {
        let (language, kind) = ("en".to_owned(), "plain".to_owned());
        Case { id: id.into(), text: text.into(), tier, topic: None, language, split: None, kind }
    }

    #[test]
    fn the_wilson_interval_is_the_published_one() {
        // 81 of 263: the example of R. G. Newcombe (1998), table I.
        let [low, high] = Share::of(81, 263).expect("there are some").wilson95;
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        assert_eq!(Share::of(0, 0), None);
    }

    #[test]
    fn a_wrong_label_is_counted_as_wrong() {
        let mut cases = vec![
            case("a", "Hello!", Tier::Trivial),
            case("b", "Explain how rain forms.", Tier::Moderate),
            case("c", "Design a lock-free queue, prove it correct and test it.", Tier::High),
        ];
        let scorer = Scorer::default();
        assert_eq!(evaluate(&scorer, &cases).expect("all tiers").overall.right, 3);
        cases.push(case("d", "Hello!", Tier::High));
        let planted = evaluate(&scorer, &cases).expect("all tiers");
        assert_eq!((planted.overall.right, planted.confusion[2][0]), (3, 1));
        cases.retain(|case| case.tier != Tier::Moderate);
        assert!(matches!(evaluate(&scorer, &cases), Err(Error::NoCases("moderate"))));
    }

    #[test]
    fn a_missing_label_is_an_error_that_names_the_line() {
        let good = r#"{"id":"a","text":"hi","tier":"trivial","language":"en","kind":"plain"}"#;
        let bad = good.replace(r#""tier":"trivial","#, "").replace(r#""a""#, r#""b""#);
        let error = cases(&format!("{good}\n\n{bad}\n"), None).expect_err("no label");
        assert!(matches!(error, Error::Line { line: 3, .. }), "{error}");
        let error = cases(&format!("{good}\n{good}\n"), None).expect_err("twice");
        assert!(matches!(error, Error::Twice { line: 2, .. }), "{error}");
    }
}
