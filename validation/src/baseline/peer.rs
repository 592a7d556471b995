//! Another engine on the same file: llama.cpp as PyPI's `llama-cpp-python` has it.

use crate::bench::Statistics;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;

/// The program that runs it.
const SCRIPT: &str = include_str!("peer.py");

/// What became of the other engine.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Peer {
    /// It ran.
    Ran(PeerRun),
    /// It did not.
    Missing {
        /// Why, and what to do about it.
        reason: String,
    },
}

/// The other engine's runs.
#[derive(Clone, Debug, Serialize)]
pub struct PeerRun {
    /// Its version.
    pub version: String,
    /// Generated tokens per second.
    pub tokens_per_s: Statistics,
}

/// What the script prints.
#[derive(Deserialize)]
struct Printed {
    version: String,
    samples: Vec<f64>,
}

impl Peer {
    /// Runs llama.cpp in `python` on the file at `path`.
    pub fn llama_cpp(
        python: &str,
        path: &Path,
        threads: usize,
        tokens: usize,
        runs: usize,
    ) -> Self {
        let numbers = [threads, tokens, runs].map(|number| number.to_string());
        let done = Command::new(python).args(["-c", SCRIPT]).arg(path).args(numbers).output();
        let missing = |reason: String| Self::Missing { reason };
        let output = match done {
            Ok(output) => output,
            Err(error) => return missing(format!("{python} does not start: {error}")),
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.trim().lines().last().unwrap_or("it says nothing");
            let last: String = last.chars().filter(|c| !c.is_control()).take(200).collect();
            return missing(if said.contains("No module named 'llama_cpp'") {
                "it is not installed; `python3 -m pip install llama-cpp-python` builds it"
                    .to_owned()
            } else {
                format!("{python} ended with {}: {last}", output.status)
            });
        }
        match serde_json::from_slice::<Printed>(&output.stdout) {
            Ok(Printed { version, samples }) => match Statistics::of(samples) {
                Some(tokens_per_s) => Self::Ran(PeerRun { version, tokens_per_s }),
                None => missing("it measured nothing".to_owned()),
            },
            Err(error) => missing(format!("it printed something else than figures: {error}")),
        }
    }
}
