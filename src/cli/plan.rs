//! `aios plan`: what a model's plan is and holds.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aios_engine::{Model, PartMode, PlanModes};
use aios_kernels::Isa;
use aios_residency::plan::{Hardware, Plan, read_manifest};
use aios_validation::profile::{markdown, svg};
use anyhow::Context;
use clap::{Args, Subcommand};

use super::{Terminal, Usage, model_file};
use crate::doctor::Report;
use crate::interrupt::Interrupt;
use crate::models::{DEFAULT_MODEL, Observer, cache_folder};

/// Show the plan of a model.
#[derive(Args, Debug)]
pub(super) struct PlanArgs {
    #[command(subcommand)]
    command: PlanCommand,
}

#[derive(Debug, Subcommand)]
enum PlanCommand {
    Show(ShowArgs),
}

/// Say what a model's plan decides: bytes of a token before and after, and what lives where.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios plan show -m model.gguf
  aios plan show -m model.gguf --out pictures
  aios plan show --plan folder --json
  aios plan show --plan folder -m model.gguf

Where a run of the model refuses the plan, stderr says so and why.")]
struct ShowArgs {
    /// A GGUF file, or the name of a catalogue model, which is fetched if it is not there [default:
    /// smollm2-135m-instruct, unless --plan names a folder].
    #[arg(short, long, value_name = "FILE|NAME")]
    model: Option<String>,
    /// The plan in this folder, instead of the model's own; with --model it is said whether a run
    /// of that model refuses it.
    #[arg(long, value_name = "FOLDER")]
    plan: Option<PathBuf>,
    /// Write plan.md and plan.svg into this folder, instead of Markdown to stdout.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print the manifest as it stands.
    #[arg(long)]
    json: bool,
}

/// Runs `aios plan`.
pub(super) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let PlanCommand::Show(args) = &args.command;
    let (model, folder) = match &args.plan {
        Some(folder) if args.model.is_none() => (None, folder.clone()),
        folder => {
            let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
            let name = args.model.as_deref().unwrap_or(DEFAULT_MODEL);
            let model = Model::load(&model_file(name, &interrupt)?)?;
            let folder = folder.clone().map_or_else(|| plan_folder(&model), Ok)?;
            (Some(model), folder)
        }
    };
    let manifest =
        read_manifest(&folder).context("no plan to show; `aios profile -m MODEL` makes one")?;
    if let Some(Err(reason)) = model.map(|model| followed(&model, &folder)) {
        Terminal::new().notice(&format!(
            "a run refuses this plan: {reason:#}; `aios profile` makes a new one"
        ));
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &manifest).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    let Some(to) = &args.out else {
        out.write_all(markdown(&manifest).as_bytes())?;
        return Ok(());
    };
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for (name, text) in [("plan.md", markdown(&manifest)), ("plan.svg", svg(&manifest))] {
        let path = to.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

/// Has `model` follow the plan in `folder` as a run does that is not told otherwise.
///
/// # Errors
/// Why a run refuses the plan.
fn followed(model: &Model, folder: &Path) -> anyhow::Result<()> {
    let (_, stamp) = model.identity().context("the model's files")?;
    let plan = Plan::open(folder, &stamp, &hardware())?;
    let auto = PartMode::Auto;
    let modes = PlanModes { screen: auto, zeros: auto, threshold: auto, keep: auto, budget: true };
    model.follow(plan, &modes)?;
    Ok(())
}

/// Where the plan of `model` is kept.
///
/// # Errors
/// If the environment names no cache folder, or the model's files have vanished.
pub fn plan_folder(model: &Model) -> anyhow::Result<PathBuf> {
    let cache = cache_folder().ok_or_else(|| {
        Usage("there is no cache folder: set AIOS_CACHE_DIR, or name a folder".to_owned())
    })?;
    let (name, _) = model.identity().context("the model's files")?;
    Ok(cache.join("plans").join(name.trim_end_matches(".panels")))
}

/// This machine, as a plan describes it.
pub fn hardware() -> Hardware {
    let doctor = Report::collect(Path::new("/"));
    Hardware {
        cpu: doctor.cpu.model.clone(),
        isa: Isa::detect().description().to_owned(),
        processors: aios_kernels::allowed_processors().len(),
        llc_bytes: doctor.last_level_cache_bytes(),
    }
}
