//! The values of a manuscript's cells. A cell has one if answers of one condition give it.

use std::collections::BTreeSet;

use super::super::answer::Answer;
use super::super::stratum::{Condition, Results, Stratum};
use super::super::tables::{labelled, routed, sample};
use super::super::{TIERS, tier_name};
use crate::provenance::ExecutionMode;
use crate::statistics::{Sample, quantile};

/// A value, or why there is none.
type Value = Result<String, String>;

/// Where values come from.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) results: &'a Results,
}

/// Python and graphics processors are null in records, since they have no part in an answer.
const NO_PART: &str = "none (has no part in an answer)";

impl<'a> Values<'a> {
    /// The cell of the table under `heading`, in the row that `names` name and in `column`.
    pub(super) fn cell(&self, heading: &str, names: &[&str], column: &str) -> Value {
        match topic(heading) {
            Some(Topic::Routing) => self.routing(name(names, 0)?, column),
            Some(Topic::Speculation) => self.speculation(name(names, 0)?, column),
            Some(Topic::Latency) => self.latency(name(names, 0)?, name(names, 1)?, column),
            Some(Topic::Retrieval) | None => Err("there is no table of that name".to_owned()),
        }
    }

    /// The place in the text under `heading` that stands after `before`, in which 0 marks places.
    pub(super) fn sentence(&self, heading: &str, before: &str) -> Value {
        let (earlier, words) = before.rsplit_once('\u{0}').unwrap_or(("", before));
        let line = before.to_lowercase();
        let of: fn(&Answer) -> f64 = match () {
            () if topic(heading) != Some(Topic::Retrieval) => {
                return Err("no value is known by that name".to_owned());
            }
            () if line.contains("fragments_relevant") => |answer| answer.fragments_relevant,
            () if line.contains("fragments_found") => |answer| answer.fragments_found,
            () => return Err("no value is known by that name".to_owned()),
        };
        let dash = |text: &str| ["–", "-", "—", "to", ","].contains(&text.trim());
        let share = match words.to_lowercase() {
            words if words.contains("iqr") => 0.25,
            words if words.contains("median") => 0.5,
            words if dash(&words) && earlier.to_lowercase().contains("iqr") => 0.75,
            _ => return Err("it is neither median nor IQR".to_owned()),
        };
        let (condition, answers) = self.most_real()?;
        let values = sample(&answers, |answer| Some(of(answer))).sorted();
        let value = quantile(&values, share).ok_or("there is no answer")?;
        Ok(stamped(condition, format!("{value:.0}")))
    }

    /// The answers of `family`, which must all be under one condition.
    fn family(&self, family: &str) -> Result<(&'a Condition, Vec<&'a Answer>), String> {
        let of = |stratum: &'a Stratum| {
            let is = |answer: &&Answer| answer.case.family.eq_ignore_ascii_case(family);
            stratum.answers.iter().filter(is).collect::<Vec<_>>()
        };
        let all = self.results.strata.iter().map(|(condition, stratum)| (condition, of(stratum)));
        one(all.filter(|(_, answers)| !answers.is_empty()).collect(), family)
    }

    /// All answers of the mode nearest to real that there is.
    fn most_real(&self) -> Result<(&'a Condition, Vec<&'a Answer>), String> {
        let strata = self.results.strata.iter().filter(|(_, s)| !s.answers.is_empty());
        let mode = strata.clone().map(|(condition, _)| condition.mode).min();
        let of = strata.filter(|(condition, _)| Some(condition.mode) == mode);
        one(of.map(|(c, stratum)| (c, stratum.answers.iter().collect())).collect(), "it")
    }

    fn routing(&self, family: &str, column: &str) -> Value {
        let (condition, answers) = self.family(family)?;
        let tier = TIERS.into_iter().find(|tier| column.eq_ignore_ascii_case(tier_name(*tier)));
        let (right, n) = routed(&labelled(&answers, tier.ok_or("there is no such tier")?));
        if n == 0 {
            return Err("no prompt of that tier was asked".to_owned());
        }
        let percent = 100.0 * right as f64 / n as f64;
        Ok(stamped(condition, format!("{percent:.1} % ({right}/{n})")))
    }

    fn speculation(&self, family: &str, column: &str) -> Value {
        let (condition, answers) = self.family(family)?;
        let rates: Sample = sample(&answers, |answer| answer.accept_rate);
        let values = rates.sorted();
        let value = match column.to_lowercase() {
            column if column.contains("mean") => rates.mean().map(|mean| mean.value),
            column if column == "min" => values.first().copied(),
            column if column == "max" => values.last().copied(),
            column if column == "samples" || column == "n" => {
                return match values.len() {
                    0 => Err("nothing was drafted".to_owned()),
                    n => Ok(stamped(condition, n.to_string())),
                };
            }
            _ => return Err("there is no such figure".to_owned()),
        };
        let value = value.ok_or("nothing was drafted")?;
        Ok(stamped(condition, format!("{value:.3}")))
    }

    /// The p95 of warm answers, ms.
    fn latency(&self, layer: &str, backend: &str, family: &str) -> Value {
        let (condition, answers) = self.family(family)?;
        let is = |answer: &&&Answer| {
            let case = &answer.case;
            case.warm
                && case.layer.eq_ignore_ascii_case(layer)
                && case.backend.eq_ignore_ascii_case(backend)
        };
        let times = sample(answers.iter().filter(is), |answer| Some(answer.latency_ms)).sorted();
        let value = quantile(&times, 0.95).ok_or("there is no warm answer")?;
        Ok(stamped(condition, format!("{value:.0}")))
    }

    /// The value of `label` in the list of the hardware.
    pub(super) fn environment(&self, label: &str) -> Value {
        match label.to_lowercase().as_str() {
            "python" | "gpu" => Ok(NO_PART.to_owned()),
            "platform" | "os" => self.column("platform"),
            "cpu" => self.column("cpu"),
            _ => Err("nothing of that name is recorded".to_owned()),
        }
    }

    /// What the machine was, on one line.
    pub(super) fn machine(&self) -> Value {
        let bytes = |text: String| {
            let gigabytes =
                |n: &str| n.parse::<f64>().map_or(n.to_owned(), |n| format!("{:.1}", n / 1e9));
            text.split("; ").map(gigabytes).collect::<Vec<_>>().join("; ")
        };
        Ok(format!(
            "{} processors, {} GB of memory, kernels {}, {} threads; virtual machine: {}; aios {}",
            self.column("processors")?,
            bytes(self.column("memory_bytes")?),
            self.column("kernels")?,
            self.column("threads")?,
            self.column("virtual_machine")?,
            self.column("program")?
        ))
    }

    /// All that a column of the environments has.
    fn column(&self, name: &str) -> Value {
        let all = self.results.strata.values().flat_map(|stratum| &stratum.surroundings);
        let columns = all.flat_map(|surroundings| &surroundings.columns);
        let values: BTreeSet<&str> =
            columns.filter(|(found, _)| *found == name).map(|(_, text)| &**text).collect();
        match values.is_empty() || values.contains("unknown") {
            true => Err(format!("{name} was not recorded with every answer")),
            false => Ok(values.into_iter().collect::<Vec<_>>().join("; ")),
        }
    }

    /// What a sentence about backends may not say.
    pub(super) fn notes(&self) -> Vec<String> {
        let Ok((_, answers)) = self.most_real() else { return Vec::new() };
        let median = |backend: &str| {
            let of = answers.iter().filter(|answer| answer.case.backend == backend);
            quantile(&sample(of, |answer| Some(answer.fragments_found)).sorted(), 0.5)
        };
        match (median("carma"), median("simple_rag")) {
            (Some(carma), Some(rag)) if carma != rag => vec![format!(
                "the median of fragments_found is {carma} with CARMA and {rag} with Simple_RAG; a \
                 sentence that calls it consistent would be wrong"
            )],
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Topic {
    Routing,
    Speculation,
    Latency,
    Retrieval,
}

/// What a heading is about, by its first word.
fn topic(heading: &str) -> Option<Topic> {
    match heading.split_whitespace().next()?.to_lowercase().as_str() {
        "routing" => Some(Topic::Routing),
        "speculative" | "speculation" => Some(Topic::Speculation),
        "latency" => Some(Topic::Latency),
        "retrieval" => Some(Topic::Retrieval),
        _ => None,
    }
}

fn name<'n>(names: &[&'n str], index: usize) -> Result<&'n str, String> {
    names.get(index).copied().ok_or_else(|| "its row has no name".to_owned())
}

/// The only one of `all`.
fn one<'a, T>(mut all: Vec<(&'a Condition, T)>, what: &str) -> Result<(&'a Condition, T), String> {
    match all.len() {
        0 => Err(format!("there is no answer of {what}")),
        1 => Ok(all.remove(0)),
        n => Err(format!("{what} has answers of {n} modes or revisions; --bench chooses")),
    }
}

/// A value that is not of a real model says so.
fn stamped(condition: &Condition, value: String) -> String {
    match condition.mode {
        ExecutionMode::Real => value,
        mode => format!("{value} ({})", mode.name()),
    }
}
