//! What to keep in the last-level cache, and how early to ask for weights (SPEC D22, D23).

use super::ways::{PAYS, Ways};
use super::{ProfileError, ProfileOptions, Progress, step};
use crate::simulate::{Design, Geometry, Hierarchy, Policy, reads};
use aios_engine::{EngineError, Executor, Want};
use aios_residency::Phase;
use aios_residency::plan::{KeepReport, PrefetchReport};

/// Parts of the cache, in sixteenths, that are tried.
const SHARES: [u64; 4] = [8, 10, 12, 14];
/// Distances that are tried beside this program's own choice.
const DISTANCES: [usize; 7] = [0, 1024, 2048, 4096, 8192, 16_384, 32_768];
/// The simulated caches: one a thread, and how many ways the last one has.
const PRIVATE: (u64, u32) = (1 << 20, 16);
const WAYS: u32 = 16;
const LINE: u32 = 64;
/// Tokens that warm the simulated caches up, and tokens that count.
const WARM_UP: usize = 1;
const COUNTED: usize = 2;

/// Looks for the part of the cache that lets the simulation through least, and measures it; `None`
/// where the cache holds all weights, its size is not known, or keeping some saves nothing.
pub(super) fn keep(
    executor: &mut Executor,
    texts: &[&[u32]],
    plan: &ProfileOptions,
    progress: &mut Progress<'_>,
) -> Result<Option<KeepReport>, ProfileError> {
    let weights: u64 = executor.model().bytes_per_token().iter().map(|(_, bytes)| bytes).sum();
    let Some(llc) = plan.llc_bytes.filter(|llc| weights > llc / 16 * 14) else { return Ok(None) };
    let Some(design) = design(llc) else { return Ok(None) };
    let mut best: Option<(f64, u64)> = None;
    let mut plain = 0.0;
    for (i, share) in [None].into_iter().chain(SHARES.map(Some)).enumerate() {
        step(progress, "simulating the cache", i, SHARES.len() + 1)?;
        let room = share.map(|share| llc / 16 * share);
        executor.keep_in_cache(room);
        let read = simulated(executor, design, texts[0])?;
        match room {
            None => plain = read,
            Some(room) if read < best.map_or(plain, |best| best.0) => best = Some((read, room)),
            Some(_) => {}
        }
    }
    executor.keep_in_cache(None);
    let Some((simulated_kept, room)) = best else { return Ok(None) };
    let timed = Ways {
        doing: "measuring the cache",
        count: 2,
        set: &|executor, way| executor.keep_in_cache((way == 1).then_some(room)),
        seen: &mut |_, _| {},
        differ: || ProfileError::CacheDiffers,
    }
    .decode(executor, texts, plan, progress)?;
    executor.keep_in_cache(Some(room));
    let kept = executor.kept();
    executor.keep_in_cache(None);
    let [plain_ms, kept_ms] = [0, 1].map(|way| timed.of_all(way));
    Ok(kept.map(|kept| KeepReport {
        pays: kept_ms < PAYS * plain_ms,
        room,
        kept_bytes: kept.kept_bytes,
        past_bytes: kept.past_bytes,
        simulated_plain: plain,
        simulated_kept,
        tokens: timed.tokens,
        plain_ms,
        kept_ms,
    }))
}

/// A private cache before a last-level one of about so many bytes; `None` if that is no cache.
fn design(llc: u64) -> Option<Design> {
    let way = u64::from(WAYS) * u64::from(LINE);
    let shared = Geometry::new(llc / way * way, WAYS, LINE).ok()?;
    let private = Geometry::new(PRIVATE.0.min(llc / 2) / way * way, PRIVATE.1, LINE).ok()?;
    Some(Design { private, shared, policy: Policy::Independent })
}

/// DRAM reads of a token after the text, behind simulated caches.
fn simulated(executor: &mut Executor, design: Design, ids: &[u32]) -> Result<f64, ProfileError> {
    executor.truncate(0);
    let (last, start) = ids.split_last().expect("prompts of two tokens or more");
    executor.forward(start, Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
    let hierarchy = Hierarchy::new(design, 1).expect("a private and a shared cache of one line");
    // What tokens these are makes no difference to what is read.
    let decode = |executor: &mut Executor, tokens: usize| -> Result<(), EngineError> {
        for _ in 0..tokens {
            executor.forward(&[*last], Phase::Decode, Want::Last, &mut |_, _| Ok(()))?;
        }
        Ok(())
    };
    let groups = reads(executor, hierarchy, &mut |executor, warm| {
        decode(executor, WARM_UP)?;
        warm();
        decode(executor, COUNTED)
    })?;
    Ok(groups.iter().map(|(_, bytes)| bytes).sum::<u64>() as f64 / COUNTED as f64)
}

/// Looks for the distance at which tokens are decoded fastest.
pub(super) fn prefetch(
    executor: &mut Executor,
    texts: &[&[u32]],
    plan: &ProfileOptions,
    progress: &mut Progress<'_>,
) -> Result<PrefetchReport, ProfileError> {
    let usual = executor.asks_ahead();
    let others = DISTANCES.into_iter().filter(|distance| *distance != usual);
    let distances: Vec<usize> = std::iter::once(usual).chain(others).collect();
    let timed = Ways {
        doing: "measuring prefetches",
        count: distances.len(),
        set: &|executor, way| executor.ask_ahead(distances[way]),
        seen: &mut |_, _| {},
        differ: || ProfileError::CacheDiffers,
    }
    .decode(executor, texts, plan, progress)?;
    let by_time = |a: &usize, b: &usize| timed.chosen_by(*a).total_cmp(&timed.chosen_by(*b));
    let fastest = (0..distances.len()).min_by(by_time).unwrap_or(0);
    let [usual_ms, fastest_ms] = [0, fastest].map(|way| timed.judged_by(way));
    let pays = fastest_ms < PAYS * usual_ms;
    Ok(PrefetchReport {
        ahead: if pays { distances[fastest] } else { usual },
        usual,
        fastest: distances[fastest],
        tokens: timed.tokens,
        usual_ms,
        fastest_ms,
    })
}
