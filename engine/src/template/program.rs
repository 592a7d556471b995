//! A template as a program: compiled by the template engine, then rewritten so that its operators
//! are Python's and see through marks.

use std::sync::Arc;

use jiff::civil::DateTime;
use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, eval, make_string_output, parse,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};

use super::filters::{install, iterate};
use super::marks::{DataMap, Marks};
use super::methods;
use super::ops::{Op, slice};
use super::python::write_str;
use super::{TemplateError, error};

const NAME: &str = "chat template";
const SLICE: &str = "[:]";
const ITERATE: &str = "iter()";
const ATTRIBUTE: &str = ".method";

/// Names of Python's dict methods. `data.items` is the method, not the entry, in jinja2.
const DICT_METHODS: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

/// The lexer settings of the hub's library.
fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// Checks that prepared `source` parses, without compiling it: compiling folds constants, which
/// a hostile template can make expensive.
pub(super) fn check(source: &str) -> Result<(), TemplateError> {
    let parsed = syntax().and_then(|syntax| parse(source, NAME, syntax).map(drop));
    parsed.map_err(|failure| error::from_engine(&failure))
}

/// Renders prepared `source` once, with strings of the context marked by `marks` already.
///
/// `fuel` bounds the number of instructions; memory and time are bounded by the process.
pub(super) fn run(
    source: &str,
    marks: &Arc<Marks>,
    now: DateTime,
    context: Value,
    fuel: u64,
) -> Result<String, TemplateError> {
    let env = environment(marks, now, fuel);
    let failed = |failure: Error| match failure.kind() {
        ErrorKind::OutOfFuel => TemplateError::OutOfFuel { fuel },
        _ => error::from_engine(&failure),
    };
    let tree = syntax().and_then(|syntax| parse(source, NAME, syntax)).map_err(failed)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (main, blocks) = generator.finish();
    let main = rewrite(source, &main);
    let blocks = blocks.iter().map(|(&name, code)| (name, rewrite(source, code))).collect();
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    let result = eval(&env, &main, context, &blocks, &mut output, AutoEscape::None);
    result.map(drop).map_err(failed)?;
    drop(output);
    Ok(text)
}

fn environment(marks: &Arc<Marks>, now: DateTime, fuel: u64) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(fuel));
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    install(&mut env, marks);
    for op in Op::ALL {
        let of = Arc::clone(marks);
        env.add_function(op.name(), move |left: &Value, right: &Value| op.apply(&of, left, right));
        let of = Arc::clone(marks);
        env.add_function(op.chained_name(), move |left: &Value, right: &Value| {
            op.apply(&of, left, right).map(|answer| Value::from(vec![answer, right.clone()]))
        });
    }
    env.add_function(SLICE, |value: &Value, start: &Value, stop: &Value, step: &Value| {
        slice(value, start, stop, step)
    });
    env.add_function(ITERATE, |value: &Value| iterate(value).map(|_| value.clone()));
    env.add_function(ATTRIBUTE, |value: &Value, name: &str| {
        if value.downcast_object_ref::<DataMap>().is_some() {
            return Ok(Value::from_function(unsupported_method));
        }
        value.get_attr(name)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(error::raised(message))
    });
    let of = Arc::clone(marks);
    env.add_function("strftime_now", move |format: &str| {
        jiff::fmt::strtime::format(of.plain(format).as_ref(), now)
            .map_err(|failure| methods::invalid(format!("strftime_now: {failure}")))
    });
    let of = Arc::clone(marks);
    env.set_formatter(move |out, _, value| {
        let mut text = String::new();
        write_str(&of, &mut text, value);
        out.write_str(&text).map_err(Error::from)
    });
    let of = Arc::clone(marks);
    env.set_unknown_method_callback(move |state, value, method, args| {
        methods::call(&of, state, value, method, args)
    });
    env
}

/// What a dict method that was fetched without being called does when it is called after all.
fn unsupported_method(_: Rest<Value>) -> Result<Value, Error> {
    Err(methods::invalid("a method of a dict can only be called where it is named"))
}

fn op_of(instruction: &Instruction<'_>) -> Option<Op> {
    Some(match instruction {
        Instruction::Add => Op::Add,
        Instruction::Mul => Op::Mul,
        Instruction::Rem => Op::Rem,
        Instruction::StringConcat => Op::Concat,
        Instruction::Eq => Op::Eq,
        Instruction::Ne => Op::Ne,
        Instruction::Lt => Op::Lt,
        Instruction::Lte => Op::Lte,
        Instruction::Gt => Op::Gt,
        Instruction::Gte => Op::Gte,
        Instruction::In => Op::In,
        Instruction::GetItem => Op::Item,
        _ => return None,
    })
}

/// The replacement of one instruction: the stack holds the operands in call order already.
fn replacement<'a>(instruction: &Instruction<'a>) -> Vec<Instruction<'a>> {
    use minijinja::machinery::Instruction as I;
    if let Some(op) = op_of(instruction) {
        return vec![I::CallFunction(op.name(), Some(2))];
    }
    match instruction {
        I::CompareAndPreserve(op) => {
            let name = chained(format!("{op:?}").as_str());
            // Unpacking leaves the first item, the answer, on top of the right operand.
            vec![I::CallFunction(name, Some(2)), I::UnpackList(2)]
        }
        I::Slice => vec![I::CallFunction(SLICE, Some(4))],
        I::PushLoop(flags) => vec![I::CallFunction(ITERATE, Some(1)), I::PushLoop(*flags)],
        I::GetAttr(name) if DICT_METHODS.contains(name) => {
            vec![I::LoadConst(Value::from(*name)), I::CallFunction(ATTRIBUTE, Some(2))]
        }
        // Folding of constants leaves lazy sequences behind; Python has lists.
        I::LoadConst(value) if value.kind() == ValueKind::Iterable => {
            vec![I::LoadConst(value.try_iter().map_or_else(|_| value.clone(), Value::from_iter))]
        }
        other => vec![other.clone()],
    }
}

/// The chained function of a comparison, whose type the engine does not export by name.
fn chained(op: &str) -> &'static str {
    let op = match op {
        "Eq" => Op::Eq,
        "Ne" => Op::Ne,
        "Lt" => Op::Lt,
        "Lte" => Op::Lte,
        "Gt" => Op::Gt,
        "Gte" => Op::Gte,
        "In" => Op::In,
        _ => Op::NotIn,
    };
    op.chained_name()
}

/// Replaces the instructions of `code`, moving jump targets along.
fn rewrite<'a>(source: &'a str, code: &Instructions<'a>) -> Instructions<'a> {
    let replaced: Vec<Vec<Instruction<'a>>> =
        (0..).map_while(|at| code.get(at)).map(replacement).collect();
    let mut starts = Vec::with_capacity(replaced.len() + 1);
    let mut next = 0u32;
    for instructions in &replaced {
        starts.push(next);
        next += instructions.len() as u32;
    }
    starts.push(next);
    let moved = |target: u32| starts.get(target as usize).copied().unwrap_or(next);
    let mut out = Instructions::new(NAME, source);
    for (at, instructions) in replaced.into_iter().enumerate() {
        let line = code.get_line(at as u32).unwrap_or(0);
        for instruction in instructions {
            let instruction = match instruction {
                Instruction::Iterate(to) => Instruction::Iterate(moved(to)),
                Instruction::Jump(to) => Instruction::Jump(moved(to)),
                Instruction::JumpIfFalse(to) => Instruction::JumpIfFalse(moved(to)),
                Instruction::JumpIfFalseOrPop(to) => Instruction::JumpIfFalseOrPop(moved(to)),
                Instruction::JumpIfTrueOrPop(to) => Instruction::JumpIfTrueOrPop(moved(to)),
                Instruction::BuildMacro(name, to, flags) => {
                    Instruction::BuildMacro(name, moved(to), flags)
                }
                other => other,
            };
            out.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX));
        }
    }
    out
}
