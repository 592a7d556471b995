//! Provenance of characters: which of them came out of a message.
//!
//! A marked string has the same length, in characters, as the text it stands for. Every character
//! that occurs in some control spelling is replaced by a stand-in from a private-use plane, so a
//! marked `<` and a `<` that the template wrote are different characters in the output, while the
//! marked string still slices, splits, joins and measures like its original. What must not see
//! the difference (comparisons, searches, look-ups) asks for the plain form first.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, Tuple, Value, ValueKind};

/// The private-use code points that stand-ins are taken from (planes 15 and 16, less their
/// noncharacters).
const STAND_IN_PLANES: [Range<u32>; 2] = [0x10_0000..0x10_FFFE, 0xF_0000..0xF_FFFE];

/// Containers are compared by their plain copies down to this depth; deeper ones compare as they
/// are, which the check against the plain rendering catches if it matters.
const DEPTH_MAX: usize = 64;

/// The one-to-one map between the alphabet of the control spellings and its stand-ins.
#[derive(Debug, Default)]
pub(super) struct Marks {
    base: u32,
    plain: Vec<char>,
    marked: HashMap<char, char>,
}

impl Marks {
    /// Stand-ins for every character of `spellings`, in both cases because a template may change
    /// the case of a message, from a block that does not occur in any of `texts`.
    ///
    /// Whitespace stays as it is: a spelling never consists of it alone, and templates trim.
    /// `None` means that no block of the private-use planes is free.
    pub(super) fn choose<'a>(
        spellings: &[String],
        texts: impl Iterator<Item = &'a str>,
    ) -> Option<Marks> {
        let mut alphabet = BTreeSet::new();
        for c in spellings.iter().flat_map(|s| s.chars()).filter(|c| !c.is_whitespace()) {
            alphabet.insert(c);
            alphabet.extend(single(c.to_lowercase()));
            alphabet.extend(single(c.to_uppercase()));
        }
        let taken: BTreeSet<u32> =
            texts.flat_map(str::chars).map(u32::from).filter(|&c| c >= 0xF_0000).collect();
        let len = u32::try_from(alphabet.len()).ok()?;
        let base = STAND_IN_PLANES.into_iter().find_map(|plane| {
            plane
                .clone()
                .step_by(alphabet.len().max(1))
                .take_while(|base| base + len <= plane.end)
                .find(|&base| taken.range(base..base + len).next().is_none())
        })?;
        let plain: Vec<char> = alphabet.into_iter().collect();
        let marked = plain
            .iter()
            .zip(base..)
            .map(|(&c, mark)| Some((c, char::from_u32(mark)?)))
            .collect::<Option<_>>()?;
        Some(Marks { base, plain, marked })
    }

    /// Whether no character has a stand-in, which is the case in a plain rendering.
    pub(super) fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    fn original(&self, c: char) -> Option<char> {
        let offset = u32::from(c).checked_sub(self.base)?;
        self.plain.get(offset as usize).copied()
    }

    /// Whether `c` is a stand-in.
    pub(super) fn is_mark(&self, c: char) -> bool {
        self.original(c).is_some()
    }

    /// The character that `c` stands for, or `c` itself.
    pub(super) fn plain_char(&self, c: char) -> char {
        self.original(c).unwrap_or(c)
    }

    /// The stand-in of `c`, or `c` itself when it occurs in no spelling.
    pub(super) fn mark_char(&self, c: char) -> char {
        self.marked.get(&c).copied().unwrap_or(c)
    }

    /// `made`, with the provenance of the character it was made from.
    pub(super) fn inherit(&self, from: char, made: char) -> char {
        if self.is_mark(from) { self.mark_char(made) } else { made }
    }

    /// `text` with every character of the alphabet replaced by its stand-in.
    pub(super) fn mark(&self, text: &str) -> String {
        text.chars().map(|c| self.mark_char(c)).collect()
    }

    /// The text that `text` stands for.
    pub(super) fn plain<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.is_empty() || !text.chars().any(|c| self.is_mark(c)) {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.chars().map(|c| self.plain_char(c)).collect())
    }

    /// The plain form of `text`, and the byte ranges in it that came from stand-ins: ascending,
    /// disjoint, and merged where they touch.
    pub(super) fn resolve(&self, text: &str) -> (String, Vec<Range<usize>>) {
        let mut plain = String::with_capacity(text.len());
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for c in text.chars() {
            let start = plain.len();
            plain.push(self.plain_char(c));
            if !self.is_mark(c) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = plain.len(),
                _ => ranges.push(start..plain.len()),
            }
        }
        (plain, ranges)
    }

    /// The plain form of a value: strings, and the containers that hold them.
    pub(super) fn plain_value(&self, value: &Value) -> Value {
        if self.is_empty() { value.clone() } else { self.plain_value_at(value, 0) }
    }

    fn plain_value_at(&self, value: &Value, depth: usize) -> Value {
        if let Some(text) = value.as_str() {
            return match self.plain(text) {
                Cow::Borrowed(_) => value.clone(),
                Cow::Owned(plain) => Value::from(plain),
            };
        }
        if depth == DEPTH_MAX {
            return value.clone();
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let Ok(items) = value.try_iter() else { return value.clone() };
                let items: Vec<Value> =
                    items.map(|item| self.plain_value_at(&item, depth + 1)).collect();
                if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) }
            }
            ValueKind::Map if value.downcast_object_ref::<DataMap>().is_some() => {
                let pairs = value.as_object().and_then(|map| map.try_iter_pairs());
                Value::from_pairs(pairs.into_iter().flatten().map(|(key, item)| {
                    (self.plain_value_at(&key, depth + 1), self.plain_value_at(&item, depth + 1))
                }))
            }
            _ => value.clone(),
        }
    }
}

/// The one character of a case mapping; mappings to several change the length and are left out.
fn single(mut mapped: impl ExactSizeIterator<Item = char>) -> Option<char> {
    if mapped.len() == 1 { mapped.next() } else { None }
}

/// Turns JSON into template values whose strings, keys included, are marked.
pub(super) fn marked_value(marks: &Arc<Marks>, json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => number_value(number),
        serde_json::Value::String(text) => Value::from(marks.mark(text)),
        serde_json::Value::Array(items) => {
            Value::from(items.iter().map(|item| marked_value(marks, item)).collect::<Vec<_>>())
        }
        serde_json::Value::Object(fields) => DataMap::value(
            marks,
            fields.iter().map(|(key, item)| (key.as_str(), marked_value(marks, item))),
        ),
    }
}

fn number_value(number: &serde_json::Number) -> Value {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(int), ..) => Value::from(int),
        (None, Some(int), _) => Value::from(int),
        (None, None, float) => Value::from(float.unwrap_or(f64::NAN)),
    }
}

/// An object of the caller's data: looked up by plain key, iterated by marked key.
#[derive(Debug)]
pub(super) struct DataMap {
    marks: Arc<Marks>,
    keys: Vec<Value>,
    entries: HashMap<String, Value>,
}

impl DataMap {
    /// A value holding `fields`, in their order.
    pub(super) fn value<'a>(
        marks: &Arc<Marks>,
        fields: impl Iterator<Item = (&'a str, Value)>,
    ) -> Value {
        let mut map =
            DataMap { marks: Arc::clone(marks), keys: Vec::new(), entries: HashMap::new() };
        for (key, value) in fields {
            map.keys.push(Value::from(marks.mark(key)));
            map.entries.insert(key.to_owned(), value);
        }
        Value::from_object(map)
    }
}

impl Object for DataMap {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.entries.get(self.marks.plain(key.as_str()?).as_ref()).cloned()
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.entries.get(self.marks.plain(key).as_ref()).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.keys.clone())
    }
}
