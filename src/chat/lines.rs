//! Where the lines of a conversation come from: an editor on a terminal, or a pipe.

use std::io::{self, BufRead};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::config::Config;
use rustyline::error::ReadlineError;

/// How many messages the history keeps.
const HISTORY_ENTRIES: usize = 1000;

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A line, without its line break.
    Line(String),
    /// Ctrl-C instead of a line.
    Interrupt,
    /// There is no more.
    End,
}

/// A source of lines.
pub trait Lines {
    /// Whether a person is at the other end, who wants to see prompts and hints.
    fn is_interactive(&self) -> bool;

    /// The next line. `prompt` is shown where a person is typing.
    ///
    /// # Errors
    /// If the source cannot be read.
    fn next(&mut self, prompt: &str) -> io::Result<Event>;

    /// Keeps a finished message for later recall.
    fn remember(&mut self, message: &str);
}

/// A line editor with a history that outlives the program.
pub struct Editor {
    editor: DefaultEditor,
    history: Option<PathBuf>,
}

impl Editor {
    /// An editor on the terminal. The history is kept in the file `history`, if there is one.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub fn new(history: Option<PathBuf>) -> io::Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY_ENTRIES)
            .and_then(|builder| builder.history_ignore_dups(true))
            .map_err(into_io)?
            .history_ignore_space(true)
            // A pasted text of several lines is one message, not one message a line.
            .bracketed_paste(true)
            .build();
        let mut editor = DefaultEditor::with_config(config).map_err(into_io)?;
        if let Some(path) = &history
            && path.exists()
            && let Err(error) = editor.load_history(path)
        {
            tracing::warn!(%error, path = %path.display(), "cannot read the history");
        }
        Ok(Self { editor, history })
    }
}

impl Lines for Editor {
    fn is_interactive(&self) -> bool {
        true
    }

    fn next(&mut self, prompt: &str) -> io::Result<Event> {
        match self.editor.readline(prompt) {
            Ok(line) => Ok(Event::Line(line)),
            Err(ReadlineError::Interrupted) => Ok(Event::Interrupt),
            Err(ReadlineError::Eof) => Ok(Event::End),
            Err(error) => Err(into_io(error)),
        }
    }

    fn remember(&mut self, message: &str) {
        // A message that cannot be remembered can still be answered.
        let _ = self.editor.add_history_entry(message);
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        let Some(path) = &self.history else { return };
        let saved = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .map_err(ReadlineError::from)
            .and_then(|()| self.editor.append_history(path));
        if let Err(error) = saved {
            tracing::warn!(%error, path = %path.display(), "cannot keep the history");
        }
    }
}

fn into_io(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// Lines from a pipe or a file. Bytes that are not UTF-8 become replacement characters.
pub struct Piped<R>(pub R);

impl<R: BufRead> Lines for Piped<R> {
    fn is_interactive(&self) -> bool {
        false
    }

    fn next(&mut self, _prompt: &str) -> io::Result<Event> {
        let mut line = Vec::new();
        if self.0.read_until(b'\n', &mut line)? == 0 {
            return Ok(Event::End);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Event::Line(String::from_utf8_lossy(&line).into_owned()))
    }

    fn remember(&mut self, _message: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gives_its_lines_and_ends() {
        let mut lines = Piped(&b"one\r\n\n\xffthree"[..]);
        let mut next = || lines.next("> ").unwrap();
        assert_eq!(next(), Event::Line("one".to_owned()));
        assert_eq!(next(), Event::Line(String::new()));
        assert_eq!(next(), Event::Line("\u{fffd}three".to_owned()));
        assert_eq!((next(), next()), (Event::End, Event::End));
    }
}
