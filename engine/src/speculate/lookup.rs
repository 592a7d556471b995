//! The look-up drafter: what followed the last tokens when they last stood in the text is likely
//! to follow again.

use super::automaton::{Automaton, Cursor, Match};

/// Proposes what stood after the longest run of tokens that the text ends with and that stood in
/// it, or in a corpus, before.
#[derive(Debug, Default)]
pub struct Lookup {
    own: Automaton,
    corpora: Vec<(Automaton, Cursor)>,
}

impl Lookup {
    /// A drafter that also looks into `corpora`, which are never forgotten.
    pub fn new(corpora: &[Vec<u32>]) -> Self {
        let known = corpora.iter().map(|text| (Automaton::of(text), Cursor::default()));
        Self { own: Automaton::default(), corpora: known.collect() }
    }

    /// The text is `history` from now on. What it has in common with the text before, from the
    /// start on, is not worked through again if that is all of it.
    pub(super) fn restart(&mut self, history: &[u32]) {
        if !history.starts_with(self.own.text()) {
            self.own = Automaton::default();
            for (_, cursor) in &mut self.corpora {
                *cursor = Cursor::default();
            }
        }
        for &token in &history[self.own.text().len()..] {
            self.push(token);
        }
    }

    /// The text goes on with `token`.
    pub(super) fn push(&mut self, token: u32) {
        self.own.push(token);
        for (automaton, cursor) in &mut self.corpora {
            cursor.push(automaton, token);
        }
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

    /// How many tokens of the text's end stood somewhere before; 0 if nothing can be proposed.
    pub(super) fn matched(&self) -> usize {
        self.found().map_or(0, |(_, found)| found.len)
    }

    /// Appends up to `most` proposed tokens to `out`, which is empty. Where the text itself is
    /// about to end, it is taken to repeat.
    pub(super) fn draft(&self, most: usize, out: &mut Vec<u32>) {
        let Some((automaton, found)) = self.found() else { return };
        let text = automaton.text();
        let own = std::ptr::eq(automaton, &self.own);
        for at in found.next..found.next + most {
            let token = match text.get(at) {
                Some(&token) => token,
                None if own => out[at - text.len()],
                None => return,
            };
            out.push(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(lookup: &Lookup, most: usize) -> Vec<u32> {
        let mut out = Vec::new();
        lookup.draft(most, &mut out);
        out
    }

    #[test]
    fn it_proposes_what_followed_the_longest_match() {
        let mut lookup = Lookup::default();
        lookup.restart(&[5, 1, 2, 3, 4, 6, 2, 3]);
        assert_eq!((lookup.matched(), draft(&lookup, 3)), (2, vec![4, 6, 2]));
        lookup.push(7);
        assert_eq!((lookup.matched(), draft(&lookup, 3)), (0, vec![]));
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
        assert_eq!((lookup.matched(), draft(&lookup, 4)), (4, vec![7]));
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
        assert_eq!(lookup.matched(), 1);
        lookup.restart(&[7]);
        assert_eq!(lookup.matched(), 0);
    }
}
