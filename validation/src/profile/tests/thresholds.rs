//! Neurons below a threshold: the same answer however it is computed, and within the budget.

use super::*;
use aios_engine::{FfnThresholds, PartMode, PlanModes};
use aios_residency::plan::{PlanError, Quality, TableKind, read_manifest, write_manifest};

fn profile_for(model: &Arc<Model>, quality: Quality, folder: &Path) -> Manifest {
    let plan =
        ProfileOptions { generate: 6, tokens: 24, quality, ..ProfileOptions::new(hardware()) };
    run(model, &compute(1), None, &plan, folder, &mut |_, _, _| true).expect("a plan")
}

/// SPEC D18: with thresholds every logit is the same, on every instruction set, with any threads,
/// however the tokens are cut into passes, whether zeros are skipped or not; and others without.
#[test]
fn an_answer_is_a_function_of_the_thresholds() {
    let tokens: Vec<u32> = (0..12).map(|i| 3 + 17 * i % 200).collect();
    for name in ["micro-llama-q4km.gguf", "micro-gemma3-q4km.gguf", "micro-falcon-q4km.gguf"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (whole, model) = (load(name), load(name));
        let manifest = profile_for(&model, Quality::Aggressive, folder.path());
        let threshold = manifest.threshold.as_ref().expect("a report");
        assert!(threshold.in_force().is_some(), "{threshold:?}");
        let (_, stamp) = model.identity().expect("files");
        let mut plan = Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
        model.adopt_thresholds(&plan).expect("adopted");
        let dense = load(name);
        dense.adopt_thresholds(&plan).expect("adopted");
        let skips = manifest.ffn.is_some();
        assert_eq!(skips, model.ffn_shapes().iter().any(Option::is_some), "{name}");
        if skips {
            model.adopt_neurons(&mut plan, ZeroLimits::BYTES).expect("adopted");
        }
        let (wanted, all, _) = logits(&dense, compute(16), &tokens, &[1]);
        assert!(wanted != logits(&whole, compute(16), &tokens, &[1]).0, "{name}");
        for isa in Isa::available() {
            for cuts in [&[1_usize][..], &[5, 1, 1], &[12]] {
                for model in [&dense, &model] {
                    let options = ExecutorOptions { isa, threads: 3, ..compute(16) };
                    let (found, read, stats) = logits(model, options, &tokens, cuts);
                    assert!(found == wanted, "{name} {isa:?} {cuts:?}");
                    assert!(*cuts != [1] || stats.neurons == 0 || read < all, "{name}");
                }
            }
        }
    }
}

/// SPEC D4: a plan that cannot be followed changes nothing, least of all results.
#[test]
fn a_plan_of_which_a_part_does_not_fit_is_not_followed_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = load("micro-llama-q4km.gguf");
    profile_for(&model, Quality::Aggressive, folder.path());
    let (_, stamp) = model.identity().expect("files");
    let open = || Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
    let always = PartMode::Always;
    let modes =
        PlanModes { screen: always, zeros: always, threshold: always, keep: always, budget: true };
    let mut plan = open();
    plan.tables.retain(|table| table.kind() != TableKind::HeadSketch);
    let outcome = model.follow(plan, &modes);
    assert!(matches!(outcome, Err(AdoptError::Kind(_))), "{outcome:?}");
    assert!(model.ffn_thresholds().is_none() && model.ffn_neurons().is_none());
    assert!(model.keep_room().is_none() && model.planned_budget().is_none());
    let followed = model.follow(open(), &modes).expect("sound");
    assert!(followed.thresholds && followed.screen && !followed.budget, "{followed:?}");
    assert!(model.ffn_thresholds().is_some() && model.head_screen().is_some());
    let none = PlanModes { screen: PartMode::Off, zeros: PartMode::Off, ..modes };
    let modes = PlanModes { threshold: PartMode::Off, keep: PartMode::Off, ..none };
    let other = load("micro-llama-q4km.gguf");
    let followed = other.follow(open(), &modes).expect("sound");
    assert!(other.ffn_thresholds().is_none() && !followed.screen, "{followed:?}");
}

/// A larger budget leaves out as much or more, none costs more than it may, and `exact` nothing.
#[test]
fn budgets_are_kept() {
    let model = load("micro-llama-q4km.gguf");
    let mut before = None;
    for quality in [Quality::Conservative, Quality::Balanced, Quality::Aggressive] {
        let folder = tempfile::tempdir().expect("a folder");
        let manifest = profile_for(&model, quality, folder.path());
        let report = manifest.threshold.as_ref().expect("a report");
        assert!(report.chosen >= before, "{report:?}");
        before = report.chosen;
        assert!(report.positions > 100 && report.base_perplexity > 1.0, "{report:?}");
        for (i, point) in report.tried.iter().enumerate() {
            let chosen = report.chosen.is_some_and(|chosen| i <= chosen);
            assert!(!chosen || point.is_within(quality), "{report:?}");
        }
        let text = markdown(&manifest);
        assert!(text.contains("| left out | KL, nats |"), "{text}");
        assert_eq!(text.contains("**chosen**"), report.chosen.is_some(), "{text}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let exact = profile_for(&model, Quality::Exact, folder.path());
    assert!(exact.threshold.is_none() && exact.ffn.is_none());
}

/// A plan that says of itself that it costs more than its quality allows is refused, and so are
/// thresholds that were not tried.
#[test]
fn a_plan_that_misses_its_budget_is_refused() {
    let model = load("micro-llama-q4km.gguf");
    let folder = tempfile::tempdir().expect("a folder");
    let sound = profile_for(&model, Quality::Aggressive, folder.path());
    let chosen = sound.threshold.as_ref().and_then(|report| report.chosen).expect("thresholds");
    type Spoil = fn(&mut Manifest, usize);
    let spoilt: [(&str, Spoil); 4] = [
        ("cost more", |manifest, at| tried(manifest)[at].kl = 0.021),
        ("cost more", |manifest, at| tried(manifest)[at].perplexity_ratio = 1.03),
        ("no thresholds", |manifest, _| manifest.quality = Quality::Exact),
        ("not tried", |manifest, _| manifest.threshold.as_mut().unwrap().chosen = Some(99)),
    ];
    for (wanted, spoil) in spoilt {
        let mut manifest = sound.clone();
        spoil(&mut manifest, chosen);
        write_manifest(folder.path(), &manifest).expect("written");
        let error = read_manifest(folder.path()).expect_err("refused");
        assert!(matches!(error, PlanError::Manifest { .. }), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

fn tried(manifest: &mut Manifest) -> &mut [aios_residency::plan::ThresholdPoint] {
    &mut manifest.threshold.as_mut().expect("a report").tried
}

/// Thresholds of another model, and such that are no magnitudes, are refused.
#[test]
fn foreign_thresholds_are_refused() {
    let model = load("micro-llama-q4km.gguf");
    let folder = tempfile::tempdir().expect("a folder");
    profile_for(&model, Quality::Aggressive, folder.path());
    let (_, stamp) = model.identity().expect("files");
    let plan = Plan::open(folder.path(), &stamp, &hardware()).expect("sound");
    let other = load("micro-gemma3-q4km.gguf");
    assert!(matches!(other.adopt_thresholds(&plan), Err(AdoptError::Thresholds(_))));
    assert!(other.ffn_thresholds().is_none());
    let config = model.config();
    let len = config.layers * config.ffn.len;
    for wrong in [f32::NAN, f32::INFINITY, -1.0] {
        let mut least = vec![0.0; len];
        least[len / 2] = wrong;
        assert!(FfnThresholds::of(&model, least).is_err(), "{wrong}");
    }
    assert!(FfnThresholds::of(&model, vec![0.0; len - 1]).is_err());
    // None of these leaves anything out.
    let none = FfnThresholds::of(&model, vec![0.0; len]).expect("sound");
    let mut executor = Executor::new(Arc::clone(&model), compute(16)).expect("an executor");
    let mut all = Vec::new();
    for thresholds in [None, Some(Arc::new(none))] {
        executor.truncate(0);
        executor.cut_by(thresholds);
        let mut keep = |_, logits: &[f32]| {
            all.push(logits.to_vec());
            Ok(())
        };
        executor.forward(&[3, 4, 5], Phase::Decode, Want::Last, &mut keep).expect("a pass");
    }
    assert!(all[0] == all[1]);
}
