//! The structs of the border. Each begins with its own size in bytes, by which a program that was
//! compiled against another version of the header is understood or refused, and zeros are defaults.

use crate::status::{AIOS_BAD_SIZE, Failure};
use std::ffi::c_char;

/// Follow the model's plan where it was found to save time. Results are the same.
pub const AIOS_PLAN_AUTO: u32 = 0;
/// Follow no plan.
pub const AIOS_PLAN_OFF: u32 = 1;
/// Follow the model's plan; it is an error if there is none that can be followed.
pub const AIOS_PLAN_ON: u32 = 2;

/// A file is mapped once, however often it is opened. This is always so.
pub const AIOS_SHARE_FILES: u32 = 0;
/// Beside that, matrices that another context made so has already are read from there: of copies
/// and of fine-tunes of one model there is one copy in memory. To find them each file is read
/// whole once; digests of its matrices are kept in the user's cache folder.
pub const AIOS_SHARE_MATRICES: u32 = 1;

/// Weights are read as they stand in the file.
pub const AIOS_WEIGHTS_STORED: u32 = 0;
/// Weights are read from a file of repacked ones in the user's cache folder, which is made on the
/// first use of a model and takes as much disk as that. It is faster and changes no result.
pub const AIOS_WEIGHTS_REPACKED: u32 = 1;

/// The same bytes of memory are other blocks, too.
pub const AIOS_BLOCK_CANONICAL: u32 = 1;
/// It is the same bytes of memory as a block before it, which is canonical.
pub const AIOS_BLOCK_ALIASED: u32 = 2;
/// A pass may leave out rows of it.
pub const AIOS_BLOCK_SPARSE: u32 = 4;
/// It lies in memory of our own, which is locked if the system allows that.
pub const AIOS_BLOCK_HOT: u32 = 8;
/// It is mapped; the system keeps it in memory while there is room.
pub const AIOS_BLOCK_WARM: u32 = 16;
/// It is read from disk in every pass, and has no address.
pub const AIOS_BLOCK_STREAM: u32 = 32;

/// Every pass reads the row.
pub const AIOS_ROW_ALWAYS: u32 = 1;
/// Whether a pass reads the row depends on its tokens.
pub const AIOS_ROW_BY_TOKEN: u32 = 2;

/// How a context is set up.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// sizeof(aios_options).
    pub size: u32,
    /// Positions of the context; 0 for the model's own, but at most 4096.
    pub positions: u32,
    /// Threads that compute; 0 for all processors.
    pub threads: u32,
    /// One of `AIOS_PLAN_`.
    pub plan: u32,
    /// One of `AIOS_WEIGHTS_`.
    pub weights: u32,
    /// One of `AIOS_SHARE_`.
    pub share: u32,
    /// Bytes of memory for weights, cache and activations; what exceeds them is read from disk in
    /// every pass. 0 keeps to the budget that the plan was made for, if it was made for one, or
    /// lets the system decide what stays in memory.
    pub ram_bytes: u64,
    /// The folder of the plan; NULL for the one in the user's cache folder.
    pub plan_folder: *const c_char,
}

/// The machine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// sizeof(aios_hardware).
    pub size: u32,
    /// Processors that this process may use.
    pub processors: u32,
    /// Bytes of the last level of cache, all of its instances together; 0 if that is not known.
    pub llc_bytes: u64,
    /// Bytes of memory; 0 if that is not known.
    pub memory_bytes: u64,
    /// Bytes of memory that can be had now, by the system's estimate and the control group's
    /// limit; 0 if that is not known.
    pub available_bytes: u64,
    /// The name of the processor; empty if that is not known.
    pub cpu: [c_char; 96],
    /// The instruction set that is computed with.
    pub isa: [c_char; 64],
}

/// A block of weights.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// sizeof(aios_block).
    pub size: u32,
    /// Some of `AIOS_BLOCK_`.
    pub flags: u32,
    /// Its bytes, which must not be written; NULL if it is read from disk in every pass. They are
    /// there until the context is destroyed.
    pub address: *const u8,
    /// Their number.
    pub bytes: u64,
    /// The first of its rows, by its number in the tensor.
    pub first_row: u64,
    /// Its rows.
    pub rows: u64,
    /// 1 if 16 rows lie interleaved, 0 if rows stand as in the file.
    pub packed: u32,
    /// 0.
    pub reserved: u32,
    /// The name of its tensor. Rows of a head that is the embedding are those of `output.weight`.
    pub tensor: [c_char; 64],
    /// How elements are stored.
    pub dtype: [c_char; 16],
}

/// What a context has done since it was made or reset, and where its weights live.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Telemetry {
    /// sizeof(aios_telemetry).
    pub size: u32,
    /// Steps of the degradation ladder that are active; `ladder` names them.
    pub ladder_steps: u32,
    /// Tokens that went through the model, and passes over the weights.
    pub tokens: u64,
    /// See `tokens`.
    pub passes: u64,
    /// Blocks that passes asked for, and their bytes.
    pub blocks_resolved: u64,
    /// See `blocks_resolved`.
    pub bytes_resolved: u64,
    /// Of these, bytes in memory of our own, and bytes that were streamed.
    pub bytes_hot: u64,
    /// See `bytes_hot`.
    pub bytes_streamed: u64,
    /// Deltas that were added to products of canonical matrices.
    pub deltas_applied: u64,
    /// Rows of the head that passes did not have to read, and neurons' rows of up projections and
    /// columns of down projections.
    pub rows_skipped: u64,
    /// Streamed blocks that were there before they were asked for.
    pub prefetches: u64,
    /// Bytes that were read of the disk, and reads.
    pub disk_bytes: u64,
    /// See `disk_bytes`.
    pub disk_reads: u64,
    /// Weights in memory of our own, mapped, and streamed, in bytes.
    pub hot_bytes: u64,
    /// See `hot_bytes`.
    pub warm_bytes: u64,
    /// See `hot_bytes`.
    pub stream_bytes: u64,
    /// Weights that are read from another context's memory, in bytes.
    pub shared_bytes: u64,
    /// The budget of memory, in bytes; 0 without one.
    pub budget_bytes: u64,
    /// `bytes_hot` over `bytes_resolved`; NaN if nothing was resolved.
    pub hot_hit_ratio: f64,
    /// Milliseconds that passes waited for the disk.
    pub disk_wait_ms: f64,
    /// The instruction set.
    pub isa: [c_char; 64],
    /// What is on, by names with commas between them: `shared`, `plan` (or `plan_refused`, where
    /// there is one that is of another model or machine, or damaged), and those of the list `on`
    /// of the program's `--stats json`: `repacked`, `screen`, `zeros`, `kept`, `ahead`, `budget`.
    pub on: [c_char; 64],
    /// The steps of the ladder by name, with commas between them.
    pub ladder: [c_char; 256],
}

/// A struct that begins with its size.
///
/// # Safety
/// The first field is the `u32` size, and every pattern of bits is a value.
pub(crate) unsafe trait Sized32: Copy {
    /// Its name in C.
    const NAME: &'static str;
    /// Its size in version 1 of the interface, the least that programs have.
    const FIRST: u32;

    fn size_mut(&mut self) -> &mut u32;
}

// SAFETY: all fields are integers, floats, arrays of these and raw pointers; the first is the size.
unsafe impl Sized32 for Options {
    const NAME: &'static str = "aios_options";
    const FIRST: u32 = 40;

    fn size_mut(&mut self) -> &mut u32 {
        &mut self.size
    }
}

// SAFETY: as above.
unsafe impl Sized32 for Hardware {
    const NAME: &'static str = "aios_hardware";
    const FIRST: u32 = 192;

    fn size_mut(&mut self) -> &mut u32 {
        &mut self.size
    }
}

// SAFETY: as above.
unsafe impl Sized32 for Block {
    const NAME: &'static str = "aios_block";
    const FIRST: u32 = 128;

    fn size_mut(&mut self) -> &mut u32 {
        &mut self.size
    }
}

// SAFETY: as above.
unsafe impl Sized32 for Telemetry {
    const NAME: &'static str = "aios_telemetry";
    const FIRST: u32 = 536;

    fn size_mut(&mut self) -> &mut u32 {
        &mut self.size
    }
}

impl Default for Options {
    fn default() -> Self {
        zeroed()
    }
}

/// A value of zeros, whose size is its own.
pub(crate) fn zeroed<T: Sized32>() -> T {
    // SAFETY: every pattern of bits is a value.
    let mut value: T = unsafe { std::mem::zeroed() };
    *value.size_mut() = own_size::<T>();
    value
}

fn own_size<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("structs of the border are small")
}

fn bad_size<T: Sized32>(found: u32) -> Failure {
    let (name, first, own) = (T::NAME, T::FIRST, own_size::<T>());
    let what = format!("{name}.size is {found}; this library knows {first} to {own} bytes of it");
    Failure::new(AIOS_BAD_SIZE, what)
}

/// The struct at `from`: what an earlier, shorter one lacks is zero, and of a later, longer one
/// what is unknown must be zero.
///
/// # Safety
/// `from` is not NULL and is a struct of as many bytes as its first field says.
pub(crate) unsafe fn read<T: Sized32>(from: *const T) -> Result<T, Failure> {
    let from = from.cast::<u8>();
    // SAFETY: the struct is at least its first field, and may be at any address.
    let size = unsafe { from.cast::<u32>().read_unaligned() };
    if size < T::FIRST {
        return Err(bad_size::<T>(size));
    }
    let (own, given) = (size_of::<T>(), size as usize);
    let mut value: T = zeroed();
    // SAFETY: both have as many bytes, and every pattern of bits is a value.
    unsafe { std::ptr::copy_nonoverlapping(from, (&raw mut value).cast(), own.min(given)) };
    // SAFETY: within the caller's struct.
    if (own..given).any(|at| unsafe { from.add(at).read() } != 0) {
        return Err(bad_size::<T>(size));
    }
    *value.size_mut() = own_size::<T>();
    Ok(value)
}

/// Stores `value` at `to`, as much of it as an earlier, shorter struct has; what a later, longer
/// one has behind it is left as it is. The size becomes what was stored.
///
/// # Safety
/// `to` is not NULL and is a struct of as many bytes as its first field says, which may be written.
pub(crate) unsafe fn write<T: Sized32>(to: *mut T, mut value: T) -> Result<(), Failure> {
    // SAFETY: the struct is at least its first field, and may be at any address.
    let size = unsafe { to.cast::<u32>().read_unaligned() };
    if size < T::FIRST {
        return Err(bad_size::<T>(size));
    }
    let stored = size.min(own_size::<T>());
    *value.size_mut() = stored;
    let from = (&raw const value).cast::<u8>();
    // SAFETY: both have as many bytes.
    unsafe { std::ptr::copy_nonoverlapping(from, to.cast(), stored as usize) };
    Ok(())
}

/// A text in a field, cut at a character where it does not fit, with a NUL behind it.
pub(crate) fn text<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    let fits = (0..=text.len().min(N - 1)).rev().find(|end| text.is_char_boundary(*end));
    let bytes = &text.as_bytes()[..fits.unwrap_or(0)];
    for (to, from) in field.iter_mut().zip(bytes) {
        // A NUL within a text would end it.
        let byte = if *from == 0 { b'?' } else { *from };
        *to = byte as c_char;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn sizes_are_checked_in_both_directions() {
        #[repr(C)]
        struct Later {
            options: Options,
            more: u64,
        }
        let mut later = Later { options: zeroed(), more: 0 };
        let at: *mut Options = (&raw mut later).cast();
        // SAFETY: the struct has as many bytes as its size says, here and below.
        unsafe {
            assert!(read(at).is_ok());
            (*at).size = size_of::<Later>() as u32;
            assert_eq!(read(at).expect("zeros").size as usize, size_of::<Options>());
            (*at).size = Options::FIRST - 1;
            assert_eq!(read(at).expect_err("too short").status, AIOS_BAD_SIZE);
            assert_eq!(write(at, zeroed()).expect_err("too short").status, AIOS_BAD_SIZE);
        }
        later.options.size = size_of::<Later>() as u32;
        later.more = 1;
        let at: *mut Options = (&raw mut later).cast();
        // SAFETY: as above.
        let unknown = unsafe { read(at) };
        assert_eq!(unknown.expect_err("an option that is not known").status, AIOS_BAD_SIZE);
    }

    #[test]
    fn structs_have_no_less_than_they_had_at_first() {
        fn check<T: Sized32>() {
            assert!(own_size::<T>() >= T::FIRST, "{}: {}", T::NAME, own_size::<T>());
        }
        check::<Options>();
        check::<Hardware>();
        check::<Block>();
        check::<Telemetry>();
    }

    #[test]
    fn texts_are_cut_at_characters() {
        let shown = |field: &[c_char]| {
            let bytes: Vec<u8> = field.iter().map(|c| *c as u8).collect();
            CStr::from_bytes_until_nul(&bytes).expect("a NUL").to_str().expect("UTF-8").to_owned()
        };
        assert_eq!(shown(&text::<8>("abc")), "abc");
        assert_eq!(shown(&text::<4>("abcd")), "abc");
        assert_eq!(shown(&text::<4>("aéé")), "aé");
        assert_eq!(shown(&text::<4>("a\0b")), "a?b");
        assert_eq!(shown(&text::<1>("a")), "");
    }
}
