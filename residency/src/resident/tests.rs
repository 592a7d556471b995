//! Runs come out of every tier with the bytes of the file.

use super::build::is_slow;
use super::*;
use crate::disk::Access;
use crate::ladder::Step;
use crate::mapping::Mapping;
use crate::pointers::BlockFlags;
use aios_contract::{DType, Role, TensorName};
use std::time::Duration;

const LENGTHS: [usize; 5] = [40_000, 3_000, 120_000, 64, 90_000];
const GRANULE: usize = 1000;

struct Case {
    _folder: tempfile::TempDir,
    table: BlockTable,
    runs: Runs,
    bytes: Vec<u8>,
}

fn case() -> Case {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("weights");
    let len = 100 + LENGTHS.iter().sum::<usize>();
    let bytes: Vec<u8> = (0..len).map(|at| (at * 31 / 7 + at / 1000) as u8).collect();
    std::fs::write(&path, &bytes).expect("written");
    let mut table = BlockTable::new(vec![Mapping::open(&path).expect("mapped")]);
    let name = TensorName { role: Role::Head, layer: None };
    let mut at = 100;
    let mut factors = Vec::new();
    for len in LENGTHS {
        let block = table.insert(name, DType::F32, 0, at..at + len).expect("within the file");
        factors.push(Run { block, range: 0..len, granule: GRANULE.min(len) });
        at += len;
    }
    // Rows of the first block stand for an embedding.
    let rows = Run { granule: 500, ..factors[0].clone() };
    let runs = Runs { factors, tail: LENGTHS.len() - 1, rows };
    Case { _folder: folder, table, runs, bytes }
}

impl Case {
    fn within(&self, budget: usize) -> Result<Resident, ResidentError> {
        let reserved = Reserved { cache: 10, activations: 5, buffers: 0 };
        let ladder = &mut Ladder::default();
        Resident::within(&self.table, self.runs.clone(), budget, reserved, ladder)
    }

    /// One pass that reads the tail `heads` times and compares all bytes.
    fn pass(&self, resident: &mut Resident, heads: usize) -> Result<(), Arc<DiskError>> {
        resident.begin_pass(1, heads);
        let row = resident.row(&self.table, 7)?;
        assert_eq!(row, &self.bytes[100 + 3500..100 + 4000]);
        let tail = LENGTHS.len() - 1;
        let order = (0..tail).chain((0..heads).map(|_| tail));
        for index in order {
            resident.count(index);
            let start = 100 + LENGTHS[..index].iter().sum::<usize>();
            let expected = &self.bytes[start..start + LENGTHS[index]];
            if let Some(whole) = resident.whole(&self.table, index) {
                assert_eq!(whole, expected);
                continue;
            }
            let mut at = 0;
            for part in 0..resident.parts(index) {
                let (range, bytes) = resident.part(&self.table, index, part)?;
                assert_eq!(range.start, at);
                assert_eq!(&bytes[..], &expected[range.clone()]);
                at = range.end;
                drop(bytes);
                resident.release(index, part);
            }
            assert_eq!(at, expected.len());
        }
        Ok(())
    }
}

#[test]
fn every_budget_gives_the_bytes_of_the_file_and_is_kept() {
    let case = case();
    let Err(ResidentError::Least { least }) = case.within(0) else { panic!("too little") };
    let total: usize = LENGTHS.iter().sum();
    for budget in [least, least + 4096, 60_000, 100_000, 200_000, total + 20_000, 2 * total] {
        let mut resident = case.within(budget).expect("enough");
        for heads in [1, 0, 1, 2, 1] {
            case.pass(&mut resident, heads).expect("read");
        }
        let stats = resident.stats();
        let sizes = stats.hot_bytes + stats.reserved_bytes.buffers;
        assert!(sizes <= budget as u64, "{budget}: {stats:?}");
        assert_eq!(stats.budget_bytes, Some(budget as u64 + 15));
        assert_eq!((stats.passes, stats.tokens), (5, 5));
        let body: usize = LENGTHS[..4].iter().sum();
        assert_eq!(stats.bytes_resolved, 5 * (body + LENGTHS[4]) as u64);
        assert_eq!(stats.bytes_hot + stats.bytes_streamed, stats.bytes_resolved);
        let rows_read = if budget == 2 * total { 0 } else { 5 };
        if budget > total {
            assert_eq!((stats.stream_bytes, stats.reads), (0, rows_read), "{budget}");
            assert_eq!(stats.hot_hit_ratio, Some(1.0));
        } else {
            assert!(stats.bytes_streamed > 0 && stats.disk_bytes >= stats.bytes_streamed);
            assert_eq!(resident.disk_bytes(), stats.disk_bytes);
        }
        resident.reset();
        assert_eq!((resident.stats().passes, resident.stats().bytes_resolved), (0, 0));
    }
}

/// What is missing on some systems, and the step that it comes to.
#[test]
fn what_the_system_refuses_is_a_step_down_and_the_bytes_are_the_same() {
    fn refused(_: &Pages) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn little(bytes: usize) -> io::Result<Pages> {
        if bytes > 30_000 { Err(io::ErrorKind::OutOfMemory.into()) } else { Pages::new(bytes) }
    }
    let real = System::REAL;
    for (system, step) in [
        (System { lock: refused, ..real }, Step::Unlocked),
        (System { huge: refused, ..real }, Step::SmallPages),
        (System { access: Access::Buffered, ..real }, Step::BufferedReads),
        (System { allocate: little, ..real }, Step::AllocationRefused),
        (
            System { allocate: |_| Err(io::ErrorKind::OutOfMemory.into()), ..real },
            Step::AllocationRefused,
        ),
    ] {
        let case = case();
        for budget in [150_000, 600_000] {
            let (mut ladder, reserved) = (Ladder::default(), Reserved::default());
            let runs = case.runs.clone();
            let built = Resident::on(system, &case.table, runs, (budget, reserved), &mut ladder);
            let mut resident = built.expect("it always runs");
            assert!(ladder.steps().contains(&step), "{step:?} {ladder:?}");
            assert_eq!(resident.stats().ladder, ladder.steps());
            for heads in [1, 1, 0] {
                case.pass(&mut resident, heads).expect("read");
            }
            let memory = resident.stats().hot_bytes + resident.stats().reserved_bytes.buffers;
            assert!(memory <= budget as u64);
        }
    }
}

#[test]
fn mapped_weights_are_warm_and_whole() {
    let case = case();
    let mut resident = Resident::mapped(case.runs.clone());
    case.pass(&mut resident, 1).expect("mapped");
    let stats = resident.stats();
    assert_eq!(stats.warm_bytes, LENGTHS.iter().sum::<usize>() as u64);
    assert_eq!((stats.blocks_resolved, stats.hot_hit_ratio), (5, Some(0.0)));
    assert_eq!((stats.budget_bytes, stats.disk_bytes), (None, 0));
    let (range, bytes) = resident.part(&case.table, 1, 0).expect("mapped");
    assert_eq!((range, bytes.len()), (0..3000, 3000));
}

#[test]
fn a_file_that_is_cut_short_is_an_error_and_works_again_when_it_is_whole() {
    let case = case();
    let path = case.table.mappings()[0].path().to_owned();
    let mut resident = case.within(60_000).expect("enough");
    case.pass(&mut resident, 1).expect("read");
    let file = std::fs::File::options().write(true).open(&path).expect("opened");
    file.set_len(5000).expect("cut");
    let failed = (0..3).map(|_| case.pass(&mut resident, 1)).find_map(Result::err);
    assert!(failed.expect("an error").to_string().contains("weights"));
    std::fs::write(&path, &case.bytes).expect("written");
    case.pass(&mut resident, 1).expect("read");
}

#[test]
fn a_disk_is_slow_only_where_enough_was_read_to_tell() {
    let second = Duration::from_secs(1);
    assert!(is_slow(199_000_000, second) && !is_slow(201_000_000, second));
    assert!(!is_slow(1000, second));
}

#[test]
fn the_pointer_table_has_every_byte_where_it_lies() {
    let case = case();
    let check = |resident: &Resident| {
        let pointers = resident.pointers(&case.table, None);
        let mut streamed = 0;
        for (index, run) in case.runs.factors.iter().enumerate() {
            let range = pointers.of_run(index).expect("a run");
            let mut at = 0;
            for number in range {
                let block = pointers.get(number).expect("a block");
                assert_eq!((block.run as usize, block.offset), (index, at));
                at += block.bytes as usize;
                if block.address == 0 {
                    assert!(block.flags.has(BlockFlags::STREAM));
                    streamed += block.bytes as usize;
                } else if let Some(whole) = resident.whole(&case.table, index) {
                    assert_eq!(block.address, whole[block.offset..].as_ptr().addr());
                }
            }
            assert_eq!(at, run.range.len());
        }
        // The embedding is behind the runs.
        let rows = pointers.of_run(LENGTHS.len()).expect("the embedding");
        assert_eq!(rows.end, pointers.len());
        (pointers, streamed)
    };
    let (mapped, streamed) = check(&Resident::mapped(case.runs.clone()));
    assert_eq!(streamed, 0);
    assert!(mapped.iter().all(|block| block.flags.has(BlockFlags::WARM)));
    // Rows of the first block stand for an embedding: it is the same bytes.
    let first = mapped.get(0).expect("a block").flags;
    let last = mapped.get(mapped.len() - 1).expect("a block").flags;
    assert!(first.has(BlockFlags::ALIASED) && last.has(BlockFlags::CANONICAL));
    let (hot, streamed) = check(&case.within(1 << 20).expect("placed"));
    assert_eq!(streamed, 0);
    assert!(hot.iter().all(|block| block.flags.has(BlockFlags::HOT)));
    assert!(hot.iter().all(|block| !block.flags.has(BlockFlags::ALIASED)));
    let (_, streamed) = check(&case.within(160_000).expect("placed"));
    assert!(streamed > 0);
}
