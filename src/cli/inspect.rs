//! `aios inspect`: what a GGUF file says, what it holds, and what a token of it costs to read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use aios_contract::{DType, Role, RoleGroup, TensorName};
use aios_engine::gguf::{Array, Escaped, Gguf, SplitSet, Value};
use aios_residency::Mapping;
use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::model_file;
use crate::interrupt::Interrupt;

/// How much of a text and how many elements of an array are shown.
const SHOWN_CHARS: usize = 120;
const SHOWN_ELEMENTS: usize = 6;

/// Show what a GGUF file holds and what reading one token costs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios inspect model.gguf
  aios inspect smollm2-135m-instruct --json

The bytes per token are those of the weights: every matrix once, one row of the embedding. The
cache of keys and values comes on top and grows with the context.")]
pub(super) struct InspectArgs {
    /// A GGUF file (of a split model the first part), or the name of a catalogue model.
    #[arg(value_name = "FILE|NAME")]
    file: String,
    /// Print JSON: one object.
    #[arg(long)]
    json: bool,
    /// Leave out the list of tensors.
    #[arg(long)]
    no_tensors: bool,
}

/// Everything that is shown. Texts from the file are escaped and shortened.
#[derive(Serialize)]
struct Report {
    files: Vec<String>,
    version: u32,
    file_bytes: u64,
    metadata: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor>>,
    groups: Vec<Group>,
    dtypes: Vec<ByDtype>,
    /// The tensors that no role of this engine matches.
    unknown_tensors: Vec<String>,
    tied_head: bool,
    weight_bytes_per_token: u64,
}

#[derive(Serialize)]
struct Entry {
    key: String,
    r#type: String,
    value: String,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    dtype: &'static str,
    bytes: u64,
}

#[derive(Serialize)]
struct Group {
    name: &'static str,
    tensors: u64,
    bytes: u64,
    bytes_per_token: u64,
}

#[derive(Serialize)]
struct ByDtype {
    dtype: &'static str,
    tensors: u64,
    bytes: u64,
}

/// Runs `aios inspect`.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let path = model_file(&args.file, &interrupt)?;
    let report = inspect(&path, !args.no_tensors)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, &mut out)?;
    }
    Ok(())
}

/// Reads the headers of all parts.
fn inspect(path: &Path, with_tensors: bool) -> anyhow::Result<Report> {
    let mut files = vec![path.to_owned()];
    let (bytes, first) = header(path)?;
    let mut file_bytes = bytes;
    let mut parts = vec![first];
    let named = || format!("{} cannot be used", path.display());
    if let Some(set) = SplitSet::of(path, &parts[0]).with_context(named)? {
        for part in 2..=set.count() {
            let path = set.path(part);
            if !path.exists() {
                return Err(set.missing(part)).with_context(named);
            }
            let (bytes, header) = header(&path)?;
            set.check_part(part, &header).with_context(named)?;
            file_bytes += bytes;
            files.push(path);
            parts.push(header);
        }
        set.check_whole(&parts.iter().collect::<Vec<_>>()).with_context(named)?;
    }
    let files = files.iter().map(|path| path.display().to_string()).collect();
    Ok(report(&parts, files, file_bytes, with_tensors))
}

/// The length and the header of one file.
fn header(path: &Path) -> anyhow::Result<(u64, Gguf)> {
    let mapping = Mapping::open(path)?;
    let gguf = Gguf::parse(mapping.bytes())
        .with_context(|| format!("{} is not a usable GGUF file", path.display()))?;
    Ok((mapping.bytes().len() as u64, gguf))
}

fn report(parts: &[Gguf], files: Vec<String>, file_bytes: u64, with_tensors: bool) -> Report {
    let all = || parts.iter().flat_map(|part| &part.tensors);
    let roles: BTreeSet<Role> =
        all().filter_map(|tensor| Some(TensorName::parse(&tensor.name)?.role)).collect();
    let tied_head = roles.contains(&Role::TokenEmbedding) && !roles.contains(&Role::Head);
    let mut groups = RoleGroup::ALL.map(|group| Group {
        name: group.name(),
        tensors: 0,
        bytes: 0,
        bytes_per_token: 0,
    });
    let mut dtypes: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    let mut unknown_tensors = Vec::new();
    for tensor in all() {
        let bytes = tensor.bytes();
        let by_dtype = dtypes.entry(tensor.dtype.name()).or_default();
        *by_dtype = (by_dtype.0 + 1, by_dtype.1 + bytes);
        let Some(name) = TensorName::parse(&tensor.name) else {
            unknown_tensors.push(shown(&tensor.name));
            continue;
        };
        let group = &mut groups[name.role.group() as usize];
        group.tensors += 1;
        group.bytes += bytes;
        group.bytes_per_token += match name.role {
            Role::TokenEmbedding => bytes / tensor.rows(),
            // These become a table when the model is loaded.
            Role::RopeFactors | Role::RopeFactorsLong | Role::RopeFactorsShort => 0,
            _ => bytes,
        };
        if name.role == Role::TokenEmbedding && tied_head {
            groups[RoleGroup::Head as usize].bytes_per_token += bytes;
        }
    }
    let tensors = with_tensors.then(|| {
        let line = |tensor: &aios_engine::gguf::TensorInfo| Tensor {
            name: shown(&tensor.name),
            shape: tensor.shape.clone(),
            dtype: DType::name(tensor.dtype),
            bytes: tensor.bytes(),
        };
        all().map(line).collect()
    });
    let entry = |(key, value): (&str, &Value)| Entry {
        key: shown(key),
        r#type: value.type_of().to_string(),
        value: text_of(value),
    };
    Report {
        files,
        version: parts[0].version,
        file_bytes,
        metadata: parts[0].metadata.iter().map(entry).collect(),
        tensors,
        weight_bytes_per_token: groups.iter().map(|group| group.bytes_per_token).sum(),
        groups: groups.into(),
        dtypes: dtypes
            .into_iter()
            .map(|(dtype, (tensors, bytes))| ByDtype { dtype, tensors, bytes })
            .collect(),
        unknown_tensors,
        tied_head,
    }
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for file in &report.files {
        writeln!(out, "{file}")?;
    }
    writeln!(out, "GGUF version {}, {} bytes\n\nMetadata", report.version, report.file_bytes)?;
    for entry in &report.metadata {
        writeln!(out, "  {} ({}): {}", entry.key, entry.r#type, entry.value)?;
    }
    if let Some(tensors) = &report.tensors {
        writeln!(out, "\nTensors (the length of a row first)")?;
        for tensor in tensors {
            let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            let (name, shape) = (&tensor.name, shape.join(" x "));
            writeln!(out, "  {name:32} {shape:>16} {:>7} {:>12} B", tensor.dtype, tensor.bytes)?;
        }
    }
    writeln!(out, "\nFormats")?;
    for one in &report.dtypes {
        writeln!(out, "  {:10} {:5} tensors {:>14} B", one.dtype, one.tensors, one.bytes)?;
    }
    writeln!(out, "\nBytes by role             in the file      read per token")?;
    for group in &report.groups {
        let (name, tensors) = (group.name, group.tensors);
        let (bytes, read) = (group.bytes, group.bytes_per_token);
        writeln!(out, "  {name:10} {tensors:5} tensors {bytes:>14} B {read:>14} B")?;
    }
    let total: u64 = report.groups.iter().map(|group| group.bytes).sum();
    let read = report.weight_bytes_per_token;
    writeln!(out, "  {:10} {:5}         {total:>14} B {read:>14} B", "all", "")?;
    if report.tied_head {
        writeln!(out, "  (the head is tied: it is the embedding, read whole)")?;
    }
    if !report.unknown_tensors.is_empty() {
        writeln!(out, "\nTensors without a role in this engine")?;
        for name in &report.unknown_tensors {
            writeln!(out, "  {name}")?;
        }
    }
    writeln!(out, "\nOne token reads {:.1} MB of weights.", read as f64 / 1e6)
}

/// A text of the file, escaped and shortened.
fn shown(text: &str) -> String {
    Escaped::shortened(text, SHOWN_CHARS).to_string()
}

fn text_of(value: &Value) -> String {
    match value {
        Value::U8(n) => n.to_string(),
        Value::I8(n) => n.to_string(),
        Value::U16(n) => n.to_string(),
        Value::I16(n) => n.to_string(),
        Value::U32(n) => n.to_string(),
        Value::I32(n) => n.to_string(),
        Value::U64(n) => n.to_string(),
        Value::I64(n) => n.to_string(),
        Value::F32(n) => n.to_string(),
        Value::F64(n) => n.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::String(text) => format!("\"{}\"", shown(text)),
        Value::Array(array) => text_of_array(array),
    }
}

fn text_of_array(array: &Array) -> String {
    fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
        let mut texts: Vec<String> = items.iter().take(SHOWN_ELEMENTS).map(text).collect();
        if items.len() > SHOWN_ELEMENTS {
            texts.push("…".to_owned());
        }
        format!("[{}]", texts.join(", "))
    }
    match array {
        Array::U8(items) => list(items, u8::to_string),
        Array::I8(items) => list(items, i8::to_string),
        Array::U16(items) => list(items, u16::to_string),
        Array::I16(items) => list(items, i16::to_string),
        Array::U32(items) => list(items, u32::to_string),
        Array::I32(items) => list(items, i32::to_string),
        Array::U64(items) => list(items, u64::to_string),
        Array::I64(items) => list(items, i64::to_string),
        Array::F32(items) => list(items, f32::to_string),
        Array::F64(items) => list(items, f64::to_string),
        Array::Bool(items) => list(items, bool::to_string),
        Array::String(items) => list(items, |text| format!("\"{}\"", shown(text))),
        Array::Nested(items) => list(items, text_of_array),
    }
}

#[cfg(test)]
mod tests {
    use aios_engine::gguf::{Metadata, TensorSpec, Writer};

    use super::*;

    #[test]
    fn text_of_a_file_is_escaped_and_arrays_are_shortened() {
        assert_eq!(text_of(&Value::String("a\u{1b}[2J\n".to_owned())), "\"a\\u{1b}[2J\\n\"");
        let numbers = Value::Array(Array::U32((0..9).collect()));
        assert_eq!(text_of(&numbers), "[0, 1, 2, 3, 4, 5, …]");
        let nested = Value::Array(Array::Nested(vec![Array::Bool(vec![true]), Array::U8(vec![])]));
        assert_eq!(text_of(&nested), "[[true], []]");
    }

    /// A header with float tensors of the given names and shapes.
    fn gguf(tensors: &[(&str, &[u64])]) -> Gguf {
        let spec = |&(name, shape): &(&str, &[u64])| TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype: DType::F32,
        };
        let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, &Metadata::new(), &specs).unwrap();
        for spec in &specs {
            let zeros = vec![0; usize::try_from(spec.bytes().unwrap()).unwrap()];
            writer.tensor(&spec.name, &zeros).unwrap();
        }
        writer.finish().unwrap();
        Gguf::parse(&file).unwrap()
    }

    fn per_token(tensors: &[(&str, &[u64])]) -> Vec<(&'static str, u64)> {
        let report = report(&[gguf(tensors)], Vec::new(), 0, false);
        let read: u64 = report.groups.iter().map(|group| group.bytes_per_token).sum();
        assert_eq!(read, report.weight_bytes_per_token);
        report.groups.iter().map(|group| (group.name, group.bytes_per_token)).collect()
    }

    #[test]
    fn a_token_reads_a_row_of_the_embedding_and_every_other_matrix_once() {
        let common: [(&str, &[u64]); 4] = [
            ("token_embd.weight", &[8, 10]),
            ("blk.0.attn_q.weight", &[8, 8]),
            ("blk.0.ffn_norm.weight", &[8]),
            ("rope_freqs.weight", &[4]),
        ];
        let of = |head| {
            vec![("embedding", 32), ("attention", 256), ("ffn", 0), ("norm", 32), ("head", head)]
        };
        assert_eq!(per_token(&common), of(320), "a tied head is the embedding, read whole");
        let untied = [&common[..], &[("output.weight", &[8, 5])]].concat();
        assert_eq!(per_token(&untied), of(160));
        assert_eq!(per_token(&[("mystery", &[8])]).iter().map(|(_, n)| n).sum::<u64>(), 0);
    }

    #[test]
    fn a_report_lists_formats_and_what_has_no_role() {
        let parts = [gguf(&[("a\n", &[8])]), gguf(&[("output.weight", &[8, 2])])];
        let report = report(&parts, Vec::new(), 0, true);
        assert_eq!(report.unknown_tensors, ["a\\n"]);
        assert_eq!((report.dtypes[0].tensors, report.dtypes[0].bytes), (2, 96));
        let mut text = Vec::new();
        print(&report, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("output.weight") && text.contains("without a role"), "{text}");
    }
}
