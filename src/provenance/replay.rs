//! Running a record again (SPEC Z10): the same tokens and states, or the first that differs.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use aios_engine::{EngineError, ExecutorOptions, Limits, SamplerOptions, Session};
use aios_kernels::CacheType;
use aios_residency::plan::hex;
use serde::Serialize;

use super::digests;
use super::record::{Env, ExecutionMode, Record, Request};

/// Why a record cannot be run again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unprovable {
    /// Its ids were left out.
    #[error("it is private: its token ids were not kept, so that there is nothing to run again")]
    Private,
    /// There is no answer.
    #[error("its answer failed ({0}), so that there is nothing to compare with")]
    Failed(String),
    /// No model answered.
    #[error("no model has answered it")]
    Mock,
    /// Something that this program does not know.
    #[error("it says {what} {value:?}, which this program does not know")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Unknown { what: &'static str, value: String },
    /// What it says of itself does not agree.
    #[error("its {0} do not have the digest that it says they have")]
    Inconsistent(&'static str),
}

/// What running a record again came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    /// The record's number.
    pub id: u64,
    /// Whether it is proved: all the same tokens and states.
    pub same: bool,
    /// Tokens of the answer.
    pub tokens: u64,
    /// The first token that differs, if one does.
    pub first_difference: Option<Difference>,
    /// Whether the states are the same; `None` where the record has none to compare with.
    pub states: Option<bool>,
    /// What is not as it was when the record was made.
    pub environment: Vec<Change>,
    /// The time of the answer now.
    pub ms: f64,
}

/// A token that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its place in the answer, from 0.
    pub index: u64,
    /// The record's; `None` if its answer had ended.
    pub recorded: Option<u32>,
    /// This run's; `None` if it had ended.
    pub replayed: Option<u32>,
}

/// Something that differs between the record's environment and this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The field of the record.
    pub field: &'static str,
    /// What it says.
    pub recorded: String,
    /// What it would say now.
    pub now: String,
}

/// The first token that differs between two answers.
pub fn first_difference(recorded: &[u32], replayed: &[u32]) -> Option<Difference> {
    let most = recorded.len().max(replayed.len());
    let index = (0..most).find(|&index| recorded.get(index) != replayed.get(index))?;
    let at = |ids: &[u32]| ids.get(index).copied();
    Some(Difference { index: index as u64, recorded: at(recorded), replayed: at(replayed) })
}

/// What is not as it was. Only the program's revision and the model's files could explain another
/// result; the rest is said because promise P1 is about it.
pub fn changes(
    then: &Request,
    env: &Env,
    git_rev: Option<&str>,
    dirty: Option<bool>,
) -> Vec<Change> {
    let text = |value: Option<&dyn std::fmt::Display>| {
        value.map_or_else(|| "unknown".to_owned(), ToString::to_string)
    };
    fn shown<T: std::fmt::Display>(value: &Option<T>) -> Option<&dyn std::fmt::Display> {
        value.as_ref().map(|value| value as &dyn std::fmt::Display)
    }
    let was = &then.env;
    let git_rev = git_rev.map(str::to_owned);
    [
        ("git_rev", text(shown(&then.git_rev)), text(shown(&git_rev))),
        ("dirty_tree", text(shown(&then.dirty_tree)), text(shown(&dirty))),
        ("env.program", was.program.clone(), env.program.clone()),
        ("env.platform", was.platform.clone(), env.platform.clone()),
        ("env.cpu_model", text(shown(&was.cpu_model)), text(shown(&env.cpu_model))),
        ("env.kernels", text(shown(&was.kernels)), text(shown(&env.kernels))),
        ("env.threads", text(shown(&was.threads)), text(shown(&env.threads))),
        ("env.threads_batch", text(shown(&was.threads_batch)), text(shown(&env.threads_batch))),
    ]
    .into_iter()
    .filter(|(_, recorded, now)| recorded != now)
    .map(|(field, recorded, now)| Change { field, recorded, now })
    .collect()
}

/// The set-up that a record's numbers depend on, on top of `machine`, which says how to compute.
///
/// # Errors
/// [`Unprovable`].
pub fn options(of: &Request, machine: ExecutorOptions) -> Result<ExecutorOptions, Unprovable> {
    let cache = |what, value: &String| -> Result<CacheType, Unprovable> {
        value.parse().map_err(|_| Unprovable::Unknown { what, value: value.clone() })
    };
    let quality = &of.quality;
    let kv_tiers = quality.kv_tiers.parse().map_err(|_| Unprovable::Unknown {
        what: "quality.kv_tiers",
        value: quality.kv_tiers.clone(),
    })?;
    let context = usize::try_from(quality.context);
    let unknown = |_| {
        let value = quality.context.to_string();
        Unprovable::Unknown { what: "quality.context", value }
    };
    Ok(ExecutorOptions {
        context: context.map_err(unknown)?,
        cache_k: cache("quality.cache_k", &quality.cache_k)?,
        cache_v: cache("quality.cache_v", &quality.cache_v)?,
        kv_tiers,
        exact: quality.exact,
        ..machine
    })
}

/// The prompt and the answer of a record.
///
/// # Errors
/// [`Unprovable`].
pub fn ids(of: &Request) -> Result<(&[u32], &[u32]), Unprovable> {
    if of.execution_mode == ExecutionMode::Mock {
        return Err(Unprovable::Mock);
    }
    if let Some(error) = &of.error {
        return Err(Unprovable::Failed(error.clone()));
    }
    let tokens = &of.tokens;
    let (Some(prompt), Some(output)) = (&tokens.prompt_ids, &tokens.output_ids) else {
        return Err(Unprovable::Private);
    };
    if digests::of_ids(prompt) != tokens.prompt_ids_sha256 {
        return Err(Unprovable::Inconsistent("prompt ids"));
    }
    if digests::of_ids(output) != tokens.output_ids_sha256 {
        return Err(Unprovable::Inconsistent("output ids"));
    }
    Ok((prompt, output))
}

/// Runs `record` again in `session`, which has the set-up of [`options`], from an empty cache.
///
/// # Errors
/// Those of the engine, [`EngineError::Cancelled`] among them, and [`Unprovable`].
pub fn replay(
    record: &Record,
    session: &mut Session,
    env: &Env,
    cancel: &AtomicBool,
) -> Result<Result<Replay, Unprovable>, EngineError> {
    let of = &record.request;
    let (prompt, output) = match ids(of) {
        Ok(ids) => ids,
        Err(reason) => return Ok(Err(reason)),
    };
    session.trace_states(true);
    session.clear();
    let sampling = &of.sampling;
    let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let sampler = SamplerOptions {
        temperature: sampling.temperature,
        top_k: whole(sampling.top_k),
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repeat_penalty: sampling.repeat_penalty,
        repeat_last_n: whole(sampling.repeat_last_n),
        seed: sampling.seed,
    };
    // An answer that somebody stopped is proved as far as it came.
    let stopped = of.stop_reason.as_deref() == Some("interrupted");
    let max_tokens = if stopped { Some(output.len()) } else { sampling.max_tokens.map(whole) };
    let limits =
        Limits { max_tokens, stop: sampling.stop.clone(), ignore_eos: sampling.ignore_eos };
    let started = Instant::now();
    let mut generation = session.generate(prompt, sampler, limits)?;
    while generation.next_text(cancel)?.is_some() {}
    if cancel.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(EngineError::Cancelled);
    }
    let took: Duration = started.elapsed();
    let first_difference = first_difference(output, generation.tokens());
    let found = generation.stats().states.map(|digest| hex(&digest));
    let states = of.hidden_sha256.as_ref().map(|recorded| found.as_ref() == Some(recorded));
    let (git_rev, dirty) = super::revision();
    Ok(Ok(Replay {
        id: record.id,
        // Without a digest nothing is proved but for an answer that has no token.
        same: first_difference.is_none() && (states == Some(true) || output.is_empty()),
        tokens: output.len() as u64,
        first_difference,
        states,
        environment: changes(of, env, git_rev.as_deref(), dirty),
        ms: took.as_secs_f64() * 1e3,
    }))
}
