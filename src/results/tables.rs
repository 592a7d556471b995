//! The tables of results (SPEC J3), each a function of the answers under one condition.

use std::collections::BTreeMap;

use super::answer::Answer;
use super::stratum::Stratum;
use super::table::{Cell, Column, Table};
use super::{TIERS, tier_name};
use crate::provenance::Tier;
use crate::statistics::{Sample, holm, quantile, signed_rank, wilson};

/// Every table, also those without rows.
pub fn tables(stratum: &Stratum) -> Vec<Table> {
    let answers = &stratum.answers;
    vec![
        routing(answers),
        speculation(answers),
        latency(answers),
        throughput(answers),
        bytes(answers),
        fragments(answers),
        paired(answers),
        environment(stratum),
    ]
}

/// Layers and backends as the paper writes them.
pub(super) fn shown(name: &str) -> String {
    match name {
        "luna" => "Luna".to_owned(),
        "basic" => "Basic".to_owned(),
        "carma" => "CARMA".to_owned(),
        "simple_rag" => "Simple_RAG".to_owned(),
        "bm25" => "BM25".to_owned(),
        other => other.to_owned(),
    }
}

/// Answers by what `key` says of them.
pub(super) fn grouped<'a, K: Ord>(
    answers: impl IntoIterator<Item = &'a Answer>,
    key: impl Fn(&Answer) -> K,
) -> BTreeMap<K, Vec<&'a Answer>> {
    let mut groups: BTreeMap<K, Vec<&Answer>> = BTreeMap::new();
    answers.into_iter().for_each(|answer| groups.entry(key(answer)).or_default().push(answer));
    groups
}

/// What answers have of something, by prompt.
pub(super) fn sample<'a>(
    answers: impl IntoIterator<Item = &'a &'a Answer>,
    value: impl Fn(&Answer) -> Option<f64>,
) -> Sample {
    let mut sample = Sample::default();
    for answer in answers {
        value(answer).into_iter().for_each(|value| sample.add(&answer.case.prompt, value));
    }
    sample
}

/// Prompts that were always given their tier, and prompts. Repeats of a prompt are no further
/// evidence, and one that is wrong is enough.
pub(super) fn routed(answers: &[&Answer]) -> (u64, u64) {
    let prompts = grouped(answers.iter().copied(), |answer| answer.case.prompt.clone());
    let right = |answers: &&Vec<&Answer>| answers.iter().all(|a| a.routed == a.label);
    (prompts.values().filter(right).count() as u64, prompts.len() as u64)
}

/// Those of a tier by its label.
pub(super) fn labelled<'a>(answers: &[&'a Answer], tier: Tier) -> Vec<&'a Answer> {
    answers.iter().copied().filter(|answer| answer.label == tier).collect()
}

fn family(answer: &Answer) -> String {
    answer.case.family.clone()
}

fn count(sample: &Sample) -> Cell {
    Cell::Count(sample.len() as u64)
}

const FAMILY: Column = Column::plain("family", "Family");
const N: Column = Column::plain("n", "n");

fn routing(answers: &[Answer]) -> Table {
    let mut rows = Vec::new();
    for (family, answers) in grouped(answers, family) {
        let tiers = TIERS.map(|tier| (tier_name(tier), labelled(&answers, tier)));
        for (tier, answers) in tiers.into_iter().chain([("all", answers)]) {
            let (right, n) = routed(&answers);
            let share = Cell::estimate(wilson(right, n), 3);
            let counts = [right, n].map(Cell::Count);
            let names = [Cell::text(&*family), Cell::text(tier)];
            rows.extend((n > 0).then(|| names.into_iter().chain(counts).chain([share]).collect()));
        }
    }
    Table {
        name: "routing",
        title: "Routing accuracy",
        note: "Prompts whose tier is the one that people gave them, in every repeat; the interval \
               is Wilson's.",
        columns: vec![
            FAMILY,
            Column::plain("tier", "Tier"),
            Column::plain("right", "Right"),
            Column::plain("n", "Prompts"),
            Column::interval("accuracy", "Accuracy"),
        ],
        rows,
    }
}

fn speculation(answers: &[Answer]) -> Table {
    let row = |(family, answers): (String, Vec<&Answer>)| {
        let rates = sample(&answers, |answer| answer.accept_rate);
        let values = rates.sorted();
        let end = |value: Option<&f64>| value.map_or(Cell::None, |v| Cell::Number(*v, 3));
        vec![
            Cell::text(family),
            Cell::estimate(rates.mean(), 3),
            end(values.first()),
            end(values.last()),
            count(&rates),
            Cell::Count(answers.len() as u64),
        ]
    };
    Table {
        name: "speculation",
        title: "Speculative decoding",
        note: "The share of drafted tokens that were taken, over the answers in which any were \
               drafted.",
        columns: vec![
            FAMILY,
            Column::interval("accept_rate_mean", "Accept rate (mean)"),
            Column::plain("accept_rate_min", "Min"),
            Column::plain("accept_rate_max", "Max"),
            N,
            Column::plain("answers", "Answers"),
        ],
        rows: grouped(answers, family).into_iter().map(row).collect(),
    }
}

/// Warm or cold.
pub(super) const fn warmth(warm: bool) -> &'static str {
    if warm { "warm" } else { "cold" }
}

fn latency(answers: &[Answer]) -> Table {
    let key = |answer: &Answer| {
        let case = &answer.case;
        (family(answer), case.layer.clone(), case.backend.clone(), warmth(case.warm))
    };
    let row = |((family, layer, backend, warmth), answers): (
        (String, String, String, &str),
        Vec<&Answer>,
    )| {
        let times = sample(&answers, |answer| Some(answer.latency_ms));
        let name = |name: &String| Cell::text(shown(name));
        vec![
            Cell::Text(family),
            name(&layer),
            name(&backend),
            Cell::text(warmth),
            count(&times),
            Cell::estimate(times.quantile(0.5), 1),
            Cell::estimate(times.quantile(0.95), 1),
        ]
    };
    Table {
        name: "latency",
        title: "Latency",
        note: "From the request to the last token, ms. Cold is right after the models were \
               unloaded, so that it has their loading in it.",
        columns: vec![
            FAMILY,
            Column::plain("layer", "Layer"),
            Column::plain("backend", "Backend"),
            Column::plain("warmth", "Cache"),
            N,
            Column::interval("latency_ms_p50", "p50, ms"),
            Column::interval("latency_ms_p95", "p95, ms"),
        ],
        rows: grouped(answers, key).into_iter().map(row).collect(),
    }
}

fn throughput(answers: &[Answer]) -> Table {
    let key = |answer: &Answer| (family(answer), answer.model.clone(), warmth(answer.case.warm));
    let row = |((family, model, warmth), answers): ((String, String, &str), Vec<&Answer>)| {
        let speeds = sample(&answers, |answer| answer.tokens_per_s);
        vec![
            Cell::Text(family),
            Cell::Text(model),
            Cell::text(warmth),
            count(&speeds),
            Cell::estimate(speeds.quantile(0.5), 2),
        ]
    };
    Table {
        name: "throughput",
        title: "Tokens per second",
        note: "Tokens of an answer over the time of generating it, without reading the prompt; the \
               median.",
        columns: vec![
            FAMILY,
            Column::plain("model", "Model"),
            Column::plain("warmth", "Cache"),
            N,
            Column::interval("tokens_per_s_p50", "Tokens/s"),
        ],
        rows: grouped(answers, key).into_iter().map(row).collect(),
    }
}

/// The source of an answer's MB/token, if it has that.
pub(super) fn source(answer: &Answer) -> Option<&str> {
    answer.mb_per_token.as_ref().map(|figure| &*figure.source)
}

fn bytes(answers: &[Answer]) -> Table {
    let with = answers.iter().filter(|answer| answer.mb_per_token.is_some());
    let key = |answer: &Answer| {
        (family(answer), answer.model.clone(), source(answer).unwrap_or_default().to_owned())
    };
    let row = |((family, model, source), answers): ((String, String, String), Vec<&Answer>)| {
        let figures = sample(&answers, |a| a.mb_per_token.as_ref().map(|f| f.value));
        vec![
            Cell::Text(family),
            Cell::Text(model),
            Cell::Text(source),
            count(&figures),
            Cell::estimate(figures.quantile(0.5), 2),
        ]
    };
    Table {
        name: "mb_per_token",
        title: "MB per token",
        note: "10⁶ bytes of weights and cache read for a generated token, the median. Figures of \
               different sources are not taken together.",
        columns: vec![
            FAMILY,
            Column::plain("model", "Model"),
            Column::plain("source", "Source"),
            N,
            Column::interval("mb_per_token_p50", "MB/token"),
        ],
        rows: grouped(with, key).into_iter().map(row).collect(),
    }
}

/// Found or relevant fragments, by name.
pub(super) type Fragments = (&'static str, fn(&Answer) -> f64);

pub(super) const FRAGMENTS: [Fragments; 2] =
    [("found", |a| a.fragments_found), ("relevant", |a| a.fragments_relevant)];

fn fragments(answers: &[Answer]) -> Table {
    let mut rows = Vec::new();
    let key = |answer: &Answer| (family(answer), answer.case.backend.clone());
    for ((family, backend), answers) in grouped(answers, key) {
        for (what, of) in FRAGMENTS {
            let counts = sample(&answers, |answer| Some(of(answer)));
            let values = counts.sorted();
            let quartile =
                |share| quantile(&values, share).map_or(Cell::None, |v| Cell::Number(v, 0));
            rows.push(vec![
                Cell::text(&*family),
                Cell::text(shown(&backend)),
                Cell::text(what),
                count(&counts),
                Cell::estimate(counts.quantile(0.5), 0),
                quartile(0.25),
                quartile(0.75),
            ]);
        }
    }
    Table {
        name: "fragments",
        title: "Retrieved fragments",
        note: "Fragments that were returned, and those that passed the threshold; the quartiles \
               are the ends of the IQR.",
        columns: vec![
            FAMILY,
            Column::plain("backend", "Backend"),
            Column::plain("fragments", "Fragments"),
            N,
            Column::interval("fragments_p50", "Median"),
            Column::plain("fragments_p25", "Q1"),
            Column::plain("fragments_p75", "Q3"),
        ],
        rows,
    }
}

/// What is compared: the value that differs, and what is the same on both sides.
type Side = fn(&Answer) -> (String, Vec<String>);

/// The comparisons: name, the arms in the order second less first, and the key.
const COMPARISONS: [(&str, [&str; 2], Side); 3] = [
    ("layer", ["basic", "luna"], |a| {
        let warm = warmth(a.case.warm).to_owned();
        (a.case.layer.clone(), vec![shown(&a.case.backend), warm])
    }),
    ("backend", ["simple_rag", "carma"], |a| {
        let warm = warmth(a.case.warm).to_owned();
        (a.case.backend.clone(), vec![shown(&a.case.layer), warm])
    }),
    ("cache", ["cold", "warm"], |a| {
        let same = vec![shown(&a.case.layer), shown(&a.case.backend)];
        (warmth(a.case.warm).to_owned(), same)
    }),
];

/// What is compared of two arms.
type Metric = (&'static str, usize, fn(&Answer) -> Option<f64>);

const METRICS: [Metric; 3] = [
    ("latency_ms", 1, |a| Some(a.latency_ms)),
    ("fragments_found", 1, |a| Some(a.fragments_found)),
    ("fragments_relevant", 1, |a| Some(a.fragments_relevant)),
];

fn paired(answers: &[Answer]) -> Table {
    let mut rows = Vec::new();
    for (name, arms, side) in COMPARISONS {
        let of_backends = name == "backend";
        for ((family, same), answers) in grouped(answers, |a| (family(a), side(a).1)) {
            let of = |arm| answers.iter().copied().filter(|a| side(a).0 == arm).collect();
            let [first, second]: [Vec<&Answer>; 2] = arms.map(of);
            // Only another backend may find other fragments.
            for (metric, digits, value) in METRICS.iter().take(if of_backends { 3 } else { 1 }) {
                let differences = differences(&first, &second, value);
                if differences.is_empty() {
                    continue;
                }
                let values: Vec<f64> = differences.medians().map(|(_, d)| d).collect();
                let test = signed_rank(&values);
                let [from, to] = arms.map(shown);
                let row = vec![
                    Cell::text(&*family),
                    Cell::text(*metric),
                    Cell::text(format!("{to} − {from}")),
                    Cell::text(same.join(", ")),
                    Cell::Count(values.len() as u64),
                    Cell::estimate(differences.quantile(0.5), *digits),
                    test.map_or(Cell::None, |test| Cell::Number(test.p, 4)),
                ];
                rows.push((row, test.map(|test| test.p)));
            }
        }
    }
    let probabilities: Vec<f64> = rows.iter().filter_map(|(_, p)| *p).collect();
    let mut corrected = holm(&probabilities).into_iter();
    let with = |(mut row, p): (Vec<Cell>, Option<f64>)| {
        let p = p.and_then(|_| corrected.next());
        row.push(p.map_or(Cell::None, |p| Cell::Number(p, 4)));
        row
    };
    Table {
        name: "paired",
        title: "Paired comparisons",
        note: "The same prompt under two conditions, its repeats taken together as their median. \
               The median difference with the interval of the bootstrap, Wilcoxon's signed-rank \
               test (two-sided), and its probability corrected for the number of tests (Holm).",
        columns: vec![
            FAMILY,
            Column::plain("metric", "Metric"),
            Column::plain("difference", "Difference"),
            Column::plain("at", "At"),
            Column::plain("pairs", "Pairs"),
            Column::interval("difference_p50", "Median difference"),
            Column::plain("p", "p"),
            Column::plain("p_holm", "p (Holm)"),
        ],
        rows: rows.into_iter().map(with).collect(),
    }
}

/// Second less first, of the prompts that both have.
fn differences(
    first: &[&Answer],
    second: &[&Answer],
    value: &dyn Fn(&Answer) -> Option<f64>,
) -> Sample {
    let (first, second) = (sample(first, value), sample(second, value));
    let first: BTreeMap<&str, f64> = first.medians().collect();
    let mut differences = Sample::default();
    for (prompt, value) in second.medians() {
        if let Some(before) = first.get(prompt) {
            differences.add(prompt, value - before);
        }
    }
    differences
}

fn environment(stratum: &Stratum) -> Table {
    let name = |index: usize| {
        stratum.surroundings.first().and_then(|first| first.columns.get(index)).map(|c| c.0)
    };
    let columns = (0..).map_while(name).map(|name| Column::plain(name, name));
    let ends = [Column::plain("answers", "answers"), Column::plain("failed", "failed")];
    let row = |of: &super::stratum::Surroundings| {
        let cells = of.columns.iter().map(|(_, text)| Cell::text(&**text));
        cells.chain([of.answers, of.failed].map(Cell::Count)).collect()
    };
    Table {
        name: "environment",
        title: "Environments",
        note: "What the answers of a run were made with. Digests are the first digits of SHA-256.",
        columns: columns.chain(ends).collect(),
        rows: stratum.surroundings.iter().map(row).collect(),
    }
}
