//! The weights of an executor as seen from outside: blocks with addresses, and which rows a pass
//! reads.

use crate::forward::Executor;
use crate::model::Tensor;
use aios_contract::{DType, FfnLayout, Role, TensorName};
use aios_residency::{BlockFlags, PointerTable};
use std::ops::Range;

/// Whether a pass over one token reads a row of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowActivity {
    /// Every pass reads it.
    Always,
    /// It depends on the token: a row of the embedding, or of a head that is screened.
    ByToken,
}

/// A block of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightBlock {
    /// The tensor that it belongs to.
    pub name: TensorName,
    /// How its elements are stored.
    pub dtype: DType,
    /// Whether 16 rows lie interleaved (SPEC L1).
    pub packed: bool,
    /// Where it is in memory; 0 if it is read from disk in every pass.
    pub address: usize,
    /// Its size, with the zeros that fill up the last 16 rows of a packed tensor.
    pub bytes: usize,
    /// Its rows, in the tensor.
    pub rows: Range<usize>,
    /// What is true of it.
    pub flags: BlockFlags,
}

/// What is known of a run's tensor.
#[derive(Clone, Debug)]
struct Of {
    name: TensorName,
    dtype: DType,
    packed: bool,
    rows: Range<usize>,
    row_bytes: usize,
    activity: RowActivity,
}

/// The blocks of an executor's weights. Addresses hold for as long as the executor lives.
#[derive(Clone, Debug)]
pub struct WeightBlocks {
    table: PointerTable,
    of: Vec<Of>,
}

impl WeightBlocks {
    /// The number of blocks.
    pub fn len(&self) -> u32 {
        self.table.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The pointer table that the blocks come from.
    pub const fn table(&self) -> &PointerTable {
        &self.table
    }

    /// A block.
    pub fn get(&self, number: u32) -> Option<WeightBlock> {
        let pointer = self.table.get(number)?;
        let of = self.of.get(pointer.run as usize)?;
        let row = of.row_bytes.max(1);
        let bytes = pointer.bytes as usize;
        // Behind the last row a packed tensor is filled up.
        let at = |byte: usize| (of.rows.start + byte / row).min(of.rows.end);
        Some(WeightBlock {
            name: of.name,
            dtype: of.dtype,
            packed: of.packed,
            address: pointer.address,
            bytes,
            rows: at(pointer.offset)..at(pointer.offset + bytes),
            flags: pointer.flags,
        })
    }

    /// The numbers of the blocks of a tensor, which follow one another; `None` if passes read no
    /// matrix of this name.
    pub fn of_tensor(&self, name: TensorName) -> Option<Range<u32>> {
        let mut found: Option<Range<u32>> = None;
        for (run, of) in self.of.iter().enumerate().filter(|(_, of)| of.name == name) {
            let range = self.table.of_run(run).filter(|_| !of.rows.is_empty())?;
            found = Some(found.map_or(range.clone(), |before| before.start..range.end));
        }
        found
    }

    /// Whether passes read a row of a block, by its number in the tensor; `None` if there is no
    /// such block, or it does not have the row.
    pub fn activity(&self, number: u32, row: usize) -> Option<RowActivity> {
        self.get(number).filter(|block| block.rows.contains(&row))?;
        Some(self.of[self.table.get(number)?.run as usize].activity)
    }
}

impl Executor {
    /// The blocks of its weights, cut so that their table takes at most half of a last-level cache
    /// of so many bytes, if that is known.
    pub fn weight_blocks(&self, llc_bytes: Option<u64>) -> WeightBlocks {
        let model = self.model();
        let (weights, exact) = (model.weights(), self.options().exact);
        let mut table = self.pointers(llc_bytes);
        let describe = |tensor: &Tensor, exact, activity| Of {
            name: model.blocks().block(tensor.id).name,
            dtype: tensor.dtype,
            packed: tensor.is_packed(exact),
            rows: tensor.first..tensor.first + tensor.rows,
            row_bytes: tensor.row_bytes(),
            activity,
        };
        let fused = model.config().ffn.layout == FfnLayout::GatedFused;
        let of = |tensor: &Tensor| {
            let name = model.blocks().block(tensor.id).name;
            let by_token = match name.role {
                Role::Head => self.screens_head(),
                // In one matrix with up, the gate comes first, and is read whole.
                Role::FfnUp if fused && tensor.first == 0 => false,
                role => self.skips_in(role, name.layer),
            };
            let activity = if by_token { RowActivity::ByToken } else { RowActivity::Always };
            describe(tensor, exact, activity)
        };
        let mut list: Vec<Of> = weights.factors().map(of).collect();
        list.push(describe(&weights.embedding, true, RowActivity::ByToken));
        for (run, of) in list.iter().enumerate() {
            if of.activity == RowActivity::ByToken {
                table.mark(run, BlockFlags::SPARSE);
            }
        }
        WeightBlocks { table, of: list }
    }
}
