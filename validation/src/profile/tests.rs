//! Plans of micro models: what they screen is what the whole head says, to the bit, also where
//! activations and rows are made to mislead.

use super::*;
use aios_engine::{Generation, Limits, SamplerOptions, Scores, Session, Want};
use aios_kernels::Isa;
use aios_residency::Phase;
use aios_residency::plan::Plan;
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
    screened.adopt(plan, POSITIONS_MOST).expect("adopted");
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
        assert!(matches!(other.adopt(plan, 1), Err(AdoptError::Head)));
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

#[test]
fn text_and_picture_say_what_the_manifest_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut manifest = profile(&load("micro-llama-q4km.gguf"), folder.path());
    manifest.screen.pays = true;
    manifest.screen.positions_most = 4;
    let text = markdown(&manifest);
    for wanted in ["| head |", "| **all** |", "| best (greedy) |", "up to 4 positions"] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    manifest.screen.pays = false;
    assert!(
        markdown(&manifest).contains("0.0 % fewer") && markdown(&manifest).contains("stays off")
    );
    let picture = svg(&manifest);
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    let groups = manifest.screen.bytes_per_token.iter().filter(|(_, bytes)| *bytes > 0).count();
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
    let screen = made.expect("a plan").screen;
    println!("{screen:#?}");
    assert!(screen.greedy.fraction <= 0.49, "{}", screen.greedy.fraction);
}
