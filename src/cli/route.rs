//! `aios route`: which tier a prompt belongs to, and how often that is right.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::config::{Loaded, Place};
use crate::router::{self, Case, NAMES, Route, Scorer, Tier};

/// Tell which tier a prompt belongs to: the model and the budget that it gets.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios route --explain 'Why is the sky blue?'
  aios route --json 'Design a lock-free queue'
  echo 'Thanks!' | aios route
  aios route --prompts prompts.jsonl --json > routes.jsonl
  aios route --evaluate validation/data/router_prompts.jsonl --split heldout

trivial: greetings, thanks, small talk, one fact (small model); moderate: explanation and analysis
(main model); high: reasoning in steps, design, long tasks (main model, larger budget).

A file of prompts has an object on each line: {\"id\", \"text\", \"tier\", \"topic\", \"language\",
\"split\", \"kind\"}. A line without a label is an error.")]
pub(super) struct RouteArgs {
    /// The prompt [default: all of stdin].
    #[arg(value_name = "TEXT", conflicts_with_all = ["prompts", "evaluate"])]
    text: Option<String>,
    /// Print what was measured and why.
    #[arg(long)]
    explain: bool,
    /// Print JSON; with --prompts an object on each line.
    #[arg(long)]
    json: bool,
    /// Take this tier, whatever the prompt.
    #[arg(long, value_name = "TIER", conflicts_with = "evaluate")]
    tier: Option<Tier>,
    /// Route every prompt of a file of labelled prompts.
    #[arg(long, value_name = "FILE", conflicts_with = "evaluate")]
    prompts: Option<PathBuf>,
    /// Compare with the labels of a file: accuracy, confusion, calibration.
    #[arg(long, value_name = "FILE")]
    evaluate: Option<PathBuf>,
    /// Only the prompts of this split.
    #[arg(long, value_name = "SPLIT")]
    split: Option<String>,
}

/// Runs `aios route`.
pub(super) fn run(args: &RouteArgs, place: &Place) -> anyhow::Result<()> {
    let scorer = Scorer::new(Loaded::load(place)?.config.router)?;
    let mut out = io::stdout().lock();
    if let Some(file) = &args.evaluate {
        let evaluation = router::evaluate(&scorer, &cases(file, args)?)
            .with_context(|| format!("{} cannot be evaluated", file.display()))?;
        let report = match args.json {
            true => serde_json::to_string_pretty(&evaluation)? + "\n",
            false => evaluation.tables(),
        };
        out.write_all(report.as_bytes())?;
        return Ok(());
    }
    if let Some(file) = &args.prompts {
        for case in cases(file, args)? {
            let route = scorer.route_as(&case.text, args.tier);
            line(&mut out, &case, &route, args.json)?;
        }
        return Ok(());
    }
    if args.split.is_some() {
        let what = "--split needs --prompts or --evaluate";
        return Err(super::Usage(what.to_owned()).into());
    }
    let text = match &args.text {
        Some(text) => text.clone(),
        None => stdin()?,
    };
    let route = scorer.route_as(&text, args.tier);
    match (args.json, args.explain) {
        (true, _) => writeln!(out, "{}", serde_json::to_string(&route)?)?,
        (false, true) => out.write_all(explained(&route).as_bytes())?,
        (false, false) => writeln!(out, "{}", route.tier.name())?,
    }
    Ok(())
}

fn stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("stdin could not be read")?;
    String::from_utf8(bytes).context("stdin is not UTF-8")
}

fn cases(file: &Path, args: &RouteArgs) -> anyhow::Result<Vec<Case>> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("{} could not be read", file.display()))?;
    let cases = router::cases(&text, args.split.as_deref())
        .with_context(|| format!("{} could not be read", file.display()))?;
    anyhow::ensure!(!cases.is_empty(), "{} has no such prompts", file.display());
    Ok(cases)
}

/// A routed prompt of a file.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    label: Tier,
    topic: Option<&'a str>,
    split: Option<&'a str>,
    #[serde(flatten)]
    route: &'a Route,
}

fn line(out: &mut impl Write, case: &Case, route: &Route, json: bool) -> anyhow::Result<()> {
    let (topic, split) = (case.topic.as_deref(), case.split.as_deref());
    let line = Line { id: &case.id, label: case.tier, topic, split, route };
    match json {
        true => writeln!(out, "{}", serde_json::to_string(&line)?)?,
        false => writeln!(out, "{:8} {:8} {}", line.id, route.tier.name(), route.reason)?,
    }
    Ok(())
}

fn explained(route: &Route) -> String {
    let budget = route.budget;
    let mut out = format!(
        "tier      {}\nreason    {}\nscore     {:.2}, margin {:.2}\nmodel     {}\nbudget    \
         up to {} tokens, {} fragments, {:.1} % of the context for history\nscorer    {}\n",
        route.tier.name(),
        route.reason,
        route.score,
        route.margin,
        route.model.name(),
        budget.max_tokens,
        budget.fragments,
        100.0 * budget.history_share,
        route.scorer_version
    );
    for (name, value) in NAMES.iter().zip(route.features.values()).filter(|(_, v)| *v != 0.0) {
        out += &format!("feature   {name} {value:.2}\n");
    }
    out
}
