//! What a budget of memory comes to (SPEC D24).

use super::{ProfileError, ProfileOptions, Progress, step};
use crate::bench::Statistics;
use aios_engine::{EngineError, Executor, ExecutorOptions, Want, argmax};
use aios_residency::Phase;
use aios_residency::plan::MemoryReport;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Tokens that are decoded: each may read gigabytes.
const TOKENS: usize = 8;
/// Without a read for so long, none is under way: the slowest disk gives a buffer in less.
const SETTLED: Duration = Duration::from_millis(200);

/// Decodes behind `text` with the plan's budget and with `executor`, which has none, in turns.
pub(super) fn measure(
    executor: &mut Executor,
    text: &[u32],
    plan: &ProfileOptions,
    progress: &mut Progress<'_>,
) -> Result<Option<MemoryReport>, ProfileError> {
    let Some(ram) = plan.ram_bytes else { return Ok(None) };
    let options = ExecutorOptions { ram: Some(ram), ..executor.options().clone() };
    let mut limited = Executor::new(Arc::clone(executor.model()), options)?;
    let (last, start) = text.split_last().expect("prompts of two tokens or more");
    let mut sides = [(executor, Vec::new()), (&mut limited, Vec::new())];
    for (executor, _) in &mut sides {
        executor.truncate(0);
        executor.forward(start, Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
        settle(executor);
        executor.reset_ledger();
    }
    let (mut next, mut tokens) = (*last, 0);
    for token in 0..TOKENS.min(plan.generate) {
        step(progress, "measuring the budget", token, TOKENS)?;
        let mut found = Vec::new();
        for (executor, times) in &mut sides {
            let (logits, ms) = decode(executor, next)?;
            times.push(ms);
            found.push(logits);
        }
        let bits = |logits: &Vec<f32>| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        if bits(&found[0]) != bits(&found[1]) {
            return Err(ProfileError::CacheDiffers);
        }
        next = argmax(&found[0]).0;
        tokens += 1;
    }
    let [whole_ms, limited_ms] =
        sides.map(|(_, times)| Statistics::of(times).map_or(0.0, |times| times.median));
    settle(&limited);
    let (stats, read) = (limited.residency(), limited.ledger().phase(Phase::Decode));
    let reserved = stats.reserved_bytes;
    Ok(Some(MemoryReport {
        ram_bytes: ram,
        context: limited.context(),
        hot_bytes: stats.hot_bytes,
        stream_bytes: stats.stream_bytes,
        reserved_bytes: reserved.cache + reserved.activations + reserved.buffers,
        tokens,
        whole_ms,
        limited_ms,
        disk_bytes_per_token: stats.disk_bytes as f64 / read.tokens.max(1) as f64,
    }))
}

/// Waits until nothing more is read ahead of use: with as much ready behind the last token as
/// before the first, what was read in between is what the tokens read.
fn settle(executor: &Executor) {
    let read = || executor.residency().disk_bytes;
    let mut before = None;
    while before != Some(read()) {
        before = Some(read());
        thread::sleep(SETTLED);
    }
}

/// The logits after `id`, and the milliseconds that they took.
fn decode(executor: &mut Executor, id: u32) -> Result<(Vec<f32>, f64), EngineError> {
    let started = Instant::now();
    let mut found = (Vec::new(), 0.0);
    executor.forward(&[id], Phase::Decode, Want::Last, &mut |_, logits| {
        found = (logits.to_vec(), started.elapsed().as_secs_f64() * 1e3);
        Ok(())
    })?;
    Ok(found)
}
