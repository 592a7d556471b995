//! The directions that hidden states lie along most: the first eigenvectors of their second
//! moments, by subspace iteration. Any orthonormal directions give a sound bound; these give a
//! tight one.

use super::hidden::Hidden;
use super::{ProfileError, Progress, step};
use aios_kernels::DIRECTIONS;
use rayon::prelude::*;

/// Iterations: the subspace, not its basis, is wanted, and nearly will do.
const ITERATIONS: usize = 12;
/// Hidden states of a piece of work.
const PIECE_ROWS: usize = 64;

/// Orthonormal directions, \[columns\]\[32\].
pub(super) type Directions = Vec<[f32; DIRECTIONS]>;

type Wide = Vec<[f64; DIRECTIONS]>;

/// Fits directions to `hidden`.
pub(super) fn fit(
    hidden: &Hidden,
    progress: &mut Progress<'_>,
) -> Result<Directions, ProfileError> {
    let mut basis: Wide = (0..hidden.len).map(|i| std::array::from_fn(|j| start(i, j))).collect();
    orthonormalise(&mut basis);
    for iteration in 0..ITERATIONS {
        step(progress, "fitting directions", iteration, ITERATIONS)?;
        basis = moments(hidden, &basis);
        orthonormalise(&mut basis);
    }
    Ok(basis.into_iter().map(|row| row.map(|x| x as f32)).collect())
}

/// The part of the squared norms of `hidden` that lies along `directions`; 0 of nothing.
pub(super) fn along(hidden: &Hidden, directions: &Directions) -> f64 {
    let wide: Wide = directions.iter().map(|row| row.map(f64::from)).collect();
    let (mut part, mut all) = (0.0, 0.0);
    for x in hidden.x.chunks_exact(hidden.len) {
        part += products(x, &wide).iter().map(|a| a * a).sum::<f64>();
        all += x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    }
    if all > 0.0 { part / all } else { 0.0 }
}

/// A start that no data is orthogonal to: digits of a product of odd numbers.
fn start(i: usize, j: usize) -> f64 {
    let mixed = ((i * DIRECTIONS + j) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
}

fn products(x: &[f32], basis: &Wide) -> [f64; DIRECTIONS] {
    let mut sums = [0.0; DIRECTIONS];
    for (x, row) in x.iter().zip(basis) {
        for (sum, v) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x) * v;
        }
    }
    sums
}

/// Xᵀ(X·basis). Pieces are added in their order, so that threads do not matter.
fn moments(hidden: &Hidden, basis: &Wide) -> Wide {
    let pieces: Vec<Wide> = (hidden.x.par_chunks(PIECE_ROWS * hidden.len))
        .map(|rows| {
            let mut sums = vec![[0.0; DIRECTIONS]; hidden.len];
            for x in rows.chunks_exact(hidden.len) {
                let along = products(x, basis);
                for (sum, x) in sums.iter_mut().zip(x) {
                    for (sum, a) in sum.iter_mut().zip(along) {
                        *sum += f64::from(*x) * a;
                    }
                }
            }
            sums
        })
        .collect();
    let mut total = vec![[0.0; DIRECTIONS]; hidden.len];
    for piece in &pieces {
        for (total, part) in total.iter_mut().flatten().zip(piece.iter().flatten()) {
            *total += part;
        }
    }
    total
}

/// Makes the columns orthonormal, by Gram and Schmidt twice. A column that lies in the others'
/// span is replaced by one that does not.
fn orthonormalise(basis: &mut Wide) {
    for j in 0..DIRECTIONS {
        for attempt in 0.. {
            let before = norm(basis, j);
            for _ in 0..2 {
                for other in 0..j {
                    let along: f64 = basis.iter().map(|row| row[j] * row[other]).sum();
                    basis.iter_mut().for_each(|row| row[j] -= along * row[other]);
                }
            }
            let after = norm(basis, j);
            if after > 1e-9 * before && after.is_normal() {
                basis.iter_mut().for_each(|row| row[j] /= after);
                break;
            }
            for (i, row) in basis.iter_mut().enumerate() {
                row[j] = start(i, j + DIRECTIONS * (attempt + 1));
            }
        }
    }
}

fn norm(basis: &Wide, j: usize) -> f64 {
    basis.iter().map(|row| row[j] * row[j]).sum::<f64>().sqrt()
}
