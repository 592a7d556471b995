//! Where the numbers of a sketch stand (SPEC D7).

use super::spread::padded_len;
use crate::panel::PANEL_ROWS;
use bytemuck::{Pod, Zeroable};

/// Directions whose products are stored with a row.
pub const DIRECTIONS: usize = 32;
/// A code v of five bits stands for 2v − 31; its upper three bits alone, u, for 8u − 28.
pub(super) const CODES: u8 = 32;
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
    /// c with 128 added: byte 4r + i of vector k is that of row r and direction 4k + i.
    pub products: [[u8; 64]; DIRECTIONS / 4],
}

/// The upper bits of the codes of 32 elements of a panel's rows.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Codes {
    /// Bits 2 and 3: byte 4r + i of vector h has at bits 2j those of row r and element
    /// 16h + 4j + i.
    pub middle: [[u8; 64]; 2],
    /// Bit 4: byte 4r + i has at bit k that of row r and element 4k + i.
    pub top: [u8; 64],
}

/// What refines a row's bound; the lower two bits of its codes follow: for each 64 elements 16
/// bytes, of which byte i has at bits 2j those of element 16j + i.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RefinedFront {
    /// σ, bfloat16.
    pub sigma: [u8; 2],
    /// What ρ′ is less by, bfloat16.
    pub less: [u8; 2],
}

const _: () = assert!(size_of::<Front>() == 608 && size_of::<Codes>() == 192);

/// The level of a code, and of its upper bits alone.
pub(super) fn levels(code: u8) -> [f64; 2] {
    let (code, upper) = (i32::from(code), i32::from(code >> 2));
    [f64::from(2 * code - 31), f64::from(8 * upper - 28)]
}

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

    /// Bytes of all panels.
    pub const fn panels_bytes(self) -> usize {
        self.panels() * self.panel_bytes()
    }

    /// Bytes that refine a row's bound.
    pub const fn refined_bytes(self) -> usize {
        size_of::<RefinedFront>() + padded_len(self.cols) / 4
    }

    /// Bytes of directions, scales, panels and refinements; `None` for a matrix that is not
    /// sketched, because it has no rows, or rows that are too long.
    pub fn bytes(self) -> Option<usize> {
        if self.rows == 0 || self.rows > 1 << 31 || !(1..=COLS_MAX).contains(&self.cols) {
            return None;
        }
        let panels = self.panels().checked_mul(self.panel_bytes())?;
        let refined = self.rows.checked_mul(self.refined_bytes())?;
        panels.checked_add(refined)?.checked_add(self.front_bytes())
    }
}

/// A panel's parts.
#[inline(always)]
pub(super) fn parts(panel: &[u8]) -> (&Front, &[Codes]) {
    let (front, codes) = panel.split_at(size_of::<Front>());
    (bytemuck::from_bytes(front), bytemuck::cast_slice(codes))
}
