//! What calls return: a status, and for this thread the text of its last error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a call came to: `AIOS_OK`, or why it did nothing.
pub type Status = i32;

/// The call did what it says.
pub const AIOS_OK: i32 = 0;
/// A pointer that must not be NULL is.
pub const AIOS_NULL_POINTER: i32 = 1;
/// No context has this handle: it never had one, or it was destroyed.
pub const AIOS_BAD_HANDLE: i32 = 2;
/// The `size` of a struct is not one that this library knows.
pub const AIOS_BAD_SIZE: i32 = 3;
/// An argument is not one of those possible, or a text is not UTF-8.
pub const AIOS_BAD_ARGUMENT: i32 = 4;
/// A number is beyond what there is: a block, a row, a token id.
pub const AIOS_OUT_OF_RANGE: i32 = 5;
/// There is nothing of this name.
pub const AIOS_NOT_FOUND: i32 = 6;
/// A buffer is too small; the length that is needed was stored.
pub const AIOS_BUFFER_TOO_SMALL: i32 = 7;
/// The model file cannot be loaded.
pub const AIOS_LOAD: i32 = 8;
/// The plan that was asked for cannot be followed.
pub const AIOS_PLAN: i32 = 9;
/// The system gives too little memory, or the budget is too small.
pub const AIOS_NO_MEMORY: i32 = 10;
/// The context holds no more tokens.
pub const AIOS_CONTEXT_FULL: i32 = 11;
/// Weights could not be read of the disk, or the model gave numbers that are not finite.
pub const AIOS_RUN: i32 = 12;
/// A fault of the library itself. The context, if the call had one, is of no more use.
pub const AIOS_INTERNAL: i32 = 13;

/// The text of a status.
pub(crate) const fn text(status: Status) -> &'static CStr {
    match status {
        AIOS_OK => c"done",
        AIOS_NULL_POINTER => c"a pointer is NULL",
        AIOS_BAD_HANDLE => c"no context has this handle",
        AIOS_BAD_SIZE => c"the size of a struct is unknown",
        AIOS_BAD_ARGUMENT => c"an argument is not possible",
        AIOS_OUT_OF_RANGE => c"a number is out of range",
        AIOS_NOT_FOUND => c"there is nothing of this name",
        AIOS_BUFFER_TOO_SMALL => c"the buffer is too small",
        AIOS_LOAD => c"the model cannot be loaded",
        AIOS_PLAN => c"the plan cannot be followed",
        AIOS_NO_MEMORY => c"too little memory",
        AIOS_CONTEXT_FULL => c"the context is full",
        AIOS_RUN => c"the pass failed",
        AIOS_INTERNAL => c"a fault of the library",
        _ => c"an unknown status",
    }
}

/// Why a call failed: its status, and a sentence.
#[derive(Debug)]
pub(crate) struct Failure {
    pub status: Status,
    pub what: String,
}

impl Failure {
    pub(crate) fn new(status: Status, what: impl ToString) -> Self {
        Self { status, what: what.to_string() }
    }

    /// Of a pointer named `name`.
    pub(crate) fn null(name: &str) -> Self {
        Self::new(AIOS_NULL_POINTER, format!("{name} is NULL"))
    }
}

thread_local! {
    /// The last error of this thread; empty if there was none.
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs the body of a call. What it returns becomes a status; a panic ends here.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::new(AIOS_INTERNAL, text.unwrap_or("a panic without a message")))
    });
    match outcome {
        Ok(()) => AIOS_OK,
        Err(Failure { status, what }) => {
            // A text from a file may hold a NUL, where C's would end.
            let what = CString::new(what.replace('\0', "\\0")).unwrap_or_default();
            // While a thread ends its last error may be gone already.
            let _ = LAST.try_with(|last| last.replace(what));
            status
        }
    }
}

/// The text of this thread's last error.
pub(crate) fn last() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of statuses.
    const STATUSES: i32 = 14;

    fn last_text() -> String {
        LAST.with(|last| last.borrow().to_string_lossy().into_owned())
    }

    #[test]
    fn a_panic_ends_at_the_border_with_its_message() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let statuses = [
            guard(|| panic!("of {}", "owned text")),
            guard(|| std::panic::panic_any(7)),
            guard(|| panic!("plain")),
        ];
        std::panic::set_hook(quiet);
        assert_eq!(statuses, [AIOS_INTERNAL; 3]);
        assert_eq!(last_text(), "plain");
    }

    #[test]
    fn errors_are_kept_for_each_thread() {
        assert_eq!(guard(|| Err(Failure::new(AIOS_LOAD, "a\0b"))), AIOS_LOAD);
        assert_eq!(guard(|| Ok(())), AIOS_OK);
        assert_eq!(last_text(), "a\\0b");
        std::thread::spawn(|| assert_eq!(last_text(), "")).join().expect("no panic");
    }

    #[test]
    fn every_status_has_a_text_of_its_own() {
        let texts: std::collections::BTreeSet<_> = (0..=STATUSES).map(text).collect();
        assert_eq!(texts.len(), STATUSES as usize + 1);
        assert_eq!(text(STATUSES), text(-1));
    }
}
