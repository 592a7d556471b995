//! Properties of the cut and of the assignment, over any sizes.

use super::*;
use proptest::prelude::*;

/// Spans that lie one behind the other in one or two files, with gaps.
fn spans() -> impl Strategy<Value = Vec<Span>> {
    let one = (0_usize..2, 0_usize..20_000, 1_usize..40, 1_usize..3_000, 0_usize..500);
    prop::collection::vec(one, 1..24).prop_map(|list| {
        let mut ends = [77_usize, 0];
        let spans = list.into_iter().map(|(file, gap, granules, granule, rest)| {
            let start = ends[file] + if gap < 10_000 { gap % 64 } else { gap };
            let end = start + granules * granule + rest % granule;
            ends[file] = end;
            Span { file, range: start..end, granule }
        });
        spans.collect()
    })
}

fn sound(spans: &[Span], tail: usize, buffer: usize, cut: &Cut) -> Result<(), TestCaseError> {
    prop_assert_eq!(cut.spans.len(), spans.len());
    let mut covered = 0;
    for (number, (span, parts)) in spans.iter().zip(&cut.spans).enumerate() {
        prop_assert_eq!(parts.start, covered, "pieces are in order");
        covered = parts.end;
        let mut at = 0;
        for part in &cut.parts[parts.clone()] {
            let chunk = &cut.chunks[part.chunk];
            prop_assert_eq!(part.of_span.start, at, "every byte is in one piece");
            prop_assert!(part.of_span.start.is_multiple_of(span.granule));
            prop_assert_eq!(chunk.start + part.offset, span.range.start + at);
            prop_assert!(chunk.file == span.file && part.of_span.end > at);
            at = part.of_span.end;
            prop_assert!(span.range.start + at <= chunk.end);
            prop_assert_eq!(part.chunk >= cut.body, number >= tail, "the tail is apart");
        }
        prop_assert_eq!(at, span.range.len());
    }
    prop_assert_eq!(covered, cut.parts.len());
    for (number, chunk) in cut.chunks.iter().enumerate() {
        prop_assert!(chunk.start.is_multiple_of(PAGE) && chunk.pages() <= buffer);
        let last = cut.parts.iter().rposition(|part| part.chunk == number);
        let marked = cut.parts.iter().position(|part| part.chunk == number && part.last);
        prop_assert!(last.is_some() && last == marked);
    }
    prop_assert!(cut.parts.is_sorted_by_key(|part| part.chunk));
    Ok(())
}

proptest! {
    #[test]
    fn every_byte_is_in_one_block_and_no_block_exceeds_a_buffer(
        spans in spans(), tail in 0_usize..26, more in 0_usize..200_000,
    ) {
        let buffer = least_buffer(&spans) + more / PAGE * PAGE;
        sound(&spans, tail, buffer, &cut(&spans, tail, buffer))?;
    }

    #[test]
    fn hot_blocks_never_exceed_their_share_and_are_spread_evenly(
        blocks in prop::collection::vec(1_usize..5_000, 0..200), permille in 0_usize..1100,
    ) {
        let total: usize = blocks.iter().sum();
        let hot = total * permille / 1000;
        let tiers = assign(&blocks, hot);
        prop_assert_eq!(tiers.len(), blocks.len());
        prop_assert!(!tiers.contains(&Tier::Warm));
        let of = |n: usize| -> usize {
            let pairs = blocks[..n].iter().zip(&tiers);
            pairs.filter(|(_, tier)| **tier == Tier::Hot).map(|(bytes, _)| bytes).sum()
        };
        let largest = blocks.iter().copied().max().unwrap_or(0);
        prop_assert!(of(blocks.len()) <= hot);
        prop_assert!(hot < total || of(blocks.len()) == total);
        prop_assert!(hot >= total || of(blocks.len()) + largest > hot, "the budget is used");
        let mut seen = 0;
        for n in 0..=blocks.len() {
            // The last loop of `assign` may add what rounding left, less than a block.
            let even = (hot.min(total) * seen).checked_div(total).unwrap_or(0);
            prop_assert!(of(n).abs_diff(even) <= 2 * largest, "{} {even} at {n}", of(n));
            seen += blocks.get(n).copied().unwrap_or(0);
        }
    }

    #[test]
    fn a_layout_keeps_its_budget_or_names_the_least_that_works(
        spans in spans(), tail in 0_usize..26, budget in 0_usize..3_000_000,
    ) {
        match lay_out(&spans, tail, budget) {
            Ok(layout) => {
                prop_assert!(layout.bytes(Tier::Hot) + layout.ring_bytes() <= budget);
                prop_assert_eq!(layout.tiers.len(), layout.cut.chunks.len());
                prop_assert_eq!(layout.bytes(Tier::Stream) > 0, layout.buffers > 0);
                let whole = layout.buffers == 0;
                let buffer = if whole { BUFFER_BYTES } else { layout.buffer_bytes };
                sound(&spans, tail, buffer, &layout.cut)?;
                prop_assert_eq!(lay_out(&spans, tail, budget), Ok(layout), "it is a function");
            }
            Err(least) => {
                prop_assert!(budget < least);
                prop_assert!(lay_out(&spans, tail, least).is_ok());
            }
        }
    }
}

#[test]
fn neighbours_in_a_file_share_a_block_and_others_do_not() {
    let span = |file, range, granule| Span { file, range, granule };
    let spans = [
        span(0, 4096..5096, 100),
        span(0, 5096..6096, 100),
        span(1, 6096..7096, 100),
        span(0, 20_000..20_100, 100),
        span(0, 20_100..60_100, 1000),
    ];
    let cut = cut(&spans, 4, 16_384);
    let chunks: Vec<_> = cut.chunks.iter().map(|c| (c.file, c.start, c.end)).collect();
    let first = [(0, 4096, 6096), (1, 4096, 7096), (0, 16_384, 20_100)];
    assert_eq!(chunks[..3], first);
    // The tail begins anew at a page, and is cut after whole granules.
    assert_eq!(chunks[3], (0, 16_384, 32_100));
    assert_eq!((chunks[4], cut.body), ((0, 28_672, 44_100), 3));
}
