//! Python's methods on strings, dicts and lists.
//!
//! A string is searched in its plain form and cut in its marked form; both have the same number
//! of characters, so positions carry over.

use std::ops::Range;

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::args::Args;
use super::marks::Marks;

/// Calls `method` of `value`.
///
/// # Errors
/// An unknown method, which includes those that change a list or a dict: the hub's library runs
/// templates in a sandbox that forbids them.
pub(super) fn call(
    marks: &Marks,
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            Text::new(marks, value.as_str().unwrap_or_default()).call(method, args)
        }
        ValueKind::Map if method == "get" => {
            let args = Args::bind("get", &["key", "default"], args)?;
            let found = value.get_item(&marks.plain_value(args.require(0)?))?;
            if !found.is_undefined() {
                return Ok(found);
            }
            Ok(args.get(1).cloned().unwrap_or_else(|| Value::from(())))
        }
        ValueKind::Seq if method == "index" => {
            let args = Args::bind("index", &["value"], args)?;
            let wanted = marks.plain_value(args.require(0)?);
            let at = value.try_iter()?.position(|item| marks.plain_value(&item) == wanted);
            at.map(Value::from).ok_or_else(|| invalid("index: the value is not in the list"))
        }
        ValueKind::Seq if method == "count" => {
            let args = Args::bind("count", &["value"], args)?;
            let wanted = marks.plain_value(args.require(0)?);
            let equal = value.try_iter()?.filter(|item| marks.plain_value(item) == wanted);
            Ok(Value::from(equal.count()))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

pub(super) fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

/// Python's `str.isspace` for one character: Unicode white space and four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}')
        || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A string in both forms, character by character.
pub(super) struct Text<'a> {
    marks: &'a Marks,
    shown: Vec<char>,
    plain: Vec<char>,
}

impl<'a> Text<'a> {
    pub(super) fn new(marks: &'a Marks, text: &str) -> Text<'a> {
        let shown: Vec<char> = text.chars().collect();
        let plain = shown.iter().map(|&c| marks.plain_char(c)).collect();
        Text { marks, shown, plain }
    }

    fn plain_chars(&self, text: &str) -> Vec<char> {
        text.chars().map(|c| self.marks.plain_char(c)).collect()
    }

    fn cut(&self, range: Range<usize>) -> Value {
        Value::from(self.shown[range].iter().collect::<String>())
    }

    /// Calls `method`.
    ///
    /// # Errors
    /// An unknown method, and arguments that it does not take.
    pub(super) fn call(&self, method: &str, args: &[Value]) -> Result<Value, Error> {
        let bind = |names: &[&str]| Args::bind(method, names, args);
        match method {
            "strip" | "lstrip" | "rstrip" => {
                let args = bind(&["chars"])?;
                let (left, right) = (method != "rstrip", method != "lstrip");
                Ok(self.strip(args.text(0)?, left, right))
            }
            "split" | "rsplit" => {
                let args = bind(&["sep", "maxsplit"])?;
                let max = args.int(1)?.and_then(|max| usize::try_from(max).ok());
                self.split(args.text(0)?, max, method == "rsplit")
            }
            "splitlines" => Ok(self.split_lines(bind(&["keepends"])?.flag(0))),
            "partition" | "rpartition" => {
                self.partition(bind(&["sep"])?.require_text(0)?, method == "rpartition")
            }
            "startswith" | "endswith" => {
                let args = bind(&["affix", "start", "end"])?;
                let range = self.bounds(args.int(1)?, args.int(2)?);
                self.has_affix(args.require(0)?, range, method == "endswith")
            }
            "find" | "rfind" | "index" | "rindex" => {
                let args = bind(&["sub", "start", "end"])?;
                let range = self.bounds(args.int(1)?, args.int(2)?);
                self.position(method, args.require_text(0)?, range)
            }
            "count" => {
                let args = bind(&["sub", "start", "end"])?;
                let range = self.bounds(args.int(1)?, args.int(2)?);
                let needle = self.plain_chars(args.require_text(0)?);
                Ok(Value::from(self.matches(&needle, range, None).len()))
            }
            "replace" => {
                let args = bind(&["old", "new", "count"])?;
                let max = args.int(2)?.and_then(|max| usize::try_from(max).ok());
                Ok(self.replace(args.require_text(0)?, args.require_text(1)?, max))
            }
            "removeprefix" | "removesuffix" => {
                let affix = self.plain_chars(bind(&["affix"])?.require_text(0)?);
                Ok(self.remove_affix(&affix, method == "removesuffix"))
            }
            "join" => self.join(bind(&["items"])?.require(0)?),
            "format" => {
                let shown: String = self.shown.iter().collect();
                format(FormatStyle::StrFormat, &shown, args).map(Value::from)
            }
            "upper" | "lower" | "capitalize" | "title" | "swapcase" | "casefold" => {
                bind(&[])?;
                Ok(Value::from(self.change_case(method)))
            }
            "zfill" | "ljust" | "rjust" | "center" => {
                let args = bind(&["width", "fill"])?;
                self.pad(method, &args)
            }
            _ => {
                let answer = self.classify(method).ok_or(ErrorKind::UnknownMethod)?;
                bind(&[])?;
                Ok(Value::from(answer))
            }
        }
    }

    /// Python's `is…` methods; `None` for any other name.
    fn classify(&self, method: &str) -> Option<bool> {
        let all =
            |test: fn(char) -> bool| !self.plain.is_empty() && self.plain.iter().all(|&c| test(c));
        let any = |test: fn(&char) -> bool| self.plain.iter().any(test);
        Some(match method {
            "isspace" => all(is_space),
            "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
            "isalpha" => all(char::is_alphabetic),
            "isalnum" => all(char::is_alphanumeric),
            "isascii" => self.plain.iter().all(char::is_ascii),
            "islower" => any(|c| c.is_lowercase()) && !any(|c| c.is_uppercase()),
            "isupper" => any(|c| c.is_uppercase()) && !any(|c| c.is_lowercase()),
            _ => return None,
        })
    }

    pub(super) fn strip(&self, chars: Option<&str>, left: bool, right: bool) -> Value {
        let chars = chars.map(|chars| self.plain_chars(chars));
        let drop = |c: &char| chars.as_ref().map_or_else(|| is_space(*c), |set| set.contains(c));
        let (mut start, mut end) = (0, self.plain.len());
        while left && start < end && drop(&self.plain[start]) {
            start += 1;
        }
        while right && start < end && drop(&self.plain[end - 1]) {
            end -= 1;
        }
        self.cut(start..end)
    }

    fn starts_at(&self, needle: &[char], at: usize, end: usize) -> bool {
        at + needle.len() <= end && self.plain[at..at + needle.len()] == *needle
    }

    /// Starts of the disjoint occurrences of `needle` from the left; an empty one occurs before
    /// every character and at the end.
    fn matches(&self, needle: &[char], range: Range<usize>, max: Option<usize>) -> Vec<usize> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at + needle.len() <= range.end && max.is_none_or(|max| found.len() < max) {
            if self.starts_at(needle, at, range.end) {
                found.push(at);
                at += needle.len().max(1);
            } else {
                at += 1;
            }
        }
        found
    }

    fn split(&self, sep: Option<&str>, max: Option<usize>, right: bool) -> Result<Value, Error> {
        let Some(sep) = sep else { return Ok(self.split_space(max, right)) };
        let sep = self.plain_chars(sep);
        if sep.is_empty() {
            return Err(invalid("split: empty separator"));
        }
        let found = if right {
            let mut found = Vec::new();
            let mut end = self.plain.len();
            while max.is_none_or(|max| found.len() < max) {
                let last = (0..(end + 1).saturating_sub(sep.len()))
                    .rev()
                    .find(|&at| self.starts_at(&sep, at, end));
                let Some(at) = last else { break };
                found.push(at);
                end = at;
            }
            found.reverse();
            found
        } else {
            self.matches(&sep, 0..self.plain.len(), max)
        };
        let mut parts = Vec::with_capacity(found.len() + 1);
        let mut start = 0;
        for at in found {
            parts.push(self.cut(start..at));
            start = at + sep.len();
        }
        parts.push(self.cut(start..self.plain.len()));
        Ok(Value::from(parts))
    }

    /// Splits at runs of white space. The part beyond the last allowed split keeps its inner and
    /// its far white space, as in Python.
    fn split_space(&self, max: Option<usize>, right: bool) -> Value {
        let len = self.plain.len();
        // Seen from the side that splitting starts at.
        let place = |at: usize| if right { len - 1 - at } else { at };
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut at = 0;
        loop {
            while at < len && is_space(self.plain[place(at)]) {
                at += 1;
            }
            if at == len {
                break;
            }
            let start = at;
            if max.is_some_and(|max| parts.len() == max) {
                parts.push(start..len);
                break;
            }
            while at < len && !is_space(self.plain[place(at)]) {
                at += 1;
            }
            parts.push(start..at);
        }
        let mut cut: Vec<Value> = parts
            .into_iter()
            .map(|part| self.cut(if right { len - part.end..len - part.start } else { part }))
            .collect();
        if right {
            cut.reverse();
        }
        Value::from(cut)
    }

    fn split_lines(&self, keep_ends: bool) -> Value {
        let mut lines = Vec::new();
        let mut start = 0;
        let mut at = 0;
        while at < self.plain.len() {
            let c = self.plain[at];
            at += 1;
            if !is_line_end(c) {
                continue;
            }
            let end = at - 1;
            if c == '\r' && self.plain.get(at) == Some(&'\n') {
                at += 1;
            }
            lines.push(self.cut(start..if keep_ends { at } else { end }));
            start = at;
        }
        if start < self.plain.len() {
            lines.push(self.cut(start..self.plain.len()));
        }
        Value::from(lines)
    }

    fn partition(&self, sep: &str, right: bool) -> Result<Value, Error> {
        let needle = self.plain_chars(sep);
        if needle.is_empty() {
            return Err(invalid("partition: empty separator"));
        }
        let len = self.plain.len();
        let found = self.find(&needle, 0..len, right);
        let empty = Value::from("");
        let parts = match found {
            Some(at) => {
                let after = at + needle.len();
                [self.cut(0..at), self.cut(at..after), self.cut(after..len)]
            }
            None if right => [empty.clone(), empty, self.cut(0..len)],
            None => [self.cut(0..len), empty.clone(), empty],
        };
        Ok(Value::from(Tuple::from(parts)))
    }

    fn find(&self, needle: &[char], range: Range<usize>, right: bool) -> Option<usize> {
        let mut places = range.start..(range.end + 1).saturating_sub(needle.len());
        if right {
            places.rfind(|&at| self.starts_at(needle, at, range.end))
        } else {
            places.find(|&at| self.starts_at(needle, at, range.end))
        }
    }

    fn position(&self, method: &str, sub: &str, range: Range<usize>) -> Result<Value, Error> {
        let needle = self.plain_chars(sub);
        match self.find(&needle, range, method.starts_with('r')) {
            Some(at) => Ok(Value::from(at)),
            None if method.ends_with("find") => Ok(Value::from(-1)),
            None => Err(invalid(format!("{method}: substring not found"))),
        }
    }

    /// Clamps Python's `start` and `end` arguments to the string.
    fn bounds(&self, start: Option<i64>, end: Option<i64>) -> Range<usize> {
        let len = self.plain.len();
        let clamp = |at: i64| match usize::try_from(at) {
            Ok(at) => at.min(len),
            Err(_) => len.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(len)),
        };
        let end = end.map_or(len, clamp);
        start.map_or(0, clamp).min(end)..end
    }

    fn has_affix(&self, affix: &Value, range: Range<usize>, end: bool) -> Result<Value, Error> {
        let affixes = if affix.as_str().is_some() {
            vec![affix.clone()]
        } else if affix.is_tuple() {
            affix.try_iter()?.collect()
        } else {
            return Err(invalid("startswith and endswith take a string or a tuple of strings"));
        };
        for affix in &affixes {
            let text = affix.as_str().ok_or_else(|| invalid("an affix must be a string"))?;
            let needle = self.plain_chars(text);
            let hit = if end {
                needle.len() <= range.len() && self.plain[range.clone()].ends_with(&needle)
            } else {
                self.plain[range.clone()].starts_with(&needle)
            };
            if hit {
                return Ok(Value::from(true));
            }
        }
        Ok(Value::from(false))
    }

    fn remove_affix(&self, affix: &[char], suffix: bool) -> Value {
        let len = self.plain.len();
        if suffix && self.plain.ends_with(affix) {
            self.cut(0..len - affix.len())
        } else if !suffix && self.plain.starts_with(affix) {
            self.cut(affix.len()..len)
        } else {
            self.cut(0..len)
        }
    }

    pub(super) fn replace(&self, old: &str, new: &str, max: Option<usize>) -> Value {
        let needle = self.plain_chars(old);
        let mut out = String::new();
        let mut start = 0;
        for at in self.matches(&needle, 0..self.plain.len(), max) {
            out.extend(&self.shown[start..at]);
            out.push_str(new);
            start = at + needle.len();
        }
        out.extend(&self.shown[start..]);
        Value::from(out)
    }

    fn join(&self, items: &Value) -> Result<Value, Error> {
        let sep: String = self.shown.iter().collect();
        let mut out = String::new();
        for (at, item) in items.try_iter()?.enumerate() {
            if at > 0 {
                out.push_str(&sep);
            }
            let text = item
                .as_str()
                .ok_or_else(|| invalid(format!("join: expected a string, not {}", item.kind())))?;
            out.push_str(text);
        }
        Ok(Value::from(out))
    }

    pub(super) fn change_case(&self, method: &str) -> String {
        let plain: String = self.plain.iter().collect();
        // Without stand-ins the whole-string mappings know about final sigma.
        if self.plain == self.shown && matches!(method, "upper" | "lower") {
            return if method == "upper" { plain.to_uppercase() } else { plain.to_lowercase() };
        }
        let mut out = String::with_capacity(self.shown.len());
        let mut in_word = false;
        for (at, (&plain, &shown)) in self.plain.iter().zip(&self.shown).enumerate() {
            let upper = match method {
                "upper" => true,
                "capitalize" => at == 0,
                "title" => !in_word,
                "swapcase" => plain.is_lowercase(),
                _ => false,
            };
            in_word = plain.is_alphabetic();
            let inherit = |made| self.marks.inherit(shown, made);
            if upper {
                out.extend(plain.to_uppercase().map(inherit));
            } else {
                out.extend(plain.to_lowercase().map(inherit));
            }
        }
        out
    }

    fn pad(&self, method: &str, args: &Args) -> Result<Value, Error> {
        let width = args.int(0)?.ok_or_else(|| invalid(format!("{method}: width is missing")))?;
        let missing = usize::try_from(width).unwrap_or(0).saturating_sub(self.plain.len());
        let fill = if method == "zfill" { "0" } else { args.text(1)?.unwrap_or(" ") };
        if fill.chars().count() != 1 {
            return Err(invalid(format!("{method}: the fill must be one character")));
        }
        // Python puts the odd blank of `center` on the left when the width is odd.
        let odd = usize::from(missing % 2 == 1 && width % 2 == 1);
        let left = match method {
            "ljust" => 0,
            "center" => missing / 2 + odd,
            _ => missing,
        };
        let signed = method == "zfill" && matches!(self.plain.first(), Some('+' | '-'));
        let mut out: String = self.shown[..usize::from(signed)].iter().collect();
        out.push_str(&fill.repeat(left));
        out.extend(&self.shown[usize::from(signed)..]);
        out.push_str(&fill.repeat(missing - left));
        Ok(Value::from(out))
    }
}
