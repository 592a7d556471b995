//! The plan, and going through it with answers that no model has given.

use super::*;
use crate::provenance::{Bench, Layer, Log, Record, Retrieval};
use crate::results::testing::request;
use crate::results::{Goldens, Options as ResultsOptions, markdown, read};

fn options() -> Options {
    let mut families = families();
    families.truncate(2);
    Options { families, repeats: 2, ..Options::default() }
}

fn goldens() -> Goldens {
    Goldens::read(None).unwrap()
}

/// Appends what it is asked; the case of number `fails` goes without its memory.
struct Mock {
    log: Log,
    asked: usize,
    fails: Option<usize>,
    mistaken: bool,
}

impl Mock {
    fn new(path: &std::path::Path) -> Self {
        let log = Log::open(path, 64 << 20).unwrap();
        Self { log, asked: 0, fails: None, mistaken: false }
    }
}

impl Answers for Mock {
    fn answer(&mut self, case: &Case) -> anyhow::Result<Record> {
        let mut request = request();
        request.bench = Some(Bench {
            run: case.run.clone(),
            prompt: case.prompt.id.clone(),
            family: Some(case.family.name.clone()),
            expected_tier: Some(case.prompt.tier),
            repeat: case.repeat,
            warm: Some(case.warm != self.mistaken),
        });
        request.layer =
            Some(Layer { name: case.layer.clone(), persona: None, dropped_messages: None });
        request.router_tier = Some(case.prompt.tier);
        request.retrieval = Some(Retrieval {
            backend: case.backend.clone(),
            fragments_found: Some(1),
            fragments_relevant: Some(1),
            dense: None,
            fragments: vec![],
            ms: None,
            degraded: (self.fails == Some(self.asked)).then(|| "the store is locked".to_owned()),
        });
        request.spec_decode = Some(Default::default());
        request.phases.decode_ms = Some(5.0);
        request.mb_per_token = Some(crate::provenance::Figure::counted(80.0));
        request.latency_ms = Some(2000.0);
        self.asked += 1;
        let receipt = self.log.append(request.clone())?;
        Ok(Record { schema: 1, id: receipt.id, prev_sha256: None, request })
    }
}

#[test]
fn every_combination_is_asked_and_models_are_loaded_seldom() {
    let cases = cases(&options(), &goldens());
    assert_eq!(cases.len(), 2 * 2 * 2 * 15 * (1 + 2));
    let families: Vec<&str> = cases.iter().map(|case| &*case.family.name).collect();
    assert_eq!(families.chunk_by(|a, b| a == b).count(), 2);
    let mut keys: Vec<String> = cases.iter().map(|case| format!("{case:?}")).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), cases.len());
}

#[test]
fn a_run_goes_on_where_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("provenance.ndjson");
    let plan = || plan_done(cases(&options(), &goldens()), &path).unwrap();
    assert_eq!((plan().open.len(), plan().done), (360, 0));
    assert_eq!(plan().estimate_s(), (360.0 * SECONDS_PER_CASE, false));
    let mut mock = Mock { fails: Some(3), ..Mock::new(&path) };
    let tally = run(&plan().open, &mut mock, &mut |_, done, all| {
        assert_eq!(all, 360);
        done < 100
    });
    let tally = tally.unwrap();
    assert_eq!((tally.answered, tally.failed.len()), (99, 1));
    assert!(tally.failed[0].contains("LLaMA, luna, carma, g004: the store is locked"));
    let rest = plan();
    assert_eq!((rest.open.len(), rest.done), (261, 99));
    // Answers of the first family are measured, those of the second are not.
    assert_eq!(rest.estimate_s(), (81.0 * 2.0 + 180.0 * SECONDS_PER_CASE, false));
    run(&rest.open, &mut mock, &mut |_, _, _| true).unwrap();
    assert_eq!((plan().open.len(), plan().done, mock.asked), (0, 360, 361));
    // Another run begins anew.
    let other = Options { run: "other".to_owned(), ..options() };
    assert_eq!(plan_done(cases(&other, &goldens()), &path).unwrap().open.len(), 360);
    // What was recorded is what results are made of.
    let results =
        read(std::slice::from_ref(&path), &goldens(), &ResultsOptions::default()).unwrap();
    assert_eq!(results.strata.values().next().unwrap().answers.len(), 360);
    assert!(markdown(&results).contains("of which 0 cases were never answered"));
}

#[test]
fn a_record_of_another_case_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut mock = Mock { mistaken: true, ..Mock::new(&folder.path().join("p.ndjson")) };
    let cases = cases(&options(), &goldens());
    let error = run(&cases, &mut mock, &mut |_, _, _| true).unwrap_err().to_string();
    assert!(error.contains("record 1 is not the answer to LLaMA, luna, carma, g001"), "{error}");
    assert_eq!(mock.asked, 1);
}

#[test]
fn options_are_checked() {
    assert_eq!(Options::default().check(), Ok(()));
    let twice = [families(), families()].concat();
    for (options, wanted) in [
        (Options { layers: vec!["lunar".to_owned()], ..options() }, "lunar"),
        (Options { backends: vec![], ..options() }, "backends is empty"),
        (Options { families: twice, ..options() }, "twice"),
        (Options { tokens: 0, ..options() }, "tokens is 0"),
        (Options { repeats: 0, cold: 0, ..options() }, "nothing would be asked"),
    ] {
        assert!(options.check().unwrap_err().contains(wanted), "{wanted}");
    }
    let models: Vec<usize> = families().iter().map(|family| family.models().len()).collect();
    assert_eq!(models, [1, 2, 1, 1]);
}
