//! Filters and tests that behave as in Python's jinja2, for marked and plain values.
//!
//! Filters that only move values about (`list`, `first`, `map`, `selectattr`, ...) are the
//! template engine's own.

use std::sync::Arc;

use minijinja::value::{Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error};

use super::args::Args;
use super::marks::Marks;
use super::methods::{Text, invalid};
use super::ops::{Op, compare};
use super::python::{JsonStyle, to_json, to_str};

type Filter = fn(&Marks, &Value, &[Value]) -> Result<Value, Error>;

/// Adds the filters and tests to `env`.
pub(super) fn install(env: &mut Environment<'_>, marks: &Arc<Marks>) {
    let filters: [(&'static str, Filter); 24] = [
        ("tojson", tojson),
        ("trim", trim),
        ("upper", |marks, value, _| Ok(change_case(marks, value, "upper"))),
        ("lower", |marks, value, _| Ok(change_case(marks, value, "lower"))),
        ("capitalize", |marks, value, _| Ok(change_case(marks, value, "capitalize"))),
        ("title", title),
        ("center", center),
        ("length", length),
        ("count", length),
        ("escape", escape),
        ("e", escape),
        ("string", |marks, value, _| Ok(Value::from(to_str(marks, value)))),
        ("safe", |marks, value, _| Ok(Value::from(to_str(marks, value)))),
        ("replace", replace),
        ("join", join),
        ("indent", indent),
        ("default", default),
        ("d", default),
        ("int", int),
        ("float", float),
        ("dictsort", dict_sort),
        ("sort", sort),
        ("unique", unique),
        ("items", items),
    ];
    for (name, filter) in filters {
        let marks = Arc::clone(marks);
        env.add_filter(name, move |value: &Value, args: Rest<ValueOrKwargs>| {
            filter(&marks, value, &args.into_values())
        });
    }
    let comparisons: [(&'static str, Op); 16] = [
        ("eq", Op::Eq),
        ("equalto", Op::Eq),
        ("==", Op::Eq),
        ("ne", Op::Ne),
        ("!=", Op::Ne),
        ("lt", Op::Lt),
        ("lessthan", Op::Lt),
        ("<", Op::Lt),
        ("le", Op::Lte),
        ("<=", Op::Lte),
        ("gt", Op::Gt),
        ("greaterthan", Op::Gt),
        (">", Op::Gt),
        ("ge", Op::Gte),
        (">=", Op::Gte),
        ("in", Op::In),
    ];
    for (name, op) in comparisons {
        let marks = Arc::clone(marks);
        env.add_test(name, move |left: &Value, right: &Value| {
            op.apply(&marks, left, right).map(|answer| answer.is_true())
        });
    }
    // Whatever has a length and takes an index counts as a sequence, as it does in jinja2.
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    for name in ["upper", "lower"] {
        let marks = Arc::clone(marks);
        env.add_test(name, move |value: &Value| {
            let text = to_str(&marks, value);
            let plain = marks.plain(&text);
            let cased = |test: fn(char) -> bool| plain.chars().any(test);
            if name == "upper" {
                cased(char::is_uppercase) && !cased(char::is_lowercase)
            } else {
                cased(char::is_lowercase) && !cased(char::is_uppercase)
            }
        });
    }
}

fn tojson(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let args = Args::bind("tojson", &names, args)?;
    let indent = match args.given(1) {
        None => None,
        Some(text) if text.as_str().is_some() => args.text(1)?.map(str::to_owned),
        Some(_) => {
            let width = usize::try_from(args.int(1)?.unwrap_or(0)).unwrap_or(0);
            if width > INDENT_MAX {
                return Err(invalid("tojson: the indent is too wide"));
            }
            Some(" ".repeat(width))
        }
    };
    let separators = match args.given(2) {
        None => None,
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let [item, key] = pair.as_slice() else {
                return Err(invalid("tojson: separators must be a pair of strings"));
            };
            Some((to_str(marks, item), to_str(marks, key)))
        }
    };
    let style =
        JsonStyle { ensure_ascii: args.flag(0), indent, separators, sort_keys: args.flag(3) };
    to_json(marks, value, &style).map(Value::from)
}

/// The widest indent in spaces; it is repeated for every level and line.
const INDENT_MAX: usize = 10_000;

fn trim(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("trim", &["chars"], args)?;
    Ok(Text::new(marks, &to_str(marks, value)).strip(args.text(0)?, true, true))
}

fn change_case(marks: &Marks, value: &Value, method: &str) -> Value {
    Value::from(Text::new(marks, &to_str(marks, value)).change_case(method))
}

/// The `title` filter, unlike the method, takes only white space and a few signs for the end of a
/// word.
fn title(marks: &Marks, value: &Value, _: &[Value]) -> Result<Value, Error> {
    let text = to_str(marks, value);
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        let plain = marks.plain_char(c);
        if begins {
            out.extend(plain.to_uppercase().map(|made| marks.inherit(c, made)));
        } else {
            out.extend(plain.to_lowercase().map(|made| marks.inherit(c, made)));
        }
        begins = plain.is_whitespace() || "-({[<".contains(plain);
    }
    Ok(Value::from(out))
}

fn center(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("center", &["width"], args)?;
    let width = args.get(0).cloned().unwrap_or_else(|| Value::from(80));
    Text::new(marks, &to_str(marks, value)).call("center", &[width])
}

fn length(_: &Marks, value: &Value, _: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(0));
    }
    let len = match value.kind() {
        ValueKind::Iterable => Some(value.try_iter()?.count()),
        _ => value.len(),
    };
    len.map(Value::from).ok_or_else(|| invalid(format!("{} has no length", value.kind())))
}

fn escape(marks: &Marks, value: &Value, _: &[Value]) -> Result<Value, Error> {
    let mut out = String::new();
    for c in to_str(marks, value).chars() {
        let entity = match marks.plain_char(c) {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '\'' => "&#39;",
            '"' => "&#34;",
            _ => {
                out.push(c);
                continue;
            }
        };
        out.extend(entity.chars().map(|made| marks.inherit(c, made)));
    }
    Ok(Value::from(out))
}

fn replace(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("replace", &["old", "new", "count"], args)?;
    let count = args.int(2)?.and_then(|count| usize::try_from(count).ok());
    let (old, new) = (to_str(marks, args.require(0)?), to_str(marks, args.require(1)?));
    Ok(Text::new(marks, &to_str(marks, value)).replace(&old, &new, count))
}

fn join(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("join", &["d", "attribute"], args)?;
    let sep = args.get(0).map(|sep| to_str(marks, sep)).unwrap_or_default();
    let mut out = String::new();
    for (at, item) in iterate(value)?.enumerate() {
        if at > 0 {
            out.push_str(&sep);
        }
        let item = path(&item, args.given(1))?;
        out.push_str(&to_str(marks, &item));
    }
    Ok(Value::from(out))
}

/// Iterates as Python does: not over `None`.
pub(super) fn iterate(value: &Value) -> Result<minijinja::value::ValueIter, Error> {
    if value.is_none() {
        return Err(invalid("None is not iterable"));
    }
    value.try_iter()
}

/// Follows a jinja2 attribute path: dotted names and indices.
fn path(value: &Value, attribute: Option<&Value>) -> Result<Value, Error> {
    let Some(attribute) = attribute else { return Ok(value.clone()) };
    let Some(dotted) = attribute.as_str() else { return value.get_item(attribute) };
    let mut value = value.clone();
    for part in dotted.split('.') {
        value = match part.parse::<usize>() {
            Ok(index) => value.get_item(&Value::from(index))?,
            Err(_) => value.get_item(&Value::from(part))?,
        };
    }
    Ok(value)
}

fn indent(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("indent", &["width", "first", "blank"], args)?;
    let width = match args.given(0) {
        Some(text) if text.as_str().is_some() => to_str(marks, text),
        _ => {
            let width = usize::try_from(args.int(0)?.unwrap_or(4)).unwrap_or(0);
            if width > INDENT_MAX {
                return Err(invalid("indent: the width is too large"));
            }
            " ".repeat(width)
        }
    };
    let text = to_str(marks, value);
    let mut out = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let wanted = if at == 0 { args.flag(1) } else { args.flag(2) || !line.is_empty() };
        if wanted {
            out.push_str(&width);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn default(_: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("default", &["default_value", "boolean"], args)?;
    if value.is_undefined() || (args.flag(1) && !value.is_true()) {
        return Ok(args.get(0).cloned().unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

fn int(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("int", &["default", "base"], args)?;
    let base = u32::try_from(args.int(1)?.unwrap_or(10)).unwrap_or(0);
    if !(2..=36).contains(&base) {
        return Err(invalid("int: the base must be from 2 to 36"));
    }
    let default = || args.get(0).cloned().unwrap_or_else(|| Value::from(0));
    if let Some(text) = value.as_str() {
        let text = marks.plain(text);
        let text = text.trim();
        let text = match base {
            16 => text.trim_start_matches("0x"),
            8 => text.trim_start_matches("0o"),
            2 => text.trim_start_matches("0b"),
            _ => text,
        };
        let whole = i64::from_str_radix(text, base).ok();
        let cut = || text.parse::<f64>().ok().and_then(truncate);
        return Ok(whole.or_else(cut).map_or_else(default, Value::from));
    }
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => {
            let float = f64::try_from(value.clone()).ok();
            Ok(float.and_then(truncate).map_or_else(default, Value::from))
        }
        _ => Ok(default()),
    }
}

fn truncate(float: f64) -> Option<i64> {
    let whole = float.trunc();
    (whole.abs() < 9.0e18).then_some(whole as i64)
}

fn float(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("float", &["default"], args)?;
    let parsed = match value.as_str() {
        Some(text) => marks.plain(text).trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(match parsed {
        Some(float) => Value::from(float),
        None => args.get(0).cloned().unwrap_or_else(|| Value::from(0.0)),
    })
}

/// The form of a value that sorting and `unique` compare: plain, and in lower case unless case
/// matters.
fn sort_key(marks: &Marks, value: &Value, case_sensitive: bool) -> Value {
    let plain = marks.plain_value(value);
    match plain.as_str() {
        Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => plain,
    }
}

/// Sorts by key, stably, and fails where two keys do not compare.
fn sort_by_keys(mut items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>, Error> {
    let mut failed = None;
    items.sort_by(|(a, _), (b, _)| {
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        compare(a, b).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            // The engine's own order is total, which keeps the sort well defined.
            a.cmp(b)
        })
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(items.into_iter().map(|(_, item)| item).collect()),
    }
}

fn sort(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("sort", &["reverse", "case_sensitive", "attribute"], args)?;
    let keyed = iterate(value)?
        .map(|item| Ok((sort_key(marks, &path(&item, args.given(2))?, args.flag(1)), item)))
        .collect::<Result<_, Error>>()?;
    sort_by_keys(keyed, args.flag(0)).map(Value::from)
}

fn dict_sort(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("dictsort", &["case_sensitive", "by", "reverse"], args)?;
    let by_value = match args.get(1).map(|by| to_str(marks, by)).as_deref() {
        None | Some("key") => false,
        Some("value") => true,
        Some(_) => return Err(invalid("dictsort: by must be \"key\" or \"value\"")),
    };
    let keyed = pairs(value)?
        .map(|(key, item)| {
            let by = if by_value { &item } else { &key };
            (sort_key(marks, by, args.flag(0)), Value::from(Tuple::from([key, item])))
        })
        .collect();
    sort_by_keys(keyed, args.flag(2)).map(Value::from)
}

fn pairs(value: &Value) -> Result<impl Iterator<Item = (Value, Value)> + use<>, Error> {
    let pairs = value.as_object().filter(|_| value.kind() == ValueKind::Map);
    let pairs = pairs.and_then(|map| map.try_iter_pairs());
    pairs.ok_or_else(|| invalid(format!("expected a mapping, not {}", value.kind())))
}

fn items(_: &Marks, value: &Value, _: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    Ok(Value::from(
        pairs(value)?.map(|(key, item)| Value::from(Tuple::from([key, item]))).collect::<Vec<_>>(),
    ))
}

fn unique(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Args::bind("unique", &["case_sensitive", "attribute"], args)?;
    let mut seen = std::collections::BTreeSet::new();
    let mut kept = Vec::new();
    for item in iterate(value)? {
        if seen.insert(sort_key(marks, &path(&item, args.given(1))?, args.flag(0))) {
            kept.push(item);
        }
    }
    Ok(Value::from(kept))
}
