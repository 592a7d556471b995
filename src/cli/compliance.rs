//! `aios compliance`: a model held against the Model Contract; `aios catalog`: a page of many.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use aios_contract::requirements::{Manifest, Probe, Sparsity};
use aios_engine::gguf::{Escaped, Gguf};
use aios_engine::{Executor, Model, Want, read_config};
use aios_residency::{Mapping, Phase, read_text};
use aios_validation::compliance::catalog::{Baseline, catalog};
use aios_validation::compliance::extract::{ExtractError, SIDECAR_BYTES_MAX};
use aios_validation::compliance::{
    ComplianceReport, HardwareProfile, Inputs, MeasuredLevers, ModelIdentity, THIS_MACHINE, assess,
    extract, group_bytes,
};
use aios_validation::headroom::measure_zeros;
use aios_validation::prompts::Prompts;
use aios_validation::report::{self, is_synthetic};
use anyhow::Context;
use clap::Args;

use super::doctor::buffer_bytes;
use super::output::{deliver, prepare};
use super::progress::bar;
use super::{ComputeArgs, ModelArgs, WeightArgs, model_file};
use crate::doctor::{Report as Doctor, bandwidth};
use crate::interrupt::{Interrupt, Interrupted};

const TEMPLATE: &str = "{msg:24} [{bar:30}] {pos}/{len}, {elapsed}";
/// Files of a report, by which `aios catalog` finds them.
const COMPLIANCE_FILE: &str = "compliance.json";
const BASELINE_FILE: &str = "baseline.json";
/// The longest report that is read.
const REPORT_BYTES_MAX: u64 = 16 << 20;

/// Hold a model against the Model Contract: R1 to R5, the tier, the recommended configuration.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios compliance -m model.gguf
  aios compliance -m model.gguf --calibration validation/data/calibration_prompts.jsonl --out report
  aios compliance -m model.gguf --levers report/levers.json
  aios compliance -m model.gguf --hardware-profile desktop-36mb --json

R1 needs a run over at least 1,000 prompts where the activation can give zeros at all. What was not
measured is unknown, and unknown is not a pass. The start that R5 limits is timed before anything
else reads the file, of which the system may hold pages already. SPEC.md, chapter R, has the
requirements.")]
pub(super) struct ComplianceArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Measure R1 on these prompts: JSON lines, each an object with a "text".
    #[arg(long, value_name = "PATH")]
    calibration: Option<PathBuf>,
    /// Read at most this many tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 64, requires = "calibration")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=65536))]
    tokens: u32,
    /// The levers.json of this model that `aios levers --out` has written: what its exact levers
    /// save together stands beside the tier's projected reduction.
    #[arg(long, value_name = "FILE")]
    levers: Option<PathBuf>,
    /// The machine that the configuration is for: this-machine, or a named class.
    #[arg(long, value_name = "NAME", default_value = THIS_MACHINE, value_parser = profile_names())]
    hardware_profile: String,
    /// Write compliance.json and compliance.md into this folder, instead of Markdown to stdout.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

fn profile_names() -> clap::builder::PossibleValuesParser {
    std::iter::once(THIS_MACHINE).chain(HardwareProfile::presets()).collect::<Vec<_>>().into()
}

/// Make a page of the reports of many models.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios catalog reports/* --out validation/CATALOG.md

Each folder holds a compliance.json, and perhaps a baseline.json, as --out of the two commands
writes them. What a baseline says stands with its machine and version, and with why it did not
pass.")]
pub(super) struct CatalogArgs {
    /// Folders with reports.
    #[arg(required = true, value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// Write the page there instead of to stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `aios compliance`.
pub(super) fn run(args: &ComplianceArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    prepare(args.out.as_deref())?;
    let report = comply(args, &interrupt)?;
    let json = report.to_json()?;
    let files = || [(COMPLIANCE_FILE, json.clone()), ("compliance.md", report.to_markdown())];
    let written = args.out.as_deref().map(|folder| Ok(report::write(folder, files())?));
    deliver(written, args.json.then_some(&*json), || report.to_markdown())
}

/// Runs `aios catalog`.
pub(super) fn run_catalog(args: &CatalogArgs) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    let mut baselines = Vec::new();
    for folder in &args.folders {
        let path = folder.join(COMPLIANCE_FILE);
        let missing = "there is no compliance report; `aios compliance --out` writes one";
        anyhow::ensure!(path.exists(), "{}: {missing}", folder.display());
        let what = || format!("{} is no compliance report", path.display());
        reports.push(
            ComplianceReport::from_json(&text_of(&path, REPORT_BYTES_MAX)?).with_context(what)?,
        );
        let path = folder.join(BASELINE_FILE);
        if path.exists() {
            let what = || format!("{} is no baseline report", path.display());
            baselines
                .push(Baseline::from_json(&text_of(&path, REPORT_BYTES_MAX)?).with_context(what)?);
        }
    }
    let page = catalog(&reports, &baselines)?;
    match &args.out {
        Some(path) => {
            fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
        }
        None => Ok(io::stdout().write_all(page.as_bytes())?),
    }
}

/// The text of a file of at most `most` bytes.
fn text_of(path: &Path, most: u64) -> anyhow::Result<String> {
    read_text(path, most).with_context(|| format!("cannot read {}", path.display()))
}

/// A model that was opened to be judged.
struct Opened {
    mapping: Mapping,
    header: Gguf,
    manifest: Result<Option<Manifest>, ExtractError>,
    /// What runs the model, which has had its first pass; `None` if its aliases are broken.
    executor: Option<Executor>,
    /// Seconds that the start took, of a model that runs.
    start_s: Option<f64>,
}

/// Opens the model and times that: from opening the file until its manifest is checked, its weights
/// are loaded and its first pass begins (SPEC R5).
fn open(args: &ComplianceArgs, path: &Path, interrupt: &Interrupt) -> anyhow::Result<Opened> {
    let options = args.compute.options(usize::try_from(args.tokens)?)?;
    let started = Instant::now();
    let mapping = Mapping::open(path)?;
    let header = Gguf::parse(mapping.bytes()).with_context(|| path.display().to_string())?;
    let sidecar = extract::sidecar_path(path);
    // Nobody has asked for this file: what is wrong with it is for R5 to say.
    use io::ErrorKind::{InvalidFilename, NotFound};
    let beside = match read_text(&sidecar, SIDECAR_BYTES_MAX as u64) {
        // No file has a name that is too long.
        Err(error) if matches!(error.kind(), NotFound | InvalidFilename) => Ok(None),
        read => {
            read.map(Some).map_err(|source| ExtractError::SidecarFile { path: sidecar, source })
        }
    };
    let file_bytes = mapping.bytes().len() as u64;
    let manifest =
        beside.and_then(|beside| extract::manifest(&header, file_bytes, beside.as_deref()));
    // A file whose aliases are broken does not load. It is judged by its header, and the report
    // says what is wrong with them.
    let has_aliases = header.metadata.get(extract::ALIAS_TENSORS_KEY).is_some();
    let weights = args.weights.within(args.compute.memory.ram);
    let model = match weights.load_unchanged(path, args.compute.exact, interrupt) {
        Err(_) if has_aliases && !interrupt.is_set() => {
            return Ok(Opened { mapping, header, manifest, executor: None, start_s: None });
        }
        loaded => loaded?,
    };
    let mut executor = Executor::new(model, options)?;
    let start_s = started.elapsed().as_secs_f64();
    // Without the pass nothing would show that what was timed is a start.
    executor.forward(&[0], Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
    Ok(Opened { mapping, header, manifest, executor: Some(executor), start_s: Some(start_s) })
}

fn comply(args: &ComplianceArgs, interrupt: &Interrupt) -> anyhow::Result<ComplianceReport> {
    // Other files are read first: a mistake in them should not cost the loading of a model.
    let prompts = args.calibration.as_deref().map(Prompts::read).transpose()?;
    let levers = args.levers.as_deref().map(levers).transpose()?;
    let path = model_file(&args.model.model, interrupt)?;
    // A start is timed before anything has read the file.
    let mut opened = open(args, &path, interrupt)?;
    let model = opened.executor.as_ref().map(|executor| executor.model().clone());
    let header = &opened.header;
    let config = match &model {
        Some(model) => model.config().clone(),
        None => read_config(&header.metadata, rows_of_embedding(header))?,
    };
    let identity = identity(&path, model.as_deref(), interrupt)?;
    let reduction = match levers {
        Some((path, levers)) => {
            let what = || path.display().to_string();
            Some(levers.reduction_of(&identity).with_context(what)?)
        }
        None => None,
    };
    let sparsity = match (&mut opened.executor, &prompts) {
        (Some(executor), Some(prompts)) => Some(zeros(args, executor, prompts, interrupt)?),
        _ => None,
    };
    let aliases = extract::aliases(header, opened.mapping.bytes(), config.layers);
    let manifest = opened.manifest;
    Ok(assess(Inputs {
        synthetic: is_synthetic(&header.metadata),
        config: &config,
        bytes: model
            .as_ref()
            .map(|model| group_bytes(model.tensors(), &model.bytes_per_token()))
            .unwrap_or_default(),
        sparsity,
        aliases: Probe::from_result(aliases),
        profiler_start_s: opened.start_s.filter(|_| matches!(manifest, Ok(Some(_)))),
        manifest: Probe::from_result(manifest),
        reduction,
        hardware: hardware(args)?,
        model: identity,
    }))
}

/// The report of levers in the file at `path`.
fn levers(path: &Path) -> anyhow::Result<(&Path, MeasuredLevers)> {
    let text = text_of(path, REPORT_BYTES_MAX)?;
    let levers = MeasuredLevers::from_json(&text).with_context(|| path.display().to_string())?;
    Ok((path, levers))
}

/// Rows of the embedding; 0 if there is none, which reading the configuration refuses.
fn rows_of_embedding(header: &Gguf) -> usize {
    let mut tensors = header.tensors.iter();
    let embedding = tensors.find(|tensor| tensor.name == "token_embd.weight");
    let rows = embedding.and_then(|tensor| tensor.shape.get(1).copied());
    rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(0)
}

fn identity(
    path: &Path,
    model: Option<&Model>,
    interrupt: &Interrupt,
) -> anyhow::Result<ModelIdentity> {
    let files = model.map_or_else(|| vec![path.to_owned()], Model::files);
    let digest = report::digest(&files, &mut || !interrupt.is_set())?;
    let (sha256, bytes) = digest.ok_or(Interrupted)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = Escaped::new(&name).to_string();
    Ok(ModelIdentity { name, sha256: aios_validation::logits::hex(&sha256), bytes })
}

/// R1's measurement.
fn zeros(
    args: &ComplianceArgs,
    executor: &mut Executor,
    prompts: &Prompts,
    interrupt: &Interrupt,
) -> anyhow::Result<Sparsity> {
    let tokens = usize::try_from(args.tokens)?;
    let bar = bar(TEMPLATE);
    let list: Vec<_> = prompts.prompts.iter().collect();
    let zeros = measure_zeros(executor, &list, tokens, &mut |doing, done, total| {
        bar.set_message(doing);
        bar.set_length(total);
        bar.set_position(done);
        !interrupt.is_set()
    });
    bar.finish_and_clear();
    if interrupt.is_set() {
        return Err(Interrupted.into());
    }
    let zeros = zeros?;
    Ok(Sparsity {
        prompts: zeros.different as u64,
        tokens: zeros.tokens as u64,
        tokens_most: u64::from(args.tokens),
        sha256: aios_validation::logits::hex(&prompts.sha256),
        zero_fraction: zeros.mean_zero_fraction,
    })
}

fn hardware(args: &ComplianceArgs) -> anyhow::Result<HardwareProfile> {
    if args.hardware_profile != THIS_MACHINE {
        return Ok(HardwareProfile::preset(&args.hardware_profile)?);
    }
    let doctor = Doctor::collect(Path::new("/"));
    let cores = aios_kernels::allowed_processors().len().max(1);
    let bytes = |level| {
        let of = doctor.caches.iter().filter(|cache| cache.level == level);
        let sum: u64 = of.map(|cache| cache.bytes.saturating_mul(cache.instances)).sum();
        (sum > 0).then_some(sum)
    };
    let stream = bandwidth::measure(cores, buffer_bytes(&doctor), 3)?;
    Ok(HardwareProfile {
        memory_bytes: doctor.memory.total_bytes,
        l2_bytes: bytes(2),
        l3_bytes: bytes(3),
        stream_gb_per_s: Some(stream.median_gb_per_s),
        ..HardwareProfile::this_machine(cores)
    })
}
