//! Speculation by look-up: tokens that are proposed because they followed the last few tokens
//! earlier in the text. Verifying changes no token (SPEC P1), so that how many a pass would give
//! can be counted on a continuation that was generated one by one.

use super::{HeadroomError, Plan, Progress, step};
use crate::profile::ranked;
use crate::prompts::Prompt;
use aios_contract::Role;
use aios_engine::{Executor, Want, argmax};
use aios_residency::Phase;
use serde::Serialize;
use std::collections::BTreeMap;

/// Tokens that must match for what followed them to be proposed.
pub const NGRAM: usize = 3;
/// The most tokens that are proposed for a pass.
pub const DRAFTS: [usize; 2] = [4, 8];

/// What look-up would have proposed for greedy continuations.
#[derive(Clone, Debug, Serialize)]
pub struct Lookup {
    /// Tokens that must match.
    pub ngram: usize,
    /// Prompts that were continued.
    pub prompts: usize,
    /// Tokens generated.
    pub generated: usize,
    /// For each number of proposed tokens.
    pub drafts: Vec<Drafted>,
    /// The same by category of the prompts, where they have one.
    pub categories: Vec<Category>,
}

/// The passes that the continuations would have taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drafted {
    /// The most tokens proposed for a pass.
    pub draft: usize,
    /// Tokens that the passes gave: all that were generated but the first of each continuation,
    /// which comes of reading the prompt.
    pub tokens: usize,
    /// Passes over the weights.
    pub passes: usize,
    /// Tokens proposed.
    pub proposed: usize,
    /// Of these, tokens that the model chose.
    pub accepted: usize,
}

/// The prompts of one category.
#[derive(Clone, Debug, Serialize)]
pub struct Category {
    /// Its name.
    pub name: String,
    /// Prompts that were continued.
    pub prompts: usize,
    /// For each number of proposed tokens.
    pub drafts: Vec<Drafted>,
}

impl Drafted {
    /// Tokens that a pass gives; `None` if there was none.
    pub fn tokens_per_pass(&self) -> Option<f64> {
        (self.passes > 0).then(|| self.tokens as f64 / self.passes as f64)
    }

    fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.passes += other.passes;
        self.proposed += other.proposed;
        self.accepted += other.accepted;
    }
}

/// What the continuations read of a head that is screened (SPEC D5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScreenedHead {
    /// Tokens whose best row was asked for.
    pub tokens: u64,
    /// Of these, tokens for which the head was read whole after all.
    pub whole: u64,
    /// Bytes of its sketch and rows that they read.
    pub bytes: u64,
}

impl ScreenedHead {
    fn add(&mut self, executor: &Executor) {
        let read = executor.ledger().phase(Phase::Decode);
        let of_head = |role| matches!(role, Role::Head | Role::HeadSketch);
        self.bytes +=
            read.roles.iter().filter(|entry| of_head(entry.role)).map(|e| e.bytes).sum::<u64>();
        self.tokens += read.tokens;
        self.whole += executor.screen_stats().whole;
    }

    /// Bytes of a token; `None` without one.
    pub fn bytes_per_token(&self) -> Option<u64> {
        self.bytes.checked_div(self.tokens)
    }
}

/// Continues the texts greedily, by the screen where the executor has one; what that read comes
/// second.
pub(super) fn measure(
    executor: &mut Executor,
    texts: &[(&Prompt, Vec<u32>)],
    plan: &Plan,
    progress: &mut Progress<'_>,
) -> Result<(Lookup, Option<ScreenedHead>), HeadroomError> {
    let mut head = executor.screens_head().then(ScreenedHead::default);
    let count = plan.continued.min(texts.len());
    let mut categories: BTreeMap<Option<&str>, (usize, [Drafted; 2])> = BTreeMap::new();
    let mut generated = 0;
    for i in 0..count {
        let (prompt, ids) = &texts[i * texts.len() / count];
        let sequence =
            generate(executor, ids, plan.generate, &mut || step(progress, "generating", i, count))?;
        if let Some(head) = &mut head {
            head.add(executor);
        }
        generated += sequence.len() - ids.len();
        let empty = || (0, DRAFTS.map(|draft| Drafted { draft, ..Drafted::default() }));
        let (prompts, sums) = categories.entry(prompt.category.as_deref()).or_insert_with(empty);
        *prompts += 1;
        for sum in sums {
            sum.add(replay(&sequence, ids.len(), sum.draft));
        }
    }
    let mut drafts = DRAFTS.map(|draft| Drafted { draft, ..Drafted::default() });
    for (_, sums) in categories.values() {
        drafts.iter_mut().zip(sums).for_each(|(all, sum)| all.add(*sum));
    }
    let named = |(name, (prompts, drafts)): (Option<&str>, (usize, [Drafted; 2]))| {
        Some(Category { name: name?.to_owned(), prompts, drafts: drafts.to_vec() })
    };
    let lookup = Lookup {
        ngram: NGRAM,
        prompts: count,
        generated,
        drafts: drafts.to_vec(),
        categories: categories.into_iter().filter_map(named).collect(),
    };
    Ok((lookup, head))
}

/// `ids` and the likeliest continuation of at most `most` tokens, to the model's end token, which
/// is left out.
fn generate(
    executor: &mut Executor,
    ids: &[u32],
    most: usize,
    between: &mut dyn FnMut() -> Result<(), HeadroomError>,
) -> Result<Vec<u32>, HeadroomError> {
    let mut sequence = ids.to_vec();
    let mut next = 0;
    executor.truncate(0);
    executor.reset_ledger();
    between()?;
    executor.forward(ids, Phase::Prefill, Want::Last, &mut |_, logits| {
        next = argmax(logits).0;
        Ok(())
    })?;
    while sequence.len() < ids.len() + most {
        if executor.model().tokenizer()?.is_end_of_generation(next) {
            break;
        }
        sequence.push(next);
        if sequence.len() < ids.len() + most {
            between()?;
            let token = [next];
            executor.choose(&token, Phase::Decode, Want::Last, Some(1), &mut |_, scores| {
                next = ranked(scores, 1).first().map_or(next, |(id, _)| *id);
                Ok(false)
            })?;
        }
    }
    Ok(sequence)
}

/// The passes that generating `sequence[prompt..]` would have taken with up to `draft` proposed
/// tokens each.
fn replay(sequence: &[u32], prompt: usize, draft: usize) -> Drafted {
    let mut counts = Drafted { draft, ..Drafted::default() };
    // Reading the prompt gives the first token.
    let mut known = prompt + 1;
    while known < sequence.len() {
        let proposed = propose(&sequence[..known], draft);
        let rest = &sequence[known..];
        // What would go beyond the continuation's end is not proposed.
        let proposed = &proposed[..proposed.len().min(rest.len() - 1)];
        let accepted = proposed.iter().zip(rest).take_while(|(a, b)| a == b).count();
        counts.passes += 1;
        counts.proposed += proposed.len();
        counts.accepted += accepted;
        counts.tokens += accepted + 1;
        known += accepted + 1;
    }
    counts
}

/// What followed the last [`NGRAM`] tokens where they occurred last before.
fn propose(known: &[u32], draft: usize) -> &[u32] {
    let Some(start) = known.len().checked_sub(NGRAM) else { return &[] };
    let wanted = &known[start..];
    let found = (0..start).rev().find(|&at| &known[at..at + NGRAM] == wanted);
    found.map_or(&[], |at| {
        let follows = &known[at + NGRAM..];
        &follows[..follows.len().min(draft)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_counted_on_a_known_sequence() {
        // The prompt is 1 2 3 4 5 6; the continuation repeats it and then leaves it.
        let sequence = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 9, 8];
        // 1 is given; 2 and 3 take a pass each, since 6 1 2 and the like are new; after 1 2 3 the
        // proposal is 4 5 6, of which two are right, and the pass gives 9 as well; then 8.
        let counts = replay(&sequence, 6, 4);
        let want = Drafted { draft: 4, tokens: 6, passes: 4, proposed: 3, accepted: 2 };
        assert_eq!(counts, want);
        assert_eq!(counts.tokens_per_pass(), Some(1.5));
        assert_eq!(replay(&sequence, 6, 2).passes, 4);
        assert_eq!(replay(&sequence[..7], 6, 8).tokens_per_pass(), None);
    }

    #[test]
    fn the_last_occurrence_counts_and_may_overlap() {
        assert_eq!(propose(&[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 2), [8, 1]);
        assert_eq!(propose(&[5, 5, 5, 5], 4), [5]);
        assert!(propose(&[1, 2], 4).is_empty() && propose(&[1, 2, 3], 4).is_empty());
    }
}
