//! A suffix automaton that grows by a token at a time (Blumer et al. 1985): it knows every run of
//! tokens that a text holds, and where it stood.

use hashbrown::HashMap;

/// No state.
const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;
/// Suffixes of the text whose last place is noted with each token. A bound keeps a token's work
/// constant; texts of one repeated token would have as many suffixes as tokens.
const NOTED: usize = 16;

/// A set of runs of tokens that end at the same places of the text.
#[derive(Clone, Copy, Debug)]
struct State {
    /// The longest of the runs.
    len: u32,
    /// The state of the longest suffix that ends at more places.
    link: u32,
    /// The text up to one of those places, in tokens: the latest that was noted.
    end: u32,
    /// The first of the state's edges, in a list.
    edges: u32,
}

/// An edge in the list of its state. Targets are kept in a table, since they may change.
#[derive(Clone, Copy, Debug)]
struct Edge {
    token: u32,
    next: u32,
}

/// Where a run of tokens was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Its length.
    pub len: usize,
    /// The index of the token that followed it.
    pub next: usize,
    /// Whether different tokens followed it at different places.
    pub several: bool,
}

/// The automaton of a text.
#[derive(Clone, Debug)]
pub(super) struct Automaton {
    text: Vec<u32>,
    states: Vec<State>,
    edges: Vec<Edge>,
    targets: HashMap<(u32, u32), u32>,
    /// The state of the whole text.
    last: u32,
    /// The longest suffix of the text that stood in it before.
    repeated: Option<Match>,
}

impl Default for Automaton {
    fn default() -> Self {
        let root = State { len: 0, link: NONE, end: 0, edges: NONE };
        Self {
            text: Vec::new(),
            states: vec![root],
            edges: Vec::new(),
            targets: HashMap::new(),
            last: ROOT,
            repeated: None,
        }
    }
}

impl Automaton {
    /// The automaton of `text`.
    pub(super) fn of(text: &[u32]) -> Self {
        let mut automaton = Self::default();
        for &token in text {
            automaton.push(token);
        }
        automaton
    }

    /// The text.
    pub(super) fn text(&self) -> &[u32] {
        &self.text
    }

    /// The longest suffix of the text that stood in it before.
    pub(super) const fn repeated(&self) -> Option<Match> {
        self.repeated
    }

    /// Appends a token; amortised constant time.
    ///
    /// # Panics
    /// If the text has 2³¹ tokens, which no context holds.
    pub(super) fn push(&mut self, token: u32) {
        assert!(self.text.len() < 1 << 31, "a text that fits the numbers of states");
        self.text.push(token);
        let len = self.states[self.last as usize].len + 1;
        let new = self.add_state(State { len, link: ROOT, end: len, edges: NONE });
        let mut at = self.last;
        while at != NONE && !self.targets.contains_key(&(at, token)) {
            self.add_edge(at, token, new);
            at = self.states[at as usize].link;
        }
        if at != NONE {
            let target = self.targets[&(at, token)];
            let link = match self.states[at as usize].len + 1 {
                len if self.states[target as usize].len == len => target,
                len => self.split(at, token, target, len),
            };
            self.states[new as usize].link = link;
        }
        self.last = new;
        self.note(len);
    }

    /// Keeps what the text's suffixes knew of earlier places, then notes the present one.
    fn note(&mut self, end: u32) {
        let mut at = self.states[self.last as usize].link;
        let State { len, end: next, .. } = self.states[at as usize];
        self.repeated = (at != ROOT).then_some(self.found(len, next, at));
        for _ in 0..NOTED {
            if at == ROOT || at == NONE {
                break;
            }
            let state = &mut self.states[at as usize];
            state.end = end;
            at = state.link;
        }
    }

    /// A run of `len` tokens that is of the state `at` and was last seen before `next`.
    fn found(&self, len: u32, next: u32, at: u32) -> Match {
        let edge = self.states[at as usize].edges;
        let several = edge != NONE && self.edges[edge as usize].next != NONE;
        Match { len: len as usize, next: next as usize, several }
    }

    /// Divides `target`: runs of at most `len` tokens, which also end elsewhere, get a state of
    /// their own. `at` and its suffixes lead there from now on.
    fn split(&mut self, at: u32, token: u32, target: u32, len: u32) -> u32 {
        let old = self.states[target as usize];
        let short = self.add_state(State { len, edges: NONE, ..old });
        let mut edge = old.edges;
        while edge != NONE {
            let Edge { token, next } = self.edges[edge as usize];
            let to = self.targets[&(target, token)];
            self.add_edge(short, token, to);
            edge = next;
        }
        self.states[target as usize].link = short;
        let mut from = at;
        while from != NONE && self.targets.get(&(from, token)) == Some(&target) {
            self.targets.insert((from, token), short);
            from = self.states[from as usize].link;
        }
        short
    }

    fn add_state(&mut self, state: State) -> u32 {
        self.states.push(state);
        // A text has fewer than twice as many states as tokens.
        u32::try_from(self.states.len() - 1).unwrap_or(NONE)
    }

    fn add_edge(&mut self, from: u32, token: u32, to: u32) {
        let next = self.states[from as usize].edges;
        self.edges.push(Edge { token, next });
        self.states[from as usize].edges = u32::try_from(self.edges.len() - 1).unwrap_or(NONE);
        self.targets.insert((from, token), to);
    }
}

/// The longest suffix of another text that stands in an automaton's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    state: u32,
    len: u32,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { state: ROOT, len: 0 }
    }
}

impl Cursor {
    /// The other text goes on with `token`; amortised constant time.
    pub(super) fn push(&mut self, automaton: &Automaton, token: u32) {
        loop {
            if let Some(&to) = automaton.targets.get(&(self.state, token)) {
                (self.state, self.len) = (to, self.len + 1);
                return;
            }
            let link = automaton.states[self.state as usize].link;
            if link == NONE {
                *self = Self::default();
                return;
            }
            (self.state, self.len) = (link, automaton.states[link as usize].len);
        }
    }

    /// Where the suffix stood, unless it is empty.
    pub(super) fn found(&self, automaton: &Automaton) -> Option<Match> {
        let next = automaton.states[self.state as usize].end;
        (self.len > 0).then(|| automaton.found(self.len, next, self.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The longest suffix of `text` that also ends before its end.
    fn longest_repeated(text: &[u32]) -> usize {
        let n = text.len();
        (1..n)
            .rev()
            .find(|&len| (len..n).any(|end| text[end - len..end] == text[n - len..]))
            .unwrap_or(0)
    }

    /// Whether different tokens follow the last `len` tokens of `text` where they stand before.
    fn follow_differently(text: &[u32], len: usize) -> bool {
        let end = &text[text.len() - len..];
        let places = (len..text.len()).filter(|&next| &text[next - len..next] == end);
        let follow: std::collections::HashSet<u32> = places.map(|next| text[next]).collect();
        follow.len() > 1
    }

    /// The longest suffix of `other` that stands in `text`.
    fn longest_contained(text: &[u32], other: &[u32]) -> usize {
        let stands = |run: &[u32]| text.windows(run.len()).any(|window| window == run);
        (1..=other.len()).rev().find(|&len| stands(&other[other.len() - len..])).unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, ..ProptestConfig::default()
        })]
        #[test]
        fn matches_are_the_longest_and_stand_where_they_say(
            text in prop::collection::vec(0_u32..4, 0..60),
            other in prop::collection::vec(0_u32..5, 0..40),
        ) {
            let mut automaton = Automaton::default();
            for (i, &token) in text.iter().enumerate() {
                automaton.push(token);
                let found = automaton.repeated();
                prop_assert_eq!(found.map_or(0, |m| m.len), longest_repeated(&text[..=i]));
                if let Some(Match { len, next, several }) = found {
                    prop_assert!(next <= i && next >= len);
                    prop_assert_eq!(&text[next - len..next], &text[i + 1 - len..=i]);
                    prop_assert_eq!(several, follow_differently(&text[..=i], len));
                }
            }
            let mut cursor = Cursor::default();
            for (i, &token) in other.iter().enumerate() {
                cursor.push(&automaton, token);
                let found = cursor.found(&automaton);
                prop_assert_eq!(found.map_or(0, |m| m.len), longest_contained(&text, &other[..=i]));
                if let Some(Match { len, next, .. }) = found {
                    prop_assert_eq!(&text[next - len..next], &other[i + 1 - len..=i]);
                }
            }
        }
    }

    #[test]
    fn work_and_memory_are_linear() {
        for text in
            [vec![1; 50_000], (0..50_000).map(|i| i * i % 97).collect(), (0..50_000).collect()]
        {
            let automaton = Automaton::of(&text);
            assert!(automaton.states.len() <= 2 * text.len());
            assert!(automaton.edges.len() <= 4 * text.len(), "{}", automaton.edges.len());
        }
    }

    #[test]
    fn the_latest_place_is_known() {
        let automaton = Automaton::of(&[1, 2, 3, 9, 1, 2, 4, 9, 1, 2]);
        assert_eq!(automaton.repeated(), Some(Match { len: 3, next: 6, several: false }));
        let automaton = Automaton::of(&[1, 2, 3, 8, 1, 2, 4, 9, 1, 2]);
        assert_eq!(automaton.repeated(), Some(Match { len: 2, next: 6, several: true }));
    }
}
