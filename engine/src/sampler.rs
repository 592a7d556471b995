//! Choosing the next token. The order is llama.cpp's: repetition penalty, top-k, top-p, min-p,
//! temperature, then a draw.
//!
//! The draw is Gumbel-max: each candidate's logit over the temperature gets noise that depends on
//! (seed, position, token), and the largest sum wins, which follows the softmax exactly.

use crate::error::EngineError;
use crate::forward::Scores;
use crate::noise::{Purpose, gumbel, gumbel_below, uniform};
use std::cmp::Ordering;

/// Sampling parameters, with llama.cpp's names and defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities sum to this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below this fraction of the most likely one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty looks at.
    pub repeat_last_n: usize,
    /// The seed.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`EngineError::Sampling`], which names the parameter.
    pub fn check(&self) -> Result<(), EngineError> {
        let range = |name, value: f32, ok, problem| {
            if ok { Ok(()) } else { Err(EngineError::Sampling { name, value, problem }) }
        };
        let Self { temperature: t, top_p, min_p, repeat_penalty: penalty, .. } = *self;
        range("--temp", t, t.is_finite() && t >= 0.0, "it must be 0 or more")?;
        range("--top-p", top_p, (0.0..=1.0).contains(&top_p), "it must be between 0 and 1")?;
        range("--min-p", min_p, (0.0..=1.0).contains(&min_p), "it must be between 0 and 1")?;
        let positive = penalty.is_finite() && penalty > 0.0;
        range("--repeat-penalty", penalty, positive, "it must be more than 0")
    }
}

/// The index of the largest logit, the lowest of several, and its margin over the next largest.
/// Logits must be finite.
///
/// # Panics
/// If there are none.
pub fn argmax(logits: &[f32]) -> (u32, f32) {
    let mut best = (0, logits[0]);
    let mut second = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate().skip(1) {
        if logit > best.1 {
            second = best.1;
            best = (id, logit);
        } else if logit > second {
            second = logit;
        }
    }
    (u32::try_from(best.0).unwrap_or(u32::MAX), best.1 - second)
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// More likely first, the lower id first among equals.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The logits of a piece in which the next candidate is looked for.
const PIECE: usize = 64;

/// The largest of a piece, which compilers turn into vector instructions.
fn largest(piece: &[f32]) -> f32 {
    piece.iter().fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max })
}

/// The id of the most likely token, the lowest of several; 0 if there are none.
fn best(logits: &[f32]) -> u32 {
    let mut best: Option<Candidate> = None;
    for (first, piece) in (0..).step_by(PIECE).zip(logits.chunks(PIECE)) {
        if best.is_some_and(|best| largest(piece) < best.logit) {
            continue;
        }
        for (id, &logit) in (first..).zip(piece) {
            let next = Candidate { id, logit };
            if best.is_none_or(|best| by_rank(&next, &best) == Ordering::Less) {
                best = Some(next);
            }
        }
    }
    best.map_or(0, |best| best.id)
}

/// The `k` most likely tokens, ranked, all of them if `k` is 0; those of logit −∞ left out.
fn rank_best(logits: &[f32], k: usize, ranked: &mut Vec<Candidate>) {
    let k = if k == 0 { logits.len() } else { k.min(logits.len()) };
    // What ranks behind this is not among the k best.
    let mut bar: Option<Candidate> = None;
    for (first, piece) in (0..).step_by(PIECE).zip(logits.chunks(PIECE)) {
        if bar.is_some_and(|bar| largest(piece) < bar.logit) {
            continue;
        }
        for (id, &logit) in (first..).zip(piece) {
            let next = Candidate { id, logit };
            if bar.is_none_or(|bar| by_rank(&next, &bar) == Ordering::Less) {
                ranked.push(next);
            }
        }
        if ranked.len() >= 2 * k + PIECE {
            ranked.select_nth_unstable_by(k - 1, by_rank);
            ranked.truncate(k);
            bar = ranked.last().copied();
        }
    }
    ranked.sort_unstable_by(by_rank);
    ranked.truncate(k);
    ranked.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
}

/// A sampler and its buffers.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    /// Logits after penalties and bans, where there are any.
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    /// [`EngineError::Sampling`].
    pub fn new(options: SamplerOptions) -> Result<Self, EngineError> {
        options.check()?;
        Ok(Self { options, adjusted: Vec::new(), candidates: Vec::new(), weights: Vec::new() })
    }

    /// The token that follows `history`, to stand at `position`, given finite logits. Tokens in
    /// `banned` are never chosen unless there is nothing else.
    pub fn sample(
        &mut self,
        logits: &[f32],
        history: &[u32],
        banned: &[u32],
        position: usize,
    ) -> u32 {
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let logits = self.adjust(logits, history, banned, &mut adjusted);
        let id = if self.options.temperature == 0.0 {
            best(logits)
        } else {
            self.choose_among(logits);
            self.draw(position)
        };
        self.adjusted = adjusted;
        id
    }

    /// How many of the highest logits suffice to take a token when `banned` tokens are never
    /// chosen; `None` if all are needed. A penalty that lowers some logits lets others rise in
    /// rank, but not above more than that.
    pub fn needs(&self, banned: usize) -> Option<usize> {
        /// Beyond these, most rows may be among the best.
        const TOP_K_MAX: usize = 64;
        let SamplerOptions { temperature, top_k, repeat_penalty, repeat_last_n, .. } = self.options;
        let taken = if temperature == 0.0 { 1 } else { top_k };
        let lowered = match repeat_penalty {
            1.0 => 0,
            penalty if penalty > 1.0 => repeat_last_n,
            _ => return None,
        };
        (1..=TOP_K_MAX).contains(&taken).then_some(taken + banned + lowered)
    }

    /// As [`Self::sample`], given the scores of at least as many of the best tokens as
    /// [`Self::needs`] says.
    pub fn choose(
        &mut self,
        scores: Scores<'_>,
        history: &[u32],
        banned: &[u32],
        position: usize,
    ) -> u32 {
        let best = match scores {
            Scores::All(logits) => return self.sample(logits, history, banned, position),
            Scores::Best(best) => best,
        };
        let penalty = self.options.repeat_penalty;
        let recent = &history[history.len().saturating_sub(self.options.repeat_last_n)..];
        self.candidates.clear();
        for &(id, mut logit) in best.iter().filter(|(id, _)| !banned.contains(id)) {
            if penalty != 1.0 && recent.contains(&id) {
                logit *= if logit > 0.0 { 1.0 / penalty } else { penalty };
            }
            self.candidates.push(Candidate { id, logit });
        }
        self.candidates.sort_unstable_by(by_rank);
        if self.options.temperature == 0.0 {
            return self.candidates.first().map_or(0, |candidate| candidate.id);
        }
        self.candidates.truncate(self.options.top_k);
        self.candidates.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
        self.keep_top_p();
        self.keep_min_p();
        self.draw(position)
    }

    /// The logits with penalties and bans, in `buffer` if there are any.
    fn adjust<'a>(
        &self,
        logits: &'a [f32],
        history: &[u32],
        banned: &[u32],
        buffer: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let penalty = self.options.repeat_penalty;
        let bans = !banned.is_empty() && banned.len() < logits.len();
        if penalty == 1.0 && !bans {
            return logits;
        }
        buffer.clear();
        buffer.extend_from_slice(logits);
        if penalty != 1.0 {
            let recent = &history[history.len().saturating_sub(self.options.repeat_last_n)..];
            for (i, id) in recent.iter().enumerate() {
                if recent[..i].contains(id) {
                    continue;
                }
                if let Some(logit) = buffer.get_mut(*id as usize) {
                    *logit *= if *logit > 0.0 { 1.0 / penalty } else { penalty };
                }
            }
        }
        for &id in banned.iter().filter(|_| bans) {
            if let Some(logit) = buffer.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        buffer
    }

    /// Fills `weights` with e^(logit − best), so that the first is 1.
    fn weigh(&mut self) {
        let best = self.candidates.first().map_or(0.0, |candidate| f64::from(candidate.logit));
        self.weights.clear();
        let weight = |candidate: &Candidate| libm::exp(f64::from(candidate.logit) - best);
        self.weights.extend(self.candidates.iter().map(weight));
    }

    fn keep_top_p(&mut self) {
        let p = f64::from(self.options.top_p);
        if p >= 1.0 {
            return;
        }
        self.weigh();
        let total: f64 = self.weights.iter().sum();
        let mut sum = 0.0;
        let reaches = |weight: &f64| {
            sum += weight;
            sum >= p * total
        };
        if let Some(last) = self.weights.iter().position(reaches) {
            self.candidates.truncate(last + 1);
        }
    }

    fn keep_min_p(&mut self) {
        let min_p = f64::from(self.options.min_p);
        if min_p <= 0.0 {
            return;
        }
        self.weigh();
        let kept = self.weights.iter().take_while(|&&weight| weight >= min_p).count();
        self.candidates.truncate(kept.max(1));
    }

    /// The tokens that [`Self::sample`] would choose among, with their probabilities, the most
    /// likely first; at temperature 0 one token.
    pub fn distribution(
        &mut self,
        logits: &[f32],
        history: &[u32],
        banned: &[u32],
    ) -> Vec<(u32, f64)> {
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let logits = self.adjust(logits, history, banned, &mut adjusted);
        let temperature = f64::from(self.options.temperature);
        let list = if temperature == 0.0 {
            vec![(best(logits), 1.0)]
        } else {
            self.choose_among(logits);
            self.candidates.sort_unstable_by(by_rank);
            let first = self.candidates.first().map_or(0.0, |first| f64::from(first.logit));
            let weight = |of: &Candidate| libm::exp((f64::from(of.logit) - first) / temperature);
            let total: f64 = self.candidates.iter().map(weight).sum();
            self.candidates.iter().map(|of| (of.id, weight(of) / total)).collect()
        };
        self.adjusted = adjusted;
        list
    }

    /// Fills `candidates` with what the filters leave: ranked, unless there is no filter.
    fn choose_among(&mut self, logits: &[f32]) {
        let SamplerOptions { top_k, top_p, min_p, .. } = self.options;
        self.candidates.clear();
        if top_k == 0 && top_p >= 1.0 && min_p <= 0.0 {
            let all = (0..).zip(logits).map(|(id, &logit)| Candidate { id, logit });
            self.candidates.extend(all.filter(|one| one.logit > f32::NEG_INFINITY));
            return;
        }
        rank_best(logits, top_k, &mut self.candidates);
        self.keep_top_p();
        self.keep_min_p();
    }

    /// The candidate with the largest sum of scaled logit and noise, that of the better rank among
    /// equals.
    fn draw(&self, position: usize) -> u32 {
        /// Far above what rounding makes of logarithms and exponentials.
        const MARGIN: f64 = 1e-9;
        let SamplerOptions { temperature, seed, .. } = self.options;
        let scaled = |logit: f32| f64::from(logit) / f64::from(temperature);
        let logits = self.candidates.iter().map(|candidate| candidate.logit);
        let largest = scaled(logits.fold(f32::NEG_INFINITY, f32::max));
        let mut best: Option<(&Candidate, f64)> = None;
        // Whatever has less noise than the likeliest token would need cannot win. The uniform
        // number tells that without a logarithm.
        let mut least = 0.0;
        for candidate in &self.candidates {
            let u = uniform(seed, position as u64, Purpose::Token, u64::from(candidate.id));
            if u < least {
                continue;
            }
            let score = scaled(candidate.logit) + gumbel(u);
            let wins = |(other, most): (&Candidate, f64)| {
                score > most || (score == most && by_rank(candidate, other) == Ordering::Less)
            };
            if best.is_none_or(wins) {
                best = Some((candidate, score));
                least = gumbel_below(score - largest) * (1.0 - MARGIN);
            }
        }
        best.map_or(0, |(candidate, _)| candidate.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options).expect("good options")
    }

    #[test]
    fn the_best_are_found_as_by_sorting_all() {
        let mut state = 1_u64;
        let mut next = |choices: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % choices
        };
        for n in [1, 63, 64, 65, 500, 3000] {
            // Few different values, so that there are many ties, zeros of both signs among them.
            let values = [-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, f32::NEG_INFINITY];
            let coarse: Vec<f32> = (0..n).map(|_| values[next(7) as usize]).collect();
            let fine: Vec<f32> = (0..n).map(|_| next(1 << 20) as f32 / 1e5).collect();
            for logits in [coarse, fine] {
                let mut all: Vec<_> =
                    (0..).zip(&logits).map(|(id, &logit)| Candidate { id, logit }).collect();
                all.sort_by(by_rank);
                assert_eq!(best(&logits), all[0].id);
                for k in [0, 1, 2, 40, n, n + 1] {
                    let mut found = Vec::new();
                    rank_best(&logits, k, &mut found);
                    let wanted = all.iter().take(if k == 0 { n } else { k });
                    let wanted = wanted.filter(|one| one.logit > f32::NEG_INFINITY);
                    assert!(found.iter().map(|one| one.id).eq(wanted.map(|one| one.id)));
                }
            }
        }
    }

    const OPEN: SamplerOptions = SamplerOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        seed: 11,
    };

    /// χ² of `draws` draws against the softmax of `logits` at temperature 1.
    fn chi_square(sampler: &mut Sampler, logits: &[f32], draws: usize, bias: usize) -> f64 {
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let mut counts = vec![0_u32; logits.len()];
        for position in 0..draws {
            let mut id = sampler.sample(logits, &[], &[], position) as usize;
            if bias > 0 && position % bias == 0 {
                id = 0;
            }
            counts[id] += 1;
        }
        let expected = |x: f32| f64::from(x).exp() / total * draws as f64;
        let term = |(x, n): (&f32, &u32)| (f64::from(*n) - expected(*x)).powi(2) / expected(*x);
        logits.iter().zip(&counts).map(term).sum()
    }

    #[test]
    fn draws_follow_the_softmax_and_a_biased_sampler_is_caught() {
        let logits = [0.5, 1.5, -0.5, 0.0, 2.0, 1.0, -1.0, 0.25];
        // 7 degrees of freedom: 99.99 % of samples lie below 29.9.
        let fair = chi_square(&mut sampler(OPEN), &logits, 200_000, 0);
        assert!(fair < 29.9, "{fair}");
        let biased = chi_square(&mut sampler(OPEN), &logits, 200_000, 50);
        assert!(biased > 100.0, "{biased}");
    }

    #[test]
    fn numbers_that_are_left_out_could_not_have_won() {
        let logits: Vec<f32> = (0..300_u64).map(|i| (i * i % 97) as f32 / 9.0).collect();
        for temperature in [0.05, 0.8, 1.0, 30.0] {
            let mut sampler = sampler(SamplerOptions { temperature, ..OPEN });
            let all = sampler.distribution(&logits, &[], &[]);
            for position in 0..3000 {
                let score = |&(id, _): &(u32, f64)| {
                    let u = uniform(OPEN.seed, position as u64, Purpose::Token, u64::from(id));
                    f64::from(logits[id as usize]) / f64::from(temperature) + gumbel(u)
                };
                let scored = all.iter().map(|one| (one.0, score(one)));
                let best = scored.reduce(|best, next| if next.1 > best.1 { next } else { best });
                let found = sampler.sample(&logits, &[], &[], position);
                assert_eq!(Some(found), best.map(|(id, _)| id));
            }
        }
    }

    #[test]
    fn the_distribution_is_what_is_drawn_from() {
        let logits = [0.5, 3.0, 1.0, 2.9, -5.0];
        let list = |options| sampler(options).distribution(&logits, &[], &[3]);
        let open = list(OPEN);
        assert_eq!(open.iter().map(|one| one.0).collect::<Vec<_>>(), [1, 2, 0, 4]);
        assert!((open.iter().map(|one| one.1).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((open[0].1 / open[1].1 - 2_f64.exp()).abs() < 1e-12);
        let two = list(SamplerOptions { top_k: 2, temperature: 0.5, ..OPEN });
        assert_eq!(two.len(), 2);
        assert!((two[0].1 / two[1].1 - 4_f64.exp()).abs() < 1e-9);
        assert_eq!(list(SamplerOptions::greedy()), [(1, 1.0)]);
    }

    #[test]
    fn filters_keep_what_they_should() {
        let logits = [0.0, 3.0, 1.0, 2.9, -5.0];
        let ids = |options: SamplerOptions| {
            let mut sampler = sampler(options);
            let mut seen: Vec<u32> =
                (0..3000).map(|position| sampler.sample(&logits, &[], &[], position)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(ids(SamplerOptions { top_k: 2, ..OPEN }), [1, 3]);
        assert_eq!(ids(SamplerOptions { top_p: 0.4, ..OPEN }), [1]);
        assert_eq!(ids(SamplerOptions { min_p: 0.5, ..OPEN }), [1, 3]);
        assert_eq!(ids(SamplerOptions { temperature: 0.0, ..OPEN }), [1]);
        let mut sampler = sampler(SamplerOptions { temperature: 0.0, ..OPEN });
        assert_eq!(sampler.sample(&logits, &[], &[1, 3], 0), 2);
    }

    #[test]
    fn a_penalty_counts_once_and_only_for_recent_tokens() {
        let options =
            SamplerOptions { temperature: 0.0, repeat_penalty: 2.0, repeat_last_n: 2, ..OPEN };
        let mut sampler = sampler(options);
        let logits = [2.0, 1.5, -1.0];
        assert_eq!(sampler.sample(&logits, &[0, 2, 2], &[], 0), 0);
        assert_eq!(sampler.sample(&logits, &[0, 0], &[], 0), 1);
    }

    #[test]
    fn bad_parameters_are_named() {
        for options in [
            SamplerOptions { temperature: f32::NAN, ..OPEN },
            SamplerOptions { top_p: 1.5, ..OPEN },
            SamplerOptions { min_p: -0.1, ..OPEN },
            SamplerOptions { repeat_penalty: 0.0, ..OPEN },
        ] {
            assert!(matches!(Sampler::new(options), Err(EngineError::Sampling { .. })));
        }
    }

    #[test]
    fn argmax_takes_the_first_of_equals() {
        assert_eq!(argmax(&[1.0, 5.0, 5.0, 2.0]), (1, 0.0));
        assert_eq!(argmax(&[4.0, 1.0, 3.5]), (0, 0.5));
    }
}
