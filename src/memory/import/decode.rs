//! From bytes to text.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use crate::memory::Error;

/// How far into a document its own word on its encoding is looked for.
const DECLARED_WITHIN: usize = 2048;

/// A text, and how it was read.
pub(super) struct Decoded {
    pub(super) text: String,
    pub(super) encoding: &'static str,
    pub(super) guessed: bool,
}

/// First bytes of what is no text, and what it is.
const FOREIGN: [(&[u8], &str); 9] = [
    (b"PK\x03\x04", "an archive or an office document"),
    (b"\x1f\x8b", "a compressed file"),
    (b"7z\xbc\xaf", "a compressed file"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"\x7fELF", "a program"),
    (b"GGUF", "a model"),
    (b"SQLite format 3\0", "a database"),
];

/// Reads `bytes` as text.
///
/// # Errors
/// [`Error::Refused`] for PDF and what is no text.
pub(super) fn decode(source: &str, bytes: &[u8], is_html: bool) -> Result<Decoded, Error> {
    let refused = |kind, remedy| Error::Refused { what: source.to_owned(), kind, remedy };
    // A PDF may begin with white space.
    if bytes.trim_ascii_start().starts_with(b"%PDF-") {
        return Err(refused("a PDF", "turn it into text first, for example with pdftotext"));
    }
    let to_text = "text, Markdown, HTML and source code can be";
    if let Some((_, kind)) = FOREIGN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Err(refused(kind, to_text));
    }
    let binary = || refused("a binary file", to_text);
    let marked = Encoding::for_bom(bytes).map(|(encoding, _)| encoding);
    let is_wide = marked.is_some_and(|encoding| encoding == UTF_16LE || encoding == UTF_16BE);
    if !is_wide && bytes.contains(&0) {
        return Err(binary());
    }
    let plain_utf8 = marked.is_none() && std::str::from_utf8(bytes).is_ok();
    let declared = if is_html { declared(head_of(bytes)) } else { None };
    let (encoding, guessed) = match (marked, declared) {
        (Some(encoding), _) => (encoding, false),
        (None, _) if plain_utf8 => (UTF_8, false),
        (None, Some(encoding)) => (encoding, false),
        (None, None) => (guess(bytes), true),
    };
    let (text, faulty) = encoding.decode_with_bom_removal(bytes);
    let is_control = |c: &char| c.is_control() && !c.is_whitespace() && *c != '\u{1b}';
    let controls = text.chars().filter(is_control).count();
    if faulty || controls * 50 > text.chars().count() {
        return Err(binary());
    }
    // Line ends of other systems would hide empty lines, and a NUL would end a text early.
    let text = text.replace("\r\n", "\n").replace('\r', "\n").replace('\0', "");
    Ok(Decoded { text, encoding: encoding.name(), guessed })
}

fn head_of(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(DECLARED_WITHIN)]
}

/// What a page says of its own encoding.
fn declared(head: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let at = head.find("charset=")? + "charset=".len();
    let label = head[at..].trim_start_matches(['"', '\'']);
    let end = label.find(|c: char| !(c.is_ascii_alphanumeric() || "-_:".contains(c)));
    Encoding::for_label(&label.as_bytes()[..end.unwrap_or(label.len())])
}

fn guess(bytes: &[u8]) -> &'static Encoding {
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    detector.guess(None, Utf8Detection::Allow)
}

/// Whether a text begins as a page does, whatever its name.
pub(super) fn looks_like_html(text: &str) -> bool {
    let start = text.trim_start().as_bytes();
    let begins = |with: &str| {
        start.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
    };
    begins("<!doctype html") || begins("<html")
}
