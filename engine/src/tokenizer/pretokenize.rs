//! Splitting text into the words that byte-pair merges stay within.
//!
//! Each splitter is the hand-written equivalent of a regular expression, quoted above it. Written
//! out they run in time linear in the text whatever the text is, which a backtracking engine does
//! not promise, and need no look-ahead support. Alternatives are tried in the order of the
//! expression, as a backtracking engine would.

use super::unicode::{Class, class};

/// One pass over the words that the pass before it left.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Cuts a word into the words of a grammar that covers every text: the function gives the
    /// length in bytes of the first word of a text that is not empty.
    Words(fn(&str) -> usize),
    /// Sets matches apart and keeps what lies between them whole: the function gives the length
    /// in bytes of the match at the start of a text, or 0.
    Isolate(fn(&str) -> usize),
}

/// How the BPE tokenizers named by `tokenizer.ggml.pre` behave.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    stages: &'static [Stage],
    /// Whether a word that is a token is taken whole, without looking at the merges.
    pub(super) ignore_merges: bool,
    /// Whether texts start with the BOS token if the file does not say.
    pub(super) add_bos: bool,
}

static TABLE: [PreTokenizer; 6] = [
    PreTokenizer {
        names: &["default"],
        stages: &[
            Stage::Isolate(punctuation_run),
            Stage::Words(gpt2_word),
            Stage::Isolate(number_run),
            Stage::Isolate(three_ascii_digits),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["gpt-2"],
        stages: &[Stage::Words(gpt2_word)],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder"],
        stages: &[Stage::Isolate(number), Stage::Words(gpt2_word)],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["falcon"],
        stages: &[
            Stage::Isolate(falcon_punctuation_run),
            Stage::Words(gpt2_word),
            Stage::Isolate(three_ascii_digits),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        stages: &[Stage::Words(qwen2_word)],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        stages: &[Stage::Words(llama3_word)],
        ignore_merges: true,
        add_bos: true,
    },
];

impl PreTokenizer {
    /// The pre-tokenizer that `tokenizer.ggml.pre` calls `name`.
    pub(super) fn by_name(name: &str) -> Option<&'static Self> {
        TABLE.iter().find(|pre| pre.names.contains(&name))
    }

    /// The words of `text` in order; together they are `text`.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut words = vec![text];
        for stage in self.stages {
            let mut finer = Vec::with_capacity(words.len());
            for word in words {
                stage.split(word, &mut finer);
            }
            words = finer;
        }
        words
    }
}

impl Stage {
    fn split<'t>(self, text: &'t str, words: &mut Vec<&'t str>) {
        match self {
            Self::Words(word_len) => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (word, after) = rest.split_at(word_len(rest));
                    words.push(word);
                    rest = after;
                }
            }
            Self::Isolate(match_len) => {
                let (mut start, mut at) = (0, 0);
                while let Some(c) = text[at..].chars().next() {
                    match match_len(&text[at..]) {
                        0 => at += c.len_utf8(),
                        len => {
                            words.extend((start < at).then(|| &text[start..at]));
                            words.push(&text[at..at + len]);
                            at += len;
                            start = at;
                        }
                    }
                }
                words.extend((start < at).then(|| &text[start..at]));
            }
        }
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt2_word(text: &str) -> usize {
    let contraction = contraction(text, |c| c);
    if contraction > 0 {
        return contraction;
    }
    let blank = usize::from(text.starts_with(' '));
    let after_blank = &text[blank..];
    for kind in [is_letter, is_number, is_symbol] {
        let run = run(after_blank, kind);
        if run > 0 {
            return blank + run;
        }
    }
    spaces(text)
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|`
/// `\s*[\r\n]+|\s+(?!\S)|\s+`
fn llama3_word(text: &str) -> usize {
    modern_word(text, 3)
}

/// The expression of [`llama3_word`] with `\p{N}` for `\p{N}{1,3}`.
fn qwen2_word(text: &str) -> usize {
    modern_word(text, 1)
}

fn modern_word(text: &str, digits_max: usize) -> usize {
    let contraction = contraction(text, |c| c.to_ascii_lowercase());
    if contraction > 0 {
        return contraction;
    }
    let Some(first) = text.chars().next() else { return 0 };
    let lead = match class(first) {
        Class::Letter => 0,
        Class::Number => {
            return text
                .chars()
                .take(digits_max)
                .take_while(|&c| is_number(c))
                .map(char::len_utf8)
                .sum();
        }
        _ if is_newline(first) => 0,
        _ => first.len_utf8(),
    };
    let letters = run(&text[lead..], is_letter);
    if letters > 0 {
        return lead + letters;
    }
    let blank = usize::from(first == ' ');
    let symbols = run(&text[blank..], is_symbol);
    if symbols > 0 {
        return blank + symbols + run(&text[blank + symbols..], is_newline);
    }
    let all = run(text, is_space);
    match text[..all].rfind(['\r', '\n']) {
        Some(newline) => newline + 1,
        None => spaces(text),
    }
}

/// The length of the English contraction at the start of `text`, or 0; `fold` maps what may stand
/// for a lower-case letter to it.
fn contraction(text: &str, fold: fn(u8) -> u8) -> usize {
    let Some(after) = text.strip_prefix('\'') else { return 0 };
    let mut letters = after.bytes().map(fold);
    match (letters.next(), letters.next()) {
        (Some(b's' | b't' | b'm' | b'd'), _) => 2,
        (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => 3,
        _ => 0,
    }
}

/// `\s+(?!\S)|\s+`: a run of white space without its last character, unless the text ends there or
/// that character is all there is. Never 0, so that splitting always gets on.
fn spaces(text: &str) -> usize {
    let all = run(text, is_space);
    let last = text[..all].chars().next_back().map_or(0, char::len_utf8);
    if all < text.len() && all > last { all - last } else { all }
}

/// `\p{N}`
fn number(text: &str) -> usize {
    text.chars().next().filter(|&c| is_number(c)).map_or(0, char::len_utf8)
}

/// `\p{N}+`
fn number_run(text: &str) -> usize {
    run(text, is_number)
}

/// `[0-9][0-9][0-9]`
fn three_ascii_digits(text: &str) -> usize {
    let digits = text.bytes().take(3).take_while(u8::is_ascii_digit).count();
    if digits == 3 { 3 } else { 0 }
}

/// ``[\p{P}\$\+<=>\^~\|`]+``
fn falcon_punctuation_run(text: &str) -> usize {
    run(text, |c| is_punctuation(c) || c == '`')
}

/// ``[\p{P}\$\+<=>\^~\|]+``
fn punctuation_run(text: &str) -> usize {
    run(text, is_punctuation)
}

fn is_punctuation(c: char) -> bool {
    class(c) == Class::Punctuation || matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|')
}

fn is_letter(c: char) -> bool {
    class(c) == Class::Letter
}

fn is_number(c: char) -> bool {
    class(c) == Class::Number
}

fn is_space(c: char) -> bool {
    class(c) == Class::Space
}

/// `[^\s\p{L}\p{N}]`
fn is_symbol(c: char) -> bool {
    matches!(class(c), Class::Punctuation | Class::Other)
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// The length in bytes of the characters at the start of `text` that `kind` accepts.
fn run(text: &str, kind: impl Fn(char) -> bool) -> usize {
    text.find(|c| !kind(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use fancy_regex::Regex;
    use proptest::prelude::*;

    use super::*;

    /// The expressions that the splitters stand for, to be applied one after the other.
    const EXPRESSIONS: [(&str, &[&str]); 6] = [
        ("default", &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        ("gpt-2", &[GPT2]),
        ("smollm", &[r"\p{N}", GPT2]),
        ("falcon", &[r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"]),
        (
            "qwen2",
            &[concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )],
        ),
        (
            "llama-bpe",
            &[concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )],
        ),
    ];
    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// Matches of `expression` in `text` and what lies between them.
    fn isolate<'t>(expression: &Regex, text: &'t str) -> Vec<&'t str> {
        let (mut words, mut done) = (Vec::new(), 0);
        for found in expression.find_iter(text) {
            let found = found.unwrap();
            words.extend([&text[done..found.start()], found.as_str()]);
            done = found.end();
        }
        words.push(&text[done..]);
        words.retain(|word| !word.is_empty());
        words
    }

    /// Texts of characters that every version of Unicode classes alike, close to the expressions.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "[ \t\n\r'sStTrReEvVmMlLdDaz09]",
            2 => "[-_$+<=>^~|`!\"#%&()*,./:;?@\\[\\\\\\]{}\u{0}\u{b}\u{1c}\u{85}]",
            2 => "[éЖ中٣½Ⅷ¹。«€😀\u{a0}\u{3000}\u{2028}\u{200d}\u{301}\u{feff}]",
            1 => "( {2,3}|'re|'LL|[0-9]{2,5}|\r\n)",
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn splitters_equal_their_expressions() {
        let expressions = EXPRESSIONS.map(|(name, expressions)| {
            let compile = |expression: &&str| Regex::new(expression).unwrap();
            (PreTokenizer::by_name(name).unwrap(), expressions.iter().map(compile).collect())
        });
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        runner
            .run(&texts(), |text| {
                for (pre, expressions) in &expressions {
                    let expressions: &Vec<Regex> = expressions;
                    let mut words = vec![text.as_str()];
                    for expression in expressions {
                        words = words.iter().flat_map(|word| isolate(expression, word)).collect();
                    }
                    let mut split = pre.split(&text);
                    split.retain(|word| !word.is_empty());
                    prop_assert_eq!(&split, &words, "{:?}", pre.names);
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn every_expression_is_compared() {
        let compared = EXPRESSIONS.map(|(name, _)| PreTokenizer::by_name(name).unwrap().names);
        assert!(TABLE.iter().all(|pre| compared.contains(&pre.names)));
    }
}
