//! The alphabet in which BPE vocabularies spell bytes.
//!
//! Printable characters of Latin-1 stand for the byte that is their code; the 68 other bytes are
//! spelled, in ascending order, with the code points from U+0100 on. A space is thus `Ġ`.

/// How many bytes are not spelled as themselves.
const SHIFTED: usize = 68;

/// Whether the character with code `byte` is printable and not a space.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character of each byte, and the byte of each code point from U+0100 on.
const TABLES: ([char; 256], [u8; SHIFTED]) = {
    let (mut chars, mut shifted) = (['\0'; 256], [0; SHIFTED]);
    let (mut code, mut count) = (0, 0);
    while code < 256 {
        let byte = code as u8;
        chars[code] = if is_plain(byte) {
            byte as char
        } else {
            shifted[count] = byte;
            count += 1;
            match char::from_u32(0xff + count as u32) {
                Some(c) => c,
                None => panic!("the first 68 code points from U+0100 on are characters"),
            }
        };
        code += 1;
    }
    assert!(count == SHIFTED);
    (chars, shifted)
};

/// The character that stands for `byte`.
pub(super) fn char_of(byte: u8) -> char {
    const CHARS: [char; 256] = TABLES.0;
    CHARS[byte as usize]
}

/// The byte that `c` stands for, if it is in the alphabet.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match u8::try_from(c) {
        Ok(byte) => is_plain(byte).then_some(byte),
        Err(_) => TABLES.1.get(c as usize - 0x100).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        assert!((0..=u8::MAX).all(|byte| byte_of(char_of(byte)) == Some(byte)));
        assert_eq!(('\0'..=char::MAX).filter(|&c| byte_of(c).is_some()).count(), 256);
    }

    #[test]
    fn well_known_spellings() {
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xad));
        assert_eq!(byte_of('ń'), None);
        assert_eq!(byte_of(' '), None);
    }
}
