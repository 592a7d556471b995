//! The same tokens decoded in several ways, in turns, every logit compared with `==`.

use super::{ProfileError, ProfileOptions, Progress, step};
use crate::bench::Statistics;
use aios_engine::{Executor, Want, argmax};
use aios_residency::Phase;
use std::time::Instant;

/// A way pays if the median time with it is below this part of that without.
pub(super) const PAYS: f64 = 0.995;

/// Ways to decode.
pub(super) struct Ways<'a> {
    /// What is being done, for people.
    pub doing: &'static str,
    /// How many there are.
    pub count: usize,
    /// Sets an executor up for one of them.
    pub set: &'a dyn Fn(&mut Executor, usize),
    /// Is shown the executor after a token in one of them.
    pub seen: &'a mut dyn FnMut(&Executor, usize),
    /// The error where their logits differ.
    pub differ: fn() -> ProfileError,
}

/// What decoding in several ways took.
pub(super) struct Timed {
    /// Milliseconds, by way, of every other round of tokens, by which one of them may be chosen,
    /// and of the rest, by which it is judged; in a round each way comes first once.
    times: [Vec<Vec<f64>>; 2],
    /// Tokens that were decoded in all ways.
    pub tokens: u64,
}

impl Timed {
    /// The median in the tokens by which a way may be chosen.
    pub(super) fn chosen_by(&self, way: usize) -> f64 {
        median(&self.times[0][way])
    }

    /// The median in those by which it is judged.
    pub(super) fn judged_by(&self, way: usize) -> f64 {
        median(&self.times[1][way])
    }

    /// The median of all, for a way that was not chosen among others.
    pub(super) fn of_all(&self, way: usize) -> f64 {
        median(&[&*self.times[0][way], &self.times[1][way]].concat())
    }
}

fn median(times: &[f64]) -> f64 {
    Statistics::of(times.to_vec()).map_or(0.0, |times| times.median)
}

impl Ways<'_> {
    /// Continues the texts greedily, each token in all ways; the first way is set in the end.
    pub(super) fn decode(
        mut self,
        executor: &mut Executor,
        texts: &[&[u32]],
        plan: &ProfileOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Timed, ProfileError> {
        let empty = || vec![Vec::new(); self.count];
        let mut timed = Timed { times: [empty(), empty()], tokens: 0 };
        for (i, ids) in texts.iter().take(plan.continued).enumerate() {
            step(progress, self.doing, i, texts.len().min(plan.continued))?;
            executor.truncate(0);
            let (last, start) = ids.split_last().expect("prompts of two tokens or more");
            executor.forward(start, Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
            let mut next = *last;
            for _ in 0..plan.generate {
                next = self.token(executor, next, &mut timed)?;
            }
        }
        (self.set)(executor, 0);
        Ok(timed)
    }

    /// Decodes one token in all ways and returns the next.
    fn token(
        &mut self,
        executor: &mut Executor,
        id: u32,
        timed: &mut Timed,
    ) -> Result<u32, ProfileError> {
        let (len, token) = (executor.len(), timed.tokens as usize);
        let mut found: Vec<Vec<u32>> = vec![Vec::new(); self.count];
        for turn in 0..self.count {
            // What comes first finds colder caches, so the order changes.
            let way = (token + turn) % self.count;
            executor.truncate(len);
            (self.set)(executor, way);
            executor.reset_ledger();
            let started = Instant::now();
            let mut ms = 0.0;
            executor.forward(&[id], Phase::Decode, Want::Last, &mut |_, logits| {
                ms = started.elapsed().as_secs_f64() * 1e3;
                found[way] = logits.iter().map(|logit| logit.to_bits()).collect();
                Ok(())
            })?;
            timed.times[token / self.count % 2][way].push(ms);
            (self.seen)(executor, way);
        }
        if found.iter().any(|other| *other != found[0]) {
            return Err((self.differ)());
        }
        timed.tokens += 1;
        let logits: Vec<f32> = found[0].iter().map(|bits| f32::from_bits(*bits)).collect();
        Ok(argmax(&logits).0)
    }
}
