//! Hostile headers, one test per class. The numbers G1 to G19 are those of SPEC.md.

use std::time::{Duration, Instant};

use aios_contract::DType;
use aios_engine::gguf::{Fault, Field, Gguf, GgufError, HEADER_BYTES_MAX, Kind, TensorPart, Type};

/// A header put together byte by byte, with counts that may lie.
struct Raw {
    version: u32,
    tensor_count: u64,
    entry_count: u64,
    body: Vec<u8>,
    /// Bytes after the aligned end of the header.
    data_len: usize,
}

impl Raw {
    fn new() -> Self {
        Self { version: 3, tensor_count: 0, entry_count: 0, body: Vec::new(), data_len: 0 }
    }

    /// Adds a metadata entry with type code `code` and the bytes `value`.
    fn entry(mut self, key: &[u8], code: u32, value: &[u8]) -> Self {
        self.entry_count += 1;
        self.body.extend(string(key));
        self.body.extend(code.to_le_bytes());
        self.body.extend(value);
        self
    }

    fn tensor(mut self, name: &[u8], shape: &[u64], code: u32, offset: u64) -> Self {
        self.tensor_count += 1;
        self.body.extend(string(name));
        self.body.extend((shape.len() as u32).to_le_bytes());
        self.body.extend(shape.iter().flat_map(|dim| dim.to_le_bytes()));
        self.body.extend(code.to_le_bytes());
        self.body.extend(offset.to_le_bytes());
        self
    }

    fn data(mut self, len: usize) -> Self {
        self.data_len = len;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.entry_count.to_le_bytes());
        out.extend(&self.body);
        if self.data_len > 0 {
            out.resize(out.len().next_multiple_of(32) + self.data_len, 0);
        }
        out
    }

    fn parse(&self) -> Result<Gguf, GgufError> {
        Gguf::parse(&self.bytes())
    }

    /// The error, which must print without a character that a terminal would act upon.
    fn refused(&self) -> GgufError {
        let error = self.parse().unwrap_err();
        let text = error.to_string();
        assert!(text.chars().all(|c| !c.is_control()) && text.len() < 700, "{text:?}");
        error
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// The body of an array: kind of the elements, their announced number, their bytes.
fn array(code: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [code.to_le_bytes().as_slice(), &count.to_le_bytes(), elements].concat()
}

fn at(field: Field, fault: Fault) -> GgufError {
    GgufError::Malformed { field, fault }
}

fn key(key: &str) -> Field {
    Field::Metadata { key: key.to_owned() }
}

fn tensor(part: TensorPart) -> Field {
    Field::Tensor { name: "t".to_owned(), part }
}

const F32: u32 = 0;
const Q4_K: u32 = 12;
/// Lengths and counts that overflow, or nearly do, when multiplied or added to.
const HUGE: [u64; 5] = [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 61, (1 << 32) + 1];

/// A small file with a bit of everything.
fn sample() -> Raw {
    Raw::new()
        .entry(b"general.architecture", 8, &string(b"llama"))
        .entry(b"tokens", 9, &array(8, 2, &[string(b"ab"), string("é".as_bytes())].concat()))
        .entry(b"nested", 9, &array(9, 2, &[array(4, 1, &[1, 2, 3, 4]), array(7, 0, &[])].concat()))
        .entry(b"flag", 7, &[1])
        .tensor(b"t", &[8, 2], F32, 0)
        .tensor(b"u", &[256], Q4_K, 64)
        .data(64 + 144)
}

#[test]
fn the_sample_is_sound_in_both_versions() {
    for version in [2, 3] {
        let parsed = Raw { version, ..sample() }.parse().unwrap();
        assert_eq!(parsed.version, version);
        assert_eq!(parsed.tensor("u").unwrap().dtype, DType::Q4_K);
        assert_eq!(parsed.metadata.require_strings("tokens").unwrap(), ["ab", "é"]);
        assert_eq!(parsed.metadata.bool("flag"), Ok(Some(true)));
        assert_eq!(parsed.metadata.get("nested").unwrap().type_of(), Type::Array(Kind::Array));
    }
    assert_eq!(Raw::new().parse().unwrap().tensors, []);
}

#[test]
fn g1_other_files_are_not_taken_for_gguf() {
    let cases: [&[u8]; 5] = [b"", b"GGU", b"ggml\x01\0\0\0", b"PK\x03\x04abcd", &[0x1b; 64]];
    for file in cases {
        let found = file[..file.len().min(4)].to_vec();
        let error = Gguf::parse(file).unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'));
        assert_eq!(error, GgufError::NotGguf { found });
    }
}

#[test]
fn g1_big_endian_files_are_recognised() {
    assert_eq!(Gguf::parse(b"GGUF\0\0\0\x03"), Err(GgufError::BigEndian));
    assert_eq!(Gguf::parse(b"FUGG\0\0\0\x03"), Err(GgufError::BigEndian));
}

#[test]
fn g2_other_versions_are_refused() {
    for version in [0, 1, 4, 65_535, u32::MAX] {
        let error = Raw { version, ..sample() }.refused();
        assert_eq!(error, GgufError::UnsupportedVersion { version });
    }
}

#[test]
fn g3_truncation_at_every_offset_is_an_error() {
    let file = sample().bytes();
    for len in 0..file.len() {
        let error = Gguf::parse(&file[..len]).expect_err("a truncated file was accepted");
        match error {
            GgufError::NotGguf { .. } => assert!(len < 4),
            GgufError::Malformed { fault: Fault::Truncated { needed, remaining, .. }, .. } => {
                assert!(needed > remaining);
            }
            GgufError::Malformed { fault: Fault::CountTooLarge { .. }, .. } => {}
            GgufError::Malformed { fault: Fault::OutOfRange { end, file_len }, .. } => {
                assert_eq!(file_len, len as u64);
                assert!(end > file_len);
            }
            other => panic!("cut at {len}: {other}"),
        }
    }
}

#[test]
fn g4_huge_counts_in_the_header_are_refused() {
    for count in HUGE {
        let too_large = |bytes_min, remaining| Fault::CountTooLarge { count, bytes_min, remaining };
        let error = Raw { tensor_count: count, ..Raw::new() }.refused();
        assert_eq!(error, at(Field::TensorCount, too_large(33, 8)));
        let error = Raw { entry_count: count, ..Raw::new() }.refused();
        assert_eq!(error, at(Field::MetadataCount, too_large(14, 0)));
    }
}

#[test]
fn g4_a_tensor_count_that_only_the_metadata_has_room_for_is_refused() {
    let raw = Raw { tensor_count: 9, ..Raw::new().entry(b"k", 8, &string(&[b'x'; 300])) };
    let fault = Fault::CountTooLarge { count: 9, bytes_min: 33, remaining: 0 };
    assert_eq!(raw.refused(), at(Field::TensorCount, fault));
}

#[test]
fn g4_huge_lengths_of_strings_are_refused() {
    for len in HUGE {
        let truncated = |offset| Fault::Truncated { offset, needed: len, remaining: 24 };
        let mut raw = Raw { entry_count: 1, ..Raw::new() };
        raw.body = [&len.to_le_bytes()[..], &[b'x'; 24]].concat();
        assert_eq!(raw.refused(), at(Field::Key { index: 0 }, truncated(32)));
        let raw = Raw::new().entry(b"k", 8, &[&len.to_le_bytes()[..], &[b'x'; 24]].concat());
        assert_eq!(raw.refused(), at(key("k"), truncated(45)));
        let mut raw = Raw { tensor_count: 1, ..Raw::new() };
        raw.body = [&len.to_le_bytes()[..], &[b'x'; 25]].concat();
        let truncated = Fault::Truncated { offset: 32, needed: len, remaining: 25 };
        assert_eq!(raw.refused(), at(Field::TensorName { index: 0 }, truncated));
    }
}

#[test]
fn g4_huge_arrays_of_every_kind_are_refused() {
    for count in HUGE {
        for code in 0..13 {
            let raw = Raw::new().entry(b"k", 9, &array(code, count, &[0; 40]));
            let error = raw.refused();
            let GgufError::Malformed { field, fault: Fault::CountTooLarge { count: c, .. } } =
                error
            else {
                panic!("{error}")
            };
            assert_eq!((field, c), (key("k"), count));
        }
    }
}

#[test]
fn g4_endless_headers_are_refused() {
    let mut raw = Raw::new().entry(b"k", 9, &array(0, HEADER_BYTES_MAX as u64, &[]));
    raw.body.resize(HEADER_BYTES_MAX + 100, 0);
    let fault = Fault::HeaderTooLong { limit: HEADER_BYTES_MAX as u64 };
    assert_eq!(raw.refused(), at(key("k"), fault));
}

#[test]
fn g5_keys_must_be_short_unique_text() {
    let first = Field::Key { index: 0 };
    let one = |key: &[u8]| Raw::new().entry(key, 10, &[1; 8]).refused();
    assert_eq!(one(b""), at(first.clone(), Fault::Empty));
    let too_long = Fault::TooLong { len: 65_536, limit: 65_535 };
    assert_eq!(one(&[b'k'; 65_536]), at(first.clone(), too_long));
    assert_eq!(one(b"ab\xff"), at(first, Fault::InvalidUtf8 { offset: 34 }));
    let twice = Raw::new().entry(b"k\x1b", 0, &[1]).entry(b"l", 0, &[1]).entry(b"k\x1b", 7, &[1]);
    assert_eq!(twice.refused(), GgufError::DuplicateKey { key: "k\u{1b}".to_owned() });
}

#[test]
fn g6_invalid_utf8_is_refused_wherever_it_is() {
    let bad = string(b"a\xc3\x28");
    let raw = Raw::new().entry(b"k", 8, &bad);
    assert_eq!(raw.refused(), at(key("k"), Fault::InvalidUtf8 { offset: 46 }));
    let raw = Raw::new().entry(b"k", 9, &array(8, 2, &[string(b"ok"), bad].concat()));
    assert_eq!(raw.refused(), at(key("k"), Fault::InvalidUtf8 { offset: 68 }));
    let raw = Raw::new().tensor(b"\xed\xa0\x80", &[1], F32, 0).data(4);
    let fault = Fault::InvalidUtf8 { offset: 32 };
    assert_eq!(raw.refused(), at(Field::TensorName { index: 0 }, fault));
}

#[test]
fn g7_unknown_metadata_types_are_refused() {
    for code in [13, 255, u32::MAX] {
        let raw = Raw::new().entry(b"k", code, &[0; 16]);
        assert_eq!(raw.refused(), at(key("k"), Fault::UnknownType { code }));
        let raw = Raw::new().entry(b"k", 9, &array(code, 0, &[]));
        assert_eq!(raw.refused(), at(key("k"), Fault::UnknownType { code }));
    }
}

#[test]
fn g8_truth_values_are_0_or_1() {
    let raw = Raw::new().entry(b"k", 7, &[2]);
    assert_eq!(raw.refused(), at(key("k"), Fault::InvalidBool { byte: 2 }));
    let raw = Raw::new().entry(b"k", 9, &array(7, 3, &[0, 1, 255]));
    assert_eq!(raw.refused(), at(key("k"), Fault::InvalidBool { byte: 255 }));
}

#[test]
fn g9_nesting_is_bounded() {
    let nested = |depth: usize| {
        let outer = array(9, 1, &[]).repeat(depth - 1);
        Raw::new().entry(b"k", 9, &[outer, array(0, 0, &[])].concat())
    };
    nested(4).parse().unwrap();
    for depth in [5, 6, 100_000] {
        assert_eq!(nested(depth).refused(), at(key("k"), Fault::TooDeep { limit: 4 }));
    }
}

#[test]
fn g10_alignment_is_a_power_of_two_from_8() {
    let aligned = |value: u32| Raw::new().entry(b"general.alignment", 4, &value.to_le_bytes());
    for value in [8, 32, 4096, 1 << 31] {
        let parsed = aligned(value).parse().unwrap();
        assert_eq!((parsed.alignment, parsed.data_start), (value.into(), value.max(64).into()));
    }
    for value in [0, 1, 4, 24, 33, u32::MAX] {
        let fault = Fault::BadAlignment { value: value.into() };
        assert_eq!(aligned(value).refused(), at(key("general.alignment"), fault));
    }
    // With a tensor behind it, an alignment beyond the file is a range beyond the file.
    let error = aligned(1 << 31).tensor(b"t", &[1], F32, 0).data(4).refused();
    let fault = Fault::OutOfRange { end: (1 << 31) + 4, file_len: 100 };
    assert_eq!(error, at(tensor(TensorPart::Data), fault));
}

#[test]
fn g10_g18_known_keys_of_the_wrong_type_are_refused() {
    for (code, value, found) in [
        (8, string(b"32"), Type::Scalar(Kind::String)),
        (6, 32f32.to_le_bytes().to_vec(), Type::Scalar(Kind::F32)),
        (10, 32u64.to_le_bytes().to_vec(), Type::Scalar(Kind::U64)),
        (9, array(4, 1, &32u32.to_le_bytes()), Type::Array(Kind::U32)),
    ] {
        let error = Raw::new().entry(b"general.alignment", code, &value).refused();
        let key = "general.alignment".to_owned();
        assert_eq!(error, GgufError::WrongType { key, expected: "a u32", found });
    }
    let parsed = Raw::new().entry(b"general.architecture", 4, &[0; 4]).parse().unwrap();
    let found = Type::Scalar(Kind::U32);
    let key = "general.architecture".to_owned();
    let error = parsed.metadata.require_str("general.architecture").unwrap_err();
    assert_eq!(error, GgufError::WrongType { key, expected: "a string", found });
}

#[test]
fn g11_tensor_names_must_be_short_and_unique() {
    let first = Field::TensorName { index: 0 };
    let one = |name: &[u8]| Raw::new().tensor(name, &[1], F32, 0).data(4);
    assert_eq!(one(b"").refused(), at(first.clone(), Fault::Empty));
    one(&[b'n'; 64]).parse().unwrap();
    assert_eq!(one(&[b'n'; 65]).refused(), at(first, Fault::TooLong { len: 65, limit: 64 }));
    let twice = Raw::new().tensor(b"t", &[1], F32, 0).tensor(b"t", &[1], F32, 32).data(64);
    assert_eq!(twice.refused(), GgufError::DuplicateTensor { name: "t".to_owned() });
}

#[test]
fn g12_dimensions_are_1_to_4_and_never_zero() {
    let shaped = |shape: &[u64]| Raw::new().tensor(b"t", shape, F32, 0).data(64).refused();
    let shape = tensor(TensorPart::Shape);
    assert_eq!(shaped(&[]), at(shape.clone(), Fault::DimensionCount { count: 0, limit: 4 }));
    assert_eq!(shaped(&[1; 5]), at(shape.clone(), Fault::DimensionCount { count: 5, limit: 4 }));
    let mut raw = Raw::new().tensor(b"t", &[1], F32, 0).data(64);
    raw.body[9..13].fill(0xff);
    let fault = Fault::DimensionCount { count: u32::MAX.into(), limit: 4 };
    assert_eq!(raw.refused(), at(shape.clone(), fault));
    for axis in 0..4 {
        let mut dims = [1, 2, 3, 4];
        dims[axis] = 0;
        assert_eq!(shaped(&dims), at(shape.clone(), Fault::ZeroDimension { axis }));
    }
}

#[test]
fn g13_unknown_tensor_types_are_refused() {
    for code in [4, 5, 9, 15, 16, 24, 26, 31, 39, 1000, u32::MAX] {
        let raw = Raw::new().tensor(b"t", &[256], code, 0).data(4096);
        assert_eq!(raw.refused(), at(tensor(TensorPart::DType), Fault::UnknownDType { code }));
    }
}

#[test]
fn g14_rows_are_whole_blocks_and_sizes_fit() {
    let shaped = |shape: &[u64], code| {
        let error = Raw::new().tensor(b"t", shape, code, 0).data(64).refused();
        let GgufError::Malformed { field, fault } = error else { panic!("{error}") };
        assert_eq!(field, tensor(TensorPart::Shape));
        fault
    };
    let partial = |row_len| Fault::PartialBlock { row_len, dtype: DType::Q4_K };
    assert_eq!(shaped(&[255], Q4_K), partial(255));
    assert_eq!(shaped(&[128, 2], Q4_K), partial(128));
    // Too many elements; then few enough elements, too many bytes.
    assert_eq!(shaped(&[1 << 32, 1 << 32], F32), Fault::Overflow);
    assert_eq!(shaped(&[u64::MAX, u64::MAX, u64::MAX, u64::MAX], F32), Fault::Overflow);
    assert_eq!(shaped(&[1 << 62], F32), Fault::Overflow);
    // The product wraps around to a small number.
    assert_eq!(shaped(&[1 << 32, 1 << 31, 2, 1], F32), Fault::Overflow);
}

#[test]
fn g15_offsets_are_aligned() {
    for offset in [1, 16, 31, u64::MAX] {
        let raw = Raw::new().tensor(b"t", &[1], F32, offset).data(64);
        let fault = Fault::Misaligned { offset, alignment: 32 };
        assert_eq!(raw.refused(), at(tensor(TensorPart::Data), fault));
    }
}

#[test]
fn g16_data_lies_inside_the_file() {
    // The header of one tensor with one dimension is 57 bytes long, its data starts at 64.
    let placed = |offset| Raw::new().tensor(b"t", &[16], F32, offset).data(64);
    placed(0).parse().unwrap();
    let data = tensor(TensorPart::Data);
    for offset in [32, 64, 1 << 40] {
        let fault = Fault::OutOfRange { end: 128 + offset, file_len: 128 };
        assert_eq!(placed(offset).refused(), at(data.clone(), fault));
    }
    // The sums overflow, of start and size or already of the start.
    for offset in [u64::MAX - 127, u64::MAX - 63, u64::MAX - 31] {
        assert_eq!(placed(offset).refused(), at(data.clone(), Fault::Overflow));
    }
}

#[test]
fn g17_tensors_do_not_overlap() {
    let pair = |a: u64, b: u64| {
        Raw::new().tensor(b"a", &[16], F32, a).tensor(b"b", &[8], F32, b).data(160)
    };
    pair(0, 64).parse().unwrap();
    pair(32, 0).parse().unwrap();
    pair(0, 128).parse().unwrap();
    let overlap = |first: &str, second: &str| GgufError::Overlap {
        first: first.to_owned(),
        second: second.to_owned(),
    };
    assert_eq!(pair(0, 32).refused(), overlap("a", "b"));
    assert!(matches!(pair(32, 32).refused(), GgufError::Overlap { .. }));
    let raw = Raw::new().tensor(b"a", &[8], F32, 64).tensor(b"b", &[32], F32, 0).data(160);
    assert_eq!(raw.refused(), overlap("b", "a"));
}

#[test]
fn g17_many_tensors_and_keys_take_no_quadratic_time() {
    let count = 100_000u64;
    let mut raw = Raw::new();
    for i in 0..count {
        raw = raw.entry(format!("key {i}").as_bytes(), 0, &[0]);
    }
    for i in 0..count {
        raw = raw.tensor(format!("tensor {i}").as_bytes(), &[8], F32, (count - 1 - i) * 32);
    }
    let file = raw.data(count as usize * 32).bytes();
    let start = Instant::now();
    let parsed = Gguf::parse(&file).unwrap();
    assert_eq!(parsed.tensor("tensor 99999").unwrap().range.start, parsed.data_start);
    assert_eq!(parsed.metadata.u64("key 99999"), Ok(Some(0)));
    // Takes some 0.1 s; comparing all pairs would take minutes.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn g19_errors_escape_and_shorten_what_the_file_says() {
    let name = "\u{1b}]0;x\u{7}\u{202e}";
    let raw = Raw::new().tensor(name.as_bytes(), &[1], 99, 0).data(4);
    let expected = r#"tensor "\u{1b}]0;x\u{7}\u{202e}", type: tensor type code 99 "#;
    assert!(raw.refused().to_string().starts_with(expected), "{}", raw.refused());
    let long = Raw::new().entry(&[b'k'; 60_000], 99, &[0]).refused().to_string();
    assert!(long.len() < 200, "{long}");
}
