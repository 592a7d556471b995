//! What telemetry says of a plan that is followed.

use super::*;
use crate::types::AIOS_PLAN_ON;
use aios_validation::profile::{self, ProfileOptions};

const TOKENS: usize = 6;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models/micro-relu-q8.gguf")
}

/// The plan of the model, in `folder`.
fn profile(folder: &Path) {
    let model = Model::load(&path()).expect("a model");
    let options =
        ProfileOptions { generate: 6, tokens: 24, ..ProfileOptions::new(plan_hardware()) };
    let compute = ExecutorOptions::new(options.context());
    profile::run(&model, &compute, None, &options, folder, &mut |_, _, _| true).expect("a plan");
}

fn context(plan: u32, folder: Option<&Path>) -> Context {
    let options = Options { plan, weights: AIOS_WEIGHTS_STORED, positions: 64, ..zeroed() };
    Context::open(&path(), &options, folder.map(Path::to_owned)).expect("a context")
}

/// Greedy ids behind a text.
fn follow(context: &Context) -> Vec<u32> {
    let ids = context.tokenize("Once upon a time").expect("ids");
    let mut out = vec![context.read(&ids).expect("an id")];
    while out.len() < TOKENS {
        out.push(context.read(&out[out.len() - 1..]).expect("an id"));
    }
    out
}

#[test]
fn rows_that_were_not_read_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    profile(folder.path());
    let plain = context(AIOS_PLAN_OFF, None);
    let ids = follow(&plain);
    assert_eq!(plain.telemetry().expect("numbers").rows_skipped, 0);
    let planned = context(AIOS_PLAN_ON, Some(folder.path()));
    assert_eq!(follow(&planned), ids, "the plan changes nothing");
    assert!(planned.on.contains(&"plan") && planned.on.contains(&"screen"), "{:?}", planned.on);
    let telemetry = planned.telemetry().expect("numbers");
    // The same passes, and what they read of head and neurons by the ledger: rows of one size.
    let executor = planned.executor().expect("no fault before");
    let (screen, zeros) = (executor.screen_stats(), executor.zero_stats());
    assert_eq!((screen.positions, screen.whole), (TOKENS as u64, 0));
    let head = screen.positions * planned.model.config().vocab as u64 - screen.rows;
    assert_eq!(telemetry.rows_skipped, head + zeros.up_skipped + zeros.down_skipped);
    assert!(head > 0 && screen.rows > 0, "{screen:?}");
    let down = zeros.neurons - zeros.active;
    assert!(zeros.down_skipped <= down && zeros.up_skipped <= zeros.neurons, "{zeros:?}");
    drop(executor);
    planned.executor().expect("no fault before").reset_ledger();
    assert_eq!(planned.telemetry().expect("numbers").rows_skipped, 0);
}
