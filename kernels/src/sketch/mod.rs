//! Sketches of a matrix's rows: from a few bits of each, a score of its product with an activation
//! row and a bound of the score's error that holds always, not likely (SPEC D5).
//!
//! The plain algorithm, for one row w and activations x:
//!
//! ```text
//! a = Vᵀx, rest = x − V·a, z = R·rest                  once for all rows
//! S = κ·c·(D·a) + σ·l·z                                the row's integers c and l
//! U = S + ρ·‖rest‖ + κ·E·‖D·a‖ + σ·M·‖z − ẑ‖ + slack     no product is above it
//! ```
//!
//! The departures from it:
//! 1. z is rounded to integers of 8 bits ([`query`]), so that l·z is a sum of byte products; what
//!    that costs is known for each x and is in U.
//! 2. 16 rows lie interleaved, as in panels, so that a vector lane owns a row ([`score`]).
//! 3. l has two parts: 3 bits of every element are read of all rows, and 2 more only of rows that
//!    those do not rule out ([`refine`]).

mod build;
mod layout;
mod query;
mod refine;
mod score;
mod spread;
mod terms;
#[cfg(test)]
mod tests;

pub use build::{NotFinite, SketchBuilder};
pub use layout::{DIRECTIONS, SketchShape};
pub use query::{Activations, Query};
pub use refine::{Bounds, refine};
pub use score::{Peak, upper_bounds};

use spread::Spread;

/// Directions are orthonormal up to this, by the Frobenius norm.
const DEFECT_MAX: f64 = 1e-5;
/// ρ′ is at least this part of the magnitude of a row's terms, so that it bounds those as well.
const SMALLEST: f64 = 1.0 / 64.0;

/// The largest norms over the rows of a sketch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// E: of what the stored products are off, in units of κ.
    pub products: f64,
    /// M: of l.
    pub levels: f64,
    /// m: of the terms of a row, of its products and of its sketch.
    pub magnitude: f64,
}

impl Limits {
    /// The larger ones of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            products: self.products.max(other.products),
            levels: self.levels.max(other.levels),
            magnitude: self.magnitude.max(other.magnitude),
        }
    }
}

/// What is known of a whole sketch: everything but its panels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    shape: SketchShape,
    limits: Limits,
    spread: Spread,
    /// V, \[columns\]\[32\], and D.
    directions: Vec<[f32; DIRECTIONS]>,
    scales: [f32; DIRECTIONS],
    /// How far VᵀV is from 1, by the Frobenius norm.
    defect: f64,
}

/// Why a sketch cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SketchError {
    /// The bytes are not those of the matrix.
    #[error("a sketch of {rows} rows of {cols} elements does not have {bytes} bytes")]
    Size {
        /// Rows of the matrix.
        rows: usize,
        /// Elements of a row.
        cols: usize,
        /// The bytes given.
        bytes: usize,
    },
    /// A norm is negative or no number.
    #[error("the sketch's {0} is out of range")]
    Limit(&'static str),
    /// The directions are not orthonormal.
    #[error("the sketch's directions are not orthonormal")]
    Directions,
    /// A scale of a direction is not a positive number.
    #[error("the sketch's scales are not positive numbers")]
    Scales,
}

impl Sketch {
    /// Reads what `bytes`, directions, scales and panels as [`SketchShape::bytes`] counts them,
    /// hold of a sketch of this shape, and checks it.
    ///
    /// # Errors
    /// [`SketchError`].
    pub fn open(
        shape: SketchShape,
        limits: Limits,
        seed: u64,
        bytes: &[u8],
    ) -> Result<Self, SketchError> {
        let SketchShape { rows, cols } = shape;
        if shape.bytes() != Some(bytes.len()) {
            return Err(SketchError::Size { rows, cols, bytes: bytes.len() });
        }
        for (name, x) in [
            ("product limit", limits.products),
            ("level limit", limits.levels),
            ("magnitude", limits.magnitude),
        ] {
            if !(0.0..1e31).contains(&x) {
                return Err(SketchError::Limit(name));
            }
        }
        let read = |bytes: &[u8]| -> [f32; DIRECTIONS] {
            let (words, _) = bytes.as_chunks::<4>();
            std::array::from_fn(|j| f32::from_le_bytes(words[j]))
        };
        let mut rows = bytes[..shape.front_bytes()].chunks_exact(4 * DIRECTIONS).map(read);
        let directions: Vec<_> = rows.by_ref().take(cols).collect();
        let scales = rows.next().ok_or(SketchError::Scales)?;
        if !scales.iter().all(|scale| scale.is_normal() && *scale > 0.0) {
            return Err(SketchError::Scales);
        }
        let defect = defect(&directions);
        // NaN is no defect that is small.
        let orthogonal = defect <= DEFECT_MAX;
        if !orthogonal {
            return Err(SketchError::Directions);
        }
        let spread = Spread::new(cols, seed);
        Ok(Self { shape, limits, spread, directions, scales, defect })
    }

    /// The shape.
    pub const fn shape(&self) -> SketchShape {
        self.shape
    }
}

/// Directions and scales as a sketch's bytes begin with them.
pub fn front(directions: &[[f32; DIRECTIONS]], scales: &[f32; DIRECTIONS]) -> Vec<u8> {
    let rows = directions.iter().chain(std::iter::once(scales));
    rows.flatten().flat_map(|x| x.to_le_bytes()).collect()
}

/// ‖VᵀV − 1‖, the Frobenius norm.
fn defect(directions: &[[f32; DIRECTIONS]]) -> f64 {
    let mut gram = [[0.0; DIRECTIONS]; DIRECTIONS];
    for row in directions {
        let row = row.map(f64::from);
        for (gram, x) in gram.iter_mut().zip(row) {
            for (sum, y) in gram.iter_mut().zip(row) {
                *sum += x * y;
            }
        }
    }
    let mut squares = 0.0;
    for (i, row) in gram.iter().enumerate() {
        for (j, x) in row.iter().enumerate() {
            let off = x - if i == j { 1.0 } else { 0.0 };
            squares += off * off;
        }
    }
    squares.sqrt()
}
