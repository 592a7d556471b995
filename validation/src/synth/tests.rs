//! What a synthetic file promises: the same bytes, a header that reads back, the dtypes that
//! llama.cpp's quantiser chooses, and weights of the deviation asked for.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aios_contract::{RoleGroup, TensorName};
use aios_engine::gguf::Gguf;
use aios_kernels::{Isa, dequantize};
use aios_residency::Mapping;

use super::fill::Noise;
use super::*;

fn recipe(shape: &str, quant: Quant) -> Recipe {
    let shape = Shape::named(shape).expect("a shape of the table");
    Recipe { shape, quant, seed: 1, layers: None, vocab: None, activation: None }
}

fn on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn bytes(recipe: &Recipe) -> Vec<u8> {
    recipe.plan().unwrap().write(Vec::new(), on).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    for quant in Quant::all() {
        let recipe = recipe("tiny", quant);
        let expected = bytes(&recipe);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| bytes(&recipe)) == expected, "{quant} on {threads} threads");
        }
        assert!(bytes(&Recipe { seed: 2, ..recipe }) != expected);
    }
}

#[test]
fn a_tensor_is_the_same_in_whatever_pieces_it_is_made() {
    for dtype in DType::ALL {
        let filler = Filler::new(7, "x", dtype, Noise { mean: 0.0, deviation: 0.02 });
        let mut whole = vec![0; 5000 * dtype.block_bytes()];
        filler.fill(0, &mut whole);
        for at in [8, 2048, 4096] {
            let mut tail = vec![0; (5000 - at) * dtype.block_bytes()];
            filler.fill(at as u64, &mut tail);
            assert!(whole[at * dtype.block_bytes()..] == tail, "{dtype} from block {at}");
        }
    }
}

/// Whether `elements` are noise of this mean and deviation, to 2 % of the deviation.
fn is_noise(elements: &[f32], noise: Noise) -> bool {
    let count = elements.len() as f64;
    let mean = elements.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let square = elements.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
    let deviation = f64::from(noise.deviation);
    let close = |found: f64, expected: f64| (found - expected).abs() < 0.02 * deviation;
    elements.iter().all(|x| x.is_finite())
        && close(mean, noise.mean.into())
        && close(square.sqrt(), deviation)
}

#[test]
fn weights_have_the_deviation_asked_for_in_every_format() {
    for dtype in DType::ALL {
        // The deviations of the longest and the shortest rows of the table.
        for deviation in [0.0055, 0.12] {
            let noise = Noise { mean: 0.0, deviation };
            let mut blocks = vec![0; (1 << 19) / dtype.block_len() * dtype.block_bytes()];
            Filler::new(3, "x", dtype, noise).fill(0, &mut blocks);
            let mut elements = vec![f32::NAN; 1 << 19];
            dequantize(Isa::detect(), dtype, &blocks, &mut elements).unwrap();
            assert!(is_noise(&elements, noise), "{dtype} at {deviation}");
            for (mean, deviation) in [(0.03 * deviation, deviation), (0.0, 1.03 * deviation)] {
                assert!(!is_noise(&elements, Noise { mean, deviation }), "{dtype}: sees nothing");
            }
        }
    }
}

#[test]
fn the_elements_of_a_whole_file_are_finite_and_the_norms_are_around_one() {
    for quant in Quant::all() {
        let file = bytes(&recipe("tiny", quant));
        for tensor in &Gguf::parse(&file).unwrap().tensors {
            let mut elements = vec![f32::NAN; tensor.elements() as usize];
            let data = tensor.data(&file).unwrap();
            dequantize(Isa::detect(), tensor.dtype, data, &mut elements).unwrap();
            let norm = tensor.name.contains("norm");
            let range = if norm { 0.8..1.2 } else { -0.6..0.6 };
            assert!(elements.iter().all(|x| range.contains(x)), "{} in {quant}", tensor.name);
        }
    }
}

/// The header of every shape in its full size, read from a file whose data is a hole.
#[test]
fn every_shape_reads_back_with_roles_and_the_stamp() {
    for shape in &SHAPES {
        let plan = recipe(shape.name, Quant::Q4_K_M).plan().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let specs: Vec<TensorSpec> = plan.tensors().cloned().collect();
        drop(Writer::new(file.as_file(), plan.metadata(), &specs).unwrap());
        let header = file.as_file().metadata().unwrap().len();
        let padding = 32 * specs.len() as u64;
        file.as_file().set_len(header + plan.data_bytes() + padding).unwrap();
        let mapping = Mapping::open(file.path()).unwrap();
        let gguf = Gguf::parse(mapping.bytes()).unwrap();

        assert!(gguf.tensors.iter().map(TensorSpec::from).eq(specs), "{}", shape.name);
        for tensor in &gguf.tensors {
            assert!(TensorName::parse(&tensor.name).is_some(), "{} of {}", tensor.name, shape.name);
        }
        let data = &gguf.metadata;
        let arch = data.require_str("general.architecture").unwrap();
        assert_eq!(arch, shape.architecture.name());
        let own = |key: &str| data.require_u64(&format!("{arch}.{key}")).unwrap();
        assert_eq!(own("block_count"), u64::from(shape.layers));
        assert_eq!(own("vocab_size"), u64::from(shape.vocab));
        let tokens = data.require_strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.len(), shape.vocab as usize);
        assert_eq!(
            data.require_i32s("tokenizer.ggml.token_type").unwrap().len(),
            shape.vocab as usize
        );
        assert!(data.require_str("tokenizer.chat_template").unwrap().contains("message.content"));
        assert!(data.require_bool(SYNTHETIC_KEY).unwrap());
        assert_eq!(data.require_str("aios.synthetic.shape").unwrap(), shape.name);
        assert_eq!(data.require_str("aios.synthetic.quant").unwrap(), "Q4_K_M");
        assert_eq!(data.require_u64("aios.synthetic.seed").unwrap(), 1);
        let name = data.require_str("general.name").unwrap();
        assert!(!name.contains("phi"), "{name} makes llama.cpp look for tokens of that model");
    }
}

/// The dtypes of all matrices of a file, as a line of `mixes.txt`: runs of equal dtypes, in the
/// order of roles and then of layers.
fn mix(recipe: &Recipe) -> String {
    let plan = recipe.plan().unwrap();
    let mut of_role = BTreeMap::<_, Vec<(Option<u32>, DType)>>::new();
    for spec in plan.tensors().filter(|spec| spec.shape.len() > 1) {
        let name = TensorName::parse(&spec.name).unwrap();
        of_role.entry(name.role.suffix()).or_default().push((name.layer, spec.dtype));
    }
    let mut line = format!("{} {}", recipe.shape.name, recipe.quant);
    for (suffix, dtypes) in of_role {
        write!(line, " {suffix}=").unwrap();
        let runs = dtypes.chunk_by(|a, b| a.1 == b.1);
        let runs: Vec<String> = runs.map(|run| format!("{}x{}", run[0].1, run.len())).collect();
        line += &runs.join(",");
    }
    line
}

#[test]
fn dtypes_are_those_that_llama_cpp_chooses() {
    let golden = include_str!("../../testdata/mixes.txt");
    let mut count = 0;
    for line in golden.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let (shape, quant) = (words.next().unwrap(), words.next().unwrap());
        assert_eq!(mix(&recipe(shape, quant.parse().unwrap())), line);
        count += 1;
    }
    // All quants but the plain floats.
    assert_eq!(count, SHAPES.len() * 12);
}

#[test]
fn falcon_7b_weighs_what_its_rows_cost_that_are_no_multiple_of_256() {
    let plan = recipe("falcon-7b", Quant::Q4_K_M).plan().unwrap();
    let group = |spec: &&TensorSpec| TensorName::parse(&spec.name).unwrap().role.group();
    let of = |wanted: RoleGroup| -> u64 {
        plan.tensors().filter(|spec| group(spec) == wanted).map(|s| s.bytes().unwrap()).sum()
    };
    assert_eq!(of(RoleGroup::Embedding), 65_024 * 4544 * 22 / 32);
    assert_eq!(of(RoleGroup::Head), 65_024 * 4544 * 34 / 32);
    // The matrices as the quantiser's dtypes give them, and 33 norms with their biases.
    assert_eq!(plan.data_bytes(), 5_056_545_024 + 66 * 4544 * 4);
    assert_eq!(RoleGroup::ALL.map(of).iter().sum::<u64>(), plan.data_bytes());
}

#[test]
fn llama_3_rope_factors_go_from_one_to_the_extension_factor() {
    let recipe =
        Recipe { layers: Some(1), vocab: Some(300), ..recipe("llama-3.2-1b", Quant::Q2_K) };
    let file = bytes(&recipe);
    let gguf = Gguf::parse(&file).unwrap();
    let factors = gguf.tensor("rope_freqs.weight").unwrap().data(&file).unwrap();
    let factors: Vec<f32> =
        factors.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    assert_eq!(factors.len(), 32);
    assert!(factors.is_sorted() && factors[0] == 1.0 && factors[31] == 32.0);
    // Pair 16 turns once in 2π · √500000 positions: 1.84 times in the original context.
    let kept = (8192.0 / (std::f64::consts::TAU * 500_000f64.sqrt()) - 1.0) / 3.0;
    let expected = 1.0 / (kept + (1.0 - kept) / 32.0);
    assert!((f64::from(factors[16]) - expected).abs() < 1e-5);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let tiny = recipe("tiny", Quant::Q8_0);
    for layers in [0, LAYERS_MAX + 1, u32::MAX] {
        let refused = Recipe { layers: Some(layers), ..tiny }.plan();
        assert!(matches!(refused, Err(Error::Layers { layers: l }) if l == layers));
    }
    for vocab in [0, metadata::VOCAB_MIN - 1, VOCAB_MAX + 1, u32::MAX] {
        let refused = Recipe { vocab: Some(vocab), ..tiny }.plan();
        assert!(matches!(refused, Err(Error::Vocab { vocab: v }) if v == vocab));
    }
    let cut = Recipe { layers: Some(1), vocab: Some(metadata::VOCAB_MIN), ..tiny }.plan().unwrap();
    let name = cut.metadata().require_str("general.name").unwrap();
    assert_eq!(name, "synthetic-tiny-cut-to-1-layers-266-tokens");
    assert!(Shape::named("falcon-8b").unwrap_err().to_string().contains("falcon-7b"));
    assert!("Q4_K_L".parse::<Quant>().unwrap_err().to_string().contains("Q4_K_M"));
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let entries = || fs::read_dir(folder.path()).unwrap().count();
    let path = folder.path().join("model.gguf");
    let plan = recipe("tiny", Quant::Q4_0).plan().unwrap();

    let mut calls = 0;
    let stopped = plan.create(&path, false, |now| {
        calls += 1;
        assert!(!path.exists() && now.done_bytes <= now.total_bytes);
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!((calls, entries()), (3, 0));

    let mut last = None;
    let noted = |now| {
        last = Some(now);
        ControlFlow::Continue(())
    };
    plan.create(&path, false, noted).unwrap();
    let total_bytes = plan.data_bytes();
    assert_eq!(last, Some(Progress { done_bytes: total_bytes, total_bytes }));
    assert_eq!(fs::read(&path).unwrap(), bytes(&recipe("tiny", Quant::Q4_0)));

    let other = recipe("tiny", Quant::Q4_1).plan().unwrap();
    assert!(matches!(other.create(&path, false, on), Err(Error::Exists { .. })));
    assert_eq!(fs::read(&path).unwrap(), bytes(&recipe("tiny", Quant::Q4_0)));
    other.create(&path, true, on).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes(&recipe("tiny", Quant::Q4_1)));
    assert_eq!(entries(), 1);

    assert!(matches!(other.create(folder.path(), true, on), Err(Error::NotAFile { .. })));
    let nowhere = folder.path().join("no/such/model.gguf");
    assert!(matches!(other.create(&nowhere, false, on), Err(Error::Write { .. })));
    // Someone else makes the file while it is being written.
    let raced = folder.path().join("raced.gguf");
    let outcome = plan.create(&raced, false, |_| {
        fs::write(&raced, "theirs").unwrap();
        ControlFlow::Continue(())
    });
    assert!(matches!(outcome, Err(Error::Exists { .. })));
    assert_eq!(fs::read(&raced).unwrap(), b"theirs");
    assert_eq!(entries(), 2);
}

#[test]
fn layers_in_the_middle_share_matrices_if_asked_to() {
    let shape = Shape::named("smollm2-135m").expect("a shape");
    let quant = "Q4_K_M".parse().expect("a quant");
    let recipe = |layers| Recipe {
        shape,
        quant,
        seed: 1,
        layers: Some(layers),
        vocab: Some(512),
        activation: None,
    };
    let plain = recipe(10).plan().expect("a plan");
    let before = plain.data_bytes();
    let shared = plain.with_aliases(8).expect("two layers at 40 to 60 %");
    assert!(shared.data_bytes() < before * 95 / 100);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shared.gguf");
    shared.create(&path, false, |_| ControlFlow::Continue(())).expect("made");
    // The engine runs it, and the contract's judge finds what R3 asks for.
    let model = aios_engine::Model::load(&path).expect("a sound model");
    let counted: u64 = model.bytes_per_token().iter().map(|(_, bytes)| bytes).sum();
    assert!(counted > before * 9 / 10, "canonical bytes are read in every layer");
    let bytes = std::fs::read(&path).expect("read");
    let header = aios_engine::gguf::Gguf::parse(&bytes).expect("a header");
    let aliases = crate::compliance::extract::aliases(&header, &bytes, 10).expect("sound");
    let aliases = aliases.expect("aliases");
    assert_eq!(aliases.of_band().count(), 7);
    let ratio = aliases.delta_ratio_max().expect("norms");
    assert!((0.02..0.1).contains(&ratio), "{ratio}");
    for (layers, rank) in [(2, 8), (10, 0), (10, 257)] {
        let refused = recipe(layers).plan().expect("a plan").with_aliases(rank);
        assert!(matches!(refused, Err(Error::Alias { .. })), "{layers} {rank}");
    }
}
