//! What drafting would have done with an answer that is known. No target runs: since drafting
//! changes no token, a plain answer tells which drafted tokens would have been taken.

use super::{Length, SpecStats, Speculation, Target};
use crate::error::EngineError;
use crate::sampler::{Sampler, SamplerOptions};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What drafting would have done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replayed {
    /// Its account.
    pub stats: SpecStats,
    /// What the target's passes would have taken by the costs of [`Length::Auto`], in
    /// milliseconds; 0 where lengths are fixed.
    pub passes_ms: f64,
    /// The same without drafts.
    pub plain_ms: f64,
}

/// Lets `speculation` draft for `answer`, which follows `prompt` and was taken greedily. A draft
/// model runs and takes its time; passes of the target take what they are said to cost.
///
/// # Errors
/// Those of a draft model.
pub fn replay(
    speculation: &mut Speculation,
    prompt: &[u32],
    answer: &[u32],
) -> Result<Replayed, EngineError> {
    let mut sampler = Sampler::new(SamplerOptions::greedy())?;
    let costs = match &speculation.length {
        Length::Auto { costs, .. } => Some(costs.target.clone()),
        Length::Fixed(_) => None,
    };
    let cost = |tokens, depth| costs.as_ref().map_or(0.0, |curve| curve.at(tokens, depth));
    let text = [prompt, answer].concat();
    let cancel = AtomicBool::new(false);
    let mut replayed = Replayed::default();
    speculation.restart(prompt);
    // The prompt's pass gives the first token.
    let mut known = prompt.len() + 1;
    answer.iter().take(1).for_each(|&token| speculation.push(token));
    while known < text.len() {
        let rest = &text[known..];
        let mut target =
            Target { history: &text[..known], sampler: &mut sampler, banned: &[], cancel: &cancel };
        let draft = speculation.propose(&mut target, rest.len() - 1, usize::MAX)?;
        let right = draft.iter().zip(rest).take_while(|(a, b)| a == b).count();
        let ms = cost(1 + draft.len(), known - 1);
        replayed.passes_ms += ms;
        let taken = &rest[..=right];
        replayed.plain_ms += (0..taken.len()).map(|i| cost(1, known - 1 + i)).sum::<f64>();
        speculation.learn(draft.len(), taken, Duration::from_secs_f64(ms / 1e3));
        taken.iter().for_each(|&token| speculation.push(token));
        known += taken.len();
    }
    replayed.stats = speculation.stats().clone();
    Ok(replayed)
}

#[cfg(test)]
mod tests {
    use super::super::{Drafter, Lookup, PassCosts, PassCurve};
    use super::*;

    fn lookup(length: Length) -> Speculation {
        let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Lookup::default())];
        Speculation::new(drafters, length)
    }

    /// Costs of a machine whose passes of a few tokens are cheap.
    fn auto() -> Length {
        let points = vec![(1, 10.0), (2, 11.5), (4, 13.5), (8, 19.0), (16, 36.0)];
        let curve = PassCurve::new(points).expect("a curve");
        Length::Auto { costs: PassCosts::known(curve, None), most: 15 }
    }

    #[test]
    fn passes_are_counted_as_if_the_target_had_run() {
        let prompt = [1, 2, 3, 4, 5, 6];
        let replayed = replay(&mut lookup(Length::Fixed(4)), &prompt, &[1, 2, 3, 4, 5, 9, 8]);
        let stats = replayed.expect("no model").stats;
        // 1 is given; 2 3 4 5 and then 9 follow; what comes after 9 is not known.
        assert_eq!((stats.passes, stats.tokens, stats.drafted, stats.accepted), (2, 6, 4, 4));
        assert_eq!((stats.lengths[0], stats.lengths[4]), (1, 1));
    }

    /// Where hardly a guess is right, drafting must not cost more than 3 %.
    #[test]
    fn text_without_repetitions_is_not_slower() {
        for (choices, seed) in [(4, 1), (30, 2), (1000, 3), (100_000, 4)] {
            let mut state: u64 = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                u32::try_from((state >> 33) % choices).unwrap_or(0)
            };
            let prompt: Vec<u32> = (0..200).map(|_| next()).collect();
            let answer: Vec<u32> = (0..400).map(|_| next()).collect();
            let replayed = replay(&mut lookup(auto()), &prompt, &answer).expect("no model");
            let slower = replayed.passes_ms / replayed.plain_ms;
            assert!(slower < 1.03, "{choices}: {slower}");
        }
    }

    #[test]
    fn a_copy_with_another_name_takes_few_passes() {
        // A name of one token becomes one of two, five times, before ever other tokens.
        let line = |name: &[u32], n: u32| [&[100 + n, 7], name, &[8, 200 + n, 9]].concat();
        let file = |name: &[u32]| (0..20).flat_map(|n| line(name, n)).collect::<Vec<u32>>();
        let prompt = file(&[50]);
        let answer = file(&[60, 61]);
        let replayed = replay(&mut lookup(auto()), &prompt, &answer).expect("no model");
        let per_pass = replayed.stats.tokens_per_pass().expect("passes");
        assert!(per_pass > 3.0, "{per_pass}");
        assert!(replayed.passes_ms < 0.5 * replayed.plain_ms);
    }
}
