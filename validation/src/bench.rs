//! How fast an executor reads a prompt and generates, measured as llama-bench does: a warm-up,
//! then repetitions that are timed one by one, each from a cache of the same fill.

use crate::divergence::quantile;
use aios_engine::{EngineError, Executor, Want};
use aios_residency::Phase;
use serde::Serialize;
use std::time::Instant;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tokens of the prompt; 0 leaves it out.
    pub prompt: usize,
    /// Tokens generated; 0 leaves them out.
    pub generate: usize,
    /// Tokens of a pass that generates: 1, or more as in verifying proposed ones.
    pub pass: usize,
    /// Positions in the cache before the first generated token.
    pub depth: usize,
    /// Take the positions of the depth as written instead of reading a prompt.
    pub blank: bool,
    /// Timed repetitions.
    pub repetitions: usize,
}

impl Plan {
    /// Positions that the context must hold.
    pub fn context(&self) -> usize {
        let generated = self.generate.max(self.pass);
        self.prompt.max(self.depth.saturating_add(generated)).max(1)
    }
}

/// What was measured, a sample for each repetition.
#[derive(Clone, Debug, Default)]
pub struct Speeds {
    /// Prompt tokens per second.
    pub prefill_tokens_per_s: Vec<f64>,
    /// Generated tokens per second.
    pub decode_tokens_per_s: Vec<f64>,
    /// Bytes of weights and cache that a generated token reads, counted by the ledger.
    pub bytes_per_token: Vec<f64>,
}

/// Samples and what they come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation of a sample (n − 1 below the root); 0 of one sample.
    pub sd: f64,
    /// The samples in the order of the repetitions.
    pub samples: Vec<f64>,
}

impl Statistics {
    /// The statistics of `samples`; `None` if there are none.
    pub fn of(samples: Vec<f64>) -> Option<Self> {
        if samples.is_empty() {
            return None;
        }
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        let squares: f64 = samples.iter().map(|x| (x - mean) * (x - mean)).sum();
        let sd = (squares / (n - 1.0).max(1.0)).sqrt();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Self { median: quantile(&sorted, 0.5), mean, sd, samples })
    }
}

/// Goes back to the plan's depth, or there; a cache with tiers may have to begin anew.
fn go_to(
    executor: &mut Executor,
    plan: &Plan,
    ids: &[u32],
    between: &mut dyn FnMut() -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    executor.truncate(plan.depth);
    if executor.len() == plan.depth {
        return Ok(());
    }
    executor.truncate(0);
    if plan.blank { executor.skip_to(plan.depth) } else { read(executor, ids, between) }
}

/// Carries out `plan`. `between` is called before every pass of a prompt and every generated
/// token; what it returns ends the measurement, so it must be quick.
///
/// # Errors
/// Those of [`Executor::forward`], and what `between` returns.
pub fn measure(
    executor: &mut Executor,
    plan: &Plan,
    between: &mut dyn FnMut() -> Result<(), EngineError>,
) -> Result<Speeds, EngineError> {
    let mut speeds = Speeds::default();
    let mut tokens = Tokens::of(executor);
    if plan.prompt > 0 {
        let prompt = tokens.take(plan.prompt);
        for repetition in 0..=plan.repetitions {
            executor.truncate(0);
            let seconds = timed(|| read(executor, &prompt, between))?;
            if repetition > 0 {
                speeds.prefill_tokens_per_s.push(plan.prompt as f64 / seconds);
            }
        }
    }
    if plan.generate > 0 {
        let depth = tokens.take(plan.depth);
        executor.truncate(0);
        go_to(executor, plan, &depth, between)?;
        generate(executor, &tokens.take(plan.pass), plan.pass, between)?;
        for _ in 0..plan.repetitions {
            go_to(executor, plan, &depth, between)?;
            executor.reset_ledger();
            let ids = tokens.take(plan.generate);
            let seconds = timed(|| generate(executor, &ids, plan.pass, between))?;
            speeds.decode_tokens_per_s.push(plan.generate as f64 / seconds);
            speeds.bytes_per_token.push(executor.ledger().phase(phase(plan.pass)).read_per_token());
        }
    }
    Ok(speeds)
}

fn timed(work: impl FnOnce() -> Result<(), EngineError>) -> Result<f64, EngineError> {
    let started = Instant::now();
    work()?;
    // A clock may be coarser than a tiny model's pass.
    Ok(started.elapsed().as_secs_f64().max(1e-9))
}

/// Reads a prompt; the logits of its last token are computed, as those of a real one are.
fn read(
    executor: &mut Executor,
    prompt: &[u32],
    between: &mut dyn FnMut() -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let batch = executor.options().batch;
    let passes = prompt.len().div_ceil(batch);
    for (i, chunk) in prompt.chunks(batch).enumerate() {
        between()?;
        let want = if i + 1 < passes { Want::None } else { Want::Last };
        executor.forward(chunk, Phase::Prefill, want, &mut |_, _| Ok(()))?;
    }
    Ok(())
}

/// Generates `count` tokens one by one, as [`measure`] does; what they are does not matter.
///
/// # Errors
/// Those of [`Executor::forward`], and what `between` returns.
pub fn generate_tokens(
    executor: &mut Executor,
    count: usize,
    between: &mut dyn FnMut() -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let ids = Tokens::of(executor).take(count);
    generate(executor, &ids, 1, between)
}

/// What passes of so many tokens are.
const fn phase(pass: usize) -> Phase {
    if pass == 1 { Phase::Decode } else { Phase::Verify }
}

/// Passes of `pass` tokens each, with every token's logits.
fn generate(
    executor: &mut Executor,
    ids: &[u32],
    pass: usize,
    between: &mut dyn FnMut() -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    for ids in ids.chunks(pass.max(1)) {
        between()?;
        executor.forward(ids, phase(pass), Want::All, &mut |_, _| Ok(()))?;
    }
    Ok(())
}

/// Ids without meaning, the same in every run: an engine's speed does not depend on them.
pub(crate) struct Tokens {
    state: u64,
    vocab: u64,
}

impl Tokens {
    /// Ids for an executor's model.
    pub(crate) fn of(executor: &Executor) -> Self {
        Self { state: 1, vocab: executor.model().config().vocab.max(1) as u64 }
    }

    /// The next `count` of them.
    pub(crate) fn take(&mut self, count: usize) -> Vec<u32> {
        let mut next = || {
            // The multiplier and the increment of Knuth's MMIX generator.
            self.state = (self.state.wrapping_mul(6_364_136_223_846_793_005))
                .wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((self.state >> 33) % self.vocab).unwrap_or(0)
        };
        (0..count).map(|_| next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aios_engine::{ExecutorOptions, Model};
    use std::path::Path;

    const PLAN: Plan =
        Plan { prompt: 0, generate: 0, pass: 1, depth: 0, blank: false, repetitions: 1 };

    fn executor(plan: &Plan) -> Executor {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        let model = Model::load(&models.join("micro-llama-q4km.gguf")).expect("a micro model");
        Executor::new(model, ExecutorOptions::new(plan.context())).expect("an executor")
    }

    #[test]
    fn statistics_of_known_samples() {
        let known = Statistics::of(vec![4.0, 1.0, 3.0, 2.0]).expect("samples");
        assert_eq!((known.median, known.mean), (2.5, 2.5));
        assert!((known.sd - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(known.samples, [4.0, 1.0, 3.0, 2.0]);
        assert_eq!(Statistics::of(vec![7.0]).expect("a sample").sd, 0.0);
        assert_eq!(Statistics::of(Vec::new()), None);
    }

    #[test]
    fn every_repetition_is_a_sample_and_a_part_can_be_left_out() {
        let plan = Plan { prompt: 20, generate: 3, depth: 9, repetitions: 4, ..PLAN };
        let mut passes = 0;
        let mut count = || {
            passes += 1;
            Ok(())
        };
        let speeds = measure(&mut executor(&plan), &plan, &mut count).expect("speeds");
        // Prompts: a warm-up and four. Decoding: the fill, a token to warm up, four times three.
        assert_eq!(passes, 5 + 1 + 1 + 12);
        for samples in
            [&speeds.prefill_tokens_per_s, &speeds.decode_tokens_per_s, &speeds.bytes_per_token]
        {
            assert_eq!(samples.len(), 4);
            assert!(samples.iter().all(|x| x.is_finite() && *x > 0.0));
        }
        let none = Plan { prompt: 0, generate: 0, ..plan };
        let speeds = measure(&mut executor(&none), &none, &mut || Ok(())).expect("speeds");
        assert!(speeds.prefill_tokens_per_s.is_empty() && speeds.decode_tokens_per_s.is_empty());
    }

    #[test]
    fn a_deeper_context_reads_more_and_weights_are_all_counted() {
        let at = |depth| {
            let plan = Plan { generate: 2, depth, ..PLAN };
            let mut executor = executor(&plan);
            let weights: u64 =
                executor.model().bytes_per_token().iter().map(|(_, bytes)| bytes).sum();
            let speeds = measure(&mut executor, &plan, &mut || Ok(())).expect("speeds");
            (speeds.bytes_per_token[0], weights as f64)
        };
        let ((shallow, weights), (deep, _)) = (at(0), at(200));
        assert!(shallow > weights && shallow < 1.1 * weights, "{shallow} {weights}");
        assert!(deep > shallow, "{deep} {shallow}");
    }

    #[test]
    fn passes_of_several_tokens_read_weights_once_and_a_blank_depth_reads_what_a_real_one_does() {
        let bytes = |pass, blank| {
            let plan = Plan { generate: 8, pass, depth: 100, blank, ..PLAN };
            let mut passes = 0;
            let mut count = || {
                passes += 1;
                Ok(())
            };
            let speeds = measure(&mut executor(&plan), &plan, &mut count).expect("speeds");
            (passes, speeds.bytes_per_token[0])
        };
        let ((_, one), (_, real)) = (bytes(1, true), bytes(1, false));
        assert_eq!(one, real);
        let (passes, four) = bytes(4, true);
        assert_eq!(passes, 1 + 2);
        assert!(four > one / 4.0 && four < 0.3 * one, "{four} {one}");
    }

    #[test]
    fn it_can_be_interrupted() {
        let plan = Plan { prompt: 8, generate: 8, repetitions: 3, ..PLAN };
        let stopped = measure(&mut executor(&plan), &plan, &mut || Err(EngineError::Cancelled));
        assert!(matches!(stopped, Err(EngineError::Cancelled)));
    }
}
