//! How often a draft model's guesses are taken when answers are sampled (SPEC S7): by this
//! program's rule, under which both models choose with the same random numbers, and by that of
//! speculative sampling (Leviathan, Kalman and Matias 2023, arXiv 2211.17192), at the same
//! positions.
//!
//! Speculative sampling takes a guess with the probability Σ min(p, q) over all tokens, where p is
//! the model's distribution and q the draft's, which is the most that any rule can; but what it
//! then answers depends on what was drafted. With Gumbel-max noise that both share, the chance is
//! Σᵢ 1 / Σⱼ max(pⱼ/pᵢ, qⱼ/qᵢ) (Daliri, Musco and Suresh 2024, arXiv 2408.07978), and no answer
//! depends on drafts.

mod overlap;

use crate::report::SYNTHETIC;
use aios_engine::gguf::Escaped;
use aios_engine::{EngineError, Executor, Sampler, SamplerOptions, Want};
use aios_residency::Phase;
use serde::Serialize;

pub use overlap::Overlap;

/// A prompt, as both models read it.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its class, by which figures are grouped.
    pub class: String,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The most tokens of an answer.
    pub tokens: usize,
    /// How answers are sampled, for each of these in turn; temperatures are above 0.
    pub samplings: Vec<SamplerOptions>,
}

/// What guesses came to at the positions of some answers, as means over the positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Positions.
    pub positions: u64,
    /// Guesses that were the model's choice, counted.
    pub taken: f64,
    /// The chance of that, as the distributions have it.
    pub shared_noise: f64,
    /// What speculative sampling would have taken.
    pub speculative: f64,
    /// Tokens that both models find the likeliest, which is what greedy answers would take.
    pub greedy: f64,
}

/// The figures of a class under one way of sampling.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The class; `None` for all.
    pub class: Option<String>,
    /// The temperature.
    pub temperature: f32,
    /// Whether only some of the tokens were chosen among (top-k, top-p or min-p).
    pub filtered: bool,
    /// The figures.
    pub rates: Rates,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model's file.
    pub model: String,
    /// The draft model's file.
    pub draft: String,
    /// Whether the weights of one of them are random (SPEC Y1), so that no figure says anything of
    /// real models.
    pub synthetic: bool,
    /// The rows: for each way of sampling the classes, then all.
    pub rows: Vec<Row>,
}

/// Sums over positions.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    positions: u64,
    taken: u64,
    greedy: u64,
    shared_noise: f64,
    speculative: f64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.positions += other.positions;
        self.taken += other.taken;
        self.greedy += other.greedy;
        self.shared_noise += other.shared_noise;
        self.speculative += other.speculative;
    }

    /// `None` of no positions.
    fn rates(self) -> Option<Rates> {
        let n = self.positions as f64;
        (self.positions > 0).then(|| Rates {
            positions: self.positions,
            taken: self.taken as f64 / n,
            shared_noise: self.shared_noise / n,
            speculative: self.speculative / n,
            greedy: self.greedy as f64 / n,
        })
    }
}

/// Carries out `plan`: `target` answers each prompt as it would without drafts, and `draft` says
/// at every position what it would have guessed. Both have one vocabulary. `between` is called
/// before every token with the answers that are done and all there are; what it returns ends the
/// measurement.
///
/// # Errors
/// Those of a pass and of sampling, and what `between` returns.
pub fn measure(
    [target, draft]: [&mut Executor; 2],
    prompts: &[Prompt],
    plan: &Plan,
    between: &mut dyn FnMut(usize, usize) -> Result<(), EngineError>,
) -> Result<Vec<Row>, EngineError> {
    let total = prompts.len() * plan.samplings.len();
    let mut rows = Vec::new();
    for (i, options) in plan.samplings.iter().enumerate() {
        let mut classes: Vec<(&str, Sums)> = Vec::new();
        let mut all = Sums::default();
        for (j, prompt) in prompts.iter().enumerate() {
            let done = i * prompts.len() + j;
            let mut go_on = || between(done, total);
            let sums = answer([target, draft], &prompt.ids, plan.tokens, *options, &mut go_on)?;
            all.add(sums);
            match classes.iter_mut().find(|(class, _)| *class == prompt.class) {
                Some((_, known)) => known.add(sums),
                None => classes.push((&prompt.class, sums)),
            }
        }
        let filtered = options.top_k > 0 || options.top_p < 1.0 || options.min_p > 0.0;
        let named = classes.into_iter().map(|(class, sums)| (Some(class.to_owned()), sums));
        rows.extend(named.chain([(None, all)]).filter_map(|(class, sums)| {
            let rates = sums.rates()?;
            Some(Row { class, temperature: options.temperature, filtered, rates })
        }));
    }
    Ok(rows)
}

/// What the draft guesses along one answer of the target.
fn answer(
    [target, draft]: [&mut Executor; 2],
    prompt: &[u32],
    tokens: usize,
    options: SamplerOptions,
    go_on: &mut dyn FnMut() -> Result<(), EngineError>,
) -> Result<Sums, EngineError> {
    let mut samplers = [Sampler::new(options)?, Sampler::new(options)?];
    let mut history = prompt.to_vec();
    let mut sums = Sums::default();
    let mut logits = [Vec::new(), Vec::new()];
    let mut unread = 0;
    target.truncate(0);
    draft.truncate(0);
    for _ in 0..tokens {
        for (executor, logits) in [&mut *target, &mut *draft].into_iter().zip(&mut logits) {
            go_on()?;
            let phase = if unread == 0 { Phase::Prefill } else { Phase::Decode };
            executor.forward(&history[unread..], phase, Want::Last, &mut |_, row| {
                logits.clear();
                logits.extend_from_slice(row);
                Ok(())
            })?;
        }
        unread = history.len();
        let mut choose = |i: usize| {
            let sampler: &mut Sampler = &mut samplers[i];
            let id = sampler.sample(&logits[i], &history, &[], history.len());
            (id, sampler.distribution(&logits[i], &history, &[]))
        };
        let ((id, p), (guess, q)) = (choose(0), choose(1));
        let likeliest = |list: &[(u32, f64)]| list.first().map(|one| one.0);
        let Overlap { shared_noise, speculative } = Overlap::of(&p, &q);
        let (taken, greedy) = (u64::from(id == guess), u64::from(likeliest(&p) == likeliest(&q)));
        sums.add(Sums { positions: 1, taken, greedy, shared_noise, speculative });
        if target.model().tokenizer()?.is_end_of_generation(id) {
            break;
        }
        history.push(id);
    }
    Ok(sums)
}

impl Report {
    /// JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).map_or_else(|_| String::new(), |json| json + "\n")
    }

    /// A table in Markdown, and what its columns mean.
    pub fn markdown(&self) -> String {
        let stamp = if self.synthetic { format!("{SYNTHETIC}\n\n") } else { String::new() };
        let mut text = format!(
            "{stamp}{} drafts for {}; the share of guesses that are taken.\n\n\
             | temperature | tokens to choose among | class | positions | taken | expected \
             | speculative sampling | expected / speculative | both greedy |\n\
             |---|---|---|---:|---:|---:|---:|---:|---:|\n",
            self.draft, self.model,
        );
        for Row { class, temperature, filtered, rates } in &self.rows {
            let Rates { positions, taken, shared_noise, speculative, greedy } = rates;
            let among = if *filtered { "filtered" } else { "all" };
            // A bar would end the cell.
            let class = class.as_deref().unwrap_or("all");
            let class = Escaped::new(class).to_string().replace('|', "/");
            let ratio = shared_noise / speculative;
            text += &format!(
                "| {temperature} | {among} | {class} | {positions} | {taken:.3} \
                 | {shared_noise:.3} | {speculative:.3} | {ratio:.2} | {greedy:.3} |\n"
            );
        }
        text += "\n*Taken* counts guesses that were the model's choice, both chosen with the same \
                 noise; *expected* is\nthe mean chance of that, by which the ratio is made; \
                 *speculative sampling* is the mean of Σ min(p, q).\n";
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aios_engine::{ExecutorOptions, Model};
    use std::path::Path;

    fn executor(name: &str) -> Executor {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        let model = Model::load(&models.join(format!("micro-{name}-q4km.gguf"))).expect("a model");
        Executor::new(model, ExecutorOptions::new(100)).expect("an executor")
    }

    fn prompts() -> Vec<Prompt> {
        let prompt = |class: &str, first: u32| Prompt {
            class: class.to_owned(),
            ids: (first..first + 5).collect(),
        };
        vec![prompt("a", 5), prompt("b", 50), prompt("a", 90)]
    }

    fn plan(tokens: usize) -> Plan {
        let open = SamplerOptions { top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerOptions::default() };
        let warm = SamplerOptions { temperature: 1.0, ..open };
        Plan { tokens, samplings: vec![SamplerOptions::default(), warm] }
    }

    #[test]
    fn a_model_that_drafts_for_itself_is_always_right() {
        let [mut a, mut b] = [executor("llama"), executor("llama")];
        let rows = measure([&mut a, &mut b], &prompts(), &plan(8), &mut |_, _| Ok(()));
        let rows = rows.expect("rows");
        let classes: Vec<_> = rows.iter().map(|row| row.class.as_deref()).collect();
        assert_eq!(classes, [Some("a"), Some("b"), None, Some("a"), Some("b"), None]);
        assert!(rows[0].filtered && !rows[5].filtered);
        for row in rows {
            let rates = row.rates;
            assert_eq!((rates.taken, rates.greedy), (1.0, 1.0), "{rates:?}");
            assert!((rates.shared_noise - 1.0).abs() < 1e-9);
            assert!((rates.speculative - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn guesses_are_taken_as_often_as_the_distributions_say() {
        let [mut a, mut b] = [executor("llama"), executor("qwen2")];
        let plan = Plan { tokens: 90, ..plan(0) };
        let rows = measure([&mut a, &mut b], &prompts(), &plan, &mut |_, _| Ok(()));
        for Row { rates, class, .. } in rows.expect("rows") {
            assert!(rates.shared_noise <= rates.speculative + 1e-9);
            if class.is_none() {
                // Four standard deviations of a mean of so many trials.
                let sd = (rates.shared_noise * (1.0 - rates.shared_noise)).sqrt();
                let off = (rates.taken - rates.shared_noise).abs();
                assert!(off < 4.0 * sd / (rates.positions as f64).sqrt(), "{rates:?}");
            }
        }
    }

    #[test]
    fn it_can_be_stopped_and_says_what_it_found() {
        let [mut a, mut b] = [executor("llama"), executor("qwen2")];
        let mut left = 3;
        let mut stop = |_, total| {
            assert_eq!(total, 6);
            left -= 1;
            if left == 0 { Err(EngineError::Cancelled) } else { Ok(()) }
        };
        let stopped = measure([&mut a, &mut b], &prompts(), &plan(5), &mut stop);
        assert!(matches!(stopped, Err(EngineError::Cancelled)));
        let rates =
            Rates { positions: 7, taken: 0.5, shared_noise: 0.6, speculative: 0.8, greedy: 0.25 };
        let row = Row { class: Some("a|b".to_owned()), temperature: 0.8, filtered: true, rates };
        let (model, draft) = ("m".to_owned(), "d".to_owned());
        let report = Report { model, draft, synthetic: false, rows: vec![row] };
        let line = "| 0.8 | filtered | a/b | 7 | 0.500 | 0.600 | 0.800 | 0.75 | 0.250 |";
        assert!(report.markdown().contains(line), "{}", report.markdown());
        assert!(report.json().contains("\"shared_noise\": 0.6"));
        assert!(!report.markdown().contains("Synthetic"));
        let made = Report { synthetic: true, ..report };
        assert!(made.markdown().starts_with(SYNTHETIC));
        assert!(made.json().contains("\"synthetic\": true"));
    }
}
