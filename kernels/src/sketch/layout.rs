//! Where the numbers of a sketch stand (SPEC D7).

use super::spread::padded_len;
use crate::panel::PANEL_ROWS;
use bytemuck::{Pod, Zeroable};

/// Directions whose products are stored with a row.
pub const DIRECTIONS: usize = 32;
/// The integers that codes stand for, as unsigned bytes v of which l = 2v − 31.
pub(super) const LEVELS: [u8; 16] = [0, 6, 10, 14, 17, 21, 25, 31, 0, 6, 10, 14, 17, 21, 25, 31];
/// What is subtracted from twice a level.
pub(super) const CENTRE: i32 = 31;
/// The longest row: integer sums of it stay below 2^31.
const COLS_MAX: usize = 1 << 17;
/// Elements whose codes stand together.
const GROUP: usize = 32;

/// The scales and products of a panel's rows.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Front {
    /// σ, κ and ρ′ of each row, bfloat16.
    pub sigma: [[u8; 2]; PANEL_ROWS],
    pub kappa: [[u8; 2]; PANEL_ROWS],
    pub rho: [[u8; 2]; PANEL_ROWS],
    /// c, for each direction that of each row.
    pub products: [[i8; PANEL_ROWS]; DIRECTIONS],
}

/// The codes of 32 elements of a panel's rows.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Codes {
    /// Bits 0 and 1: byte 4r + i of vector h has at bits 2j those of element 16h + 4j + i.
    pub low: [[u8; 64]; 2],
    /// Bit 2: byte 4r + i has at bit k that of element 4k + i.
    pub high: [u8; 64],
}

const _: () = assert!(size_of::<Front>() == 608 && size_of::<Codes>() == 192);

/// The matrix that is sketched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchShape {
    /// Its rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl SketchShape {
    /// Panels of 16 rows.
    pub const fn panels(self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Groups of 32 elements in a row, as the codes count them.
    pub(super) const fn groups(self) -> usize {
        padded_len(self.cols) / GROUP
    }

    /// Bytes of a panel.
    pub const fn panel_bytes(self) -> usize {
        size_of::<Front>() + self.groups() * size_of::<Codes>()
    }

    /// Bytes of the directions and their scales, which come before the panels.
    pub const fn front_bytes(self) -> usize {
        4 * DIRECTIONS * (self.cols + 1)
    }

    /// Bytes of directions, scales and panels; `None` for a matrix that is not sketched, because it
    /// has no rows, or rows that are too long.
    pub fn bytes(self) -> Option<usize> {
        if self.rows == 0 || self.rows > 1 << 31 || !(1..=COLS_MAX).contains(&self.cols) {
            return None;
        }
        self.panels().checked_mul(self.panel_bytes())?.checked_add(self.front_bytes())
    }
}

/// A panel's parts.
#[inline(always)]
pub(super) fn parts(panel: &[u8]) -> (&Front, &[Codes]) {
    let (front, codes) = panel.split_at(size_of::<Front>());
    (bytemuck::from_bytes(front), bytemuck::cast_slice(codes))
}
