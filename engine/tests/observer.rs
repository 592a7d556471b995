//! What an observer sees is what the ledger counts, and seeing changes nothing.

use aios_contract::{Role, RoleGroup, TensorName};
use aios_engine::{
    EngineError, Executor, ExecutorOptions, Inner, KvTiering, Model, Observer, Want,
};
use aios_residency::{Access, Data, Phase};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Keeps what it sees; sets inner activations below `threshold` to zero.
#[derive(Debug)]
struct Recorder {
    seen: Arc<Mutex<Seen>>,
    threshold: f32,
}

#[derive(Debug, Default)]
struct Seen {
    passes: Vec<(Phase, usize)>,
    accesses: Vec<Access>,
    layers: Vec<usize>,
}

impl Observer for Recorder {
    fn pass(&mut self, phase: Phase, tokens: usize) {
        self.seen.lock().expect("no panic before").passes.push((phase, tokens));
    }

    fn access(&mut self, access: Access) {
        self.seen.lock().expect("no panic before").accesses.push(access);
    }

    fn feed_forward(&mut self, inner: Inner<'_>) {
        assert_eq!(inner.gate.map_or(inner.rows.len(), <[f32]>::len), inner.rows.len());
        assert!(inner.rows.len().is_multiple_of(inner.len));
        self.seen.lock().expect("no panic before").layers.push(inner.layer);
        for x in inner.rows.iter_mut().filter(|x| x.abs() < self.threshold) {
            *x = 0.0;
        }
    }
}

fn executor(model: &str) -> Executor {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let model = Model::load(&models.join(model)).expect("a micro model");
    Executor::new(model, ExecutorOptions::new(100)).expect("an executor")
}

/// The last logits of 70 tokens in two passes.
fn run(executor: &mut Executor) -> Vec<f32> {
    let mut last = Vec::new();
    let tokens: Vec<u32> = (0..70).collect();
    for (tokens, phase) in [(&tokens[..66], Phase::Prefill), (&tokens[66..], Phase::Verify)] {
        let mut keep = |_, logits: &[f32]| {
            last = logits.to_vec();
            Ok(())
        };
        executor.forward(tokens, phase, Want::Last, &mut keep).expect("a pass");
    }
    last
}

#[test]
fn an_observer_sees_what_the_ledger_counts() {
    for name in ["micro-llama-q4km.gguf", "micro-gemma3-q4km.gguf", "micro-falcon-q4km.gguf"] {
        let mut executor = executor(name);
        let plain = run(&mut executor);
        executor.truncate(0);
        executor.reset_ledger();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let recorder = Recorder { seen: Arc::clone(&seen), threshold: 0.0 };
        executor.observe(Some(Box::new(recorder)));
        assert_eq!(run(&mut executor), plain, "{name}: observing changes nothing");
        let seen = seen.lock().expect("no panic before");
        assert_eq!(seen.passes, [(Phase::Prefill, 66), (Phase::Verify, 4)]);
        let layers = executor.model().config().layers;
        assert_eq!(seen.layers, (0..layers).chain(0..layers).collect::<Vec<_>>());
        let sum = |wanted: &dyn Fn(&Access) -> bool| -> u64 {
            seen.accesses.iter().filter(|access| wanted(access)).map(|a| a.bytes as u64).sum()
        };
        let ledger = [Phase::Prefill, Phase::Verify].map(|phase| executor.ledger().phase(phase));
        let weights = sum(&|access| matches!(access.data, Data::Weights(_)));
        assert_eq!(weights, ledger.iter().map(|phase| phase.weights).sum::<u64>(), "{name}");
        for role in Role::all() {
            let of = |data| matches!(data, Data::Weights(name) if name.role == role);
            let counted = ledger.iter().flat_map(|phase| &phase.roles);
            let counted: u64 = counted.filter(|entry| entry.role == role).map(|e| e.bytes).sum();
            assert_eq!(counted, sum(&|access| of(access.data)), "{name}, {role:?}");
        }
        let cache = |access: &Access| matches!(access.data, Data::Keys(_) | Data::Values(_));
        let read = sum(&|access| cache(access) && !access.write);
        assert_eq!(read, ledger.iter().map(|phase| phase.kv_read).sum::<u64>(), "{name}");
        assert!(sum(&|access| cache(access) && access.write) > 0);
    }
}

/// Every tensor of a file is read once by a pass, but for the embedding and what a head is tied to;
/// vectors are floats in memory.
#[test]
fn gains_and_biases_count_under_their_own_roles() {
    for name in ["micro-llama-q4km.gguf", "micro-qwen2-q4km.gguf", "micro-falcon-q4km.gguf"] {
        let mut executor = executor(name);
        executor.forward(&[1], Phase::Decode, Want::Last, &mut |_, _| Ok(())).expect("a pass");
        let decode = executor.ledger().phase(Phase::Decode);
        let bytes = |role| decode.roles.iter().find(|e| e.role == role).map_or(0, |e| e.bytes);
        let tensors = executor.model().tensors().iter();
        let named = tensors.filter_map(|t| Some((TensorName::parse(&t.name)?.role, t)));
        let embedding = |role: Role| role.group() == RoleGroup::Embedding;
        let (mut wanted, mut vectors) = (BTreeMap::new(), 0);
        for (role, tensor) in named.filter(|(role, _)| !embedding(*role)) {
            let vector = tensor.shape.len() == 1;
            vectors += usize::from(vector);
            let size = if vector { 4 * tensor.shape[0] } else { tensor.bytes() };
            *wanted.entry(role).or_insert(0) += size;
        }
        assert!(vectors > 4, "{name}");
        for (role, wanted) in wanted {
            assert_eq!(bytes(role), wanted, "{name}, {role:?}");
        }
        let sum: u64 = executor.model().bytes_per_token().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(decode.weights, sum, "{name}");
    }
}

/// Pages that move to colder tiers are read after they are written, and before they are seen.
#[test]
fn nothing_is_read_of_a_cache_that_was_not_written_before() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let model = Model::load(&models.join("micro-llama-q4km.gguf")).expect("a micro model");
    for kv_tiers in KvTiering::ALL {
        let options = ExecutorOptions { kv_tiers, batch: 1300, ..ExecutorOptions::new(1400) };
        let mut executor = Executor::new(Arc::clone(&model), options).expect("an executor");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let recorder = Recorder { seen: Arc::clone(&seen), threshold: 0.0 };
        executor.observe(Some(Box::new(recorder)));
        let tokens: Vec<u32> = (0..1300).map(|i| i % 100).collect();
        for pass in [&tokens[..], &[1, 2]] {
            executor.forward(pass, Phase::Prefill, Want::None, &mut |_, _| Ok(())).expect("run");
        }
        let seen = seen.lock().expect("no panic before");
        let cache = |data| matches!(data, Data::Keys(_) | Data::Values(_));
        let accesses = seen.accesses.iter().filter(|access| cache(access.data));
        let mut written: Vec<Range<usize>> = Vec::new();
        let mut reads = 0;
        for access in accesses {
            if access.write {
                written.push(access.start..access.start + access.bytes);
            } else {
                reads += 1;
                let found = written.iter().any(|range| range.contains(&access.start));
                assert!(found, "{kv_tiers}: {access:?}, read {reads}");
            }
        }
        let totals = executor.ledger().phase(Phase::Prefill);
        let bytes = |write| {
            let of = seen.accesses.iter().filter(|a| cache(a.data) && a.write == write);
            of.map(|access| access.bytes as u64).sum::<u64>()
        };
        assert_eq!(bytes(false), totals.kv_read, "{kv_tiers}");
        assert!(bytes(true) >= totals.kv_written, "{kv_tiers}: keys are written in groups");
    }
}

#[test]
fn positions_can_be_skipped_but_not_beyond_the_context() {
    let mut executor = executor("micro-llama-q4km.gguf");
    executor.skip_to(90).expect("within the context");
    let mut seen = 0;
    let mut sink = |position, logits: &[f32]| {
        assert!(logits.iter().all(|x| x.is_finite()));
        seen = position;
        Ok(())
    };
    executor.forward(&[1, 2], Phase::Verify, Want::Last, &mut sink).expect("a pass");
    assert_eq!((seen, executor.len()), (91, 92));
    assert!(matches!(executor.skip_to(101), Err(EngineError::PromptTooLong { .. })));
    assert_eq!(executor.len(), 92);
}

#[test]
fn what_an_observer_changes_the_pass_goes_on_with() {
    let mut executor = executor("micro-llama-q4km.gguf");
    let plain = run(&mut executor);
    executor.truncate(0);
    let seen = Arc::new(Mutex::new(Seen::default()));
    executor.observe(Some(Box::new(Recorder { seen, threshold: 0.05 })));
    assert_ne!(run(&mut executor), plain);
    executor.truncate(0);
    assert!(executor.observe(None).is_some());
    assert_eq!(run(&mut executor), plain);
}
