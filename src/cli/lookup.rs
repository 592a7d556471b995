//! `aios lookup`: what look-up drafts on real prompts, counted. Drafting changes no token, so
//! answers that are known tell which of its guesses are right; nothing is timed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aios_engine::gguf::Escaped;
use aios_engine::{
    Drafter, KindStats, Length, Limits, Lookup, Model, PASS_MAX, PassCosts, PassCurve, Replayed,
    SamplerOptions, Session, Speculation, replay,
};
use aios_validation::report::{SYNTHETIC, is_synthetic};
use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::output::deliver;
use super::progress::bar;
use super::prompts::{Line, PromptArgs, ids};
use super::{ComputeArgs, ModelArgs, WeightArgs, model_file};
use crate::interrupt::{Interrupt, Interrupted};
use crate::statistics::{Estimate, Sample};
use crate::whole::write_json;

const TEMPLATE: &str = "[{bar:30}] {pos}/{len} answers, {eta} left";

/// Count what look-up drafts on real prompts, and how much of it is right.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios lookup -m qwen2.5-coder-1.5b-instruct --prompts validation/data/speculation_prompts.jsonl \\
      --answers answers.json
  aios lookup -m MODEL.gguf --prompts p.jsonl --pass-costs 1:1,4:1.2,8:1.7,16:3

A line of the prompts' file is a JSON object with a \"class\", a \"user\", what a user says, and a
\"set\" if some prompts are for choosing settings and others for judging them. The model answers
greedily; --answers keeps the answers, and goes on where it was interrupted. Then look-up drafts for
them as --spec auto does on a machine whose passes cost what --pass-costs says, each prompt from the
beginning. The end-of-text token is not among those counted.")]
pub(super) struct LookupArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    /// A file that keeps the answers.
    #[arg(long, value_name = "PATH")]
    answers: Option<PathBuf>,
    /// Generate at most this many tokens for each.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 160)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=65536))]
    predict: u32,
    /// What passes over so many tokens cost, from 1 on; what lies between lies on a line.
    #[arg(long, value_name = "N:COST,…", default_value = COSTS, value_parser = curve)]
    pass_costs: PassCurve,
    /// The most tokens to draft for a pass.
    #[arg(long, value_name = "N", default_value_t = PASS_MAX as u32 - 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..PASS_MAX as i64))]
    draft_max: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Qwen2.5-Coder-1.5B on the first machine of PERFORMANCE.md, over a pass of one token.
const COSTS: &str = "1:1,2:1.04,3:1.18,4:1.2,5:1.3,6:1.38,7:1.55,8:1.75,12:2.44,16:3.17";

fn curve(text: &str) -> Result<PassCurve, String> {
    let point = |part: &str| {
        let (tokens, cost) = part.split_once(':')?;
        Some((tokens.trim().parse().ok()?, cost.trim().parse().ok()?))
    };
    let points: Option<Vec<(usize, f64)>> = text.split(',').map(point).collect();
    let points = points.ok_or("expected tokens and costs as in 1:1,4:1.3,16:2.5")?;
    let made = PassCurve::new(points);
    made.ok_or_else(|| "lengths must rise from 1, and costs be above 0".to_owned())
}

/// Answers of one model, as they are kept.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Answers {
    /// The model's file.
    model: String,
    /// Its length, which tells other files of the same name apart.
    bytes: u64,
    /// The most tokens of an answer.
    tokens: u32,
    answers: Vec<Answer>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl Answers {
    /// Those of `file` if it has answers of the same making, else none.
    fn read(file: Option<&Path>, model: &Path, tokens: u32) -> anyhow::Result<Self> {
        let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned();
        let bytes = fs::metadata(model).context("cannot look at the model's file")?.len();
        let wanted = Self { model: name, bytes, tokens, answers: Vec::new() };
        let Some(path) = file.filter(|path| path.exists()) else { return Ok(wanted) };
        let what = || format!("cannot read the answers {}", path.display());
        let text = fs::read_to_string(path).with_context(what)?;
        let known: Self = serde_json::from_str(&text).with_context(what)?;
        anyhow::ensure!(
            (&known.model, known.bytes, known.tokens) == (&wanted.model, bytes, tokens),
            "{} has answers of {} with at most {} tokens; name another file",
            path.display(),
            Escaped::new(&known.model),
            known.tokens,
        );
        Ok(known)
    }

    /// Replaces the file, so that an interruption leaves the old or the new one.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let what = || format!("cannot write the answers {}", path.display());
        write_json(path, self).with_context(what)
    }

    fn of(&self, prompt: &[u32]) -> Option<&[u32]> {
        let found = self.answers.iter().find(|known| known.prompt == prompt);
        found.map(|known| known.answer.as_slice())
    }
}

/// Runs `aios lookup`.
pub(super) fn run(args: &LookupArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    // The prompts and answers are read first: a mistake in them should not cost the loading.
    let lines = args.prompts.read()?;
    let path = model_file(&args.model.model, &interrupt)?;
    let mut answers = Answers::read(args.answers.as_deref(), &path, args.predict)?;
    let model =
        args.weights.within(args.compute.memory.ram).load(&path, args.compute.exact, &interrupt)?;
    let synthetic = is_synthetic(model.metadata());
    let prompts = ids(&model, &lines)?;
    answer(args, model, &prompts, &mut answers, &interrupt)?;
    let mut runs = Vec::new();
    for (Line { class, set, .. }, prompt) in lines.iter().zip(&prompts) {
        let answer = answers.of(prompt).context("an answer to every prompt")?;
        runs.push(Run { class, set, replayed: drafted(args, prompt, answer)? });
    }
    let report = Report::of(answers.model, synthetic, &runs);
    let json = args.json.then(|| report.json());
    deliver(None, json.as_deref(), || report.markdown())
}

/// Adds the answers that are not known. They are drafted too, which changes none of them.
fn answer(
    args: &LookupArgs,
    model: Arc<Model>,
    prompts: &[Vec<u32>],
    answers: &mut Answers,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let tokens = usize::try_from(args.predict)?;
    let mut session = Session::new(model, args.compute.options(longest + tokens)?)?;
    let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Lookup::default())];
    session.speculate(Some(Speculation::new(drafters, Length::Fixed(3))));
    let bar = bar(TEMPLATE);
    bar.set_length(prompts.len() as u64);
    for prompt in prompts {
        if answers.of(prompt).is_none() {
            let limits = Limits { max_tokens: Some(tokens), ..Limits::default() };
            let mut made = session.generate(prompt, SamplerOptions::greedy(), limits)?;
            while made.next_text(interrupt.flag())?.is_some() {}
            if interrupt.is_set() {
                return Err(Interrupted.into());
            }
            let answer = made.tokens().to_vec();
            answers.answers.push(Answer { prompt: prompt.clone(), answer });
            if let Some(file) = &args.answers {
                answers.write(file)?;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// What a look-up that begins with `prompt` makes of `answer`.
fn drafted(args: &LookupArgs, prompt: &[u32], answer: &[u32]) -> anyhow::Result<Replayed> {
    let costs = PassCosts::known(args.pass_costs.clone(), None);
    let length = Length::Auto { costs, most: usize::try_from(args.draft_max)? };
    let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Lookup::default())];
    Ok(replay(&mut Speculation::new(drafters, length), prompt, answer)?)
}

/// What became of a prompt.
#[derive(Debug)]
struct Run<'a> {
    class: &'a str,
    set: &'a str,
    replayed: Replayed,
}

/// The figures of a class and a set.
#[derive(Debug, Serialize)]
struct Row {
    class: String,
    set: String,
    prompts: usize,
    tokens: u64,
    passes: u64,
    drafted: u64,
    accepted: u64,
    /// Over all prompts.
    tokens_per_pass: f64,
    /// Medians over the prompts with their intervals.
    passes_per_token: Interval,
    speed_by_costs: Interval,
    /// The least of a prompt.
    speed_by_costs_min: f64,
    kinds: Vec<KindStats>,
}

/// A median and the interval that holds the true one in 95 of 100 samples.
#[derive(Debug, Serialize)]
struct Interval {
    median: f64,
    low: f64,
    high: f64,
}

impl Interval {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let Estimate { value, low, high } = Sample::independent(values).quantile(0.5)?;
        Some(Self { median: value, low, high })
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    /// Whether the weights are random (SPEC Y1).
    synthetic: bool,
    rows: Vec<Row>,
}

impl Report {
    /// A row for each class and set, in the order of the prompts.
    fn of(model: String, synthetic: bool, runs: &[Run<'_>]) -> Self {
        let mut groups: Vec<(&str, &str)> = Vec::new();
        for run in runs {
            if !groups.contains(&(run.set, run.class)) {
                groups.push((run.set, run.class));
            }
        }
        let row = |&(set, class): &(&str, &str)| {
            let members = runs.iter().filter(|run| (run.set, run.class) == (set, class));
            Row::of(class, set, &members.map(|run| &run.replayed).collect::<Vec<_>>())
        };
        Self { model, synthetic, rows: groups.iter().filter_map(row).collect() }
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    fn markdown(&self) -> String {
        let stamp = if self.synthetic { format!("{SYNTHETIC}\n\n") } else { String::new() };
        let mut text = format!(
            "{stamp}What look-up drafts for greedy answers of {}, counted.\n\n\
             | set | class | prompts | tokens per pass | passes a token | speed by the costs \
             | slowest | accepted |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
            Escaped::new(&self.model)
        );
        // A bar would end the cell.
        let cell = |name: &str| Escaped::new(name).to_string().replace('|', "/");
        let wide = |of: &Interval| format!("{:.3} [{:.3}, {:.3}]", of.median, of.low, of.high);
        for row in &self.rows {
            text += &format!(
                "| {} | {} | {} | {:.2} | {} | {} | {:.2} | {} of {} |\n",
                cell(if row.set.is_empty() { "all" } else { &row.set }),
                cell(&row.class),
                row.prompts,
                row.tokens_per_pass,
                wide(&row.passes_per_token),
                wide(&row.speed_by_costs),
                row.speed_by_costs_min,
                row.accepted,
                row.drafted,
            );
        }
        text += "\nPasses a token and speeds are medians over the prompts with 95 % intervals; \
                 speeds are reckoned from --pass-costs.\n";
        text + &self.kinds()
    }

    /// How often the first token of each kind of guess was right.
    fn kinds(&self) -> String {
        let Some(first) = self.rows.first() else { return String::new() };
        let mut text = String::from("\n| run before the guess |");
        for row in &self.rows {
            text += &format!(" {} {} |", Escaped::new(&row.set), Escaped::new(&row.class));
        }
        text += &format!("\n|---|{}\n", "---:|".repeat(self.rows.len()));
        for (at, kind) in first.kinds.iter().enumerate() {
            text += &format!("| {} |", kind.name);
            for row in &self.rows {
                let KindStats { guesses, right, .. } = row.kinds[at];
                text += &match guesses {
                    0 => " – |".to_owned(),
                    _ => format!(" {:.2} of {guesses} |", right as f64 / guesses as f64),
                };
            }
            text.push('\n');
        }
        text
    }
}

impl Row {
    /// `None` where no prompt had an answer of two tokens.
    fn of(class: &str, set: &str, members: &[&Replayed]) -> Option<Self> {
        let sum = |of: fn(&Replayed) -> u64| members.iter().map(|&replayed| of(replayed)).sum();
        let (tokens, passes): (u64, u64) = (sum(|r| r.stats.tokens), sum(|r| r.stats.passes));
        let answered = || members.iter().filter(|replayed| replayed.stats.tokens > 0);
        let speed = |r: &&&Replayed| r.plain_ms / r.passes_ms;
        let mut kinds: Vec<KindStats> = Vec::new();
        for drafter in members.iter().flat_map(|replayed| &replayed.stats.drafters) {
            if kinds.is_empty() {
                kinds.clone_from(&drafter.kinds);
                continue;
            }
            for (known, of) in kinds.iter_mut().zip(&drafter.kinds) {
                known.guesses += of.guesses;
                known.right += of.right;
                known.drafted += of.drafted;
                known.accepted += of.accepted;
            }
        }
        Some(Self {
            class: class.to_owned(),
            set: set.to_owned(),
            prompts: members.len(),
            tokens,
            passes,
            drafted: sum(|r| r.stats.drafted),
            accepted: sum(|r| r.stats.accepted),
            tokens_per_pass: tokens as f64 / passes as f64,
            passes_per_token: Interval::of(
                answered().map(|r| r.stats.passes as f64 / r.stats.tokens as f64),
            )?,
            speed_by_costs: Interval::of(answered().map(|r| speed(&r)))?,
            speed_by_costs_min: answered().map(|r| speed(&r)).fold(f64::INFINITY, f64::min),
            kinds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_of_passes_are_read_or_refused() {
        assert!((curve("1:2, 3:4").unwrap().at(2, 0) - 3.0).abs() < 1e-9);
        assert!((curve(COSTS).unwrap().at(16, 0) - 3.17).abs() < 1e-9);
        for wrong in ["", "1", "2:1", "1:0", "1:1,1:2", "1:x", "1:nan"] {
            assert!(curve(wrong).is_err(), "{wrong}");
        }
    }
}
