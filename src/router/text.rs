//! A prompt as words: what the cues of the router are looked up in.
//!
//! Words are runs of letters and digits, in lower case and without accents, so that a cue is
//! found whole or not at all: "art" is not in "architecture". Chinese and Japanese put no spaces
//! between words; there a run of such characters is kept as it is and cues are looked for inside.
//! What stands in quotation marks or is code is set apart: it is talked about, not asked for.

use std::ops::Range;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::canonical_combining_class;

/// One word of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// In lower case, without accents; as it is where `dense`.
    pub(super) text: String,
    /// Whether no word of the same clause stands before it.
    pub(super) starts_clause: bool,
    /// Whether it is a run of characters of a script that puts no spaces between words.
    pub(super) dense: bool,
}

/// A prompt cut up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    /// The words outside quotation marks and code; all of them if there are no others.
    pub(super) words: Vec<Word>,
    /// Commas, semicolons, colons and the like between words.
    pub(super) separators: usize,
    /// Characters of dense runs.
    pub(super) dense_chars: usize,
    /// Words that are numbers.
    pub(super) numbers: usize,
    /// Whether code stands in it, fenced, in backquotes or as it is.
    pub(super) code: bool,
    /// Words in quotation marks and code.
    pub(super) quoted_words: usize,
}

impl Text {
    /// Cuts up `prompt`, in time linear in its length.
    pub(super) fn of(prompt: &str) -> Self {
        let (plain, quoted) = set_apart(prompt);
        let mut text = Self { code: has_code(prompt), ..Self::default() };
        for range in plain {
            text.read(&prompt[range]);
        }
        let mut aside = Self::default();
        for range in quoted {
            aside.read(&prompt[range]);
        }
        text.quoted_words = aside.words.len();
        if text.words.is_empty() {
            let (code, quoted_words) = (text.code, text.quoted_words);
            return Self { code, quoted_words, ..aside };
        }
        text
    }

    /// The number of words, a dense run counting one for two characters.
    pub(super) fn length(&self) -> usize {
        let spaced = self.words.iter().filter(|word| !word.dense).count();
        spaced + self.dense_chars.div_ceil(2) + self.quoted_words
    }

    fn read(&mut self, text: &str) {
        let mut starts_clause = true;
        let mut at = 0;
        while let Some(first) = text[at..].chars().next() {
            let dense = is_dense(first);
            let belongs = |c: char| is_word(c) && is_dense(c) == dense;
            let end = match text[at..].find(|c: char| !belongs(c)) {
                Some(0) => at + first.len_utf8(),
                Some(len) => at + len,
                None => text.len(),
            };
            if is_word(first) {
                self.push(&text[at..end], dense, starts_clause);
                starts_clause = false;
            } else if is_break(first) {
                self.separators += usize::from(!starts_clause && is_separator(first));
                starts_clause = true;
            }
            at = end;
        }
    }

    fn push(&mut self, raw: &str, dense: bool, starts_clause: bool) {
        let text = if dense { raw.to_owned() } else { folded(raw) };
        if dense {
            self.dense_chars += raw.chars().count();
        }
        self.numbers += usize::from(raw.chars().all(char::is_numeric));
        self.words.push(Word { text, starts_clause, dense });
    }
}

/// Lower case without accents.
fn folded(raw: &str) -> String {
    raw.nfd().filter(|&c| canonical_combining_class(c) == 0).flat_map(char::to_lowercase).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || canonical_combining_class(c) != 0
}

/// Whether `c` is of a script that puts no spaces between words: Han, kana, Thai.
fn is_dense(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0e7f}' | '\u{3005}'..='\u{3007}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// What ends a clause.
fn is_break(c: char) -> bool {
    is_separator(c)
        || matches!(
            c,
            '.' | '!' | '?' | '\n' | '。' | '！' | '？' | '¡' | '¿' | '(' | ')' | '…' | '—'
        )
}

fn is_separator(c: char) -> bool {
    matches!(c, ',' | ';' | ':' | '、' | '，' | '；' | '：' | '،')
}

/// The ranges outside and inside of quotation marks and code. A mark that is not closed is none.
fn set_apart(prompt: &str) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    const PAIRS: [(&str, &str); 8] = [
        ("```", "```"),
        ("`", "`"),
        ("\"", "\""),
        ("“", "”"),
        ("„", "“"),
        ("«", "»"),
        ("「", "」"),
        ("『", "』"),
    ];
    let (mut plain, mut quoted) = (Vec::new(), Vec::new());
    // A pair whose closing mark has been looked for in vain is not looked for again.
    let mut hopeless = [false; PAIRS.len()];
    let (mut start, mut at) = (0, 0);
    while let Some(next) = prompt[at..].chars().next() {
        let opened = PAIRS.iter().position(|(open, _)| prompt[at..].starts_with(open));
        let Some(pair) = opened.filter(|&pair| !hopeless[pair]) else {
            at += next.len_utf8();
            continue;
        };
        let (open, close) = PAIRS[pair];
        let inside = at + open.len();
        match prompt[inside..].find(close) {
            Some(len) => {
                plain.push(start..at);
                quoted.push(inside..inside + len);
                at = inside + len + close.len();
                start = at;
            }
            None => {
                hopeless[pair] = true;
                at = inside;
            }
        }
    }
    plain.push(start..prompt.len());
    (plain, quoted)
}

/// Whether something in `prompt` is written as programs are.
fn has_code(prompt: &str) -> bool {
    const MARKS: [&str; 12] = [
        "`", "();", "):\n", " == ", " != ", " => ", " -> ", "{\n", "};", "</", "SELECT ",
        "#include",
    ];
    MARKS.iter().any(|mark| prompt.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(prompt: &str) -> Vec<String> {
        Text::of(prompt).words.into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn words_are_whole_folded_and_outside_of_quotes() {
        assert_eq!(words("Wie heißt DAS Café?"), ["wie", "heißt", "das", "cafe"]);
        assert_eq!(words("say \"design it\" again"), ["say", "again"]);
        assert_eq!(words("\"design it\""), ["design", "it"], "nothing else is there to read");
        assert_eq!(words("an \"open mark"), ["an", "open", "mark"]);
        assert_eq!(words("请解释TCP的原理"), ["请解释", "tcp", "的原理"]);
    }

    #[test]
    fn clauses_and_separators_are_seen() {
        let text = Text::of("Hi! Plan it: costs, risks");
        let starts: Vec<&str> =
            text.words.iter().filter(|w| w.starts_clause).map(|w| w.text.as_str()).collect();
        assert_eq!(starts, ["hi", "plan", "costs", "risks"]);
        assert_eq!(text.separators, 2);
    }
}
