//! Tiers of the KV cache (SPEC N11, B23): the same bits however positions are cut into passes, no
//! trace of what was taken back, and what they cost.

use aios_engine::{
    EngineError, Executor, ExecutorOptions, KvTiering, Length, Limits, Lookup, Model,
    SamplerOptions, Session, Speculation, Want,
};
use aios_kernels::{CacheType, Isa};
use aios_residency::{Phase, PhaseBytes};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const TIERS: [KvTiering; 2] = [KvTiering::Warm, KvTiering::Cold];
/// Long enough that a page is seen hot, warm and cold: 19 pages and a bit.
const LENGTH: usize = 1230;

fn model(name: &str) -> Arc<Model> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    Model::load(&models.join(format!("micro-{name}-q4km.gguf"))).expect("a micro model")
}

fn options(kv_tiers: KvTiering) -> ExecutorOptions {
    let threads = 2;
    ExecutorOptions { kv_tiers, threads, threads_batch: threads, ..ExecutorOptions::new(1300) }
}

fn executor(model: &Arc<Model>, options: ExecutorOptions) -> Executor {
    Executor::new(Arc::clone(model), options).expect("an executor")
}

/// Ids without a pattern.
fn ids(len: usize) -> Vec<u32> {
    let mix = |i: usize| (i as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (0..len).map(|i| u32::try_from(mix(i) % 250).expect("small")).collect()
}

/// The bits of the logits of the last `last` of the positions that are run.
fn run(executor: &mut Executor, ids: &[u32], last: usize) -> Vec<u32> {
    let from = (executor.len() + ids.len()).saturating_sub(last);
    let mut bits = Vec::new();
    let mut sink = |position: usize, logits: &[f32]| {
        if position >= from {
            bits.extend(logits.iter().map(|x| x.to_bits()));
        }
        Ok(())
    };
    executor.forward(ids, Phase::Prefill, Want::All, &mut sink).expect("a pass");
    bits
}

#[test]
fn cuts_threads_and_instruction_sets_change_no_bit() {
    for name in ["llama", "qwen2", "gemma3", "falcon"] {
        let (model, ids) = (model(name), ids(LENGTH));
        for tiers in TIERS {
            let want = run(&mut executor(&model, options(tiers)), &ids, 40);
            let plain = run(&mut executor(&model, options(KvTiering::Off)), &ids, 40);
            assert_ne!(want, plain, "{name}: {tiers} tiers do something");
            for (isa, batch) in Isa::available().into_iter().zip([512, 1, 67, 1300]) {
                let options = ExecutorOptions { isa, batch, threads: 1, ..options(tiers) };
                let found = run(&mut executor(&model, options), &ids, 40);
                assert!(found == want, "{name}, {tiers}, {isa:?}, {batch}");
            }
        }
    }
}

#[test]
fn what_was_taken_back_leaves_no_trace() {
    let (model, ids) = (model("qwen2"), ids(LENGTH));
    let other: Vec<u32> = ids.iter().map(|id| id ^ 1).collect();
    for tiers in TIERS {
        let batch = 128;
        let fresh = || executor(&model, ExecutorOptions { batch, ..options(tiers) });
        let want = run(&mut fresh(), &ids, 30);
        // Drafts over a border of pages, long and short ones, and far beyond what a query sees hot.
        let mut tried = fresh();
        for (at, wrong) in [(60, 9), (250, 16), (320, 1), (448, 128), (700, 400), (1216, 14)] {
            let done = tried.len();
            run(&mut tried, &ids[done..at], 0);
            run(&mut tried, &other[at..(at + wrong).min(1300)], 0);
            tried.truncate(at);
            assert_eq!(tried.len(), at, "{tiers}");
        }
        let done = tried.len();
        assert!(run(&mut tried, &ids[done..], 30)[..] == want[want.len() / 30 * (30 - 14)..]);
        // Very far back it keeps the first page, and says so.
        tried.truncate(200);
        assert_eq!(tried.len(), 64);
        assert!(run(&mut tried, &ids[64..], 30) == want);
        // Where everything has a place, it goes anywhere.
        let roomy = ExecutorOptions { batch, kv_budget: Some(1 << 40), ..options(tiers) };
        let mut roomy = executor(&model, roomy);
        run(&mut roomy, &other, 0);
        run_from(&mut roomy, 0, &ids[..LENGTH]);
        for at in [1200, 777, 200, 64, 3] {
            roomy.truncate(at);
            assert_eq!(roomy.len(), at);
            assert!(run(&mut roomy, &ids[at..], 30) == want, "{tiers} {at}");
        }
    }
}

/// Passes of any lengths, drafts that are refused and returns to earlier positions, in any order:
/// what comes of it is what a fresh cache gives.
#[test]
fn any_history_gives_the_bits_of_a_fresh_cache() {
    let (ids, end) = (ids(LENGTH), LENGTH - 8);
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below
    };
    for name in ["qwen2", "gemma3"] {
        let model = model(name);
        for tiers in TIERS {
            let fresh = |threads: usize| {
                let batch = 96;
                let threads = ExecutorOptions { threads, threads_batch: threads, ..options(tiers) };
                executor(&model, ExecutorOptions { batch, ..threads })
            };
            let want = run(&mut fresh(2), &ids, 8);
            for history in 0..4 {
                let mut tried = fresh(1 + random(2));
                while tried.len() < end {
                    let at = tried.len();
                    match random(6) {
                        0 => {
                            let drafts = ids[at..(at + 1 + random(16)).min(end)].iter();
                            let drafts: Vec<u32> = drafts.map(|id| id ^ 1).collect();
                            run(&mut tried, &drafts, 0);
                            tried.truncate(at);
                            assert_eq!(tried.len(), at, "{name} {tiers} {history}");
                        }
                        1 => {
                            let back = at - random(at.min(400) + 1);
                            tried.truncate(back);
                            assert!(tried.len() <= back, "{name} {tiers} {history}");
                        }
                        _ => {
                            let to = (at + 1 + random(200)).min(end);
                            run(&mut tried, &ids[at..to], 0);
                        }
                    }
                }
                assert!(run(&mut tried, &ids[end..], 8) == want, "{name} {tiers} {history}");
            }
        }
    }
}

fn run_from(executor: &mut Executor, at: usize, ids: &[u32]) {
    executor.truncate(at);
    run(executor, &ids[at..], 0);
}

fn answer(session: &mut Session, prompt: &[u32], tokens: usize) -> (Vec<u32>, usize) {
    let limits = Limits { max_tokens: Some(tokens), ignore_eos: true, ..Limits::default() };
    let sampling = SamplerOptions { seed: 5, ..SamplerOptions::default() };
    let mut generation = session.generate(prompt, sampling, limits).expect("begun");
    let never = AtomicBool::new(false);
    while generation.next_text(&never).expect("a token").is_some() {}
    (generation.tokens().to_vec(), generation.stats().reused_tokens)
}

#[test]
fn speculation_and_reuse_give_the_same_answers() {
    let model = model("llama");
    let session = || {
        let options = ExecutorOptions { batch: 100, ..options(KvTiering::Cold) };
        Session::new(Arc::clone(&model), options).expect("a session")
    };
    let prompt = ids(1100);
    let (want, _) = answer(&mut session(), &prompt, 150);
    let mut drafting = session();
    let lookup = Box::new(Lookup::new(&[]));
    drafting.speculate(Some(Speculation::new(vec![lookup], Length::Fixed(13))));
    assert_eq!(answer(&mut drafting, &prompt, 150).0, want);
    // Asked again with the answer behind the prompt, which has places still.
    assert_eq!(answer(&mut drafting, &prompt, 150), (want.clone(), 1099));
    // A shared prefix whose hot pages are gone is read again but for its first page.
    let mut reusing = session();
    let mut other = prompt[..300].to_vec();
    other.extend(ids(1000).iter().map(|id| id ^ 3));
    answer(&mut reusing, &other[..1250], 20);
    assert_eq!(answer(&mut reusing, &prompt, 150), (want, 64));
}

fn decoded(executor: &mut Executor, len: usize) -> PhaseBytes {
    executor.skip_to(len).expect("within the context");
    executor.reset_ledger();
    executor.forward(&[1], Phase::Decode, Want::None, &mut |_, _| Ok(())).expect("a pass");
    executor.ledger().phase(Phase::Decode)
}

#[test]
fn the_ledger_counts_each_tier_and_memory_shrinks() {
    let model = model("llama");
    let config = model.config();
    let heads = config.layers * config.attention.kv_heads;
    let (k, v) = (config.attention.key_len, config.attention.value_len);
    // Bytes of a position in each tier, from bits: a scale of two bytes beside the codes.
    let hot = (heads * 2 * (k + v)) as u64;
    let warm = (heads * (k + v / 2 + 4)) as u64;
    let cold = (heads * (k / 2 + v * 3 / 8 + 4)) as u64;
    let small = ExecutorOptions { batch: 64, ..options(KvTiering::Cold) };
    let mut tiered = executor(&model, small.clone());
    // Position 1215 is the last of page 18: pages 0, 16, 17 and 18 are hot, 1 cold.
    let bytes = decoded(&mut tiered, 1215);
    assert_eq!(bytes.kv_read_tiers.hot, 4 * 64 * hot);
    assert_eq!(bytes.kv_read_tiers.warm, 14 * 64 * warm);
    assert_eq!(bytes.kv_read_tiers.cold, 64 * cold);
    assert_eq!(bytes.kv_read, bytes.kv_read_tiers.total());
    assert_eq!(bytes.kv_written_tiers.hot, hot);
    assert_eq!(bytes.kv_written_tiers.warm, 0);
    // The next position begins page 19, for which page 16 leaves the window.
    let bytes = decoded(&mut tiered, 1216);
    // Pages 0, 17, 18 and one position of 19, whose keys are read in groups of 16, and page 16 to
    // be written colder.
    let newest = (heads * 2 * (16 * k + v)) as u64;
    assert_eq!(bytes.kv_read_tiers.hot, (3 + 1) * 64 * hot + newest);
    assert_eq!(bytes.kv_written_tiers.warm, 64 * warm);
    assert_eq!(bytes.kv_written_tiers.cold, 64 * cold);
    let mut plain = executor(&model, options(KvTiering::Off));
    let all = decoded(&mut plain, 1215);
    assert_eq!((all.kv_read, all.kv_read_tiers.hot), (1216 * hot, 1216 * hot));
    // Warm: 21 warm pages and 14 hot ones beside 21 hot ones.
    let warm_only = executor(&model, ExecutorOptions { batch: 64, ..options(KvTiering::Warm) });
    let places = 64 * ((1 + 2 + 2 + 8) * hot + 21 * warm);
    assert_eq!(warm_only.cache_bytes() as u64, places);
    assert_eq!(plain.cache_bytes() as u64, 64 * 21 * hot);
    // A short context has most of its pages hot; one of 4096 positions takes two thirds.
    let long = |tiers| ExecutorOptions { context: 4096, batch: 64, ..options(tiers) };
    let bytes = |tiers| executor(&model, long(tiers)).cache_bytes() as f64;
    let [off, warm, cold] = KvTiering::ALL.map(bytes);
    assert!(warm < 0.67 * off && cold < 0.75 * off, "{off} {warm} {cold}");
}

#[test]
fn budgets_and_heads_that_do_not_fit_are_errors() {
    let model = model("llama");
    let new = |options| Executor::new(Arc::clone(&model), options);
    let with = |kv_tiers, kv_budget| ExecutorOptions { batch: 64, kv_budget, ..options(kv_tiers) };
    let least_of = |tiers| match new(with(tiers, Some(1))) {
        Err(EngineError::KvBudget { given: 1, least, tiered }) => {
            assert_eq!(tiered, tiers != KvTiering::Off);
            least
        }
        other => panic!("{other:?}"),
    };
    for tiers in KvTiering::ALL {
        let least = least_of(tiers);
        let fits = new(with(tiers, Some(least))).expect("the least is enough");
        assert_eq!(fits.cache_bytes() as u64, least);
        let error = new(with(tiers, Some(least - 1))).expect_err("a byte less is not");
        assert!(error.to_string().contains("--kv-budget"), "{error}");
        let more = new(with(tiers, Some(2 * least))).expect("more than enough");
        assert!((least..=2 * least).contains(&(more.cache_bytes() as u64)));
    }
    // A budget that may choose takes the first tiers that keep to it.
    let leasts = KvTiering::ALL.map(least_of);
    for budget in leasts {
        let keeps = |(_, least): &(KvTiering, u64)| *least <= budget;
        let wanted = KvTiering::ALL.into_iter().zip(leasts).find(keeps).map(|(tiers, _)| tiers);
        let options = ExecutorOptions { kv_by_budget: true, ..with(KvTiering::Off, Some(budget)) };
        let executor = new(options).expect("one of them keeps to it");
        assert_eq!(Some(executor.options().kv_tiers), wanted);
    }
    assert!(leasts[0] > leasts[2], "else nothing was chosen: {leasts:?}");
    let none = ExecutorOptions { kv_by_budget: true, ..with(KvTiering::Off, Some(1)) };
    // One that nothing keeps to is told the least of all, and not to try tiers.
    let refused = new(none).expect_err("a byte");
    let of_all = *leasts.iter().min().expect("tiers");
    assert!(
        matches!(refused, EngineError::KvBudget { least, tiered: true, .. } if least == of_all)
    );
    assert!(!refused.to_string().contains("--kv-tiers"), "{refused}");
    assert!(
        matches!("tepid".parse::<KvTiering>(), Err(error) if error.to_string().contains("warm"))
    );
    assert!(CacheType::ALL.iter().all(|kind| kind.name().parse() == Ok(*kind)));
    assert!("code8".parse::<CacheType>().is_err());
}
