//! One copy in memory of blocks that several models have (SPEC W13): a table of contents by digest.
//!
//! Blocks are matrices, which passes read as slices, so that a matrix is read either from its own
//! file or from another one that has the same bytes, and never pieced together. The second file's
//! pages of it are then never touched.

use crate::mapping::WeakMapping;
use crate::table::{BlockId, BlockTable};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Where a content was first met.
#[derive(Debug)]
struct Place {
    mapping: WeakMapping,
    range: Range<usize>,
}

/// Contents of blocks that models in this process have, by SHA-256. It keeps no file mapped: what
/// the last model lets go of is forgotten.
#[derive(Debug, Default)]
pub struct BlockStore {
    places: Mutex<HashMap<[u8; 32], Place>>,
}

impl BlockStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks for the content of `id`, whose digest is given. If it is known, the block is read
    /// from where it is from now on, and this returns whether that is another place; else it
    /// becomes known.
    ///
    /// # Panics
    /// If `id` is another table's and this one has no such block.
    pub fn share(&self, table: &mut BlockTable, id: BlockId, digest: &[u8; 32]) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, range) = table.source(id);
        let known = places.get(digest).filter(|place| place.range.len() == range.len());
        if let Some(place) = known
            && let Some(mapping) = place.mapping.upgrade()
        {
            if mapping.is(own) && place.range == range {
                return false;
            }
            table.move_to(id, mapping, place.range.clone());
            return true;
        }
        // Models come and go; what is gone makes room at this occasion.
        places.retain(|_, place| place.mapping.upgrade().is_some());
        places.insert(*digest, Place { mapping: own.downgrade(), range });
        false
    }

    /// Contents that are known and mapped.
    pub fn len(&self) -> usize {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.values().filter(|place| place.mapping.upgrade().is_some()).count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;
    use aios_contract::{DType, Role, TensorName};
    use std::path::Path;

    const NAME: TensorName = TensorName { role: Role::Head, layer: None };

    fn table(path: &Path, bytes: &[u8]) -> BlockTable {
        std::fs::write(path, bytes).expect("written");
        BlockTable::new(vec![Mapping::open(path).expect("mapped")])
    }

    #[test]
    fn a_content_is_read_from_where_it_was_met_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlockStore::new();
        let mut first = table(&folder.path().join("first"), b"..weights");
        let mut second = table(&folder.path().join("second"), b"weights and more");
        let a = first.insert(NAME, DType::F32, 0, 2..9).expect("within the file");
        let b = second.insert(NAME, DType::F32, 0, 0..7).expect("within the file");
        let tied = second.alias(b, NAME);
        let more = second.insert(NAME, DType::F32, 0, 7..16).expect("within the file");
        assert!(!store.share(&mut first, a, &[1; 32]));
        assert!(!store.share(&mut first, a, &[1; 32]), "it is there already");
        assert!(store.share(&mut second, b, &[1; 32]));
        assert!(!store.share(&mut second, more, &[2; 32]));
        let address = |table: &BlockTable, id| table.resolve(id).as_ptr();
        assert_eq!(address(&second, b), address(&first, a));
        assert_eq!(address(&second, tied), address(&first, a));
        assert!(second.block(tied).is_moved() && !second.block(more).is_moved());
        assert_eq!((second.resolve(b), second.resolve(more)), (&b"weights"[..], &b" and more"[..]));
        assert_eq!(second.mappings().len(), 2);
        assert_eq!(store.len(), 2);
        // A digest of a block of another length is not believed.
        let digest = [1; 32];
        assert!(!store.share(&mut second, more, &digest));
        // The second model keeps the first file's bytes, the store does not.
        drop(first);
        assert_eq!(second.resolve(b), b"weights");
        drop(second);
        assert!(store.is_empty());
    }
}
