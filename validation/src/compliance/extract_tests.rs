//! Files built to R3 and R5, and files that only claim to be.

use super::*;
use aios_contract::DType;
use aios_contract::requirements::{Probe, Verdict, r3, r5};
use aios_engine::gguf::{TensorSpec, Writer};

/// A tensor of f32 and its elements.
struct Tensor(&'static str, Vec<u64>, Vec<f32>);

/// A file of these tensors and this metadata.
fn file(metadata: &Metadata, tensors: &[Tensor]) -> Vec<u8> {
    let spec = |Tensor(name, shape, _): &Tensor| TensorSpec {
        name: (*name).to_owned(),
        shape: shape.clone(),
        dtype: DType::F32,
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let mut writer = Writer::new(Vec::new(), metadata, &specs).expect("a header");
    for Tensor(name, _, elements) in tensors {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.tensor(name, &bytes).expect("data");
    }
    writer.finish().expect("a file")
}

/// Of 5 layers, layer 2 is in the band. Its up projection, 3 rows of 4, is layer 0's plus a delta
/// of rank 1; its down projection, 4 rows of 3, layer 0's plus a dense delta of one element.
fn tensors() -> Vec<Tensor> {
    let mut dense = vec![0.0; 12];
    dense[5] = 0.125;
    vec![
        Tensor("blk.0.ffn_up.weight", vec![4, 3], vec![2.0; 12]),
        Tensor("blk.0.ffn_down.weight", vec![3, 4], vec![1.0; 12]),
        Tensor("blk.2.ffn_up.weight.delta_left", vec![1, 3], vec![0.1, 0.2, 0.2]),
        Tensor("blk.2.ffn_up.weight.delta_right", vec![4, 1], vec![0.5, 0.5, 0.5, 0.5]),
        Tensor("blk.2.ffn_down.weight.delta", vec![3, 4], dense),
        Tensor("blk.2.attn_q.weight", vec![2, 1], vec![1.0, 1.0]),
    ]
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

const ALIASED: [&str; 2] = ["blk.2.ffn_up.weight", "blk.2.ffn_down.weight"];
const CANONICAL: [&str; 2] = ["blk.0.ffn_up.weight", "blk.0.ffn_down.weight"];

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set(VERSION_KEY, "1.0");
    metadata.set(ALIAS_TENSORS_KEY, strings(&ALIASED));
    metadata.set(ALIAS_CANONICAL_KEY, strings(&CANONICAL));
    metadata
}

fn read(metadata: &Metadata, tensors: &[Tensor]) -> Result<Option<Aliases>, ExtractError> {
    let bytes = file(metadata, tensors);
    let header = Gguf::parse(&bytes).expect("a header");
    aliases(&header, &bytes, 5)
}

/// The error of the good file with its metadata and tensors changed.
fn refused(change: impl FnOnce(&mut Metadata, &mut Vec<Tensor>)) -> String {
    let (mut metadata, mut tensors) = (metadata(), tensors());
    change(&mut metadata, &mut tensors);
    read(&metadata, &tensors).expect_err("a planted fault").to_string()
}

#[test]
fn aliases_of_a_file_built_for_them() {
    let found = read(&metadata(), &tensors()).expect("a good file").expect("aliases");
    assert_eq!((found.layers, found.stored_bytes, found.aliases.len()), (5, 8, 2));
    let [up, down] = &found.aliases[..] else { panic!("two aliases") };
    // ‖2.0‖ of 12 elements; the delta's norm is |(0.1, 0.2, 0.2)| · |(½, ½, ½, ½)|.
    assert!((up.canonical_norm - 48f64.sqrt()).abs() < 1e-12);
    assert!((up.delta_norm - 0.3).abs() < 1e-7);
    assert_eq!((up.whole_bytes, up.delta_bytes), (48, 28));
    assert!((down.canonical_norm - 12f64.sqrt()).abs() < 1e-12);
    assert_eq!((down.delta_norm, down.whole_bytes, down.delta_bytes), (0.125, 48, 48));
    // (96 − 76) of 104 bytes are shared: too few, though both norms are small.
    assert!((found.aliasing_ratio() - 20.0 / 104.0).abs() < 1e-12);
    assert_eq!(r3(&Probe::Present(found)).verdict, Verdict::Fail);
}

#[test]
fn tensors_shared_whole_satisfy_r3() {
    let shared: Vec<Tensor> =
        tensors().into_iter().filter(|tensor| !tensor.0.contains("delta")).collect();
    let found = read(&metadata(), &shared).expect("a good file").expect("aliases");
    assert!((found.aliasing_ratio() - 96.0 / 104.0).abs() < 1e-12);
    assert_eq!(r3(&Probe::Present(found)).verdict, Verdict::Pass);
}

#[test]
fn the_norm_of_a_product_is_that_of_the_product() {
    let element = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 64.0;
    let (rows, rank, columns) = (5, 3, 4099);
    let left: Vec<f32> = (0..rows * rank).map(element).collect();
    let right: Vec<f32> = (0..rank * columns).map(|i| element(i + 7)).collect();
    let at = |row: usize, column: usize| -> f64 {
        let product =
            |k: usize| f64::from(left[row * rank + k]) * f64::from(right[k * columns + column]);
        (0..rank).map(product).sum()
    };
    let squares = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let expected = squares.map(|(row, column)| at(row, column).powi(2)).sum::<f64>().sqrt();
    let tensors = [
        Tensor("left", vec![rank as u64, rows as u64], left.clone()),
        Tensor("right", vec![columns as u64, rank as u64], right.clone()),
    ];
    let bytes = file(&Metadata::new(), &tensors);
    let header = Gguf::parse(&bytes).expect("a header");
    let elements = |name| Elements::of(header.tensor(name).expect(name), &bytes).expect("data");
    let found = product_norm(elements("left"), elements("right"), rank).expect("a norm");
    assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
}

#[test]
fn a_file_without_the_keys_has_no_aliases() {
    let plain: Vec<Tensor> =
        tensors().into_iter().filter(|tensor| !tensor.0.contains("delta")).collect();
    assert_eq!(read(&Metadata::new(), &plain).expect("a good file"), None);
    let error = read(&Metadata::new(), &tensors()).expect_err("deltas without keys").to_string();
    assert!(error.contains("blk.2.ffn_up.weight.delta_left"), "{error}");
}

#[test]
fn hostile_aliases_are_refused_by_name() {
    let alias = |to: [&str; 2]| refused(|m, _| m.set(ALIAS_TENSORS_KEY, strings(&to)));
    let canonical = |to: [&str; 2]| refused(|m, _| m.set(ALIAS_CANONICAL_KEY, strings(&to)));
    for (error, expected) in [
        (refused(|m, _| m.set(VERSION_KEY, "2.0")), "aios.contract.version: \"2.0\""),
        (refused(|m, _| m.set(VERSION_KEY, 1u32)), "aios.contract.version"),
        (refused(|m, _| m.set("split.count", 2u16)), "aios.alias.tensors is of no use in a split"),
        (refused(|m, _| m.set(ALIAS_TENSORS_KEY, 7u32)), "\"aios.alias.tensors\": expected"),
        (refused(|m, _| m.set(ALIAS_CANONICAL_KEY, strings(&["x"]))), "1 elements where"),
        (alias(["blk.2.ffn_up.weight"; 2]), "aios.alias.tensors: element 1 occurs twice"),
        (alias([ALIASED[0], "blk.2.ffn_up.bias"]), "element 1 is no matrix"),
        (alias([ALIASED[0], "\u{202e}"]), "element 1 is no matrix"),
        (alias([ALIASED[0], "blk.5.ffn_down.weight"]), "element 1 is of a layer"),
        (alias(["blk.2.attn_q.weight", ALIASED[1]]), "element 0 is held whole"),
        (canonical([CANONICAL[0], "output.weight"]), "aios.alias.canonical: element 1 is no"),
        (canonical([CANONICAL[0], CANONICAL[0]]), "element 1 has another role"),
        (canonical([CANONICAL[0], "blk.3.ffn_down.weight"]), "element 1 is not in the file"),
        (canonical([CANONICAL[0], ALIASED[1]]), "element 1 is not in the file"),
    ] {
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
}

#[test]
fn hostile_deltas_are_refused_by_name() {
    for (error, expected) in [
        (refused(|_, t| drop(t.remove(2))), "delta_right\" is one factor"),
        (refused(|_, t| drop(t.remove(3))), "delta_left\" is one factor"),
        (refused(|_, t| t[4].1 = vec![4, 3]), "weight.delta\" has another shape"),
        (refused(|_, t| t[2].1 = vec![3, 1]), "delta_left\" does not fit"),
        (refused(|_, t| t[3].1 = vec![1, 4]), "delta_left\" does not fit"),
        (refused(|_, t| t[3].1 = vec![4]), "delta_left\" and its other factor"),
        (refused(|_, t| t[2].2[1] = f32::NAN), "delta_left\" has elements"),
        (refused(|_, t| t[0].2[1] = f32::INFINITY), "ffn_up.weight\" has elements"),
        (
            refused(|_, t| {
                t[2] = Tensor(t[2].0, vec![257, 3], vec![0.0; 257 * 3]);
                t[3] = Tensor(t[3].0, vec![4, 257], vec![0.0; 257 * 4]);
            }),
            "delta_left\" has a rank above 256",
        ),
        (
            refused(|_, t| t.push(Tensor("blk.2.ffn_up.weight.delta", vec![4, 3], vec![0.0; 12]))),
            "ffn_up.weight.delta\" stands beside",
        ),
        (
            refused(|_, t| t.push(Tensor("blk.1.ffn_up.weight.delta", vec![1], vec![0.0]))),
            "blk.1.ffn_up.weight.delta\" is the delta of no alias",
        ),
    ] {
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
}

/// A file whose manifest lists the down projection whole and the up projection in two runs of rows.
fn with_manifest() -> (Vec<u8>, Manifest) {
    let weights = [
        Tensor("blk.0.ffn_down.weight", vec![3, 4], vec![1.0; 12]),
        Tensor("blk.0.ffn_up.weight", vec![4, 3], vec![2.0; 12]),
    ];
    let block = |id: &str, access_frequency, tier, offset, size| {
        let id = id.to_owned();
        ManifestBlock { id, access_frequency, tier, offset, size }
    };
    let mut manifest = Manifest {
        aios_contract_version: CONTRACT_VERSION.to_owned(),
        blocks: vec![
            block("blk.0.ffn_down.weight", 1.0, BlockTier::Hot, 0, 48),
            block("blk.0.ffn_up.weight[0..2]", 0.5, BlockTier::Warm, 0, 32),
            block("blk.0.ffn_up.weight[2..3]", 0.1, BlockTier::Stream, 32, 16),
        ],
    };
    // Offsets have a fixed width, so that a first file tells where the tensors of the second lie.
    let mut metadata = Metadata::new();
    set_manifest(&mut metadata, &manifest);
    let header = Gguf::parse(&file(&metadata, &weights)).expect("a header");
    for block in &mut manifest.blocks {
        let id = BlockId::parse(&block.id).expect("an id");
        block.offset += header.tensor(id.tensor).expect("a tensor").range.start;
    }
    set_manifest(&mut metadata, &manifest);
    (file(&metadata, &weights), manifest)
}

/// The error of the good file's header with its manifest changed.
fn manifest_error(change: impl FnOnce(&mut Manifest)) -> String {
    let (bytes, mut changed) = with_manifest();
    let mut header = Gguf::parse(&bytes).expect("a header");
    change(&mut changed);
    set_manifest(&mut header.metadata, &changed);
    manifest(&header, bytes.len() as u64, None).expect_err("a planted fault").to_string()
}

#[test]
fn a_manifest_is_read_from_the_file_and_from_beside_it() {
    let (bytes, expected) = with_manifest();
    let header = Gguf::parse(&bytes).expect("a header");
    let read = |sidecar: Option<&str>| manifest(&header, bytes.len() as u64, sidecar);
    let found = read(None).expect("a good manifest").expect("a manifest");
    assert_eq!(found, expected);
    assert_eq!(r5(&Probe::Present(found), Some(3.0)).verdict, Verdict::Pass);
    let json = serde_json::to_string(&expected).expect("JSON");
    assert_eq!(read(Some(&json)).expect("the same").as_ref(), Some(&expected));
    let other = json.replacen("0.1", "0.2", 1);
    assert!(matches!(read(Some(&other)), Err(ExtractError::Differ)));
    assert_eq!(sidecar_path(Path::new("a/b.gguf")), Path::new("a/b.manifest.json"));
}

#[test]
fn hostile_manifests_are_refused_by_key() {
    for (error, expected) in [
        (manifest_error(|m| m.blocks.clear()), "aios.manifest.id: there are no blocks"),
        (manifest_error(|m| m.blocks[1].access_frequency = 2.0), "access_frequency: block 1"),
        (manifest_error(|m| m.blocks[2].tier = BlockTier::Hot), "aios.manifest.tier: block 2"),
        (manifest_error(|m| m.blocks[0].offset = 0), "aios.manifest.offset: block 0"),
        (manifest_error(|m| m.blocks[2].size = u64::MAX), "aios.manifest.offset: block 2"),
        (manifest_error(|m| drop(m.blocks.pop())), "aios.manifest.size: the blocks hold 80 of"),
        (manifest_error(|m| m.blocks[0].id = "x".to_owned()), "id: element 0 names no tensor"),
        (
            manifest_error(|m| m.blocks[2].id = "blk.0.ffn_up.weight[2..4]".to_owned()),
            "aios.manifest.id: element 2 names rows",
        ),
        (
            manifest_error(|m| m.blocks[2].id = "blk.0.ffn_up.weight[1..2]".to_owned()),
            "aios.manifest.offset: element 2 is not where",
        ),
        (
            manifest_error(|m| (m.blocks[1].size, m.blocks[2].size) = (31, 17)),
            "aios.manifest.size: element 1 is not what",
        ),
        (manifest_error(|m| m.aios_contract_version = "0".to_owned()), "aios.contract.version"),
    ] {
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
}

#[test]
fn hostile_keys_and_sidecars_are_refused() {
    let (bytes, manifest_of_file) = with_manifest();
    let header = Gguf::parse(&bytes).expect("a header");
    let with = |key: &str, value: Value| {
        let mut header = header.clone();
        header.metadata.set(key, value);
        manifest(&header, bytes.len() as u64, None).expect_err("a planted fault").to_string()
    };
    let negative = Value::Array(Array::I64(vec![-1, 0, 0]));
    for (error, expected) in [
        (with(BLOCK_ID_KEY, 1u8.into()), "\"aios.manifest.id\": expected"),
        (with(BLOCK_FREQUENCY_KEY, vec![1f32; 3].into()), "access_frequency\": expected"),
        (with(BLOCK_FREQUENCY_KEY, vec![1f64; 4].into()), "access_frequency: 4 elements"),
        (with(BLOCK_TIER_KEY, strings(&["HOT", "hot", ""]).into()), "tier: element 1 is not"),
        (with(BLOCK_OFFSET_KEY, negative), "aios.manifest.offset\": -1 is negative"),
        (with(BLOCK_SIZE_KEY, vec![1u64].into()), "aios.manifest.size: 1 elements"),
    ] {
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
    let json = serde_json::to_string(&manifest_of_file).expect("JSON");
    let mut plain = header.clone();
    plain.metadata = Metadata::new();
    let beside = |text: &str| manifest(&plain, bytes.len() as u64, Some(text));
    assert_eq!(beside(&json).expect("a good one"), Some(manifest_of_file));
    assert_eq!(manifest(&plain, bytes.len() as u64, None).expect("none"), None);
    for (from, to, expected) in [
        ("\"blocks\"", "\"x\":1,\"blocks\"", "unknown field `x`"),
        ("\"size\"", "\"bytes\"", "unknown field `bytes`"),
        ("\"HOT\"", "\"Hot\"", "unknown variant `Hot`"),
        ("\"1.0\"", "\"1.1\"", "field aios_contract_version"),
        ("[2..3]", "[1..2]", "field offset: block 2 is not where"),
        ("[2..3]", "[2..4]", "field id: block 2 names rows"),
        ("\"blk.0.ffn_down.weight\"", "\"y\"", "field id: block 0 names no"),
        ("0.5", "1e999", "manifest file"),
        ("0.5", "-0.5", "field access_frequency: block 1"),
        ("}", "", "manifest file"),
    ] {
        let error = beside(&json.replacen(from, to, 1)).expect_err("a planted fault").to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
    assert!(matches!(
        beside(&" ".repeat(SIDECAR_BYTES_MAX + 1)),
        Err(ExtractError::SidecarLength { .. })
    ));
}

#[test]
fn orphaned_keys_name_the_one_that_is_missing() {
    let mut metadata = Metadata::new();
    metadata.set(BLOCK_SIZE_KEY, vec![1u64]);
    let error = manifest_of_metadata(&metadata).expect_err("no ids").to_string();
    assert!(error.contains("\"aios.manifest.id\" is missing"), "{error}");
    let mut metadata = Metadata::new();
    metadata.set(ALIAS_CANONICAL_KEY, strings(&["x"]));
    let error = read(&metadata, &[]).expect_err("no names").to_string();
    assert!(error.contains("\"aios.alias.tensors\" is missing"), "{error}");
    let mut metadata = Metadata::new();
    metadata.set(ALIAS_TENSORS_KEY, strings(&["x"]));
    let error = read(&metadata, &[]).expect_err("no version").to_string();
    assert!(error.contains("\"aios.contract.version\" is missing"), "{error}");
}
