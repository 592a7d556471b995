//! What the instructions do, in plain code.

use super::{COLUMNS, Line, Plane, Planes, Sums};
use crate::simd::LANES;

/// [`super::Ready::blocks`].
pub(super) fn blocks(x: &[Line; 64], w: &Plane, out: &mut [Sums; 8]) {
    let x: &[i8] = bytemuck::cast_slice(x);
    for (j, out) in out.iter_mut().enumerate() {
        fill(out, 32, |column, row, i| {
            let w = w.0[8 * j + i / 4][4 * row + i % 4].cast_signed();
            i32::from(x[512 * j + 32 * column + i]) * i32::from(w)
        });
    }
}

/// [`super::Ready::super_block`].
pub(super) fn super_block(x: &[Line; 128], w: &Planes, out: &mut [Sums; 4]) {
    let x: &[i8] = bytemuck::cast_slice(x);
    for (plane, out) in out.iter_mut().enumerate() {
        fill(out, 256, |column, row, i| {
            let x = x[4096 * (plane / 2) + 1024 * (i / 64) + 64 * column + i % 64];
            let at = |plane: &Plane| plane.0[i / 4][4 * row + i % 4];
            let w = match plane % 2 {
                0 => i32::from(at(&w.low)),
                _ => i32::from(at(&w.high).cast_signed()),
            };
            i32::from(x) * w
        });
    }
}

/// Each sum over `len` elements.
fn fill(out: &mut Sums, len: usize, product: impl Fn(usize, usize, usize) -> i32) {
    for column in 0..COLUMNS {
        for row in 0..LANES {
            out.0[column][row] = (0..len).map(|i| product(column, row, i)).sum();
        }
    }
}
