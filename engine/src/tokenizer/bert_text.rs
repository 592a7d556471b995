//! Texts as BERT's tokenizers see them (SPEC.md, T13): cleaned, decomposed, without accents, in
//! lower case, and cut into words.

use super::bert_table::{ACCENTS, DROPPED, PUNCTUATION};
use unicode_normalization::UnicodeNormalization as _;

/// The words of `text`, each handed to `word` with its characters. It stops when `word` says so.
pub(super) fn each_word(text: &str, mut word: impl FnMut(&[char]) -> bool) {
    let mut current = Vec::new();
    for c in normalised(text) {
        let alone = is_punctuation(c);
        if !alone && !c.is_whitespace() {
            current.push(c);
            continue;
        }
        if !current.is_empty() && !word(&current) {
            return;
        }
        current.clear();
        if alone && !word(&[c]) {
            return;
        }
    }
    if !current.is_empty() {
        word(&current);
    }
}

/// The characters of `text` after cleaning, with spaces around ideographs, decomposed, without
/// accents and in lower case, in this order.
fn normalised(text: &str) -> impl Iterator<Item = char> {
    text.chars()
        .filter(|&c| !is_in(&DROPPED, c))
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .flat_map(spaced)
        .map(|c| if is_in(&NEWER, c) { hidden(c) } else { c })
        .nfd()
        .filter(|&c| !is_in(&ACCENTS, c))
        .flat_map(char::to_lowercase)
        .map(shown)
}

/// Characters that newer versions of Unicode than the reference's decompose or have in lower case;
/// they stay as they are.
#[rustfmt::skip]
const NEWER: [(u32, u32); 20] = [
    (0x1c89, 0x1c89), (0xa7cb, 0xa7cc), (0xa7ce, 0xa7ce), (0xa7d2, 0xa7d2), (0xa7d4, 0xa7d4),
    (0xa7da, 0xa7da), (0xa7dc, 0xa7dc), (0x105c9, 0x105c9), (0x105e4, 0x105e4), (0x10d50, 0x10d65),
    (0x11383, 0x11383), (0x11385, 0x11385), (0x1138e, 0x1138e), (0x11391, 0x11391),
    (0x113c5, 0x113c5), (0x113c7, 0x113c8), (0x11938, 0x11938), (0x16121, 0x16128),
    (0x16d68, 0x16d6a), (0x16ea0, 0x16eb8),
];
/// Where the planes of private use start, which are dropped and so free to stand for others.
const PRIVATE_START: u32 = 0xf_0000;

/// A character of the first two planes as one of private use, which nothing changes.
fn hidden(c: char) -> char {
    char::from_u32(PRIVATE_START + u32::from(c)).unwrap_or(c)
}

/// The character that [`hidden`] has hidden.
fn shown(c: char) -> char {
    let behind = u32::from(c).checked_sub(PRIVATE_START).and_then(char::from_u32);
    behind.filter(|&c| is_in(&NEWER, c)).unwrap_or(c)
}

/// The character, between spaces if it is an ideograph.
fn spaced(c: char) -> impl Iterator<Item = char> {
    let space = is_ideograph(c).then_some(' ');
    space.into_iter().chain([c]).chain(space)
}

/// The blocks of CJK ideographs, from where the reference has them.
fn is_ideograph(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4e00..=0x9fff
            | 0x3400..=0x4dbf
            | 0x20000..=0x2a6df
            | 0x2a700..=0x2b73f
            | 0x2b740..=0x2b81f
            | 0x2b920..=0x2ceaf
            | 0xf900..=0xfaff
            | 0x2f800..=0x2fa1f
    )
}

fn is_punctuation(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_punctuation() } else { is_in(&PUNCTUATION, c) }
}

fn is_in(ranges: &[(u32, u32)], c: char) -> bool {
    let code = u32::from(c);
    let after = ranges.partition_point(|range| range.0 <= code);
    after > 0 && code <= ranges[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    /// The digest of what the reference makes of every character between two letters.
    #[test]
    fn every_character_is_normalised_as_the_reference_does() {
        let golden = include_str!("../../../testdata/tokenizer/wordpiece.jsonl");
        let first: serde_json::Value =
            serde_json::from_str(golden.lines().next().expect("a line")).expect("JSON");
        let mut digest = Sha256::new();
        for c in '\0'..=char::MAX {
            let text = format!("a{c}b");
            digest.update(format!("{text}>{}\n", normalised(&text).collect::<String>()));
        }
        let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(first["normalised_sha256"], found);
    }

    #[test]
    fn ranges_are_ascending_and_disjoint() {
        for ranges in [&DROPPED[..], &ACCENTS[..], &PUNCTUATION[..], &NEWER[..]] {
            assert!(ranges.iter().all(|range| range.0 <= range.1));
            assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }

    #[test]
    fn words_end_at_spaces_and_around_punctuation() {
        let words = |text: &str| {
            let mut words = Vec::new();
            each_word(text, |word| {
                words.push(word.iter().collect::<String>());
                words.len() < 6
            });
            words
        };
        assert_eq!(words(" Don't  Ünï. "), ["don", "'", "t", "uni", "."]);
        assert_eq!(words("中a文\u{200b}b"), ["中", "a", "文", "b"]);
        assert_eq!(words("a b c d e f g h").len(), 6);
        assert_eq!(words("a.b.c.d.e").len(), 6);
    }
}
