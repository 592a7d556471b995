//! The alphabet in which BPE vocabularies spell bytes.
//!
//! Printable characters of Latin-1 stand for the byte that is their code; the 68 other bytes are
//! spelled, in ascending order, with the code points from U+0100 on. A space is thus `Ġ`.

const SHIFTED: usize = 68;

/// Whether the character with code `byte` is printable and not a space.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes that the code points from U+0100 on stand for.
const SHIFTED_BYTES: [u8; SHIFTED] = {
    let mut bytes = [0; SHIFTED];
    let (mut byte, mut count) = (0, 0);
    while byte <= 0xff {
        if !is_plain(byte as u8) {
            bytes[count] = byte as u8;
            count += 1;
        }
        byte += 1;
    }
    assert!(count == SHIFTED);
    bytes
};

/// The byte that `c` stands for, if it is in the alphabet.
pub(super) fn byte_of(c: char) -> Option<u8> {
    match u8::try_from(c) {
        Ok(byte) => is_plain(byte).then_some(byte),
        Err(_) => SHIFTED_BYTES.get(c as usize - 0x100).copied(),
    }
}

/// All 256 characters, in the order of the bytes they stand for.
pub(super) fn alphabet() -> impl Iterator<Item = (u8, char)> {
    let mut shifted = '\u{100}'..;
    (0..=u8::MAX).map(move |byte| {
        let c = if is_plain(byte) { Some(char::from(byte)) } else { shifted.next() };
        (byte, c.expect("there are 68 code points from U+0100 on"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        assert!(alphabet().all(|(byte, c)| byte_of(c) == Some(byte)));
        assert_eq!(alphabet().count(), 256);
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
