//! An answer of the benchmark: a record that has everything which results are made of.

use std::fmt;
use std::path::Path;

use super::error::ResultsError;
use super::golden::Goldens;
use crate::provenance::{Bench, Figure, Record, Retrieval, Tier};

/// The benchmark's answers are made by it alone.
const FROM_BENCH: &str = "only answers of 'aios bench-arch' have it";
/// Something was measured, or the run is of no use.
const UNMEASURED: &str = "nothing can stand in for it; run that case again";

/// What was asked, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub run: String,
    pub family: String,
    pub layer: String,
    pub backend: String,
    pub prompt: String,
    pub warm: bool,
    pub repeat: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, family, layer, backend, prompt, warm, repeat } = self;
        let warmth = if *warm { "warm" } else { "cold" };
        write!(f, "{family}, {layer}, {backend}, {prompt}, {warmth} {repeat} of the run {run:?}")
    }
}

/// What a record of the benchmark says, with nothing missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What was asked.
    pub case: Case,
    /// Where the record is, for people.
    pub place: String,
    /// The model that answered.
    pub model: String,
    /// The tier that people gave the prompt.
    pub label: Tier,
    /// The tier that the router gave it.
    pub routed: Tier,
    /// From the request to the last token.
    pub latency_ms: f64,
    /// Tokens generated in a second of generating; `None` if there were none.
    pub tokens_per_s: Option<f64>,
    /// 10⁶ bytes read for a token; `None` if there were none.
    pub mb_per_token: Option<Figure>,
    /// The share of drafted tokens that were taken; `None` if none was drafted.
    pub accept_rate: Option<f64>,
    /// Fragments that were returned.
    pub fragments_found: f64,
    /// Fragments that passed the threshold.
    pub fragments_relevant: f64,
}

/// A record that is no answer, but says of which case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The benchmark's run.
    pub run: String,
    /// What of the case is known: family, prompt, warmth, repeat.
    pub key: (String, String, Option<bool>, u64),
    /// Layer and backend, as far as it came.
    pub arm: (Option<String>, Option<String>),
}

/// What a record of the benchmark is.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// An answer.
    Answered(Box<Answer>),
    /// An answer that failed, or that went without its memory.
    Failed(Failed),
}

/// What `record` of the log `path` says; `None` if it is not of the benchmark.
///
/// # Errors
/// [`ResultsError::Missing`] and [`ResultsError::Wrong`].
pub fn outcome(
    record: &Record,
    path: &Path,
    goldens: &Goldens,
) -> Result<Option<Outcome>, ResultsError> {
    let of = &record.request;
    let Some(bench) = &of.bench else { return Ok(None) };
    let reader = Reader { id: record.id, path };
    let family = reader.need(bench.family.clone(), "bench.family", FROM_BENCH)?;
    let layer = of.layer.as_ref().map(|layer| layer.name.clone());
    let degraded = of.retrieval.as_ref().is_some_and(|retrieval| retrieval.degraded.is_some());
    if of.error.is_some() || degraded {
        let key = (family, bench.prompt.clone(), bench.warm, bench.repeat);
        let backend = of.retrieval.as_ref().map(|retrieval| retrieval.backend.clone());
        let arm = (layer, backend);
        return Ok(Some(Outcome::Failed(Failed { run: bench.run.clone(), key, arm })));
    }
    let (label, routed) = reader.tiers(record, bench, goldens)?;
    let retrieval = reader.need(of.retrieval.as_ref(), "retrieval", FROM_BENCH)?;
    let (fragments_found, fragments_relevant) = reader.fragments(retrieval)?;
    let case = Case {
        run: bench.run.clone(),
        family,
        layer: reader.need(layer, "layer", FROM_BENCH)?,
        backend: retrieval.backend.clone(),
        prompt: bench.prompt.clone(),
        warm: reader.need(bench.warm, "bench.warm", FROM_BENCH)?,
        repeat: bench.repeat,
    };
    let (tokens_per_s, mb_per_token) = reader.generated(record)?;
    let spec = reader.need(of.spec_decode.as_ref(), "spec_decode", UNMEASURED)?;
    let accept_rate = match (spec.drafted, spec.accept_rate) {
        (0, _) => None,
        (_, rate) => Some(reader.number(rate, "spec_decode.accept_rate")?),
    };
    if accept_rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
        return Err(reader.wrong(format!("spec_decode.accept_rate is {accept_rate:?}")));
    }
    Ok(Some(Outcome::Answered(Box::new(Answer {
        case,
        place: format!("{} of {}", record.id, path.display()),
        model: reader.need(of.models.get("main").cloned(), "models.main", UNMEASURED)?,
        label,
        routed,
        latency_ms: reader.number(of.latency_ms, "latency_ms")?,
        tokens_per_s,
        mb_per_token,
        accept_rate,
        fragments_found,
        fragments_relevant,
    }))))
}

struct Reader<'a> {
    id: u64,
    path: &'a Path,
}

impl Reader<'_> {
    fn need<T>(
        &self,
        value: Option<T>,
        what: &'static str,
        remedy: &'static str,
    ) -> Result<T, ResultsError> {
        let (path, id) = (self.path, self.id);
        value.ok_or_else(|| ResultsError::Missing { path: path.to_owned(), id, what, remedy })
    }

    fn wrong(&self, problem: String) -> ResultsError {
        ResultsError::Wrong { path: self.path.to_owned(), id: self.id, problem }
    }

    /// A figure that cannot be negative.
    fn number(&self, value: Option<f64>, what: &'static str) -> Result<f64, ResultsError> {
        let value = self.need(value, what, UNMEASURED)?;
        match value.is_finite() && value >= 0.0 {
            true => Ok(value),
            false => Err(self.wrong(format!("{what} is {value}, which cannot be"))),
        }
    }

    /// Label and tier. The label comes from the labelled prompts, never from the record.
    fn tiers(
        &self,
        record: &Record,
        bench: &Bench,
        goldens: &Goldens,
    ) -> Result<(Tier, Tier), ResultsError> {
        let of = &record.request;
        let label = goldens.tier(&bench.prompt).ok_or_else(|| {
            self.wrong(format!("the prompt {:?} has no label; see --labels", bench.prompt))
        })?;
        if bench.expected_tier.is_some_and(|expected| expected != label) {
            return Err(self.wrong(format!(
                "the label of the prompt {:?} was another when it was asked",
                bench.prompt
            )));
        }
        if of.router.as_ref().is_some_and(|router| router.forced) {
            return Err(self.wrong("its tier was forced, and says nothing of the router".into()));
        }
        Ok((label, self.need(of.router_tier, "router_tier", UNMEASURED)?))
    }

    fn fragments(&self, retrieval: &Retrieval) -> Result<(f64, f64), ResultsError> {
        let count = |n: Option<u64>, what| self.need(n.map(|n| n as f64), what, UNMEASURED);
        Ok((
            count(retrieval.fragments_found, "retrieval.fragments_found")?,
            count(retrieval.fragments_relevant, "retrieval.fragments_relevant")?,
        ))
    }

    /// Speed and bytes, which an answer without tokens does not have.
    fn generated(&self, record: &Record) -> Result<(Option<f64>, Option<Figure>), ResultsError> {
        let of = &record.request;
        if of.tokens.output == 0 {
            return Ok((None, None));
        }
        let ms = self.number(of.phases.decode_ms, "phases.decode_ms")?;
        let speed = (ms > 0.0).then(|| of.tokens.output as f64 * 1e3 / ms);
        // The first token comes of the prompt's pass: an answer of one alone reads no more.
        let figure = match of.tokens.output {
            1 => of.mb_per_token.clone(),
            _ => Some(self.need(of.mb_per_token.clone(), "mb_per_token", UNMEASURED)?),
        };
        if let Some(Figure { value, source }) = &figure {
            self.number(Some(*value), "mb_per_token")?;
            if !["counted", "simulated", "measured"].contains(&&**source) {
                return Err(self.wrong(format!("mb_per_token has the source {source:?}")));
            }
        }
        Ok((speed, figure))
    }
}
