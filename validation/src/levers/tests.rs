//! Levers of micro models: what is measured, what is compared, and that a difference is noticed.

use super::*;
use crate::profile::{self, ProfileOptions, built_in_prompts};
use crate::simulate::preset;
use aios_engine::ScreenLimits;
use aios_residency::plan::{Hardware, Plan};
use std::path::Path;

fn load(name: &str) -> Arc<Model> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    Model::load(&models.join(name)).expect("a micro model")
}

fn options() -> ExecutorOptions {
    ExecutorOptions { threads: 2, threads_batch: 2, ..ExecutorOptions::new(1) }
}

/// The caches are so small that hardly anything stays in them.
fn plan() -> LeverOptions {
    let mut design = preset("server-32mb").expect("a preset").design;
    design.private = crate::simulate::Geometry::new(1 << 10, 4, 64).expect("a shape");
    design.shared = crate::simulate::Geometry::new(16 << 10, 16, 64).expect("a shape");
    LeverOptions {
        depth: 300,
        generate: 5,
        rounds: 2,
        prompt: 200,
        window: 320,
        windows: 1,
        ram: None,
        design,
        cache: "a small cache".to_owned(),
    }
}

fn text() -> String {
    built_in_prompts().into_iter().map(|prompt| prompt.text).collect()
}

fn report(model: &Arc<Model>, plan: &LeverOptions) -> LeverReport {
    run(model, &options(), &text(), plan, &mut |_, _, _| true).expect("a report")
}

fn measured<'a>(
    report: &'a LeverReport,
    name: &str,
) -> Vec<(&'a Figures, &'a Figures, &'a Quality)> {
    let of = |lever: &'a Lever| match &lever.finding {
        Finding::Measured { off, on, quality } => Some((off, on, quality)),
        Finding::Nothing { .. } => None,
    };
    report.levers.iter().filter(|lever| lever.name == name).filter_map(of).collect()
}

fn reason<'a>(report: &'a LeverReport, name: &str) -> &'a str {
    let of = |lever: &'a Lever| match &lever.finding {
        Finding::Nothing { reason } if lever.name == name => Some(reason),
        _ => None,
    };
    report.levers.iter().find_map(of).unwrap_or_else(|| panic!("{name} was measured"))
}

/// The model has adopted a plan of its own.
fn planned(name: &str) -> Arc<Model> {
    let model = load(name);
    let folder = tempfile::tempdir().expect("a folder");
    let hardware = Hardware { cpu: None, isa: "any".to_owned(), processors: 2, llc_bytes: None };
    let options =
        ProfileOptions { generate: 6, tokens: 24, ..ProfileOptions::new(hardware.clone()) };
    let made =
        profile::run(&model, &self::options(), None, &options, folder.path(), &mut |_, _, _| true);
    let manifest = made.expect("a plan");
    let (_, stamp) = model.identity().expect("files");
    let mut plan = Plan::open(folder.path(), &stamp, &hardware).expect("sound");
    if manifest.ffn.is_some() {
        model.adopt_neurons(&mut plan, aios_engine::ZeroLimits::BYTES).expect("adopted");
    }
    model.adopt(plan, ScreenLimits::all(profile::POSITIONS_MOST)).expect("adopted");
    model
}

#[test]
fn each_lever_has_a_line_with_what_it_saves_and_costs() {
    let report = report(
        &planned("micro-relu-q8.gguf"),
        &LeverOptions { depth: 240, window: 250, prompt: 0, ..plan() },
    );
    assert_eq!(measured(&report, "screened head").len(), 2, "greedy and top-k");
    for name in ["screened head", "FFN zeros", "weights streamed"] {
        let lines = measured(&report, name);
        let (off, on, quality) = *lines.first().unwrap_or_else(|| panic!("{name}: {report:#?}"));
        assert_eq!(*quality, Quality::Identical { tokens: 5 }, "{name}");
        assert!(off.ms_per_token > 0.0 && on.ms_per_token > 0.0, "{name}");
        assert_eq!((off.samples, on.samples), (10, 10), "{name}");
        // What is simulated behind such a small cache is about what is counted.
        for side in [off, on] {
            let ratio = side.simulated_bytes_per_token / side.counted_bytes_per_token;
            assert!((0.9..1.6).contains(&ratio), "{name}: {side:?}");
        }
    }
    let [(off, on, _)] = measured(&report, "FFN zeros")[..] else { panic!("one line") };
    assert!(on.counted_bytes_per_token < 0.9 * off.counted_bytes_per_token, "{on:?}");
    assert!(on.simulated_bytes_per_token < 0.95 * off.simulated_bytes_per_token, "{on:?}");
    // Together they save what each of them does; a head so small costs what its sketch has more.
    let saved = |(off, on, _): (&Figures, &Figures, &Quality)| {
        off.counted_bytes_per_token - on.counted_bytes_per_token
    };
    let [together] = measured(&report, TOGETHER)[..] else { panic!("one line") };
    assert_eq!(*together.2, Quality::Identical { tokens: 5 });
    let parts = saved(measured(&report, "screened head")[0]) + saved((off, on, together.2));
    assert!((saved(together) - parts).abs() < 1.0, "{} {parts}", saved(together));
    let [(off, on, _)] = measured(&report, "weights streamed")[..] else { panic!("one line") };
    assert!(off.disk_bytes_per_token == 0.0 && on.disk_bytes_per_token > 0.0, "{on:?}");
    assert!(reason(&report, "aliasing").contains("nothing"));
    assert!(measured(&report, "prompt in chunks").is_empty());
    let text = report.markdown();
    assert!(text.contains("| FFN zeros | ") && text.contains("- aliasing: "), "{text}");
}

#[test]
fn tiers_are_scored_and_chunks_give_the_same_logits() {
    let report = report(&load("micro-llama-q4km.gguf"), &plan());
    assert!(reason(&report, "screened head").contains("aios profile"));
    assert!(reason(&report, "FFN zeros").contains("silu"));
    let tiers = measured(&report, "KV tiers");
    assert_eq!((tiers.len(), reason(&report, "KV tiers").contains("cold begins")), (1, true));
    for (off, on, quality) in tiers {
        assert!(on.counted_bytes_per_token < off.counted_bytes_per_token, "{on:?} {off:?}");
        assert!(on.simulated_bytes_per_token < off.simulated_bytes_per_token, "{on:?} {off:?}");
        let Quality::Changed { kl, perplexity, positions } = quality else { panic!("{quality:?}") };
        assert!(kl.mean > 0.0 && kl.mean < 0.1 && *positions == 159, "{quality:?}");
        assert!((perplexity / kl.base_perplexity - 1.0).abs() < 0.1);
    }
    let [(off, on, quality)] = measured(&report, "shared prefix")[..] else { panic!("one line") };
    assert_eq!((quality, off.samples, on.samples), (&Quality::Identical { tokens: 200 }, 2, 2));
    // A pass reads the weights once, however much of the prompt it has.
    assert!(on.counted_bytes_per_token <= off.counted_bytes_per_token, "{on:?} {off:?}");
    let chunks = measured(&report, "prompt in chunks");
    let (off, on, quality) = chunks[0];
    assert_eq!(chunks.len(), 2);
    assert_eq!(*quality, Quality::Identical { tokens: 200 });
    // Shorter passes read the weights more often.
    assert!(on.counted_bytes_per_token > 2.0 * off.counted_bytes_per_token);
    assert!(report.json().contains("\"state\": \"measured\""));
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(report.write(folder.path()).expect("written").len(), 2);
}

/// What the help says of where cold tiers begin, and that they read less from there on.
#[test]
fn cold_tiers_are_measured_where_they_begin() {
    let plan = LeverOptions {
        depth: KvTiering::Cold.first_position(),
        generate: 2,
        rounds: 1,
        prompt: 0,
        windows: 0,
        ..plan()
    };
    assert_eq!(plan.depth, 1152);
    let report = report(&load("micro-llama-q4km.gguf"), &plan);
    let [(off, warm, quality), (_, cold, _)] = measured(&report, "KV tiers")[..] else {
        panic!("two lines: {report:#?}")
    };
    assert_eq!(*quality, Quality::NotMeasured);
    let [off, warm, cold] = [off, warm, cold].map(|figures| figures.counted_bytes_per_token);
    assert!(cold < warm && warm < off, "{cold} {warm} {off}");
}

/// The comparison sees a lever that changes results, and it can be stopped at each step.
#[test]
fn a_difference_is_an_error_and_it_can_be_stopped() {
    let model = load("micro-llama-q4km.gguf");
    let (ids, plan) = ([5, 6, 7], LeverOptions { depth: 230, ..plan() });
    let options = ExecutorOptions { context: 320, ..options() };
    let mut progress = |_: &'static str, _: u64, _: u64| true;
    let mut bench = Bench {
        model: &model,
        options: options.clone(),
        ids: &ids,
        plan: &plan,
        progress: &mut progress,
    };
    let changed = ExecutorOptions { exact: true, ..options.clone() };
    let changed = Executor::new(Arc::clone(&model), changed).expect("an executor");
    let outcome = bench.compare("planted", changed, true);
    assert!(matches!(outcome, Err(LeverError::Differs { lever: "planted" })), "{outcome:?}");
    for steps in [0, 1, 4, 20] {
        let mut left = steps;
        let outcome = run(&model, &options, &text(), &plan, &mut |_, _, _| {
            left -= 1;
            left >= 0
        });
        assert!(matches!(outcome, Err(LeverError::Interrupted)), "{steps}: {outcome:?}");
    }
    let none = run(&model, &options, "", &plan, &mut |_, _, _| true);
    assert!(matches!(none, Err(LeverError::NoText { .. })), "{none:?}");
}
