//! Retrieval: what backends choose, what they count, and how they fail.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::testing::{WordEmbedder, scratch_memory, scratch_store};
use super::*;

const DAY_MS: i64 = 86_400_000;
const NOW_MS: i64 = 1_000 * DAY_MS;

fn chunk(text: &str) -> Chunk {
    Chunk { title: String::new(), text: text.to_owned() }
}

fn ask(text: &str) -> Question<'_> {
    Question { text, limit: None, budget: None, now_ms: NOW_MS }
}

/// An embedder for which cars and automobiles are the same.
fn embedder() -> Arc<WordEmbedder> {
    Arc::new(WordEmbedder::new(&[&["car", "automobile"], &["repair", "mend"]]))
}

fn memory_of(
    texts: &[&str],
    embedder: Option<Arc<WordEmbedder>>,
) -> (tempfile::TempDir, Arc<Memory>) {
    let embedder = embedder.map(|embedder| embedder as Arc<dyn Embedder>);
    let (folder, memory) = scratch_memory(embedder, Options::default());
    for text in texts {
        memory.add("notes", &[chunk(text)], NOW_MS).unwrap();
    }
    (folder, memory)
}

fn ids(backend: Backend, memory: &Arc<Memory>, question: &Question<'_>) -> Vec<i64> {
    retriever(backend, memory.clone()).retrieve(question).unwrap().ids()
}

const TEXTS: [&str; 4] =
    ["how to mend an automobile", "repair manual", "bread with sesame", "tides and the moon"];

#[test]
fn words_and_meaning_both_count() {
    let (_folder, memory) = memory_of(&TEXTS, Some(embedder()));
    let question = ask("car repair");
    assert_eq!(ids(Backend::Bm25, &memory, &question), [2]);
    assert_eq!(ids(Backend::SimpleRag, &memory, &question)[0], 1);
    let carma = Carma::new(memory.clone()).retrieve(&question).unwrap();
    assert_eq!(carma.ids()[..2], [2, 1], "one is found by both rankings");
    assert_eq!((carma.mode, carma.note.as_deref()), (Mode::Hybrid, None));
    assert_eq!(carma.embedder, Some(("words".to_owned(), "words-1".to_owned())));
    let first = &carma.fragments[1];
    assert_eq!((first.bm25_rank, first.relevant, first.coverage), (None, true, 0.0));
    assert!(first.cosine.unwrap() > 0.5);
}

/// SPEC.md, V9 and V12: nothing is a valid answer, and counts say what they say.
#[test]
fn nothing_relevant_is_nothing() {
    let (_folder, memory) = memory_of(&TEXTS, Some(embedder()));
    for text in ["zeppelin pilots", "", "?!"] {
        let carma = Carma::new(memory.clone()).retrieve(&ask(text)).unwrap();
        assert_eq!((carma.fragments_found, carma.fragments_relevant), (0, 0), "{text}");
    }
    let nearest = SimpleRag::new(memory.clone()).retrieve(&ask("zeppelin pilots")).unwrap();
    assert_eq!((nearest.fragments_found, nearest.fragments_relevant), (4, 0));
    assert_eq!(nearest.mode, Mode::Dense);
    let one = Question { limit: Some(1), ..ask("repair an automobile") };
    let carma = Carma::new(memory).retrieve(&one).unwrap();
    assert_eq!((carma.fragments_found, carma.fragments_relevant), (1, 2));
}

/// SPEC.md, V11.
#[test]
fn without_an_embedder_bm25_answers_and_says_so() {
    let (_folder, memory) = memory_of(&TEXTS, None);
    for backend in [Backend::Carma, Backend::SimpleRag] {
        let answer = retriever(backend, memory.clone()).retrieve(&ask("repair manual")).unwrap();
        assert_eq!((answer.mode, answer.ids()), (Mode::Bm25, vec![2]), "{backend}");
        assert!(answer.note.unwrap().contains("no embedder is present"));
        assert_eq!((answer.backend, answer.embedder), (backend, None));
    }
    let answer = Bm25::new(memory).retrieve(&ask("repair manual")).unwrap();
    assert_eq!((answer.mode, answer.note), (Mode::Bm25, None));
}

#[test]
fn a_broken_embedder_degrades_an_answer_and_refuses_what_is_new() {
    let embedder = embedder();
    let (_folder, memory) = memory_of(&TEXTS, Some(embedder.clone()));
    embedder.broken.store(true, Ordering::Relaxed);
    let answer = Carma::new(memory.clone()).retrieve(&ask("repair manual")).unwrap();
    assert_eq!((answer.mode, answer.ids()), (Mode::Bm25, vec![2]));
    let note = answer.note.unwrap();
    assert!(note.contains("broken by the test") && note.contains("BM25 alone"), "{note}");
    assert!(matches!(memory.add("s", &[chunk("new")], 0), Err(Error::Embedder { .. })));
    // A store that fails is no end either.
    let path = memory.with_store(|store| Ok::<_, Error>(store.path().to_owned())).unwrap();
    let vandal = rusqlite::Connection::open(&path).unwrap();
    vandal.execute_batch("DROP TABLE fragments_fts").unwrap();
    let failed = Bm25::new(memory).retrieve_or_note(&ask("repair manual"));
    assert_eq!((failed.mode, failed.fragments_found), (Mode::Failed, 0));
    assert!(failed.note.unwrap().contains("answered without memory"));
}

#[test]
fn an_embedder_that_breaks_its_promises_is_refused() {
    struct Long;
    impl Embedder for Long {
        fn name(&self) -> &str {
            "long"
        }
        fn digest(&self) -> &str {
            "long"
        }
        fn dim(&self) -> usize {
            2
        }
        fn embed(&self, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
            Ok(texts
                .iter()
                .map(|text| if text.len() > 3 { vec![1.0] } else { vec![f32::NAN; 2] })
                .collect())
        }
    }
    let (_folder, memory) = scratch_memory(Some(Arc::new(Long)), Options::default());
    for text in ["abcd", "abc"] {
        let said = memory.add("s", &[chunk(text)], 0).unwrap_err().to_string();
        assert!(said.contains("length²"), "{said}");
    }
    assert_eq!(memory.with_store(Store::count).unwrap(), 0);
}

#[test]
fn vectors_of_another_embedder_are_never_compared() {
    let (folder, memory) = memory_of(&TEXTS, Some(embedder()));
    let path = memory.with_store(|store| Ok::<_, Error>(store.path().to_owned())).unwrap();
    drop(memory);
    let other = WordEmbedder { digest: "words-2", ..WordEmbedder::new(&[]) };
    let store = Store::open_existing(&path).unwrap();
    let memory = Arc::new(Memory::new(store, Some(Arc::new(other)), Options::default()).unwrap());
    let carma = Carma::new(memory.clone());
    let answer = carma.retrieve(&ask("automobile")).unwrap();
    assert_eq!((answer.mode, answer.embedder), (Mode::Bm25, None));
    assert!(answer.note.unwrap().contains("4 of 4 fragments have no vector"));
    let mut told = Vec::new();
    let mut embedded = |done| {
        told.push(done);
        Ok(())
    };
    assert_eq!(memory.embed_missing(&mut embedded).unwrap(), 4);
    assert_eq!(memory.embed_missing(&mut embedded).unwrap(), 0);
    assert_eq!(told, [4]);
    let answer = carma.retrieve(&ask("automobile")).unwrap();
    assert_eq!((answer.mode, answer.note), (Mode::Hybrid, None));
    assert_eq!(memory.with_store(Store::stats).unwrap().embedders.len(), 2);
    drop(folder);
}

#[test]
fn what_another_process_adds_and_forgets_is_seen() {
    let (_folder, memory) = memory_of(&TEXTS, Some(embedder()));
    let path = memory.with_store(|store| Ok::<_, Error>(store.path().to_owned())).unwrap();
    let store = Store::open_existing(&path).unwrap();
    let other = Memory::new(store, Some(embedder()), Options::default()).unwrap();
    let added = other.add("other", &[chunk("the car is red")], NOW_MS).unwrap()[0].id;
    let question = ask("red automobile");
    assert_eq!(ids(Backend::SimpleRag, &memory, &question)[0], added);
    other.forget(&Selection::Ids(vec![added])).unwrap();
    assert!(!ids(Backend::SimpleRag, &memory, &question).contains(&added));
}

#[test]
fn duplicates_are_given_once() {
    let long: String = (0..60).map(|i| format!("word{i} ")).collect();
    let (folder, memory) = memory_of(&[], None);
    memory.add("a", &[chunk(&long)], NOW_MS).unwrap();
    memory.add("b", &[chunk(&format!("{long} end"))], NOW_MS).unwrap();
    memory.add("c", &[chunk("word1 word2 word3 word4 and others")], NOW_MS).unwrap();
    let answer = Carma::new(memory.clone()).retrieve(&ask("word1 word2 word3")).unwrap();
    assert_eq!((answer.fragments_found, answer.fragments_relevant), (2, 3));
    assert_eq!(ids(Backend::Bm25, &memory, &ask("word1 word2 word3")).len(), 3);
    drop(folder);
}

#[test]
fn the_budget_is_kept_and_a_shorter_fragment_still_fits() {
    let (_folder, memory) = memory_of(
        &["tide one two three four five", "tide table six", "high tide seven eight"],
        None,
    );
    let count = |text: &str| text.split_whitespace().count();
    let asked = |tokens| Question { budget: Some(Budget { tokens, count: &count }), ..ask("tide") };
    let carma = Carma::new(memory.clone());
    let all = carma.retrieve(&asked(100)).unwrap();
    assert_eq!(all.fragments_found, 3);
    assert!(all.fragments.iter().all(|hit| hit.tokens == Some(count(&hit.text))));
    for tokens in 0..14 {
        for backend in Backend::ALL {
            let answer = retriever(backend, memory.clone()).retrieve(&asked(tokens)).unwrap();
            let used: usize = answer.fragments.iter().map(|hit| hit.tokens.unwrap()).sum();
            assert!(used <= tokens, "{backend} {used} {tokens}");
            assert_eq!(answer.fragments_relevant, 3);
        }
    }
    assert_eq!(carma.retrieve(&asked(6)).unwrap().fragments_found, 1);
    assert_eq!(carma.retrieve(&asked(7)).unwrap().fragments_found, 2);
}

#[test]
fn recency_and_use_break_what_is_nearly_a_tie() {
    let (_folder, memory) = memory_of(&[], None);
    assert_eq!(memory.options().use_weight, 0.05);
    let texts = ["the ferry leaves at nine", "the ferry leaves at ten", "the ferry leaves at five"];
    for (text, day) in texts.iter().zip([0, 999, 0]) {
        memory.add("notes", &[chunk(text)], day * DAY_MS).unwrap();
    }
    assert_eq!(ids(Backend::Carma, &memory, &ask("ferry"))[0], 2, "it is recent");
    // Long after, age says nothing, and use does.
    let later = Question { now_ms: 5_000 * DAY_MS, ..ask("ferry") };
    assert_eq!(ids(Backend::Carma, &memory, &later)[0], 1);
    for _ in 0..32 {
        memory.record_use(&[3], 1).unwrap();
    }
    assert_eq!(ids(Backend::Carma, &memory, &later)[0], 3);
    let before = ids(Backend::Bm25, &memory, &later);
    assert_eq!(before, [1, 2, 3], "a baseline knows neither");
    assert_eq!(memory.with_store(Store::count).unwrap(), 3, "and nothing is deleted");
}

/// SPEC.md, V13: what served together is found together.
#[test]
fn links_raise_what_was_used_together() {
    let texts = ["ferry timetable", "ferry fares", "ferry history", "ferry museum"];
    let options = Options { link_weight: 1.0, ..Options::default() };
    let (_folder, memory) = scratch_memory(None, options);
    for text in texts {
        memory.add("notes", &[chunk(text)], 0).unwrap();
    }
    let question = ask("ferry timetable");
    let before = ids(Backend::Carma, &memory, &question);
    assert_eq!(before[0], 1);
    memory.record_use(&[1, 4], 1).unwrap();
    let question = ask("ferry");
    assert_eq!(ids(Backend::Carma, &memory, &question)[..2], [4, 1]);
    let fragment = memory.with_store(|store| store.fragment(4)).unwrap().unwrap();
    assert_eq!((fragment.uses, fragment.used_ms), (1, Some(1)));
}

#[test]
fn similar_fragments_are_linked_when_they_are_stored() {
    let (_folder, memory) = memory_of(
        &["mend the car", "repair the automobile", "bread with sesame"],
        Some(embedder()),
    );
    let links = |id| memory.with_store(|store| store.links(id)).unwrap();
    assert_eq!((links(1).len(), links(1)[0].0, links(3).len()), (1, 2, 0));
    assert!(links(1)[0].1 > 0.9);
}

/// SPEC.md, V14.
#[test]
fn the_same_question_has_the_same_answer() {
    let (_folder, memory) = memory_of(&TEXTS, Some(embedder()));
    let carma = Carma::new(memory.clone());
    let question = ask("repair the car, bread, moon");
    let first = carma.retrieve(&question).unwrap();
    assert!(first.fragments_found > 1);
    for _ in 0..5 {
        assert_eq!(carma.retrieve(&question).unwrap(), first);
    }
}

#[test]
fn a_retriever_serves_several_threads() {
    let (_folder, memory) = memory_of(&TEXTS, Some(embedder()));
    let retriever = &*retriever(Backend::Carma, memory.clone());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(retriever.retrieve(&ask("car repair")).unwrap().ids()[0], 2));
        }
    });
}

#[test]
fn the_default_store_follows_the_environment_in_order() {
    let mut vars: Vec<(&str, &str)> = vec![];
    let place = |vars: &[(&str, &str)]| {
        default_store_of(|name| Some(vars.iter().find(|(key, _)| *key == name)?.1.into()))
    };
    assert_eq!(place(&vars), None);
    for (key, value, want) in [
        ("HOME", "/h", "/h/.local/share/aios/memory.sqlite3"),
        ("XDG_DATA_HOME", "/x", "/x/aios/memory.sqlite3"),
        ("AIOS_DATA_DIR", "/a", "/a/memory.sqlite3"),
    ] {
        vars.push((key, value));
        assert_eq!(place(&vars), Some(want.into()));
    }
    let (_folder, store) = scratch_store();
    let bad = Options { limit: 0, ..Options::default() };
    assert!(matches!(Memory::new(store, None, bad), Err(Error::Option { field: "limit", .. })));
}
