//! What is to be asked, and what has been answered already.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::provenance::{ProvenanceError, Record, verify};
use crate::results::{Golden, Goldens};

/// The layers that are compared.
pub const LAYERS: [&str; 2] = ["luna", "basic"];
/// The backends of memory that are compared.
pub const BACKENDS: [&str; 2] = ["carma", "simple_rag"];

/// How the benchmark is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The name of the run, which its records have. A run that is named again goes on.
    pub run: String,
    /// The families, each with its models.
    pub families: Vec<Family>,
    /// The layers.
    pub layers: Vec<String>,
    /// The backends of memory.
    pub backends: Vec<String>,
    /// How often each prompt is asked, warm.
    pub repeats: u64,
    /// How often each prompt is asked of models that were just loaded.
    pub cold: u64,
    /// The most tokens of an answer.
    pub tokens: u64,
}

/// A family of models and who does what in it. A model is a name that `aios models` lists, or a
/// file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Its name, as results have it.
    pub name: String,
    /// Answers what is simple.
    pub small: String,
    /// Answers everything else.
    pub main: String,
    /// Drafts for the main model; without one, drafts are looked up in the text.
    #[serde(default)]
    pub draft: Option<String>,
    /// The chat template of its models instead of their own: a name that is built in, or a file.
    #[serde(default)]
    pub chat_template: Option<PathBuf>,
}

impl Family {
    fn new(name: &str, small: &str, main: &str) -> Self {
        let own = str::to_owned;
        let (name, small, main) = (own(name), own(small), own(main));
        Self { name, small, main, draft: None, chat_template: None }
    }

    /// Its models, each once.
    pub fn models(&self) -> BTreeSet<&str> {
        [&self.small, &self.main].into_iter().chain(&self.draft).map(String::as_str).collect()
    }
}

/// The families that are benchmarked unless others are named. That of Phi is a file of random
/// weights, which `aios synth` makes; Gemma's is a base model, which is told the turns of its
/// family's instruction-tuned ones.
pub fn families() -> Vec<Family> {
    let smollm = "smollm2-135m-instruct";
    let [half, large] = ["qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"];
    let (gemma, phi) = ("gemma-3-270m", "phi-synthetic.gguf");
    vec![
        Family::new("LLaMA", smollm, smollm),
        Family { draft: Some(half.to_owned()), ..Family::new("Qwen", half, large) },
        Family {
            chat_template: Some(PathBuf::from("gemma")),
            ..Family::new("Gemma", gemma, gemma)
        },
        Family::new("Phi", phi, phi),
    ]
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run: "bench-arch".to_owned(),
            families: families(),
            layers: LAYERS.map(str::to_owned).to_vec(),
            backends: BACKENDS.map(str::to_owned).to_vec(),
            repeats: 3,
            cold: 1,
            tokens: 64,
        }
    }
}

impl Options {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        let known = |what: &str, names: &[String], all: &[&str]| {
            let foreign = names.iter().find(|name| !all.contains(&name.as_str()));
            match foreign {
                Some(name) => Err(format!("{what}: there is no {name:?}, only {}", all.join(", "))),
                None if names.is_empty() => Err(format!("{what} is empty; name at least one")),
                None => Ok(()),
            }
        };
        known("layers", &self.layers, &LAYERS)?;
        known("backends", &self.backends, &BACKENDS)?;
        let names: BTreeSet<String> = self.families.iter().map(|f| f.name.to_lowercase()).collect();
        match () {
            () if self.run.is_empty() => Err("run is empty; give it a name".to_owned()),
            () if self.families.is_empty() => {
                Err("families is empty; name at least one".to_owned())
            }
            () if names.len() < self.families.len() => Err("families has a name twice".to_owned()),
            () if self.tokens == 0 => Err("tokens is 0; an answer needs at least 1".to_owned()),
            () if self.repeats + self.cold == 0 => {
                Err("repeats and cold are 0; nothing would be asked".to_owned())
            }
            () if self.repeats.max(self.cold) > 10_000 => {
                Err("repeats and cold must be at most 10000".to_owned())
            }
            () => Ok(()),
        }
    }
}

/// A request of the benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The name of the run.
    pub run: String,
    /// The models.
    pub family: Family,
    /// `luna` or `basic`.
    pub layer: String,
    /// `carma` or `simple_rag`.
    pub backend: String,
    /// The prompt, its id and its label.
    pub prompt: Golden,
    /// Whether the models are loaded and have answered. If not, they are to be unloaded first.
    pub warm: bool,
    /// Which repeat, from 0.
    pub repeat: u64,
    /// The most tokens of the answer.
    pub tokens: u64,
}

/// What tells one case from another in records.
type Key = (String, String, String, String, bool, u64);

impl Case {
    fn key(&self) -> Key {
        let Self { family, layer, backend, prompt, warm, repeat, .. } = self;
        (family.name.clone(), layer.clone(), backend.clone(), prompt.id.clone(), *warm, *repeat)
    }
}

/// Every case, in the order in which models are loaded least often.
pub fn cases(options: &Options, goldens: &Goldens) -> Vec<Case> {
    let rounds = (0..options.cold).map(|repeat| (false, repeat));
    let rounds: Vec<(bool, u64)> = rounds.chain((0..options.repeats).map(|n| (true, n))).collect();
    let mut cases = Vec::new();
    for family in &options.families {
        for (warm, repeat) in &rounds {
            for layer in &options.layers {
                for backend in &options.backends {
                    cases.extend(goldens.prompts().iter().map(|prompt| Case {
                        run: options.run.clone(),
                        family: family.clone(),
                        layer: layer.clone(),
                        backend: backend.clone(),
                        prompt: prompt.clone(),
                        warm: *warm,
                        repeat: *repeat,
                        tokens: options.tokens,
                    }));
                }
            }
        }
    }
    cases
}

/// What there is to do, and what that took before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Cases that have no answer.
    pub open: Vec<Case>,
    /// Cases that have one.
    pub done: usize,
    /// Seconds of an answer so far, by family.
    seconds: std::collections::BTreeMap<String, (f64, usize)>,
}

/// What a case is taken to need before any was answered, in seconds.
pub const SECONDS_PER_CASE: f64 = 5.0;

impl Plan {
    /// Seconds that the open cases will take, and whether that comes from answers of each family.
    pub fn estimate_s(&self) -> (f64, bool) {
        let mut measured = true;
        let seconds = self.open.iter().map(|case| match self.seconds.get(&case.family.name) {
            Some((sum, n)) => sum / *n as f64,
            None => {
                measured = false;
                SECONDS_PER_CASE
            }
        });
        (seconds.sum(), measured)
    }
}

/// Those of `cases` that the log at `path` has no answer of. A case that failed, or that went
/// without its memory, is open.
///
/// # Errors
/// [`ProvenanceError`]; a log that is not there has no answers.
pub fn plan_done(cases: Vec<Case>, path: &Path) -> Result<Plan, ProvenanceError> {
    let mut plan = Plan::default();
    let Some(run) = cases.first().map(|case| case.run.clone()) else { return Ok(plan) };
    let mut answered = BTreeSet::new();
    let read = verify(path, None, &mut |record, _| {
        let of_run = record.request.bench.as_ref().is_some_and(|bench| bench.run == run);
        if let Some(key) = key_of(&record).filter(|_| of_run) {
            let ms = record.request.latency_ms.unwrap_or(0.0);
            let (sum, n) = plan.seconds.entry(key.0.clone()).or_default();
            (*sum, *n) = (*sum + ms / 1e3, *n + 1);
            answered.insert(key);
        }
        Ok(())
    });
    match read {
        Ok(_) | Err(ProvenanceError::Missing(_)) => {}
        Err(error) => return Err(error),
    }
    let all = cases.len();
    plan.open = cases.into_iter().filter(|case| !answered.contains(&case.key())).collect();
    plan.done = all - plan.open.len();
    Ok(plan)
}

/// The case that a record is an answer of; `None` if it is none, or failed.
fn key_of(record: &Record) -> Option<Key> {
    let of = &record.request;
    let (bench, retrieval) = (of.bench.as_ref()?, of.retrieval.as_ref()?);
    let answered = of.error.is_none() && retrieval.degraded.is_none();
    answered.then_some(())?;
    Some((
        bench.family.clone()?,
        of.layer.as_ref()?.name.clone(),
        retrieval.backend.clone(),
        bench.prompt.clone(),
        bench.warm?,
        bench.repeat,
    ))
}

/// Whether `record` is of `case`, or what of it is not.
pub(super) fn belongs(record: &Record, case: &Case) -> Result<(), String> {
    let of = &record.request;
    let bench = of.bench.as_ref().ok_or("it does not name the benchmark")?;
    if bench.run != case.run {
        return Err(format!("it is of the run {:?}", bench.run));
    }
    if of.error.is_some() || of.retrieval.as_ref().is_some_and(|r| r.degraded.is_some()) {
        // It says so itself, and is asked again in the next run.
        return Ok(());
    }
    match key_of(record) {
        Some(key) if key == case.key() => Ok(()),
        Some(key) => Err(format!("it is of {key:?}, not {:?}", case.key())),
        None => Err("it lacks family, layer, retrieval or warmth".to_owned()),
    }
}
