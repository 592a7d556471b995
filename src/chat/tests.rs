//! Conversations with a scripted model.

use std::sync::atomic::Ordering;

use super::*;
use crate::interrupt::{Interrupt, Interrupted};
use crate::stats::StopReason;

/// Answers with what it was asked, so that a test sees what reaches the model.
#[derive(Default)]
struct Echo {
    interrupt: Interrupt,
    forgotten: usize,
}

fn stats(settings: &Settings, stop_reason: StopReason) -> Stats {
    Stats {
        synthetic: false,
        prompt_tokens: 10,
        reused_tokens: 0,
        generated_tokens: 5,
        decoded_tokens: 4,
        prefill_ms: 10.0,
        decode_ms: 50.0,
        bytes_per_token: Some(1e6),
        disk_bytes_per_token: None,
        mb_per_token: None,
        bytes: Vec::new(),
        spec_decode: None,
        residency: None,
        screen: None,
        zeros: None,
        stop_reason,
        seed: settings.seed,
        peak_resident_bytes: None,
    }
}

impl Responder for &mut Echo {
    fn respond(
        &mut self,
        messages: &[Message],
        settings: &Settings,
        cancel: &AtomicBool,
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, ChatError> {
        let last = messages.last().unwrap();
        assert_eq!(last.role, Role::User);
        let (text, stop_reason) = match last.content.as_str() {
            "too long" => return Err(ChatError::ContextFull { needed: 5000, size: 4096 }),
            "break" => return Err(anyhow::anyhow!("a non-finite logit").into()),
            "fill" => ("and so on".to_owned(), StopReason::ContextFull),
            "press ctrl-c" => {
                self.interrupt.flag().store(true, Ordering::Relaxed);
                assert!(cancel.load(Ordering::Relaxed));
                ("half an".to_owned(), StopReason::Interrupted)
            }
            "say nothing" => (String::new(), StopReason::End),
            "ring" => ("\u{7}\u{1b}[2Jding\tdong".to_owned(), StopReason::End),
            _ => {
                let said: Vec<String> =
                    messages.iter().map(|m| format!("{}:{}", m.role.name(), m.content)).collect();
                (format!("{} seed {}", said.join(" "), settings.seed), StopReason::End)
            }
        };
        let middle = text.len() / 2;
        emit(&text[..middle])?;
        emit(&text[middle..])?;
        Ok(Answer { text, stats: stats(settings, stop_reason) })
    }

    fn forget(&mut self) {
        self.forgotten += 1;
    }
}

/// Lines as if a person had typed them.
struct Typed<'a>(Vec<Option<&'a str>>);

impl Lines for Typed<'_> {
    fn is_interactive(&self) -> bool {
        true
    }
    fn next(&mut self, _prompt: &str) -> io::Result<Event> {
        if self.0.is_empty() {
            return Ok(Event::End);
        }
        Ok(self.0.remove(0).map_or(Event::Interrupt, |line| Event::Line(line.to_owned())))
    }
    fn remember(&mut self, _message: &str) {}
}

fn settings() -> Settings {
    Settings {
        temp: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.0,
        seed: 100,
        max_tokens: None,
        ignore_eos: false,
    }
}

struct Talk {
    out: String,
    remarks: String,
    outcome: anyhow::Result<()>,
    forgotten: usize,
}

fn talk(lines: &mut dyn Lines, system: Option<&str>, terminal: bool) -> Talk {
    let mut echo = Echo::default();
    let interrupt = echo.interrupt.clone();
    let mut repl = Repl::new(&mut echo, settings(), system.map(str::to_owned), interrupt);
    let (mut out, mut remarks) = (Vec::new(), Vec::new());
    let mut screen = Screen { out: &mut out, remarks: &mut remarks, terminal };
    let outcome = repl.run(lines, &mut screen);
    let [out, remarks] = [out, remarks].map(|bytes| String::from_utf8(bytes).unwrap());
    Talk { out, remarks, outcome, forgotten: echo.forgotten }
}

fn typed(lines: &[&str]) -> Talk {
    talk(&mut Typed(lines.iter().map(|line| Some(*line)).collect()), None, false)
}

#[test]
fn a_pipe_gets_answers_on_stdout_and_everything_else_on_stderr() {
    let talk = talk(&mut Piped(&b"one\n\ntwo\\\nlines\n"[..]), Some("be brief"), false);
    talk.outcome.unwrap();
    assert_eq!(
        talk.out,
        "system:be brief user:one seed 100\n\
         system:be brief user:one assistant:system:be brief user:one seed 100 user:two\nlines \
         seed 101\n"
    );
    assert_eq!(talk.remarks.lines().count(), 2);
    assert!(talk.remarks.contains("1.0 MB/token (counted)"), "{}", talk.remarks);
}

#[test]
fn regen_asks_the_same_with_another_seed() {
    let talk = typed(&["/regen", "one", "/regen", "/exit", "never"]);
    assert_eq!(talk.out, "user:one seed 100\nuser:one seed 101\n");
    assert!(talk.remarks.contains("error: there is no answer to replace yet"), "{}", talk.remarks);
}

#[test]
fn commands_change_what_the_next_answer_sees() {
    let talk =
        typed(&["one", "/clear", "/system s", "/set seed 7", "two", "/system none", "/clear"]);
    assert_eq!(talk.out, "user:one seed 100\nsystem:s user:two seed 8\n");
    assert_eq!(talk.forgotten, 2);
    let shown = typed(&["/help", "/set", "/system", "/stats", "one", "/stats"]).remarks;
    for text in
        ["/regen", "repeat-penalty", "(no system prompt)", "(no answer yet)", "answers so far: 1 ["]
    {
        assert!(shown.contains(text), "{text}: {shown}");
    }
}

#[test]
fn an_error_leaves_the_conversation_as_it_was() {
    let talk =
        typed(&["one", "too long", "break", "say nothing", "/set temp x", "/nonsense", "two"]);
    talk.outcome.unwrap();
    let last = talk.out.lines().last().unwrap();
    assert_eq!(last, "user:one assistant:user:one seed 100 user:two seed 102");
    for text in ["5000 tokens and the context 4096; /clear", "a non-finite logit", "temp must be"] {
        assert!(talk.remarks.contains(text), "{text}: {}", talk.remarks);
    }
}

#[test]
fn an_error_ends_a_pipe() {
    let talk = talk(&mut Piped(&b"too long\nnever\n"[..]), None, false);
    assert!(talk.outcome.unwrap_err().to_string().contains("the context is full"));
    assert_eq!(talk.out, "\n");
}

#[test]
fn a_full_context_is_said_and_the_answer_is_kept() {
    let talk = typed(&["fill", "two"]);
    assert_eq!(talk.out, "and so on\nuser:fill assistant:and so on user:two seed 101\n");
    assert!(talk.remarks.contains("(the context is full: /clear"), "{}", talk.remarks);
}

#[test]
fn an_interrupt_stops_the_answer_but_not_the_conversation() {
    let mut lines = Typed(vec![Some("\"\"\""), None, Some("press ctrl-c"), Some("two")]);
    let typed = talk(&mut lines, None, false);
    typed.outcome.unwrap();
    assert_eq!(typed.out, "half an\nuser:press ctrl-c assistant:half an user:two seed 101\n");
    assert!(
        typed.remarks.starts_with("(/exit or Ctrl-D leaves)\n(stopped)\n"),
        "{}",
        typed.remarks
    );
    let piped = talk(&mut Piped(&b"press ctrl-c\nnever\n"[..]), None, false);
    assert!(piped.outcome.unwrap_err().is::<Interrupted>());
    assert_eq!(piped.out, "half an\n");
}

#[test]
fn a_terminal_is_spared_control_characters_and_a_pipe_gets_the_bytes() {
    let ring = |terminal| talk(&mut Piped(&b"ring\n"[..]), None, terminal).out;
    assert_eq!(ring(true), "[2Jding\tdong\n");
    assert_eq!(ring(false), "\u{7}\u{1b}[2Jding\tdong\n");
}

#[test]
fn a_reader_that_is_gone_ends_even_a_typed_conversation() {
    struct Closed;
    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut echo = Echo::default();
    let mut repl = Repl::new(&mut echo, settings(), None, Interrupt::default());
    let mut remarks = Vec::new();
    let mut screen = Screen { out: &mut Closed, remarks: &mut remarks, terminal: true };
    let outcome = repl.run(&mut Typed(vec![Some("one"), Some("two")]), &mut screen);
    assert!(is_broken_pipe(&outcome.unwrap_err()));
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
}
