//! Traces small enough to follow by hand.

use super::*;
use aios_contract::{Role, TensorName};
use aios_residency::Data;
use proptest::prelude::*;

/// Fully associative caches of so many lines.
fn lines(private: u64, shared: u64, policy: Policy) -> Design {
    let of = |lines: u64| {
        let ways = u32::try_from(lines).expect("few lines");
        Geometry::new(64 * lines, ways, 64).expect("a shape")
    };
    Design { private: of(private), shared: of(shared), policy }
}

fn hierarchy(design: Design, threads: usize) -> Hierarchy {
    Hierarchy::new(design, threads).expect("a hierarchy")
}

fn at(lines: std::ops::Range<usize>, write: bool) -> Access {
    let data = Data::Activations;
    Access {
        data,
        start: 64 * lines.start,
        bytes: 64 * lines.len(),
        write,
        fresh: false,
        past: false,
    }
}

/// Reads or writes single lines: lines read, lines read for stores, lines written.
fn run(hierarchy: &mut Hierarchy, trace: &[(usize, bool)]) -> [u64; 3] {
    hierarchy.reset_traffic();
    for &(line, write) in trace {
        hierarchy.access(&at(line..line + 1, write), true);
    }
    let traffic = hierarchy.traffic();
    [traffic.reads(), traffic.reads_for_ownership(), traffic.writes()]
}

fn reads<const N: usize>(lines: [usize; N]) -> [(usize, bool); N] {
    lines.map(|line| (line, false))
}

#[test]
fn a_line_that_the_shared_cache_drops_is_dropped_by_the_private_one() {
    let mut inclusive = hierarchy(lines(2, 3, Policy::Inclusive), 1);
    // Line 1 stays young in the private cache, but the shared one has not seen it used since.
    assert_eq!(run(&mut inclusive, &reads([1, 2, 1, 3, 1, 4, 1])), [5, 0, 0]);
    let mut independent = hierarchy(lines(2, 3, Policy::Independent), 1);
    assert_eq!(run(&mut independent, &reads([1, 2, 1, 3, 1, 4, 1])), [4, 0, 0]);
}

#[test]
fn what_a_disk_has_written_is_in_no_cache() {
    for policy in [Policy::Inclusive, Policy::Victim, Policy::Independent] {
        for threads in [1, 2] {
            let mut hierarchy = hierarchy(lines(2, 8, policy), threads);
            let read = |fresh| Access { fresh, ..at(0..4, false) };
            for (fresh, expected) in [(false, 4), (false, 0), (true, 4), (false, 0)] {
                hierarchy.reset_traffic();
                hierarchy.access(&read(fresh), true);
                assert_eq!(hierarchy.traffic().reads(), expected, "{policy:?} {threads} {fresh}");
            }
        }
    }
}

#[test]
fn a_victim_cache_adds_its_lines_to_those_of_the_private_one() {
    for (policy, second) in [(Policy::Victim, 0), (Policy::Independent, 5)] {
        let mut hierarchy = hierarchy(lines(2, 3, policy), 1);
        let round = reads([1, 2, 3, 4, 5]);
        assert_eq!(run(&mut hierarchy, &round), [5, 0, 0], "{policy:?}");
        assert_eq!(run(&mut hierarchy, &round), [second, 0, 0], "{policy:?}");
    }
    let mut victim = hierarchy(lines(2, 3, Policy::Victim), 1);
    let round = reads([1, 2, 3, 4, 5, 6]);
    assert_eq!(run(&mut victim, &round), [6, 0, 0]);
    assert_eq!(run(&mut victim, &round), [6, 0, 0]);
}

#[test]
fn a_store_that_misses_reads_and_what_it_wrote_is_written_once_when_it_is_dropped() {
    for (policy, drops) in [(Policy::Inclusive, 3), (Policy::Independent, 3), (Policy::Victim, 5)] {
        let mut hierarchy = hierarchy(lines(2, 3, policy), 1);
        assert_eq!(run(&mut hierarchy, &[(9, true), (9, true), (9, false)]), [0, 1, 0]);
        // As many new lines as there is room for leave line 9 the last to go.
        let new: Vec<_> = (20..20 + drops).map(|line| (line, false)).collect();
        assert_eq!(run(&mut hierarchy, &new), [drops as u64, 0, 1], "{policy:?}");
        let more: Vec<_> = (40..60).map(|line| (line, false)).collect();
        assert_eq!(run(&mut hierarchy, &more), [20, 0, 0], "{policy:?}");
    }
}

/// A line that `group` writes.
fn written_by(data: Data, line: usize) -> Access {
    Access { data, ..at(line..line + 1, true) }
}

#[test]
fn a_line_is_written_to_memory_for_the_group_that_wrote_it_last() {
    for policy in [Policy::Inclusive, Policy::Victim, Policy::Independent] {
        for threads in [1, 2] {
            let mut hierarchy = hierarchy(lines(1, 3, policy), threads);
            hierarchy.access(&written_by(Data::Values(0), 1), true);
            hierarchy.access(&written_by(Data::Keys(0), 2), true);
            // Line 1 is dropped by the private cache, comes back and is written by another group.
            hierarchy.access(&written_by(Data::Activations, 1), true);
            hierarchy.access(&at(20..60, false), true);
            let traffic = hierarchy.traffic();
            let groups = [Group::Keys, Group::Values, Group::Activations];
            let of = groups.map(|group| traffic.written(group));
            assert_eq!((of, traffic.writes()), ([1, 0, 1], 2), "{policy:?} {threads}");
        }
    }
}

#[test]
fn a_line_written_again_after_it_moved_back_is_still_written_once() {
    let mut victim = hierarchy(lines(1, 2, Policy::Victim), 1);
    let trace = [(1, true), (2, false), (1, false), (3, false), (1, true), (4, false), (5, false)];
    assert_eq!(run(&mut victim, &trace), [4, 1, 0]);
    assert_eq!(run(&mut victim, &reads([6, 7, 8])), [3, 0, 1]);
}

#[test]
fn threads_take_turns_in_their_parts() {
    // Three lines for two threads: 10 and 11, 12 belong to threads 0 and 1. Private caches of one
    // line then hold 10 and 12.
    let mut hierarchy = hierarchy(lines(1, 1, Policy::Independent), 2);
    hierarchy.access(&at(10..13, false), true);
    assert!(hierarchy.private[0].holds(10) && hierarchy.private[1].holds(12));
    assert_eq!(hierarchy.traffic().reads(), 3);
    // The turns were 10, 11, then 12.
    assert!(hierarchy.shared.holds(12));
    // Five lines among three threads: 1, 2 and 2 lines.
    let mut three = self::hierarchy(lines(8, 8, Policy::Inclusive), 3);
    three.access(&at(0..5, false), true);
    let held = |thread: usize| (0..5).filter(|line| three.private[thread].holds(*line)).collect();
    let held: Vec<Vec<u64>> = (0..3).map(held).collect();
    assert_eq!(held, [vec![0], vec![1, 2], vec![3, 4]]);
    // An access of fewer lines than threads.
    let mut one = self::hierarchy(lines(8, 8, Policy::Inclusive), 3);
    one.access(&at(7..8, false), true);
    assert_eq!(one.traffic().reads(), 1);
}

#[test]
fn a_store_takes_the_line_from_other_threads() {
    for policy in [Policy::Inclusive, Policy::Victim, Policy::Independent] {
        let mut hierarchy = hierarchy(lines(2, 4, policy), 2);
        let mut by = |thread, write| {
            let one = Use { thread, line: 5, write, group: Group::Activations };
            hierarchy.use_line(one);
            let traffic = hierarchy.traffic();
            let held = [0, 1].map(|thread| hierarchy.private[thread].holds(5));
            (traffic.reads() + traffic.reads_for_ownership(), held)
        };
        assert_eq!(by(0, true), (1, [true, false]), "{policy:?}");
        assert_eq!(by(1, false), (1, [true, true]), "{policy:?}");
        assert_eq!(by(1, true), (1, [false, true]), "{policy:?}");
        assert_eq!(by(0, true), (1, [true, false]), "{policy:?}");
    }
}

#[test]
fn a_non_temporal_read_leaves_nothing_behind_and_ages_nothing() {
    for policy in [Policy::Inclusive, Policy::Victim, Policy::Independent] {
        let mut hierarchy = hierarchy(lines(1, 2, policy), 1);
        hierarchy.access(&at(1..3, false), true);
        hierarchy.reset_traffic();
        hierarchy.access(&at(10..20, false), false);
        hierarchy.access(&at(10..20, false), false);
        assert_eq!(hierarchy.traffic().reads(), 20, "{policy:?}");
        hierarchy.access(&at(1..3, false), true);
        hierarchy.access(&at(1..3, false), false);
        assert_eq!(hierarchy.traffic().reads(), 20, "{policy:?}");
    }
}

#[test]
fn lines_are_counted_by_what_they_hold() {
    let mut hierarchy = hierarchy(lines(4, 4, Policy::Inclusive), 1);
    let name = |role| Data::Weights(TensorName { role, layer: Some(0) });
    for (data, start, bytes, write) in [
        (name(Role::FfnDown), 0, 129, false),
        (name(Role::AttnNorm), 1000, 1, false),
        (Data::Keys(3), 2047, 2, true),
        (Data::Values(3), 4096, 0, true),
    ] {
        hierarchy.access(&Access { data, start, bytes, write, fresh: false, past: false }, true);
    }
    let traffic = hierarchy.traffic();
    assert_eq!((traffic.read(Group::Ffn), traffic.read(Group::Norm)), (3, 1));
    assert_eq!((traffic.for_ownership(Group::Keys), traffic.for_ownership(Group::Values)), (2, 0));
    assert_eq!((traffic.reads(), traffic.reads_for_ownership()), (4, 2));
}

#[test]
fn designs_are_checked() {
    let design = lines(2, 4, Policy::Inclusive);
    assert_eq!(Hierarchy::new(design, 0).err(), Some(HierarchyError::Threads(0)));
    assert_eq!(Hierarchy::new(design, 1025).err(), Some(HierarchyError::Threads(1025)));
    let long = Geometry::new(256, 2, 128).expect("a shape");
    let error = Hierarchy::new(Design { shared: long, ..design }, 1).err();
    assert_eq!(error, Some(HierarchyError::Lines { private: 64, shared: 128 }));
    let error = Hierarchy::new(lines(4, 2, Policy::Inclusive), 1).err();
    assert_eq!(error, Some(HierarchyError::Inclusion { private: 256, shared: 128 }));
    assert!(Hierarchy::new(lines(4, 2, Policy::Victim), 1).is_ok());
}

proptest! {
    /// Whatever happens: no line is in two places of a thread and a victim cache of one thread,
    /// inclusion holds, and no more lines are written back than stores were made.
    #[test]
    fn the_levels_keep_their_relation(
        policy in prop::sample::select(Policy::ALL.map(|(policy, _)| policy).to_vec()),
        threads in 1usize..4,
        trace in prop::collection::vec((0usize..24, 1usize..6, any::<bool>(), 0u8..8), 0..120),
    ) {
        let mut hierarchy = hierarchy(lines(3, 7, policy), threads);
        let mut stores = 0;
        for (first, count, write, non_temporal) in trace {
            hierarchy.access(&at(first..first + count, write), non_temporal != 0);
            stores += if write { count as u64 } else { 0 };
            for line in 0..30 {
                let private = hierarchy.private.iter().filter(|cache| cache.holds(line)).count();
                let shared = hierarchy.shared.holds(line);
                prop_assert!(policy != Policy::Inclusive || private == 0 || shared);
                prop_assert!(policy != Policy::Victim || threads > 1 || private == 0 || !shared);
            }
        }
        prop_assert!(hierarchy.traffic().writes() <= stores);
        prop_assert!(hierarchy.traffic().reads_for_ownership() <= stores);
    }
}
