//! What stays in the last-level cache from pass to pass, and how early weights are asked for
//! (SPEC D21, D23).

use super::Executor;
use aios_residency::keep;
use serde::Serialize;

/// What of an executor's matrices stays in the last-level cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Bytes that may stay.
    pub room: u64,
    /// Bytes of what does, the sketch of a screened head counted.
    pub kept_bytes: u64,
    /// Bytes of the matrices that are read past the caches.
    pub past_bytes: u64,
}

/// Keys and values beyond one part in so many of what matrices may take are read past the caches.
const CACHE_SHARE: u64 = 7;

impl Kept {
    /// Whether keys and values of so many bytes are read past the caches too.
    pub(super) const fn leaves_out(&self, cache_bytes: usize) -> bool {
        self.past_bytes > 0 && cache_bytes as u64 > self.room / CACHE_SHARE
    }
}

impl Executor {
    /// From now on keeps at most `room` bytes of its matrices in the last-level cache and reads the
    /// others past it, or, with `None`, reads all alike. No result changes. The head counts as it
    /// is screened now. A new executor does what its model has adopted.
    pub fn keep_in_cache(&mut self, room: Option<u64>) {
        self.kept = None;
        self.context.memory.read_past(Vec::new());
        let Some(room) = room.filter(|_| self.context.memory.is_mapped()) else { return };
        let (exact, head) = (self.options.exact, self.model.weights().head.number);
        let sketch = self.sketch_bytes();
        // What is not in panels is read as ever, as is what is no matrix.
        let wanted: Vec<usize> = (self.model.weights().factors())
            .map(|tensor| if tensor.is_packed(exact) { tensor.bytes() } else { 0 })
            .collect();
        let may_stay = |number: usize| number != head || sketch.is_none();
        let sizes: Vec<usize> =
            (0..wanted.len()).map(|i| if may_stay(i) { wanted[i] } else { 0 }).collect();
        let kept = keep(&sizes, room.saturating_sub(sketch.unwrap_or(0)));
        let past: Vec<bool> =
            (0..wanted.len()).map(|i| wanted[i] > 0 && !(kept[i] && may_stay(i))).collect();
        let sum = |of: bool| {
            let list = wanted.iter().zip(&past).filter(|(_, past)| **past == of);
            list.map(|(bytes, _)| *bytes as u64).sum::<u64>()
        };
        let kept_bytes = sum(false) + sketch.unwrap_or(0);
        self.kept = Some(Kept { room, kept_bytes, past_bytes: sum(true) });
        self.context.memory.read_past(past);
    }

    /// What stays in the last-level cache; `None` if all is read alike.
    pub const fn kept(&self) -> Option<Kept> {
        self.kept
    }

    /// From now on asks for weights so many bytes ahead of their use. No result changes. A new
    /// executor does what its model has adopted, or else what suits the processor.
    pub fn ask_ahead(&mut self, bytes: usize) {
        self.context.isa = self.context.isa.with_ahead(bytes);
    }

    /// How far ahead of their use it asks for weights, in bytes.
    pub const fn asks_ahead(&self) -> usize {
        self.context.isa.ahead()
    }
}
