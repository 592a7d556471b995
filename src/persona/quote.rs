//! How a passage is quoted so that it cannot end its own quotation.

use super::Passage;

/// Longest source that is shown, in characters.
const SOURCE_MAX: usize = 200;

/// Passage `number` with its source on a line and every line of its text behind `> `.
pub(super) fn passage(number: usize, passage: &Passage<'_>) -> String {
    let source =
        passage.source.chars().map(|c| if ends_line(c) || c.is_control() { ' ' } else { c });
    let source: String = source.take(SOURCE_MAX).collect();
    let mut out = format!("[{number}] from {}\n> ", source.trim());
    // A carriage return with its line feed ends one line.
    for c in passage.text.trim_end().replace("\r\n", "\n").chars() {
        match c {
            c if ends_line(c) => out.push_str("\n> "),
            '\t' => out.push('\t'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

/// Whether a model or a terminal may take `c` for the end of a line.
const fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}
