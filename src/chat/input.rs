//! From the lines that a person types to messages and commands.

/// What a finished message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing was said.
    Nothing,
    /// Say this to the model.
    Say(String),
    /// List the commands.
    Help,
    /// Forget the conversation.
    Clear,
    /// Answer the last message once more.
    Regen,
    /// Show the system prompt.
    ShowSystem,
    /// Replace the system prompt; none removes it.
    SetSystem(Option<String>),
    /// Show the settings.
    ShowSettings,
    /// Change a setting.
    Set(String, String),
    /// Show the models that can answer.
    ShowModels,
    /// Have this model answer from now on.
    UseModel(String),
    /// Show what the answers have cost.
    Stats,
    /// Leave.
    Exit,
}

/// The commands, as `/help` prints them.
pub const HELP: &str = "\
/help               this list
/clear              forget the conversation (the system prompt stays)
/regen              answer the last message once more
/system [TEXT|none] show, replace or remove the system prompt
/set [NAME VALUE]   show or change how answers are chosen
/model [NAME]       show the models, or have another one answer from now on
/stats              what the answers have cost so far
/exit               leave (as does Ctrl-D)
A line that ends with \\ goes on in the next one; so does everything between two \"\"\".
Ctrl-C stops an answer. A message that starts with / is sent if the / is doubled.";

impl Input {
    /// Understands a message.
    ///
    /// # Errors
    /// A sentence about a command that does not exist or lacks something.
    pub fn parse(message: &str) -> Result<Self, String> {
        let trimmed = message.trim();
        if trimmed.is_empty() {
            return Ok(Self::Nothing);
        }
        let Some(command) = trimmed.strip_prefix('/') else {
            return Ok(Self::Say(message.to_owned()));
        };
        if command.starts_with('/') {
            return Ok(Self::Say(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let alone = |input| match rest {
            "" => Ok(input),
            _ => Err(format!("/{name} takes nothing after it")),
        };
        match name {
            "help" | "?" => alone(Self::Help),
            "clear" => alone(Self::Clear),
            "regen" => alone(Self::Regen),
            "stats" => alone(Self::Stats),
            "exit" | "quit" | "bye" => alone(Self::Exit),
            "system" => Ok(match rest {
                "" => Self::ShowSystem,
                "none" => Self::SetSystem(None),
                text => Self::SetSystem(Some(text.to_owned())),
            }),
            "model" | "models" => Ok(match rest {
                "" => Self::ShowModels,
                name => Self::UseModel(name.to_owned()),
            }),
            "set" => match *rest.split_whitespace().collect::<Vec<_>>() {
                [] => Ok(Self::ShowSettings),
                [name, value] => Ok(Self::Set(name.to_owned(), value.to_owned())),
                _ => Err("/set takes a name and a value, such as /set temp 0.5".to_owned()),
            },
            _ => Err(format!(
                "there is no command /{}; /help lists them, and // sends a message that starts \
                 with /",
                name.escape_debug()
            )),
        }
    }
}

/// Joins lines to messages: a line that ends with an odd number of backslashes goes on in the next
/// one, and everything from a line that starts with `"""` to a line that ends with it is one
/// message.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: String,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Fresh,
    Continued,
    Block,
}

const FENCE: &str = "\"\"\"";

impl Assembler {
    /// Takes a line without its line break, and returns the message if that line completes it.
    pub fn push(&mut self, line: &str) -> Option<String> {
        let mut line = line;
        if self.state == State::Fresh
            && let Some(rest) = line.trim_start().strip_prefix(FENCE)
        {
            self.state = State::Block;
            line = rest;
            if line.is_empty() {
                return None;
            }
        }
        match self.state {
            State::Block => {
                if let Some(last) = line.trim_end().strip_suffix(FENCE) {
                    self.pending.push_str(last);
                    return Some(self.finish().trim_end_matches('\n').to_owned());
                }
            }
            State::Fresh | State::Continued => {
                let backslashes = line.len() - line.trim_end_matches('\\').len();
                if backslashes.is_multiple_of(2) {
                    self.pending.push_str(line);
                    return Some(self.finish());
                }
                self.state = State::Continued;
                line = &line[..line.len() - 1];
            }
        }
        self.pending.push_str(line);
        self.pending.push('\n');
        None
    }

    /// Whether a message has been begun.
    pub fn is_pending(&self) -> bool {
        self.state != State::Fresh
    }

    /// Ends the message here, complete or not, and returns it.
    pub fn finish(&mut self) -> String {
        std::mem::take(self).pending
    }

    /// Forgets what has been begun.
    pub fn discard(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(lines: &[&str]) -> Vec<String> {
        let mut assembler = Assembler::default();
        let mut done: Vec<String> = lines.iter().filter_map(|line| assembler.push(line)).collect();
        if assembler.is_pending() {
            done.push(assembler.finish());
        }
        done
    }

    #[test]
    fn lines_become_messages() {
        for (lines, want) in [
            (&["one", "two"][..], &["one", "two"][..]),
            (&[""], &[""]),
            (&["a\\", "b\\", "c"], &["a\nb\nc"]),
            (&["C:\\\\"], &["C:\\\\"]),
            (&["\"\"\"", "a", "", "b\\", "\"\"\"", "next"], &["a\n\nb\\", "next"]),
            (&["\"\"\"a", "b\"\"\""], &["a\nb"]),
            (&["\"\"\"a\"\"\""], &["a"]),
            (&["  \"\"\"", "  a", "\"\"\"  "], &["  a"]),
            (&["\"\"\"", "\"\"\""], &[""]),
            (&["say \"\"\" now"], &["say \"\"\" now"]),
            // The end of the input ends the message.
            (&["\"\"\"", "a"], &["a\n"]),
            (&["a\\"], &["a\n"]),
        ] {
            assert_eq!(messages(lines), want, "{lines:?}");
        }
        let mut assembler = Assembler::default();
        assert_eq!(assembler.push("a\\"), None);
        assert!(assembler.is_pending());
        assembler.discard();
        assert_eq!(assembler.push("b").as_deref(), Some("b"));
    }

    #[test]
    fn commands_are_understood() {
        let say = |text: &str| Ok(Input::Say(text.to_owned()));
        let set = |a: &str, b: &str| Ok(Input::Set(a.to_owned(), b.to_owned()));
        for (message, want) in [
            ("  ", Ok(Input::Nothing)),
            ("hello /help", say("hello /help")),
            ("  indented\n  text", say("  indented\n  text")),
            ("//etc is a folder", say("/etc is a folder")),
            (" /help ", Ok(Input::Help)),
            ("/quit", Ok(Input::Exit)),
            ("/system", Ok(Input::ShowSystem)),
            ("/system none", Ok(Input::SetSystem(None))),
            ("/system be brief\nplease", Ok(Input::SetSystem(Some("be brief\nplease".to_owned())))),
            ("/model", Ok(Input::ShowModels)),
            ("/model  my file.gguf ", Ok(Input::UseModel("my file.gguf".to_owned()))),
            ("/set", Ok(Input::ShowSettings)),
            ("/set  temp\t0.5", set("temp", "0.5")),
        ] {
            assert_eq!(Input::parse(message), want, "{message}");
        }
        for (message, want) in [
            ("/nonsense", "no command /nonsense"),
            ("/clear all", "takes nothing"),
            ("/set temp", "a name and a value"),
            ("/", "no command /"),
        ] {
            let error = Input::parse(message).unwrap_err();
            assert!(error.contains(want), "{message}: {error}");
        }
    }
}
