//! Merging neighbours until no pair is worth it, which both kinds of tokenizers do.
//!
//! The plain algorithm: find the best pair of neighbours (ties go to the leftmost), make them one
//! symbol, repeat. Here a heap holds the pairs and a linked list the symbols, so that a text of n
//! symbols takes O(n log n): a merge adds at most two pairs, and a pair whose symbols have changed
//! since is recognised and skipped when it comes up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The id of a symbol that is no token, and the index of no symbol.
const NONE: u32 = u32::MAX;
const NOWHERE: usize = usize::MAX;

/// A stretch of the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Where it starts, in bytes.
    pub(super) start: usize,
    /// Where it ends; equal to `start` once it has been merged into its left neighbour.
    pub(super) end: usize,
    id: u32,
    prev: usize,
    next: usize,
}

impl Symbol {
    /// The token that the symbol is, if it is one.
    pub(super) fn id(&self) -> Option<u32> {
        (self.id != NONE).then_some(self.id)
    }

    fn is_merged_away(&self) -> bool {
        self.start == self.end
    }
}

/// A pair of neighbours that may become one; the best one is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair<P> {
    priority: P,
    left: Reverse<usize>,
    right: usize,
    /// Where the right one ended when the pair was found.
    end: usize,
    /// The token that they become.
    id: u32,
}

/// The symbols of one text, with buffers that the next text uses again.
pub(super) struct Merger<P> {
    symbols: Vec<Symbol>,
    pairs: BinaryHeap<Pair<P>>,
}

impl<P: Ord> Merger<P> {
    pub(super) fn new() -> Self {
        Self { symbols: Vec::new(), pairs: BinaryHeap::new() }
    }

    /// Appends the symbol that ends at `end`, which is after the end of the one before it, and is
    /// the token `id` or none.
    pub(super) fn push(&mut self, end: usize, id: Option<u32>) {
        let count = self.symbols.len();
        let start = self.symbols.last().map_or(0, |last| last.end);
        if let Some(last) = self.symbols.last_mut() {
            last.next = count;
        }
        let prev = count.checked_sub(1).unwrap_or(NOWHERE);
        self.symbols.push(Symbol { start, end, id: id.unwrap_or(NONE), prev, next: NOWHERE });
    }

    /// Merges all symbols pushed since the last call and passes what is left to `take`, in order.
    /// `join` says what two neighbours become, and how good that is.
    pub(super) fn run(
        &mut self,
        join: impl Fn(&Symbol, &Symbol) -> Option<(P, u32)>,
        take: impl FnMut(&Symbol),
    ) {
        for right in 1..self.symbols.len() {
            self.consider(right - 1, right, &join);
        }
        while let Some(Pair { left: Reverse(left), right, end, id, .. }) = self.pairs.pop() {
            let (l, r) = (self.symbols[left], self.symbols[right]);
            if l.is_merged_away() || r.is_merged_away() || r.end != end {
                continue;
            }
            self.symbols[left] = Symbol { end, id, next: r.next, ..l };
            self.symbols[right].end = r.start;
            if r.next != NOWHERE {
                self.symbols[r.next].prev = left;
            }
            self.consider(l.prev, left, &join);
            self.consider(left, r.next, &join);
        }
        self.symbols.iter().filter(|symbol| !symbol.is_merged_away()).for_each(take);
        self.symbols.clear();
    }

    fn consider(
        &mut self,
        left: usize,
        right: usize,
        join: &impl Fn(&Symbol, &Symbol) -> Option<(P, u32)>,
    ) {
        if left == NOWHERE || right == NOWHERE {
            return;
        }
        let (l, r) = (&self.symbols[left], &self.symbols[right]);
        if let Some((priority, id)) = join(l, r) {
            self.pairs.push(Pair { priority, left: Reverse(left), right, end: r.end, id });
        }
    }
}
