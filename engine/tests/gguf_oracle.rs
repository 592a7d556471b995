//! The micro models and the vocabulary files, read here and by two independent readers: the crate
//! `gguf-rs-lib` and PyPI's `gguf`.

use std::fmt::Write as _;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use aios_contract::DType;
use aios_engine::gguf::{Array, Gguf, Metadata, TensorSpec, Value, Writer};
use gguf_rs_lib::format::MetadataValue;
use gguf_rs_lib::prelude::GGUFFileReader;
use sha2::{Digest, Sha256};

/// All GGUF files of the test data, sorted.
fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let mut files = Vec::new();
    for (folder, least) in [("models", 8), ("tokenizer", 5), ("encoder", 2)] {
        let before = files.len();
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "gguf") {
                files.push(path);
            }
        }
        assert!(files.len() - before >= least, "files are missing from testdata/{folder}");
    }
    files.sort();
    files
}

#[test]
fn gguf_rs_lib_reads_the_same() {
    for path in files() {
        compare_with_crate(&path.display().to_string(), &fs::read(&path).unwrap());
    }
    compare_with_crate("a written file", &written());
}

fn compare_with_crate(path: &str, file: &[u8]) {
    let ours = Gguf::parse(file).unwrap_or_else(|error| panic!("{path}: {error}"));
    let theirs = GGUFFileReader::new(Cursor::new(file)).unwrap();
    assert_eq!(ours.alignment, theirs.tensor_alignment(), "{path}");
    assert_eq!(ours.metadata.len(), theirs.metadata().len(), "{path}");
    for (key, value) in ours.metadata.iter() {
        let other = theirs.metadata().get(key).unwrap_or_else(|| panic!("{path}: {key}"));
        assert_same_value(value, other, &format!("{path}: {key}"));
    }
    assert_eq!(ours.tensors.len(), theirs.tensor_count(), "{path}");
    if !ours.tensors.is_empty() {
        assert_eq!(ours.data_start, theirs.tensor_data_offset(), "{path}");
    }
    for (tensor, other) in ours.tensors.iter().zip(theirs.tensor_infos()) {
        assert_eq!(tensor.name, other.name());
        assert_eq!(tensor.shape, other.shape().dims(), "{path}: {}", tensor.name);
        let code = other.tensor_type() as u32;
        assert_eq!(tensor.dtype.gguf_code(), code, "{path}: {}", tensor.name);
        assert_eq!(tensor.range.start, ours.data_start + other.data_offset(), "{path}");
        assert_eq!(tensor.bytes(), other.expected_data_size(), "{path}: {}", tensor.name);
    }
}

fn assert_same_value(ours: &Value, theirs: &MetadataValue, place: &str) {
    use MetadataValue as M;
    match (ours, theirs) {
        (Value::U8(a), M::U8(b)) => assert_eq!(a, b, "{place}"),
        (Value::I8(a), M::I8(b)) => assert_eq!(a, b, "{place}"),
        (Value::U16(a), M::U16(b)) => assert_eq!(a, b, "{place}"),
        (Value::I16(a), M::I16(b)) => assert_eq!(a, b, "{place}"),
        (Value::U32(a), M::U32(b)) => assert_eq!(a, b, "{place}"),
        (Value::I32(a), M::I32(b)) => assert_eq!(a, b, "{place}"),
        (Value::U64(a), M::U64(b)) => assert_eq!(a, b, "{place}"),
        (Value::I64(a), M::I64(b)) => assert_eq!(a, b, "{place}"),
        (Value::F32(a), M::F32(b)) => assert_eq!(a.to_bits(), b.to_bits(), "{place}"),
        (Value::F64(a), M::F64(b)) => assert_eq!(a.to_bits(), b.to_bits(), "{place}"),
        (Value::Bool(a), M::Bool(b)) => assert_eq!(a, b, "{place}"),
        (Value::String(a), M::String(b)) => assert_eq!(a, b, "{place}"),
        (Value::Array(a), M::Array(b)) => {
            let a = elements(a);
            assert_eq!(a.len(), b.len(), "{place}");
            a.iter().zip(b.iter()).for_each(|(a, b)| assert_same_value(a, b, place));
        }
        _ => panic!("{place}: {ours:?} here, {theirs:?} there"),
    }
}

fn elements(array: &Array) -> Vec<Value> {
    fn each<T: Clone + Into<Value>>(values: &[T]) -> Vec<Value> {
        values.iter().cloned().map(Into::into).collect()
    }
    match array {
        Array::U8(v) => each(v),
        Array::I8(v) => each(v),
        Array::U16(v) => each(v),
        Array::I16(v) => each(v),
        Array::U32(v) => each(v),
        Array::I32(v) => each(v),
        Array::F32(v) => each(v),
        Array::Bool(v) => each(v),
        Array::String(v) => each(v),
        Array::Nested(v) => each(v),
        Array::U64(v) => each(v),
        Array::I64(v) => each(v),
        Array::F64(v) => each(v),
    }
}

#[test]
fn the_comparison_notices_a_difference() {
    let differs = |ours: Value, theirs: MetadataValue| {
        let compare = move || assert_same_value(&ours, &theirs, "planted");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(compare)).is_err()
    };
    assert!(!differs(Value::U8(1), MetadataValue::U8(1)));
    assert!(differs(Value::U8(1), MetadataValue::U8(2)));
    assert!(differs(Value::U8(1), MetadataValue::I8(1)));
    assert!(differs(Value::F32(0.0), MetadataValue::F32(-0.0)));
    let (mut ours, mut theirs) = (String::new(), String::new());
    let mut file = written();
    summarise(&file, &mut ours);
    *file.last_mut().unwrap() ^= 1;
    summarise(&file, &mut theirs);
    assert_eq!(ours, theirs, "padding is no part of the summary");
    let data_start = Gguf::parse(&file).unwrap().data_start as usize;
    file[data_start] ^= 1;
    theirs.clear();
    summarise(&file, &mut theirs);
    assert_ne!(ours, theirs);
}

/// A file from our own writer with every type that both oracles know, and every tensor type.
fn written() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("general.alignment", 64u32);
    metadata.set("u8", 200u8);
    metadata.set("i8", -100i8);
    metadata.set("u16", 60_000u16);
    metadata.set("i16", -30_000i16);
    metadata.set("i32", i32::MIN);
    metadata.set("f32", 1.5f32);
    metadata.set("bool", true);
    metadata.set("u64", u64::MAX);
    metadata.set("i64", i64::MIN);
    metadata.set("f64", -2.5f64);
    metadata.set("text", "é\n\u{1f980}");
    metadata.set("tokens", ["a", "", "ß"].map(str::to_owned).to_vec());
    metadata.set("scores", vec![0.25f32, -1.0]);
    metadata.set("flags", vec![true, false]);
    let spec =
        |dtype: DType| TensorSpec { name: format!("tensor.{dtype}"), shape: vec![256, 3], dtype };
    let specs = DType::ALL.map(spec);
    let mut writer = Writer::new(Vec::new(), &metadata, &specs).unwrap();
    for (fill, spec) in (1u8..).zip(&specs) {
        writer.tensor(&spec.name, &vec![fill; spec.bytes().unwrap() as usize]).unwrap();
    }
    writer.finish().unwrap()
}

/// Prints, for each file named, one line per metadata entry and tensor: type, and the digest of the
/// values or the data.
const SCRIPT: &str = r#"
import hashlib, sys
import numpy as np
from gguf import GGUFReader, GGUFValueType
for path in sys.argv[1:]:
    reader = GGUFReader(path)
    print("file", int(reader.fields["GGUF.version"].contents()), int(reader.alignment))
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        digest = hashlib.sha256()
        # Each value is one part; strings get their length in front, as in the file.
        for index in field.data:
            part = field.parts[index]
            if field.types[-1] == GGUFValueType.STRING:
                digest.update(np.uint64(len(part)).tobytes())
            digest.update(part.tobytes())
        types = "/".join(str(int(t)) for t in field.types)
        print("key", key, types, len(field.data), digest.hexdigest())
    for t in reader.tensors:
        dims = ",".join(str(int(d)) for d in t.shape)
        digest = hashlib.sha256(t.data.tobytes()).hexdigest()
        numbers = [int(t.tensor_type), int(t.data_offset), int(t.n_bytes)]
        print("tensor", t.name, dims, *numbers, digest)
"#;

#[test]
fn pypi_gguf_reads_the_same() {
    let small = |path: &PathBuf| fs::metadata(path).unwrap().len() < 1_000_000;
    let of_models = |path: &PathBuf| path.parent().unwrap().ends_with("models");
    compare_with_python(files().into_iter().filter(|path| of_models(path) || small(path)));
}

#[test]
#[ignore = "Python takes a minute: cargo test -p aios-engine --test gguf_oracle -- --ignored"]
fn pypi_gguf_reads_the_large_vocabularies_the_same() {
    compare_with_python(files());
}

fn compare_with_python(files: impl IntoIterator<Item = PathBuf>) {
    if !python_gguf_is_here() {
        assert!(std::env::var_os("CI").is_none(), "CI needs python3 with the package gguf");
        println!("skipped: python3 with the package gguf is missing (pip install gguf)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("written.gguf");
    fs::write(&own, written()).unwrap();
    let mut files: Vec<_> = files.into_iter().collect();
    files.push(own);
    let output = Command::new("python3").arg("-c").arg(SCRIPT).args(&files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = String::from_utf8(output.stdout).unwrap();
    let mut found = String::new();
    files.iter().for_each(|path| summarise(&fs::read(path).unwrap(), &mut found));
    for (ours, theirs) in found.lines().zip(expected.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

fn python_gguf_is_here() -> bool {
    let output = Command::new("python3").args(["-c", "import gguf"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// What [`SCRIPT`] prints for one file, as our reader sees it.
fn summarise(file: &[u8], out: &mut String) {
    let parsed = Gguf::parse(file).unwrap();
    writeln!(out, "file {} {}", parsed.version, parsed.alignment).unwrap();
    for (key, value) in parsed.metadata.iter() {
        let values = match value {
            Value::Array(array) => elements(array),
            scalar => vec![scalar.clone()],
        };
        let types = match value {
            Value::Array(array) if array.is_empty() => "9".to_owned(),
            Value::Array(array) => format!("9/{}", array.kind().code()),
            scalar => scalar.kind().code().to_string(),
        };
        let bytes: Vec<u8> = values.iter().flat_map(encoded).collect();
        writeln!(out, "key {key} {types} {} {}", values.len(), digest(&bytes)).unwrap();
    }
    for tensor in &parsed.tensors {
        let dims: Vec<_> = tensor.shape.iter().map(u64::to_string).collect();
        let data = digest(tensor.data(file).unwrap());
        let (name, code, start) = (&tensor.name, tensor.dtype.gguf_code(), tensor.range.start);
        let (dims, bytes) = (dims.join(","), tensor.bytes());
        writeln!(out, "tensor {name} {dims} {code} {start} {bytes} {data}").unwrap();
    }
}

/// A scalar as the file has it.
fn encoded(value: &Value) -> Vec<u8> {
    match value {
        Value::U8(v) => v.to_le_bytes().to_vec(),
        Value::I8(v) => v.to_le_bytes().to_vec(),
        Value::U16(v) => v.to_le_bytes().to_vec(),
        Value::I16(v) => v.to_le_bytes().to_vec(),
        Value::U32(v) => v.to_le_bytes().to_vec(),
        Value::I32(v) => v.to_le_bytes().to_vec(),
        Value::U64(v) => v.to_le_bytes().to_vec(),
        Value::I64(v) => v.to_le_bytes().to_vec(),
        Value::F32(v) => v.to_le_bytes().to_vec(),
        Value::F64(v) => v.to_le_bytes().to_vec(),
        Value::Bool(v) => vec![(*v).into()],
        Value::String(v) => [&(v.len() as u64).to_le_bytes(), v.as_bytes()].concat(),
        Value::Array(_) => panic!("the test data has no arrays of arrays"),
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
