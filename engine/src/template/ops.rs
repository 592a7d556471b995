//! The operators of the template language with Python's meaning, for marked and plain values.

use std::cmp::Ordering;

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::marks::Marks;
use super::methods::invalid;
use super::python::to_str;

/// A binary operator that this module computes instead of the template engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Mul,
    Rem,
    Concat,
    Eq,
    Ne,
    Lt,
    Lte,
    Gt,
    Gte,
    In,
    NotIn,
    Item,
}

impl Op {
    /// Every operator.
    pub(super) const ALL: [Op; 13] = [
        Op::Add,
        Op::Mul,
        Op::Rem,
        Op::Concat,
        Op::Eq,
        Op::Ne,
        Op::Lt,
        Op::Lte,
        Op::Gt,
        Op::Gte,
        Op::In,
        Op::NotIn,
        Op::Item,
    ];

    /// The name under which the operator is a function of the environment. None is an
    /// identifier, so no template can call or replace it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Op::Add => "+",
            Op::Mul => "*",
            Op::Rem => "%",
            Op::Concat => "~",
            Op::Eq => "==",
            Op::Ne => "!=",
            Op::Lt => "<",
            Op::Lte => "<=",
            Op::Gt => ">",
            Op::Gte => ">=",
            Op::In => "in ",
            Op::NotIn => "not in ",
            Op::Item => "[]",
        }
    }

    /// The name of the function for a comparison inside a chain (`a < b < c`); it returns the
    /// right operand and the result.
    pub(super) fn chained_name(self) -> &'static str {
        match self {
            Op::Eq => "== chained",
            Op::Ne => "!= chained",
            Op::Lt => "< chained",
            Op::Lte => "<= chained",
            Op::Gt => "> chained",
            Op::Gte => ">= chained",
            Op::In => "in chained",
            _ => "not in chained",
        }
    }

    /// Computes `left op right`.
    ///
    /// # Errors
    /// Operands of types that Python refuses.
    pub(super) fn apply(self, marks: &Marks, left: &Value, right: &Value) -> Result<Value, Error> {
        match self {
            Op::Add => add(left, right),
            Op::Mul => mul(left, right),
            Op::Rem => rem(left, right),
            Op::Concat => Ok(Value::from(to_str(marks, left) + &to_str(marks, right))),
            Op::Eq => Ok(Value::from(marks.plain_value(left) == marks.plain_value(right))),
            Op::Ne => Ok(Value::from(marks.plain_value(left) != marks.plain_value(right))),
            Op::Lt | Op::Lte | Op::Gt | Op::Gte => {
                let order = compare(&marks.plain_value(left), &marks.plain_value(right))?;
                Ok(Value::from(match self {
                    Op::Lt => order.is_lt(),
                    Op::Lte => order.is_le(),
                    Op::Gt => order.is_gt(),
                    _ => order.is_ge(),
                }))
            }
            Op::In => contains(marks, left, right).map(Value::from),
            Op::NotIn => contains(marks, left, right).map(|found| Value::from(!found)),
            Op::Item => item(marks, left, right),
        }
    }
}

fn unsupported(op: &str, left: &Value, right: &Value) -> Error {
    if left.is_undefined() || right.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("an operand of `{op}` is undefined"));
    }
    invalid(format!("`{op}` does not take {} and {}", left.kind(), right.kind()))
}

/// An integer or a float operand; booleans count as integers.
#[derive(Clone, Copy)]
enum Num {
    Int(i128),
    Float(f64),
}

impl Num {
    fn of(value: &Value) -> Option<Num> {
        match value.kind() {
            ValueKind::Bool => Some(Num::Int(i128::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => {
                i128::try_from(value.clone()).ok().map(Num::Int)
            }
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Num::Float),
            _ => None,
        }
    }

    fn float(self) -> f64 {
        match self {
            Num::Int(int) => int as f64,
            Num::Float(float) => float,
        }
    }
}

fn int_value(int: Option<i128>) -> Result<Value, Error> {
    let int = int.ok_or_else(|| invalid("an integer left the range of 128 bits"))?;
    Ok(i64::try_from(int).map_or_else(|_| Value::from(int), Value::from))
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn add(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        return Ok(Value::from([left, right].concat()));
    }
    if is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple() {
        let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        return Ok(sequence(items, left.is_tuple()));
    }
    match (Num::of(left), Num::of(right)) {
        (Some(Num::Int(a)), Some(Num::Int(b))) => int_value(a.checked_add(b)),
        (Some(a), Some(b)) => Ok(Value::from(a.float() + b.float())),
        _ => Err(unsupported("+", left, right)),
    }
}

fn sequence(items: Vec<Value>, tuple: bool) -> Value {
    if tuple { Value::from(Tuple::from(items)) } else { Value::from(items) }
}

/// Most bytes, or items, that one repetition may make; what a template makes in several steps is
/// bounded by the limits of its process.
const REPEAT_MAX: usize = 100_000_000;

fn mul(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (Num::of(left), Num::of(right)) {
        return match (a, b) {
            (Num::Int(a), Num::Int(b)) => int_value(a.checked_mul(b)),
            _ => Ok(Value::from(a.float() * b.float())),
        };
    }
    let (repeated, count) = if Num::of(right).is_some() { (left, right) } else { (right, left) };
    let Some(Num::Int(count)) = Num::of(count) else {
        return Err(unsupported("*", left, right));
    };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    let check = |len: usize| {
        len.checked_mul(count)
            .filter(|&total| total <= REPEAT_MAX)
            .ok_or_else(|| invalid("a repetition is too long"))
    };
    if let Some(text) = repeated.as_str() {
        check(text.len())?;
        return Ok(Value::from(text.repeat(count)));
    }
    if is_list(repeated) {
        let items: Vec<Value> = repeated.try_iter()?.collect();
        let total = check(items.len())?;
        let items = items.iter().cycle().take(total).cloned().collect();
        return Ok(sequence(items, repeated.is_tuple()));
    }
    Err(unsupported("*", left, right))
}

fn rem(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let args = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right.clone()] };
        return format(FormatStyle::Printf, text, &args).map(Value::from);
    }
    match (Num::of(left), Num::of(right)) {
        (Some(_), Some(b)) if b.float() == 0.0 => Err(invalid("modulo by zero")),
        // The remainder has the sign of the divisor.
        (Some(Num::Int(a)), Some(Num::Int(b))) => {
            let rem = a.checked_rem(b).unwrap_or(0);
            int_value(Some(if rem != 0 && (rem < 0) != (b < 0) { rem + b } else { rem }))
        }
        (Some(a), Some(b)) => {
            let (a, b) = (a.float(), b.float());
            let rem = a % b;
            let signed = if rem != 0.0 && (rem < 0.0) != (b < 0.0) { rem + b } else { rem };
            Ok(Value::from(if signed == 0.0 { 0.0f64.copysign(b) } else { signed }))
        }
        _ => Err(unsupported("%", left, right)),
    }
}

/// The order of two plain values of one type; Python does not order across types.
pub(super) fn compare(left: &Value, right: &Value) -> Result<Ordering, Error> {
    let comparable = (Num::of(left).is_some() && Num::of(right).is_some())
        || (left.as_str().is_some() && right.as_str().is_some())
        || (is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple());
    if comparable { Ok(left.cmp(right)) } else { Err(unsupported("<", left, right)) }
}

/// Whether `container` contains `item`.
pub(super) fn contains(marks: &Marks, item: &Value, container: &Value) -> Result<bool, Error> {
    let item = marks.plain_value(item);
    if let Some(text) = container.as_str() {
        let Some(part) = item.as_str() else { return Err(unsupported("in", &item, container)) };
        return Ok(marks.plain(text).contains(part));
    }
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::Map
            if container.as_object().is_some_and(|map| map.get_value(&item).is_some()) =>
        {
            Ok(true)
        }
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            Ok(container.try_iter()?.any(|found| marks.plain_value(&found) == item))
        }
        _ => Err(unsupported("in", &item, container)),
    }
}

fn item(marks: &Marks, container: &Value, key: &Value) -> Result<Value, Error> {
    if let (Some(text), Some(index)) = (container.as_str(), key.as_i64()) {
        let found = match usize::try_from(index) {
            Ok(index) => text.chars().nth(index),
            Err(_) => text.chars().rev().nth(index.unsigned_abs() as usize - 1),
        };
        return Ok(found.map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    let key = marks.plain_value(key);
    let found = container.get_item(&key)?;
    if found.is_undefined() && container.kind() == ValueKind::Map && !marks.is_empty() {
        // The key of a dict that the template built out of a message is marked.
        let pairs = container.as_object().and_then(|map| map.try_iter_pairs());
        let same = pairs.into_iter().flatten().find(|(own, _)| marks.plain_value(own) == key);
        return Ok(same.map_or(found, |(_, value)| value));
    }
    Ok(found)
}

/// Computes `value[start:stop:step]`.
///
/// # Errors
/// A value that is no sequence, a bound that is no integer, or a step of zero.
pub(super) fn slice(
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    let bound = |bound: &Value| match bound.as_i64() {
        _ if bound.is_none() => Ok(None),
        Some(at) => Ok(Some(at)),
        None => Err(invalid("slice bounds must be integers")),
    };
    let step = bound(step)?.unwrap_or(1);
    let (start, stop) = (bound(start)?, bound(stop)?);
    if step == 0 {
        return Err(invalid("a slice step cannot be zero"));
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        let places = places(chars.len(), start, stop, step);
        return Ok(Value::from(places.map(|at| chars[at]).collect::<String>()));
    }
    if !is_list(value) {
        return Err(unsupported("[:]", value, &Value::from(0)));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let picked = places(items.len(), start, stop, step).map(|at| items[at].clone()).collect();
    Ok(sequence(picked, value.is_tuple()))
}

/// The indices that a slice picks from a sequence of `len` items, as Python's `slice.indices`.
fn places(
    len: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |at: i64| {
        let at = if at < 0 { at.saturating_add(len) } else { at };
        at.clamp(low, high)
    };
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    std::iter::successors(Some(start), move |at| at.checked_add(step))
        .take_while(move |&at| if step > 0 { at < stop } else { at > stop })
        .filter_map(|at| usize::try_from(at).ok())
}
