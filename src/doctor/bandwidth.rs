//! How fast this machine reads memory from one end to the other, which bounds how fast a model can
//! be decoded here.
//!
//! Each thread sums a buffer of its own, which it has also filled, so that on a machine with
//! several memory nodes the pages are near the reader. All threads start a run together; the time
//! is from the first start to the last end. The sum is checked: a read that did not happen cannot
//! be reported.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use serde::Serialize;

/// Independent sums, so that no addition waits for the one before. They fill half of the vector
/// registers of the plainest x86-64, which leaves room for what is being read.
const LANES: usize = 16;

/// A measured streaming read.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Threads that read at the same time.
    pub threads: usize,
    /// The bytes that all of them together read in one run.
    pub bytes: u64,
    /// Gigabytes (10⁹ bytes) per second, one value per run, in the order of the runs.
    pub samples_gb_per_s: Vec<f64>,
    /// The median of the samples.
    pub median_gb_per_s: f64,
}

/// A thread read something else than what was written.
#[derive(Debug, thiserror::Error)]
#[error("the streaming read summed its buffer to {found} where {expected} was written")]
pub struct WrongSum {
    found: u64,
    expected: u64,
}

/// Reads `bytes` of memory (rounded to whole blocks per thread) with `threads` threads, `runs`
/// times after one run that only warms up.
///
/// # Errors
/// [`WrongSum`] if memory does not hold what was put there.
pub fn measure(threads: usize, bytes: u64, runs: usize) -> Result<Measurement, WrongSum> {
    let threads = threads.max(1);
    let runs = runs.max(1);
    let words = usize::try_from(bytes / 8).unwrap_or(usize::MAX / 8) / threads;
    let words = words.next_multiple_of(LANES).max(LANES);
    let barrier = Barrier::new(threads);
    let times: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let work = |seed: u64| {
            let barrier = &barrier;
            move || read_runs(words, seed, runs, barrier)
        };
        let workers: Vec<_> = (0..threads as u64).map(|seed| scope.spawn(work(seed))).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(times) => times,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // Every worker is joined before the first error is returned.
        let joined: Vec<Result<_, WrongSum>> = workers.into_iter().map(join).collect();
        joined.into_iter().collect::<Result<_, _>>()
    })?;
    let bytes = (words * threads * 8) as u64;
    let samples_gb_per_s: Vec<f64> = (0..runs)
        .map(|run| {
            let starts = times.iter().map(|worker| worker[run].0).min();
            let ends = times.iter().map(|worker| worker[run].1).max();
            let seconds = match (starts, ends) {
                (Some(start), Some(end)) => (end - start).as_secs_f64(),
                _ => f64::INFINITY,
            };
            bytes as f64 / 1e9 / seconds
        })
        .collect();
    let median_gb_per_s = median(&samples_gb_per_s);
    Ok(Measurement { threads, bytes, samples_gb_per_s, median_gb_per_s })
}

fn read_runs(
    words: usize,
    seed: u64,
    runs: usize,
    barrier: &Barrier,
) -> Result<Vec<(Instant, Instant)>, WrongSum> {
    let buffer: Vec<u64> = (0..words as u64).map(|i| i ^ seed).collect();
    let expected = buffer.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
    let mut times = Vec::with_capacity(runs);
    let mut found = expected;
    for run in 0..=runs {
        barrier.wait();
        let start = Instant::now();
        let sum = sum(std::hint::black_box(&buffer));
        let end = Instant::now();
        if sum != expected {
            found = sum;
        }
        if run > 0 {
            times.push((start, end));
        }
    }
    if found == expected { Ok(times) } else { Err(WrongSum { found, expected }) }
}

/// The wrapping sum of all words, in `LANES` independent lanes that the compiler keeps in vector
/// registers.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; LANES];
    let blocks = words.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

/// The middle value, or the mean of the two in the middle.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_plain_loop_for_any_length() {
        let words: Vec<u64> = (0..200u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        for n in 0..words.len() {
            let plain = words[..n].iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
            assert_eq!(sum(&words[..n]), plain, "{n}");
        }
    }

    #[test]
    fn a_measurement_has_every_sample_and_their_median() {
        for threads in [1, 3] {
            let measured = measure(threads, 1 << 20, 4).unwrap();
            assert_eq!(measured.threads, threads);
            assert!(measured.bytes >= 1 << 20 && measured.bytes < 2 << 20);
            assert_eq!(measured.samples_gb_per_s.len(), 4);
            assert!(measured.samples_gb_per_s.iter().all(|gb| gb.is_finite() && *gb > 0.0));
        }
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
