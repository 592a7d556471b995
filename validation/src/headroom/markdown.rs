//! The report as Markdown.

use super::activations::SMALL;
use super::duplicates::Repeats;
use super::levers::{Lever, megabytes, percent, stability};
use super::lookup::{Category, Drafted};
use super::report::HeadroomReport;
use crate::report::Picture;
use std::fmt::Write as _;

/// What stands in a table where nothing was measured.
const UNKNOWN: &str = "not measured";

pub(super) fn render(report: &HeadroomReport, pictures: &[Picture]) -> String {
    let mut text = String::new();
    head(report, &mut text);
    levers(report, &mut text);
    similarity(report, &mut text);
    duplicates(report, &mut text);
    activations(report, &mut text);
    sparsity(report, &mut text);
    cache(report, &mut text);
    lookup(report, &mut text);
    for Picture { file, title, .. } in pictures {
        line(&mut text, &format!("\n![{title}]({file})"));
    }
    text
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn row(text: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<String> = cells.into_iter().collect();
    line(text, &format!("| {} |", cells.join(" | ")));
}

fn header(text: &mut String, cells: &[&str]) {
    line(text, &format!("\n| {} |", cells.join(" | ")));
    line(text, &format!("|{}", "---|".repeat(cells.len())));
}

fn head(report: &HeadroomReport, text: &mut String) {
    let (model, calibration) = (&report.model, &report.calibration);
    line(text, &format!("# Headroom of {}", model.name));
    if model.synthetic {
        line(text, "\n**SYNTHETIC WEIGHTS: these figures say nothing of a real model.**");
    }
    let environment = &report.environment;
    let arithmetic = if environment.exact { "exact" } else { "int8" };
    let _ = write!(
        text,
        "\n{}, {} layers, {}, SHA-256 {}.\n\nMeasured with {} of {} prompts, {} tokens, in {} \
         arithmetic with a cache of {} and {}{}. Thresholds are calibrated on {} of the prompts \
         and scored on the other {}.\n",
        model.architecture,
        model.layers,
        megabytes(model.bytes),
        model.sha256,
        calibration.prompts,
        calibration.file_prompts,
        calibration.tokens,
        arithmetic,
        environment.cache_types[0],
        environment.cache_types[1],
        environment.with_tiers(),
        report.sparsity.calibration_prompts,
        report.sparsity.scored_prompts,
    );
    let bytes = report.bytes_per_token;
    line(text, "\n## Weight bytes a token reads (counted)");
    header(text, &["part", "bytes", "share"]);
    for (name, part) in [
        ("attention", bytes.attention),
        ("feed-forward", bytes.ffn),
        ("of these, up", bytes.up),
        ("of these, down", bytes.down),
        ("head", bytes.head),
        ("all", bytes.total),
    ] {
        let share = percent(part as f64 / bytes.total.max(1) as f64);
        row(text, [name.to_owned(), megabytes(part), share]);
    }
    let reread = report.reread_ratio.map_or(UNKNOWN.to_owned(), |ratio| format!("{ratio:.3}"));
    let behind = report.reread_behind.as_ref().map(|caches| format!(", behind {caches}"));
    let behind = behind.unwrap_or_default();
    let what = "DRAM reads over the bytes of all lines that a token touches (simulated)";
    line(text, &format!("\n{what}: {reread}{behind}."));
}

fn levers(report: &HeadroomReport, text: &mut String) {
    line(text, "\n## Levers: bytes of a token saved");
    let columns = ["lever", "at stake", "no loss", "KL < 0.001", "perplexity + 0.5 %"];
    header(text, &columns);
    let cell = |saved: Option<u64>| saved.map_or(UNKNOWN.to_owned(), megabytes);
    for lever in &report.levers {
        row(
            text,
            [
                lever.name.text().to_owned(),
                megabytes(lever.at_stake),
                cell(lever.saved_no_loss),
                cell(lever.saved_kl_0_001),
                cell(lever.saved_perplexity_0_5_percent),
            ],
        );
    }
    line(text, "\nTwo levers may save the same bytes, so that the savings do not add up.\n");
    for Lever { name, verdict, .. } in &report.levers {
        let name = name.text();
        let (first, rest) = name.split_at(1);
        line(text, &format!("- {}{rest} {verdict}.", first.to_uppercase()));
    }
}

fn similarity(report: &HeadroomReport, text: &mut String) {
    let similarity = &report.similarity;
    let kilobytes = similarity.block_bytes >> 10;
    line(text, "\n## Neighbouring layers, cosines without sign");
    let blocks = format!("{kilobytes} KB blocks");
    header(
        text,
        &[
            "role",
            "depth",
            "pairs",
            "tensors: median",
            "largest",
            &blocks,
            "median",
            "largest",
            "asked for",
            "blocks alike",
        ],
    );
    for group in &similarity.groups {
        row(
            text,
            [
                group.role.suffix().to_owned(),
                group.zone.name().to_owned(),
                group.pairs.to_string(),
                format!("{:.3}", group.tensor_median),
                format!("{:.3}", group.tensor_largest),
                group.blocks.to_string(),
                format!("{:.3}", group.block_median),
                format!("{:.3}", group.block_largest),
                format!("{:.2}", group.threshold),
                percent(group.alike),
            ],
        );
    }
}

fn duplicates(report: &HeadroomReport, text: &mut String) {
    let found = &report.duplicates;
    line(text, "\n## Exact duplicates");
    header(text, &["where", "block", "blocks", "copies", "bytes a token reads"]);
    let mut rows = |place: &str, list: &[Repeats]| {
        for entry in list {
            row(
                text,
                [
                    place.to_owned(),
                    format!("{} KB", entry.block_bytes >> 10),
                    entry.blocks.to_string(),
                    entry.repeated.to_string(),
                    megabytes(entry.read_bytes),
                ],
            );
        }
    };
    rows("within the file", &found.blocks);
    for other in &found.others {
        let name = aios_engine::gguf::Escaped::new(&other.name).to_string().replace('|', "/");
        rows(&format!("also in {name}"), &other.blocks);
    }
    let rows = found.head_rows;
    let _ = writeln!(
        text,
        "\nTensors that are another once more: {}. Rows of the head that are another once more: {} \
         of {} ({}).",
        found.tensors,
        rows.repeated,
        rows.rows,
        megabytes(rows.bytes)
    );
    for other in &found.others {
        let _ = writeln!(text, "Tensors that another file has as well: {}.", other.tensors);
    }
    if found.tied_head {
        line(text, "The head is the embedding: stored once, which saves a token nothing.");
    }
    if let Some(cosine) = found.head_embedding_cosine {
        let _ = writeln!(
            text,
            "Head and embedding are stored apart, with a cosine of {cosine:.4}. A token reads one \
             row of the embedding, so that sharing would save memory and no reading."
        );
    }
}

fn activations(report: &HeadroomReport, text: &mut String) {
    let zeros = &report.activations;
    line(text, "\n## Feed-forward activations");
    let optional = |value: Option<f64>| value.map_or(UNKNOWN.to_owned(), percent);
    let small = format!("below {SMALL}");
    header(text, &["layer", "exactly 0", &small, "0 once quantised", "Jaccard index"]);
    let index = |value: Option<f64>| value.map_or(UNKNOWN.to_owned(), |x| format!("{x:.2}"));
    for layer in &zeros.per_layer {
        row(
            text,
            [
                layer.layer.to_string(),
                percent(layer.zero_fraction),
                percent(layer.small_fraction),
                optional(layer.quantised_zero_fraction),
                index(layer.jaccard),
            ],
        );
    }
    row(
        text,
        [
            "all".to_owned(),
            percent(zeros.mean_zero_fraction),
            percent(zeros.mean_small_fraction),
            optional(zeros.mean_quantised_zero_fraction),
            index(zeros.mean_jaccard),
        ],
    );
    line(text, &format!("\n{}", stability(zeros)));
}

fn sparsity(report: &HeadroomReport, text: &mut String) {
    line(text, "\n## Neurons left out, against the unmodified run, both in exact arithmetic");
    let of_kl = ["KL, nats", "±", "median", "in 1 %", "first token", "later"];
    let names = ["skip", "left out"].into_iter().chain(of_kl).chain(["perplexity ×", "±"]);
    header(text, &names.collect::<Vec<_>>());
    let cost = |cost: &super::scores::Cost| {
        [
            format!("{:.5}", cost.kl),
            format!("{:.5}", cost.kl_standard_error),
            format!("{:.5}", cost.kl_median),
            percent(cost.kl_top_percent),
            cost.kl_opening.map_or("-".to_owned(), |kl| format!("{kl:.5}")),
            cost.kl_later.map_or("-".to_owned(), |kl| format!("{kl:.5}")),
            format!("{:.4}", cost.perplexity_ratio),
            format!("{:.4}", cost.perplexity_ratio_standard_error),
        ]
    };
    for curve in &report.sparsity.curves {
        let name = curve.skip.text();
        for point in &curve.points {
            let first = [name.to_owned(), percent(point.sparsity)];
            row(text, first.into_iter().chain(cost(&point.cost)));
        }
    }
    let q8_0 = report.sparsity.q8_0_cache.as_ref().map(|q8_0| ("q8_0 cache", q8_0));
    for (name, other) in q8_0.into_iter().chain([("int8 arithmetic", &report.sparsity.int8)]) {
        row(text, [name.to_owned(), "-".to_owned()].into_iter().chain(cost(other)));
    }
    let point = report.sparsity.curves.first().and_then(|curve| curve.points.first());
    if let Some(point) = point {
        let (positions, perplexity) = (point.cost.positions, point.cost.base_perplexity);
        let _ = writeln!(
            text,
            "\n{positions} positions, perplexity of the unmodified run {perplexity:.3}. ± is a \
             standard error; *in 1 %* is the part of the KL that is at the hundredth of the \
             positions where it is largest; *first token* is the mean KL where a prompt's first \
             token (BOS, where the model has one) is all there is, *later* that of all other \
             positions."
        );
    }
}

fn cache(report: &HeadroomReport, text: &mut String) {
    line(text, "\n## Cache bytes a token reads (computed)");
    header(text, &["context", "f16", "q8_0", "f16 over weights", "within the model's context"]);
    let total = report.bytes_per_token.total.max(1) as f64;
    for entry in &report.cache {
        row(
            text,
            [
                entry.context.to_string(),
                megabytes(entry.f16),
                entry.q8_0.map_or("does not fit".to_owned(), megabytes),
                percent(entry.f16 as f64 / total),
                if entry.within_model { "yes" } else { "no" }.to_owned(),
            ],
        );
    }
}

fn lookup(report: &HeadroomReport, text: &mut String) {
    let lookup = &report.lookup;
    line(text, "\n## Speculation by look-up, greedy");
    header(text, &["prompts", "proposed at most", "tokens a pass", "proposed", "accepted"]);
    let mut rows = |name: &str, drafts: &[Drafted]| {
        for drafted in drafts {
            let rate = drafted.tokens_per_pass();
            let accepted = drafted.accepted as f64 / drafted.proposed.max(1) as f64;
            row(
                text,
                [
                    name.to_owned(),
                    drafted.draft.to_string(),
                    rate.map_or(UNKNOWN.to_owned(), |rate| format!("{rate:.2}")),
                    drafted.proposed.to_string(),
                    format!("{} ({})", drafted.accepted, percent(accepted)),
                ],
            );
        }
    };
    rows(&format!("all {}", lookup.prompts), &lookup.drafts);
    for Category { name, prompts, drafts } in &lookup.categories {
        rows(&format!("{prompts} of {name}"), drafts);
    }
    let _ = writeln!(
        text,
        "\n{} tokens generated; what followed the last {} tokens earlier in the text is proposed. \
         Verifying changes no token.",
        lookup.generated, lookup.ngram
    );
}
