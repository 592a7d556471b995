//! The baseline for people.

use super::{BaselineReport, Measurement, Peer, PeerRun, SimulatedFigure, Spread};
use crate::report::{ModelInfo, SYNTHETIC};
use std::fmt::Write as _;

/// MiB a token and tokens a second that were published for Falcon-7B Q4_K_M on a Core Ultra 7 265K,
/// and the controllers of that processor, of which one was read.
const PUBLISHED: (f64, f64, f64) = (2340.0, 11.43, 2.0);

pub(super) fn render(report: &BaselineReport) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &BaselineReport, out: &mut String) -> std::fmt::Result {
    let model = &report.model;
    writeln!(out, "# Baseline of {}\n", model.name)?;
    if model.synthetic {
        writeln!(out, "{SYNTHETIC}\n")?;
    }
    let verdict = if report.passes { "steady" } else { "not steady" };
    writeln!(
        out,
        "{} runs of {} tokens, each after loading anew; **{verdict}**.\n",
        report.plan.runs, report.plan.tokens
    )?;
    for remark in report.failures.iter().chain(&report.remarks) {
        writeln!(out, "- {remark}")?;
    }
    figures(report, out)?;
    if let Some(peer) = &report.peer {
        write_peer(report, peer, out)?;
    }
    runs(report, out)?;
    let place = &report.environment;
    let environment = &place.environment;
    let mb = |bytes: Option<u64>| {
        bytes.map_or("unknown".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6))
    };
    writeln!(out, "\n## Environment\n")?;
    writeln!(out, "- model: {} bytes, SHA-256 {}", model.bytes, model.sha256)?;
    writeln!(out, "- processor: {}", report.processor.as_deref().unwrap_or("does not tell"))?;
    writeln!(out, "- kernel: {}", place.kernel.as_deref().unwrap_or("unknown"))?;
    let (memory, cache) = (mb(place.memory_bytes), mb(place.last_level_cache_bytes));
    writeln!(out, "- memory: {memory}; last level of cache: {cache}")?;
    writeln!(out, "- aios {}, {}", environment.version, environment.platform)?;
    writeln!(out, "- instruction set {}, {} threads", environment.isa, environment.threads)?;
    let [k, v] = environment.cache_types;
    writeln!(out, "- cache {k}/{v}{}", environment.with_tiers())?;
    let arithmetic = if environment.exact { "exact" } else { "int8" };
    writeln!(out, "- arithmetic {arithmetic}; weights {}", report.in_force.summary())?;
    if is_published(model) {
        published(report.mb_per_token.counted.statistics.mean, out)?;
    }
    Ok(())
}

/// Whether a model is the one that the published figure is of: Falcon-7B's shape, in the mix
/// Q4_K_M. Its rows of 4544 elements are no whole blocks of Q4_K, which is therefore Q5_0 there.
fn is_published(model: &ModelInfo) -> bool {
    let all: u64 = model.tensor_types.iter().map(|entry| entry.bytes).sum();
    let (own, stand_in) = (model.bytes_of("Q4_K"), model.bytes_of("Q5_0"));
    model.architecture == "falcon"
        && (model.layers, model.d_model) == (32, 4544)
        && own > 0
        && own + stand_in > all / 2
}

/// Explains the published figure beside the MB that a token of the same shape must read.
fn published(counted: f64, out: &mut String) -> std::fmt::Result {
    let (mib, tokens_per_s, controllers) = PUBLISHED;
    let one = mib * f64::from(1 << 20) / 1e6;
    let all = one * controllers;
    let more = (all / counted - 1.0) * 100.0;
    writeln!(out, "\n## The published figure\n")?;
    writeln!(
        out,
        "For Falcon-7B Q4_K_M on a Core Ultra 7 265K, {mib:.0} ± 4 MB/token at {tokens_per_s} \
         tokens/s have been published, read off the counter `uncore_imc_free_running_0`. That \
         cannot be: the weights and the cache that a token must read come to {counted:.0} MB as \
         counted here, {:.2} times as much. Two things explain it. The unit was MiB, so that \
         {mib:.0} are {one:.0} MB; and that processor has two memory controllers, each with a \
         device of its own, of which one was read. Both together read {controllers:.0} × {one:.0} \
         = {all:.0} MB, {more:+.1} % from the counted figure. At {tokens_per_s} tokens/s that \
         machine streams {:.0} GB/s, not {:.0}.",
        counted / mib,
        tokens_per_s * all / 1e3,
        tokens_per_s * mib / 1e3
    )
}

fn figures(report: &BaselineReport, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n| figure | mean ± sd | CV | source |\n|---|---:|---:|---|")?;
    let row = |out: &mut String, name: &str, spread: &Spread, digits: usize, source: &str| {
        let (mean, sd) = (spread.statistics.mean, spread.statistics.sd);
        let cv = spread.cv * 100.0;
        writeln!(out, "| {name} | {mean:.digits$} ± {sd:.digits$} | {cv:.1} % | {source} |")
    };
    let mb = &report.mb_per_token;
    row(out, "MB/token", &mb.counted, 1, "counted")?;
    match &mb.simulated {
        Some(figure) => {
            let SimulatedFigure { mb_per_token: value, cache, caches, threads, positions, .. } =
                figure;
            let s = if *threads == 1 { "" } else { "s" };
            let source = format!(
                "simulated: {cache}: {caches}; {threads} thread{s}, at {positions} positions"
            );
            writeln!(out, "| MB/token | {value:.1} | | {source} |")?;
        }
        None => writeln!(out, "| MB/token | not simulated | | |")?,
    }
    match &mb.measured {
        Measurement::Measured { mb_per_token, reading } => {
            row(out, "MB/token", mb_per_token, 1, &reading.source)?;
        }
        _ => writeln!(out, "| MB/token | not measured | | see above |")?,
    }
    row(out, "tokens/s", &report.tokens_per_s, 2, "timed")?;
    row(out, "GB/s read", &report.read_gb_per_s, 2, "counted, timed")?;
    row(out, "GB/s of a streaming read", &report.stream_gb_per_s, 2, "timed in the same run")?;
    row(out, "of the streaming read", &report.bandwidth_fraction, 3, "")?;
    row(out, "load, ms", &report.load_ms, 1, "timed")?;
    if let Some(bytes) = report.resident_bytes {
        let mb = bytes as f64 / 1e6;
        writeln!(out, "| MB resident, mapped files included | {mb:.0} | | the system |")?;
    }
    Ok(())
}

fn write_peer(report: &BaselineReport, peer: &Peer, out: &mut String) -> std::fmt::Result {
    writeln!(out, "\n## Beside llama.cpp\n")?;
    let run = match peer {
        Peer::Missing { reason } => return writeln!(out, "Not run: {reason}."),
        Peer::Ran(run) => run,
    };
    let PeerRun { version, features, threads, tokens_per_s: theirs } = run;
    let ours = &report.tokens_per_s;
    writeln!(out, "| tokens/s | median | mean ± sd | CV | least | most |")?;
    writeln!(out, "|---|---:|---:|---:|---:|---:|")?;
    for (name, spread) in [("aios", ours), (&*format!("llama-cpp-python {version}"), theirs)] {
        let s = &spread.statistics;
        let least = s.samples.iter().copied().fold(f64::INFINITY, f64::min);
        let most = s.samples.iter().copied().fold(0.0, f64::max);
        let (median, mean, sd, cv) = (s.median, s.mean, s.sd, spread.cv * 100.0);
        write!(out, "| {name} | {median:.2} | {mean:.2} ± {sd:.2} | {cv:.1} % ")?;
        writeln!(out, "| {least:.2} | {most:.2} |")?;
    }
    let ratio = ours.statistics.median / theirs.statistics.median;
    writeln!(
        out,
        "\n{ratio:.2} times as many, by the medians. llama.cpp ran after all runs of aios, with \
         {threads} threads and as many tokens, one at a time through Python; it was built with {}. \
         `benches/peers` compares in turns, without Python between.",
        features.join(" ")
    )
}

fn runs(report: &BaselineReport, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "\n## Runs\n\n| tokens/s | streaming read, GB/s | load, ms | measured MB/token |"
    )?;
    writeln!(out, "|---:|---:|---:|---:|")?;
    for run in &report.runs {
        let measured = run.measured_mb_per_token.map_or("–".to_owned(), |mb| format!("{mb:.1}"));
        writeln!(
            out,
            "| {:.2} | {:.2} | {:.1} | {measured} |",
            run.tokens_per_s, run.stream_gb_per_s, run.load_ms
        )?;
    }
    Ok(())
}
