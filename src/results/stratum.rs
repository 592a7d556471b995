//! Reading logs: which records belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::answer::{Answer, Case, Failed, Outcome, outcome};
use super::error::ResultsError;
use super::golden::Goldens;
use crate::provenance::{ExecutionMode, ProvenanceError, Record, Request, verify};

/// Which records become results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only runs of the benchmark whose name has this in it.
    pub bench: Option<String>,
    /// Only records of this mode.
    pub mode: Option<ExecutionMode>,
    /// Let records of several modes or revisions stand beside each other, each with its label.
    pub allow_mixed: bool,
}

/// What must be the same for figures to be taken together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// What answered.
    pub mode: ExecutionMode,
    /// The revision of the program, and whether its sources were changed.
    pub revision: String,
}

impl Condition {
    fn of(request: &Request) -> Self {
        let short = |rev: &str| rev.chars().take(12).collect::<String>();
        let mut revision = request.git_rev.as_deref().map_or("unknown".to_owned(), short);
        if request.dirty_tree == Some(true) {
            revision.push_str("+changes");
        }
        Self { mode: request.execution_mode, revision }
    }

    /// How a heading names it.
    pub fn label(&self) -> String {
        format!("{}, revision {}", self.mode.name(), self.revision)
    }
}

/// One environment of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// What it was, by name of the column.
    pub columns: Vec<(&'static str, String)>,
    /// Answers in it.
    pub answers: u64,
    /// Answers that failed in it.
    pub failed: u64,
}

/// Answers under one condition.
#[derive(Clone, Debug, Default)]
pub struct Stratum {
    /// Answers, one for each case.
    pub answers: Vec<Answer>,
    /// Environments.
    pub surroundings: Vec<Surroundings>,
    /// Failed answers whose cases were never answered.
    pub unanswered: usize,
    failed: Vec<Failed>,
}

/// What there is to report.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Answers by condition.
    pub strata: BTreeMap<Condition, Stratum>,
    /// What a reader should know beside the figures.
    pub notes: Vec<String>,
}

/// The results of the logs at `inputs`.
///
/// # Errors
/// [`ResultsError`].
pub fn read(
    inputs: &[PathBuf],
    goldens: &Goldens,
    options: &Options,
) -> Result<Results, ResultsError> {
    let mut intake = Intake { goldens, options, results: Results::default(), seen: 0, other: 0 };
    for path in inputs {
        intake.log(path)?;
    }
    intake.finish()
}

struct Intake<'a> {
    goldens: &'a Goldens,
    options: &'a Options,
    results: Results,
    seen: u64,
    other: u64,
}

impl Intake<'_> {
    fn log(&mut self, path: &Path) -> Result<(), ResultsError> {
        // A refusal is kept until the log was read: what is wrong with the log comes first.
        let mut refused = None;
        let verified = verify(path, None, &mut |record, _| {
            if refused.is_none() {
                refused = self.record(&record, path).err();
            }
            Ok::<(), ProvenanceError>(())
        })?;
        if let Some(fault) = verified.faults.into_iter().next() {
            return Err(ResultsError::Broken { path: path.to_owned(), fault });
        }
        if !verified.torn.is_empty() {
            let n = verified.torn.len();
            let note = format!("{}: lines torn by crashes: {n}", path.display());
            self.results.notes.push(note);
        }
        refused.map_or(Ok(()), Err)
    }

    fn record(&mut self, record: &Record, path: &Path) -> Result<(), ResultsError> {
        self.seen += 1;
        let of = &record.request;
        let chosen = of.bench.as_ref().is_some_and(|bench| {
            self.options.bench.as_ref().is_none_or(|filter| bench.run.contains(filter))
        }) && self.options.mode.is_none_or(|mode| mode == of.execution_mode);
        if !chosen {
            self.other += 1;
            return Ok(());
        }
        let Some(outcome) = outcome(record, path, self.goldens)? else { return Ok(()) };
        let stratum = self.results.strata.entry(Condition::of(of)).or_default();
        let failed = matches!(outcome, Outcome::Failed(_));
        stratum.surrounded(of, failed);
        match outcome {
            Outcome::Answered(answer) => stratum.answers.push(*answer),
            Outcome::Failed(failed) => stratum.failed.push(failed),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Results, ResultsError> {
        let results = &mut self.results;
        if results.strata.values().all(|stratum| stratum.answers.is_empty()) {
            let mode = self.options.mode.map(|mode| format!("--execution-mode {}", mode.name()));
            let run = self.options.bench.as_ref().map(|run| format!("--bench {run}"));
            let filter: Vec<String> = run.into_iter().chain(mode).collect();
            let filter = (!filter.is_empty()).then(|| filter.join(" "));
            return Err(ResultsError::Nothing { records: self.seen, filter });
        }
        if results.strata.len() > 1 && !self.options.allow_mixed {
            let found = results.strata.keys().map(Condition::label).collect();
            return Err(ResultsError::Mixed { found });
        }
        if self.other > 0 {
            let note = format!("{} of {} records were not chosen", self.other, self.seen);
            results.notes.push(note);
        }
        let mut cases: BTreeMap<Case, String> = BTreeMap::new();
        for (condition, stratum) in &mut results.strata {
            for answer in &stratum.answers {
                let Some(first) = cases.insert(answer.case.clone(), answer.place.clone()) else {
                    continue;
                };
                let (case, second) = (answer.case.to_string(), answer.place.clone());
                return Err(ResultsError::Twice { case, first, second });
            }
            stratum.count_unanswered();
            if stratum.unanswered > 0 {
                let (n, label) = (stratum.unanswered, condition.label());
                let note =
                    format!("cases that failed and have no answer: {n} ({label}); run them again");
                results.notes.push(note);
            }
        }
        Ok(self.results)
    }
}

impl Stratum {
    fn surrounded(&mut self, request: &Request, failed: bool) {
        let columns = surroundings(request);
        let known = self.surroundings.iter().position(|known| known.columns == columns);
        let index = known.unwrap_or_else(|| {
            self.surroundings.push(Surroundings { columns, ..Surroundings::default() });
            self.surroundings.len() - 1
        });
        match failed {
            true => self.surroundings[index].failed += 1,
            false => self.surroundings[index].answers += 1,
        }
    }

    fn count_unanswered(&mut self) {
        let again = |failed: &Failed| {
            self.answers.iter().any(|Answer { case, .. }| {
                let key = (&case.family, &case.prompt, Some(case.warm), case.repeat);
                let (family, prompt, warm, repeat) = &failed.key;
                let is = |name: &Option<String>, of: &String| name.as_ref().is_none_or(|n| n == of);
                failed.run == case.run
                    && key == (family, prompt, *warm, *repeat)
                    && is(&failed.arm.0, &case.layer)
                    && is(&failed.arm.1, &case.backend)
            })
        };
        let mut seen = BTreeSet::new();
        let unanswered = self.failed.iter().filter(|failed| !again(failed));
        self.unanswered = unanswered.filter(|f| seen.insert((&f.run, &f.key, &f.arm))).count();
    }
}

/// The columns of the table of environments.
fn surroundings(request: &Request) -> Vec<(&'static str, String)> {
    let text = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    let number = |value: Option<u64>| text(value.map(|value| value.to_string()));
    let env = &request.env;
    let bench = request.bench.as_ref();
    let part = |(part, name): (&String, &String)| {
        let quant = request.quant.get(part).map_or("unknown", String::as_str);
        let hash = request.model_hashes.get(part).map_or("unknown", String::as_str);
        format!("{part} {name} {quant} {}", hash.get(..12).unwrap_or(hash))
    };
    let sampling = &request.sampling;
    let yes = |value: Option<bool>| text(value.map(|v| if v { "yes" } else { "no" }.to_owned()));
    vec![
        ("run", text(bench.map(|bench| bench.run.clone()))),
        ("family", text(bench.and_then(|bench| bench.family.clone()))),
        ("models", request.models.iter().map(part).collect::<Vec<_>>().join(", ")),
        ("program", env.program.clone()),
        ("platform", env.platform.clone()),
        ("cpu", text(env.cpu_model.clone())),
        ("processors", number(env.processors)),
        ("memory_bytes", number(env.memory_bytes)),
        ("virtual_machine", yes(env.hypervisor)),
        ("kernels", text(env.kernels.clone())),
        ("threads", number(env.threads)),
        ("threads_batch", number(env.threads_batch)),
        ("drafts", text(request.spec_decode.as_ref().map(|spec| spec.mode.clone()))),
        ("deterministic", yes(Some(request.deterministic))),
        ("temperature", sampling.temperature.to_string()),
        ("seed", sampling.seed.to_string()),
        ("tokens_most", sampling.max_tokens.map_or("none".to_owned(), |n| n.to_string())),
        ("context", request.quality.context.to_string()),
    ]
}
