//! Which word somebody may have meant.

/// The word among `known` that `word` is most likely a slip of, if any is close enough: at most
/// one letter in three is wrong, left out, added or swapped with its neighbour. Capitals do not
/// matter.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    /// No name is longer; what is would only take time.
    const CHARS_MAX: usize = 64;
    let word: Vec<char> = word.to_lowercase().chars().take(CHARS_MAX + 1).collect();
    if word.len() > CHARS_MAX {
        return None;
    }
    let distances = known.iter().map(|known| {
        let letters: Vec<char> = known.to_lowercase().chars().collect();
        (distance(&word, &letters), *known)
    });
    let (least, best) = distances.min_by_key(|(distance, _)| *distance)?;
    (least <= word.len().max(best.len()).div_ceil(3).min(3)).then_some(best)
}

/// The text in quotes, without control characters and not at any length.
pub fn quoted(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let shown: String = text.chars().take(CHARS_MAX).collect();
    let more = if text.chars().nth(CHARS_MAX).is_some() { "…" } else { "" };
    format!("'{}{more}'", shown.escape_debug())
}

/// The least number of letters changed, left out, added, or swapped with the next.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["name", "file", "family", "role", "context", "threads", "ram"];
        for (word, want) in [
            ("contxt", Some("context")),
            ("Familly", Some("family")),
            ("anme", Some("name")),
            ("thread", Some("threads")),
            ("rma", Some("ram")),
            ("colour", None),
            ("", None),
            ("q", None),
        ] {
            assert_eq!(nearest(word, &known), want, "{word}");
        }
        assert_eq!(nearest("name", &[]), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), &known), None);
    }

    #[test]
    fn what_is_quoted_is_short_and_printable() {
        assert_eq!(quoted("a\u{1b}b"), "'a\\u{1b}b'");
        assert_eq!(quoted(&"é".repeat(100)).chars().count(), 63);
    }
}
