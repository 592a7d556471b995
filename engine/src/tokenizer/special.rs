//! Finding the spellings of special tokens in a text.
//!
//! The rule (SPEC.md, T5): take the longest special token first, then the next longest, and so on;
//! each claims, from left to right, its occurrences in what is not claimed yet. Tokens of one
//! length go by id. Done literally that is one pass over the text per token, which is too slow for
//! vocabularies with thousands of them. Instead:
//!
//! 1. For every position, one binary search in the sorted spellings finds the longest one that
//!    starts there; each spelling links to the next shorter one that it starts with.
//! 2. A heap hands out these candidates in the order of the rule. One that fits claims its place.
//!    One that is cut off by a claim made before is put back as the next shorter spelling that
//!    fits; one whose start is taken is dropped.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;

use super::vocab::Vocab;

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    /// Bytes of the text between special tokens; not empty.
    Text(Range<usize>),
    /// A special token.
    Token(u32),
}

/// The spellings to look for.
pub(super) struct Finder {
    /// Sorted by spelling.
    entries: Vec<Entry>,
    /// Whether a spelling starts with this byte.
    starts: [bool; 256],
}

struct Entry {
    id: u32,
    spelling: Box<str>,
    /// The longest other spelling that this one starts with.
    shorter: Option<u32>,
    /// Whether the token swallows the white space after it.
    strips_after: bool,
}

/// A spelling at a place in the text; the order in which places are claimed is the order of the
/// fields, greatest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    len: usize,
    id: Reverse<u32>,
    at: Reverse<usize>,
    entry: u32,
}

/// A claimed place, keyed by its start.
struct Claim {
    id: u32,
    end: usize,
}

impl Finder {
    /// A finder for the tokens `ids`, of which those that `strips_after` accepts swallow the white
    /// space after them.
    pub(super) fn new(
        vocab: &Vocab,
        ids: impl Iterator<Item = u32>,
        strips_after: impl Fn(&str) -> bool,
    ) -> Self {
        let mut entries: Vec<Entry> = ids
            .map(|id| {
                let spelling = vocab.spelling(id);
                let strips_after = strips_after(spelling);
                Entry { id, spelling: spelling.into(), shorter: None, strips_after }
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.spelling.cmp(&b.spelling));
        let mut starts = [false; 256];
        // The spellings that the current one starts with follow each other on this stack.
        let mut prefixes: Vec<u32> = Vec::new();
        for index in 0..entries.len() {
            let spelling = &*entries[index].spelling;
            starts[spelling.as_bytes()[0] as usize] = true;
            while let Some(&top) = prefixes.last() {
                if spelling.starts_with(&*entries[top as usize].spelling) {
                    break;
                }
                prefixes.pop();
            }
            entries[index].shorter = prefixes.last().copied();
            prefixes.push(index as u32);
        }
        Self { entries, starts }
    }

    /// Whether this finder looks for the token `id`.
    pub(super) fn has(&self, id: u32) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }

    /// The fragments of `text` in order.
    pub(super) fn split(&self, text: &str) -> Vec<Fragment> {
        self.split_if(text, &|_, _| true)
    }

    /// The fragments of `text` in order, if only those occurrences count that `allowed` accepts,
    /// given the token and its bytes in the text.
    pub(super) fn split_if(
        &self,
        text: &str,
        allowed: &dyn Fn(u32, Range<usize>) -> bool,
    ) -> Vec<Fragment> {
        let claims = self.claims(text.as_bytes(), allowed);
        let mut fragments = Vec::with_capacity(2 * claims.len() + 1);
        let mut done = 0;
        for (start, claim) in claims {
            fragments.extend((done < start).then_some(Fragment::Text(done..start)));
            fragments.push(Fragment::Token(claim.id));
            done = claim.end;
        }
        fragments.extend((done < text.len()).then_some(Fragment::Text(done..text.len())));
        fragments
    }

    fn claims(
        &self,
        text: &[u8],
        allowed: &dyn Fn(u32, Range<usize>) -> bool,
    ) -> BTreeMap<usize, Claim> {
        let mut claims: BTreeMap<usize, Claim> = BTreeMap::new();
        let mut queue: BinaryHeap<Candidate> = (0..text.len())
            .filter(|&at| self.starts[text[at] as usize])
            .filter_map(|at| Some(self.candidate(self.longest_at(&text[at..])?, at)))
            .collect();
        while let Some(Candidate { at: Reverse(at), entry, .. }) = queue.pop() {
            if claims.range(..=at).next_back().is_some_and(|(_, claim)| claim.end > at) {
                continue;
            }
            let limit = claims.range(at..).next().map_or(text.len(), |(&start, _)| start);
            let fits = |entry: &Entry| {
                let end = at + entry.spelling.len();
                end <= limit && allowed(entry.id, at..end)
            };
            match self.fitting(entry, fits) {
                Some(fits) if fits == entry => {
                    let Entry { id, ref spelling, strips_after, .. } = self.entries[entry as usize];
                    let mut end = at + spelling.len();
                    if strips_after {
                        end += text[end..limit].iter().take_while(|&&b| is_c_space(b)).count();
                    }
                    claims.insert(at, Claim { id, end });
                }
                Some(fits) => queue.push(self.candidate(fits, at)),
                None => {}
            }
        }
        claims
    }

    fn candidate(&self, entry: u32, at: usize) -> Candidate {
        let Entry { id, ref spelling, .. } = self.entries[entry as usize];
        Candidate { len: spelling.len(), id: Reverse(id), at: Reverse(at), entry }
    }

    /// The longest spelling that `text` starts with.
    fn longest_at(&self, text: &[u8]) -> Option<u32> {
        // Every spelling that the text starts with sorts before the text and after, or as, every
        // shorter one of them. The last spelling before the text therefore starts with all of them.
        let after = self.entries.partition_point(|entry| entry.spelling.as_bytes() <= text);
        let mut index = after.checked_sub(1)? as u32;
        while !text.starts_with(self.entries[index as usize].spelling.as_bytes()) {
            index = self.entries[index as usize].shorter?;
        }
        Some(index)
    }

    /// The longest spelling that `fits` accepts among `entry` and those it starts with.
    fn fitting(&self, entry: u32, fits: impl Fn(&Entry) -> bool) -> Option<u32> {
        let mut index = entry;
        while !fits(&self.entries[index as usize]) {
            index = self.entries[index as usize].shorter?;
        }
        Some(index)
    }
}

/// White space as C's `isspace` has it.
fn is_c_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gguf::Metadata;

    fn vocab(spellings: &[String]) -> Vocab {
        let mut metadata = Metadata::new();
        metadata.set("tokenizer.ggml.tokens", spellings.to_vec());
        metadata.set("tokenizer.ggml.token_type", vec![3; spellings.len()]);
        Vocab::from_metadata(&metadata).unwrap()
    }

    /// The rule done literally: one pass over the fragments per token, the longest token first.
    fn split_by_passes(vocab: &Vocab, strips: impl Fn(&str) -> bool, text: &str) -> Vec<Fragment> {
        let mut ids: Vec<u32> = vocab.ids().collect();
        ids.sort_by_key(|&id| (Reverse(vocab.spelling(id).len()), id));
        let mut fragments = vec![Fragment::Text(0..text.len())];
        for id in ids {
            let spelling = vocab.spelling(id);
            let mut finer = Vec::new();
            for fragment in fragments {
                let Fragment::Text(Range { mut start, end }) = fragment else {
                    finer.push(fragment);
                    continue;
                };
                while let Some(at) = text[start..end].find(spelling) {
                    finer.push(Fragment::Text(start..start + at));
                    finer.push(Fragment::Token(id));
                    start += at + spelling.len();
                    if strips(spelling) {
                        let rest = &text[start..end];
                        start = end - rest.trim_start_matches([' ', '\n']).len();
                    }
                }
                finer.push(Fragment::Text(start..end));
            }
            fragments = finer;
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Text(range) if range.is_empty()));
        fragments
    }

    #[test]
    fn the_heap_finds_what_passes_over_the_text_find() {
        let spellings = prop::collection::btree_set("[ab \n]{1,5}", 1..12);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        runner
            .run(&(spellings, "[abc \n]{0,60}"), |(spellings, text)| {
                let vocab = vocab(&Vec::from_iter(spellings));
                for strips in [|_: &str| false, |spelling: &str| spelling.contains('b')] {
                    let finder = Finder::new(&vocab, vocab.ids(), strips);
                    let expected = split_by_passes(&vocab, strips, &text);
                    prop_assert_eq!(finder.split(&text), expected);
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn the_longest_token_wins_before_the_leftmost() {
        let vocab = vocab(&["ab".into(), "bcd".into(), "a".into()]);
        let finder = Finder::new(&vocab, vocab.ids(), |_| false);
        assert_eq!(finder.split("abcd"), [Fragment::Token(2), Fragment::Token(1)]);
    }
}
