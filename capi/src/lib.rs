//! `libaios`: the engine for programs in C (SPEC I).
//!
//! This file is the border: it turns pointers into values, calls what is safe, and stores results.
//! Every function returns a status; none unwinds, and none keeps a pointer that it was given.
//! `include/aios.h` is made from it by cbindgen.

mod context;
mod handles;
mod status;
mod types;

use context::Context;
use handles::{Handle, find, insert, remove};
use status::{AIOS_BAD_ARGUMENT, AIOS_BUFFER_TOO_SMALL, Failure, Status, guard};
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use types::{Block, Hardware, Options, Telemetry, read, write, zeroed};

/// The version of this interface. It rises when a program that was compiled before would no longer
/// be understood; structs grow at their ends without that.
pub const AIOS_ABI_VERSION: u32 = 1;

/// The version of the interface that the library has: `AIOS_ABI_VERSION` of its header.
#[unsafe(no_mangle)]
pub extern "C" fn aios_abi_version() -> u32 {
    AIOS_ABI_VERSION
}

/// What a status means. The text is never freed; a number that is no status has one, too.
#[unsafe(no_mangle)]
pub extern "C" fn aios_status_string(status: Status) -> *const c_char {
    status::text(status).as_ptr()
}

/// What the last call of this thread that failed says of it, with names and remedies; empty if
/// none has failed. The text is valid until another call of this thread fails, or it ends.
#[unsafe(no_mangle)]
pub extern "C" fn aios_last_error() -> *const c_char {
    status::last()
}

/// Stores what the machine is.
///
/// # Safety
/// `hardware` is NULL or a struct of as many bytes as its field `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_hardware_profile(hardware: *mut Hardware) -> Status {
    guard(|| {
        let hardware = not_null(hardware, "hardware")?;
        // SAFETY: the caller's promise.
        unsafe { write(hardware, context::hardware()) }
    })
}

/// Loads the model in the file at `path` and stores the handle of its context. `options` may be
/// NULL for the defaults, which a struct of zeros with its size means, too.
///
/// # Safety
/// `path` is NULL or a string that ends with NUL; `options` is NULL or a struct of as many bytes
/// as its field `size` says, with such strings; `context` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_init(
    path: *const c_char,
    options: *const Options,
    context: *mut Handle,
) -> Status {
    guard(|| {
        let context = not_null(context, "context")?;
        // SAFETY: the caller's promise.
        let path = unsafe { path_at(path) }.ok_or_else(|| Failure::null("path"))?;
        let options = match options.is_null() {
            true => zeroed(),
            // SAFETY: the caller's promise.
            false => unsafe { read(options) }?,
        };
        // SAFETY: the caller's promise.
        let plan = unsafe { path_at(options.plan_folder) };
        let handle = insert(Context::open(&path, &options, plan)?);
        // SAFETY: the caller's promise; it is not NULL.
        unsafe { context.write_unaligned(handle) };
        Ok(())
    })
}

/// Forgets a context. Calls on it that other threads are in are finished first by these; addresses
/// of its blocks are invalid then.
#[unsafe(no_mangle)]
pub extern "C" fn aios_destroy(context: Handle) -> Status {
    guard(|| remove(context))
}

/// Stores the number of blocks of a context's weights. They are numbered from 0.
///
/// # Safety
/// `count` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_block_count(context: Handle, count: *mut u32) -> Status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { store(count, "count", || Ok(find(context)?.block_count())) })
}

/// Stores the first block of the tensor `name`, such as `blk.0.ffn_up.weight`, and the number of
/// its blocks, which follow one another.
///
/// # Safety
/// `name` is NULL or a string that ends with NUL; `first` and `count` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_find_blocks(
    context: Handle,
    name: *const c_char,
    first: *mut u32,
    count: *mut u32,
) -> Status {
    guard(|| {
        let (first, count) = (not_null(first, "first")?, not_null(count, "count")?);
        // SAFETY: the caller's promise.
        let name = unsafe { string_at(name) }.ok_or_else(|| Failure::null("name"))?;
        let found = find(context)?.find(name.to_str().unwrap_or_default())?;
        // SAFETY: the caller's promise; they are not NULL.
        unsafe {
            first.write_unaligned(found.start);
            count.write_unaligned(found.end - found.start);
        }
        Ok(())
    })
}

/// Stores where a block is and what is true of it. This is an index into a table: no lock is
/// waited for that a pass holds.
///
/// # Safety
/// `block` is NULL or a struct of as many bytes as its field `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_resolve_block(
    context: Handle,
    number: u32,
    block: *mut Block,
) -> Status {
    guard(|| {
        let block = not_null(block, "block")?;
        let found = find(context)?.block(number)?;
        // SAFETY: the caller's promise.
        unsafe { write(block, found) }
    })
}

/// Stores one of `AIOS_ROW_` for a row of a block, by its number in the tensor.
///
/// # Safety
/// `activity` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_is_row_active(
    context: Handle,
    block: u32,
    row: u64,
    activity: *mut u32,
) -> Status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { store(activity, "activity", || find(context)?.activity(block, row)) })
}

/// Stores what a context has done and where its weights live.
///
/// # Safety
/// `telemetry` is NULL or a struct of as many bytes as its field `size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_telemetry_read(context: Handle, telemetry: *mut Telemetry) -> Status {
    guard(|| {
        let telemetry = not_null(telemetry, "telemetry")?;
        let found = find(context)?.telemetry()?;
        // SAFETY: the caller's promise.
        unsafe { write(telemetry, found) }
    })
}

/// Stores the telemetry as a JSON object with a NUL behind it: that of `residency` in the
/// program's `--stats json`. `length` gets the bytes without the NUL, also if the buffer is too
/// small; with a capacity of 0 the buffer may be NULL.
///
/// # Safety
/// `buffer` is NULL or has `capacity` bytes; `length` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_telemetry_json(
    context: Handle,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Status {
    guard(|| {
        let length = not_null(length, "length")?;
        let mut json = find(context)?.telemetry_json()?.into_bytes();
        let len = json.len();
        json.push(0);
        // SAFETY: the caller's promise.
        unsafe { fill(&json, (buffer.cast(), capacity, "buffer"), (length, len)) }
    })
}

/// Stores the token ids of a text of `bytes` bytes, which need not end with NUL, with the token in
/// front that the model begins a text with, if it has one. `count` gets their number, also if
/// `ids` is too small; with a capacity of 0 it may be NULL.
///
/// # Safety
/// `text` is NULL or has `bytes` bytes; `ids` is NULL or has `capacity` ids; `count` is NULL or may
/// be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_tokenize(
    context: Handle,
    text: *const c_char,
    bytes: usize,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> Status {
    guard(|| {
        let count = not_null(count, "count")?;
        // SAFETY: the caller's promise.
        let text = unsafe { slice_at(text.cast::<u8>(), bytes, "text") }?;
        let text = std::str::from_utf8(text)
            .map_err(|error| Failure::new(AIOS_BAD_ARGUMENT, format!("text: {error}")))?;
        let found = find(context)?.tokenize(text)?;
        // SAFETY: the caller's promise.
        unsafe { fill(&found, (ids, capacity, "ids"), (count, found.len())) }
    })
}

/// Stores the bytes of a token, which may be part of a character and have no NUL behind them.
/// `length` gets their number, also if the buffer is too small; with a capacity of 0 it may be
/// NULL.
///
/// # Safety
/// `buffer` is NULL or has `capacity` bytes; `length` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_token_bytes(
    context: Handle,
    id: u32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> Status {
    guard(|| {
        let length = not_null(length, "length")?;
        let found = find(context)?.token_bytes(id)?;
        // SAFETY: the caller's promise.
        unsafe { fill(&found, (buffer.cast(), capacity, "buffer"), (length, found.len())) }
    })
}

/// Reads ids at the positions behind those that were read before, and stores the likeliest id to
/// follow. Calls on one context by several threads come one after another. A call that fails
/// leaves the context with the positions that it had.
///
/// # Safety
/// `ids` is NULL or has `count` ids; `next` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_read(
    context: Handle,
    ids: *const u32,
    count: usize,
    next: *mut u32,
) -> Status {
    guard(|| {
        // SAFETY: the caller's promise.
        let ids = unsafe { slice_at(ids, count, "ids") }?;
        // SAFETY: the caller's promise.
        unsafe { store(next, "next", || find(context)?.read(ids)) }
    })
}

/// Stores 1 if a text ends with this token, and 0 if not.
///
/// # Safety
/// `ends` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aios_is_end(context: Handle, id: u32, ends: *mut u32) -> Status {
    // SAFETY: the caller's promise.
    guard(|| unsafe { store(ends, "ends", || find(context)?.ends(id).map(u32::from)) })
}

/// Forgets all positions that were read, and sets the counts of the telemetry to zero.
#[unsafe(no_mangle)]
pub extern "C" fn aios_reset(context: Handle) -> Status {
    guard(|| find(context)?.reset())
}

fn not_null<T>(pointer: *mut T, name: &str) -> Result<*mut T, Failure> {
    if pointer.is_null() { Err(Failure::null(name)) } else { Ok(pointer) }
}

/// Stores what `value` gives, which is not asked if there is no place for it.
///
/// # Safety
/// `to` is NULL or may be written.
unsafe fn store<T>(
    to: *mut T,
    name: &str,
    value: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    let to = not_null(to, name)?;
    // SAFETY: the caller's promise; it is not NULL.
    unsafe { to.write_unaligned(value()?) };
    Ok(())
}

/// Copies `from` into a buffer of the caller's and stores `len` in any case.
///
/// # Safety
/// The buffer is NULL or has so many elements; `length` may be written.
unsafe fn fill<T: Copy>(
    from: &[T],
    (buffer, capacity, name): (*mut T, usize, &str),
    (length, len): (*mut usize, usize),
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe { length.write_unaligned(len) };
    if capacity < from.len() {
        let what = format!("{name} has room for {capacity} of {}", from.len());
        return Err(Failure::new(AIOS_BUFFER_TOO_SMALL, what));
    }
    if from.is_empty() {
        return Ok(());
    }
    let buffer = not_null(buffer, name)?;
    // SAFETY: the buffer has at least as many elements, and is no part of a vector of our own.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr().cast::<u8>(), buffer.cast(), size_of_val(from))
    };
    Ok(())
}

/// The elements at `from`, which may be NULL only if there are none.
///
/// # Safety
/// `from` is NULL or has `len` elements, which do not change during the call.
unsafe fn slice_at<'a, T>(from: *const T, len: usize, name: &str) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(Failure::null(name));
    }
    let fits = len.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= isize::MAX as usize);
    if !fits || !from.is_aligned() {
        let what = format!("{name}: {len} elements at this address are not possible");
        return Err(Failure::new(AIOS_BAD_ARGUMENT, what));
    }
    // SAFETY: the caller's promise; it is aligned, not NULL, and not longer than a slice may be.
    Ok(unsafe { std::slice::from_raw_parts(from, len) })
}

/// The string at `from`; `None` if it is NULL.
///
/// # Safety
/// `from` is NULL or a string that ends with NUL, which does not change during the call.
unsafe fn string_at<'a>(from: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the caller's promise.
    (!from.is_null()).then(|| unsafe { CStr::from_ptr(from) })
}

/// The path at `from`; `None` if it is NULL.
///
/// # Safety
/// That of [`string_at`].
unsafe fn path_at(from: *const c_char) -> Option<PathBuf> {
    // SAFETY: the caller's promise.
    let text = unsafe { string_at(from) };
    text.map(|text| Path::new(OsStr::from_bytes(text.to_bytes())).to_owned())
}
