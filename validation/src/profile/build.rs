//! Making the table of sketches.

use super::directions::Directions;
use super::{ProfileError, Progress, step};
use aios_engine::{HeadScreen, Model};
use aios_kernels::{
    DIRECTIONS, Isa, Limits, PANEL_ROWS, SketchBuilder, SketchShape, dequantize, sketch_front,
};
use aios_residency::plan::{TableEntry, TableKind, TableWriter};
use rayon::prelude::*;
use std::path::Path;

/// The signs of the orthogonal map: any will do.
const SEED: u64 = 0x0061_696f_7300;
/// Panels that are made before they are written.
const PIECE_PANELS: usize = 256;
/// Rows whose products say how large those with each direction are.
const SAMPLED_ROWS: usize = 4096;

/// Sketches the output matrix of `model` into a table in `folder`.
pub(super) fn write(
    model: &Model,
    directions: &Directions,
    folder: &Path,
    progress: &mut Progress<'_>,
) -> Result<TableEntry, ProfileError> {
    let (shape, (dtype, bytes)) = (model.head_shape(), model.head());
    let refused = ProfileError::Shape { rows: shape.rows, cols: shape.cols };
    let length = shape.bytes().ok_or(refused)?;
    let row_bytes = bytes.len() / shape.rows;
    let scales = scales(model, directions);
    let builder = SketchBuilder::new(dtype, shape, directions, &scales, SEED);
    let mut writer = TableWriter::create(folder, TableKind::HeadSketch, length as u64)?;
    writer.write(&sketch_front(directions, &scales))?;
    let mut limits = Limits::default();
    let mut refined = Vec::with_capacity(shape.rows * shape.refined_bytes());
    let piece_bytes = PIECE_PANELS * PANEL_ROWS * row_bytes;
    for (i, piece) in bytes.chunks(piece_bytes).enumerate() {
        step(progress, "sketching the head", i * piece_bytes, bytes.len())?;
        let made: Vec<_> = (piece.par_chunks(PANEL_ROWS * row_bytes))
            .map(|rows| {
                let mut panel = vec![0; shape.panel_bytes()];
                let mut refined = vec![0; rows.len() / row_bytes * shape.refined_bytes()];
                let limits = builder.panel(rows, &mut panel, &mut refined)?;
                Ok((limits, panel, refined))
            })
            .collect();
        for (j, panel) in made.into_iter().enumerate() {
            let first = (i * PIECE_PANELS + j) * PANEL_ROWS;
            let (own, panel, part) =
                panel.map_err(|error| ProfileError::not_finite(first, error))?;
            limits = limits.with(own);
            writer.write(&panel)?;
            refined.extend(part);
        }
    }
    writer.write(&refined)?;
    Ok(writer.finish(&HeadScreen::numbers(shape, limits, SEED))?)
}

/// For each direction the root of the mean square of the rows' products with it.
fn scales(model: &Model, directions: &Directions) -> [f32; DIRECTIONS] {
    let (SketchShape { rows, cols }, (dtype, bytes)) = (model.head_shape(), model.head());
    let row_bytes = bytes.len() / rows;
    let mut squares = [0.0; DIRECTIONS];
    let mut floats = vec![0.0; cols];
    let sampled = (0..rows).step_by(rows.div_ceil(SAMPLED_ROWS));
    let count = sampled.len() as f64;
    for row in sampled {
        dequantize(Isa::detect(), dtype, &bytes[row * row_bytes..][..row_bytes], &mut floats)
            .expect("a row of a checked matrix has the bytes of its elements");
        let mut sums = [0.0; DIRECTIONS];
        for (x, row) in floats.iter().zip(directions) {
            for (sum, v) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*v);
            }
        }
        for (square, sum) in squares.iter_mut().zip(sums) {
            *square += sum * sum;
        }
    }
    // A direction that no row has a part in may have any scale.
    squares.map(|square: f64| {
        let root = (square / count).sqrt() as f32;
        if root.is_normal() { root } else { 1.0 }
    })
}
