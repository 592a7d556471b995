//! Whether the screen pays here: the same passes with it and with the whole head, alternating, and
//! every result compared with `==`.

use super::{ProfileError, ProfileOptions, Progress, step};
use crate::bench::Statistics;
use aios_contract::Role;
use aios_engine::{EngineError, Executor, HeadScreen, Scores, ScreenStats, Want};
use aios_residency::Phase;
use aios_residency::plan::{POSITIONS_MOST, Screened, Times};
use std::sync::Arc;
use std::time::Instant;

/// Positions of the passes that are timed, beside one.
const SEVERAL: [usize; 3] = [2, 4, 8];
/// Timed passes of several positions.
const PASSES: usize = 12;
/// The screen pays if the median time with it is below this part of that without.
const PAYS: f64 = 0.995;
/// The best rows that are compared.
const TOP: usize = 40;

/// What was measured.
#[derive(Debug)]
pub(super) struct Measured {
    /// Positions of a pass up to which the screen saves time in greedy decoding; 0 if never.
    pub positions_most: usize,
    /// Likewise where the 40 best are wanted.
    pub top_40_positions_most: usize,
    pub greedy: Screened,
    pub top_40: Screened,
    pub times: Vec<Times>,
}

/// Head bytes and rows over some positions.
#[derive(Default)]
struct Count {
    /// All positions.
    positions: u64,
    screened: ScreenStats,
    bytes: u64,
}

impl Count {
    fn of(self, best: usize, head_bytes: usize) -> Screened {
        let ScreenStats { positions: tried, whole, refined, rows } = self.screened;
        let positions = self.positions;
        // Where so many are wanted of so few rows nothing is tried.
        let whole = whole + positions.saturating_sub(tried);
        let all = positions.max(1) as f64 * head_bytes as f64;
        Screened { best, positions, whole, refined, rows, fraction: self.bytes as f64 / all }
    }
}

/// A pass as it was judged: for each position ids and bits of logits, ranked.
type Ranks = Vec<Vec<(u32, u32)>>;

struct Measurer<'a> {
    executor: &'a mut Executor,
    screen: Arc<HeadScreen>,
}

/// Continues the texts greedily and times passes of several positions over them.
pub(super) fn measure(
    executor: &mut Executor,
    screen: Arc<HeadScreen>,
    texts: &[&[u32]],
    plan: &ProfileOptions,
    progress: &mut Progress<'_>,
) -> Result<Measured, ProfileError> {
    let head_bytes = executor.model().head().1.len();
    let mut measurer = Measurer { executor, screen };
    let (mut greedy, mut top) = (Count::default(), Count::default());
    let (mut whole_ms, mut screened_ms) = (Vec::new(), [Vec::new(), Vec::new()]);
    for (i, ids) in texts.iter().take(plan.continued).enumerate() {
        step(progress, "measuring", i, texts.len().min(plan.continued))?;
        measurer.read(ids)?;
        let mut next = *ids.last().unwrap_or(&0);
        for token in 0..plan.generate {
            let before = measurer.executor.len();
            let mut run = |best, count: &mut Count| {
                measurer.executor.truncate(before);
                measurer.pass(&[next], best, count)
            };
            let [mut whole, mut one, mut many] = [const { (0.0, Ranks::new()) }; 3];
            // What comes first finds colder caches, so the order changes.
            for turn in 0..3 {
                match (token + turn) % 3 {
                    0 => whole = run(None, &mut Count::default())?,
                    1 => one = run(Some(1), &mut greedy)?,
                    _ => many = run(Some(TOP), &mut top)?,
                }
            }
            let best = whole.1[0].first().copied();
            if one.1[0].first().copied() != best || many.1[0] != whole.1[0] {
                return Err(ProfileError::Differs);
            }
            whole_ms.push(whole.0);
            screened_ms[0].push(one.0);
            screened_ms[1].push(many.0);
            next = best.map_or(0, |best| best.0);
        }
    }
    let mut times = Vec::new();
    for (best, screened_ms) in [1, TOP].into_iter().zip(screened_ms) {
        times.extend(medians((best, 1), [whole_ms.clone(), screened_ms]));
        for positions in SEVERAL {
            step(progress, "measuring passes", positions, POSITIONS_MOST)?;
            let several = measurer.several(texts, positions, best)?;
            times.extend(medians((best, positions), several));
        }
    }
    Ok(Measured {
        positions_most: paying(&times, 1),
        top_40_positions_most: paying(&times, TOP),
        greedy: greedy.of(1, head_bytes),
        top_40: top.of(TOP, head_bytes),
        times,
    })
}

/// Positions of a pass up to which the screen saves time where so many best rows are wanted; 0 if
/// never.
fn paying(times: &[Times], best: usize) -> usize {
    let pays = |times: &&Times| times.screened_ms < PAYS * times.whole_ms;
    let of_best = times.iter().filter(|times| times.best == best);
    of_best.take_while(pays).last().map_or(0, |times| times.positions)
}

fn medians((best, positions): (usize, usize), [whole, screened]: [Vec<f64>; 2]) -> Option<Times> {
    let samples = whole.len();
    let (whole, screened) = (Statistics::of(whole)?, Statistics::of(screened)?);
    let (whole_ms, screened_ms) = (whole.median, screened.median);
    Some(Times { best, positions, whole_ms, screened_ms, samples })
}

impl Measurer<'_> {
    /// Reads all of a text but its last token.
    fn read(&mut self, ids: &[u32]) -> Result<(), EngineError> {
        self.executor.truncate(0);
        let start = &ids[..ids.len() - 1];
        match start.is_empty() {
            true => Ok(()),
            false => self.executor.forward(start, Phase::Prefill, Want::None, &mut |_, _| Ok(())),
        }
    }

    /// A pass over `ids` that wants `best` of every position's logits, and what it took in
    /// milliseconds.
    fn pass(
        &mut self,
        ids: &[u32],
        best: Option<usize>,
        count: &mut Count,
    ) -> Result<(f64, Ranks), EngineError> {
        let screen = best.map(|_| Arc::clone(&self.screen));
        self.executor.screen(screen);
        self.executor.reset_ledger();
        let mut ranks = Ranks::new();
        let started = Instant::now();
        let mut ranking = 0.0;
        self.executor.choose(ids, Phase::Decode, Want::All, best, &mut |_, scores| {
            // To rank is the sampler's work, which takes the same time for the same candidates.
            let started = Instant::now();
            ranks.push(ranked(scores, best.unwrap_or(TOP)));
            ranking += started.elapsed().as_secs_f64();
            Ok(true)
        })?;
        let ms = (started.elapsed().as_secs_f64() - ranking) * 1e3;
        self.executor.screen(None);
        count.positions += ids.len() as u64;
        count.screened.add(&self.executor.screen_stats());
        let read = self.executor.ledger().phase(Phase::Decode);
        let head =
            read.roles.iter().filter(|entry| matches!(entry.role, Role::Head | Role::HeadSketch));
        count.bytes += head.map(|entry| entry.bytes).sum::<u64>();
        Ok((ms, ranks))
    }

    /// Times of passes over several tokens of the texts, with the whole head and with the screen.
    fn several(
        &mut self,
        texts: &[&[u32]],
        positions: usize,
        best: usize,
    ) -> Result<[Vec<f64>; 2], ProfileError> {
        let mut times = [Vec::new(), Vec::new()];
        let long = texts.iter().filter(|ids| ids.len() > positions);
        for (i, ids) in long.cycle().take(PASSES).enumerate() {
            self.read(&ids[..=ids.len() - positions])?;
            let (before, ids) = (self.executor.len(), &ids[ids.len() - positions..]);
            let mut results = Vec::new();
            for turn in 0..2 {
                let screened = (i + turn) % 2 == 1;
                self.executor.truncate(before);
                let wanted = screened.then_some(best);
                let (ms, mut ranks) = self.pass(ids, wanted, &mut Count::default())?;
                times[usize::from(screened)].push(ms);
                ranks.iter_mut().for_each(|rank| rank.truncate(best));
                results.push(ranks);
            }
            if results[0] != results[1] {
                return Err(ProfileError::Differs);
            }
        }
        Ok(times)
    }
}

/// The `k` best, ranked as the sampler ranks them (SPEC N9), with the bits of their logits.
pub(crate) fn ranked(scores: Scores<'_>, k: usize) -> Vec<(u32, u32)> {
    let mut list: Vec<(u32, f32)> = match scores {
        Scores::All(logits) => (0..).zip(logits.iter().copied()).collect(),
        Scores::Best(best) => best.to_vec(),
    };
    let by_rank = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if list.len() > k {
        list.select_nth_unstable_by(k, by_rank);
        list.truncate(k);
    }
    list.sort_unstable_by(by_rank);
    list.into_iter().map(|(id, logit)| (id, logit.to_bits())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each number of best rows has its own limit, and a pass that is faster again behind one that
    /// is not does not count.
    #[test]
    fn a_screen_pays_up_to_the_first_pass_that_it_does_not_speed_up() {
        let of = |best, positions, screened_ms| Times {
            best,
            positions,
            whole_ms: 1.0,
            screened_ms,
            samples: 9,
        };
        let times = [
            of(1, 1, 0.7),
            of(1, 2, 0.9),
            of(1, 4, 0.999),
            of(1, 8, 0.5),
            of(TOP, 1, 0.996),
            of(TOP, 2, 0.8),
        ];
        assert_eq!((paying(&times, 1), paying(&times, TOP)), (2, 0));
        assert_eq!(paying(&times[..1], 1), 1);
        assert_eq!(paying(&times[5..], TOP), 2);
        assert_eq!(paying(&[], 1), 0);
    }
}
