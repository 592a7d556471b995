//! Records through results and manuscript, and what must be refused.

use std::collections::BTreeMap;
use std::fs;

use super::manuscript::{CELL, Filled, fill};
use super::testing::{log, requests};
use super::{Goldens, Options, Results, ResultsError, markdown, read, write};
use crate::provenance::{ExecutionMode, Request, Tier};

const TEMPLATE: &str = include_str!("../../validation/data/manuscript_template.md");

fn results(requests: Vec<Request>, options: &Options) -> Result<Results, ResultsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = log(folder.path(), requests);
    read(&[path], &Goldens::read(None).unwrap(), options)
}

fn refusal(requests: Vec<Request>) -> String {
    let error = results(requests, &Options::default()).unwrap_err().to_string();
    // The log is in a folder whose name is another each time.
    match error.split_once(" of ") {
        Some((record, rest)) if record.starts_with("record ") => {
            format!("{record}: {}", rest.split_once(".ndjson").unwrap().1)
        }
        _ => error,
    }
}

fn mixed() -> Options {
    Options { allow_mixed: true, ..Options::default() }
}

#[test]
fn records_become_a_report() {
    let mut requests = requests(&["LLaMA", "Qwen"]);
    // One prompt of the higher tier is given another in one of its repeats.
    let of = |r: &Request| r.bench.as_ref().is_some_and(|b| b.prompt == "g011" && b.repeat == 1);
    requests.iter_mut().find(|r| of(r)).unwrap().router_tier = Some(Tier::Moderate);
    let results = results(requests, &Options::default()).unwrap();
    insta::assert_snapshot!(markdown(&results));
}

#[test]
fn files_are_written_and_are_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let results = results(requests(&["LLaMA"]), &Options::default()).unwrap();
    let once = write(&results, folder.path()).unwrap();
    let bytes = |files: &[std::path::PathBuf]| -> Vec<Vec<u8>> {
        files.iter().map(|path| fs::read(path).unwrap()).collect()
    };
    let before = bytes(&once.files);
    assert_eq!(bytes(&write(&results, folder.path()).unwrap().files), before);
    let names: Vec<_> = once.files.iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    for name in ["RESULTS.md", "latency.csv", "latency.svg", "latency.png", "routing.png"] {
        assert!(names.contains(&name.into()), "{name}: {names:?}");
    }
    let csv = fs::read_to_string(folder.path().join("latency.csv")).unwrap();
    let heads = "execution_mode,git_rev,family,layer,backend,warmth,n,latency_ms_p50,\
                 latency_ms_p50_low,latency_ms_p50_high,latency_ms_p95,";
    assert!(csv.starts_with(heads), "{csv}");
    assert_eq!(csv.lines().count(), 1 + 8);
    assert!(csv.lines().skip(1).all(|line| line.starts_with("mock,8ac42e2f0123,LLaMA,")));
}

#[test]
fn a_record_that_lacks_a_figure_is_refused() {
    type Plant = fn(&mut Request);
    let plants: [(Plant, &str); 13] = [
        (|r| r.router_tier = None, "router_tier"),
        (|r| r.latency_ms = None, "latency_ms"),
        (|r| r.latency_ms = Some(-1.0), "latency_ms is -1"),
        (|r| r.retrieval = None, "retrieval"),
        (|r| r.retrieval.as_mut().unwrap().fragments_found = None, "fragments_found"),
        (|r| r.retrieval.as_mut().unwrap().fragments_relevant = None, "fragments_relevant"),
        (|r| r.layer = None, "layer"),
        (|r| r.mb_per_token = None, "mb_per_token"),
        (|r| r.mb_per_token.as_mut().unwrap().source = "guessed".to_owned(), "guessed"),
        (|r| r.phases.decode_ms = None, "decode_ms"),
        (|r| r.spec_decode = None, "spec_decode"),
        (|r| r.router.as_mut().unwrap().forced = true, "forced"),
        (|r| r.bench.as_mut().unwrap().warm = None, "bench.warm"),
    ];
    for (plant, wanted) in plants {
        let mut requests = requests(&["LLaMA"]);
        plant(&mut requests[7]);
        let said = refusal(requests);
        assert!(said.starts_with("record 8") && said.contains(wanted), "{wanted}: {said}");
    }
    let mut drafted = requests(&["LLaMA"]);
    drafted[170].spec_decode.as_mut().unwrap().accept_rate = None;
    assert!(refusal(drafted).contains("accept_rate"), "a rate that was not taken is no rate");
}

#[test]
fn a_label_is_there_and_the_same_or_nothing_is_compared() {
    let mut unknown = requests(&["LLaMA"]);
    unknown[0].bench.as_mut().unwrap().prompt = "g999".to_owned();
    assert!(refusal(unknown).contains("\"g999\" has no label"));
    let mut relabelled = requests(&["LLaMA"]);
    relabelled[0].bench.as_mut().unwrap().expected_tier = Some(Tier::High);
    assert!(refusal(relabelled).contains("was another"));
    // A record without a label of its own has that of the prompts.
    let mut bare = requests(&["LLaMA"]);
    bare[0].bench.as_mut().unwrap().expected_tier = None;
    assert!(results(bare, &Options::default()).is_ok());
}

#[test]
fn modes_and_revisions_are_not_mixed_unless_told_to() {
    let mut modes = requests(&["LLaMA", "Phi"]);
    let of_phi = |r: &&mut Request| r.bench.as_ref().unwrap().family.as_deref() == Some("Phi");
    modes.iter_mut().filter(of_phi).for_each(|r| r.execution_mode = ExecutionMode::Synthetic);
    assert!(refusal(modes.clone()).contains("mock, revision 8ac42e2f0123"));
    let report = markdown(&results(modes.clone(), &mixed()).unwrap());
    for chapter in ["## Synthetic, revision", "## Mock, revision", "not comparable"] {
        assert!(report.contains(chapter), "{report}");
    }
    let only = Options { mode: Some(ExecutionMode::Synthetic), ..Options::default() };
    assert_eq!(results(modes, &only).unwrap().strata.len(), 1);
    let mut revisions = requests(&["LLaMA"]);
    revisions[3].git_rev = Some("1234567".to_owned());
    assert!(refusal(revisions).contains("revision 1234567"));
    let mut dirty = requests(&["LLaMA"]);
    dirty[3].dirty_tree = Some(true);
    assert!(refusal(dirty).contains("+changes"));
}

#[test]
fn a_case_counts_once() {
    let mut twice = requests(&["LLaMA"]);
    twice.push(twice[5].clone());
    let said = refusal(twice);
    assert!(said.contains("are both of LLaMA, luna, carma, g002, warm 1 of the run"), "{said}");
    // What failed and was asked again is answered; what failed alone is said.
    let mut again = requests(&["LLaMA"]);
    let failed = Request { error: Some("no memory".to_owned()), ..again[5].clone() };
    again.insert(0, failed.clone());
    let answered = results(again, &Options::default()).unwrap();
    let stratum = answered.strata.values().next().unwrap();
    assert_eq!((stratum.unanswered, stratum.answers.len()), (0, 180));
    let mut alone = requests(&["LLaMA"]);
    alone[5] = failed;
    let unanswered = results(alone, &Options::default()).unwrap();
    assert!(unanswered.notes.iter().any(|note| note.contains("have no answer: 1 (mock")));
}

#[test]
fn a_log_that_was_changed_is_refused_and_so_is_one_without_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = log(folder.path(), requests(&["LLaMA"]));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"latency_ms\":310.0", "\"latency_ms\":31.0", 1)).unwrap();
    let error = read(&[path], &Goldens::read(None).unwrap(), &Options::default()).unwrap_err();
    assert!(matches!(error, ResultsError::Broken { .. }), "{error}");
    let none = results(vec![super::testing::request()], &Options::default()).unwrap_err();
    assert!(none.to_string().starts_with("none of 1 records"), "{none}");
    let other = Options { bench: Some("other".to_owned()), ..Options::default() };
    assert!(results(requests(&["LLaMA"]), &other).unwrap_err().to_string().contains("other"));
}

fn filled(template: &str, requests: Vec<Request>) -> Result<Filled, ResultsError> {
    fill(template, &results(requests, &mixed()).unwrap(), &BTreeMap::new())
}

#[test]
fn a_manuscript_is_filled() {
    let mut requests = requests(&["LLaMA", "Qwen", "Gemma", "Phi"]);
    for request in &mut requests {
        let phi = request.bench.as_ref().unwrap().family.as_deref() == Some("Phi");
        let mode = if phi { ExecutionMode::Synthetic } else { ExecutionMode::Real };
        request.execution_mode = mode;
    }
    let all = filled(TEMPLATE, requests.clone()).unwrap();
    assert!(!all.text.contains(CELL), "{}", all.text);
    assert!(all.notes[0].contains("consistent would be wrong"), "{:?}", all.notes);
    insta::assert_snapshot!(all.text);
    // Random weights are no results of a real model.
    let only = Options { mode: Some(ExecutionMode::Real), ..Options::default() };
    let real = results(requests, &only).unwrap();
    let error = fill(TEMPLATE, &real, &BTreeMap::new()).unwrap_err();
    let ResultsError::Unfilled { unfilled } = &error else { panic!("{error}") };
    assert!(unfilled.iter().all(|cell| cell.contains("Phi")), "{unfilled:?}");
    assert_eq!(unfilled.len(), 3 + 4 + 4, "every cell of Phi: {unfilled:?}");
}

#[test]
fn a_cell_without_a_value_is_named() {
    let table = "# 3.1 Routing accuracy\n\n| Family | Trivial | Quick |\n|---|---|---|\n\
                 | LLaMA | [AUTO-GENERATED] | [AUTO-GENERATED] |\n";
    for (template, wanted) in [
        (table, "Routing accuracy / LLaMA / Quick"),
        ("## Colours\n\n| a | b |\n|--|--|\n| x | [AUTO-GENERATED] |", "Colours / x / b"),
        ("## Latency\n\nIt took [AUTO-GENERATED] ms.", "after \"It took\""),
        ("- Disk: [MODEL]", "nothing of that name"),
        ("## Retrieval\n\nMedian `fragments` = [AUTO-GENERATED]", "no value is known"),
    ] {
        let error = filled(template, requests(&["LLaMA"])).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    // Two revisions give two values, and neither is chosen.
    let mut revisions = requests(&["LLaMA"]);
    revisions[3].git_rev = Some("1234567".to_owned());
    let trivial = table.replace("Quick", "High");
    let error = filled(&trivial, revisions).unwrap_err().to_string();
    assert!(error.contains("2 modes or revisions"), "{error}");
}

#[test]
fn what_is_no_result_is_given_or_left() {
    let template = "See [REPO_URL] and `[AUTO-GENERATED]`.\n```\nclone [REPO_URL]\n```\n\
                    *Replace [AUTO-GENERATED] cells.*\n";
    let results = results(requests(&["LLaMA"]), &Options::default()).unwrap();
    let left = fill(template, &results, &BTreeMap::new()).unwrap();
    assert_eq!(left.left, ["[REPO_URL]", "[REPO_URL]"]);
    let given = BTreeMap::from([("REPO_URL".to_owned(), "https://example.org".to_owned())]);
    let filled = fill(template, &results, &given).unwrap();
    let wanted = "See https://example.org and `[AUTO-GENERATED]`.\n```\nclone \
                  https://example.org\n```\n";
    assert_eq!(filled.text, wanted);
}
