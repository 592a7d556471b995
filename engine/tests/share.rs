//! One copy in memory of what several models have (SPEC W12 to W14).

use aios_engine::gguf::{Gguf, TensorSpec, Writer};
use aios_engine::{Executor, ExecutorOptions, Model, Want, WeightBlocks};
use aios_residency::{BlockFlags, BlockStore, Phase};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn micro() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models/micro-llama-q4km.gguf")
}

/// The logits behind a few tokens, and where the weights are.
fn run(model: &Arc<Model>) -> (Vec<f32>, WeightBlocks) {
    let options = ExecutorOptions { threads: 1, threads_batch: 1, ..ExecutorOptions::new(16) };
    let mut executor = Executor::new(Arc::clone(model), options).expect("an executor");
    let mut last = Vec::new();
    let mut sink = |_, logits: &[f32]| {
        last = logits.to_vec();
        Ok(())
    };
    executor.forward(&[1, 2, 3, 4], Phase::Prefill, Want::Last, &mut sink).expect("a pass");
    (last, executor.weight_blocks(None))
}

fn addresses(blocks: &WeightBlocks) -> Vec<usize> {
    (0..blocks.len()).map(|number| blocks.get(number).expect("a block").address).collect()
}

/// A copy of the micro model in which one matrix is another one: a fine-tune.
fn tuned(path: &Path, changed: &str) {
    let bytes = fs::read(micro()).expect("read");
    let header = Gguf::parse(&bytes).expect("sound");
    let specs: Vec<TensorSpec> = header.tensors.iter().map(TensorSpec::from).collect();
    let out = fs::File::create(path).expect("created");
    let mut writer = Writer::new(out, &header.metadata, &specs).expect("a header");
    for tensor in &header.tensors {
        let mut data = tensor.data(&bytes).expect("within the file").to_vec();
        if tensor.name == changed {
            // The quants of its first super-block.
            data[16..144].iter_mut().for_each(|byte| *byte ^= 0x5a);
        }
        writer.tensor(&tensor.name, &data).expect("written");
    }
    writer.finish().expect("finished");
}

#[test]
fn copies_are_read_from_one_place_and_digests_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, copy] = ["first.gguf", "copy.gguf"].map(|name| folder.path().join(name));
    fs::copy(micro(), &first).expect("copied");
    fs::copy(micro(), &copy).expect("copied");
    for panels in [None, Some(folder.path().join("panels"))] {
        let digests = folder.path().join("digests");
        let store = BlockStore::new();
        let load = |path: &Path| {
            Model::load_shared(path, panels.as_deref(), &store, Some(&digests)).expect("loaded")
        };
        let (alone, none) = load(&first);
        let (second, shared) = load(&copy);
        assert_eq!((none.matrices, none.bytes), (0, 0));
        // Digests are made once for each file, whether it is repacked or not.
        assert_eq!(none.digested > 0 && shared.digested > 0, panels.is_none());
        assert!(shared.matrices > 10 && shared.bytes > 0);
        let ((logits, of_first), (same, of_second)) = (run(&alone), run(&second));
        assert!(logits == same);
        assert_eq!(addresses(&of_first), addresses(&of_second));
        let aliased = (0..of_second.len()).filter_map(|number| of_second.get(number));
        assert!(aliased.into_iter().all(|block| block.flags.has(BlockFlags::ALIASED)));
        // The second outlives the first.
        drop((alone, of_first));
        assert!(run(&second).0 == logits);
    }
}

#[test]
fn a_fine_tune_keeps_what_differs_and_the_same_file_is_one_anyway() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tuned.gguf");
    let changed = "blk.1.ffn_up.weight";
    tuned(&path, changed);
    let store = BlockStore::new();
    let load = |path: &Path| Model::load_shared(path, None, &store, None).expect("loaded");
    let (base, _) = load(&micro());
    let (tuned, shared) = load(&path);
    let alone = Model::load(&path).expect("loaded");
    let (with, of_tuned) = run(&tuned);
    // It is not the base, and it is what it would be alone.
    assert!(with != run(&base).0 && with == run(&alone).0);
    let own: Vec<_> = (0..of_tuned.len())
        .filter_map(|number| of_tuned.get(number))
        .filter(|block| !block.flags.has(BlockFlags::ALIASED))
        .map(|block| block.name.role.gguf_name(block.name.layer.unwrap_or(0) as usize))
        .collect();
    assert!(!own.is_empty() && own.iter().all(|name| name == changed), "{own:?}");
    assert!(shared.bytes > 0);
    // The same file, opened twice, needs no digest.
    let again = Model::load(&micro()).expect("loaded");
    assert_eq!(addresses(&run(&again).1), addresses(&run(&base).1));
}

#[test]
fn damaged_digests_are_made_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let digests = folder.path().join("digests");
    let load = || {
        let store = BlockStore::new();
        Model::load_shared(&micro(), None, &store, Some(&digests)).expect("loaded").1.digested
    };
    let whole = load();
    assert!(whole > 0 && load() == 0);
    let file = fs::read_dir(&digests).expect("read").next().expect("one").expect("an entry").path();
    let sound = fs::read_to_string(&file).expect("text");
    let damages = [
        sound[..sound.len() - 2].to_owned(),
        sound.replacen("\"schema\":1", "\"schema\":2", 1),
        sound.replacen("\"sha256\":[\"", "\"sha256\":[\"x", 1),
    ];
    for damaged in damages {
        assert_ne!(damaged, sound);
        fs::write(&file, damaged).expect("written");
        assert_eq!(load(), whole);
        assert_eq!(load(), 0, "and kept again");
    }
}
