//! Matrices repacked into panels (SPEC L1).
//!
//! A panel is 16 rows whose blocks lie together: block 0 of all of them, then block 1, and so on;
//! within a block each field is turned so that a vector lane owns a row. It has exactly the bytes
//! of its rows. A last panel of fewer rows is filled up with rows of zero bytes.

use crate::format::{self, Float, Format32, Format256, Visitor};
use crate::pool::Pool;
use crate::shared::Shared;
use aios_contract::DType;
use bytemuck::Pod;

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;

/// Bytes of a matrix of `rows` rows of `cols` elements in panels; `None` for formats that are not
/// packed, for a row that is not whole blocks, and where the number is too large.
pub fn packed_bytes(dtype: DType, rows: usize, cols: usize) -> Option<usize> {
    if dtype.is_float() {
        return None;
    }
    let panels = rows.div_ceil(PANEL_ROWS);
    dtype.row_bytes(cols)?.checked_mul(panels.checked_mul(PANEL_ROWS)?)
}

/// Packs `rows`, rows of `row_bytes` bytes each as they stand in a file, into panels.
///
/// # Panics
/// If a row is not whole blocks, or `out` has another length than the panels.
pub fn pack(pool: &Pool, dtype: DType, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    assert!(!dtype.is_float() && row_bytes > 0 && rows.len().is_multiple_of(row_bytes));
    assert!(row_bytes.is_multiple_of(dtype.block_bytes()));
    let panel_bytes = PANEL_ROWS * row_bytes;
    let panels = rows.len().div_ceil(panel_bytes);
    assert_eq!(out.len(), panels * panel_bytes);
    let out = Shared::new(out);
    pool.for_each(panels, &|panel| {
        // SAFETY: each panel is one piece, and a piece is given to one thread.
        let out = unsafe { out.range(panel * panel_bytes, panel_bytes) };
        let end = rows.len().min((panel + 1) * panel_bytes);
        pack_panel(dtype, row_bytes, &rows[panel * panel_bytes..end], out);
    });
}

/// Packs at most 16 rows into `out`, a panel.
pub(crate) fn pack_panel(dtype: DType, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    format::visit(dtype, PackPanel { row_bytes, rows, out });
}

struct PackPanel<'a> {
    row_bytes: usize,
    rows: &'a [u8],
    out: &'a mut [u8],
}

impl PackPanel<'_> {
    fn pack<B: Pod, P: Pod>(self, pack: fn(&[B; PANEL_ROWS]) -> P) {
        let mut rows: [&[B]; PANEL_ROWS] = [&[]; PANEL_ROWS];
        for (row, bytes) in rows.iter_mut().zip(self.rows.chunks_exact(self.row_bytes)) {
            *row = format::blocks(bytes);
        }
        let panels: &mut [P] = bytemuck::cast_slice_mut(self.out);
        let mut blocks = [B::zeroed(); PANEL_ROWS];
        for (i, panel) in panels.iter_mut().enumerate() {
            for (block, row) in blocks.iter_mut().zip(rows) {
                // A row that is missing stays zero.
                if let Some(present) = row.get(i) {
                    *block = *present;
                }
            }
            *panel = pack(&blocks);
        }
    }
}

impl Visitor for PackPanel<'_> {
    type Output = ();

    fn float<F: Float>(self) {
        unreachable!("callers have checked that the dtype is packed");
    }
    fn blocks32<F: Format32>(self) {
        self.pack(F::pack);
    }
    fn blocks256<F: Format256>(self) {
        self.pack(F::pack);
    }
}
