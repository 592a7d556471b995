//! How Python prints values: `str`, `repr` and `json.dumps`.

use std::fmt::Write as _;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::marks::Marks;

/// Appends `str(value)`.
pub(super) fn write_str(marks: &Marks, out: &mut String, value: &Value) {
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => write_repr(marks, out, value),
    }
}

/// `str(value)`.
pub(super) fn to_str(marks: &Marks, value: &Value) -> String {
    let mut out = String::new();
    write_str(marks, &mut out, value);
    out
}

fn write_repr(marks: &Marks, out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_quoted(marks, out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let Ok(items) = value.try_iter() else {
                let _ = write!(out, "{value}");
                return;
            };
            let tuple = value.is_tuple();
            let mut count = 0usize;
            out.push(if tuple { '(' } else { '[' });
            for item in items {
                if count > 0 {
                    out.push_str(", ");
                }
                write_repr(marks, out, &item);
                count += 1;
            }
            if tuple && count == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            let pairs = value.as_object().and_then(|map| map.try_iter_pairs());
            for (at, (key, item)) in pairs.into_iter().flatten().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_repr(marks, out, &key);
                out.push_str(": ");
                write_repr(marks, out, &item);
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// Appends `repr(text)`. What an escape is made of has the provenance of the character escaped.
fn write_quoted(marks: &Marks, out: &mut String, text: &str) {
    let plain = marks.plain(text);
    let quote = if plain.contains('\'') && !plain.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let plain = marks.plain_char(c);
        let escape = match plain {
            '\\' => "\\\\".to_owned(),
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            p if p == quote => format!("\\{quote}"),
            p if printable(p) => {
                out.push(c);
                continue;
            }
            p if u32::from(p) < 0x100 => format!("\\x{:02x}", u32::from(p)),
            p if u32::from(p) < 0x1_0000 => format!("\\u{:04x}", u32::from(p)),
            p => format!("\\U{:08x}", u32::from(p)),
        };
        out.extend(escape.chars().map(|made| marks.inherit(c, made)));
    }
    out.push(quote);
}

/// Python's `isprintable` for the ranges in use: control, format, private-use and separator
/// characters other than the space are escaped.
fn printable(c: char) -> bool {
    let separator = c.is_whitespace() && c != ' ';
    let format = matches!(u32::from(c),
        0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x180E | 0x200B..=0x200F
        | 0x202A..=0x202E | 0x2060..=0x206F | 0xFEFF | 0xFFF9..=0xFFFB | 0xE000..=0xF8FF
        | 0xE_0000..=0xE_007F | 0xF_0000..=0x10_FFFF);
    !(c.is_control() || separator || format)
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) => float_repr(float),
        Err(_) => value.to_string(),
    }
}

/// `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4
/// and from 1e16.
fn float_repr(float: f64) -> String {
    if !float.is_finite() {
        return if float.is_nan() {
            "nan"
        } else if float > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The settings of `json.dumps` that the hub's `tojson` passes through.
#[derive(Debug, Default)]
pub(super) struct JsonStyle {
    /// Escape everything that is not ASCII.
    pub(super) ensure_ascii: bool,
    /// Text of one level of indentation; none means one line.
    pub(super) indent: Option<String>,
    /// The separators after an item and after a key, where the default is not wanted.
    pub(super) separators: Option<(String, String)>,
    /// Write the keys of an object in order.
    pub(super) sort_keys: bool,
}

/// `json.dumps(value)`.
///
/// # Errors
/// What has no JSON form, such as an undefined value or a macro, is an error as in Python.
pub(super) fn to_json(marks: &Marks, value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let item = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (item, ": "),
    };
    let mut writer = JsonWriter { marks, style, item, key, out: String::new() };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter<'a> {
    marks: &'a Marks,
    style: &'a JsonStyle,
    item: &'a str,
    key: &'a str,
    out: String,
}

/// Depth beyond which a value is refused; data from JSON has at most 128 levels.
const JSON_DEPTH_MAX: usize = 500;

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > JSON_DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&json_number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container('[', ']', items.len(), depth, |json, at| {
                    json.value(&items[at], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|map| map.try_iter_pairs());
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.style.sort_keys {
                    pairs.sort_by_key(|(key, _)| self.marks.plain_value(key));
                }
                self.container('{', '}', pairs.len(), depth, |json, at| {
                    let (key, item) = &pairs[at];
                    json.object_key(key)?;
                    json.out.push_str(json.key);
                    json.value(item, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: a value of type {kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn container(
        &mut self,
        open: char,
        close: char,
        len: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for at in 0..len {
            if at > 0 {
                self.out.push_str(self.item);
            }
            self.newline(depth + 1);
            item(self, at)?;
        }
        if len > 0 {
            self.newline(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn newline(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn object_key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None => self.string("null"),
            ValueKind::Bool => self.string(if key.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.string(&json_number(key)),
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: a key of type {kind} is not allowed"),
                ));
            }
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            let plain = self.marks.plain_char(c);
            let escape = match plain {
                '"' => "\\\"".to_owned(),
                '\\' => "\\\\".to_owned(),
                '\n' => "\\n".to_owned(),
                '\r' => "\\r".to_owned(),
                '\t' => "\\t".to_owned(),
                '\u{8}' => "\\b".to_owned(),
                '\u{c}' => "\\f".to_owned(),
                p if u32::from(p) < 0x20 => format!("\\u{:04x}", u32::from(p)),
                p if self.style.ensure_ascii && !p.is_ascii() => {
                    let mut units = [0; 2];
                    let units = p.encode_utf16(&mut units);
                    units.iter().map(|unit| format!("\\u{unit:04x}")).collect()
                }
                _ => {
                    self.out.push(c);
                    continue;
                }
            };
            let marks = self.marks;
            self.out.extend(escape.chars().map(|made| marks.inherit(c, made)));
        }
        self.out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        number => number.to_owned(),
    }
}
