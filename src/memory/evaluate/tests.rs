//! The evaluation itself: what it finds, and that it cannot be fooled.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::memory::testing::WordEmbedder;

/// One question of each class, made of the parts that differ.
fn questions() -> String {
    let line = |id, split, class, question, gold| {
        format!(
            "{{\"id\":\"{id}\",\"split\":\"{split}\",\"class\":\"{class}\",\
             \"question\":\"{question}\",\"gold\":[{gold}]}}\n"
        )
    };
    let passage =
        |document, quote| format!("{{\"document\":\"{document}\",\"quote\":\"{quote}\"}}");
    let ferry = passage("ferry.md", "leaves at  nine");
    let works = passage("sub/works.md", "repair of an automobile");
    let both = format!(
        "{},{}",
        passage("ferry.md", "leaves at nine"),
        passage("moon.txt", "The moon pulls")
    );
    [
        line("a", "development", "words", "when does the ferry leave", &ferry),
        line("b", "held_out", "paraphrase", "mend a car", &works),
        line("c", "held_out", "several", "ferry and moon", &both),
        line("d", "held_out", "unanswerable", "zeppelin", &String::new()),
    ]
    .concat()
}

fn folder_of(questions: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let documents = folder.path().join("documents");
    fs::create_dir_all(documents.join("sub")).unwrap();
    for (name, text) in [
        ("ferry.md", "# Ferry\n\nThe ferry leaves at\nnine.\n\n# Other\n\nBread with sesame."),
        ("sub/works.md", "The repair of an automobile."),
        ("moon.txt", "The moon pulls at the sea."),
    ] {
        fs::write(documents.join(name), text).unwrap();
    }
    let path = folder.path().join("questions.jsonl");
    fs::write(&path, questions).unwrap();
    (folder, documents, path)
}

fn run(questions: &str, embedder: Option<Arc<dyn Embedder>>) -> Result<Report, Error> {
    let (folder, documents, path) = folder_of(questions);
    let asked = read_questions(&path)?;
    let store = folder.path().join("store");
    let options = Options::default();
    evaluate((&store, &documents), &asked, embedder, &options, &mut |_, _| Ok(()))
}

fn embedder() -> Option<Arc<dyn Embedder>> {
    Some(Arc::new(WordEmbedder::new(&[&["car", "automobile"], &["mend", "repair"]])))
}

fn ndcg(report: &Report, part: Part, backend: Backend) -> f64 {
    let row = report.rows.iter().find(|row| row.part == part && row.backend == backend).unwrap();
    row.scores.ndcg_at_10
}

#[test]
fn known_passages_are_found_and_counted() {
    let report = run(&questions(), embedder()).unwrap();
    assert_eq!((report.documents, report.fragments, report.questions), (3, 4, 4));
    assert_eq!(report.carma_is_not_below, Some(true));
    let paraphrase = Part::Class(Class::Paraphrase);
    assert_eq!(ndcg(&report, paraphrase, Backend::Carma), 1.0);
    assert_eq!(ndcg(&report, paraphrase, Backend::Bm25), 0.0);
    assert_eq!(ndcg(&report, Part::Class(Class::Words), Backend::Bm25), 1.0);
    let over_bm25 =
        report.differences.iter().find(|d| d.part == paraphrase && d.other == Backend::Bm25);
    assert_eq!(over_bm25.unwrap().ndcg_at_10.mean, 1.0);
    let silent: Vec<_> = report.silence.iter().map(|s| (s.backend, s.unanswerable.1)).collect();
    assert_eq!(silent, [(Backend::Carma, 1), (Backend::SimpleRag, 0), (Backend::Bm25, 1)]);
    let text = report.markdown();
    assert!(
        text.contains("| held out | 2 | carma |") && text.contains("embedder: words"),
        "{text}"
    );
}

/// Without an embedder nothing is claimed about Simple_RAG, and the criterion is not met.
#[test]
fn what_cannot_be_measured_is_missing() {
    let report = run(&questions(), None).unwrap();
    assert_eq!(report.carma_is_not_below, None);
    assert!(report.rows.iter().all(|row| row.backend != Backend::SimpleRag));
    let broken = WordEmbedder::new(&[]);
    broken.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(run(&questions(), Some(Arc::new(broken))), Err(Error::Embedder { .. })));
}

#[test]
fn faulty_questions_are_errors() {
    let line = |from: &str, to: &str| questions().replacen(from, to, 1);
    for (questions, said) in [
        (line("leaves at  nine", "leaves at noon"), "no fragment of ferry.md contains"),
        (line("moon.txt", "sun.txt"), "no fragment of sun.txt contains"),
        (line("\"id\":\"b\"", "\"id\":\"a\""), ":2: its id is that of an earlier question"),
        (line("\"class\":\"words\"", "\"class\":\"unanswerable\""), "exactly if it is answerable"),
        (line("\"class\":\"words\"", "\"class\":\"several\""), "exactly if its class is 'several'"),
        (line("\"gold\":[]", "\"golds\":[]"), "unknown field"),
        (line("leaves at  nine", "nine"), "less than 8 characters"),
        (line("zeppelin", " "), "asks nothing"),
        (
            line(
                "\"moon.txt\",\"quote\":\"The moon pulls",
                "\"ferry.md\",\"quote\":\"The ferry leaves",
            ),
            "and another gold passage",
        ),
        (String::new(), "it has no question"),
    ] {
        let error = run(&questions, embedder()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// The project's own questions: every gold passage is where it is said to be.
#[test]
fn the_projects_questions_are_sound() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("validation/data");
    let asked = read_questions(&data.join("memory_questions.jsonl")).unwrap();
    let count = |class| asked.iter().filter(|asked| asked.class == class).count();
    let answerable = asked.len() - count(Class::Unanswerable);
    assert!(answerable >= 110, "{answerable}");
    for class in [Class::Words, Class::Paraphrase, Class::Several, Class::Unanswerable] {
        assert!(count(class) >= 10, "{class:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (store, documents) = (folder.path().join("store"), data.join("memory_docs"));
    let options = Options::default();
    let report =
        evaluate((&store, &documents), &asked, None, &options, &mut |_, _| Ok(())).unwrap();
    // With words alone CARMA is BM25 with a threshold, which must cost next to nothing.
    let bm25 = ndcg(&report, Part::All, Backend::Bm25);
    let carma = ndcg(&report, Part::All, Backend::Carma);
    assert!(bm25 > 0.5 && carma > bm25 - 0.05, "{bm25} {carma}");
}
