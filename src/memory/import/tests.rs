//! What is read, what is refused, and where it is cut.

use proptest::prelude::*;

use super::chunk::{Span, spans};
use super::*;

fn options(chunk_chars: usize, overlap_chars: usize) -> Options {
    Options { chunk_chars, overlap_chars, ..Options::default() }
}

fn parsed(source: &str, bytes: &[u8]) -> Parsed {
    parse(source, bytes, &Options::default()).unwrap()
}

fn texts(parsed: &Parsed) -> Vec<(&str, &str)> {
    parsed.chunks.iter().map(|chunk| (chunk.title.as_str(), chunk.text.as_str())).collect()
}

/// SPEC.md, V6: what is wrong with these chunks, if anything.
fn fault(text: &str, spans: &[Span], chars_max: usize, overlap_max: usize) -> Option<String> {
    let mut end = 0;
    for span in spans {
        let chars = text[span.from..span.body.end].chars().count();
        let repeated = text[span.from..span.body.start].chars().count();
        if span.body.start != end || span.body.is_empty() || span.from > span.body.start {
            return Some(format!("{span:?} does not begin at {end}"));
        }
        if chars > chars_max || repeated > overlap_max {
            return Some(format!("{span:?} has {chars} characters and repeats {repeated}"));
        }
        end = span.body.end;
    }
    (end != text.len()).then(|| format!("the end is at {end}"))
}

proptest! {
    #[test]
    fn chunks_make_up_the_text(
        text in "([a-z]{1,9}|[A-Zä中。]|[.!?]|\\PC| |\n|\n\n|    ){0,300}",
        is_code: bool,
        chars_max in 100_usize..200,
        overlap_max in 0_usize..50,
    ) {
        let found = spans(&text, is_code, chars_max, overlap_max);
        prop_assert_eq!(fault(&text, &found, chars_max, overlap_max), None);
    }
}

#[test]
fn a_lost_character_would_be_seen() {
    let text = "One sentence. Another sentence. A third one.";
    let mut found = spans(text, false, 20, 5);
    assert_eq!(fault(text, &found, 20, 5), None);
    assert!(fault(text, &found, 10, 5).is_some());
    found[1].body.start += 1;
    assert!(fault(text, &found, 20, 5).is_some());
    found.remove(1);
    assert!(fault(text, &found, 20, 5).is_some());
}

#[test]
fn prose_is_cut_between_paragraphs_then_sentences() {
    let first = "The ferry leaves at nine. It carries forty people and their bicycles.";
    let second = "In winter it leaves at ten. Ice may keep it in the harbour for a day or two.";
    let text = format!("{first}\n\n{second}");
    let cut = |chars, overlap| {
        let parsed = parse("ferry.txt", text.as_bytes(), &options(chars, overlap)).unwrap();
        parsed.chunks.into_iter().map(|chunk| chunk.text).collect::<Vec<_>>()
    };
    assert_eq!(cut(900, 0).concat(), text);
    assert_eq!(cut(110, 0), [first, second]);
    let overlapping = cut(140, 60);
    assert_eq!(overlapping[0], first);
    assert!(overlapping[1].starts_with("It carries forty"), "{overlapping:?}");
    assert!(overlapping[1].contains("In winter"));
}

#[test]
fn code_is_cut_before_definitions() {
    let function = |name: &str| format!("def {name}(x):\n    y = x + 1\n\n    return y * 2\n");
    let text = format!("{}\n{}\n{}", function("one"), function("two"), function("three"));
    let parsed = parse("sums.py", text.as_bytes(), &options(100, 0)).unwrap();
    assert_eq!(parsed.kind, "code");
    let starts: Vec<&str> =
        texts(&parsed).iter().map(|(_, text)| text.lines().next().unwrap()).collect();
    assert_eq!(starts, ["def one(x):", "def three(x):"]);
    assert!(parsed.chunks[0].text.contains("def two"));
    assert_eq!(parsed.chunks[0].title, "sums.py");
}

#[test]
fn markdown_is_cut_at_its_headings() {
    let text = "Before.\n\n# Bees `x`\n\nIntro.\n\n## Dance\n\nThey waggle.\n\n\
                ```\n# no heading\n```\n\n\
                ## Empty\n\nHoney\n=====\n\n> # quoted\n\nSweet.\n";
    let parsed = parsed("bees.md", text.as_bytes());
    assert_eq!(
        texts(&parsed),
        [
            ("bees.md", "Before."),
            ("Bees x", "Intro."),
            ("Bees x > Dance", "They waggle.\n\n```\n# no heading\n```"),
            ("Bees x > Empty", "Empty"),
            ("Honey", "> # quoted\n\nSweet."),
        ]
    );
    assert_eq!((parsed.kind, parsed.encoding, parsed.guessed), ("markdown", "UTF-8", false));
}

#[test]
fn html_is_read_without_its_machinery() {
    let page = "<!doctype html><html><head><title>T</title><style>p{color:red}</style>\
                <script>alert('no')</script></head><body><h1>Tide tables</h1><p>High water \
                <b>today</b>: 6&nbsp;am &amp; <a href='http://x.example'>later</a>.</p>\
                <h2>Spring</h2><ul><li>one<li>two</ul><table><tr><td>a<td>b</table></body></html>";
    for name in ["page.html", "page", "page.txt"] {
        let parsed = parsed(name, page.as_bytes());
        assert_eq!(parsed.kind, "html");
        let found = texts(&parsed);
        assert_eq!(found[0].0, "Tide tables");
        assert_eq!(found[0].1.replace('\u{a0}', " "), "High water today: 6 am & later.");
        assert_eq!(found[1].0, "Tide tables > Spring");
        assert!(found[1].1.contains("one") && found[1].1.contains('b'), "{found:?}");
        assert!(found.iter().all(|(_, text)| !text.contains("alert") && !text.contains("color")));
    }
}

#[test]
fn hostile_pages_end() {
    for page in [
        "<div>".repeat(20_000) + "deep",
        "<ul><li>".repeat(2_000) + "deep",
        "<table><tr><td>".repeat(500) + "deep",
        "<p>".to_owned() + &"&#x41".repeat(10_000),
        "<!--".to_owned() + &"<b ".repeat(10_000),
        "<table><tr><td colspan=4000000000 rowspan=4000000000>x</table>".to_owned(),
    ] {
        let _either_way_it_ends = parse("page.html", page.as_bytes(), &Options::default());
    }
    let deep = "> ".repeat(20_000) + "deep";
    assert!(!parsed("deep.md", deep.as_bytes()).chunks.is_empty());
}

#[test]
fn encodings_are_told_apart() {
    let text = "Die Müller mahlen größere Körner für süße Brötchen.";
    let utf16 = |swap: bool| -> Vec<u8> {
        let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
        units.flat_map(|unit| if swap { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    let latin: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    for (bytes, encoding, guessed) in [
        (text.as_bytes().to_vec(), "UTF-8", false),
        (format!("\u{feff}{text}").into_bytes(), "UTF-8", false),
        (utf16(false), "UTF-16LE", false),
        (utf16(true), "UTF-16BE", false),
        (latin.clone(), "windows-1252", true),
    ] {
        let parsed = parsed("korn.txt", &bytes);
        assert_eq!((parsed.encoding, parsed.guessed), (encoding, guessed));
        assert_eq!(parsed.chunks[0].text, text);
    }
    let mut page = b"<html><head><meta charset=\"iso-8859-1\"></head><body>".to_vec();
    page.extend(&latin);
    let parsed = parsed("korn.html", &page);
    assert_eq!((parsed.encoding, parsed.guessed), ("windows-1252", false));
    assert_eq!(parsed.chunks[0].text, text);
}

#[test]
fn what_is_no_text_is_refused_by_name() {
    for (bytes, kind) in [
        (&b"%PDF-1.7 ..."[..], "a PDF"),
        (b"\n %PDF-1.4", "a PDF"),
        (b"PK\x03\x04rest", "an archive"),
        (b"GGUF\x03", "a model"),
        (b"abc\0def", "a binary file"),
        (b"\x01\x02\x03\x04\x05\x06abc", "a binary file"),
    ] {
        let said = parse("thing", bytes, &Options::default()).unwrap_err().to_string();
        assert!(said.starts_with("thing is ") && said.contains(kind), "{said}");
    }
    let about = b"A file that begins with %PDF- is a PDF; this one is about them.";
    assert_eq!(parsed("about.txt", about).chunks.len(), 1);
    assert!(parsed("empty.txt", b"").chunks.is_empty());
    assert!(parsed("blank.md", b" \n\n ").chunks.is_empty());
}

#[test]
fn a_walk_passes_over_hidden_files_and_links() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("b/c")).unwrap();
    fs::create_dir(at(".git")).unwrap();
    for name in ["z.txt", "b/c/a.md", ".git/x.txt", ".hidden", "b/b.rs"] {
        fs::write(at(name), name).unwrap();
    }
    std::os::unix::fs::symlink(folder.path(), at("loop")).unwrap();
    let found = files(folder.path()).unwrap();
    assert_eq!(found, [at("b/b.rs"), at("b/c/a.md"), at("z.txt")]);
    assert_eq!(files(&at("z.txt")).unwrap(), [at("z.txt")]);
    assert!(matches!(files(&at("none")), Err(Error::Io { .. })));
}
