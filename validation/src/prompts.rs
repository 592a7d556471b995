//! Calibration files: prompts as JSON lines, from whoever hands them over.
//!
//! A line is a JSON object with a `text`, and perhaps a `category`, by which figures may be
//! grouped. Other fields are ignored, blank lines are skipped, and so is a byte order mark in front
//! of the first line. Nothing in a file makes the reader
//! allocate more than a fixed multiple of its length, which is bounded.

use aios_engine::gguf::Escaped;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line, in bytes, its line break counted.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// The longest file, in bytes.
pub const FILE_BYTES_MAX: u64 = 256 << 20;
/// The most prompts of a file.
pub const PROMPTS_MAX: usize = 1_000_000;
/// What some editors put in front of a file in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// What is kept of a category's name.
const CATEGORY_CHARS_MAX: usize = 40;

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// Its text, which has at least one character that is not white space.
    pub text: String,
    /// Its category, fit for a terminal and a table; `None` if the line names none.
    pub category: Option<String>,
}

/// The prompts of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// In the order of the file; at least one.
    pub prompts: Vec<Prompt>,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
}

/// Why a file of prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    /// Reading failed.
    #[error("cannot read the prompts {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It is a folder, a device or a pipe.
    #[error("{} is not a regular file; give a file of JSON lines", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// It is too long.
    #[error(
        "{} has {bytes} bytes; a file of prompts has at most {FILE_BYTES_MAX}",
        path.display()
    )]
    FileTooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It holds too many prompts.
    #[error("{} has more than {PROMPTS_MAX} prompts", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing in it.
    #[error("{} has no prompts; give lines such as {{\"text\": \"…\"}}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line is wrong.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// It is too long.
    #[error("it is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// It is not UTF-8.
    #[error("byte {0} is not UTF-8")]
    NotUtf8(usize),
    /// It holds a NUL, which no text does.
    #[error("it holds a NUL character, so this is no file of text")]
    Nul,
    /// It is not JSON.
    #[error("it is not JSON: {what} at column {column}")]
    NotJson {
        /// What the parser says.
        what: String,
        /// Where, in bytes from 1.
        column: usize,
    },
    /// It is some other JSON value.
    #[error("it is {0}, not an object with a \"text\"")]
    NotAnObject(&'static str),
    /// The object has no text.
    #[error("the object has no \"text\"")]
    NoText,
    /// The text is no string.
    #[error("\"text\" is {0}, not a string")]
    TextNotAString(&'static str),
    /// The text is empty or blank.
    #[error("\"text\" is empty")]
    EmptyText,
}

impl Prompts {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`PromptsError`], which names the file, and the line if one is wrong.
    pub fn read(path: &Path) -> Result<Self, PromptsError> {
        let io = |source| PromptsError::Io { path: path.to_owned(), source };
        // Opening a pipe would wait for a writer, so the kind is looked at first.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(PromptsError::NotAFile { path: path.to_owned() });
        }
        if metadata.len() > FILE_BYTES_MAX {
            let bytes = metadata.len();
            return Err(PromptsError::FileTooLong { path: path.to_owned(), bytes });
        }
        let mut from = BufReader::new(File::open(path).map_err(io)?);
        let mut prompts = Vec::new();
        let mut digest = Sha256::new();
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let limit = LINE_BYTES_MAX as u64 + 1;
            if from.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(io)? == 0 {
                break;
            }
            digest.update(&bytes);
            let marked = if line == 1 { bytes.strip_prefix(BYTE_ORDER_MARK) } else { None };
            let parsed = parse(marked.unwrap_or(&bytes), line)
                .map_err(|problem| PromptsError::Line { path: path.to_owned(), line, problem })?;
            prompts.extend(parsed);
            if prompts.len() > PROMPTS_MAX {
                return Err(PromptsError::TooMany { path: path.to_owned() });
            }
        }
        if prompts.is_empty() {
            return Err(PromptsError::Empty { path: path.to_owned() });
        }
        Ok(Self { prompts, sha256: digest.finalize().into() })
    }

    /// `count` of the prompts, or all if there are fewer: evenly spread over the file, so that one
    /// sorted by category gives some of each.
    pub fn spread(&self, count: usize) -> Vec<&Prompt> {
        let all = self.prompts.len();
        let count = count.min(all);
        // A file has at most a million prompts, so that the product is far below 2^63.
        (0..count).map(|i| &self.prompts[i * all / count]).collect()
    }
}

/// The prompt of a line; `None` if it is blank.
fn parse(bytes: &[u8], line: usize) -> Result<Option<Prompt>, LineProblem> {
    if bytes.len() > LINE_BYTES_MAX {
        return Err(LineProblem::TooLong);
    }
    if bytes.contains(&0) {
        return Err(LineProblem::Nul);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| LineProblem::NotUtf8(error.valid_up_to() + 1))?
        .trim_end();
    if text.is_empty() {
        return Ok(None);
    }
    let object = match serde_json::from_str(text).map_err(not_json)? {
        Value::Object(object) => object,
        other => return Err(LineProblem::NotAnObject(kind(&other))),
    };
    let text = match object.get("text") {
        None => return Err(LineProblem::NoText),
        Some(Value::String(text)) => text,
        Some(other) => return Err(LineProblem::TextNotAString(kind(other))),
    };
    if text.trim().is_empty() {
        return Err(LineProblem::EmptyText);
    }
    if text.contains('\0') {
        return Err(LineProblem::Nul);
    }
    let category = object.get("category").and_then(Value::as_str).map(|name| {
        // A bar would end the cell of a table.
        Escaped::shortened(name, CATEGORY_CHARS_MAX).to_string().replace('|', "/")
    });
    Ok(Some(Prompt { line, text: text.clone(), category }))
}

/// The parser counts lines within what it is given, which is one.
fn not_json(error: serde_json::Error) -> LineProblem {
    let said = error.to_string();
    let what = said.split(" at line ").next().unwrap_or_default().to_owned();
    LineProblem::NotJson { what, column: error.column() }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::io::Write as _;

    fn read(bytes: &[u8]) -> Result<Prompts, PromptsError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("written");
        Prompts::read(file.path())
    }

    fn problem(bytes: &[u8]) -> (usize, LineProblem) {
        match read(bytes).expect_err("a hostile file") {
            PromptsError::Line { line, problem, .. } => (line, problem),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn prompts_are_read_in_order_and_spread_evenly() {
        let lines: String = (0..10)
            .map(|i| {
                format!("{{\"text\": \"prompt {i}\", \"category\": \"a|b\", \"x\": [1]}}\r\n\n")
            })
            .collect();
        let prompts = read(lines.as_bytes()).expect("prompts");
        assert_eq!(prompts.prompts.len(), 10);
        assert_eq!(prompts.prompts[3].text, "prompt 3");
        assert_eq!(prompts.prompts[3].line, 7);
        assert_eq!(prompts.prompts[3].category.as_deref(), Some("a/b"));
        let spread = |n| prompts.spread(n).iter().map(|p| p.line / 2).collect::<Vec<_>>();
        assert_eq!(spread(3), [0, 3, 6]);
        assert_eq!(spread(99).len(), 10);
        assert!(spread(0).is_empty());
        assert_eq!(prompts.sha256[..], Sha256::digest(&lines)[..]);
    }

    #[test]
    fn the_shipped_file_is_diverse() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/calibration_prompts.jsonl");
        let prompts = Prompts::read(&path).expect("prompts").prompts;
        assert!(prompts.len() >= 1000, "{}", prompts.len());
        let texts: BTreeSet<&str> = prompts.iter().map(|prompt| prompt.text.trim()).collect();
        assert_eq!(texts.len(), prompts.len(), "all are distinct");
        let categories: Option<BTreeSet<&str>> =
            prompts.iter().map(|prompt| prompt.category.as_deref()).collect();
        let categories = categories.expect("every prompt has one");
        assert!(categories.len() >= 10, "{categories:?}");
        let file = std::fs::read_to_string(&path).expect("text");
        let languages: BTreeSet<String> = file
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).expect("JSON");
                line["lang"].as_str().expect("a language").to_owned()
            })
            .collect();
        assert!(languages.len() >= 20, "{languages:?}");
    }

    #[test]
    fn a_byte_order_mark_is_skipped_in_front_of_the_file_alone() {
        let line = "\u{feff}{\"text\": \"x\"}\n";
        assert_eq!(read(line.as_bytes()).expect("prompts").prompts[0].text, "x");
        assert_eq!(problem(line.repeat(2).as_bytes()).0, 2);
    }

    #[test]
    fn a_hostile_file_gives_one_error_that_names_the_line() {
        let good = b"{\"text\": \"x\"}\n".as_slice();
        let after = |bad: &[u8]| problem(&[good, bad].concat());
        assert_eq!(after(b"{\"txt\": \"x\"}"), (2, LineProblem::NoText));
        assert_eq!(after(b"{\"text\": 5}"), (2, LineProblem::TextNotAString("a number")));
        assert_eq!(after(b"[1]"), (2, LineProblem::NotAnObject("an array")));
        assert_eq!(after(b"{\"text\": \" \\n\"}"), (2, LineProblem::EmptyText));
        assert_eq!(after(b"{\"text\": \"\xff\"}"), (2, LineProblem::NotUtf8(11)));
        assert_eq!(after(b"{\"text\": \"a\0b\"}"), (2, LineProblem::Nul));
        assert_eq!(after(b"{\"text\": \"a\\u0000b\"}"), (2, LineProblem::Nul));
        let (line, cut) = after(b"{\"text\": \"abc");
        assert!(line == 2 && cut.to_string().contains("at column 13"), "{cut}");
        assert!(!cut.to_string().contains("at line"), "{cut}");
        let deep = after("[".repeat(100_000).as_bytes()).1.to_string();
        assert!(deep.contains("recursion limit"), "{deep}");
        let long = [b"{\"text\": \"".as_slice(), &vec![b'a'; 10 << 20], b"\"}"].concat();
        assert_eq!(after(&long), (2, LineProblem::TooLong));
    }

    #[test]
    fn files_that_hold_no_prompts_are_refused() {
        for bytes in [b"".as_slice(), b"\n\r\n  \n"] {
            let error = read(bytes).expect_err("empty").to_string();
            assert!(error.contains("has no prompts"), "{error}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let error = Prompts::read(folder.path()).expect_err("a folder").to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let missing = Prompts::read(&folder.path().join("none")).expect_err("nothing there");
        assert!(missing.to_string().contains("cannot read the prompts"), "{missing}");
        let sparse = tempfile::NamedTempFile::new().expect("a file");
        sparse.as_file().set_len(FILE_BYTES_MAX + 1).expect("a sparse file");
        let error = Prompts::read(sparse.path()).expect_err("too long").to_string();
        assert!(error.contains("at most 268435456"), "{error}");
    }
}
