//! Advanced Matrix Extensions: tile registers of 16 rows of 64 bytes, and products of two of them
//! that add to a third. Intel's "Architecture Instruction Set Extensions Programming Reference"
//! describes them; there are no stable intrinsics, hence the assembly.

use super::{Line, Plane, Planes, Shape, Sums};
use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Proof that this processor has AMX with 8-bit integers, and that the system lets this process
/// use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(());

/// What `LDTILECFG` reads: a palette, and of each of 8 tiles the bytes of a row and the rows.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// A configuration: tiles 0 to 3 are sums, 4 and 5 of activations, 6 and 7 of weights. `bytes` is
/// the number of elements in a product.
const fn config(bytes: u8) -> Config {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        config.row_bytes[tile] = if matches!(tile, 4 | 5) { bytes as u16 } else { 64 };
        config.rows[tile] = if matches!(tile, 6 | 7) { bytes / 4 } else { 16 };
        tile += 1;
    }
    config
}

static BLOCKS: Config = config(32);
static SUPER: Config = config(64);

impl Amx {
    /// The token, if the processor has the instructions and the system grants their use, which
    /// Linux wants to be asked for.
    pub fn detect() -> Option<Self> {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        GRANTED.get_or_init(|| present() && granted()).then_some(Self(()))
    }

    /// Configures this thread's tiles.
    #[inline(always)]
    pub(super) fn configure(self, shape: Shape) {
        let config = match shape {
            Shape::Blocks => &BLOCKS,
            Shape::Super => &SUPER,
        };
        // SAFETY: `self` proves that the instruction may be used; it reads a valid configuration
        // and changes nothing but the tiles, which only this file uses.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                config = in(reg) config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Gives the tiles back, so that the system need not save them.
    #[inline(always)]
    pub(super) fn release(self) {
        // SAFETY: `self` proves that the instruction may be used; only this file uses tiles.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// [`super::Ready::blocks`].
    ///
    /// # Safety
    /// This thread is configured for [`Shape::Blocks`].
    #[inline(always)]
    pub(super) unsafe fn blocks(self, x: &[Line; 64], w: &Plane, out: &mut [Sums; 8]) {
        /// One block: sums in tile `$c`, made of tiles `$a` and `$b`.
        macro_rules! block {
            ($j:literal, $c:literal, $a:literal, $b:literal) => {
                concat!(
                    "tilezero ",
                    $c,
                    "\n",
                    "tileloadd ",
                    $a,
                    ", [{x} + {half} + 512 * ",
                    $j,
                    "]\n",
                    "tileloadd ",
                    $b,
                    ", [{w} + {line} + 512 * ",
                    $j,
                    "]\n",
                    "tdpbssd ",
                    $c,
                    ", ",
                    $a,
                    ", ",
                    $b,
                    "\n",
                )
            };
        }
        /// Stores tile `$c` as the sums of a block.
        macro_rules! store {
            ($j:literal, $c:literal) => {
                concat!("tilestored [{out} + {line} + 1024 * ", $j, "], ", $c, "\n")
            };
        }
        // SAFETY: `self` proves that the instructions may be used, the caller that the tiles have
        // the shape; what is read and written are the three arrays: 8 blocks of 16 rows of 32
        // bytes, 8 of 8 lines, and 8 tiles.
        unsafe {
            asm!(
                block!(0, "tmm0", "tmm4", "tmm6"),
                block!(1, "tmm1", "tmm5", "tmm7"),
                block!(2, "tmm2", "tmm4", "tmm6"),
                store!(0, "tmm0"),
                block!(3, "tmm3", "tmm5", "tmm7"),
                store!(1, "tmm1"),
                block!(4, "tmm0", "tmm4", "tmm6"),
                store!(2, "tmm2"),
                block!(5, "tmm1", "tmm5", "tmm7"),
                store!(3, "tmm3"),
                block!(6, "tmm2", "tmm4", "tmm6"),
                store!(4, "tmm0"),
                block!(7, "tmm3", "tmm5", "tmm7"),
                store!(5, "tmm1"),
                store!(6, "tmm2"),
                store!(7, "tmm3"),
                x = in(reg) x,
                w = in(reg) w,
                out = in(reg) out,
                half = in(reg) 32_usize,
                line = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// [`super::Ready::super_block`].
    ///
    /// # Safety
    /// This thread is configured for [`Shape::Super`].
    #[inline(always)]
    pub(super) unsafe fn super_block(self, x: &[Line; 128], w: &Planes, out: &mut [Sums; 4]) {
        /// Adds 64 elements' products of each two planes.
        macro_rules! step {
            ($s:literal) => {
                concat!(
                    "tileloadd tmm4, [{x} + {line} + 1024 * ",
                    $s,
                    "]\n",
                    "tileloadd tmm6, [{w} + {line} + 1024 * ",
                    $s,
                    "]\n",
                    "tdpbsud tmm0, tmm4, tmm6\n",
                    "tileloadd tmm7, [{w} + {line} + 4096 + 1024 * ",
                    $s,
                    "]\n",
                    "tdpbssd tmm1, tmm4, tmm7\n",
                    "tileloadd tmm5, [{x} + {line} + 4096 + 1024 * ",
                    $s,
                    "]\n",
                    "tdpbsud tmm2, tmm5, tmm6\n",
                    "tdpbssd tmm3, tmm5, tmm7\n",
                )
            };
        }
        // SAFETY: as above; the arrays are twice two planes of 4 tiles of 64 elements, and 4
        // tiles.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                step!(0),
                step!(1),
                step!(2),
                step!(3),
                "tilestored [{out} + {line}], tmm0",
                "tilestored [{out} + {line} + 1024], tmm1",
                "tilestored [{out} + {line} + 2048], tmm2",
                "tilestored [{out} + {line} + 3072], tmm3",
                x = in(reg) x,
                w = in(reg) w,
                out = in(reg) out,
                line = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Whether the processor has AMX with 8-bit integers and the system saves its state.
fn present() -> bool {
    /// Bits of leaf 7: tiles and their 8-bit products; of leaf 1: reading which state is saved.
    const AMX: u32 = 1 << 24 | 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    /// Bits of what is saved: configuration and contents of tiles.
    const STATE: u64 = 3 << 17;
    if __cpuid_count(0, 0).eax < 7
        || __cpuid_count(7, 0).edx & AMX != AMX
        || __cpuid_count(1, 0).ecx & OSXSAVE == 0
    {
        return false;
    }
    // SAFETY: the bit that has just been checked says that there is this instruction.
    unsafe { _xgetbv(0) & STATE == STATE }
}

/// Asks Linux for the right to use tiles, for this process and its threads.
#[cfg(target_os = "linux")]
fn granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and has no other effect on memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// Elsewhere nobody has asked for it.
#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}
