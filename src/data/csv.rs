//! Lines of CSV as RFC 4180 has them.

use std::io::{self, Write};

use serde_json::Value;

/// A field.
pub(crate) enum Field<'a> {
    /// Nothing.
    Null,
    /// A text, which is quoted where it has to be, and where it is empty.
    Text(&'a str),
    /// JSON of something else.
    Json(&'a Value),
}

impl<'a> Field<'a> {
    pub(crate) fn of(value: Option<&'a Value>) -> Self {
        match value {
            None | Some(Value::Null) => Self::Null,
            Some(Value::String(text)) => Self::Text(text),
            Some(value) => Self::Json(value),
        }
    }
}

/// Writes a line.
pub(crate) fn line<'a>(
    out: &mut dyn Write,
    fields: impl Iterator<Item = Field<'a>>,
) -> io::Result<()> {
    for (i, field) in fields.enumerate() {
        if i > 0 {
            out.write_all(b",")?;
        }
        match field {
            Field::Null => {}
            Field::Text(text) => write_text(out, text)?,
            Field::Json(value) => write_text(out, &value.to_string())?,
        }
    }
    out.write_all(b"\r\n")
}

fn write_text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    if text.is_empty() || text.contains([',', '"', '\n', '\r']) {
        write!(out, "\"{}\"", text.replace('"', "\"\""))
    } else {
        out.write_all(text.as_bytes())
    }
}
