//! SPEC O7 under load: two sessions in two threads converse while the model that serves them is
//! swapped again and again, and no answer is lost or comes from two models. Has its own `main`,
//! because a chat template is rendered by a child process, which is this program again.

mod templated;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use aios::chat::{Message, Responder, Role, Settings};
use aios::config::{Bytes, ModelEntry, ModelRole};
use aios::registry::{
    Backend, Direct, Lease, Local, Options, Registry, RegistryError, SessionOptions, Unloaded,
};
use templated::templated;

/// Swaps while both threads converse.
const SWAPS: usize = 60;
const SESSION: SessionOptions = SessionOptions { context: Some(256), threads: Some(1), ram: None };

fn main() {
    aios_engine::template::run_child_if_asked();
    let tests: [(&str, fn()); 4] = [
        ("conversations_share_what_they_begin_with", conversations_share),
        ("people_share_nothing_of_what_they_say", people_share_nothing),
        ("a_session_goes_on_while_its_model_is_swapped", a_session_goes_on),
        ("no_request_is_dropped_by_swaps_under_load", no_request_is_dropped),
    ];
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if std::env::args().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    for (name, test) in tests {
        if filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

/// Two models, one that is damaged, and memory for one of the two.
fn registry(folder: &Path) -> Registry {
    let entry = |name: &str, file: PathBuf| ModelEntry::of_file(name, ModelRole::Main, file);
    let damaged = folder.join("damaged.gguf");
    fs::write(&damaged, "GGUF and no more").unwrap();
    let [a, b] = ["micro-llama-q4km", "micro-qwen2-q4km"].map(|micro| templated(micro, folder));
    let memory = [&a, &b].map(|path| fs::metadata(path).unwrap().len()).into_iter().max();
    let options = Options { memory: memory.map(Bytes) };
    let entries = [entry("a", a), entry("b", b), entry("damaged", damaged)];
    Registry::new(&entries, &options, Box::new(Local::new(Direct, None))).unwrap()
}

fn settings(max_tokens: u32) -> Settings {
    Settings {
        temp: 0.0,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.0,
        seed: 1,
        max_tokens: Some(max_tokens),
        ignore_eos: true,
    }
}

/// Two answers of one conversation.
fn converse(responder: &mut dyn Responder) -> String {
    let mut messages = Vec::new();
    for question in ["Once upon a time", "and then"] {
        messages.push(Message::new(Role::User, question));
        let never = AtomicBool::new(false);
        let answer = responder.respond(&messages, &settings(6), &never, &mut |_| Ok(()));
        messages.push(Message::new(Role::Assistant, answer.expect("an answer").text));
    }
    messages.into_iter().map(|message| message.content).collect::<Vec<_>>().join("\n")
}

/// What each model answers when nobody disturbs it.
fn undisturbed(registry: &Registry) -> BTreeMap<String, String> {
    let answers = ["a", "b"].map(|name| {
        let lease = registry.acquire_named(name).unwrap();
        (name.to_owned(), converse(&mut *lease.open(&SESSION).unwrap()))
    });
    let answers = BTreeMap::from(answers);
    assert_ne!(answers["a"], answers["b"], "the models must be told apart by their answers");
    answers
}

/// How many tokens of the prompt of a new conversation were there already, and how many it has.
fn begin(registry: &Registry, messages: &[Message]) -> (String, u64, u64) {
    let lease = registry.acquire_named("a").unwrap();
    let options = SessionOptions { context: Some(640), ..SESSION };
    let mut session = lease.open(&options).unwrap();
    let never = AtomicBool::new(false);
    let answer = session.respond(messages, &settings(6), &never, &mut |_| Ok(())).unwrap();
    session.forget();
    (answer.text, answer.stats.reused_tokens, answer.stats.prompt_tokens)
}

/// Instructions that every conversation begins with are read by the first two, and then no more.
fn conversations_share() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (registry(folder.path()), registry(folder.path()));
    let instructions = "You tell stories about the sea. ".repeat(4);
    let ask = |registry: &Registry, question: &str| {
        let system = Message::new(Role::System, &*instructions);
        let (answer, reused, _) = begin(registry, &[system, Message::new(Role::User, question)]);
        (answer, reused)
    };
    let questions = ["Who sails?", "What is below?", "Where does it end?", "Who sails?"];
    let reused: Vec<u64> = questions.map(|question| ask(&one, question).1).to_vec();
    assert_eq!(reused[..2], [0, 0]);
    assert!(reused[2] >= 64 && reused[3] == reused[2], "{reused:?}");
    // The third answer is what the first of another registry is.
    assert_eq!(ask(&one, questions[2]).0, ask(&other, questions[2]).0);
    // Who asks the same at length has no more in common than who asks something else.
    let long = "Who sails on the sea at night, and why? ".repeat(6);
    let again: Vec<u64> = (0..3).map(|_| ask(&one, &long).1).collect();
    assert_eq!(again, [reused[2]; 3]);
}

/// Without instructions two people have nothing in common, whatever they say.
fn people_share_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let said = [Message::new(Role::User, "My name is a secret of mine. ".repeat(12))];
    for _ in 0..4 {
        let (_, reused, tokens) = begin(&registry, &said);
        assert!(reused == 0 && tokens >= 128, "{reused} of {tokens}");
    }
}

fn a_session_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let expected = undisturbed(&registry);
    let lease = registry.acquire(ModelRole::Main).unwrap();
    assert_eq!(lease.name(), "a");
    let mut session = lease.open(&SESSION).unwrap();
    let (first_piece, wait) = mpsc::channel();
    let (go_on, swapped) = mpsc::channel();
    let answering = thread::spawn(move || {
        let messages = [Message::new(Role::User, "Once upon a time")];
        let mut pieces = 0;
        let mut emit = |_: &str| {
            pieces += 1;
            if pieces == 1 {
                first_piece.send(()).unwrap();
                // The rest of the answer comes after the swap.
                swapped.recv_timeout(Duration::from_secs(60)).expect("a swap");
            }
            Ok(())
        };
        let never = AtomicBool::new(false);
        let answer = session.respond(&messages, &settings(6), &never, &mut emit).unwrap();
        drop(lease);
        answer.text
    });
    wait.recv_timeout(Duration::from_secs(60)).expect("an answer begins");
    let error = registry.swap(ModelRole::Main, "damaged").unwrap_err();
    assert!(matches!(error, RegistryError::Load { .. }), "{error}");
    assert_eq!(registry.serving(ModelRole::Main).as_deref(), Some("a"));
    registry.swap(ModelRole::Main, "b").unwrap();
    assert_eq!(registry.unload("a").unwrap(), Unloaded::NotLoaded, "memory holds one model");
    assert_eq!(registry.acquire(ModelRole::Main).unwrap().name(), "b");
    go_on.send(()).unwrap();
    let answer = answering.join().expect("the answer is whole");
    let whole = format!("Once upon a time\n{answer}\nand then\n");
    assert!(expected["a"].starts_with(&whole), "{answer:?} of {:?}", expected["a"]);
}

fn no_request_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(folder.path());
    let expected = undisturbed(&registry);
    let (ended, served) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let lease: Lease<dyn Backend> =
                        registry.acquire(ModelRole::Main).expect("a model serves at every moment");
                    let mut session = lease.open(&SESSION).expect("a session");
                    assert_eq!(converse(&mut *session), expected[lease.name()]);
                    served[usize::from(lease.name() == "b")].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for swap in 0..SWAPS {
            let name = ["b", "damaged", "a"][swap % 3];
            let swapped = registry.swap(ModelRole::Main, name);
            assert_eq!(swapped.is_ok(), name != "damaged", "{swapped:?}");
            thread::sleep(Duration::from_millis(15));
        }
        ended.store(true, Ordering::Relaxed);
    });
    let served = served.map(AtomicUsize::into_inner);
    println!("conversations by model while {SWAPS} swaps went on: {served:?}");
    assert!(served.iter().all(|&count| count > 0), "{served:?}");
    let left: Vec<_> = registry.list().into_iter().filter_map(|of| of.uses).collect();
    assert_eq!(left, [0], "one model is loaded and nobody uses it");
}
