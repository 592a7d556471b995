//! The classes of characters that splitting words distinguishes.

use super::unicode_table::{LETTERS, NUMBERS, PUNCTUATION};

/// What a character is to a pre-tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Unicode category L.
    Letter,
    /// Unicode category N.
    Number,
    /// Unicode property White_Space.
    Space,
    /// Unicode category P.
    Punctuation,
    /// All the rest: symbols, marks, controls and what is not assigned.
    Other,
}

/// The class of `c`, in Unicode 15.1.
pub(super) fn class(c: char) -> Class {
    if c.is_ascii() { ASCII[c as usize] } else { class_above_ascii(c) }
}

const ASCII: [Class; 128] = {
    let mut table = [Class::Other; 128];
    let mut code = 0;
    while code < 128 {
        table[code as usize] = match code {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\t'..=b'\r' | b' ' => Class::Space,
            // These are in category S, although Rust counts them as ASCII punctuation.
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'`' | b'|' | b'~' => Class::Other,
            _ if code.is_ascii_punctuation() => Class::Punctuation,
            _ => Class::Other,
        };
        code += 1;
    }
    table
};

fn class_above_ascii(c: char) -> Class {
    let code = c as u32;
    if is_in(&LETTERS, code) {
        Class::Letter
    } else if is_space_above_ascii(code) {
        Class::Space
    } else if is_in(&PUNCTUATION, code) {
        Class::Punctuation
    } else if is_in(&NUMBERS, code) {
        Class::Number
    } else {
        Class::Other
    }
}

fn is_space_above_ascii(code: u32) -> bool {
    matches!(
        code,
        0x85 | 0xa0 | 0x1680 | 0x2000..=0x200a | 0x2028 | 0x2029 | 0x202f | 0x205f | 0x3000
    )
}

fn is_in(ranges: &[(u32, u32)], code: u32) -> bool {
    let after = ranges.partition_point(|range| range.0 <= code);
    after > 0 && code <= ranges[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(wanted: Class) -> usize {
        ('\0'..=char::MAX).filter(|&c| class(c) == wanted).count()
    }

    #[test]
    fn the_classes_have_the_sizes_of_unicode_15_1() {
        // The table's generator counted above ASCII; ASCII has 52, 10, 23 and 6 of each class.
        assert_eq!(count(Class::Letter), 136_674 + 52);
        assert_eq!(count(Class::Number), 1_821 + 10);
        assert_eq!(count(Class::Punctuation), 819 + 23);
        assert_eq!(count(Class::Space), 19 + 6);
    }

    #[test]
    fn space_is_what_the_standard_library_calls_white_space() {
        // White_Space is stable across versions of Unicode, so the two must agree.
        assert!(('\0'..=char::MAX).all(|c| (class(c) == Class::Space) == c.is_whitespace()));
    }

    #[test]
    fn ranges_are_ascending_and_disjoint() {
        for ranges in [&LETTERS[..], &NUMBERS[..], &PUNCTUATION[..]] {
            assert!(ranges.iter().all(|range| range.0 <= range.1 && range.0 >= 0x80));
            assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}
