//! Plans of micro models: what they screen is what the whole head says, to the bit, also where
//! activations and rows are made to mislead.

mod cache;
mod thresholds;

use super::*;
use crate::synth::{Recipe, Shape};
use aios_contract::ActivationFn;
use aios_engine::gguf::{Gguf, TensorSpec, Value, Writer};
use aios_engine::{Generation, Limits, SamplerOptions, Scores, Session, Want, ZeroLimits};
use aios_kernels::Isa;
use aios_residency::Phase;
use aios_residency::plan::Plan;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

fn hardware() -> Hardware {
    Hardware { cpu: None, isa: "any".to_owned(), processors: 1, llc_bytes: None }
}

fn load(name: &str) -> Arc<Model> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    Model::load(&models.join(name)).expect("a micro model")
}

fn compute(context: usize) -> ExecutorOptions {
    ExecutorOptions { threads: 2, threads_batch: 2, ..ExecutorOptions::new(context) }
}

fn profile(model: &Arc<Model>, folder: &Path) -> Manifest {
    let plan = ProfileOptions { generate: 6, tokens: 24, ..ProfileOptions::new(hardware()) };
    run(model, &compute(1), None, &plan, folder, &mut |_, _, _| true).expect("a plan")
}

/// The model with its plan, and without.
fn both(name: &str) -> (Arc<Model>, Arc<Model>, tempfile::TempDir) {
    let (screened, whole) = (load(name), load(name));
    let folder = tempfile::tempdir().expect("a folder");
    profile(&screened, folder.path());
    let (_, stamp) = screened.identity().expect("files");
    let plan = Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
    screened.adopt(plan, ScreenLimits::all(POSITIONS_MOST)).expect("adopted");
    (screened, whole, folder)
}

const MODELS: [&str; 6] = [
    "micro-llama-q4km.gguf",
    "micro-qwen2-q4km.gguf",
    "micro-qwen3-q4km.gguf",
    "micro-gemma3-q4km.gguf",
    "micro-phi3-q4km.gguf",
    "micro-falcon-q4km.gguf",
];

#[test]
fn built_in_prompts_are_prompts() {
    let prompts = built_in_prompts();
    assert!(prompts.len() >= 20 && prompts.iter().all(|prompt| prompt.text.len() > 100));
}

fn answer(
    model: &Arc<Model>,
    options: ExecutorOptions,
    sampling: SamplerOptions,
    ignore_eos: bool,
) -> (Vec<u32>, aios_engine::ScreenStats) {
    let mut session = Session::new(Arc::clone(model), options).expect("a session");
    let limits = Limits { max_tokens: Some(24), ignore_eos, ..Limits::default() };
    let prompt: Vec<u32> = (3..17).collect();
    let tokens = {
        let mut generation: Generation<'_> =
            session.generate(&prompt, sampling, limits).expect("an answer");
        let go_on = AtomicBool::new(false);
        while generation.next_text(&go_on).expect("a token").is_some() {}
        generation.tokens().to_vec()
    };
    (tokens, session.executor().screen_stats())
}

/// Answers are the same tokens for every way to sample, on every instruction set.
#[test]
fn answers_are_the_same_with_and_without_a_plan() {
    let open = SamplerOptions { seed: 5, ..SamplerOptions::default() };
    let mut asked = 0;
    for name in MODELS {
        let (screened, whole, _folder) = both(name);
        for isa in Isa::available() {
            let options = ExecutorOptions { isa, ..compute(64) };
            for sampling in [
                SamplerOptions::greedy(),
                SamplerOptions {
                    repeat_penalty: 1.5,
                    repeat_last_n: 3,
                    ..SamplerOptions::greedy()
                },
                SamplerOptions { repeat_penalty: 0.7, ..SamplerOptions::greedy() },
                SamplerOptions { top_k: 3, temperature: 1.5, ..open },
                SamplerOptions { top_k: 2, repeat_penalty: 1.3, repeat_last_n: 2, ..open },
                SamplerOptions { top_k: 5, top_p: 0.5, min_p: 0.2, ..open },
                SamplerOptions { top_k: 0, ..open },
            ] {
                for ignore_eos in [false, true] {
                    let (found, stats) = answer(&screened, options.clone(), sampling, ignore_eos);
                    let (wanted, none) = answer(&whole, options.clone(), sampling, ignore_eos);
                    assert_eq!(found, wanted, "{name} {sampling:?}");
                    assert_eq!(none.positions, 0);
                    asked += stats.positions;
                }
            }
        }
    }
    assert!(asked > 500, "the screen was asked {asked} times");
}

/// Passes of several positions, and of more than are screened; the ledger counts what was read.
#[test]
fn passes_of_several_positions_have_the_same_best() {
    for name in MODELS {
        let (screened, whole, _folder) = both(name);
        let mut executor = Executor::new(screened, compute(64)).expect("an executor");
        let mut reference = Executor::new(whole, compute(64)).expect("an executor");
        for positions in [1, 2, 3, 5, 8, 9] {
            let tokens: Vec<u32> = (0..positions).map(|i| 40 + 7 * i).collect();
            let mut logits: Vec<Vec<f32>> = Vec::new();
            reference.truncate(0);
            let mut keep = |_, row: &[f32]| {
                logits.push(row.to_vec());
                Ok(())
            };
            reference.forward(&tokens, Phase::Verify, Want::All, &mut keep).expect("a pass");
            for best in [1, 2, 7] {
                executor.truncate(0);
                let mut position = 0;
                let mut judge = |at: usize, scores: Scores<'_>| {
                    assert_eq!(at, position);
                    check(&logits[at], scores, best);
                    position += 1;
                    Ok(true)
                };
                let done =
                    executor.choose(&tokens, Phase::Verify, Want::All, Some(best), &mut judge);
                done.expect("a pass");
                assert_eq!(position, tokens.len());
            }
        }
        let read = executor.ledger().phase(Phase::Verify);
        let sketch = read.roles.iter().find(|entry| entry.role == aios_contract::Role::HeadSketch);
        assert!(sketch.is_some_and(|entry| entry.bytes > 0), "{name}");
    }
}

/// The `k` best of all logits are among the scores, with their bits.
fn check(logits: &[f32], scores: Scores<'_>, k: usize) {
    let Scores::Best(best) = scores else { return };
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    for (id, logit) in &ranked[..k] {
        let found = best.iter().find(|(other, _)| other == id);
        assert!(found.is_some_and(|(_, found)| found.to_bits() == logit.to_bits()), "id {id}");
    }
    assert!(best.iter().all(|(id, logit)| logits[*id as usize].to_bits() == logit.to_bits()));
}

/// A plan whose screen pays for the best row alone screens nothing where more are wanted, unless
/// somebody asks for the screen.
#[test]
fn a_screen_that_pays_for_the_best_alone_is_used_for_no_more() {
    use aios_engine::{PartMode, PlanModes};
    let folder = tempfile::tempdir().expect("a folder");
    let mut manifest = profile(&load("micro-llama-q4km.gguf"), folder.path());
    let screen = manifest.screen.as_mut().expect("screened");
    (screen.pays, screen.positions_most, screen.top_40_positions_most) = (true, 1, 0);
    write_manifest(folder.path(), &manifest).expect("written");
    let top_9 = SamplerOptions { top_k: 9, seed: 5, ..SamplerOptions::default() };
    for (mode, wanted) in [(PartMode::Auto, [true, false]), (PartMode::On, [true; 2])] {
        let model = load("micro-llama-q4km.gguf");
        let (_, stamp) = model.identity().expect("files");
        let plan = Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
        let off = PartMode::Off;
        let modes =
            PlanModes { screen: mode, zeros: off, threshold: off, keep: off, budget: false };
        assert!(model.follow(plan, &modes).expect("followed").screen);
        let asked = [SamplerOptions::greedy(), top_9]
            .map(|sampling| answer(&model, compute(64), sampling, true).1.positions > 0);
        assert_eq!(asked, wanted, "{mode:?}");
    }
}

#[test]
fn a_plan_of_another_model_is_not_adopted() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = load("micro-llama-q4km.gguf");
    profile(&model, folder.path());
    let (_, stamp) = model.identity().expect("files");
    let other = load("micro-gemma3-q4km.gguf");
    let (_, other_stamp) = other.identity().expect("files");
    assert!(Plan::open(folder.path(), &other_stamp, &hardware()).is_err());
    let plan = Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
    if other.head_shape() != model.head_shape() {
        assert!(matches!(other.adopt(plan, ScreenLimits::all(1)), Err(AdoptError::Head)));
        assert!(other.head_screen().is_none());
    }
}

#[test]
fn a_profile_can_be_stopped_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = load("micro-llama-q4km.gguf");
    let plan = ProfileOptions::new(hardware());
    let mut steps = 0;
    let mut stop = |_: &str, _, _| {
        steps += 1;
        steps < 30
    };
    let stopped = run(&model, &compute(1), None, &plan, folder.path(), &mut stop);
    assert!(matches!(stopped, Err(ProfileError::Interrupted)));
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("read").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A soft cap may make equal what differs, so that there is no screen; the rest of a plan is there.
#[test]
fn a_head_that_cannot_be_screened_leaves_the_rest_of_a_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let capped = ("final_logit_softcapping", Value::from(30.0_f32));
    let model =
        Model::load(&with_key("micro-llama-q4km.gguf", capped, folder.path())).expect("a model");
    let plans = folder.path().join("plan");
    let manifest = profile(&model, &plans);
    assert!(manifest.screen.is_none() && manifest.prefetch.is_some() && manifest.tables.is_empty());
    assert!(manifest.unscreened.as_ref().is_some_and(|why| why.contains("soft cap")));
    let (text, picture) = (markdown(&manifest), svg(&manifest));
    assert!(text.contains("The head is read whole: ") && text.contains("Prefetching: "), "{text}");
    assert!(picture.ends_with("</svg>\n"));
    let (_, stamp) = model.identity().expect("files");
    let plan = Plan::open(&plans, &stamp, &hardware()).expect("sound");
    assert!(matches!(model.adopt(plan, ScreenLimits::all(1)), Err(AdoptError::Kind(_))));
}

#[test]
fn text_and_picture_say_what_the_manifest_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut manifest = profile(&load("micro-llama-q4km.gguf"), folder.path());
    let screen = manifest.screen.as_mut().expect("screened");
    (screen.pays, screen.positions_most, screen.top_40_positions_most) = (true, 4, 0);
    let text = markdown(&manifest);
    let whole = "40 best are wanted it saves no time here";
    for wanted in ["| head |", "| **all** |", "| best (greedy) |", "up to 4 positions", whole] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    manifest.screen.as_mut().expect("screened").top_40_positions_most = 1;
    assert!(markdown(&manifest).contains("in top-k sampling for passes of one position"));
    manifest.screen.as_mut().expect("screened").pays = false;
    assert!(
        markdown(&manifest).contains("0.0 % fewer") && markdown(&manifest).contains("stays off")
    );
    let picture = svg(&manifest);
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    let groups = manifest.bytes_per_token.iter().filter(|(_, bytes)| *bytes > 0).count();
    assert_eq!(picture.matches("<text").count(), 5 + groups);
}

/// Bytes of the screened head of the default model, on prompts that fitted nothing: run by name,
/// since it reads `smollm2-135m-instruct.gguf` from the models' folder.
#[test]
#[ignore = "needs the default model; takes some seconds"]
fn the_default_model_reads_half_of_its_head() {
    let home = std::env::var_os("HOME").expect("a home");
    let path = Path::new(&home).join(".cache/aios/models/smollm2-135m-instruct.gguf");
    let model = Model::load(&path).expect("the default model");
    let folder = tempfile::tempdir().expect("a folder");
    let plan = ProfileOptions::new(hardware());
    let options = ExecutorOptions::new(1);
    let made = run(&model, &options, None, &plan, folder.path(), &mut |_, _, _| true);
    let screen = made.expect("a plan").screen.expect("screened");
    println!("{screen:#?}");
    assert!(screen.greedy.fraction <= 0.49, "{}", screen.greedy.fraction);
}

/// The micro model `name` with another activation, in `folder`.
fn with_activation(name: &str, function: ActivationFn, folder: &Path) -> std::path::PathBuf {
    with_key(name, ("hidden_activation", Value::from(function.name())), folder)
}

/// A copy of a micro model with another value of a key of its architecture.
fn with_key(name: &str, (key, value): (&str, Value), folder: &Path) -> std::path::PathBuf {
    let label = format!("{value:?}").replace(|c: char| !c.is_alphanumeric(), "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let bytes = std::fs::read(models.join(name)).expect("a micro model");
    let file = Gguf::parse(&bytes).expect("sound");
    let mut metadata = file.metadata.clone();
    let architecture = metadata.require_str("general.architecture").expect("a name").to_owned();
    metadata.set(format!("{architecture}.{key}"), value);
    let specs: Vec<TensorSpec> = file.tensors.iter().map(TensorSpec::from).collect();
    let mut writer = Writer::new(Vec::new(), &metadata, &specs).expect("a header");
    for tensor in &file.tensors {
        writer.start(&tensor.name).expect("in order");
        let range = tensor.range.start as usize..tensor.range.end as usize;
        writer.append(&bytes[range]).expect("its bytes");
    }
    let path = folder.join(format!("{label}-{name}"));
    std::fs::write(&path, writer.finish().expect("whole")).expect("written");
    path
}

/// A small model of random weights with ReLU.
fn synthetic(quant: &str, function: ActivationFn, folder: &Path) -> std::path::PathBuf {
    let recipe = Recipe {
        shape: Shape::named("tiny").expect("a shape"),
        quant: quant.parse().expect("a quant"),
        seed: 3,
        layers: None,
        vocab: None,
        activation: Some(function),
    };
    let path = folder.join(format!("{quant}-{}.gguf", function.name()));
    let plan = recipe.plan().expect("a plan");
    plan.create(&path, false, |_| ControlFlow::Continue(())).expect("written");
    path
}

/// All logits of `tokens`, read in passes of the lengths of `cuts` in turn, and the bytes of
/// feed-forward weights that they took.
fn logits(
    model: &Arc<Model>,
    options: ExecutorOptions,
    tokens: &[u32],
    cuts: &[usize],
) -> (Vec<u32>, u64, aios_engine::ZeroStats) {
    let mut executor = Executor::new(Arc::clone(model), options).expect("an executor");
    let mut all = Vec::new();
    let (mut rest, mut cuts) = (tokens, cuts.iter().cycle());
    while !rest.is_empty() {
        let cut = rest.len().min(*cuts.next().expect("a cycle"));
        let mut keep = |_, logits: &[f32]| {
            all.extend(logits.iter().map(|logit| logit.to_bits()));
            Ok(())
        };
        executor.forward(&rest[..cut], Phase::Decode, Want::All, &mut keep).expect("a pass");
        rest = &rest[cut..];
    }
    let bytes = executor.ledger().phase(Phase::Decode).group(aios_contract::RoleGroup::Ffn);
    (all, bytes, executor.zero_stats())
}

/// SPEC D12: with zero neurons skipped every logit is the same, on every instruction set, with any
/// threads and however the tokens are cut into passes, for fewer bytes.
#[test]
fn skipping_zero_neurons_changes_no_bit_and_saves_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (relu, squared) = (ActivationFn::Relu, ActivationFn::ReluSquared);
    let files = [
        with_activation("micro-llama-q4km.gguf", relu, folder.path()),
        with_activation("micro-llama-q4km.gguf", squared, folder.path()),
        with_activation("micro-falcon-q4km.gguf", relu, folder.path()),
        with_activation("micro-phi3-q4km.gguf", relu, folder.path()),
        synthetic("Q4_K_M", relu, folder.path()),
        synthetic("Q4_0", squared, folder.path()),
        synthetic("Q8_0", relu, folder.path()),
    ];
    let tokens: Vec<u32> = (0..12).map(|i| 3 + 17 * i % 200).collect();
    let mut skipped = 0;
    for path in &files {
        let (whole, model) = [(); 2].map(|()| Model::load(path).expect("sound")).into();
        let plan_folder = tempfile::tempdir().expect("a folder");
        let report = profile(&model, plan_folder.path()).ffn;
        let (_, stamp) = model.identity().expect("files");
        let mut plan = Plan::open(plan_folder.path(), &stamp, &hardware()).expect("sound");
        let Some(report) = report else {
            assert!(model.ffn_shapes().iter().all(Option::is_none), "{}", path.display());
            continue;
        };
        skipped += 1;
        assert!(report.zero_fraction > 0.3 && report.tokens > 0, "{report:?}");
        assert!(report.read_bytes <= report.whole_bytes, "{report:?}");
        model.adopt_neurons(&mut plan, ZeroLimits::BYTES).expect("adopted");
        for isa in Isa::available() {
            for threads in [1, 3] {
                for cuts in [&[1_usize][..], &[5, 1, 1], &[12]] {
                    let options = ExecutorOptions { isa, threads, ..compute(16) };
                    let (wanted, all, none) = logits(&whole, options.clone(), &tokens, cuts);
                    let (found, read, stats) = logits(&model, options, &tokens, cuts);
                    assert!(wanted == found, "{} {isa:?} {threads} {cuts:?}", path.display());
                    assert_eq!(none.neurons, 0);
                    let single = *cuts != [12];
                    assert_eq!(stats.neurons > 0 && read < all, single, "{stats:?} {read} {all}");
                }
            }
        }
    }
    assert!(skipped >= 4, "{skipped} models have a layer that is stored neuron by neuron");
}

/// A table of neurons is refused by another model, and the comparison of logits can fail.
#[test]
fn neurons_of_another_model_are_refused_and_a_changed_weight_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = synthetic("Q8_0", ActivationFn::Relu, folder.path());
    let model = Model::load(&path).expect("sound");
    let plans = tempfile::tempdir().expect("a folder");
    assert!(profile(&model, plans.path()).ffn.is_some());
    let (_, stamp) = model.identity().expect("files");
    let mut plan = Plan::open(plans.path(), &stamp, &hardware()).expect("sound");
    let other = load("micro-llama-q4km.gguf");
    assert!(matches!(
        other.adopt_neurons(&mut plan, ZeroLimits::BYTES),
        Err(AdoptError::Neurons(_))
    ));
    assert!(other.ffn_neurons().is_none());

    // The same model with one byte of a down projection changed says something else.
    let mut bytes = std::fs::read(&path).expect("read");
    let file = Gguf::parse(&bytes).expect("sound");
    let down = file.tensors.iter().find(|t| t.name == "blk.0.ffn_down.weight").expect("a layer");
    for at in (down.range.start..down.range.end).step_by(34) {
        bytes[at as usize + 7] ^= 0x40;
    }
    let changed = folder.path().join("changed.gguf");
    std::fs::write(&changed, bytes).expect("written");
    let changed = Model::load(&changed).expect("sound");
    let mut plan = Plan::open(plans.path(), &stamp, &hardware()).expect("sound");
    model.adopt_neurons(&mut plan, ZeroLimits::BYTES).expect("adopted");
    let tokens: Vec<u32> = (3..9).collect();
    let of = |model| logits(model, compute(16), &tokens, &[1]).0;
    assert!(of(&changed) != of(&model));
}

/// The fraction of zeros that `aios headroom` and R1 measure is what decoding with skipping finds,
/// on the model that learned its zeros; and there it saves bytes.
#[test]
fn a_trained_models_zeros_are_those_that_are_skipped() {
    let model = load("micro-relu-q8.gguf");
    let prompts = built_in_prompts();
    let chosen: Vec<&Prompt> = prompts.iter().take(4).collect();
    let mut executor = Executor::new(Arc::clone(&model), compute(64)).expect("an executor");
    let zeros = crate::headroom::measure_zeros(&mut executor, &chosen, 48, &mut |_, _, _| true);
    let zeros = zeros.expect("a run");

    let folder = tempfile::tempdir().expect("a folder");
    let report = profile(&model, folder.path()).ffn.expect("neurons");
    let (_, stamp) = model.identity().expect("files");
    let mut plan = Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
    model.adopt_neurons(&mut plan, ZeroLimits::BYTES).expect("adopted");
    let mut executor = Executor::new(Arc::clone(&model), compute(64)).expect("an executor");
    for (_, ids) in tokenise(&model, &chosen, 48).expect("tokens") {
        executor.truncate(0);
        for id in ids {
            executor.forward(&[id], Phase::Decode, Want::None, &mut |_, _| Ok(())).expect("a pass");
        }
    }
    let stats = executor.zero_stats();
    let found = 1.0 - stats.active as f64 / stats.neurons as f64;
    let wanted = zeros.mean_quantised_zero_fraction.expect("quantised");
    assert!((found - wanted).abs() < 1e-9, "{found} is not {wanted}");
    assert!(zeros.mean_zero_fraction > 0.6 && zeros.mean_zero_fraction <= wanted, "{zeros:?}");
    assert!(stats.down_skipped > 0 && stats.up_skipped > 0, "{stats:?}");
    assert!(report.zero_fraction > 0.6 && report.read_bytes < report.whole_bytes, "{report:?}");
}
