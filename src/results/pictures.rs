//! The pictures of results: the same figures as the tables have.

use aios_validation::dots::{Dots, Mark, Row};

use super::answer::Answer;
use super::stratum::Results;
use super::tables::{FRAGMENTS, grouped, labelled, routed, sample, shown, source};
use super::{TIERS, tier_name};
use crate::provenance::ExecutionMode;
use crate::statistics::{Estimate, quantile, wilson};

/// A picture and its file's name without ending.
pub(super) type Picture = (&'static str, Dots);

/// Every picture that has a row.
pub(super) fn pictures(results: &Results) -> Vec<Picture> {
    let mut pictures = vec![
        picture("routing", "Routing accuracy", "share of prompts", &["accuracy"]),
        picture("accept_rate", "Speculative decoding", "accept rate", &["mean"]),
        picture("latency", "Latency, warm", "ms", &["p50", "p95"]),
        picture("throughput", "Speed of generating, warm", "tokens/s", &["median"]),
        picture("mb_per_token", "Bytes read", "MB/token", &["median"]),
        picture("fragments", "Retrieved fragments (IQR)", "fragments", &["found", "relevant"]),
    ];
    for (condition, stratum) in &results.strata {
        // A label says what is not real, and which revision, where there is more than one.
        let one = results.strata.keys().all(|other| other.revision == condition.revision);
        let label = match (one, condition.mode) {
            (true, ExecutionMode::Real) => String::new(),
            (true, mode) => format!(" ({})", mode.name()),
            (false, mode) => format!(" ({}, {})", mode.name(), condition.revision),
        };
        let rows = [routing, accepted, latency, throughput, bytes, fragments];
        for ((_, dots), rows) in pictures.iter_mut().zip(rows) {
            let named = |(name, marks)| Row { name: format!("{name}{label}"), marks };
            dots.rows.extend(rows(&stratum.answers).into_iter().map(named));
        }
    }
    pictures.retain(|(_, dots)| dots.rows.iter().any(|row| !row.marks.is_empty()));
    pictures
}

fn picture(file: &'static str, title: &str, axis: &str, series: &[&str]) -> Picture {
    let series = series.iter().map(ToString::to_string).collect();
    (file, Dots { title: title.to_owned(), axis: axis.to_owned(), series, rows: Vec::new() })
}

type Rows = Vec<(String, Vec<Mark>)>;

fn mark(series: usize, estimate: Option<Estimate>) -> Option<Mark> {
    let Estimate { value, low, high } = estimate?;
    Some(Mark { series, value, interval: (low, high) })
}

fn routing(answers: &[Answer]) -> Rows {
    let mut rows = Vec::new();
    for (family, answers) in grouped(answers, |answer| answer.case.family.clone()) {
        for tier in TIERS {
            let (right, n) = routed(&labelled(&answers, tier));
            let name = format!("{family} · {}", tier_name(tier));
            rows.extend(mark(0, wilson(right, n)).map(|mark| (name, vec![mark])));
        }
    }
    rows
}

fn accepted(answers: &[Answer]) -> Rows {
    let row = |(family, answers): (String, Vec<&Answer>)| {
        let rates = sample(&answers, |answer| answer.accept_rate);
        (family, mark(0, rates.mean()).into_iter().collect())
    };
    grouped(answers, |answer| answer.case.family.clone()).into_iter().map(row).collect()
}

fn warm(answers: &[Answer]) -> impl Iterator<Item = &Answer> {
    answers.iter().filter(|answer| answer.case.warm)
}

fn latency(answers: &[Answer]) -> Rows {
    let key = |answer: &Answer| {
        let case = &answer.case;
        format!("{} · {} · {}", case.family, shown(&case.layer), shown(&case.backend))
    };
    let row = |(name, answers): (String, Vec<&Answer>)| {
        let times = sample(&answers, |answer| Some(answer.latency_ms));
        let marks =
            [(0, 0.5), (1, 0.95)].map(|(series, share)| mark(series, times.quantile(share)));
        (name, marks.into_iter().flatten().collect())
    };
    grouped(warm(answers), key).into_iter().map(row).collect()
}

fn throughput(answers: &[Answer]) -> Rows {
    let row = |(name, answers): (String, Vec<&Answer>)| {
        let speeds = sample(&answers, |answer| answer.tokens_per_s);
        (name, mark(0, speeds.quantile(0.5)).into_iter().collect())
    };
    let key = |answer: &Answer| format!("{} · {}", answer.case.family, answer.model);
    grouped(warm(answers), key).into_iter().map(row).collect()
}

fn bytes(answers: &[Answer]) -> Rows {
    let key = |answer: &Answer| {
        let source = source(answer).unwrap_or_default();
        format!("{} · {} · {source}", answer.case.family, answer.model)
    };
    let row = |(name, answers): (String, Vec<&Answer>)| {
        let figures = sample(&answers, |a| a.mb_per_token.as_ref().map(|figure| figure.value));
        (name, mark(0, figures.quantile(0.5)).into_iter().collect())
    };
    let with = answers.iter().filter(|answer| answer.mb_per_token.is_some());
    grouped(with, key).into_iter().map(row).collect()
}

/// Medians; what is drawn beside them are the quartiles.
fn fragments(answers: &[Answer]) -> Rows {
    let key = |answer: &Answer| format!("{} · {}", answer.case.family, shown(&answer.case.backend));
    let row = |(name, answers): (String, Vec<&Answer>)| {
        let median = |(series, (_, of)): (usize, &super::tables::Fragments)| {
            let values = sample(&answers, |answer| Some(of(answer))).sorted();
            let [low, value, high] = [0.25, 0.5, 0.75].map(|share| quantile(&values, share));
            mark(series, Some(Estimate { value: value?, low: low?, high: high? }))
        };
        (name, FRAGMENTS.iter().enumerate().filter_map(median).collect())
    };
    grouped(answers, key).into_iter().map(row).collect()
}
