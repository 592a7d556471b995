//! Models split over several files. The numbers G20 to G23 are those of SPEC.md.

use std::path::{Path, PathBuf};

use aios_contract::DType;
use aios_engine::gguf::{
    Gguf, GgufError, Kind, Metadata, SplitFault, SplitSet, TensorSpec, Type, Value, Writer,
};

/// A part with one tensor per name, and these metadata.
fn part(entries: &[(&str, Value)], names: &[&str]) -> Gguf {
    let mut metadata = Metadata::new();
    entries.iter().for_each(|(key, value)| metadata.set(*key, value.clone()));
    let spec = |name: &&str| TensorSpec { name: (*name).into(), shape: vec![1], dtype: DType::F32 };
    let specs: Vec<_> = names.iter().map(spec).collect();
    let mut writer = Writer::new(Vec::new(), &metadata, &specs).unwrap();
    names.iter().for_each(|name| writer.tensor(name, &[0; 4]).unwrap());
    Gguf::parse(&writer.finish().unwrap()).unwrap()
}

/// Part `no`, counted from 0, of three parts with four tensors.
fn third(no: u16, names: &[&str]) -> Gguf {
    let numbers = [
        ("split.no", no.into()),
        ("split.count", 3u16.into()),
        ("split.tensors.count", 4i32.into()),
    ];
    part(&numbers, names)
}

fn first() -> Gguf {
    third(0, &["a", "b"])
}

fn set() -> SplitSet {
    SplitSet::of(Path::new("dir/big-00001-of-00003.gguf"), &first()).unwrap().unwrap()
}

fn fault(result: Result<impl std::fmt::Debug, GgufError>) -> SplitFault {
    match result.unwrap_err() {
        GgufError::Split(fault) => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn the_parts_are_listed_and_fit() {
    let set = set();
    let paths: Vec<_> = set.paths().collect();
    let expected = ["dir/big-00001-of-00003.gguf", "dir/big-00002-of-00003.gguf"];
    assert_eq!(paths[..2], expected.map(PathBuf::from));
    assert_eq!(paths.len() as u64, set.count());
    set.check_whole(&[&first(), &third(1, &["c"]), &third(2, &["d"])]).unwrap();
}

#[test]
fn g20_a_model_in_one_file_is_no_split_model() {
    let path = Path::new("whole-00001-of-00009.gguf");
    assert_eq!(SplitSet::of(path, &part(&[], &["a"])), Ok(None));
    for count in [0u16, 1] {
        let header = part(&[("split.count", count.into())], &["a"]);
        assert_eq!(SplitSet::of(path, &header), Ok(None));
    }
}

#[test]
fn g20_name_and_header_must_agree() {
    for name in ["big.gguf", "big-1-of-3.gguf", "big-00001-of-00003.bin", "-of-.gguf", ""] {
        let found = fault(SplitSet::of(Path::new(name), &first()));
        assert_eq!(found, SplitFault::Name { name: name.to_owned() });
    }
    for name in ["big-00002-of-00003.gguf", "big-00001-of-00004.gguf"] {
        let found = fault(SplitSet::of(Path::new(name), &first()));
        assert_eq!(found, SplitFault::Renamed { name: name.to_owned(), part: 1, count: 3 });
    }
}

#[test]
fn g20_the_first_part_must_be_opened() {
    let path = Path::new("big-00002-of-00003.gguf");
    let found = fault(SplitSet::of(path, &third(1, &["c"])));
    assert_eq!(found, SplitFault::NotFirst { part: 2, count: 3 });
}

#[test]
fn g20_keys_of_the_wrong_type_and_huge_numbers_are_refused() {
    let path = Path::new("big-00001-of-00003.gguf");
    let header = part(&[("split.count", "3".into())], &[]);
    let found = Type::Scalar(Kind::String);
    let (key, expected) = ("split.count".to_owned(), "a non-negative integer");
    assert_eq!(SplitSet::of(path, &header), Err(GgufError::WrongType { key, expected, found }));
    let header = part(&[("split.count", 3u16.into())], &[]);
    let key = "split.no".to_owned();
    assert_eq!(SplitSet::of(path, &header), Err(GgufError::MissingKey { key }));
    let huge = Value::from(u64::MAX);
    let keys = ["split.no", "split.count", "split.tensors.count"].map(|key| (key, huge.clone()));
    let found = fault(SplitSet::of(path, &part(&keys, &[])));
    let name = "big-00001-of-00003.gguf".to_owned();
    assert_eq!(found, SplitFault::Renamed { name, part: u64::MAX, count: u64::MAX });
}

#[test]
fn g21_a_missing_part_is_named() {
    let found = fault(set().check_whole(&[&first(), &third(1, &["c"])]));
    let name = "big-00003-of-00003.gguf".to_owned();
    assert_eq!(found, SplitFault::Missing { part: 3, count: 3, name });
}

#[test]
fn g21_a_part_that_leads_back_to_an_earlier_one_is_refused() {
    let found = fault(set().check_whole(&[&first(), &first(), &third(2, &["d"])]));
    assert_eq!(found, SplitFault::Repeated { part: 2, claims: 1 });
    let second = third(1, &["c"]);
    let found = fault(set().check_whole(&[&first(), &second, &second]));
    assert_eq!(found, SplitFault::Repeated { part: 3, claims: 2 });
}

#[test]
fn g21_a_misplaced_part_and_one_too_many_are_refused() {
    let [second, last] = [third(1, &["c"]), third(2, &["d"])];
    let found = fault(set().check_part(2, &last));
    assert_eq!(found, SplitFault::Misplaced { part: 2, claims: 3 });
    let found = fault(set().check_whole(&[&first(), &second, &last, &last]));
    assert_eq!(found, SplitFault::Extra { found: 4, count: 3 });
}

#[test]
fn g22_parts_of_different_models_are_refused() {
    let keys = |no: u16, count: u16, tensors: i32, architecture: &str| {
        let numbers = [
            ("split.no", no.into()),
            ("split.count", count.into()),
            ("split.tensors.count", tensors.into()),
            ("general.architecture", architecture.into()),
        ];
        part(&numbers, &[])
    };
    let path = Path::new("big-00001-of-00003.gguf");
    let set = SplitSet::of(path, &keys(0, 3, 4, "llama")).unwrap().unwrap();
    set.check_part(2, &keys(1, 3, 4, "llama")).unwrap();
    let differs = |header| match fault(set.check_part(2, &header)) {
        SplitFault::Inconsistent { part: 2, key, expected, found } => (key, expected, found),
        other => panic!("{other}"),
    };
    let row = |key, expected: &str, found: &str| (key, expected.to_owned(), found.to_owned());
    assert_eq!(differs(keys(1, 2, 4, "llama")), row("split.count", "3", "2"));
    assert_eq!(differs(keys(1, 3, 5, "llama")), row("split.tensors.count", "4", "5"));
    let escaped = row("general.architecture", "\"llama\"", "\"q\\u{7}\"");
    assert_eq!(differs(keys(1, 3, 4, "q\u{7}")), escaped);
}

#[test]
fn g23_tensors_must_add_up_and_be_unique() {
    let found = fault(set().check_whole(&[&first(), &third(1, &["c"]), &third(2, &[])]));
    assert_eq!(found, SplitFault::TensorCount { expected: 4, found: 3 });
    let error = set().check_whole(&[&first(), &third(1, &["c"]), &third(2, &["a"])]);
    assert_eq!(error, Err(GgufError::DuplicateTensor { name: "a".to_owned() }));
}
