//! What the writer writes, the reader reads; what the reader would refuse, the writer refuses.

use aios_contract::DType;
use aios_engine::gguf::{
    Array, Escaped, Fault, Field, Gguf, GgufError, Kind, Metadata, TensorSpec, Type, Value,
    WriteError, Writer,
};
use proptest::prelude::*;

fn spec(name: &str, shape: &[u64], dtype: DType) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec(), dtype }
}

/// Writes a file whose tensors hold `data`, in chunks of at most `chunk` bytes.
fn write(metadata: &Metadata, tensors: &[(TensorSpec, Vec<u8>)], chunk: usize) -> Vec<u8> {
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = Writer::new(Vec::new(), metadata, &specs).unwrap();
    for (spec, data) in tensors {
        writer.start(&spec.name).unwrap();
        data.chunks(chunk).for_each(|part| writer.append(part).unwrap());
    }
    writer.finish().unwrap()
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Array::U8),
        prop::collection::vec(any::<i8>(), 0..9).prop_map(Array::I8),
        prop::collection::vec(any::<u16>(), 0..9).prop_map(Array::U16),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..9).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Array::I32),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(Array::U64),
        prop::collection::vec(any::<i64>(), 0..9).prop_map(Array::I64),
        prop::collection::vec(any::<f32>(), 0..9).prop_map(Array::F32),
        prop::collection::vec(any::<f64>(), 0..9).prop_map(Array::F64),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        prop::collection::vec(any::<String>(), 0..9).prop_map(Array::String),
    ];
    flat.prop_recursive(3, 16, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(Array::Nested)
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let value = prop_oneof![scalar(), array().prop_map(Value::from)];
    (prop::collection::vec((".{1,12}", value), 0..8), 3u32..12).prop_map(|(entries, log2)| {
        let mut metadata = Metadata::new();
        entries.into_iter().for_each(|(key, value)| metadata.set(key, value));
        metadata.set("general.alignment", 1u32 << log2);
        metadata
    })
}

fn tensors() -> impl Strategy<Value = Vec<(TensorSpec, Vec<u8>)>> {
    let dtype = prop::sample::select(DType::ALL.to_vec());
    let one = (dtype, 1u64..4, prop::collection::vec(1u64..4, 0..4), any::<u8>());
    prop::collection::vec(one, 0..6).prop_map(|list| {
        let named = |(index, (dtype, blocks, rest, fill)): (usize, (DType, u64, Vec<u64>, u8))| {
            let shape = [vec![blocks * dtype.block_len() as u64], rest].concat();
            let spec = spec(&format!("tensor {index}"), &shape, dtype);
            let data = vec![fill; spec.bytes().unwrap() as usize];
            (spec, data)
        };
        list.into_iter().enumerate().map(named).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..<_>::default() })]

    #[test]
    fn what_was_written_is_read(
        metadata in metadata(), tensors in tensors(), chunk in 1usize..3000
    ) {
        let file = write(&metadata, &tensors, chunk);
        let read = Gguf::parse(&file).unwrap();
        // Debug text, because it takes a NaN for equal to itself.
        prop_assert_eq!(format!("{:?}", read.metadata), format!("{metadata:?}"));
        prop_assert_eq!(read.tensors.len(), tensors.len());
        for (info, (spec, data)) in read.tensors.iter().zip(&tensors) {
            prop_assert_eq!(&TensorSpec::from(info), spec);
            prop_assert_eq!(info.range.start % read.alignment, 0);
            prop_assert_eq!(info.data(&file), Some(data.as_slice()));
            prop_assert_eq!(read.tensor(&spec.name), Some(info));
        }
        prop_assert!((file.len() as u64).is_multiple_of(read.alignment));
    }
}

#[test]
fn a_file_is_laid_out_as_the_format_says() {
    let mut metadata = Metadata::new();
    metadata.set("k", true);
    let file = write(&metadata, &[(spec("t", &[2], DType::F32), vec![7; 8])], 8);
    let mut expected = b"GGUF\x03\0\0\0".to_vec();
    expected.extend(1u64.to_le_bytes());
    expected.extend(1u64.to_le_bytes());
    expected.extend(b"\x01\0\0\0\0\0\0\0k\x07\0\0\0\x01");
    expected.extend(b"\x01\0\0\0\0\0\0\0t\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    expected.resize(96, 0);
    expected.extend([7; 8]);
    expected.resize(128, 0);
    assert_eq!(file, expected);
}

#[test]
fn metadata_access_is_typed() {
    let mut metadata = Metadata::new();
    metadata.set("count", 7u16);
    metadata.set("below", -7i64);
    metadata.set("name", "x");
    metadata.set("list", vec![1i32, 2]);
    metadata.set("mixed", vec![1i64, -2]);
    let wrong =
        |key: &str, expected, found| GgufError::WrongType { key: key.to_owned(), expected, found };
    assert_eq!(metadata.u64("count"), Ok(Some(7)));
    assert_eq!(metadata.u64("absent"), Ok(None));
    let missing = GgufError::MissingKey { key: "absent".to_owned() };
    assert_eq!(metadata.require_u64("absent"), Err(missing));
    let negative = GgufError::Negative { key: "below".to_owned(), value: -7 };
    assert_eq!(metadata.u64("below"), Err(negative));
    let negative = GgufError::Negative { key: "mixed".to_owned(), value: -2 };
    assert_eq!(metadata.u64s("mixed"), Err(negative));
    assert_eq!(metadata.u64s("list"), Ok(Some(vec![1, 2])));
    assert_eq!(metadata.i32s("list"), Ok(Some([1, 2].as_slice())));
    assert_eq!(metadata.require_str("name"), Ok("x"));
    assert_eq!(
        metadata.u64("name"),
        Err(wrong("name", "a non-negative integer", Type::Scalar(Kind::String)))
    );
    assert_eq!(
        metadata.require_strings("list"),
        Err(wrong("list", "an array of strings", Type::Array(Kind::I32)))
    );
    metadata.set("count", 8u32);
    assert_eq!(metadata.u64("count"), Ok(Some(8)));
    let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["count", "below", "name", "list", "mixed"]);
}

#[test]
fn values_print_escaped_and_shortened() {
    let nasty = "\u{1b}[2J\u{202e}\n\"'é";
    assert_eq!(Escaped::new(nasty).to_string(), r#"\u{1b}[2J\u{202e}\n\"'é"#);
    assert_eq!(Escaped::shortened("abcdef", 3).to_string(), "abc…");
    assert_eq!(Value::from(nasty).to_string(), r#""\u{1b}[2J\u{202e}\n\"'é""#);
    let long: Vec<u32> = (0..100).collect();
    assert_eq!(Value::from(long).to_string(), "100 u32 [0, 1, 2, 3, …]");
    let nested = Array::Nested(vec![Array::Bool(vec![true]), Array::String(vec!["\t".into()])]);
    assert_eq!(Value::from(nested).to_string(), r#"2 array [1 bool [true], 1 string ["\t"]]"#);
}

#[test]
fn the_writer_refuses_what_the_reader_would_refuse() {
    let refuse = |metadata: &Metadata, tensors: &[TensorSpec]| {
        let mut out = Vec::new();
        let error = Writer::new(&mut out, metadata, tensors).unwrap_err();
        assert!(out.is_empty(), "bytes were written before {error}");
        match error {
            WriteError::Invalid(error) => error,
            other => panic!("{other}"),
        }
    };
    let fault = |error| match error {
        GgufError::Malformed { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let none = Metadata::new();
    let one = |shape: &[u64], dtype| fault(refuse(&none, &[spec("t", shape, dtype)]));
    assert_eq!(one(&[], DType::F32), Fault::DimensionCount { count: 0, limit: 4 });
    assert_eq!(one(&[1; 5], DType::F32), Fault::DimensionCount { count: 5, limit: 4 });
    assert_eq!(one(&[1, 0], DType::F32), Fault::ZeroDimension { axis: 1 });
    let partial = Fault::PartialBlock { row_len: 33, dtype: DType::Q8_0 };
    assert_eq!(one(&[33], DType::Q8_0), partial);
    assert_eq!(one(&[1 << 63, 2], DType::F32), Fault::Overflow);
    assert_eq!(one(&[1 << 62], DType::F32), Fault::Overflow);
    assert_eq!(one(&[(1 << 62) - 1], DType::F32), Fault::Overflow);
    assert_eq!(fault(refuse(&none, &[spec("", &[1], DType::F32)])), Fault::Empty);
    let long = "x".repeat(65);
    let too_long = Fault::TooLong { len: 65, limit: 64 };
    assert_eq!(fault(refuse(&none, &[spec(&long, &[1], DType::F32)])), too_long);
    let twice = [spec("t", &[1], DType::F32), spec("t", &[2], DType::F32)];
    assert_eq!(refuse(&none, &twice), GgufError::DuplicateTensor { name: "t".to_owned() });

    let with = |key: &str, value: Value| {
        let mut metadata = Metadata::new();
        metadata.set(key, value);
        refuse(&metadata, &[])
    };
    assert_eq!(fault(with("", 1u8.into())), Fault::Empty);
    assert_eq!(fault(with("general.alignment", 48u32.into())), Fault::BadAlignment { value: 48 });
    let mut deep = Array::U8(vec![]);
    for _ in 0..4 {
        deep = Array::Nested(vec![deep]);
    }
    let error = with("deep", deep.into());
    let field = Field::Metadata { key: "deep".to_owned() };
    assert_eq!(error, GgufError::Malformed { field, fault: Fault::TooDeep { limit: 4 } });
}

#[test]
fn the_writer_keeps_order_and_sizes() {
    let specs = [spec("a", &[2], DType::F32), spec("b", &[1], DType::F32)];
    let new = || Writer::new(Vec::new(), &Metadata::new(), &specs).unwrap();

    assert!(matches!(new().append(&[0]), Err(WriteError::NotStarted)));
    assert!(
        matches!(new().start("b"), Err(WriteError::NotNext { expected: Some(e), .. }) if e == "a")
    );
    assert!(matches!(new().finish(), Err(WriteError::Incomplete { name, .. }) if name == "a"));

    let mut writer = new();
    writer.tensor("a", &[0; 7]).unwrap();
    assert!(matches!(writer.start("b"), Err(WriteError::Incomplete { written: 7, bytes: 8, .. })));
    assert!(matches!(writer.append(&[0; 2]), Err(WriteError::TooMuch { excess: 1, .. })));
    writer.append(&[0]).unwrap();
    assert!(matches!(writer.start("a"), Err(WriteError::NotNext { .. })));
    // Padding was written by the call above: the tensor stays closed.
    assert!(matches!(writer.append(&[0]), Err(WriteError::TooMuch { excess: 1, .. })));
    writer.tensor("b", &[0; 4]).unwrap();
    assert!(matches!(writer.start("c"), Err(WriteError::NotNext { expected: None, .. })));
    let file = writer.finish().unwrap();
    let read = Gguf::parse(&file).unwrap();
    assert_eq!(read.tensors[1].range.start - read.tensors[0].range.start, 32);
    assert_eq!(file.len() as u64, read.data_start + 64);
}
