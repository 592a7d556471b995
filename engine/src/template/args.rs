//! Binding of call arguments to parameter names, as Python does it.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

/// The arguments of one call, by position of the parameter; absent ones are `None`.
pub(super) struct Args {
    call: String,
    slots: Vec<Option<Value>>,
}

impl Args {
    /// Binds `args` (positional, then at most one block of keyword arguments) to `names`.
    ///
    /// # Errors
    /// Too many arguments, or a keyword that is not in `names`.
    pub(super) fn bind(call: &str, names: &[&str], args: &[Value]) -> Result<Args, Error> {
        let mut slots: Vec<Option<Value>> = vec![None; names.len()];
        let keywords = args.last().filter(|last| last.is_kwargs());
        let positional = &args[..args.len() - usize::from(keywords.is_some())];
        if positional.len() > names.len() {
            return Err(Error::new(
                ErrorKind::TooManyArguments,
                format!("{call}: takes at most {} arguments", names.len()),
            ));
        }
        for (slot, value) in slots.iter_mut().zip(positional) {
            *slot = Some(value.clone());
        }
        if let Some(keywords) = keywords {
            for key in keywords.try_iter()? {
                let slot = key.as_str().and_then(|key| names.iter().position(|name| *name == key));
                let Some(slot) = slot else {
                    return Err(Error::new(
                        ErrorKind::TooManyArguments,
                        format!("{call}: unknown keyword argument {key}"),
                    ));
                };
                slots[slot] = Some(keywords.get_item(&key)?);
            }
        }
        Ok(Args { call: call.to_owned(), slots })
    }

    /// The argument at `slot`, if given.
    pub(super) fn get(&self, slot: usize) -> Option<&Value> {
        self.slots[slot].as_ref()
    }

    /// The argument at `slot`, if given and not `None`.
    pub(super) fn given(&self, slot: usize) -> Option<&Value> {
        self.get(slot).filter(|value| !value.is_none())
    }

    /// The argument at `slot`.
    pub(super) fn require(&self, slot: usize) -> Result<&Value, Error> {
        self.get(slot).ok_or_else(|| {
            Error::new(
                ErrorKind::MissingArgument,
                format!("{}: argument {} is missing", self.call, slot + 1),
            )
        })
    }

    /// The string at `slot`, or `None` if it is absent or `None`.
    pub(super) fn text(&self, slot: usize) -> Result<Option<&str>, Error> {
        let Some(value) = self.given(slot) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(slot, "a string", value))
    }

    /// The string at `slot`.
    pub(super) fn require_text(&self, slot: usize) -> Result<&str, Error> {
        let value = self.require(slot)?;
        value.as_str().ok_or_else(|| self.wrong(slot, "a string", value))
    }

    /// The integer at `slot`, or `None` if it is absent or `None`.
    pub(super) fn int(&self, slot: usize) -> Result<Option<i64>, Error> {
        let Some(value) = self.given(slot) else { return Ok(None) };
        value.as_i64().map(Some).ok_or_else(|| self.wrong(slot, "an integer", value))
    }

    /// Whether the argument at `slot` is given and true.
    pub(super) fn flag(&self, slot: usize) -> bool {
        self.get(slot).is_some_and(Value::is_true)
    }

    fn wrong(&self, slot: usize, expected: &str, found: &Value) -> Error {
        Error::new(
            ErrorKind::InvalidOperation,
            format!(
                "{}: argument {} must be {expected}, not {}",
                self.call,
                slot + 1,
                found.kind()
            ),
        )
    }
}
