//! Another engine on the same file: llama.cpp as PyPI's `llama-cpp-python` has it.

use super::Spread;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

/// The program that runs it.
const SCRIPT: &str = include_str!("peer.py");
/// What it writes to stderr is kept up to this length.
const STDERR_MAX: u64 = 1 << 20;

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
    /// The processor's features that it was built for, as it calls them.
    pub features: Vec<String>,
    /// Its threads.
    pub threads: usize,
    /// Generated tokens per second.
    pub tokens_per_s: Spread,
}

/// What the other engine is asked for.
#[derive(Clone, Copy, Debug)]
pub struct PeerPlan<'a> {
    /// The Python that it is installed in.
    pub python: &'a str,
    /// The model's file.
    pub path: &'a Path,
    /// Its threads.
    pub threads: usize,
    /// Tokens of a run.
    pub tokens: usize,
    /// Runs, each after loading anew.
    pub runs: usize,
}

/// The first line that the script prints.
#[derive(Debug, Deserialize)]
struct About {
    version: String,
    features: Vec<String>,
}

impl Peer {
    /// Runs llama.cpp. `between` is called with the number of runs done; if it returns false the
    /// other engine is ended.
    pub fn llama_cpp(plan: PeerPlan<'_>, between: &mut dyn FnMut(usize) -> bool) -> Self {
        match run(plan, between) {
            Ok(run) => Self::Ran(run),
            Err(reason) => Self::Missing { reason },
        }
    }
}

fn run(plan: PeerPlan<'_>, between: &mut dyn FnMut(usize) -> bool) -> Result<PeerRun, String> {
    let PeerPlan { python, path, threads, tokens, runs } = plan;
    let numbers = [threads, tokens, runs].map(|number| number.to_string());
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).arg(path).args(numbers);
    let (About { version, features }, samples) = output(command, runs, between)?;
    let tokens_per_s = Spread::of(samples).ok_or("it measured nothing")?;
    Ok(PeerRun { version, features, threads, tokens_per_s })
}

/// What `command` says that it is, and tokens per second of each of `runs` runs.
fn output(
    mut command: Command,
    runs: usize,
    between: &mut dyn FnMut(usize) -> bool,
) -> Result<(About, Vec<f64>), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().map_err(|error| format!("{program} does not start: {error}"))?;
    // Read beside stdout: a pipe that is full would stop the child.
    let stderr = child.stderr.take().map(|pipe| thread::spawn(move || first_part(pipe)));
    let printed = read(&mut child, between);
    if printed.is_err() {
        // Where it has ended by itself there is nothing to end.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("{program} was lost: {error}"))?;
    let said = stderr.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let (about, samples) = printed?;
    if !status.success() {
        if said.contains("No module named 'llama_cpp'") {
            let how = "is not installed; `python3 -m pip install llama-cpp-python` builds it";
            return Err(format!("llama-cpp-python {how} (--python names another Python)"));
        }
        let last = said.trim().lines().last().unwrap_or("it says nothing");
        let last: String = last.chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(format!("{program} ended with {status}: {last}"));
    }
    match about {
        Some(about) if samples.len() == runs => Ok((about, samples)),
        Some(_) => Err(format!("it measured {} runs of {runs}", samples.len())),
        None => Err("it printed nothing, not even its version".to_owned()),
    }
}

/// Reads what the script prints, line by line as it comes; an error if that is something else, or
/// if `between` wants no more.
fn read(
    child: &mut Child,
    between: &mut dyn FnMut(usize) -> bool,
) -> Result<(Option<About>, Vec<f64>), String> {
    let mut about = None;
    let mut samples = Vec::new();
    let lines = child.stdout.take().map(|pipe| BufReader::new(pipe).lines());
    for line in lines.into_iter().flatten() {
        let understood = line.ok().and_then(|line| match &about {
            None => serde_json::from_str(&line).map(|first| about = Some(first)).ok(),
            Some(_) => serde_json::from_str(&line).map(|sample| samples.push(sample)).ok(),
        });
        understood.ok_or("it printed something else than figures")?;
        if !between(samples.len()) {
            return Err("it was stopped".to_owned());
        }
    }
    Ok((about, samples))
}

/// What comes through a pipe, up to a length; what comes after that is read and dropped, so that
/// the writer is not stopped.
fn first_part(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    let kept = pipe.by_ref().take(STDERR_MAX).read_to_end(&mut bytes);
    // A pipe that cannot be read on has said what it has said.
    let _ = kept.and_then(|_| io::copy(&mut pipe, &mut io::sink()));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a shell script in the place of ours.
    fn said(script: &str, stop_at: usize) -> Result<(About, Vec<f64>), String> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut told = 0;
        output(command, 2, &mut |done| {
            assert!(done == 0 || done == told + 1, "{done} after {told}");
            told = done;
            done < stop_at
        })
    }

    const ABOUT: &str = r#"echo '{"version": "1.2", "features": ["AVX2", "FMA"]}'"#;

    #[test]
    fn figures_are_read_as_they_come() {
        // As much on stderr as fills a pipe.
        let noise = "head -c 300000 /dev/zero >&2";
        let found = said(&format!("{noise}; {ABOUT}; echo 10.0; echo 20.5; {noise}"), 9);
        let (about, samples) = found.expect("figures");
        assert_eq!((&*about.version, samples), ("1.2", vec![10.0, 20.5]));
        assert_eq!(about.features, ["AVX2", "FMA"]);
        // One that is told to stop is ended, however long it would go on.
        let stopped = said(&format!("{ABOUT}; echo 10.0; exec sleep 600"), 1);
        assert_eq!(stopped.expect_err("stopped"), "it was stopped");
    }

    #[test]
    fn what_is_missing_is_said() {
        let reason = |script: &str| said(script, 9).err().unwrap_or_default();
        assert_eq!(reason(&format!("{ABOUT}; echo 10.0")), "it measured 1 runs of 2");
        assert_eq!(reason("true"), "it printed nothing, not even its version");
        assert_eq!(reason("echo Hello; exec sleep 600"), "it printed something else than figures");
        assert!(reason("exit 3").contains("3: it says nothing"), "{}", reason("exit 3"));
        assert!(reason("echo a >&2; echo b >&2; false").contains("1: b"));
        let missing = "echo \"ModuleNotFoundError: No module named 'llama_cpp'\" >&2; exit 1";
        assert!(reason(missing).contains("pip install llama-cpp-python"));
        let (python, path) = ("there-is-no-such-program", Path::new("x.gguf"));
        let plan = PeerPlan { python, path, threads: 1, tokens: 1, runs: 1 };
        let none = Peer::llama_cpp(plan, &mut |_| true);
        assert!(matches!(none, Peer::Missing { reason } if reason.contains("does not start")));
    }
}
