//! Plans for a cache that is smaller than the model.

use super::*;
use crate::levers::{self, Finding, LeverOptions};
use crate::simulate::{Geometry, preset};

fn repacked(name: &str, folder: &Path) -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(name);
    let (model, made) = Model::load_repacked(&path, folder, &mut |_, _| true).expect("a model");
    made.expect("repacked");
    model
}

fn profiled(model: &Arc<Model>, llc_bytes: Option<u64>, folder: &Path) -> Manifest {
    let options = ProfileOptions::new(hardware());
    let plan = ProfileOptions { generate: 6, tokens: 24, llc_bytes, ..options };
    run(model, &compute(1), None, &plan, folder, &mut |_, _, _| true).expect("a plan")
}

fn weights(model: &Model) -> u64 {
    model.bytes_per_token().iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn weights_that_exceed_the_cache_are_kept_in_part_and_less_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repacked("micro-qwen2-q4km.gguf", &folder.path().join("panels"));
    let llc = weights(&model) * 3 / 4;
    let manifest = profiled(&model, Some(llc), folder.path());
    let keep = manifest.keep.expect("some are kept");
    assert!(keep.room < llc && keep.kept_bytes <= keep.room && keep.past_bytes > 0, "{keep:?}");
    // A cycle through more than the cache holds leaves nothing in it; what is kept is not read.
    let saved = keep.simulated_plain - keep.simulated_kept;
    assert!(saved > 0.7 * keep.kept_bytes as f64, "{keep:?}");
    assert!(keep.tokens > 0 && keep.plain_ms > 0.0 && keep.kept_ms > 0.0, "{keep:?}");
    let prefetch = manifest.prefetch.expect("measured");
    assert!(prefetch.ahead == prefetch.usual || prefetch.ahead == prefetch.fastest);
    assert!(prefetch.tokens > 0 && prefetch.usual_ms > 0.0, "{prefetch:?}");
    let text = markdown(&manifest);
    assert!(text.contains("of weights stay in it") && text.contains("Prefetching: "), "{text}");
    // It is read back as it was written.
    let (_, stamp) = model.identity().expect("files");
    let plan = Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
    let read = plan.manifest.keep.expect("read");
    assert_eq!(
        (read.room, read.kept_bytes, read.past_bytes),
        (keep.room, keep.kept_bytes, keep.past_bytes)
    );
    assert_eq!(plan.manifest.prefetch.map(|found| found.ahead), Some(prefetch.ahead));
}

#[test]
fn there_is_nothing_to_keep_where_all_fits_or_no_size_is_known() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repacked("micro-llama-q4km.gguf", &folder.path().join("panels"));
    for llc in [None, Some(2 * weights(&model)), Some(0), Some(1000)] {
        let manifest = profiled(&model, llc, folder.path());
        assert_eq!(manifest.keep, None, "{llc:?}");
    }
}

#[test]
fn the_lever_has_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repacked("micro-qwen2-q4km.gguf", folder.path());
    let mut design = preset("desktop-36mb").expect("a preset").design;
    design.private = Geometry::new(1 << 10, 4, 64).expect("a shape");
    design.shared = Geometry::new(weights(&model) / 2 / 1024 * 1024, 16, 64).expect("a shape");
    let plan = LeverOptions {
        depth: 20,
        generate: 3,
        rounds: 1,
        prompt: 0,
        window: 64,
        windows: 0,
        ram: None,
        design,
        cache: "a small cache".to_owned(),
    };
    let text: String = built_in_prompts().into_iter().map(|prompt| prompt.text).collect();
    let found = levers::run(&model, &compute(1), &text, &plan, &mut |_, _, _| true);
    let report = found.expect("a report");
    let of = |name| report.levers.iter().find(|lever| lever.name == name).expect("a line");
    let Finding::Measured { off, on, .. } = &of("weights kept in the cache").finding else {
        panic!("{report:?}");
    };
    assert!(on.simulated_bytes_per_token < 0.8 * off.simulated_bytes_per_token, "{on:?} {off:?}");
    assert!((on.counted_bytes_per_token - off.counted_bytes_per_token).abs() < 1e-9);
    assert!(matches!(of("prefetch distance").finding, Finding::Nothing { .. }));
    model.adopt_ahead(3072);
    let report = levers::run(&model, &compute(1), &text, &plan, &mut |_, _, _| true);
    let report = report.expect("a report");
    let lever = report.levers.iter().find(|lever| lever.name == "prefetch distance");
    let vectors = aios_kernels::Isa::detect() != aios_kernels::Isa::SCALAR;
    let measured = lever.is_some_and(|l| matches!(l.finding, Finding::Measured { .. }));
    assert_eq!(measured, vectors);
}

#[test]
fn a_plan_for_a_budget_says_what_lives_where_and_runs_keep_to_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = load("micro-llama-q4km.gguf");
    let options = ProfileOptions::new(hardware());
    let plan = ProfileOptions { generate: 6, tokens: 24, ram_bytes: Some(1), ..options };
    let run = |plan: &ProfileOptions| {
        run(&model, &compute(1), None, plan, folder.path(), &mut |_, _, _| true)
    };
    let Err(ProfileError::Engine(aios_engine::EngineError::Ram { least, .. })) = run(&plan) else {
        panic!("a byte is not enough");
    };
    let ram = least + weights(&model) / 3;
    let manifest = run(&ProfileOptions { ram_bytes: Some(ram), ..plan.clone() }).expect("a plan");
    let memory = manifest.memory.expect("measured");
    assert_eq!((memory.ram_bytes, memory.tokens), (ram, 6));
    assert!(memory.hot_bytes + memory.reserved_bytes <= ram, "{memory:?}");
    assert!(memory.stream_bytes > 0 && memory.hot_bytes > 0, "{memory:?}");
    assert!(memory.disk_bytes_per_token >= memory.stream_bytes as f64, "{memory:?}");
    assert!(memory.whole_ms > 0.0 && memory.limited_ms > 0.0, "{memory:?}");
    assert!(markdown(&manifest).contains("| weights | disk, read for each pass | "));
    let (quality, ram_bytes) = (Quality::Aggressive, Some(ram));
    let lossy = run(&ProfileOptions { quality, ram_bytes, ..plan.clone() }).expect("a plan");
    assert!(lossy.threshold_in_force().is_some() && lossy.memory.is_some(), "{lossy:?}");
    // Who follows it has the budget, and any other that is asked for is nobody's plan.
    model.adopt_budget(ram);
    let stats = |options: ExecutorOptions| {
        Executor::new(Arc::clone(&model), options).expect("an executor").residency()
    };
    let planned = stats(compute(memory.context));
    let no_plan = aios_residency::Step::NoPlan;
    assert!(planned.budget_bytes == Some(ram) && !planned.ladder.contains(&no_plan));
    assert_eq!(planned.stream_bytes, memory.stream_bytes);
    // A context for which the plan's budget is too little does without.
    let long = stats(compute(1 << 20));
    assert!(long.ladder.contains(&aios_residency::Step::Mapped) && long.budget_bytes.is_none());
    let other = stats(ExecutorOptions { ram: Some(ram + 4096), ..compute(memory.context) });
    assert!(other.budget_bytes == Some(ram + 4096) && other.ladder.contains(&no_plan));
}
