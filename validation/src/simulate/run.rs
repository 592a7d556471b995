//! Passes of an executor, watched by a hierarchy of caches.

use super::hierarchy::{Design, Hierarchy};
use super::traffic::{Group, Traffic};
use crate::bench::Tokens;
use aios_engine::{EngineError, Executor, Observer, Want};
use aios_residency::{Access, Data, Phase};
use serde::Serialize;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Positions in the cache before the first pass; they are taken as written.
    pub depth: usize,
    /// Passes that warm the caches up.
    pub warm_up: usize,
    /// Passes that count.
    pub passes: usize,
    /// Tokens of a pass: 1 is decoding, more is verifying, with the logits of every token.
    pub tokens_per_pass: usize,
    /// Whether weights are read past the caches; a smaller model's never are.
    pub non_temporal: bool,
}

/// A smaller model at work between the passes, such as one that drafts, behind the same caches.
#[derive(Debug)]
pub struct Smaller<'a> {
    /// The model.
    pub executor: &'a mut Executor,
    /// Its passes of one token before each pass of the larger one.
    pub passes: usize,
}

impl Plan {
    /// Positions that the context must hold.
    pub fn context(&self) -> usize {
        let tokens = self.all_passes().saturating_mul(self.tokens_per_pass);
        self.depth.saturating_add(tokens).max(1)
    }

    /// Passes, those that warm up included.
    pub fn all_passes(&self) -> usize {
        self.warm_up.saturating_add(self.passes)
    }

    const fn phase(&self) -> Phase {
        if self.tokens_per_pass == 1 { Phase::Decode } else { Phase::Verify }
    }
}

/// What a group of data cost, in bytes per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GroupTraffic {
    /// The group.
    pub group: Group,
    /// DRAM reads for loads.
    pub dram_read_bytes_per_token: f64,
    /// DRAM reads for stores.
    pub dram_ownership_bytes_per_token: f64,
    /// DRAM writes of lines into which this group was written last.
    pub dram_write_bytes_per_token: f64,
}

/// What was simulated (SPEC B20). Bytes are per token of the passes that count.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// `simulated`: where the DRAM figures come from.
    pub source: &'static str,
    /// The caches.
    pub caches: Design,
    /// Simulated threads.
    pub threads: usize,
    /// Whether weights were read past the caches.
    pub non_temporal: bool,
    /// Decoding or verifying.
    pub phase: Phase,
    /// Positions before the first pass.
    pub depth: usize,
    /// Passes that warmed the caches up.
    pub warm_up_passes: usize,
    /// Passes that count.
    pub passes: usize,
    /// Tokens of each.
    pub tokens_per_pass: usize,
    /// DRAM reads for loads.
    pub dram_read_bytes_per_token: f64,
    /// DRAM reads for stores.
    pub dram_ownership_bytes_per_token: f64,
    /// DRAM writes.
    pub dram_write_bytes_per_token: f64,
    /// Reads by what they were for, writes by what was written.
    pub groups: Vec<GroupTraffic>,
    /// Weight and cache bytes that the ledger counted.
    pub counted_bytes_per_token: f64,
    /// Bytes of the distinct lines that a pass reads or writes.
    pub touched_bytes_per_token: f64,
    /// All DRAM reads over the touched bytes.
    pub reread_ratio: f64,
    /// What of all that a smaller model's passes take, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smaller: Option<SmallerTraffic>,
}

/// What a smaller model's passes take, in bytes per token of the larger one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SmallerTraffic {
    /// Its passes before each pass of the larger one.
    pub passes: usize,
    /// DRAM reads, of loads and of stores.
    pub dram_read_bytes_per_token: f64,
    /// Weight and cache bytes that its ledger counted.
    pub counted_bytes_per_token: f64,
}

/// The caches that stand behind a figure of another report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Behind {
    /// Their name.
    pub name: String,
    /// Their sizes, ways and lines, and how they relate.
    pub caches: Design,
    /// Threads that were simulated, each with a private cache.
    pub threads: usize,
    /// Positions in the context before the token.
    pub depth: usize,
}

impl Behind {
    /// What `simulated` went through, by the name `name`.
    pub fn of(name: String, simulated: &Simulated) -> Self {
        let Simulated { caches, threads, depth, .. } = *simulated;
        Self { name, caches, threads, depth }
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, caches, threads, depth } = self;
        let s = if *threads == 1 { "" } else { "s" };
        write!(f, "{name}: {caches}; {threads} thread{s}, {depth} positions")
    }
}

/// The hierarchy, and the lines of the present pass.
#[derive(Debug)]
struct Watched {
    hierarchy: Hierarchy,
    non_temporal: bool,
    /// Runs of lines, their first and last, if distinct lines are wanted.
    runs: Option<Vec<(u64, u64)>>,
    /// Distinct lines of the passes that have ended.
    touched: u64,
    /// Lines that a smaller model's passes have read of memory.
    smaller: u64,
}

impl Watched {
    fn new(hierarchy: Hierarchy, non_temporal: bool, runs: Option<Vec<(u64, u64)>>) -> Self {
        Self { hierarchy, non_temporal, runs, touched: 0, smaller: 0 }
    }

    /// Lines read of memory so far, to load and to store.
    fn lines(&self) -> u64 {
        self.hierarchy.traffic().reads() + self.hierarchy.traffic().reads_for_ownership()
    }

    fn access(&mut self, access: &Access, larger: bool) {
        let weights = matches!(access.data, Data::Weights(_));
        let past = access.past || larger && self.non_temporal && weights;
        self.hierarchy.access(access, !past);
        if let Some(runs) = &mut self.runs {
            runs.extend(self.hierarchy.lines(access));
        }
    }

    fn end_pass(&mut self) {
        if let Some(runs) = &mut self.runs {
            self.touched += distinct(runs);
            runs.clear();
        }
    }
}

/// How many numbers lie in at least one of the runs.
fn distinct(runs: &mut [(u64, u64)]) -> u64 {
    runs.sort_unstable();
    let (mut count, mut next) = (0, 0);
    for &(first, last) in &*runs {
        count += (last + 1).saturating_sub(first.max(next));
        next = next.max(last + 1);
    }
    count
}

/// The executor's end of what is watched.
#[derive(Debug)]
struct Feed {
    watched: Arc<Mutex<Watched>>,
    /// Whether it is the executor of the larger model.
    larger: bool,
}

impl Observer for Feed {
    fn access(&mut self, access: Access) {
        lock(&self.watched).access(&access, self.larger);
    }

    fn sees_feed_forward(&self) -> bool {
        false
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries out `plan` with an executor whose context holds it. `between` is called before every
/// pass with how many have ended; what it returns ends the simulation. A smaller model's context
/// must hold all of its passes; its bytes are part of all figures but `counted_bytes_per_token`.
///
/// # Errors
/// Those of [`Executor::forward`], and what `between` returns.
pub fn simulate(
    executor: &mut Executor,
    mut smaller: Option<Smaller<'_>>,
    plan: &Plan,
    hierarchy: Hierarchy,
    between: &mut dyn FnMut(usize) -> Result<(), EngineError>,
) -> Result<Simulated, EngineError> {
    let (caches, threads) = (hierarchy.design(), hierarchy.threads());
    let non_temporal = plan.non_temporal;
    let watched = Watched::new(hierarchy, non_temporal, Some(Vec::new()));
    let watched = Arc::new(Mutex::new(watched));
    let feed = |larger| Some(Box::new(Feed { watched: Arc::clone(&watched), larger }) as Box<_>);
    let before = executor.observe(feed(true));
    let before_smaller = smaller.as_mut().map(|smaller| smaller.executor.observe(feed(false)));
    let outcome = run(executor, smaller.as_mut(), plan, &watched, between);
    executor.observe(before);
    if let (Some(smaller), Some(before)) = (&mut smaller, before_smaller) {
        smaller.executor.observe(before);
    }
    outcome?;
    let watched = lock(&watched);
    let tokens = (plan.passes * plan.tokens_per_pass).max(1) as f64;
    let line = f64::from(caches.shared.line_bytes());
    let bytes = |lines: u64| lines as f64 * line / tokens;
    let traffic = watched.hierarchy.traffic();
    let smaller = smaller.map(|Smaller { executor, passes }| {
        let counted = executor.ledger().phase(Phase::Draft);
        SmallerTraffic {
            passes,
            dram_read_bytes_per_token: bytes(watched.smaller),
            counted_bytes_per_token: (counted.weights + counted.kv_read) as f64 / tokens,
        }
    });
    Ok(Simulated {
        source: "simulated",
        caches,
        threads,
        non_temporal,
        phase: plan.phase(),
        depth: plan.depth,
        warm_up_passes: plan.warm_up,
        passes: plan.passes,
        tokens_per_pass: plan.tokens_per_pass,
        dram_read_bytes_per_token: bytes(traffic.reads()),
        dram_ownership_bytes_per_token: bytes(traffic.reads_for_ownership()),
        dram_write_bytes_per_token: bytes(traffic.writes()),
        groups: groups(traffic, &bytes),
        counted_bytes_per_token: executor.ledger().phase(plan.phase()).read_per_token(),
        touched_bytes_per_token: bytes(watched.touched),
        reread_ratio: watched.lines() as f64 / watched.touched.max(1) as f64,
        smaller,
    })
}

/// Passes to watch. What the second argument is called after has warmed the caches up.
type Work<'a> = dyn FnMut(&mut Executor, &dyn Fn()) -> Result<(), EngineError> + 'a;

/// DRAM reads, of loads and of stores, in bytes by group, of the passes that `work` makes with the
/// executor; those that only warm the caches up do not count.
///
/// # Errors
/// What `work` returns.
pub(crate) fn reads(
    executor: &mut Executor,
    hierarchy: Hierarchy,
    work: &mut Work<'_>,
) -> Result<Vec<(Group, u64)>, EngineError> {
    let line = u64::from(hierarchy.design().shared.line_bytes());
    let watched = Arc::new(Mutex::new(Watched::new(hierarchy, false, None)));
    let feed = Feed { watched: Arc::clone(&watched), larger: true };
    let before = executor.observe(Some(Box::new(feed)));
    let outcome = work(executor, &|| lock(&watched).hierarchy.reset_traffic());
    executor.observe(before);
    outcome?;
    let watched = lock(&watched);
    let traffic = watched.hierarchy.traffic();
    let of = |group| (group, line * (traffic.read(group) + traffic.for_ownership(group)));
    Ok(Group::ALL.map(of).to_vec())
}

fn groups(traffic: &Traffic, bytes: &dyn Fn(u64) -> f64) -> Vec<GroupTraffic> {
    let of = |group| GroupTraffic {
        group,
        dram_read_bytes_per_token: bytes(traffic.read(group)),
        dram_ownership_bytes_per_token: bytes(traffic.for_ownership(group)),
        dram_write_bytes_per_token: bytes(traffic.written(group)),
    };
    Group::ALL.map(of).to_vec()
}

/// The passes; counts start after those that warm up.
fn run(
    executor: &mut Executor,
    mut smaller: Option<&mut Smaller<'_>>,
    plan: &Plan,
    watched: &Mutex<Watched>,
    between: &mut dyn FnMut(usize) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    executor.skip_to(plan.depth)?;
    let mut tokens = Tokens::of(executor);
    let mut drafts = match &mut smaller {
        Some(smaller) => {
            smaller.executor.skip_to(plan.depth)?;
            Some(Tokens::of(smaller.executor))
        }
        None => None,
    };
    for pass in 0..plan.all_passes() {
        between(pass)?;
        if pass == plan.warm_up {
            executor.reset_ledger();
            smaller.iter_mut().for_each(|smaller| smaller.executor.reset_ledger());
            let mut watched = lock(watched);
            watched.hierarchy.reset_traffic();
            (watched.touched, watched.smaller) = (0, 0);
        }
        if let (Some(smaller), Some(drafts)) = (&mut smaller, &mut drafts) {
            let before = lock(watched).lines();
            for _ in 0..smaller.passes {
                let ids = drafts.take(1);
                smaller.executor.forward(&ids, Phase::Draft, Want::All, &mut |_, _| Ok(()))?;
            }
            let mut watched = lock(watched);
            watched.smaller += watched.lines() - before;
        }
        let ids = tokens.take(plan.tokens_per_pass);
        executor.forward(&ids, plan.phase(), Want::All, &mut |_, _| Ok(()))?;
        lock(watched).end_pass();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Geometry, Policy, presets};
    use super::*;
    use aios_engine::{ExecutorOptions, Model};
    use std::path::Path;

    const PLAN: Plan =
        Plan { depth: 0, warm_up: 2, passes: 3, tokens_per_pass: 1, non_temporal: false };

    fn simulated(plan: &Plan, design: Design, threads: usize) -> Simulated {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        let model = Model::load(&models.join("micro-llama-q4km.gguf")).expect("a micro model");
        let mut executor =
            Executor::new(model, ExecutorOptions::new(plan.context())).expect("an executor");
        let hierarchy = Hierarchy::new(design, threads).expect("a hierarchy");
        simulate(&mut executor, None, plan, hierarchy, &mut |_| Ok(())).expect("a simulation")
    }

    fn of_bytes(bytes: u64) -> Design {
        let ll = Geometry::new(bytes, 16, 64).expect("a shape");
        let private = Geometry::new(1024, 4, 64).expect("a shape");
        Design { private, shared: ll, policy: Policy::Independent }
    }

    #[test]
    fn runs_are_merged() {
        assert_eq!(distinct(&mut []), 0);
        assert_eq!(distinct(&mut [(5, 9), (0, 0), (7, 12), (6, 6), (12, 12), (20, 20)]), 10);
    }

    #[test]
    fn caches_that_are_too_small_read_everything_once_a_pass() {
        let small = simulated(&PLAN, of_bytes(16 << 10), 1);
        let (read, counted) = (small.dram_read_bytes_per_token, small.counted_bytes_per_token);
        assert!(counted > 100e3, "{counted}");
        let of_weights = small.groups.iter().filter(|entry| {
            !matches!(entry.group, Group::Keys | Group::Values | Group::Activations)
        });
        let weights: f64 = of_weights.map(|entry| entry.dram_read_bytes_per_token).sum();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        let model = Model::load(&models.join("micro-llama-q4km.gguf")).expect("a micro model");
        let stored = model.bytes_per_token().iter().map(|(_, bytes)| *bytes).sum::<u64>() as f64;
        // Lines that tensors share are read for each. Keys and values that a pass has just written
        // are still there, so that the sum may be below what is counted, but by no more than these.
        assert!(weights > stored && weights < 1.05 * stored, "{weights} {stored}");
        assert!(read > stored && read < 1.05 * counted, "{read} {stored} {counted}");
        assert!((0.95..1.05).contains(&small.reread_ratio), "{}", small.reread_ratio);
        let of = |wanted| {
            let found = small.groups.iter().find(|entry| entry.group == wanted);
            found.map_or(0.0, |entry| entry.dram_read_bytes_per_token)
        };
        for group in [Group::Attention, Group::Ffn, Group::Norm, Group::Head, Group::Embedding] {
            assert!(of(group) > 0.0, "{group:?}");
        }
        let sum: f64 = small.groups.iter().map(|entry| entry.dram_read_bytes_per_token).sum();
        assert!((sum - read).abs() < 1e-6 * read);
        let written = small.dram_write_bytes_per_token;
        let of = |one: &GroupTraffic| one.dram_write_bytes_per_token;
        let sum: f64 = small.groups.iter().map(of).sum();
        assert!(written > 0.0 && (sum - written).abs() < 1e-6 * written);
        let weights = [Group::Embedding, Group::Attention, Group::Ffn, Group::Norm, Group::Head];
        for one in small.groups.iter().filter(|one| weights.contains(&one.group)) {
            assert_eq!(of(one), 0.0, "{:?} is not written", one.group);
        }
    }

    #[test]
    fn a_cache_that_holds_the_model_reads_next_to_nothing() {
        let large = simulated(&PLAN, of_bytes(64 << 20), 1);
        assert!(large.dram_read_bytes_per_token < 0.01 * large.counted_bytes_per_token);
        assert!(large.reread_ratio < 0.05, "{}", large.reread_ratio);
        // Reading past the caches, weights come from memory all the same.
        let past = simulated(&Plan { non_temporal: true, ..PLAN }, of_bytes(64 << 20), 1);
        assert!(past.dram_read_bytes_per_token > 0.98 * past.counted_bytes_per_token);
    }

    #[test]
    fn passes_of_several_tokens_share_a_read() {
        let four = simulated(&Plan { tokens_per_pass: 4, ..PLAN }, of_bytes(16 << 10), 1);
        let one = simulated(&PLAN, of_bytes(16 << 10), 1);
        let ratio = four.dram_read_bytes_per_token / one.dram_read_bytes_per_token;
        assert!((0.24..0.35).contains(&ratio), "{ratio}");
        assert_eq!((four.phase, one.phase), (Phase::Verify, Phase::Decode));
    }

    #[test]
    fn depth_adds_keys_and_values() {
        let deep = simulated(&Plan { depth: 500, ..PLAN }, of_bytes(16 << 10), 1);
        let flat = simulated(&PLAN, of_bytes(16 << 10), 1);
        let more = deep.counted_bytes_per_token - flat.counted_bytes_per_token;
        let read = deep.dram_read_bytes_per_token - flat.dram_read_bytes_per_token;
        assert!(more > 0.0 && (read / more - 1.0).abs() < 0.05, "{read} {more}");
    }

    #[test]
    fn several_threads_read_what_one_reads_and_a_victim_cache_no_more() {
        let one = simulated(&PLAN, of_bytes(64 << 10), 1);
        let four = simulated(&PLAN, of_bytes(64 << 10), 4);
        let ratio = four.dram_read_bytes_per_token / one.dram_read_bytes_per_token;
        assert!((0.9..1.01).contains(&ratio), "{ratio}");
        let design = Design { policy: Policy::Victim, ..of_bytes(64 << 10) };
        let victim = simulated(&PLAN, design, 4).dram_read_bytes_per_token;
        assert!(victim <= 1.01 * four.dram_read_bytes_per_token);
        let server = presets::preset("server-32mb").expect("a preset").design;
        assert!(simulated(&PLAN, server, 8).reread_ratio < 0.1);
    }

    /// A smaller model stays in a cache that holds it and not both if the larger one is read past
    /// it, and does not otherwise.
    #[test]
    fn a_smaller_model_stays_where_the_larger_one_passes_by() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        let load = |name| {
            let model = Model::load(&models.join(name)).expect("a micro model");
            Executor::new(model, ExecutorOptions::new(64)).expect("an executor")
        };
        let (mut larger, mut smaller) =
            (load("micro-llama-q4km.gguf"), load("micro-qwen2-q4km.gguf"));
        let mut pair = |non_temporal, bytes, passes| {
            larger.truncate(0);
            smaller.truncate(0);
            let hierarchy = Hierarchy::new(of_bytes(bytes), 1).expect("a hierarchy");
            let plan = Plan { tokens_per_pass: 4, non_temporal, ..PLAN };
            let smaller = Smaller { executor: &mut smaller, passes };
            let done = simulate(&mut larger, Some(smaller), &plan, hierarchy, &mut |_| Ok(()));
            let done = done.expect("a simulation");
            let all = done.dram_read_bytes_per_token + done.dram_ownership_bytes_per_token;
            (done.smaller.expect("there is one"), all)
        };
        let (none, alone) = pair(false, 16 << 10, 0);
        assert_eq!((none.dram_read_bytes_per_token, none.counted_bytes_per_token), (0.0, 0.0));
        let (beside, both) = pair(false, 16 << 10, 3);
        let (read, counted) = (beside.dram_read_bytes_per_token, beside.counted_bytes_per_token);
        assert!(counted > 0.0 && read > 0.95 * counted && read < 1.1 * counted, "{beside:?}");
        assert!((both - alone - read).abs() < 0.02 * both, "{alone} and {read} make {both}");
        // Three of its passes make four tokens: half as much again as one reads holds it, not both.
        let room = ((4.0 / 3.0 * counted * 1.5) as u64).next_multiple_of(1024);
        let [swept, kept] = [false, true].map(|past| pair(past, room, 3).0);
        let [swept, kept] = [swept, kept].map(|one| one.dram_read_bytes_per_token / counted);
        assert!(kept < 0.1 && kept < swept, "{kept} of its bytes, {swept} without");
    }

    #[test]
    fn it_can_be_interrupted_and_leaves_no_observer() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        let model = Model::load(&models.join("micro-llama-q4km.gguf")).expect("a micro model");
        let mut executor =
            Executor::new(model, ExecutorOptions::new(PLAN.context())).expect("an executor");
        let hierarchy = Hierarchy::new(of_bytes(64 << 10), 1).expect("a hierarchy");
        let mut stop = |pass| if pass == 2 { Err(EngineError::Cancelled) } else { Ok(()) };
        let outcome = simulate(&mut executor, None, &PLAN, hierarchy.clone(), &mut stop);
        assert!(matches!(outcome, Err(EngineError::Cancelled)));
        assert!(executor.observe(None).is_none());
        let deep = Plan { depth: 1 << 20, ..PLAN };
        let outcome = simulate(&mut executor, None, &deep, hierarchy, &mut |_| Ok(()));
        assert!(matches!(outcome, Err(EngineError::PromptTooLong { .. })));
    }
}
