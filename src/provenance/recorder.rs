//! From what an engine did to a record of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aios_engine::{GenerationStats, Model, SamplerOptions, Session, SpecStats};
use aios_residency::plan::hex;
use aios_validation::synth::Quant;
use jiff::civil::DateTime;
use sha2::{Digest, Sha256};

use super::digests;
use super::error::ProvenanceError;
use super::log::Log;
use super::record::{
    Bench, Env, ExecutionMode, Figure, Layer, ModelFile, Phases, Plan, Quality, Record, Request,
    Retrieval, Routing, Sampling, SpecDecode, Tokens,
};
use crate::digests::of_files;
use crate::router::Tier;

/// A log that several recorders share.
pub type SharedLog = Arc<Mutex<Log>>;

/// A model's part in answers.
#[derive(Clone, Debug)]
pub struct Part {
    /// `main`, `sd` or `embedder`.
    pub part: &'static str,
    /// The name that it goes by.
    pub name: String,
    /// The model.
    pub model: Arc<Model>,
    /// The SHA-256 of its files.
    pub sha256: String,
}

impl Part {
    /// Digests the files of `model`, or takes the digest from `cache`; see [`of_files`].
    ///
    /// # Errors
    /// Those of [`of_files`].
    pub fn new(
        part: &'static str,
        name: &str,
        model: Arc<Model>,
        cache: Option<&Path>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> std::io::Result<Self> {
        let sha256 = of_files(&model.files(), cache, progress)?;
        // A path's last part without its ending; the point in a name like qwen2.5 begins none.
        let is_path = name.contains('/') || name.ends_with(".gguf");
        let stem = Path::new(name).file_stem().filter(|_| is_path);
        let name = stem.map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
        Ok(Self { part, name, model, sha256 })
    }

    fn files(&self) -> Vec<ModelFile> {
        let file = |path: PathBuf| {
            let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            ModelFile { path: fs::canonicalize(&path).unwrap_or(path), bytes }
        };
        self.model.files().into_iter().map(file).collect()
    }

    /// The name of the mix that the file says it has, or else of the format of most of its bytes.
    fn quant(&self) -> Option<String> {
        let stated = self.model.metadata().u64("general.file_type").ok().flatten();
        let mix = Quant::all().find(|quant| Some(u64::from(quant.file_type())) == stated);
        let most = || self.model.dtypes().first().map(|(dtype, _)| dtype.to_string());
        mix.map(|mix| mix.name().to_owned()).or_else(most)
    }
}

/// What is the same for all requests to a session.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The part of the system that answers.
    pub core: String,
    /// Its models, the main one first.
    pub parts: Vec<Part>,
    /// The option that asked for drafts; `None` if nothing is drafted.
    pub spec_mode: Option<String>,
    /// Whether `--deterministic` was asked for.
    pub deterministic: bool,
    /// Whether ids are left out.
    pub private: bool,
    /// The SHA-256 of the chat template that renders prompts, if one does.
    pub chat_template_sha256: Option<String>,
}

/// What other parts of the system say of the next request.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// The part that answers, if it is another than the subject's.
    pub core: Option<String>,
    /// The tier that the router chose.
    pub router_tier: Option<Tier>,
    /// How it came to that.
    pub router: Option<Routing>,
    /// What was retrieved.
    pub retrieval: Option<Retrieval>,
    /// How the prompt was assembled.
    pub layer: Option<Layer>,
    /// The benchmark that asks.
    pub bench: Option<Bench>,
    /// When the request came, if that was before its prompt was rendered: loading a model and
    /// retrieving are parts of the latency.
    pub since: Option<Instant>,
}

/// A prompt on its way to the model.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The SHA-256 of its text.
    pub text_sha256: Option<String>,
    /// The time that a template was told.
    pub clock: Option<DateTime>,
    /// When the request came.
    pub since: Instant,
    /// When it did, for people.
    pub ts: jiff::Timestamp,
    /// The time that rendering and tokenising took.
    pub took: Duration,
}

impl Prompt {
    /// A prompt that was rendered as `text` for a request that came at `since`.
    pub fn new(ids: Vec<u32>, text: &str, clock: Option<DateTime>, since: Instant) -> Self {
        let text_sha256 = Some(hex(&Sha256::digest(text)));
        let ts = jiff::Timestamp::now();
        Self { ids, text_sha256, clock, since, ts, took: since.elapsed() }
    }
}

/// What became of a prompt.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The tokens of the answer.
    pub output: Vec<u32>,
    /// What it cost; `None` if generating did not begin.
    pub stats: Option<GenerationStats>,
    /// Why it ended; `None` if it failed.
    pub stop_reason: Option<String>,
    /// From the request to the first text.
    pub first_text: Option<Duration>,
    /// What failed.
    pub error: Option<String>,
}

/// Keeps a record of every answer of a session.
#[derive(Debug)]
pub struct Recorder {
    log: SharedLog,
    subject: Subject,
    env: Env,
    tokenizer_sha256: Option<String>,
    notes: Notes,
    unrecorded: u64,
    complaint: Option<String>,
    last: Option<Record>,
}

impl Recorder {
    /// Records the answers of `session`, whose states are digested from now on.
    pub fn new(log: SharedLog, subject: Subject, session: &mut Session) -> Self {
        session.trace_states(true);
        let tokenizer_sha256 = subject.parts.first().map(|part| digests::of_tokenizer(&part.model));
        let notes = Notes::default();
        let env = environment();
        Self {
            log,
            subject,
            env,
            tokenizer_sha256,
            notes,
            unrecorded: 0,
            complaint: None,
            last: None,
        }
    }

    /// Says more of the next request.
    pub fn annotate(&mut self, notes: Notes) {
        self.notes = notes;
    }

    /// The record of the last answer, if it was kept.
    pub const fn last(&self) -> Option<&Record> {
        self.last.as_ref()
    }

    /// Answers that could not be recorded.
    pub const fn unrecorded(&self) -> u64 {
        self.unrecorded
    }

    /// Why the last answer could not be recorded, once.
    pub fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    /// Records what became of `prompt` in `session`. That this fails is kept as a complaint, since
    /// the answer is there all the same.
    pub fn record(
        &mut self,
        session: &Session,
        prompt: &Prompt,
        sampling: (&SamplerOptions, Option<u64>, bool),
        outcome: &Outcome,
    ) {
        self.last = None;
        let request = self.request(session, prompt, sampling, outcome);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        match log.append(request) {
            Ok(receipt) => self.last = Some(receipt.record),
            Err(error) => {
                self.unrecorded += 1;
                self.complaint = Some(not_recorded(&error));
            }
        }
    }

    fn request(
        &mut self,
        session: &Session,
        prompt: &Prompt,
        (sampling, max_tokens, ignore_eos): (&SamplerOptions, Option<u64>, bool),
        outcome: &Outcome,
    ) -> Request {
        let notes = std::mem::take(&mut self.notes);
        let subject = &self.subject;
        let stats = outcome.stats.as_ref();
        let by_part = |of: &dyn Fn(&Part) -> Option<String>| -> BTreeMap<String, String> {
            let parts = subject.parts.iter();
            parts.filter_map(|part| Some((part.part.to_owned(), of(part)?))).collect()
        };
        let megabytes = |bytes: Option<f64>| bytes.map(|bytes| Figure::counted(bytes / 1e6));
        let speculation = stats.and_then(|stats| stats.speculation.as_ref());
        let failed = outcome.error.is_some();
        let hidden = stats.and_then(|stats| stats.states).filter(|_| !failed);
        let mode = ExecutionMode::of(subject.parts.iter().map(|part| &*part.model));
        let (git_rev, dirty_tree) = revision();
        Request {
            ts: format!("{:.3}", prompt.ts),
            core: notes.core.unwrap_or_else(|| subject.core.clone()),
            execution_mode: mode,
            git_rev,
            dirty_tree,
            env: used(&self.env, session),
            models: by_part(&|part| Some(part.name.clone())),
            model_hashes: by_part(&|part| Some(part.sha256.clone())),
            model_files: subject.parts.iter().map(|p| (p.part.to_owned(), p.files())).collect(),
            architectures: by_part(&|part| {
                part.model.metadata().str("general.architecture").ok().flatten().map(str::to_owned)
            }),
            quant: by_part(&Part::quant),
            tokenizer_sha256: self.tokenizer_sha256.clone(),
            chat_template_sha256: subject.chat_template_sha256.clone(),
            router_tier: notes.router_tier,
            router: notes.router,
            retrieval: notes.retrieval,
            layer: notes.layer,
            bench: notes.bench,
            spec_decode: subject.spec_mode.as_ref().zip(speculation).map(drafted),
            latency_ms: Some(milliseconds(notes.since.unwrap_or(prompt.since).elapsed())),
            phases: phases(prompt, outcome),
            deterministic: subject.deterministic,
            clock: prompt.clock.map(|clock| clock.to_string()),
            sampling: sampled(sampling, max_tokens, ignore_eos),
            quality: quality(session),
            plan: plan(session, stats),
            tokens: tokens(prompt, outcome, subject.private),
            hidden_sha256: hidden.map(|digest| hex(&digest)),
            mb_per_token: megabytes(stats.and_then(GenerationStats::bytes_per_token)),
            disk_mb_per_token: megabytes(stats.and_then(GenerationStats::disk_bytes_per_token)),
            stop_reason: outcome.stop_reason.clone().filter(|_| !failed),
            error: outcome.error.clone(),
        }
    }
}

fn not_recorded(error: &ProvenanceError) -> String {
    format!("this answer is not recorded: {error}")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The revision that the program was built from, and whether it was changed.
pub fn revision() -> (Option<String>, Option<bool>) {
    match env!("AIOS_REVISION") {
        "unknown" => (None, None),
        built => match built.strip_suffix("-dirty") {
            Some(rev) => (Some(rev.to_owned()), Some(true)),
            None => (Some(built.to_owned()), Some(false)),
        },
    }
}

/// The machine.
pub fn environment() -> Env {
    let report = crate::doctor::Report::collect(Path::new("/"));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let platform = [os, release.trim(), arch].into_iter().filter(|part| !part.is_empty());
    Env {
        platform: platform.collect::<Vec<_>>().join(" "),
        cpu_model: report.cpu.model,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        processors: Some(report.cpu.allowed.len() as u64).filter(|count| *count > 0),
        memory_bytes: report.memory.total_bytes,
        hypervisor: Some(report.cpu.hypervisor),
        ..Env::default()
    }
}

/// The machine as `session` uses it.
pub fn used(env: &Env, session: &Session) -> Env {
    let options = session.executor().options();
    Env {
        isa: Some(options.isa.name().name().to_owned()),
        kernels: Some(options.isa.description().to_owned()),
        threads: Some(options.threads as u64),
        threads_batch: Some(options.threads_batch as u64),
        ..env.clone()
    }
}

fn drafted((mode, stats): (&String, &SpecStats)) -> SpecDecode {
    SpecDecode {
        mode: mode.clone(),
        accept_rate: stats.accept_rate(),
        drafted: stats.drafted,
        accepted: stats.accepted,
        passes: stats.passes,
        tokens_per_pass: stats.tokens_per_pass(),
        failure: stats.failure.clone(),
    }
}

fn phases(prompt: &Prompt, outcome: &Outcome) -> Phases {
    let stats = outcome.stats.as_ref();
    let speculation = stats.and_then(|stats| stats.speculation.as_ref());
    Phases {
        prompt_ms: Some(milliseconds(prompt.took)),
        prefill_ms: stats.map(|stats| milliseconds(stats.prefill)),
        decode_ms: stats.map(|stats| milliseconds(stats.decode)),
        draft_ms: speculation.map(|stats| milliseconds(stats.draft)),
        verify_ms: speculation.map(|stats| milliseconds(stats.verify)),
        first_text_ms: outcome.first_text.map(milliseconds),
    }
}

fn sampled(options: &SamplerOptions, max_tokens: Option<u64>, ignore_eos: bool) -> Sampling {
    Sampling {
        temperature: options.temperature,
        top_k: options.top_k as u64,
        top_p: options.top_p,
        min_p: options.min_p,
        repeat_penalty: options.repeat_penalty,
        repeat_last_n: options.repeat_last_n as u64,
        seed: options.seed,
        max_tokens,
        ignore_eos,
        stop: Vec::new(),
    }
}

fn quality(session: &Session) -> Quality {
    let options = session.executor().options();
    let thresholds = session.executor().thresholds().and_then(|found| found.sha256());
    Quality {
        cache_k: options.cache_k.to_string(),
        cache_v: options.cache_v.to_string(),
        kv_tiers: options.kv_tiers.to_string(),
        exact: options.exact,
        context: options.context as u64,
        ffn_thresholds_sha256: thresholds.map(str::to_owned),
    }
}

fn plan(session: &Session, stats: Option<&GenerationStats>) -> Plan {
    let (executor, residency) = (session.executor(), stats.map(|stats| &stats.residency));
    let screen = executor.model().head_screen().filter(|_| executor.screens_head());
    let zeros = executor.model().ffn_neurons().filter(|_| executor.skips_zeros());
    let ladder = residency.into_iter().flat_map(|residency| &residency.ladder);
    Plan {
        ram_bytes: executor.options().ram,
        hot_bytes: residency.map(|residency| residency.hot_bytes),
        warm_bytes: residency.map(|residency| residency.warm_bytes),
        stream_bytes: residency.map(|residency| residency.stream_bytes),
        ladder: ladder.map(|step| step.name().to_owned()).collect(),
        repacked: executor.model().is_repacked(),
        batch: Some(executor.options().batch as u64),
        screen_sha256: screen.map(|screen| screen.sha256().to_owned()),
        screen_positions_most: screen.map(|screen| screen.limits().greedy as u64),
        zeros_sha256: zeros.map(|neurons| neurons.sha256().to_owned()),
        peak_resident_bytes: aios_residency::peak_resident_bytes(),
    }
}

fn tokens(prompt: &Prompt, outcome: &Outcome, private: bool) -> Tokens {
    let shown = |ids: &Vec<u32>| (!private).then(|| ids.clone());
    Tokens {
        private,
        prompt: prompt.ids.len() as u64,
        reused: outcome.stats.as_ref().map(|stats| stats.reused_tokens as u64),
        output: outcome.output.len() as u64,
        prompt_text_sha256: prompt.text_sha256.clone(),
        prompt_ids_sha256: digests::of_ids(&prompt.ids),
        output_ids_sha256: digests::of_ids(&outcome.output),
        prompt_ids: shown(&prompt.ids),
        output_ids: shown(&outcome.output),
    }
}
