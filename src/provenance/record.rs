//! The record of a request (SPEC Z1 to Z4). The names of the first fields are those of the paper
//! that the project follows. What was not measured, or has no meaning for the request, is null.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aios_engine::{KvTiering, Model};
use serde::{Deserialize, Serialize};

use crate::router::Tier;

/// The version of the record's form. Fields may be added to a version, not changed.
pub const SCHEMA: u32 = 1;

/// A record, as one line of a file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its number, from 1, over all files of a log.
    pub id: u64,
    /// The SHA-256 of the line before it, without the line break; null in record 1.
    pub prev_sha256: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub request: Request,
}

/// What is said of a request. Models have the names of their parts: `main`, `sd` (the draft model)
/// and `embedder`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// When it came, UTC, RFC 3339.
    pub ts: String,
    /// The part of the system that answered: `run`, `chat`, `luna`.
    pub core: String,
    /// What the answer comes from.
    pub execution_mode: ExecutionMode,
    /// The revision of the program; null if it was built without one.
    pub git_rev: Option<String>,
    /// Whether the program was built from changed sources.
    pub dirty_tree: Option<bool>,
    /// The machine and how it was used.
    pub env: Env,
    /// Names of models by part.
    pub models: BTreeMap<String, String>,
    /// SHA-256 of their files' bytes, those of a split model one after another.
    pub model_hashes: BTreeMap<String, String>,
    /// Their files.
    pub model_files: BTreeMap<String, Vec<ModelFile>>,
    /// Their `general.architecture`.
    pub architectures: BTreeMap<String, String>,
    /// The formats that hold most of their bytes.
    pub quant: BTreeMap<String, String>,
    /// SHA-256 of the tokenizer's keys and of the file's chat template (Z4).
    pub tokenizer_sha256: Option<String>,
    /// SHA-256 of the chat template that rendered the prompt; null if none did.
    #[serde(default)]
    pub chat_template_sha256: Option<String>,
    /// The tier that the router chose.
    #[serde(default)]
    pub router_tier: Option<Tier>,
    /// How it came to that.
    #[serde(default)]
    pub router: Option<Routing>,
    /// What was retrieved for the prompt.
    #[serde(default)]
    pub retrieval: Option<Retrieval>,
    /// How the prompt was assembled.
    #[serde(default)]
    pub layer: Option<Layer>,
    /// The benchmark that asked, if one did.
    #[serde(default)]
    pub bench: Option<Bench>,
    /// What was drafted; null if nothing was to be.
    pub spec_decode: Option<SpecDecode>,
    /// From the request to the last token.
    pub latency_ms: Option<f64>,
    /// Parts of that.
    pub phases: Phases,
    /// Whether `--deterministic` was asked for.
    pub deterministic: bool,
    /// The time that the chat template was told, if there was one.
    pub clock: Option<String>,
    /// How tokens were chosen.
    pub sampling: Sampling,
    /// What else decides about numbers (P1) and ends.
    pub quality: Quality,
    /// What decides about speed alone.
    pub plan: Plan,
    /// The prompt and the answer.
    pub tokens: Tokens,
    /// The digest of the final normed states (Z5).
    pub hidden_sha256: Option<String>,
    /// 10⁶ bytes read for a token, and how that was found out.
    pub mb_per_token: Option<Figure>,
    /// The same of what came from disk.
    pub disk_mb_per_token: Option<Figure>,
    /// Why the answer ended; null if it failed.
    pub stop_reason: Option<String>,
    /// What failed.
    pub error: Option<String>,
}

/// What an answer comes from. It is stamped by what ran, never by what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionMode {
    /// A model with weights that were trained.
    Real,
    /// A model, one of whose files is stamped as random (SPEC Y1).
    Synthetic,
    /// No model.
    Mock,
}

impl ExecutionMode {
    /// The mode of an answer by `models`; without any there is no model behind it.
    pub fn of<'a>(models: impl IntoIterator<Item = &'a Model>) -> Self {
        let modes = models.into_iter().map(|model| {
            let synthetic = aios_validation::report::is_synthetic(model.metadata());
            if synthetic { Self::Synthetic } else { Self::Real }
        });
        modes.max().unwrap_or(Self::Mock)
    }

    /// The spelling in a record.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Synthetic => "synthetic",
            Self::Mock => "mock",
        }
    }
}

/// The machine and how it was used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Env {
    /// Python has no part in an answer: null.
    pub python_version: Option<String>,
    /// Operating system, its release, and the processor's family.
    pub platform: String,
    /// The name that the processor gives itself.
    pub cpu_model: Option<String>,
    /// No graphics processor has a part in an answer: null.
    pub gpu: Option<String>,
    /// Version of the program.
    pub program: String,
    /// The instruction set: `scalar`, `avx2` or `avx512`.
    pub isa: Option<String>,
    /// The kernels chosen for it, with extensions: `avx512+vnni`.
    pub kernels: Option<String>,
    /// Threads that generate.
    pub threads: Option<u64>,
    /// Threads that read prompts.
    pub threads_batch: Option<u64>,
    /// Processors that the process may use.
    pub processors: Option<u64>,
    /// Bytes of memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Whether it is a virtual machine.
    pub hypervisor: Option<bool>,
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Where it was.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// How a tier was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    /// Of the scorer.
    pub scorer_version: String,
    /// Its score.
    pub score: Option<f64>,
    /// The distance of the score from the next tier.
    pub margin: Option<f64>,
    /// What the score was made of.
    pub features: BTreeMap<String, f64>,
    /// The most tokens of the answer that the tier allows.
    pub budget: Option<u64>,
    /// Why, for people.
    pub reason: Option<String>,
    /// Whether the user chose it.
    pub forced: bool,
}

/// What was retrieved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// `carma`, `simple_rag`, `bm25`.
    pub backend: String,
    /// Fragments that were returned.
    pub fragments_found: Option<u64>,
    /// Of the candidates, those that passed the threshold.
    pub fragments_relevant: Option<u64>,
    /// Whether vectors had a part in it.
    pub dense: Option<bool>,
    /// Ids and scores, the best first.
    pub fragments: Vec<(u64, f64)>,
    /// The time it took.
    pub ms: Option<f64>,
    /// Why the answer went without, if it had to.
    pub degraded: Option<String>,
}

/// How the prompt was assembled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// `luna` or `basic`.
    pub name: String,
    /// The persona.
    pub persona: Option<String>,
    /// Messages of the history that were left out.
    pub dropped_messages: Option<u64>,
}

/// The place of a request in a benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bench {
    /// The run.
    pub run: String,
    /// The prompt.
    pub prompt: String,
    /// The family of models.
    pub family: Option<String>,
    /// The label that the prompt has.
    pub expected_tier: Option<Tier>,
    /// Which repeat, from 0.
    pub repeat: u64,
    /// Whether the model had answered before.
    pub warm: Option<bool>,
}

/// What was drafted and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpecDecode {
    /// The option that asked for it.
    pub mode: String,
    /// The share of drafted tokens that were taken; null if none was drafted.
    pub accept_rate: Option<f64>,
    /// Tokens drafted.
    pub drafted: u64,
    /// Of these, tokens taken.
    pub accepted: u64,
    /// Passes of the model after the prompt's.
    pub passes: u64,
    /// Tokens that a pass gave.
    pub tokens_per_pass: Option<f64>,
    /// Why a drafter was given up, if one was.
    pub failure: Option<String>,
}

/// Times of the parts of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Rendering and tokenising the prompt.
    pub prompt_ms: Option<f64>,
    /// Reading it.
    pub prefill_ms: Option<f64>,
    /// Generating.
    pub decode_ms: Option<f64>,
    /// Drafting, which is a part of that.
    pub draft_ms: Option<f64>,
    /// Passes that checked drafts, which are a part of it too.
    pub verify_ms: Option<f64>,
    /// From the request to the first token's text.
    pub first_text_ms: Option<f64>,
}

/// How tokens were chosen: all that a sampler depends on besides the logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "see the engine's options of these names")]
pub struct Sampling {
    pub temperature: f32,
    pub top_k: u64,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
    pub repeat_last_n: u64,
    pub seed: u64,
    /// Null if there was no limit.
    pub max_tokens: Option<u64>,
    pub ignore_eos: bool,
    pub stop: Vec<String>,
}

/// What decides about the numbers, besides files and tokens, and about where an answer ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quality {
    /// The type of the cached keys.
    pub cache_k: String,
    /// The type of the cached values.
    pub cache_v: String,
    /// The tiers of older keys and values; left out where there were none.
    #[serde(default = "no_tiers", skip_serializing_if = "is_no_tiers")]
    pub kv_tiers: String,
    /// Whether weights were dequantised and activations were not quantised.
    pub exact: bool,
    /// Positions of the context.
    pub context: u64,
    /// SHA-256 of the thresholds below which neurons were left out; left out where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn_thresholds_sha256: Option<String>,
}

fn no_tiers() -> String {
    KvTiering::Off.name().to_owned()
}

fn is_no_tiers(name: &str) -> bool {
    name == KvTiering::Off.name()
}

/// Where the weights were and how they were read. Nothing here changes a result (P1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The memory that was asked for; null if the system decided.
    pub ram_bytes: Option<u64>,
    /// Bytes of weights that stay in memory, that are mapped, and that are streamed.
    pub hot_bytes: Option<u64>,
    /// See above.
    pub warm_bytes: Option<u64>,
    /// See above.
    pub stream_bytes: Option<u64>,
    /// Steps of the degradation ladder.
    pub ladder: Vec<String>,
    /// Whether matrices were read repacked.
    pub repacked: bool,
    /// The most tokens of a pass.
    pub batch: Option<u64>,
    /// The SHA-256 of the table that screened the head; null if none did.
    pub screen_sha256: Option<String>,
    /// The most positions of a pass that it screened where one best row was wanted.
    pub screen_positions_most: Option<u64>,
    /// The SHA-256 of the table by which zero neurons were skipped; null if none were.
    #[serde(default)]
    pub zeros_sha256: Option<String>,
    /// The most memory that the process has had resident.
    pub peak_resident_bytes: Option<u64>,
}

/// The prompt and the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Whether ids were left out on request.
    pub private: bool,
    /// Number of tokens in the prompt.
    pub prompt: u64,
    /// Of these, tokens whose keys and values were there already.
    pub reused: Option<u64>,
    /// Number of tokens generated, without an end-of-generation token.
    pub output: u64,
    /// SHA-256 of the rendered prompt's text.
    pub prompt_text_sha256: Option<String>,
    /// SHA-256 of the ids of the prompt, each four bytes, little-endian.
    pub prompt_ids_sha256: String,
    /// The same of the answer.
    pub output_ids_sha256: String,
    /// The ids of the prompt; null in a private record.
    pub prompt_ids: Option<Vec<u32>>,
    /// The ids of the answer; null in a private record.
    pub output_ids: Option<Vec<u32>>,
}

/// A figure and how it was found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// `counted`, `simulated` or `measured`.
    pub source: String,
}

impl Figure {
    /// What the ledger counted.
    pub fn counted(value: f64) -> Self {
        Self { value, source: "counted".to_owned() }
    }
}
