//! The child process that renders: this program again, with limits, for one request.
//!
//! The parent sends the request as JSON over the child's standard input and reads the answer from
//! its standard output. The child limits itself before it reads; the parent keeps the clock and
//! counts the bytes.

use std::env;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::{Limits, RenderInput, Rendered, TemplateError};

/// Set in the child's environment to its limits: bytes of address space and seconds of CPU.
const MARKER: &str = "AIOS_TEMPLATE_CHILD";

/// Whether this program answers as a child. Without that the child would run the whole program.
static ENABLED: AtomicBool = AtomicBool::new(false);

#[derive(Deserialize, Serialize)]
struct Request {
    source: String,
    input: RenderInput,
    spellings: Vec<String>,
    limits: Limits,
}

#[derive(Deserialize, Serialize)]
struct Answer {
    text: String,
    /// Starts and ends of the plain ranges in turn.
    plain: Vec<usize>,
}

/// Makes this program able to render chat templates; call it first thing in `main`.
///
/// When the program was started as a rendering child, this renders, answers and exits. Otherwise
/// it returns at once.
pub fn run_child_if_asked() {
    ENABLED.store(true, Ordering::Relaxed);
    if let Some(limits) = env::var_os(MARKER) {
        let served = limits.to_str().ok_or("not text").and_then(serve);
        exit(i32::from(served.is_err()));
    }
}

/// The child's whole life.
fn serve(limits: &str) -> Result<(), &'static str> {
    let (memory, cpu) = limits.split_once(' ').ok_or("two numbers")?;
    let limit = |resource, value: &str| {
        let value = value.parse().map_err(|_| "a number")?;
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
            .map_err(|_| "the limit was refused")
    };
    limit(Resource::As, memory)?;
    limit(Resource::Cpu, cpu)?;
    limit(Resource::Core, "0")?;
    let mut request = Vec::new();
    io::stdin().lock().read_to_end(&mut request).map_err(|_| "no request")?;
    let request: Request = serde_json::from_slice(&request).map_err(|_| "a bad request")?;
    let max_bytes = request.limits.output_bytes;
    let rendered =
        super::render(&request.source, &request.input, &request.spellings, request.limits.fuel)
            .and_then(|rendered| match rendered.text.len() {
                len if len > max_bytes => Err(TemplateError::OutputTooLong { max_bytes }),
                _ => Ok(rendered),
            });
    let answer = rendered.map(|Rendered { text, plain }| Answer {
        text,
        plain: plain.into_iter().flat_map(|range| [range.start, range.end]).collect(),
    });
    let answer = serde_json::to_vec(&answer).map_err(|_| "no answer")?;
    io::stdout().lock().write_all(&answer).map_err(|_| "nobody listens")
}

/// Renders in a child process.
pub(super) fn render(
    source: &str,
    input: &RenderInput,
    spellings: &[String],
    limits: &Limits,
) -> Result<Rendered, TemplateError> {
    if !ENABLED.load(Ordering::Relaxed) {
        return Err(TemplateError::ChildNotEnabled);
    }
    let request = Request {
        source: source.to_owned(),
        input: input.clone(),
        spellings: spellings.to_vec(),
        limits: *limits,
    };
    let request = serde_json::to_vec(&request).map_err(failed)?;
    let mut child = spawn(limits).map_err(failed)?;
    let answer = exchange(&mut child, request, limits);
    if answer.is_err() {
        // It may have ended by itself, so a failure to kill it says nothing.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let answer = answer?;
    if !status.success() {
        return Err(cause_of_death(status, limits));
    }
    let answer: Result<Answer, TemplateError> = serde_json::from_slice(&answer).map_err(failed)?;
    let Answer { text, plain } = answer?;
    let plain = ranges(&text, &plain)
        .ok_or_else(|| failed("its answer has ranges that do not fit its text"))?;
    Ok(Rendered { text, plain })
}

fn failed(cause: impl ToString) -> TemplateError {
    TemplateError::Child { message: cause.to_string() }
}

fn spawn(limits: &Limits) -> io::Result<Child> {
    // The link leads to this program even after its file was replaced.
    let program =
        if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { env::current_exe()? };
    let cpu_seconds = limits.time.as_secs() + 1;
    Command::new(program)
        .env(MARKER, format!("{} {cpu_seconds}", limits.memory_bytes))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Most bytes of an answer per byte of text: an escaped control character is six, and every
/// second character may begin and end a range of two numbers.
const ANSWER_BYTES_PER_BYTE: usize = 16;

/// Sends the request and reads the whole answer, within the limits on time and length.
fn exchange(
    child: &mut Child,
    request: Vec<u8>,
    limits: &Limits,
) -> Result<Vec<u8>, TemplateError> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed("it has no pipes"));
    };
    let max = limits.output_bytes.saturating_mul(ANSWER_BYTES_PER_BYTE).saturating_add(1 << 16);
    // Both threads end when the child does, which the caller sees to. A child that dies early
    // does not read its request; the reason is in its exit status.
    thread::spawn(move || stdin.write_all(&request));
    let answer = read_within(stdout, max, limits.time)?;
    if answer.len() > max {
        return Err(TemplateError::OutputTooLong { max_bytes: limits.output_bytes });
    }
    Ok(answer)
}

/// Reads to the end, but at most one byte more than `max`.
fn read_within(stdout: ChildStdout, max: usize, time: Duration) -> Result<Vec<u8>, TemplateError> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.take(max as u64 + 1).read_to_end(&mut answer);
        // The receiver is gone when the time ran out.
        let _ = sender.send(read.map(|_| answer));
    });
    match receiver.recv_timeout(time) {
        Ok(read) => read.map_err(failed),
        Err(RecvTimeoutError::Timeout) => {
            let limit_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            Err(TemplateError::OutOfTime { limit_ms })
        }
        Err(RecvTimeoutError::Disconnected) => Err(failed("reading its answer failed")),
    }
}

/// What an exit without an answer means. Running out of address space or of stack aborts.
fn cause_of_death(status: ExitStatus, limits: &Limits) -> TemplateError {
    use rustix::process::Signal;
    use std::os::unix::process::ExitStatusExt;
    let signal = status.signal();
    let is = |wanted: Signal| signal == Some(wanted.as_raw());
    if is(Signal::XCPU) || is(Signal::KILL) {
        let limit_ms = u64::try_from(limits.time.as_millis()).unwrap_or(u64::MAX);
        TemplateError::OutOfTime { limit_ms }
    } else if is(Signal::ABORT) || is(Signal::SEGV) || is(Signal::BUS) {
        TemplateError::OutOfMemory { limit_bytes: limits.memory_bytes }
    } else {
        failed(format!("it ended with {status}"))
    }
}

/// Pairs up the bounds, checking that they ascend and fall on characters of `text`.
fn ranges(text: &str, bounds: &[usize]) -> Option<Vec<Range<usize>>> {
    let (pairs, rest) = bounds.as_chunks::<2>();
    let ascending = bounds.is_sorted() && bounds.iter().all(|&at| text.is_char_boundary(at));
    (ascending && rest.is_empty()).then(|| pairs.iter().map(|&[start, end]| start..end).collect())
}
