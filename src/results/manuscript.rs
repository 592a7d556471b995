//! Filling a manuscript (SPEC J6): its cells are found by their names, and a cell that has no value
//! is an error that says its name.

mod values;

use std::collections::BTreeMap;

use super::error::ResultsError;
use super::stratum::Results;
use values::Values;

/// What stands where a result is to stand.
pub const CELL: &str = "[AUTO-GENERATED]";

/// A manuscript with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The text.
    pub text: String,
    /// Places that are no results and were given no value, as they stand: `[REPO_URL]`.
    pub left: Vec<String>,
    /// What the figures say otherwise than the text may.
    pub notes: Vec<String>,
}

/// Fills `template`. `given` has values for places that are no results, by what stands in their
/// brackets.
///
/// # Errors
/// [`ResultsError::Unfilled`] with the names of all cells that have no value.
pub fn fill(
    template: &str,
    results: &Results,
    given: &BTreeMap<String, String>,
) -> Result<Filled, ResultsError> {
    let values = Values { results };
    let mut filler = Filler {
        values,
        given,
        heading: String::new(),
        head: None,
        left: vec![],
        unfilled: vec![],
    };
    let (mut text, mut fenced) = (String::with_capacity(template.len()), false);
    for line in template.split_inclusive('\n') {
        let bare = line.trim_end_matches(['\n', '\r']);
        let end = &line[bare.len()..];
        fenced ^= bare.trim_start().starts_with("```");
        if !fenced && is_note(bare) {
            // It speaks to the author about the template.
            continue;
        }
        // Results stand in no code; what was given may.
        text += &if fenced { filler.given_alone(bare) } else { filler.line(bare) };
        text += end;
    }
    let Filler { left, unfilled, .. } = filler;
    match unfilled.is_empty() {
        true => Ok(Filled { text, left, notes: Values { results }.notes() }),
        false => Err(ResultsError::Unfilled { unfilled }),
    }
}

/// Whether a line is a remark in emphasis about the template's cells.
fn is_note(line: &str) -> bool {
    let line = line.trim();
    let emphasised = line.starts_with('*') && line.ends_with('*') && !line.starts_with("**");
    emphasised && line.contains(CELL)
}

struct Filler<'a> {
    values: Values<'a>,
    given: &'a BTreeMap<String, String>,
    heading: String,
    /// The names of the columns of the table that the line before belongs to.
    head: Option<Vec<String>>,
    left: Vec<String>,
    unfilled: Vec<String>,
}

impl Filler<'_> {
    fn line(&mut self, line: &str) -> String {
        if let Some(heading) = heading(line) {
            heading.clone_into(&mut self.heading);
            self.head = None;
            return line.to_owned();
        }
        if !line.trim_start().starts_with('|') {
            self.head = None;
            return self.prose(line);
        }
        let cells = cells(line);
        match self.head.take() {
            None => {
                self.head = Some(cells.iter().map(|cell| cell.trim().to_owned()).collect());
                line.to_owned()
            }
            Some(head) => {
                let filled = self.row(&head, &cells);
                self.head = Some(head);
                filled.map_or_else(|| line.to_owned(), |cells| format!("|{}|", cells.join("|")))
            }
        }
    }

    /// A row with its values; `None` if it has no place for one.
    fn row(&mut self, head: &[String], cells: &[String]) -> Option<Vec<String>> {
        let is_cell = |cell: &str| cell.contains(CELL);
        cells.iter().any(|cell| is_cell(cell)).then_some(())?;
        let names: Vec<&str> =
            cells.iter().map(|cell| cell.trim()).filter(|cell| !is_cell(cell)).collect();
        let mut filled = Vec::new();
        for (index, cell) in cells.iter().enumerate() {
            if !is_cell(cell) {
                filled.push(cell.clone());
                continue;
            }
            let column = head.get(index).map_or("", String::as_str);
            let value = self.values.cell(&self.heading, &names, column);
            let name = || format!("{} / {} / {column}", self.heading, names.join(", "));
            match value {
                Ok(value) => filled.push(cell.replace(CELL, &value)),
                Err(reason) => {
                    self.unfilled.push(format!("{} ({reason})", name()));
                    filled.push(cell.clone());
                }
            }
        }
        Some(filled)
    }

    /// Places in a line of text: results by the words before them, what is of the environment by
    /// the label of its line.
    fn prose(&mut self, line: &str) -> String {
        let (mut out, mut rest, mut before) = (String::new(), line, String::new());
        while let Some((start, end)) = place(rest) {
            let (words, name) = (&rest[..start], &rest[start + 1..end - 1]);
            out += words;
            before += words;
            let in_code = out.matches('`').count() % 2 == 1;
            let value = match name {
                _ if in_code => Some(Err(String::new())),
                "AUTO-GENERATED" => Some(self.values.sentence(&self.heading, &before)),
                "AUTO-GENERATED FROM ENV" => Some(self.values.machine()),
                "VERSION" | "OS" | "MODEL" => Some(self.values.environment(label(line))),
                _ => self.given.get(name).cloned().map(Ok),
            };
            match value {
                Some(Ok(value)) => out += &value,
                Some(Err(_)) if in_code => out += &rest[start..end],
                Some(Err(reason)) => {
                    let near = before.trim().chars().rev().take(40).collect::<String>();
                    let near: String = near.chars().rev().collect();
                    self.unfilled.push(format!("{} / after {near:?} ({reason})", self.heading));
                    out += &rest[start..end];
                }
                None => {
                    self.left.push(rest[start..end].to_owned());
                    out += &rest[start..end];
                }
            }
            before.push('\u{0}');
            rest = &rest[end..];
        }
        out + rest
    }

    fn given_alone(&mut self, line: &str) -> String {
        let (mut out, mut rest) = (String::new(), line);
        while let Some((start, end)) = place(rest) {
            out += &rest[..start];
            match self.given.get(&rest[start + 1..end - 1]) {
                Some(value) => out += value,
                None => {
                    self.left.push(rest[start..end].to_owned());
                    out += &rest[start..end];
                }
            }
            rest = &rest[end..];
        }
        out + rest
    }
}

/// A heading without its number.
fn heading(line: &str) -> Option<&str> {
    let text = line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?.trim();
    Some(text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start())
}

/// The cells of a row, as they stand between its bars.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim();
    let inner = line.strip_prefix('|').unwrap_or(line);
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    inner.split('|').map(str::to_owned).collect()
}

/// What stands before the colon of an item: `CPU` of `- CPU: [MODEL]`.
fn label(line: &str) -> &str {
    let label = line.split(':').next().unwrap_or_default();
    label.trim_matches(|c: char| !c.is_alphanumeric())
}

/// The first text in capitals between brackets that is no link.
fn place(line: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let start = from + line[from..].find('[')?;
        let end = start + line[start..].find(']')? + 1;
        let name = &line[start + 1..end - 1];
        let capital = |c: char| c.is_ascii_uppercase() || "0123456789 _-".contains(c);
        let is_place = name.starts_with(|c: char| c.is_ascii_uppercase())
            && name.chars().all(capital)
            && !line[end..].starts_with(['(', '[']);
        if is_place {
            return Some((start, end));
        }
        from = start + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_capitals_in_brackets() {
        assert_eq!(place("a [N] b"), Some((2, 5)));
        assert_eq!(place("[a][B](c) [x [REPO_URL]"), Some((13, 23)));
        for none in ["[A](link)", "[a]", "[]", "[A", "A]", "[Ab]", "[1]"] {
            assert_eq!(place(none), None, "{none}");
        }
    }

    #[test]
    fn headings_and_labels_are_read() {
        assert_eq!(heading("### 3.1 Routing Accuracy"), Some("Routing Accuracy"));
        assert_eq!((heading("#no"), heading("text")), (None, None));
        assert_eq!((label("- CPU: [MODEL]"), label("**GPU**: [MODEL]")), ("CPU", "GPU"));
        assert_eq!(cells("| a | b |"), [" a ", " b "]);
        assert!(is_note("*Replace [AUTO-GENERATED] cells.*") && !is_note("**[AUTO-GENERATED]**"));
    }
}
