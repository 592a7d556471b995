//! A plan as a person reads it: what a token reads before and after, what lives where, and what was
//! measured.

use crate::report::SYNTHETIC;
use aios_residency::plan::{
    FfnReport, KeepReport, Manifest, MemoryReport, PrefetchReport, Quality, ScreenReport, Screened,
    ThresholdReport,
};
use std::fmt::Write;

const HEAD: &str = "head";
const FFN: &str = "ffn";

/// Bytes of a token by group, without the plan and with it.
fn rows(manifest: &Manifest) -> Vec<(&str, f64, f64)> {
    let screen = manifest.screen.as_ref().filter(|screen| screen.pays);
    let head = screen.map_or(1.0, |screen| screen.greedy.fraction);
    let skipping = manifest.ffn.as_ref().filter(|ffn| ffn.pays);
    let ffn = skipping.map_or(1.0, |ffn| ffn.read_bytes as f64 / (ffn.whole_bytes.max(1) as f64));
    let of = |(group, bytes): &'_ (String, u64)| {
        let factor = match group.as_str() {
            HEAD => head,
            FFN => ffn,
            _ => 1.0,
        };
        (*bytes as f64, *bytes as f64 * factor)
    };
    let all = manifest.bytes_per_token.iter().filter(|(_, bytes)| *bytes > 0);
    all.map(|entry| (entry.0.as_str(), of(entry).0, of(entry).1)).collect()
}

/// Where a group's bytes lie.
fn place(manifest: &Manifest, group: &str) -> &'static str {
    match group {
        "embedding" => "model file, the token's row",
        HEAD if manifest.screen.as_ref().is_some_and(|screen| screen.pays) => {
            "plan (sketch) and model file (rows that may be best)"
        }
        FFN if manifest.ffn.as_ref().is_some_and(|ffn| ffn.pays) => {
            "plan (down, neuron by neuron), model file (rows of up), panels (gate)"
        }
        "norm" => "memory, as floats",
        _ => "panels, or the model file without them",
    }
}

/// The plan as Markdown.
pub fn markdown(manifest: &Manifest) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out += &text;
        out.push('\n');
    };
    if manifest.synthetic {
        line(format!("{SYNTHETIC}\n"));
    }
    line(format!(
        "Quality {}: {}. Weights of a token decoded greedily, counted:\n",
        quality(manifest.quality),
        changes(manifest)
    ));
    line("| group | MB, whole | MB, with the plan | where |".to_owned());
    line("|---|---:|---:|---|".to_owned());
    let groups = rows(manifest);
    let (mut before, mut after) = (0.0, 0.0);
    for (group, whole, planned) in &groups {
        (before, after) = (before + whole, after + planned);
        let (whole, planned) = (whole / 1e6, planned / 1e6);
        line(format!("| {group} | {whole:.2} | {planned:.2} | {} |", place(manifest, group)));
    }
    let saved = 100.0 * (1.0 - after / f64::max(before, 1.0));
    let (before, after) = (before / 1e6, after / 1e6);
    line(format!("| **all** | {before:.2} | {after:.2} | {saved:.1} % fewer |\n"));
    match (&manifest.screen, &manifest.unscreened) {
        (Some(report), _) => line(screened(report, manifest.head.rows)),
        (None, Some(why)) => line(format!("The head is read whole: {why}.")),
        (None, None) => {}
    }
    if let Some(threshold) = &manifest.threshold {
        line(format!("\n{}", thresholds(threshold, manifest.quality)));
    }
    if let Some(ffn) = &manifest.ffn {
        line(format!("\n{}", neurons(ffn, manifest.threshold_in_force().is_some())));
    }
    if let Some(keep) = &manifest.keep {
        line(format!("\n{}", kept(keep, manifest.llc_bytes)));
    }
    if let Some(prefetch) = &manifest.prefetch {
        line(format!("\n{}", distance(prefetch)));
    }
    if let Some(memory) = &manifest.memory {
        line(format!("\n{}", budget(memory)));
    }
    out
}

/// What was measured of the screened head, which has so many rows.
fn screened(screen: &ScreenReport, rows: usize) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out += &text;
        out.push('\n');
    };
    let [head, base, refined] = [screen.head_bytes, screen.base_bytes, screen.refined_bytes]
        .map(|bytes| bytes as f64 / 1e6);
    line(format!(
        "Head: {head:.2} MB whole; its sketch has {base:.2} MB that every position reads ({:.3} of \
         the head) and {refined:.2} MB of which it reads some. 32 directions hold \
         {:.0} % of the hidden states' squared norm, fitted on {} positions.\n",
        base / head,
        100.0 * screen.along,
        screen.fitted_positions
    ));
    line("| wanted | head read | rows refined | rows computed | read whole after all |".to_owned());
    line("|---|---:|---:|---:|---:|".to_owned());
    for (name, screened) in [("best (greedy)", &screen.greedy), ("40 best", &screen.top_40)] {
        line(screened_row(name, screened, rows));
    }
    line(
        "\n| wanted | positions of a pass | ms, whole head | ms, screened | ratio | passes |"
            .to_owned(),
    );
    line("|---|---:|---:|---:|---:|---:|".to_owned());
    for times in &screen.times {
        let (whole, screened) = (times.whole_ms, times.screened_ms);
        line(format!(
            "| {} | {} | {whole:.3} | {screened:.3} | {:.3} | {} |",
            if times.best == 1 { "best" } else { "40 best" },
            times.positions,
            screened / whole,
            times.samples
        ));
    }
    out + "\n" + &verdict(screen)
}

const fn quality(quality: Quality) -> &'static str {
    match quality {
        Quality::Exact => "exact",
        Quality::Conservative => "conservative",
        Quality::Balanced => "balanced",
        Quality::Aggressive => "aggressive",
    }
}

fn screened_row(name: &str, screened: &Screened, rows: usize) -> String {
    let part =
        |count: u64, positions: u64| 100.0 * count as f64 / (positions.max(1) as f64 * rows as f64);
    format!(
        "| {name} | {:.3} | {:.1} % | {:.2} % | {} of {} |",
        screened.fraction,
        part(screened.refined, screened.positions),
        part(screened.rows, screened.positions - screened.whole),
        screened.whole,
        screened.positions
    )
}

/// What the plan comes to, in a sentence.
fn verdict(screen: &ScreenReport) -> String {
    if !screen.pays {
        return "Verdict: the screen saves bytes and no time here, so it stays off (--screen on \
                uses it all the same)."
            .to_owned();
    }
    let passes = |most| match most {
        1 => "passes of one position".to_owned(),
        most => format!("passes of up to {most} positions"),
    };
    let greedy = passes(screen.positions_most);
    match screen.top_40_positions_most {
        0 => format!(
            "Verdict: the screen is used in greedy decoding, for {greedy}. Where the 40 best are \
             wanted it saves no time here, so the head is read whole (--screen on uses it all the \
             same)."
        ),
        many => format!(
            "Verdict: the screen is used in greedy decoding for {greedy}, in top-k sampling for \
             {}.",
            passes(many)
        ),
    }
}

/// What skipping zero neurons comes to.
fn neurons(ffn: &FfnReport, cut: bool) -> String {
    format!(
        "Neurons: {:.1} % are zero once quantised. Skipping them, a token reads {:.3} of {:.3} MB \
         of feed-forward weights and takes {:.3} ms instead of {:.3} (medians of {} tokens, all \
         logits equal). Verdict: {}.",
        100.0 * ffn.zero_fraction,
        ffn.read_bytes as f64 / 1e6,
        ffn.whole_bytes as f64 / 1e6,
        ffn.skipped_ms,
        ffn.whole_ms,
        ffn.tokens,
        match (ffn.pays, cut) {
            (true, false) => "zero neurons are skipped in passes of one token",
            (true, true) =>
                "the thresholds hold, and what is zero is skipped in passes of one token",
            (false, false) => {
                "that saves no time here, so it stays off (--zeros on uses it all the same)"
            }
            (false, true) => {
                "that saves no time here, so the thresholds do not hold (--threshold on has them \
                 all the same)"
            }
        }
    )
}

/// What keeping weights in the last-level cache comes to.
fn kept(keep: &KeepReport, llc_bytes: Option<u64>) -> String {
    let megabytes = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
    format!(
        "Last-level cache of {}: {} of weights stay in it, {} are read past it. Simulated, a token \
         then reads {} of memory instead of {}; it takes {:.3} ms instead of {:.3} (medians of {} \
         tokens, all logits equal). Verdict: {}.",
        megabytes(llc_bytes.unwrap_or(0) as f64),
        megabytes(keep.kept_bytes as f64),
        megabytes(keep.past_bytes as f64),
        megabytes(keep.simulated_kept),
        megabytes(keep.simulated_plain),
        keep.kept_ms,
        keep.plain_ms,
        keep.tokens,
        match keep.pays {
            true => "weights are kept",
            false => "that saves no time here, so it stays off (--keep on does it all the same)",
        }
    )
}

/// What asking for weights early comes to.
fn distance(prefetch: &PrefetchReport) -> String {
    let PrefetchReport { ahead, usual, fastest, tokens, usual_ms, fastest_ms } = *prefetch;
    let tried = match fastest == usual {
        true => "nothing that was tried is faster".to_owned(),
        false => format!(
            "{fastest} were fastest: {fastest_ms:.3} ms a token, with the usual {usual} \
             {usual_ms:.3} (medians of half of {tokens} tokens, all logits equal)"
        ),
    };
    format!("Prefetching: weights are asked for {ahead} bytes ahead of use; {tried}.")
}

/// What lives where within a budget of memory.
fn budget(memory: &MemoryReport) -> String {
    let megabytes = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
    let of = |bytes: u64| megabytes(bytes as f64);
    format!(
        "Within {} of memory, at a context of {} tokens:\n\n| what | where | bytes |\n\
         |---|---|---:|\n| weights | memory | {} |\n| weights | disk, read for each pass | {} |\n\
         | cache, activations, buffers | memory | {} |\n\nA token reads {} of the disk and takes \
         {:.1} ms, {:.1} with all in memory (medians of {} tokens, all logits equal).",
        of(memory.ram_bytes),
        memory.context,
        of(memory.hot_bytes),
        of(memory.stream_bytes),
        of(memory.reserved_bytes),
        megabytes(memory.disk_bytes_per_token),
        memory.limited_ms,
        memory.whole_ms,
        memory.tokens,
    )
}

/// Whether the plan changes results.
fn changes(manifest: &Manifest) -> String {
    let pays = manifest.ffn.as_ref().is_some_and(|ffn| ffn.pays);
    match manifest.threshold_in_force().filter(|_| pays) {
        None => "nothing in this plan changes a bit of any result".to_owned(),
        Some(point) => format!(
            "results change, the perplexity to {:.4} of what it was, by a KL of {:.5}",
            point.perplexity_ratio, point.kl
        ),
    }
}

/// What leaving neurons out costs.
fn thresholds(report: &ThresholdReport, name: Quality) -> String {
    let mut out = format!(
        "Neurons below a threshold, left out; {} positions that fitted none, exact arithmetic, \
         perplexity {:.3} without; within {:.1} % of perplexity and as much KL:\n\n\
         | left out | KL, nats | ± | perplexity, ratio | ± | |\n|---:|---:|---:|---:|---:|---|\n",
        report.positions,
        report.base_perplexity,
        100.0 * name.budget()
    );
    for (i, point) in report.tried.iter().enumerate() {
        let verdict = match (report.chosen == Some(i), point.is_within(name)) {
            (true, _) => "**chosen**",
            (false, true) => "within",
            (false, false) => "too much",
        };
        let _ = writeln!(
            out,
            "| {:.0} % | {:.5} | {:.5} | {:.4} | {:.4} | {verdict} |",
            100.0 * point.target,
            point.kl,
            point.kl_standard_error,
            point.perplexity_ratio,
            point.perplexity_ratio_standard_error
        );
    }
    if report.chosen.is_none() {
        out += "\nNone is within the budget, so that none is left out.\n";
    }
    out
}

/// Two bars: a token's bytes by group, without the plan and with it.
pub fn svg(manifest: &Manifest) -> String {
    const COLOURS: [&str; 5] = ["#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00"];
    let groups = rows(manifest);
    let largest = groups.iter().map(|group| group.1).sum::<f64>().max(1.0);
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"190\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"760\" height=\"190\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"24\">MB of weights for a token decoded greedily (counted)</text>\n",
    );
    for (bar, (name, planned)) in [("whole", false), ("planned", true)].into_iter().enumerate() {
        let y = 44 + 50 * bar;
        let mut x = 90.0;
        let mut sum = 0.0;
        let _ = writeln!(out, "<text x=\"20\" y=\"{}\">{name}</text>", y + 22);
        for ((_, whole, less), colour) in groups.iter().zip(COLOURS.iter().cycle()) {
            let bytes = if planned { *less } else { *whole };
            let width = 560.0 * bytes / largest;
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"34\" \
                 fill=\"{colour}\"/>"
            );
            x += width;
            sum += bytes;
        }
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{}\">{:.1}</text>", x + 8.0, y + 22, sum / 1e6);
    }
    for (i, ((group, ..), colour)) in groups.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let x = 90 + 120 * i;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"152\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"163\">{group}</text>",
            x + 18
        );
    }
    out += "</svg>\n";
    out
}
