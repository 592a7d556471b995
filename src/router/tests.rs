//! What the router promises, over the labelled prompts and over any text.

use std::time::Instant;

use proptest::prelude::*;

use super::*;

const PROMPTS: &str = include_str!("../../validation/data/router_prompts.jsonl");
const GOLDEN: &str = include_str!("../../validation/data/golden_prompts.jsonl");

fn tier(prompt: &str) -> Tier {
    Scorer::default().route(prompt).tier
}

/// SPEC.md, Q7.
#[test]
fn the_golden_prompts_are_all_routed_as_labelled() {
    let cases = cases(GOLDEN, None).expect("labelled");
    let evaluation = evaluate(&Scorer::default(), &cases).expect("every tier");
    assert!(evaluation.by_tier.iter().all(|(_, share)| share.n == 5));
    assert_eq!((evaluation.overall.right, evaluation.overall.n), (15, 15));
}

/// SPEC.md, Q7.
#[test]
fn nine_in_ten_held_out_prompts_are_routed_as_labelled() {
    let cases = cases(PROMPTS, Some("heldout")).expect("labelled");
    let evaluation = evaluate(&Scorer::default(), &cases).expect("every tier");
    assert!(evaluation.overall.n >= 140);
    assert!(evaluation.overall.share >= 0.9, "{}", evaluation.tables());
}

/// SPEC.md, Q6.
#[test]
fn no_topic_is_in_both_halves() {
    let topics = |split| -> std::collections::BTreeSet<String> {
        let cases = cases(PROMPTS, Some(split)).expect("labelled");
        cases.into_iter().map(|case| case.topic.expect("a topic")).collect()
    };
    let (dev, held_out) = (topics("dev"), topics("heldout"));
    assert!(dev.len() >= 10 && held_out.len() >= 10 && dev.is_disjoint(&held_out));
    assert!(cases(PROMPTS, None).expect("labelled").len() >= 320);
}

/// SPEC.md, Q2.
#[test]
fn a_cue_inside_of_another_word_is_none() {
    let scorer = Scorer::default();
    let same = |a: &str, b: &str| {
        assert_eq!(scorer.route(a).features, scorer.route(b).features, "{a:?} and {b:?}");
    };
    // "art", "plan", "hi", "why", "who", "test", "prove", "build" are cues or were once.
    same("Architectural quiet zebra", "Xrchitectural quiet zebra");
    same("Planets quiet zebra", "Xlanets quiet zebra");
    same("Chime quiet zebra", "Cxxme quiet zebra");
    same("Improvement approves contestants", "Imxxxxement apxxxxes conxxxxants");
    same("Rebuilding wholesale highways", "Rexxxxxing xxxlesale xxghways");
}

/// SPEC.md, Q3.
#[test]
fn what_is_quoted_or_negated_is_not_asked_for() {
    let features = |prompt: &str| Scorer::default().route(prompt).features;
    assert_eq!(features("Who said \"design a bridge and prove it\"?").design, 0.0);
    assert_eq!(features("No need to explain anything").explain, 0.0);
    assert_eq!(features("Explain anything").explain, 1.0);
    assert_eq!(features("the head of the design museum").design, 0.0);
    assert_eq!(features("Hi, please design a museum").design, 1.0);
}

/// SPEC.md, Q5.
#[test]
fn empty_and_unknown_texts_have_a_stated_tier() {
    for empty in ["", " \n\t", "?!", "…", "🎈🎈", "\u{0301}"] {
        assert_eq!(tier(empty), Tier::Trivial, "{empty:?}");
    }
    let unknown = Scorer::default().route("zzyx qwrt plmk vbnt xcvz");
    assert_eq!((unknown.tier, unknown.basis), (Tier::Moderate, Basis::Unknown));
    assert_eq!(unknown.margin, 0.0);
    assert_eq!(tier("zzyx qwrt"), Tier::Trivial);
}

/// SPEC.md, Q8.
#[test]
fn a_forced_tier_changes_tier_model_and_budget_only() {
    let scorer = Scorer::default();
    let own = scorer.route("Hello!");
    let forced = scorer.route_as("Hello!", Some(Tier::High));
    assert_eq!(
        (forced.tier, forced.model, forced.basis),
        (Tier::High, ModelRole::Main, Basis::Forced)
    );
    assert_eq!(forced.budget, Options::default().high);
    assert_eq!((forced.score, forced.features), (own.score, own.features));
    assert_eq!(scorer.route_as("Hello!", None), own);
}

/// SPEC.md, Q4.
#[test]
fn budgets_rise_or_are_refused() {
    assert_eq!(Options::default().check(), Ok(()));
    let mut options = Options::default();
    options.high.max_tokens = options.moderate.max_tokens - 1;
    let error = Scorer::new(options).expect_err("it falls");
    assert_eq!((error.tier, error.field), ("high", "max_tokens"));
    let mut options = Options::default();
    options.trivial.history_share = f64::NAN;
    assert_eq!(options.check().expect_err("not a share").field, "history_share");
}

/// SPEC.md, Q1.
#[test]
fn a_megabyte_is_routed_at_once() {
    let scorer = Scorer::default();
    let texts = ["design ", "a", "\"", "`", "“„", "步", "e\u{301}", "。", "step by ", "\u{301}"];
    for piece in texts {
        let text = piece.repeat((1 << 20) / piece.len());
        let started = Instant::now();
        let route = scorer.route(&text);
        assert!(route.score.is_finite());
        // Two orders of magnitude above what it takes; what is quadratic takes minutes.
        assert!(started.elapsed().as_secs() < 5, "{piece:?}: {:?}", started.elapsed());
    }
}

proptest! {
    /// SPEC.md, Q1.
    #[test]
    fn any_text_has_one_route(text in "\\PC{0,200}|[ \\n\"`“”„«»「」a-zé步设计.]{0,200}") {
        let scorer = Scorer::default();
        let route = scorer.route(&text);
        prop_assert!(route.score.is_finite() && route.margin >= 0.0);
        prop_assert_eq!(&route, &Scorer::default().route(&text));
        prop_assert!(!route.reason.is_empty());
        prop_assert_eq!(route.budget, Options::default().budget(route.tier));
    }
}
