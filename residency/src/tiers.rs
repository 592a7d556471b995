//! Which bytes live where (SPEC W3): weights are cut into blocks in the order of a pass, and each
//! block gets a tier. Both are pure functions of sizes and the budget.
//!
//! The plain algorithm: pin blocks until the budget is used, and stream the rest. The departures:
//! 1. Hot and streamed blocks alternate as evenly as their sizes allow, so that the disk works
//!    while hot blocks are computed with, and the other way round. The difference between the
//!    share that is hot so far and that of the whole is carried along, as in drawing a line.
//! 2. What lies side by side in a file is read together, since a disk is fast at large reads only.

use crate::pages::PAGE;
use serde::Serialize;
use std::ops::Range;

/// The size of a buffer that the disk fills, where there is room for it.
pub const BUFFER_BYTES: usize = 8 << 20;
/// Buffers of a ring.
const BUFFERS: usize = 4;
/// The share of a budget that a ring takes at most, unless the least is asked for.
const RING_SHARE: usize = 16;

/// Where a block lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// In memory of our own, locked.
    Hot,
    /// Mapped, and kept by the system while memory allows.
    Warm,
    /// On disk: read in every pass.
    Stream,
}

/// A matrix, or a run of rows of one, as it lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The number of the file.
    pub file: usize,
    /// Its bytes in the file.
    pub range: Range<usize>,
    /// It may be cut at multiples of this only: the bytes of 16 rows.
    pub granule: usize,
}

/// A block: pages of a file that are read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The number of the file.
    pub file: usize,
    /// Where it starts, a multiple of a page.
    pub start: usize,
    /// Where the last byte that is needed ends.
    pub end: usize,
}

impl Chunk {
    /// Bytes from the start to the last one that is needed.
    pub(crate) const fn needed(&self) -> usize {
        self.end - self.start
    }

    /// Bytes that are read: whole pages.
    pub(crate) const fn pages(&self) -> usize {
        self.needed().next_multiple_of(PAGE)
    }
}

/// A piece of a span in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The block's number.
    pub chunk: usize,
    /// Where it lies in the block.
    pub offset: usize,
    /// Which bytes of the span it is.
    pub of_span: Range<usize>,
    /// Whether it is the last piece in its block, in the order of a pass.
    pub last: bool,
}

/// Spans cut into blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The blocks, in the order of a pass.
    pub chunks: Vec<Chunk>,
    /// The pieces, in the same order.
    pub parts: Vec<Part>,
    /// For each span the numbers of its pieces.
    pub spans: Vec<Range<usize>>,
    /// The first block of the tail.
    pub body: usize,
}

/// The least size of a buffer that holds a cut of every span.
pub(crate) fn least_buffer(spans: &[Span]) -> usize {
    let granule = spans.iter().map(|span| span.granule.min(span.range.len())).max().unwrap_or(0);
    // A granule may begin right before the end of a page, and end right behind the start of one.
    granule.next_multiple_of(PAGE) + PAGE
}

/// Cuts `spans` into blocks of at most `buffer` bytes, those from number `tail` on apart from
/// the others, since a pass may leave the tail out or read it several times.
///
/// # Panics
/// If `buffer` is less than [`least_buffer`].
pub(crate) fn cut(spans: &[Span], tail: usize, buffer: usize) -> Cut {
    assert!(buffer >= least_buffer(spans), "a buffer holds a granule");
    let mut cut = Cut::default();
    let mut open = false;
    for (number, span) in spans.iter().enumerate() {
        let first = cut.parts.len();
        if number == tail {
            (cut.body, open) = (cut.chunks.len(), false);
        }
        let mut at = span.range.start;
        while at < span.range.end {
            let fits = |chunk: &Chunk| {
                let near = at >= chunk.end && at - chunk.end <= PAGE && chunk.file == span.file;
                Some(takes(span, at, chunk.start + buffer)).filter(|take| near && *take > 0)
            };
            let take = match cut.chunks.last().filter(|_| open).and_then(fits) {
                Some(take) => take,
                None => {
                    let start = at - at % PAGE;
                    cut.chunks.push(Chunk { file: span.file, start, end: at });
                    open = true;
                    takes(span, at, start + buffer)
                }
            };
            let chunk = cut.chunks.len() - 1;
            let from = at - span.range.start;
            cut.chunks[chunk].end = at + take;
            let offset = at - cut.chunks[chunk].start;
            cut.parts.push(Part { chunk, offset, of_span: from..from + take, last: false });
            at += take;
        }
        cut.spans.push(first..cut.parts.len());
    }
    if tail >= spans.len() {
        cut.body = cut.chunks.len();
    }
    mark_last(&mut cut.parts);
    cut
}

/// Bytes of `span` from `at` on that end before `limit`, in whole granules or to the span's end.
fn takes(span: &Span, at: usize, limit: usize) -> usize {
    let room = limit.saturating_sub(at);
    let left = span.range.end - at;
    if left <= room { left } else { room - room % span.granule.max(1) }
}

fn mark_last(parts: &mut [Part]) {
    let mut next = None;
    for part in parts.iter_mut().rev() {
        part.last = next != Some(part.chunk);
        next = Some(part.chunk);
    }
}

/// Gives each block, of so many bytes, a tier: hot ones come to at most `hot` bytes, and are
/// spread evenly.
pub(crate) fn assign(blocks: &[usize], hot: usize) -> Vec<Tier> {
    let total: u128 = blocks.iter().map(|bytes| *bytes as u128).sum();
    let (mut seen, mut taken) = (0_u128, 0_u128);
    let hot = hot as u128;
    let mut tiers = Vec::with_capacity(blocks.len());
    for bytes in blocks.iter().map(|bytes| *bytes as u128) {
        seen += bytes;
        // Hot so far, with half of this block, against the share of what was seen.
        let behind = (2 * taken + bytes) * total <= 2 * hot.min(total) * seen;
        let pin = behind && taken + bytes <= hot;
        taken += if pin { bytes } else { 0 };
        tiers.push(if pin { Tier::Hot } else { Tier::Stream });
    }
    // What rounding left of the budget is enough for a few small ones.
    for (tier, bytes) in tiers.iter_mut().zip(blocks) {
        if *tier == Tier::Stream && taken + *bytes as u128 <= hot {
            taken += *bytes as u128;
            *tier = Tier::Hot;
        }
    }
    tiers
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The blocks.
    pub cut: Cut,
    /// The tier of each.
    pub tiers: Vec<Tier>,
    /// Buffers of the ring, and bytes of each; 0 if nothing streams.
    pub buffers: usize,
    /// Bytes of a buffer.
    pub buffer_bytes: usize,
}

impl Layout {
    /// Bytes of the blocks of a tier.
    pub(crate) fn bytes(&self, tier: Tier) -> usize {
        let of = self.cut.chunks.iter().zip(&self.tiers).filter(|(_, of)| **of == tier);
        of.map(|(chunk, _)| chunk.pages()).sum()
    }

    /// Bytes of the ring.
    pub(crate) const fn ring_bytes(&self) -> usize {
        self.buffers * self.buffer_bytes
    }
}

/// Lays `spans` out in `budget` bytes of memory, buffers included.
///
/// # Errors
/// The least number of bytes that works, if the budget is less.
pub(crate) fn lay_out(spans: &[Span], tail: usize, budget: usize) -> Result<Layout, usize> {
    let least = least_buffer(spans);
    let whole = cut(spans, tail, BUFFER_BYTES.max(least));
    let bytes: Vec<usize> = whole.chunks.iter().map(Chunk::pages).collect();
    if bytes.iter().sum::<usize>() <= budget {
        let tiers = vec![Tier::Hot; bytes.len()];
        return Ok(Layout { cut: whole, tiers, buffers: 0, buffer_bytes: 0 });
    }
    let share = (budget / (RING_SHARE * BUFFERS)).max(1);
    let buffer_bytes = (1 << share.ilog2()).min(BUFFER_BYTES).max(least);
    let buffers = (budget / buffer_bytes).min(BUFFERS);
    if buffers < 2 {
        return Err(2 * least);
    }
    let cut = cut(spans, tail, buffer_bytes);
    let bytes: Vec<usize> = cut.chunks.iter().map(Chunk::pages).collect();
    let tiers = assign(&bytes, budget - buffers * buffer_bytes);
    Ok(Layout { cut, tiers, buffers, buffer_bytes })
}

#[cfg(test)]
mod tests;
