//! Sections of Markdown and HTML: the text between two headings, with the headings above it.

use html2text::render::TextDecorator;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::chunk::Section;
use crate::memory::Error;

/// So wide that a paragraph is one line, and no table has to be broken.
const PAGE_WIDTH: usize = 100_000;

/// The sections of a Markdown text called `name`.
pub(super) fn markdown(text: &str, name: &str) -> Vec<Section> {
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut sections = Vec::new();
    let mut body_from = 0;
    let mut heading: Option<(usize, usize, String)> = None;
    let mut nested = 0_usize;
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            // A heading within a quotation or a list begins no section.
            Event::Start(Tag::BlockQuote(_) | Tag::List(_)) => nested += 1,
            Event::End(TagEnd::BlockQuote(_) | TagEnd::List(_)) => nested -= 1,
            Event::Start(Tag::Heading { level, .. }) if nested == 0 => {
                let title = title_of(&path, name);
                let next = level as usize;
                let above = path.last().map_or(0, |(level, _)| *level);
                push(&mut sections, title, &text[body_from..range.start], (&path, next > above));
                heading = Some((next, range.end, String::new()));
            }
            Event::Text(words) | Event::Code(words) => {
                if let Some((_, _, title)) = &mut heading {
                    title.push_str(&words);
                }
            }
            Event::SoftBreak | Event::HardBreak => {
                if let Some((_, _, title)) = &mut heading {
                    title.push(' ');
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                if let Some((level, end, title)) = heading.take() {
                    path.retain(|(above, _)| *above < level);
                    path.push((level, title.trim().to_owned()));
                    body_from = end;
                }
            }
            _ => {}
        }
    }
    push(&mut sections, title_of(&path, name), &text[body_from..], (&path, false));
    sections
}

/// Adds a section. One without text is kept for its heading, unless `deeper` ones carry it.
fn push(
    sections: &mut Vec<Section>,
    title: String,
    body: &str,
    (path, deeper): (&[(usize, String)], bool),
) {
    if !body.trim().is_empty() {
        sections.push(Section::prose(&title, body.to_owned()));
    } else if let (Some((_, heading)), false) = (path.last(), deeper) {
        sections.push(Section::prose(&title, heading.clone()));
    }
}

fn title_of(path: &[(usize, String)], name: &str) -> String {
    if path.is_empty() {
        return name.to_owned();
    }
    let headings: Vec<&str> = path.iter().map(|(_, heading)| heading.as_str()).collect();
    headings.join(" > ")
}

/// The sections of a page.
///
/// # Errors
/// [`Error::Refused`] if the page cannot be laid out.
pub(super) fn html(source: &str, text: &str, name: &str) -> Result<Vec<Section>, Error> {
    let page = html2text::config::with_decorator(Plain)
        .no_table_borders()
        .no_link_wrapping()
        .link_footnotes(false)
        .allow_width_overflow()
        .string_from_read(text.as_bytes(), PAGE_WIDTH)
        .map_err(|_| Error::Refused {
            what: source.to_owned(),
            kind: "HTML that cannot be laid out",
            remedy: "save the page as text",
        })?;
    Ok(markdown(&page, name))
}

/// Lays out a page with marks for headings and items, which chunks are cut by, and no others.
#[derive(Clone, Copy, Debug)]
struct Plain;

impl TextDecorator for Plain {
    type Annotation = ();

    fn header_prefix(&self, level: usize) -> String {
        "#".repeat(level) + " "
    }

    fn quote_prefix(&self) -> String {
        "> ".to_owned()
    }

    fn unordered_item_prefix(&self) -> String {
        "- ".to_owned()
    }

    fn ordered_item_prefix(&self, number: i64) -> String {
        format!("{number}. ")
    }

    fn decorate_image(&mut self, _source: &str, title: &str) -> (String, ()) {
        (title.to_owned(), ())
    }

    fn decorate_link_start(&mut self, _url: &str) -> (String, ()) {
        Default::default()
    }

    fn decorate_link_end(&mut self) -> String {
        String::new()
    }

    fn decorate_em_start(&self) -> (String, ()) {
        Default::default()
    }

    fn decorate_em_end(&self) -> String {
        String::new()
    }

    fn decorate_strong_start(&self) -> (String, ()) {
        Default::default()
    }

    fn decorate_strong_end(&self) -> String {
        String::new()
    }

    fn decorate_strikeout_start(&self) -> (String, ()) {
        Default::default()
    }

    fn decorate_strikeout_end(&self) -> String {
        String::new()
    }

    fn decorate_code_start(&self) -> (String, ()) {
        Default::default()
    }

    fn decorate_code_end(&self) -> String {
        String::new()
    }

    fn decorate_preformat_first(&self) {}

    fn decorate_preformat_cont(&self) {}

    fn make_subblock_decorator(&self) -> Self {
        Self
    }
}
