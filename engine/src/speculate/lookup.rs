//! The look-up drafter: what followed the last tokens when they last stood in the text is likely
//! to follow again.

use super::automaton::{Automaton, Cursor, Match};
use super::{Drafter, Kind, Target};
use crate::error::EngineError;

/// Guesses by how long the run of tokens is that stood before, and whether what followed it there
/// differed; and what follows the place that was being copied when the copy left the original.
/// The chances are near those on prompts of `validation/data/speculation_prompts.jsonl`.
const KINDS: &[Kind] = &[
    Kind { name: "1 token, several followed it", first: 0.1, later: 0.4 },
    Kind { name: "more tokens, several followed them", first: 0.12, later: 0.5 },
    Kind { name: "1 token", first: 0.22, later: 0.5 },
    Kind { name: "2 tokens", first: 0.45, later: 0.6 },
    Kind { name: "3 tokens", first: 0.6, later: 0.7 },
    Kind { name: "4 or 5 tokens", first: 0.75, later: 0.75 },
    Kind { name: "6 to 11 tokens", first: 0.85, later: 0.85 },
    Kind { name: "12 tokens or more", first: 0.95, later: 0.92 },
    Kind { name: "the original, found again", first: 0.3, later: 0.7 },
    Kind { name: "the original, by place", first: 0.1, later: 0.5 },
];
const FOUND_AGAIN: usize = 8;
const BY_PLACE: usize = 9;

/// The kind of a guess that rests on a run.
const fn kind_of(found: Match) -> usize {
    match found.len {
        1 if found.several => 0,
        _ if found.several => 1,
        0..=1 => 2,
        2 => 3,
        3 => 4,
        4..=5 => 5,
        6..=11 => 6,
        _ => 7,
    }
}

/// The place in the text that is being copied with changes, as an edit copies its original. Where
/// the copy differs, a name for another say, it goes on behind the difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Original {
    /// The index of the token that should come next.
    next: usize,
    /// Tokens in a row that were as in the original.
    agreed: usize,
    /// Tokens that were not, since as many as make a copy agreed.
    differed: usize,
}

impl Original {
    /// Tokens in a row that make a copy.
    const AGREE: usize = 4;
    /// More differences than this, and the copy is none any more.
    const DIFFER_MAX: usize = 8;
    /// A token that differs is looked for in so many that follow in the original.
    const SKIP_MAX: usize = 8;

    /// Where the copy of `text` goes on after its last token; `None` if it has ended.
    fn advanced(self, text: &[u32]) -> Option<Self> {
        let (&token, before) = text.split_last()?;
        let Self { next, agreed, differed } = self;
        if before.get(next) == Some(&token) {
            let agreed = agreed + 1;
            let differed = if agreed >= Self::AGREE { 0 } else { differed };
            return Some(Self { next: next + 1, agreed, differed });
        }
        let differed = differed + 1;
        if differed > Self::DIFFER_MAX {
            return None;
        }
        let rest = before.get(next + 1..).unwrap_or_default();
        let skipped = rest.iter().take(Self::SKIP_MAX).position(|&other| other == token);
        Some(match skipped {
            Some(skipped) => Self { next: next + 2 + skipped, agreed: 1, differed },
            // One token for another, and the further ones are more than there were.
            None => Self { next: next + usize::from(differed == 1), agreed: 0, differed },
        })
    }

    /// This place, or that of a run which has just been found in the text.
    fn or_longer(this: Option<Self>, found: Option<Match>) -> Option<Self> {
        let Some(Match { len, next, .. }) = found.filter(|found| found.len >= Self::AGREE) else {
            return this;
        };
        let keeps = this.is_some_and(|old| old.differed == 0 && old.agreed >= len);
        if keeps { this } else { Some(Self { next, agreed: len, differed: 0 }) }
    }
}

/// Proposes what stood after the longest run of tokens that the text ends with and that stood in
/// it, or in a corpus, before.
#[derive(Debug, Default)]
pub struct Lookup {
    own: Automaton,
    corpora: Vec<(Automaton, Cursor)>,
    original: Option<Original>,
}

impl Lookup {
    /// A drafter that also looks into `corpora`, which are never forgotten.
    pub fn new(corpora: &[Vec<u32>]) -> Self {
        let known = corpora.iter().map(|text| (Automaton::of(text), Cursor::default()));
        Self { corpora: known.collect(), ..Self::default() }
    }

    /// The longest match, the text's own of several, and where it is.
    fn found(&self) -> Option<(&Automaton, Match)> {
        let own = self.own.repeated().map(|found| (&self.own, found));
        let corpora = self.corpora.iter().filter_map(|(automaton, cursor)| {
            let found = cursor.found(automaton)?;
            (found.next < automaton.text().len()).then_some((automaton, found))
        });
        // `max_by_key` takes the last of several, and the text's own comes first.
        let longest = corpora.max_by_key(|(_, found)| found.len);
        match (own, longest) {
            (Some(own), Some(other)) if other.1.len <= own.1.len => Some(own),
            (own, other) => other.or(own),
        }
    }

    /// The text to copy from, the place in it, and the kind of the guess.
    fn guess(&self) -> Option<(&Automaton, usize, usize)> {
        let (automaton, found) = self.found()?;
        let left = self.original.filter(|original| found.several && original.differed > 0);
        if let Some(Original { next, agreed, .. }) =
            left.filter(|of| of.next < self.own.text().len())
        {
            let kind = if agreed > 0 { FOUND_AGAIN } else { BY_PLACE };
            return Some((&self.own, next, kind));
        }
        Some((automaton, found.next, kind_of(found)))
    }

    /// Appends up to `most` proposed tokens to `out`, which is empty. Where the text itself is
    /// about to end, it is taken to repeat.
    fn copy(&self, most: usize, out: &mut Vec<u32>) {
        let Some((automaton, next, _)) = self.guess() else { return };
        let text = automaton.text();
        let own = std::ptr::eq(automaton, &self.own);
        for at in next..next + most {
            let token = match text.get(at) {
                Some(&token) => token,
                None if own => out[at - text.len()],
                None => return,
            };
            out.push(token);
        }
    }
}

impl Drafter for Lookup {
    fn name(&self) -> &'static str {
        "lookup"
    }

    /// What `history` has in common with the text before, from the start on, is not worked through
    /// again if that is all of it.
    fn restart(&mut self, history: &[u32]) {
        if !history.starts_with(self.own.text()) {
            self.own = Automaton::default();
            self.original = None;
            for (_, cursor) in &mut self.corpora {
                *cursor = Cursor::default();
            }
        }
        for &token in &history[self.own.text().len()..] {
            self.push(token);
        }
    }

    fn push(&mut self, token: u32) {
        self.own.push(token);
        for (automaton, cursor) in &mut self.corpora {
            cursor.push(automaton, token);
        }
        let moved = self.original.and_then(|original| original.advanced(self.own.text()));
        self.original = Original::or_longer(moved, self.own.repeated());
    }

    fn kinds(&self) -> &'static [Kind] {
        KINDS
    }

    fn kind(&self) -> Option<usize> {
        self.guess().map(|(_, _, kind)| kind)
    }

    fn first(&self) -> Option<u32> {
        let (automaton, next, _) = self.guess()?;
        automaton.text().get(next).copied()
    }

    fn draft(
        &mut self,
        _target: &mut Target<'_>,
        most: usize,
        _goes_on: &dyn Fn(f64, usize) -> bool,
        out: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        self.copy(most, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(lookup: &Lookup, most: usize) -> Vec<u32> {
        let mut out = Vec::new();
        lookup.copy(most, &mut out);
        out
    }

    fn matched(lookup: &Lookup) -> usize {
        lookup.found().map_or(0, |(_, found)| found.len)
    }

    #[test]
    fn it_proposes_what_followed_the_longest_match() {
        let mut lookup = Lookup::default();
        lookup.restart(&[5, 1, 2, 3, 4, 6, 2, 3]);
        assert_eq!((matched(&lookup), draft(&lookup, 3)), (2, vec![4, 6, 2]));
        assert_eq!((lookup.first(), lookup.kind()), (Some(4), Some(3)));
        lookup.push(7);
        assert_eq!((matched(&lookup), draft(&lookup, 3)), (0, vec![]));
        assert_eq!((lookup.first(), lookup.kind()), (None, None));
    }

    #[test]
    fn a_loop_goes_on() {
        let mut lookup = Lookup::default();
        lookup.restart(&[1, 2, 3, 1, 2, 3]);
        assert_eq!(draft(&lookup, 7), [1, 2, 3, 1, 2, 3, 1]);
        lookup.restart(&[4, 4]);
        assert_eq!(draft(&lookup, 3), [4, 4, 4]);
    }

    #[test]
    fn corpora_count_where_they_match_longer_and_end_where_they_end() {
        let mut lookup = Lookup::new(&[vec![1, 2, 3, 9, 9], vec![8, 1, 2, 3, 7]]);
        lookup.restart(&[3, 5, 8, 1, 2, 3]);
        assert_eq!((matched(&lookup), draft(&lookup, 4)), (4, vec![7]));
        lookup.restart(&[1, 2, 3, 5, 1, 2, 3]);
        assert_eq!(draft(&lookup, 2), [5, 1], "the text's own of equally long ones");
    }

    #[test]
    fn a_longer_history_is_taken_up_and_another_begins_afresh() {
        let mut lookup = Lookup::default();
        lookup.restart(&[1, 2, 3]);
        lookup.restart(&[1, 2, 3, 1]);
        assert_eq!(draft(&lookup, 2), [2, 3]);
        lookup.restart(&[7, 7]);
        assert_eq!(matched(&lookup), 1);
        lookup.restart(&[7]);
        assert_eq!(matched(&lookup), 0);
    }

    #[test]
    fn a_copy_goes_on_behind_a_name_that_became_another() {
        let mut lookup = Lookup::default();
        lookup.restart(&[50, 15, 50, 16, 1, 2, 3, 4, 40, 5, 6, 7, 8, 9]);
        [99, 1, 2, 3, 4].into_iter().for_each(|token| lookup.push(token));
        assert_eq!(draft(&lookup, 2), [40, 5]);
        // The name 40 becomes two tokens; different ones followed the second of them before.
        [60, 50].into_iter().for_each(|token| lookup.push(token));
        assert_eq!((lookup.kind(), draft(&lookup, 3)), (Some(BY_PLACE), vec![5, 6, 7]));
        [5, 6].into_iter().for_each(|token| lookup.push(token));
        assert_eq!(draft(&lookup, 2), [7, 8]);
    }

    #[test]
    fn an_original_is_found_again_behind_what_was_left_out_and_given_up_in_the_end() {
        let text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let begun = Original { next: 4, agreed: 4, differed: 0 };
        let after = |tokens: &[u32]| {
            let mut all = text.to_vec();
            tokens.iter().try_fold(begun, |original, &token| {
                all.push(token);
                original.advanced(&all)
            })
        };
        assert_eq!(after(&[5]), Some(Original { next: 5, agreed: 5, differed: 0 }));
        // 5 and 6 are left out.
        assert_eq!(after(&[7]), Some(Original { next: 7, agreed: 1, differed: 1 }));
        assert_eq!(after(&[7, 8, 9, 10]).map(|of| (of.agreed, of.differed)), Some((4, 0)));
        // One token for another, then one more.
        assert_eq!(after(&[77]), Some(Original { next: 5, agreed: 0, differed: 1 }));
        assert_eq!(after(&[77, 78]), Some(Original { next: 5, agreed: 0, differed: 2 }));
        let others: Vec<u32> = (70..79).collect();
        assert_eq!(after(&others[..8]).map(|of| of.differed), Some(8));
        assert_eq!(after(&others), None);
    }
}
