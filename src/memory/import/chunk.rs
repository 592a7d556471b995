//! Where a section is cut.
//!
//! A place between two characters has a rank: how good it is to cut there. A chunk ends at the
//! best place of the last two thirds that it may have, the last of these if there are several; the
//! next one begins with what it repeats, whole sentences or lines.

use std::ops::Range;

use crate::memory::store::Chunk;

/// A part of a document that has one heading.
pub(super) struct Section {
    title: String,
    text: String,
    is_code: bool,
}

impl Section {
    /// Sentences and paragraphs.
    pub(super) fn prose(title: &str, text: String) -> Self {
        Self { title: title.to_owned(), text, is_code: false }
    }

    /// Lines.
    pub(super) fn code(title: &str, text: String) -> Self {
        Self { title: title.to_owned(), text, is_code: true }
    }
}

/// How good a place is to cut: within a word, between words, between sentences or lines, between
/// paragraphs or definitions.
const WORD: u8 = 1;
const SENTENCE: u8 = 2;
const PARAGRAPH: u8 = 3;

/// Cuts sections into chunks of at most `chars_max` characters, of which at most `overlap_max`
/// are repeated.
pub(super) fn cut(sections: &[Section], chars_max: usize, overlap_max: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for section in sections {
        for span in spans(&section.text, section.is_code, chars_max, overlap_max) {
            let text = &section.text[span.from..span.body.end];
            // The indentation of a first line means something in code.
            let text = text.trim_end().trim_start_matches('\n');
            if !text.trim().is_empty() {
                let text = if section.is_code { text } else { text.trim_start() };
                chunks.push(Chunk { title: section.title.clone(), text: text.to_owned() });
            }
        }
    }
    chunks
}

/// Bytes of a chunk: what it repeats and its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Where the repeated part begins; the body's start if there is none.
    pub(super) from: usize,
    /// What no other chunk of the section has for its own.
    pub(super) body: Range<usize>,
}

/// The chunks of a text. Bodies lie one behind the other and make up the whole text.
pub(super) fn spans(text: &str, is_code: bool, chars_max: usize, overlap_max: usize) -> Vec<Span> {
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let byte = |at: usize| chars.get(at).map_or(text.len(), |(byte, _)| *byte);
    let ranks = if is_code { code_ranks(&chars) } else { prose_ranks(&chars) };
    let mut spans: Vec<Span> = Vec::new();
    let (mut body, mut least) = (0, 0);
    while body < chars.len() {
        let from = overlap(&ranks, least, body, overlap_max);
        let end = if chars.len() - from <= chars_max {
            chars.len()
        } else {
            best_cut(&ranks, body, from + chars_max)
        };
        spans.push(Span { from: byte(from), body: byte(body)..byte(end) });
        // What is repeated is of the chunk before alone.
        (least, body) = (body, end);
    }
    spans
}

/// Where a chunk begins whose own part begins at `body`: the first place between sentences or
/// lines that repeats at most `overlap_max` characters and nothing before `least`.
fn overlap(ranks: &[u8], least: usize, body: usize, overlap_max: usize) -> usize {
    let earliest = body.saturating_sub(overlap_max).max(least + 1).min(body);
    (earliest..body).find(|&at| ranks[at] >= SENTENCE).unwrap_or(body)
}

/// The best place to end a chunk whose own part begins at `body` and which must end at `limit`.
fn best_cut(ranks: &[u8], body: usize, limit: usize) -> usize {
    let earliest = body + (limit - body).div_ceil(3);
    (earliest..=limit).max_by_key(|&at| (ranks[at], at)).unwrap_or(limit)
}

/// The ranks of the places before each character.
fn prose_ranks(chars: &[(usize, char)]) -> Vec<u8> {
    let mut ranks = vec![0; chars.len()];
    // What has been seen since the last character that is no white space.
    let (mut newlines, mut ended, mut spaced) = (0, false, false);
    for (at, &(_, c)) in chars.iter().enumerate() {
        if !c.is_whitespace() {
            let wide = ended && !spaced && at > 0 && !chars[at - 1].1.is_ascii();
            ranks[at] = match () {
                () if newlines >= 2 => PARAGRAPH,
                // A line of its own is an item of a list or a row of a table.
                () if newlines == 1 && starts_item(c) => SENTENCE,
                () if (ended && spaced) || wide => SENTENCE,
                () if spaced => WORD,
                () => 0,
            };
            let closes = matches!(c, '"' | '\'' | ')' | ']' | '”' | '’' | '»');
            ended = is_end(c) || ended && closes && !spaced;
            (newlines, spaced) = (0, false);
        } else {
            newlines += usize::from(c == '\n');
            spaced = true;
        }
    }
    ranks
}

fn is_end(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？')
}

fn starts_item(c: char) -> bool {
    matches!(c, '-' | '*' | '+' | '|' | '>' | '#') || c.is_ascii_digit()
}

/// As [`prose_ranks`], with lines for sentences, and for paragraphs what begins without indentation
/// behind an empty line.
fn code_ranks(chars: &[(usize, char)]) -> Vec<u8> {
    let mut ranks = vec![0; chars.len()];
    let mut empty_lines = 0;
    let mut line_is_empty = true;
    for at in 1..chars.len() {
        let (before, c) = (chars[at - 1].1, chars[at].1);
        if before == '\n' {
            empty_lines = if line_is_empty { empty_lines + 1 } else { 0 };
            line_is_empty = true;
            ranks[at] = if empty_lines > 0 && !c.is_whitespace() { PARAGRAPH } else { SENTENCE };
        } else {
            line_is_empty &= before.is_whitespace();
            ranks[at] = u8::from(before.is_whitespace()) * WORD;
        }
    }
    ranks
}
