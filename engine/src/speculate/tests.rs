use super::*;
use crate::forward::ExecutorOptions;
use crate::model::Model;
use crate::sampler::SamplerOptions;
use crate::session::{GenerationStats, Limits, Session, StopReason};
use aios_kernels::CacheType;
use aios_residency::Phase;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// Proposes by a rule of its own, right or wrong.
#[derive(Clone, Debug)]
enum Adversary {
    /// What really follows, given all of it.
    Knows(Vec<u32>),
    /// The same, but every so manieth token is another.
    Errs(Vec<u32>, usize),
    /// Always the same token.
    Stubborn(u32),
    /// Tokens by a hash of the place.
    Random(u64),
    /// Nothing, though it says it has something.
    Empty,
    /// More than was asked for, and tokens that do not exist.
    Overlong,
    /// An error.
    Fails,
}

#[derive(Debug)]
struct Hostile(Adversary);

impl Drafter for Hostile {
    fn name(&self) -> &'static str {
        "hostile"
    }

    fn kinds(&self) -> &'static [Kind] {
        &[Kind { name: "hostile", first: 0.9, later: 0.9 }]
    }

    fn kind(&self) -> Option<usize> {
        Some(usize::MAX)
    }

    fn draft(
        &mut self,
        target: &mut Target<'_>,
        most: usize,
        _goes_on: &dyn Fn(f64, usize) -> bool,
        out: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        let at = target.history.len();
        let known = |all: &[u32]| all.get(at..).unwrap_or_default().to_vec();
        match &self.0 {
            Adversary::Knows(all) => out.extend(known(all).into_iter().take(most)),
            Adversary::Errs(all, every) => {
                let wrong = |(i, id): (usize, u32)| {
                    if (at + i).is_multiple_of(*every) { id ^ 1 } else { id }
                };
                out.extend(known(all).into_iter().enumerate().map(wrong).take(most));
            }
            Adversary::Stubborn(id) => out.extend(vec![*id; most]),
            Adversary::Random(seed) => {
                let mix = |i: usize| ((at + i) as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                out.extend((0..most).map(|i| (mix(i) >> 40) as u32 % 300));
            }
            Adversary::Empty => {}
            Adversary::Overlong => out.extend((0..1000).map(|i| i * 7919)),
            Adversary::Fails => return Err(EngineError::NotFinite { position: at }),
        }
        Ok(())
    }
}

fn model(name: &str) -> Arc<Model> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    Model::load(&models.join(format!("micro-{name}-q4km.gguf"))).expect("a micro model")
}

fn session(model: &Arc<Model>, context: usize) -> Session {
    let options = ExecutorOptions { threads: 1, threads_batch: 1, ..ExecutorOptions::new(context) };
    Session::new(Arc::clone(model), options).expect("a session")
}

/// The ids of an answer, its text, and what it cost.
fn answer(
    session: &mut Session,
    prompt: &[u32],
    sampling: SamplerOptions,
    limits: &Limits,
) -> (Vec<u32>, String, GenerationStats) {
    let mut generation = session.generate(prompt, sampling, limits.clone()).expect("an answer");
    let never = AtomicBool::new(false);
    let mut text = String::new();
    while let Some(piece) = generation.next_text(&never).expect("a token") {
        text += &piece;
    }
    (generation.tokens().to_vec(), text, generation.stats())
}

/// Costs under which drafting pays.
fn flat_costs() -> PassCosts {
    let curve = |first, last| PassCurve::new(vec![(1, first), (16, last)]);
    PassCosts::known(curve(10.0, 25.0).expect("a curve"), curve(0.1, 0.3))
}

fn lengths() -> impl Strategy<Value = Length> {
    let auto = (1_usize..20).prop_map(|most| Length::Auto { costs: flat_costs(), most });
    prop_oneof![(0_usize..20).prop_map(Length::Fixed), auto]
}

fn sampling() -> impl Strategy<Value = SamplerOptions> {
    let sampled =
        (0_u64..1000, prop_oneof![Just(1.0_f32), Just(1.3)]).prop_map(|(seed, penalty)| {
            SamplerOptions { seed, repeat_penalty: penalty, ..SamplerOptions::default() }
        });
    prop_oneof![Just(SamplerOptions::greedy()), sampled]
}

/// What an adversary proposes where `all` is the text to come.
fn adversaries(all: &[u32]) -> Vec<Vec<Box<dyn Drafter>>> {
    let hostile = |adversary| -> Vec<Box<dyn Drafter>> { vec![Box::new(Hostile(adversary))] };
    let mut list: Vec<_> = [
        Adversary::Knows(all.to_vec()),
        Adversary::Errs(all.to_vec(), 3),
        Adversary::Stubborn(all[all.len() - 1]),
        Adversary::Random(all.len() as u64),
        Adversary::Empty,
        Adversary::Overlong,
        Adversary::Fails,
    ]
    .map(hostile)
    .into();
    list.push(vec![Box::new(Lookup::default())]);
    list.push(vec![
        Box::new(Lookup::new(&[all.to_vec()])),
        Box::new(Hostile(Adversary::Random(1))),
    ]);
    list
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn drafting_changes_no_token_whatever_is_drafted(
        name in prop::sample::select(&["llama", "gemma3", "falcon", "qwen2", "phi3"][..]),
        length in lengths(),
        sampling in sampling(),
        prompt in prop::collection::vec(3_u32..200, 1..12),
        most in prop_oneof![Just(None), (0_usize..30).prop_map(Some)],
        ignore_eos in any::<bool>(),
    ) {
        let model = model(name);
        let limits = Limits { max_tokens: most, ignore_eos, ..Limits::default() };
        let mut plain = session(&model, 40);
        let (ids, text, stats) = answer(&mut plain, &prompt, sampling, &limits);
        let all = [&prompt[..], &ids, &[5]].concat();
        for drafters in adversaries(&all) {
            let named = format!("{drafters:?}");
            let mut drafted = session(&model, 40);
            drafted.speculate(Some(Speculation::new(drafters, length.clone())));
            for round in 0..2 {
                let found = answer(&mut drafted, &prompt, sampling, &limits);
                prop_assert_eq!(&found.0, &ids, "{} {}", &named, round);
                prop_assert_eq!(&found.1, &text);
                prop_assert_eq!(found.2.stop, stats.stop);
                prop_assert_eq!(found.2.decoded_tokens, stats.decoded_tokens);
            }
            // The cache has no trace either: what follows is what follows without drafts.
            let longer = [&prompt[..], &ids[..ids.len().min(4)], &[9, 8]].concat();
            let few = Limits { max_tokens: Some(5), ..limits.clone() };
            let mut fresh = session(&model, 40);
            let expected = answer(&mut fresh, &longer, sampling, &few).0;
            prop_assert_eq!(answer(&mut drafted, &longer, sampling, &few).0, expected);
        }
    }
}

#[test]
fn a_drafter_that_knows_saves_passes_and_bytes() {
    let model = model("llama");
    let limits = Limits { max_tokens: Some(60), ignore_eos: true, ..Limits::default() };
    let prompt = [1, 2, 3, 4];
    let mut session = session(&model, 100);
    let (ids, _, plain) = answer(&mut session, &prompt, SamplerOptions::greedy(), &limits);
    let all = [&prompt[..], &ids].concat();
    let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Hostile(Adversary::Knows(all)))];
    session.speculate(Some(Speculation::new(drafters, Length::Fixed(5))));
    let (same, _, stats) = answer(&mut session, &prompt, SamplerOptions::greedy(), &limits);
    assert_eq!(same, ids);
    let spec = stats.speculation.as_ref().expect("it was on");
    assert_eq!((spec.passes, spec.tokens, spec.accepted), (10, 59, 49));
    assert_eq!(spec.drafted, spec.accepted);
    assert_eq!(spec.lengths[5], 9);
    let [before, after] = [&plain, &stats].map(|stats| stats.bytes_per_token().expect("tokens"));
    assert!(after < 0.25 * before, "{after} {before}");
    assert!(stats.bytes.iter().any(|bytes| bytes.phase == Phase::Verify && bytes.tokens == 59));
}

#[test]
fn a_failing_drafter_is_given_up_and_said() {
    let model = model("llama");
    let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Hostile(Adversary::Fails))];
    let mut session = session(&model, 50);
    session.speculate(Some(Speculation::new(drafters, Length::Fixed(5))));
    let limits = Limits { max_tokens: Some(5), ignore_eos: true, ..Limits::default() };
    let (_, _, stats) = answer(&mut session, &[1, 2], SamplerOptions::greedy(), &limits);
    let spec = stats.speculation.expect("it was on");
    assert_eq!((spec.drafted, spec.passes), (0, 4));
    assert!(spec.failure.expect("a reason").contains("not finite"));
}

#[test]
fn the_model_itself_as_draft_is_always_right() {
    let model = model("llama");
    for sampling in
        [SamplerOptions::greedy(), SamplerOptions { seed: 3, ..SamplerOptions::default() }]
    {
        let limits = Limits { max_tokens: Some(40), ignore_eos: true, ..Limits::default() };
        let mut session = session(&model, 100);
        let (ids, ..) = answer(&mut session, &[7, 8, 9], sampling, &limits);
        let options = ExecutorOptions { threads: 1, threads_batch: 1, ..ExecutorOptions::new(100) };
        let same = DraftModel::unchecked(Arc::clone(&model), options).expect("an executor");
        let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(same)];
        session.speculate(Some(Speculation::new(drafters, Length::Fixed(4))));
        let (drafted, _, stats) = answer(&mut session, &[7, 8, 9], sampling, &limits);
        assert_eq!(drafted, ids);
        let spec = stats.speculation.as_ref().expect("it was on");
        assert_eq!(spec.accept_rate(), Some(1.0), "{spec:?}");
        assert!(spec.tokens_per_pass().expect("passes") > 4.0);
        assert!(stats.bytes.iter().any(|bytes| bytes.phase == Phase::Draft && bytes.weights > 0));
    }
}

#[test]
fn draft_models_must_fit() {
    let (llama, qwen) = (model("llama"), model("qwen2"));
    let options = || ExecutorOptions::new(64);
    let refused = |draft: &Arc<Model>, target: &Model| {
        DraftModel::new(Arc::clone(draft), target, options()).err().map(|error| error.to_string())
    };
    assert_eq!(refused(&qwen, &llama), None);
    let larger = refused(&llama, &qwen).expect("it reads more");
    assert!(larger.contains("must be the smaller one"), "{larger}");
    // The same file with another spelling of one token.
    let mut bytes = std::fs::read(qwen.path()).expect("the file");
    let at = bytes.windows(8).position(|window| window == b"<|f263|>").expect("the token");
    bytes[at + 2] = b'g';
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("written");
    let other = refused(&Model::load(file.path()).expect("a model"), &llama).expect("refused");
    assert!(
        other.contains("token 263 is \"<|g263|>\"") && other.contains("\"<|f263|>\""),
        "{other}"
    );
}

#[test]
fn costs_are_measured_and_leave_no_trace() {
    let model = model("llama");
    let mut session = session(&model, 64);
    let limits = Limits { max_tokens: Some(9), ..Limits::default() };
    let before = answer(&mut session, &[5, 6], SamplerOptions::greedy(), &limits).0;
    let costs = PassCosts::measure(session.idle_executor(), None).expect("costs");
    assert!(costs.is_sound());
    assert!((1..PASS_MAX).all(|n| costs.target.at(n, 0) <= costs.target.at(n + 1, 0)));
    assert!(costs.draft.is_none() && costs.apart >= 0.0);
    assert_eq!(answer(&mut session, &[5, 6], SamplerOptions::greedy(), &limits).0, before);
    let tiny = self::session(&model, 3).idle_executor().context();
    assert_eq!(tiny, 3);
    assert!(PassCosts::measure(self::session(&model, 3).idle_executor(), None).is_ok());
}

#[test]
fn stop_texts_and_ends_inside_a_draft_are_exact() {
    let model = model("llama");
    let open = Limits { max_tokens: Some(30), ignore_eos: true, ..Limits::default() };
    let mut session = session(&model, 100);
    let (ids, text, _) = answer(&mut session, &[1, 2, 3], SamplerOptions::greedy(), &open);
    let all = [&[1, 2, 3], &ids[..]].concat();
    let middle = text.char_indices().nth(text.chars().count() / 2).expect("text").0;
    let stop: String = text[middle..].chars().take(2).collect();
    let stopped = Limits { stop: vec![stop], ..open };
    let plain = answer(&mut session, &[1, 2, 3], SamplerOptions::greedy(), &stopped);
    assert_eq!(plain.2.stop, Some(StopReason::StopText));
    let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Hostile(Adversary::Knows(all)))];
    session.speculate(Some(Speculation::new(drafters, Length::Fixed(7))));
    let drafted = answer(&mut session, &[1, 2, 3], SamplerOptions::greedy(), &stopped);
    assert_eq!((drafted.0, drafted.1, drafted.2.stop), (plain.0, plain.1, plain.2.stop));
}

#[test]
fn a_smaller_cache_type_is_exact_too() {
    let model = model("llama");
    let options = ExecutorOptions {
        threads: 2,
        threads_batch: 2,
        cache_k: CacheType::F32,
        cache_v: CacheType::Bf16,
        ..ExecutorOptions::new(100)
    };
    let mut session = Session::new(model, options).expect("a session");
    let limits = Limits { max_tokens: Some(50), ignore_eos: true, ..Limits::default() };
    let sampling = SamplerOptions { seed: 11, ..SamplerOptions::default() };
    let (ids, ..) = answer(&mut session, &[7; 20], sampling, &limits);
    let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Lookup::default())];
    session.speculate(Some(Speculation::new(drafters, Length::Fixed(9))));
    assert_eq!(answer(&mut session, &[7; 20], sampling, &limits).0, ids);
}

/// A model that always knows, and that has so much to read before it can say so.
#[derive(Debug)]
struct Unread {
    all: Vec<u32>,
    tokens: usize,
}

impl Drafter for Unread {
    fn name(&self) -> &'static str {
        "unread"
    }

    fn kinds(&self) -> &'static [Kind] {
        &[Kind { name: "unread", first: 0.65, later: 0.7 }]
    }

    fn kind(&self) -> Option<usize> {
        Some(0)
    }

    fn unread(&self, _history: &[u32]) -> Option<usize> {
        Some(self.tokens)
    }

    fn draft(
        &mut self,
        target: &mut Target<'_>,
        most: usize,
        _goes_on: &dyn Fn(f64, usize) -> bool,
        out: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        self.tokens = 1;
        let rest = self.all.get(target.history.len()..).unwrap_or_default();
        out.extend(rest.iter().take(most));
        Ok(())
    }
}

#[test]
fn a_model_reads_what_it_missed_once_that_pays() {
    // No token comes twice, so that only the model has guesses.
    let prompt: Vec<u32> = (0..100).collect();
    let answer: Vec<u32> = (100..300).collect();
    let all = [&prompt[..], &answer].concat();
    let curve = |first, last| PassCurve::new(vec![(1, first), (16, last)]);
    let costs = PassCosts::known(curve(10.0, 25.0).expect("a curve"), curve(2.0, 32.0));
    let passes_of = |answer: &[u32], tokens| {
        let model = Unread { all: all.clone(), tokens };
        let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Lookup::default()), Box::new(model)];
        let length = Length::Auto { costs: costs.clone(), most: 15 };
        let mut speculation = Speculation::new(drafters, length);
        let stats = replay(&mut speculation, &prompt, answer).expect("no failure").stats;
        (stats.passes, stats.lengths[0])
    };
    let passes = |tokens| passes_of(&answer, tokens);
    let (at_once, plain) = passes(1);
    assert!(at_once < 60 && plain <= 1, "{at_once} {plain}");
    // 30 tokens take 60 ms, which a few milliseconds a pass come to after some passes.
    let (later, plain) = passes(30);
    assert!((5..40).contains(&plain) && later > at_once, "{later} {plain}");
    // What would take longer than everything it could save is never read.
    assert_eq!(passes(5000), (199, 199));
    // Nor what the rest of the answer is too short to give back.
    assert_eq!(passes_of(&answer[..30], 30), (29, 29));
}
