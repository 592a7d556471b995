//! The screen of a model's head, which a plan brings (SPEC D5, D7).

use super::Model;
use aios_contract::DType;
use aios_kernels::{Limits, Sketch, SketchError, SketchShape};
use aios_residency::plan::{HeadMatrix, NUMBERS, Plan, Table, TableKind, hex};
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;

/// Bits of a code, as a table says it.
const BITS: u64 = 5;

/// Best rows that greedy decoding may want: one, and a few ids that are banned.
const FEW: usize = 8;

/// Positions of a pass up to which a head is screened; 0 for never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScreenLimits {
    /// Where one best row is wanted, or up to seven more for ids that are banned.
    pub greedy: usize,
    /// Where more are.
    pub many: usize,
}

impl ScreenLimits {
    /// The same for any number of best rows.
    pub const fn all(positions: usize) -> Self {
        Self { greedy: positions, many: positions }
    }

    /// Positions for so many best rows.
    pub(crate) const fn of(self, best: usize) -> usize {
        if best <= FEW { self.greedy } else { self.many }
    }
}

/// A sketch of the output matrix, mapped.
#[derive(Debug)]
pub struct HeadScreen {
    dtype: DType,
    sketch: Sketch,
    table: Table,
    limits: ScreenLimits,
}

/// Why a plan is not adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is of another head.
    #[error("it was made for another output matrix")]
    Head,
    /// Its table is not such a sketch.
    #[error("its table of sketches is not sound: {0}")]
    Sketch(#[from] SketchError),
    /// Its table is of another kind of sketch.
    #[error("its table of sketches has {0}, which this program does not read")]
    Kind(&'static str),
    /// Its table of neurons is of another model.
    #[error("its neurons {0}")]
    Neurons(&'static str),
    /// Its thresholds are of another model.
    #[error("its thresholds {0}")]
    Thresholds(&'static str),
}

impl HeadScreen {
    /// The screen that `table` holds for a head of this dtype and shape, for passes of no more
    /// positions whose logits are wanted than `most` says.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub fn new(
        dtype: DType,
        shape: SketchShape,
        table: Table,
        most: ScreenLimits,
    ) -> Result<Self, AdoptError> {
        let [rows, cols, seed, products, levels, magnitude, bits, directions, ..] =
            *table.numbers();
        if (rows, cols) != (shape.rows as u64, shape.cols as u64) {
            return Err(AdoptError::Head);
        }
        if bits != BITS {
            return Err(AdoptError::Kind("another number of bits"));
        }
        if directions != aios_kernels::DIRECTIONS as u64 {
            return Err(AdoptError::Kind("another number of directions"));
        }
        let [products, levels, magnitude] = [products, levels, magnitude].map(f64::from_bits);
        let limits = Limits { products, levels, magnitude };
        let sketch = Sketch::open(shape, limits, seed, table.body())?;
        Ok(Self { dtype, sketch, table, limits: most })
    }

    /// The numbers of the table of such a sketch.
    pub fn numbers(shape: SketchShape, limits: Limits, seed: u64) -> [u64; NUMBERS] {
        let mut numbers = [0; NUMBERS];
        numbers[..8].copy_from_slice(&[
            shape.rows as u64,
            shape.cols as u64,
            seed,
            limits.products.to_bits(),
            limits.levels.to_bits(),
            limits.magnitude.to_bits(),
            BITS,
            aios_kernels::DIRECTIONS as u64,
        ]);
        numbers
    }

    /// The dtype of the head.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sketch.
    pub const fn sketch(&self) -> &Sketch {
        &self.sketch
    }

    /// The SHA-256 of the table that it came from.
    pub fn sha256(&self) -> &str {
        self.table.sha256()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.table.body()
    }

    /// Directions, scales and panels: what is read of it for every position.
    pub fn base(&self) -> &[u8] {
        let shape = self.sketch.shape();
        &self.table.body()[..shape.front_bytes() + shape.panels_bytes()]
    }

    /// The panels.
    pub fn panels(&self) -> &[u8] {
        &self.base()[self.sketch.shape().front_bytes()..]
    }

    /// What refines the rows, one after another.
    pub fn refinements(&self) -> &[u8] {
        &self.table.body()[self.base().len()..]
    }

    /// Positions of a pass up to which it is used.
    pub const fn limits(&self) -> ScreenLimits {
        self.limits
    }
}

impl Model {
    /// The name under which files made from this model are kept, which depends on its headers
    /// alone, and the stamp of its files' present state on the disk (SPEC L2).
    ///
    /// # Errors
    /// The operating system's, for files that have vanished.
    pub fn identity(&self) -> io::Result<(String, [u8; 32])> {
        super::repack::identify(self.blocks().mappings(), &self.header_bytes)
    }

    /// The SHA-256 of its files' bytes, one after another, and their length.
    pub fn source(&self) -> ([u8; 32], u64) {
        let mut digest = Sha256::new();
        let mut length = 0;
        for part in self.blocks().mappings().iter().take(self.header_bytes.len()) {
            digest.update(part.bytes());
            length += part.bytes().len() as u64;
        }
        (digest.finalize().into(), length)
    }

    /// The shape of its output matrix.
    pub fn head_shape(&self) -> SketchShape {
        SketchShape { rows: self.weights().head.rows, cols: self.weights().head.cols }
    }

    /// How its output matrix is stored, and its bytes as they stand in the file.
    pub fn head(&self) -> (DType, &[u8]) {
        let head = &self.weights().head;
        (head.dtype, head.matrix(self.blocks()).bytes())
    }

    /// What a manifest says of its output matrix.
    pub fn head_matrix(&self) -> HeadMatrix {
        let (SketchShape { rows, cols }, (dtype, bytes)) = (self.head_shape(), self.head());
        HeadMatrix { dtype, rows, cols, sha256: hex(&Sha256::digest(bytes)) }
    }

    /// Has the executors that are made from now on screen their head by `plan`, which was opened
    /// for this model. Whatever `plan` measured, `most` says for what passes.
    ///
    /// # Errors
    /// [`AdoptError`]; nothing has changed then.
    pub fn adopt(&self, mut plan: Plan, most: ScreenLimits) -> Result<(), AdoptError> {
        let screen = self.screen_of(&mut plan, most)?;
        // A second plan changes nothing: what runs already stays as it is.
        let _ = self.screen.set(Arc::new(screen));
        Ok(())
    }

    /// The screen of `plan`, whose table is taken.
    pub(super) fn screen_of(
        &self,
        plan: &mut Plan,
        most: ScreenLimits,
    ) -> Result<HeadScreen, AdoptError> {
        let (shape, dtype) = (self.head_shape(), self.head().0);
        let of = &plan.manifest.head;
        if (of.rows, of.cols, of.dtype) != (shape.rows, shape.cols, dtype) {
            return Err(AdoptError::Head);
        }
        let of_head = |table: &Table| table.kind() == TableKind::HeadSketch;
        let at = plan.tables.iter().position(of_head).ok_or(AdoptError::Kind("no table"))?;
        HeadScreen::new(dtype, shape, plan.tables.remove(at), most)
    }

    /// The screen that it has adopted, if it has one.
    pub fn head_screen(&self) -> Option<&Arc<HeadScreen>> {
        self.screen.get()
    }
}
