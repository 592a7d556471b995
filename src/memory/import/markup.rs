//! Sections of Markdown and HTML: the text between two headings, with the headings above it.

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
    let page = html2text::config::plain_no_decorate()
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
