//! The block table: every tensor as a range of a mapping, found by number.

use crate::mapping::Mapping;
use aios_contract::{DType, TensorName};
use std::ops::Range;

/// The number of a block in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(u32);

/// What the table knows of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The tensor that it holds.
    pub name: TensorName,
    /// How its elements are stored.
    pub dtype: DType,
    mapping: usize,
    range: Range<usize>,
    /// Whether its bytes were found elsewhere and are read there.
    moved: bool,
}

impl Block {
    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Whether its bytes are read from another file than its own (SPEC W13).
    pub const fn is_moved(&self) -> bool {
        self.moved
    }
}

/// A range that is not within its mapping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes {start}..{end} are beyond the end of a file of {len} bytes")]
pub struct RangeError {
    /// Where the range starts.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// The mapping's length.
    pub len: usize,
}

/// The blocks of a model and the mappings that hold them.
#[derive(Debug)]
pub struct BlockTable {
    mappings: Vec<Mapping>,
    blocks: Vec<Block>,
}

impl BlockTable {
    /// An empty table over `mappings`, which it keeps alive.
    pub const fn new(mappings: Vec<Mapping>) -> Self {
        Self { mappings, blocks: Vec::new() }
    }

    /// Adds a mapping and returns its number.
    pub fn add_mapping(&mut self, mapping: Mapping) -> usize {
        self.mappings.push(mapping);
        self.mappings.len() - 1
    }

    /// Enters a block: `range` of mapping `mapping`.
    ///
    /// # Errors
    /// [`RangeError`] if there is no such range.
    pub fn insert(
        &mut self,
        name: TensorName,
        dtype: DType,
        mapping: usize,
        range: Range<usize>,
    ) -> Result<BlockId, RangeError> {
        let len = self.mappings.get(mapping).map_or(0, |mapping| mapping.bytes().len());
        let id = u32::try_from(self.blocks.len());
        match id {
            Ok(id) if range.start <= range.end && range.end <= len => {
                self.blocks.push(Block { name, dtype, mapping, range, moved: false });
                Ok(BlockId(id))
            }
            _ => Err(RangeError { start: range.start, end: range.end, len }),
        }
    }

    /// Enters the bytes of `id` once more under another name, as a tied tensor needs it.
    ///
    /// # Panics
    /// If `id` is another table's, or there are 2^32 blocks.
    pub fn alias(&mut self, id: BlockId, name: TensorName) -> BlockId {
        let block = Block { name, ..self.block(id).clone() };
        let alias = u32::try_from(self.blocks.len()).expect("far fewer than 2^32 blocks");
        self.blocks.push(block);
        BlockId(alias)
    }

    /// A block's bytes.
    ///
    /// # Panics
    /// If `id` is another table's and this one has no such block.
    pub fn resolve(&self, id: BlockId) -> &[u8] {
        let block = self.block(id);
        &self.mappings[block.mapping].bytes()[block.range.clone()]
    }

    /// What the table knows of a block.
    ///
    /// # Panics
    /// If `id` is another table's and this one has no such block.
    pub fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    /// The number of a block's mapping, and where in it the block lies.
    pub(crate) fn place(&self, id: BlockId) -> (usize, Range<usize>) {
        let block = self.block(id);
        (block.mapping, block.range.clone())
    }

    /// Whether two blocks are the same bytes.
    ///
    /// # Panics
    /// If one of them is another table's and this one has no such block.
    pub fn is_same(&self, a: BlockId, b: BlockId) -> bool {
        self.place(a) == self.place(b)
    }

    /// Where a block lies.
    pub(crate) fn source(&self, id: BlockId) -> (&Mapping, Range<usize>) {
        let (mapping, range) = self.place(id);
        (&self.mappings[mapping], range)
    }

    /// From now on the block, and all others of the same bytes, is `range` of `mapping`, whose
    /// bytes are equal.
    pub(crate) fn move_to(&mut self, id: BlockId, mapping: Mapping, range: Range<usize>) {
        debug_assert_eq!(self.block(id).bytes(), range.len());
        let known = self.mappings.iter().position(|known| known.is(&mapping));
        let number = known.unwrap_or_else(|| self.add_mapping(mapping));
        let before = self.place(id);
        for block in &mut self.blocks {
            if (block.mapping, &block.range) == (before.0, &before.1) {
                (block.mapping, block.range, block.moved) = (number, range.clone(), true);
            }
        }
    }

    /// Every block.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = &Block> {
        self.blocks.iter()
    }

    /// The mappings.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aios_contract::Role;
    use std::io::Write as _;

    #[test]
    fn resolves_what_was_inserted_and_refuses_the_rest() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"0123456789").expect("written");
        let mapping = Mapping::open(file.path()).expect("mapped");
        let mut table = BlockTable::new(vec![mapping]);
        let name = TensorName { role: Role::Head, layer: None };
        let id = table.insert(name, DType::F32, 0, 2..6).expect("within the file");
        assert_eq!(table.resolve(id), b"2345");
        assert_eq!((table.block(id).name, table.block(id).bytes()), (name, 4));
        let reversed = Range { start: 6, end: 2 };
        for (mapping, range) in [(0, 2..11), (0, reversed), (1, 0..1), (0, 11..11)] {
            assert!(table.insert(name, DType::F32, mapping, range).is_err());
        }
        assert_eq!(table.blocks().len(), 1);
    }
}
