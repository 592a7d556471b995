//! `aios doctor`: the report on the machine as a table or as JSON.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aios_engine::gguf::Escaped;
use aios_residency::measure_disk;
use clap::Args;

use super::models::catalog;
use super::weights::{panel_folder, shown};
use crate::doctor::bandwidth::{self, Measurement};
use crate::doctor::{Cache, Counters, Cpu, Memory, PanelFile, Panels, Report};
use crate::models::Catalog;

/// Runs of each bandwidth measurement; the median is reported.
const RUNS: usize = 9;
/// The buffer is this many times the last level of cache, so that hardly any of it stays there.
const BEYOND_CACHE: u64 = 4;
/// The least and the most that the buffer has.
const BUFFER_BYTES: std::ops::RangeInclusive<u64> = 256 << 20..=4 << 30;

/// The most that is read of a disk.
const DISK_BYTES_MAX: u64 = 4_000_000_000;

/// Say what this machine can do: instruction sets, caches, memory, counters, bandwidth; and what
/// is kept on its disk.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios doctor
  aios doctor --json --no-bandwidth
  aios doctor --no-bandwidth --disk model.gguf

The bandwidth is a plain streaming read of a buffer well beyond the caches. It bounds decoding:
tokens per second <= bandwidth / bytes per token.

The repacked weights that are listed may be deleted at any time: the next run of their model makes
them anew, or does without if it is told --no-repack.")]
pub(super) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Do not measure the bandwidth (it takes some seconds and up to a quarter of the memory).
    #[arg(long)]
    no_bandwidth: bool,
    /// Measure how fast the disk gives this file, read as weights are that exceed --ram.
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
}

/// Runs `aios doctor`.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let mut report = Report::collect(Path::new("/"));
    if !args.no_bandwidth {
        report.bandwidth = Some(measure(&report)?);
    }
    report.panels = panels(&catalog()?);
    report.disk =
        args.disk.as_deref().map(|file| measure_disk(file, DISK_BYTES_MAX)).transpose()?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, &mut out)?;
    }
    Ok(())
}

/// The repacked weights that are kept; what cannot be looked into is said and left out.
fn panels(catalog: &Catalog) -> Option<Panels> {
    let folder = panel_folder()?;
    let found = Panels::collect(&folder, catalog);
    found.inspect_err(|error| tracing::warn!("cannot look into {}: {error}", folder.display())).ok()
}

/// Measures with one thread and with one per core that this process may use.
fn measure(report: &Report) -> anyhow::Result<Vec<Measurement>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bytes = buffer_bytes(report);
    let mut counts = vec![1, cores];
    counts.dedup();
    let measured: Result<_, _> =
        counts.into_iter().map(|threads| bandwidth::measure(threads, bytes, RUNS)).collect();
    Ok(measured?)
}

/// Well beyond the last level of cache, but at most a quarter of the memory that can be had.
pub(super) fn buffer_bytes(report: &Report) -> u64 {
    let memory = &report.memory;
    let room = [memory.available_bytes, memory.limit_bytes].into_iter().flatten().min();
    let cache = report.last_level_cache_bytes().unwrap_or(0);
    let wanted =
        cache.saturating_mul(BEYOND_CACHE).clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end());
    wanted.min(room.map_or(u64::MAX, |bytes| bytes / 4))
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    print_cpu(&report.cpu, out)?;
    print_caches(&report.caches, out)?;
    print_memory(&report.memory, out)?;
    print_counters(&report.counters, out)?;
    if let Some(panels) = &report.panels {
        print_panels(panels, out)?;
    }
    if let Some(disk) = &report.disk {
        writeln!(out, "Disk (measured)")?;
        let way = if disk.direct { "past the page cache" } else { "through the page cache" };
        let rate = format!("{:.2} GB/s over {}, {way}", disk.gb_per_s, bytes(disk.bytes));
        row(out, "streamed weights", &rate)?;
        writeln!(out)?;
    }
    let Some(measured) = &report.bandwidth else { return Ok(()) };
    writeln!(out, "Streaming read (measured, median of {RUNS} runs)")?;
    for one in measured {
        let samples = &one.samples_gb_per_s;
        let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let high = samples.iter().copied().fold(0.0, f64::max);
        let threads =
            if one.threads == 1 { "1 thread" } else { &format!("{} threads", one.threads) };
        let rate = format!("{:.1} GB/s ({low:.1} to {high:.1})", one.median_gb_per_s);
        row(out, threads, &format!("{rate} over {}", bytes(one.bytes)))?;
    }
    let cache = report.last_level_cache_bytes();
    if cache.is_some_and(|cache| measured.iter().any(|one| one.bytes < 2 * cache)) {
        row(out, "warning", "too little memory is free: the buffer is not well beyond the caches")?;
    }
    Ok(())
}

fn print_cpu(cpu: &Cpu, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Processor")?;
    row(out, "model", cpu.model.as_deref().unwrap_or("unknown"))?;
    let count = |n: Option<usize>| n.map_or("unknown".to_owned(), |n| n.to_string());
    let (sockets, cores) = (count(cpu.sockets), count(cpu.cores));
    let machine = if cpu.hypervisor { "virtual machine" } else { "bare machine" };
    row(out, "sockets/cores/threads", &format!("{sockets}/{cores}/{}, {machine}", cpu.threads))?;
    row(out, "this process may use", &format!("{} ({})", cpu.allowed.len(), ranges(&cpu.allowed)))?;
    if let Some(cpuset) = &cpu.cpuset {
        row(out, "control group's cpuset", cpuset)?;
    }
    if let Some(quota) = cpu.quota {
        row(out, "control group's quota", &format!("{quota:.2} processors"))?;
    }
    let named = |present: bool| {
        let names: Vec<&str> =
            cpu.features.iter().filter(|f| f.present == present).map(|f| f.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(" ") }
    };
    row(out, "has", &named(true))?;
    row(out, "lacks", &named(false))?;
    writeln!(out)
}

fn print_caches(caches: &[Cache], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Caches")?;
    if caches.is_empty() {
        row(out, "unknown", "the kernel does not describe them here")?;
    }
    for cache in caches {
        let letter = match cache.kind.as_str() {
            "Data" => "d",
            "Instruction" => "i",
            _ => "",
        };
        let line = cache.line_bytes.map_or(String::new(), |n| format!(", lines of {n} B"));
        let ways = cache.ways.map_or(String::new(), |n| format!(", {n} ways"));
        let value = format!("{} x {}{ways}{line}", cache.instances, bytes(cache.bytes));
        row(out, &format!("L{}{letter}", cache.level), &value)?;
    }
    writeln!(out)
}

fn print_memory(memory: &Memory, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Memory")?;
    let known = |value: Option<u64>| value.map_or("unknown".to_owned(), bytes);
    let (total, available) = (known(memory.total_bytes), known(memory.available_bytes));
    row(out, "total/available", &format!("{total}/{available}"))?;
    if let Some(limit) = memory.limit_bytes {
        row(out, "control group's limit", &bytes(limit))?;
    }
    row(out, "swap", &known(memory.swap_bytes))?;
    row(out, "nodes", &memory.nodes.to_string())?;
    let lockable = memory.lockable_bytes.map_or("no limit".to_owned(), bytes);
    row(out, "lockable (ulimit -l)", &lockable)?;
    let pages = &memory.huge_pages;
    let policy = |value: &Option<String>| value.clone().unwrap_or("unknown".to_owned());
    let (defrag, shmem) = (policy(&pages.defrag), policy(&pages.shmem));
    let value = format!("{}, defrag {defrag}, shmem {shmem}", policy(&pages.transparent));
    row(out, "transparent huge pages", &value)?;
    let value = match (pages.reserved, pages.free, pages.page_bytes) {
        (Some(0), _, Some(size)) => format!("none reserved (size {})", bytes(size)),
        (Some(n), Some(free), Some(size)) => format!("{free} of {n} free, {} each", bytes(size)),
        _ => "unknown".to_owned(),
    };
    row(out, "reserved huge pages", &value)?;
    writeln!(out)
}

fn print_counters(counters: &Counters, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Counters")?;
    let paranoid = counters.perf_event_paranoid;
    let level = paranoid.map_or("unknown: no perf events here".to_owned(), |n| n.to_string());
    let may = if counters.may_count_machine_wide { "may" } else { "may not" };
    row(out, "perf_event_paranoid", &format!("{level}; this process {may} count machine-wide"))?;
    for kind in &counters.kinds {
        let found = if kind.found.is_empty() { "MISSING" } else { &kind.found.join(" ") };
        writeln!(out, "  {}: {found}", kind.what)?;
        for line in [&kind.detail, &kind.remedy].into_iter().flatten() {
            writeln!(out, "    {line}")?;
        }
    }
    writeln!(out)
}

fn print_panels(panels: &Panels, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Repacked weights")?;
    let folder = shown(&panels.folder);
    if panels.files.is_empty() {
        row(out, "none", &format!("in {}", Escaped::new(&folder.to_string_lossy())))?;
        return writeln!(out);
    }
    for file in &panels.files {
        row(out, &bytes(file.bytes), &format!("{}, {}", file.file, origin(file)))?;
    }
    let folder = in_a_shell(&folder.to_string_lossy());
    row(out, &format!("{} in all", bytes(panels.bytes)), &format!("in {folder}"))?;
    row(out, "to delete them", &format!("rm -r {folder}"))?;
    row(out, "", "They are made anew when their model runs, unless with --no-repack.")?;
    writeln!(out)
}

/// Whose repacked weights they are, as well as that is known.
fn origin(file: &PanelFile) -> String {
    let source = file.source.as_deref().map(|source| Escaped::new(source).to_string());
    let gone = if file.source_exists == Some(false) { " (which is gone)" } else { "" };
    match (&file.model, source, &file.source_sha256) {
        (Some(name), ..) => format!("of {name}{gone}"),
        (None, Some(source), Some(_)) => format!("of {source}{gone}"),
        (None, None, Some(digest)) => format!("of a model whose SHA-256 is {digest}"),
        (None, _, None) => "not whole: being written, or left behind".to_owned(),
    }
}

/// A path as a shell takes it for one word.
fn in_a_shell(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~+".contains(c);
    if path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

fn row(out: &mut impl Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "  {name:24} {value}")
}

/// `[0, 1, 2, 5]` as `0-2,5`.
fn ranges(numbers: &[usize]) -> String {
    let same_run = |a: &usize, b: &usize| *b == a + 1;
    let run = |run: &[usize]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    numbers.chunk_by(same_run).map(run).collect::<Vec<_>>().join(",")
}

/// A size in the largest binary unit of which there is at least one.
fn bytes(n: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(size, _)| n >= *size) {
        Some((size, unit)) if n.is_multiple_of(size) => format!("{} {unit}", n / size),
        Some((size, unit)) => format!("{:.1} {unit}", n as f64 / size as f64),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
        assert_eq!(bytes(48 << 10), "48 KiB");
        assert_eq!(bytes(1_500_000_000), "1.4 GiB");
        assert_eq!(bytes(12), "12 B");
    }

    #[test]
    fn repacked_weights_are_told_apart() {
        let file =
            |model: Option<&str>, source: Option<&str>, there, digest: Option<&str>| PanelFile {
                file: "0123.panels".to_owned(),
                bytes: 3 << 20,
                model: model.map(str::to_owned),
                source: source.map(str::to_owned),
                source_exists: source.map(|_| there),
                source_sha256: digest.map(str::to_owned),
            };
        let files = vec![
            file(Some("small"), Some("/m/a.gguf"), true, Some("ab")),
            file(None, Some("/m/b\u{1b}.gguf"), false, Some("cd")),
            file(None, None, false, Some("ef")),
            file(None, None, false, None),
        ];
        let origins: Vec<String> = files.iter().map(origin).collect();
        assert_eq!(origins[0], "of small");
        assert!(origins[1].ends_with(".gguf (which is gone)") && !origins[1].contains('\u{1b}'));
        assert_eq!(origins[2], "of a model whose SHA-256 is ef");
        assert!(origins[3].starts_with("not whole"));
        let panels = Panels { folder: "/it's/here".into(), bytes: 12 << 20, files };
        let mut text = Vec::new();
        print_panels(&panels, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in ["3 MiB", "0123.panels, of small", "12 MiB in all", r"rm -r '/it'\''s/here'"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(in_a_shell("~/.cache/aios/panels"), "~/.cache/aios/panels");
    }

    #[test]
    fn the_buffer_is_beyond_the_cache_but_within_the_memory() {
        let mut report = Report::collect(Path::new("/no/such/root"));
        assert_eq!(buffer_bytes(&report), 256 << 20);
        report.caches = vec![Cache {
            level: 3,
            kind: "Unified".to_owned(),
            bytes: 100 << 20,
            instances: 2,
            line_bytes: None,
            ways: None,
        }];
        assert_eq!(buffer_bytes(&report), 800 << 20);
        report.memory.available_bytes = Some(1 << 30);
        assert_eq!(buffer_bytes(&report), 256 << 20);
        report.memory.limit_bytes = Some(100 << 20);
        assert_eq!(buffer_bytes(&report), 25 << 20);
    }
}
