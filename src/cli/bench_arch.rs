//! `aios bench-arch`: families of models x layers x memory backends x labelled prompts.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aios_engine::Model;
use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::Usage;
use super::args::MemoryArgs;
use super::models::catalog;
use super::progress::bar;
use crate::bench_arch::{
    Answers, Case, Family, Options, Plan, Tally, cases, families, plan_done, run,
};
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::{Catalog, State, Store};
use crate::results::Goldens;

const TEMPLATE: &str = "{msg:48} [{bar:30}] {pos}/{len}, {elapsed}, {eta} left";

/// Ask the labelled prompts of several families of models, and record every answer.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios bench-arch --provenance provenance.ndjson --dry-run
  aios bench-arch --provenance provenance.ndjson --families llama,qwen --repeats 3
  aios results --input provenance.ndjson --outdir out

Each prompt is asked of each family with layers luna and basic and memories CARMA and Simple_RAG:
cold, of models that were just loaded, and warm, several times. What the file holds an answer of is
not asked again: the same command goes on where it was stopped. A family one of whose models is
missing is left out, and said. Gemma is a base model that is told the turns of its family's chat
models. Phi is a file of random weights:
  aios synth --shape phi-3-mini --layers 4 --vocab 512 phi-synthetic.gguf")]
pub struct BenchArchArgs {
    /// Append records to this file, or to provenance.ndjson in this folder.
    #[arg(long, value_name = "FILE|FOLDER")]
    pub provenance: PathBuf,
    /// Only these families, by name and separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub families: Vec<String>,
    /// The model file of the family Phi.
    #[arg(long, value_name = "FILE")]
    pub phi: Option<String>,
    /// Ask each prompt so often of warm models.
    #[arg(long, value_name = "N", default_value_t = Options::default().repeats)]
    pub repeats: u64,
    /// Ask each prompt so often of models that were just loaded.
    #[arg(long, value_name = "N", default_value_t = Options::default().cold)]
    pub cold: u64,
    /// Generate at most this many tokens for an answer.
    #[arg(short = 'n', long, value_name = "N", default_value_t = Options::default().tokens)]
    pub tokens: u64,
    /// The name of the run. Its records have it, and a run of the same name goes on.
    #[arg(long, value_name = "NAME", default_value_t = Options::default().run)]
    pub run: String,
    /// Labelled prompts as JSON lines with id, text and tier, instead of those of the program.
    #[arg(long, value_name = "PATH")]
    pub labels: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "see the type")]
    pub memory: MemoryArgs,
    /// Say what would be asked and how long it may take, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl BenchArchArgs {
    fn options(&self) -> anyhow::Result<Options> {
        let mut all = families();
        if let (Some(phi), Some(family)) = (&self.phi, all.iter_mut().find(|f| f.name == "Phi")) {
            (family.small, family.main) = (phi.clone(), phi.clone());
        }
        let names: Vec<&str> = all.iter().map(|family| &*family.name).collect();
        let known = |name: &String| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        if let Some(foreign) = self.families.iter().find(|name| !known(name)) {
            let known = names.join(", ");
            return Err(Usage(format!("there is no family {foreign:?}, only {known}")).into());
        }
        let named = |family: &Family| {
            self.families.is_empty()
                || self.families.iter().any(|name| name.eq_ignore_ascii_case(&family.name))
        };
        all.retain(named);
        let options = Options {
            run: self.run.clone(),
            families: all,
            repeats: self.repeats,
            cold: self.cold,
            tokens: self.tokens,
            ..Options::default()
        };
        options.check().map_err(Usage)?;
        Ok(options)
    }
}

/// Makes what answers, with a log at the path.
pub type Connect<'a> = dyn FnMut(&Path, &Interrupt) -> anyhow::Result<Box<dyn Answers>> + 'a;

/// Runs the benchmark with what `connect` makes.
///
/// # Errors
/// Wrong options, labels, a log that cannot be read or written, a case that failed;
/// [`Interrupted`] on Ctrl-C.
pub fn bench_arch(args: &BenchArchArgs, connect: &mut Connect<'_>) -> anyhow::Result<()> {
    let mut options = args.options()?;
    let goldens = Goldens::read(args.labels.as_deref())?;
    let absent = leave_out_missing(&mut options)?;
    absent.iter().for_each(|line| eprintln!("{line}"));
    anyhow::ensure!(!options.families.is_empty(), "no family has all of its models");
    let plan = plan_done(cases(&options, &goldens), &args.provenance)?;
    if args.dry_run {
        return describe(args, &options, &plan, &absent);
    }
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let tally = match plan.open.is_empty() {
        true => Tally::default(),
        false => {
            let mut answers = connect(&args.provenance, &interrupt)?;
            ask(&plan, &mut *answers, &interrupt)?
        }
    };
    let mut out = io::stdout().lock();
    if args.json {
        let report = json!({
            "run": options.run, "answered": tally.answered, "answered_before": plan.done,
            "failed": tally.failed, "missing": absent,
        });
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let (now, before) = (tally.answered, plan.done);
        writeln!(out, "{now} answers, and {before} from before, in {}", args.provenance.display())?;
    }
    if interrupt.is_set() {
        return Err(Interrupted.into());
    }
    match tally.failed.as_slice() {
        [] => Ok(()),
        [first, ..] => anyhow::bail!(
            "{} cases failed, the first: {first}; the same command asks them again",
            tally.failed.len()
        ),
    }
}

fn ask(plan: &Plan, answers: &mut dyn Answers, interrupt: &Interrupt) -> anyhow::Result<Tally> {
    let bar = bar(TEMPLATE);
    let mut round = String::new();
    let tally = run(&plan.open, answers, &mut |case: &Case, done, all| {
        let Case { family, layer, backend, warm, repeat, .. } = case;
        let warmth = if *warm { "warm" } else { "cold" };
        let now = format!("{}, {layer}, {backend}, {warmth} {repeat}", family.name);
        if now != round {
            // Where there is no terminal, a line for each round says that work goes on.
            if bar.is_hidden() {
                eprintln!("{now}: {done} of {all} done");
            }
            bar.set_message(now.clone());
            round = now;
        }
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        !interrupt.is_set()
    });
    bar.finish_and_clear();
    tally
}

/// Takes the families out that lack a model, and says of each which, and what to do.
fn leave_out_missing(options: &mut Options) -> anyhow::Result<Vec<String>> {
    let (catalog, store) = (catalog()?, Store::locate()?);
    let listed = |name: &str| catalog.models().iter().find(|model| model.name == name);
    let mut said = Vec::new();
    let mut complete = Vec::new();
    for family in std::mem::take(&mut options.families) {
        let before = said.len();
        for model in family.models() {
            let name = &family.name;
            match listed(model) {
                Some(known) if store.state(known)? != State::Present => said
                    .push(format!("{name} is left out: 'aios pull {model}' fetches what it lacks")),
                None if !Path::new(model).is_file() => said.push(format!(
                    "{name} is left out: there is no file {model}; 'aios bench-arch --help' says \
                     how to make it"
                )),
                _ => {}
            }
        }
        if said.len() == before {
            said.extend(mute(&family, &catalog, &store));
        }
        if said.len() == before {
            complete.push(family);
        }
    }
    options.families = complete;
    Ok(said)
}

/// Says so if a model that would answer for `family` has no chat template. What else is wrong with
/// it shows when it is loaded for the first case.
fn mute(family: &Family, catalog: &Catalog, store: &Store) -> Option<String> {
    if family.chat_template.is_some() {
        return None;
    }
    let without = |name: &&String| {
        let path = match catalog.models().iter().find(|model| model.name == ***name) {
            Some(known) => store.path(known),
            None => PathBuf::from(name),
        };
        Model::load(&path).is_ok_and(|model| model.chat_template().is_none())
    };
    let model = [&family.small, &family.main].into_iter().find(without)?;
    let name = &family.name;
    Some(format!("{name} is left out: {model} has no chat template, so it cannot converse"))
}

fn describe(
    args: &BenchArchArgs,
    options: &Options,
    plan: &Plan,
    absent: &[String],
) -> anyhow::Result<()> {
    let (seconds, measured) = plan.estimate_s();
    let mut out = io::stdout().lock();
    if args.json {
        let report = json!({
            "options": options, "open": plan.open.len(), "answered_before": plan.done,
            "estimate_s": seconds, "estimate_measured": measured, "missing": absent,
        });
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    for family in &options.families {
        let open = plan.open.iter().filter(|case| case.family == *family).count();
        let models: Vec<&str> = family.models().into_iter().collect();
        writeln!(out, "{:8} {open:6} answers  {}", family.name, models.join(", "))?;
    }
    let source = match measured {
        true => "as the answers so far took",
        false => "a guess: some families have no answers yet",
    };
    writeln!(
        out,
        "{} answers to come, {} are there; {} layers, {} memories, {} cold and {} warm repeats, at \
         most {} tokens",
        plan.open.len(),
        plan.done,
        options.layers.len(),
        options.backends.len(),
        options.cold,
        options.repeats,
        options.tokens
    )?;
    Ok(writeln!(out, "about {:.0} minutes ({source})", (seconds / 60.0).ceil())?)
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    /// The benchmark of a file that stands for Phi, with answers of nobody.
    fn bench(folder: &Path, more: &[&str]) -> anyhow::Result<usize> {
        let (log, phi) = (folder.join("p.ndjson"), folder.join("phi.gguf"));
        std::fs::write(&phi, "")?;
        let command = BenchArchArgs::augment_args(clap::Command::new("bench-arch"));
        let given = [log.as_os_str(), "--phi".as_ref(), phi.as_os_str()];
        let args =
            ["bench-arch", "--provenance"].map(std::ffi::OsStr::new).into_iter().chain(given);
        let matches = command.try_get_matches_from(args.chain(more.iter().map(|s| s.as_ref())))?;
        let mut connected = 0;
        bench_arch(&BenchArchArgs::from_arg_matches(&matches)?, &mut |_, _| {
            connected += 1;
            anyhow::bail!("nobody answers")
        })?;
        Ok(connected)
    }

    #[test]
    fn a_plan_is_shown_without_anything_being_loaded_or_written() {
        let folder = tempfile::tempdir().unwrap();
        let found = bench(folder.path(), &["--families", "phi", "--dry-run"]).unwrap();
        assert_eq!(found, 0);
        assert!(!folder.path().join("p.ndjson").exists());
        let error = bench(folder.path(), &["--families", "phi"]).unwrap_err().to_string();
        assert_eq!(error, "nobody answers");
        let error = bench(folder.path(), &["--families", "fish"]).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("no family \"fish\", only"));
        assert!(bench(folder.path(), &["--tokens", "0"]).unwrap_err().is::<Usage>());
    }
}
