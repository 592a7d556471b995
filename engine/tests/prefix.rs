//! Sessions that begin with what another has read: the same answers and digests, to the bit, and
//! nothing that one does reaches another.

use aios_engine::{
    ExecutorOptions, KvTiering, Limits, Model, PrefixShelf, SamplerOptions, Session,
};
use aios_kernels::CacheType;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const MODELS: [&str; 4] = [
    "micro-llama-q4km.gguf",
    "micro-qwen2-q4km.gguf",
    "micro-gemma3-q4km.gguf",
    "micro-phi3-q4km.gguf",
];

fn load(name: &str) -> Arc<Model> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    Model::load(&models.join(name)).expect("a micro model")
}

fn options() -> ExecutorOptions {
    ExecutorOptions { threads: 2, threads_batch: 2, ..ExecutorOptions::new(256) }
}

/// A prompt of a common part and one of its own.
fn prompt(common: u32, own: u32) -> Vec<u32> {
    (0..common).map(|i| 3 + (i * 7) % 80).chain((0..9).map(|i| 3 + (own + i * 5) % 80)).collect()
}

/// Tokens of an answer, the digest of its states, and how many tokens of the prompt were reused.
type Said = (Vec<u32>, Option<[u8; 32]>, usize);

fn ask(session: &mut Session, prompt: &[u32]) -> Said {
    let limits = Limits { max_tokens: Some(12), ignore_eos: true, ..Limits::default() };
    let mut generation =
        session.generate(prompt, SamplerOptions::greedy(), limits).expect("an answer");
    let go_on = AtomicBool::new(false);
    while generation.next_text(&go_on).expect("a token").is_some() {}
    let (tokens, stats) = (generation.tokens().to_vec(), generation.stats());
    (tokens, stats.states, stats.reused_tokens)
}

fn fresh(model: &Arc<Model>, options: &ExecutorOptions) -> Session {
    let mut session = Session::new(Arc::clone(model), options.clone()).expect("a session");
    session.trace_states(true);
    session
}

#[test]
fn answers_from_a_shared_prefix_are_the_same() {
    for name in MODELS {
        let model = load(name);
        for (cache_k, cache_v) in
            [(CacheType::F16, CacheType::F16), (CacheType::F32, CacheType::F16)]
        {
            let options = ExecutorOptions { cache_k, cache_v, ..options() };
            let mut donor = fresh(&model, &options);
            let of_donor = ask(&mut donor, &prompt(150, 1));
            let prefix = donor.prefix(150).expect("memory").expect("two pages");
            assert_eq!(prefix.tokens(), &prompt(150, 1)[..128]);
            assert!(prefix.bytes() > 0);
            let begin = || {
                Session::beginning_with(Arc::clone(&model), options.clone(), &prefix)
                    .expect("a session")
            };
            let mut sessions = [begin(), begin()];
            for (session, own, common) in [(0, 2, 150), (1, 3, 100), (0, 4, 70)] {
                let prompt = prompt(common, own);
                let (tokens, states, reused) = ask(&mut sessions[session], &prompt);
                let (wanted, digest, none) = ask(&mut fresh(&model, &options), &prompt);
                assert_eq!(none, 0);
                assert!(tokens == wanted && states == digest && states.is_some(), "{name} {own}");
                let most = usize::try_from(common).expect("small").min(128);
                assert!((most.min(100)..=150).contains(&reused), "{name} {own}: {reused}");
            }
            // One has gone back into the prefix and written there; the others have what was.
            assert_eq!(ask(&mut begin(), &prompt(150, 1)).0, of_donor.0, "{name}");
            donor.clear();
            let again = ask(&mut donor, &prompt(150, 1));
            assert_eq!((again.0, again.1), (of_donor.0, of_donor.1), "{name}");
        }
    }
}

/// What would have been computed otherwise is not taken.
#[test]
fn a_prefix_of_another_setting_is_not_taken() {
    let model = load(MODELS[0]);
    let mut donor = Session::new(Arc::clone(&model), options()).expect("a session");
    ask(&mut donor, &prompt(150, 1));
    let prefix = donor.prefix(usize::MAX).expect("memory").expect("pages");
    assert_eq!(prefix.tokens().len(), 128);
    let reused = |model: &Arc<Model>, options: ExecutorOptions| {
        let session = Session::beginning_with(Arc::clone(model), options, &prefix);
        session.expect("a session").sequence().len()
    };
    assert_eq!(reused(&model, options()), 128);
    // Threads and instruction sets change no result.
    let scalar = ExecutorOptions { isa: aios_kernels::Isa::SCALAR, threads: 1, ..options() };
    assert_eq!(reused(&model, scalar), 128);
    for other in [
        ExecutorOptions { context: 255, ..options() },
        ExecutorOptions { context: 512, ..options() },
        ExecutorOptions { cache_k: CacheType::F32, ..options() },
        ExecutorOptions { exact: true, ..options() },
        ExecutorOptions { kv_tiers: KvTiering::Warm, ..options() },
    ] {
        assert_eq!(reused(&model, other.clone()), 0, "{other:?}");
    }
    assert_eq!(reused(&load(MODELS[0]), options()), 0, "another model, if of the same file");
    // Nothing is shared of less than a page, nor where pages move.
    assert!(donor.prefix(63).expect("memory").is_none());
    let tiered = ExecutorOptions { kv_tiers: KvTiering::Warm, ..options() };
    let mut tiered = Session::new(model, tiered).expect("a session");
    ask(&mut tiered, &prompt(150, 1));
    assert!(tiered.prefix(128).expect("memory").is_none());
}

/// States that nobody digested are read again where they are to be digested.
#[test]
fn a_prefix_without_digests_is_read_again_where_they_are_wanted() {
    let model = load(MODELS[0]);
    let mut donor = Session::new(Arc::clone(&model), options()).expect("a session");
    ask(&mut donor, &prompt(150, 1));
    let prefix = donor.prefix(128).expect("memory").expect("pages");
    let session = Session::beginning_with(Arc::clone(&model), options(), &prefix);
    let mut session = session.expect("a session");
    session.trace_states(true);
    let (tokens, states, reused) = ask(&mut session, &prompt(150, 2));
    assert_eq!((tokens, states, 0), ask(&mut fresh(&model, &options()), &prompt(150, 2)));
    assert_eq!(reused, 0);
}

/// Shows `shelf` a session that was asked a prompt with so many tokens in common with others, of
/// which `all` are the same for all; returns how many the shelf has then.
fn show(
    shelf: &PrefixShelf,
    session: &mut Session,
    (common, own): (u32, u32),
    all: usize,
) -> Option<usize> {
    ask(session, &prompt(common, own));
    shelf.show(session, all);
    shelf.prefix().map(|prefix| prefix.tokens().len())
}

#[test]
fn a_shelf_keeps_what_two_in_a_row_have_in_common() {
    let model = load(MODELS[0]);
    let shelf = PrefixShelf::default();
    let show = |common, own| {
        let mut session = Session::new(Arc::clone(&model), options()).expect("a session");
        show(&shelf, &mut session, (common, own), usize::MAX)
    };
    assert_eq!(show(150, 1), None, "nothing to compare with");
    assert_eq!(show(150, 2), Some(128));
    assert_eq!(show(150, 3), Some(128));
    assert_eq!(show(80, 4), Some(64), "less is in common now");
    assert_eq!(show(200, 5), Some(64));
    assert_eq!(show(200, 6), Some(192));
    assert_eq!(show(10, 7), Some(192), "nothing whole is in common: what was goes on");
}

/// Two who say the same share nothing of it.
#[test]
fn a_shelf_never_learns_more_than_what_is_the_same_for_all() {
    let model = load(MODELS[0]);
    let shelf = PrefixShelf::default();
    let show = |all| {
        let mut session = Session::new(Arc::clone(&model), options()).expect("a session");
        show(&shelf, &mut session, (200, 1), all)
    };
    for _ in 0..3 {
        assert_eq!(show(0), None);
        assert_eq!(show(63), None);
    }
    assert_eq!(show(127), None, "63 were in common with the one before");
    for _ in 0..3 {
        assert_eq!(show(127), Some(64));
    }
    let known = shelf.prefix().expect("a prefix");
    assert_eq!(known.tokens(), &prompt(200, 1)[..64]);
}

/// A prefix of another context, or one whose states nobody digested, is of no use to sessions of
/// today.
#[test]
fn a_shelf_replaces_what_sessions_cannot_begin_with() {
    let model = load(MODELS[0]);
    let shelf = PrefixShelf::default();
    let longer = ExecutorOptions { context: 320, ..options() };
    let show = |options: &ExecutorOptions, traced, own| {
        let mut session = Session::new(Arc::clone(&model), options.clone()).expect("a session");
        session.trace_states(traced);
        show(&shelf, &mut session, (150, own), 150)
    };
    let begun = |options: &ExecutorOptions, traced| {
        let prefix = shelf.prefix().expect("a prefix");
        let session = Session::beginning_with(Arc::clone(&model), options.clone(), &prefix);
        let mut session = session.expect("a session");
        if traced {
            session.trace_states(true);
        }
        session.sequence().len()
    };
    show(&options(), false, 1);
    assert_eq!(show(&options(), false, 2), Some(128));
    assert_eq!([begun(&options(), false), begun(&longer, false)], [128, 0]);
    show(&longer, false, 3);
    assert_eq!([begun(&options(), false), begun(&longer, false)], [0, 128]);
    assert_eq!(begun(&longer, true), 0, "its states are not known");
    show(&longer, true, 4);
    assert_eq!([begun(&longer, false), begun(&longer, true)], [128, 128]);
    // One with digests serves those as well that have no use for them.
    let before = shelf.prefix().expect("a prefix");
    show(&longer, false, 5);
    assert!(Arc::ptr_eq(&before, &shelf.prefix().expect("a prefix")));
}
