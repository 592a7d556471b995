//! Canonical and delta weights (SPEC R8, N4): y = C·x + D·x, the same bits however it is computed,
//! and near the product of the matrix that they stand for.

use aios_contract::DType;
use aios_engine::gguf::{Array, Gguf, Metadata, TensorSpec, Value, Writer};
use aios_engine::{Executor, ExecutorOptions, LoadError, Model, Want};
use aios_kernels::{Isa, dequantize};
use aios_residency::{BlockFlags, Phase};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const IDS: [u32; 7] = [1, 2, 3, 4, 5, 6, 7];

/// A tensor of a file that is made.
#[derive(Clone)]
struct Made {
    name: String,
    shape: Vec<u64>,
    dtype: DType,
    data: Vec<u8>,
}

fn micro(name: &str) -> (Metadata, Vec<Made>) {
    let path = format!("../testdata/models/micro-{name}-q4km.gguf");
    parts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
}

/// What is in a file.
fn parts(path: &Path) -> (Metadata, Vec<Made>) {
    let bytes = fs::read(path).expect("read");
    let header = Gguf::parse(&bytes).expect("sound");
    let tensors = header.tensors.iter().map(|tensor| Made {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        dtype: tensor.dtype,
        data: tensor.data(&bytes).expect("within the file").to_vec(),
    });
    (header.metadata.clone(), tensors.collect())
}

fn write(path: &Path, metadata: &Metadata, tensors: &[Made]) {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), shape: t.shape.clone(), dtype: t.dtype })
        .collect();
    let mut writer =
        Writer::new(fs::File::create(path).expect("created"), metadata, &specs).expect("a header");
    tensors.iter().for_each(|t| writer.tensor(&t.name, &t.data).expect("written"));
    writer.finish().expect("finished");
}

/// Small floats that depend on `seed`.
fn floats(count: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    };
    (0..count).map(|_| next()).collect()
}

fn f32_bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Q8_0 blocks of these floats.
fn q8_bytes(floats: &[f32]) -> Vec<u8> {
    let block = |x: &[f32]| {
        let most = x.iter().fold(0_f32, |most, x| most.max(x.abs()));
        let scale = half(most / 127.0);
        let quants = x.iter().map(move |x| (x / (most / 127.0)).round() as i8 as u8);
        scale.to_le_bytes().into_iter().chain(quants).collect::<Vec<u8>>()
    };
    floats.chunks(32).flat_map(block).collect()
}

/// The bits of a small positive float in half precision, cut.
fn half(x: f32) -> u16 {
    let bits = x.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    assert!((1..31).contains(&exponent), "a normal number");
    (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16
}

/// What becomes of a matrix of layer 1.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// It is the canonical one.
    Same,
    /// A dense delta of this dtype.
    Dense(DType),
    /// Two factors of rank 32 of this dtype.
    Factors(DType),
}

fn encoded(dtype: DType, floats: &[f32]) -> Vec<u8> {
    if dtype == DType::Q8_0 { q8_bytes(floats) } else { f32_bytes(floats) }
}

/// A file whose layer 1 is made of layer 0's matrices of these roles.
fn aliased(path: &Path, model: &str, roles: &[(&str, Kind)]) {
    let (mut metadata, mut tensors) = micro(model);
    let (mut names, mut canonical) = (Vec::new(), Vec::new());
    for (seed, (role, kind)) in (1..).zip(roles) {
        let (name, of) = (format!("blk.1.{role}.weight"), format!("blk.0.{role}.weight"));
        tensors.retain(|tensor| tensor.name != name);
        let whole = tensors.iter().find(|tensor| tensor.name == of).expect("layer 0").clone();
        let [cols, rows] = whole.shape[..] else { panic!("a matrix") };
        let mut push = |suffix: &str, shape: [u64; 2], dtype, size| {
            let data = encoded(dtype, &floats((shape[0] * shape[1]) as usize, seed, size));
            let name = format!("{name}{suffix}");
            tensors.push(Made { name, shape: shape.to_vec(), dtype, data });
        };
        match *kind {
            Kind::Same => {}
            Kind::Dense(dtype) => push(".delta", [cols, rows], dtype, 0.02),
            Kind::Factors(dtype) => {
                push(".delta_left", [32, rows], dtype, 0.1);
                push(".delta_right", [cols, 32], dtype, 0.05);
            }
        }
        names.push(name);
        canonical.push(of);
    }
    metadata.set("aios.contract.version", Value::String("1.0".into()));
    metadata.set("aios.alias.tensors", Value::Array(Array::String(names)));
    metadata.set("aios.alias.canonical", Value::Array(Array::String(canonical)));
    write(path, &metadata, &tensors);
}

fn logits(model: &Arc<Model>, options: &ExecutorOptions) -> Vec<f32> {
    let mut executor = Executor::new(Arc::clone(model), options.clone()).expect("an executor");
    let mut all = Vec::new();
    let mut sink = |_, logits: &[f32]| {
        all.extend_from_slice(logits);
        Ok(())
    };
    executor.forward(&IDS, Phase::Prefill, Want::All, &mut sink).expect("a pass");
    all
}

fn options() -> ExecutorOptions {
    ExecutorOptions { threads: 1, threads_batch: 1, ..ExecutorOptions::new(16) }
}

fn load(path: &Path) -> Arc<Model> {
    Model::load(path).unwrap_or_else(|error| panic!("{error}"))
}

const LLAMA: [(&str, Kind); 6] = [
    ("attn_q", Kind::Factors(DType::F32)),
    ("attn_k", Kind::Same),
    ("attn_output", Kind::Dense(DType::F32)),
    ("ffn_gate", Kind::Dense(DType::Q8_0)),
    ("ffn_up", Kind::Factors(DType::Q8_0)),
    ("ffn_down", Kind::Dense(DType::Q8_0)),
];
/// With biases of q, k and v, and with q, k and v in one matrix.
const QWEN2: [(&str, Kind); 2] =
    [("attn_q", Kind::Dense(DType::F32)), ("attn_v", Kind::Factors(DType::F32))];
const PHI3: [(&str, Kind); 2] =
    [("attn_qkv", Kind::Factors(DType::Q8_0)), ("ffn_up", Kind::Dense(DType::F32))];

/// A file of aliases: its folder, path, the micro model, and what became of its layer 1.
type Case = (tempfile::TempDir, PathBuf, &'static str, &'static [(&'static str, Kind)]);

fn cases() -> Vec<Case> {
    let of = |model, roles: &'static [_]| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("aliased.gguf");
        aliased(&path, model, roles);
        (folder, path, model, roles)
    };
    vec![of("llama", &LLAMA), of("qwen2", &QWEN2), of("phi3", &PHI3)]
}

#[test]
fn results_do_not_depend_on_how_they_are_computed() {
    for (folder, path, name, _) in cases() {
        let model = load(&path);
        let expected = logits(&model, &options());
        for isa in Isa::available() {
            for (threads, batch) in [(1, 1), (2, 3), (2, 512)] {
                let of =
                    ExecutorOptions { isa, threads, threads_batch: threads, batch, ..options() };
                assert!(logits(&model, &of) == expected, "{name}, {isa:?}, {threads}, {batch}");
            }
        }
        let panels = folder.path().join("panels");
        let (packed, made) =
            Model::load_repacked(&path, &panels, &mut |_, _| true).expect("loaded");
        assert!(made.is_ok() && packed.is_repacked());
        assert!(logits(&packed, &options()) == expected, "{name}, panels");
        // Within a budget in which weights are read from disk in every pass.
        let least = (1..).map(|n| 50_000 * n).find(|ram| {
            let of = ExecutorOptions { ram: Some(*ram), batch: 4, ..options() };
            Executor::new(Arc::clone(&model), of).is_ok()
        });
        let of = ExecutorOptions { ram: least, batch: 4, ..options() };
        assert!(logits(&model, &of) == expected, "{name}, streamed");
    }
}

#[test]
fn exact_results_are_near_those_of_the_matrices_that_are_meant() {
    for (folder, path, name, roles) in cases() {
        // The same model with W = C + D formed, in f32.
        let bytes = fs::read(&path).expect("read");
        let header = Gguf::parse(&bytes).expect("sound");
        let elements = |name: &str| {
            let tensor = header.tensor(name)?;
            let mut floats = vec![0.0; tensor.elements() as usize];
            let data = tensor.data(&bytes)?;
            dequantize(Isa::SCALAR, tensor.dtype, data, &mut floats).expect("its bytes");
            Some((floats, tensor.shape.clone()))
        };
        let (metadata, mut tensors) = micro(name);
        for (role, _) in roles {
            let alias = format!("blk.1.{role}.weight");
            let (mut whole, shape) = elements(&format!("blk.0.{role}.weight")).expect("canonical");
            if let Some((dense, _)) = elements(&format!("{alias}.delta")) {
                whole.iter_mut().zip(dense).for_each(|(w, d)| *w += d);
            }
            if let Some((left, of)) = elements(&format!("{alias}.delta_left")) {
                let (right, _) = elements(&format!("{alias}.delta_right")).expect("both");
                let (rank, cols) = (of[0] as usize, shape[0] as usize);
                for (w, left) in whole.chunks_mut(cols).zip(left.chunks(rank)) {
                    for (k, factor) in left.iter().enumerate() {
                        let right = &right[k * cols..(k + 1) * cols];
                        w.iter_mut().zip(right).for_each(|(w, r)| *w += factor * r);
                    }
                }
            }
            let tensor = tensors.iter_mut().find(|tensor| tensor.name == alias).expect("there");
            (tensor.dtype, tensor.data) = (DType::F32, f32_bytes(&whole));
        }
        let formed = folder.path().join("formed.gguf");
        write(&formed, &metadata, &tensors);
        let exact = ExecutorOptions { exact: true, ..options() };
        let (apart, whole) = (logits(&load(&path), &exact), logits(&load(&formed), &exact));
        let error = apart.iter().zip(&whole).fold(0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(error < 2e-3, "{name}: {error}");
        // The bound would notice deltas that are left out.
        let (_, original) = micro(name);
        let mut without = original;
        for (role, _) in roles {
            let of = format!("blk.0.{role}.weight");
            let canonical = without.iter().find(|t| t.name == of).expect("canonical").clone();
            let alias = format!("blk.1.{role}.weight");
            let tensor = without.iter_mut().find(|t| t.name == alias).expect("there");
            (tensor.dtype, tensor.data) = (canonical.dtype, canonical.data);
        }
        write(&formed, &metadata, &without);
        let plain = logits(&load(&formed), &exact);
        let error = apart.iter().zip(&plain).fold(0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(error > 0.02, "{name}: {error}");
    }
}

#[test]
fn an_alias_without_a_delta_is_its_canonical_matrix_in_one_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("aliased.gguf");
    aliased(&path, "llama", &[("ffn_up", Kind::Same), ("ffn_down", Kind::Dense(DType::F32))]);
    let model = load(&path);
    let mut executor = Executor::new(Arc::clone(&model), options()).expect("an executor");
    let blocks = executor.weight_blocks(None);
    let of = |name: &str| {
        let name = aios_contract::TensorName::parse(name).expect("a name");
        let first = blocks.of_tensor(name).expect("blocks").start;
        blocks.get(first).expect("a block")
    };
    let (canonical, alias) = (of("blk.0.ffn_up.weight"), of("blk.1.ffn_up.weight"));
    assert_eq!(canonical.address, alias.address);
    assert!(canonical.flags.has(BlockFlags::CANONICAL) && alias.flags.has(BlockFlags::ALIASED));
    // What is read is counted where it is read; what is added is counted, too.
    let mut sink = |_, _: &[f32]| Ok(());
    executor.forward(&IDS[..1], Phase::Decode, Want::Last, &mut sink).expect("a pass");
    assert_eq!(executor.residency().deltas_applied, 1);
    let counted: u64 = model.bytes_per_token().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(executor.ledger().phase(Phase::Decode).weights, counted);
}

#[test]
fn what_cannot_be_an_alias_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("aliased.gguf");
    let strings = |list: &[&str]| {
        Value::Array(Array::String(list.iter().map(|text| (*text).to_owned()).collect()))
    };
    let error = |change: &dyn Fn(&mut Metadata, &mut Vec<Made>)| {
        aliased(&path, "llama", &[("ffn_up", Kind::Factors(DType::F32))]);
        let (mut metadata, mut tensors) = parts(&path);
        change(&mut metadata, &mut tensors);
        write(&path, &metadata, &tensors);
        match Model::load(&path) {
            Err(error @ LoadError::Tensor { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let key = |key: &'static str, list: &'static [&'static str]| {
        error(&move |metadata, _| metadata.set(key, strings(list)))
    };
    let (tensors, canonical) = ("aios.alias.tensors", "aios.alias.canonical");
    for (found, expected) in [
        (key(tensors, &["blk.0.ffn_up.weight"]), "element 0 is held whole"),
        (key(tensors, &["output.weight"]), "element 0 is no matrix"),
        (key(tensors, &["blk.1.ffn_up.weight", "blk.9.ffn_up.weight"]), "1 elements where"),
        (key(canonical, &["blk.0.ffn_down.weight"]), "element 0 has another role"),
        (key(canonical, &["blk.9.ffn_up.weight"]), "element 0 is not in the file"),
        (
            error(&|m, _| m.set("aios.contract.version", Value::String("2".into()))),
            "\"2\" is not \"1.0\"",
        ),
        (error(&|_, t| t.retain(|t| !t.name.ends_with(".delta_left"))), "the other is missing"),
        (
            error(&|_, t| {
                let left = t.iter_mut().find(|t| t.name.ends_with("left")).expect("a factor");
                left.shape.swap(0, 1);
            }),
            "blk.1.ffn_up.weight.delta_left",
        ),
        (
            error(&|_, t| {
                let mut stray = t.last().expect("a tensor").clone();
                stray.name = "blk.0.ffn_up.weight.delta".to_owned();
                t.push(stray);
            }),
            "blk.0.ffn_up.weight.delta is not part",
        ),
        (
            error(&|m, _| {
                let list = ["blk.1.ffn_up.weight", "blk.7.ffn_up.weight"];
                m.set("aios.alias.tensors", strings(&list));
                m.set("aios.alias.canonical", strings(&["blk.0.ffn_up.weight"; 2]));
            }),
            "blk.7.ffn_up.weight",
        ),
        // Without the keys the delta is a tensor that nobody knows.
        (key(tensors, &[]), "1 elements where"),
    ] {
        assert!(found.contains(expected), "{found}");
    }
}
