//! R5's manifest: which bytes of a file are read how often (SPEC.md, R5 and R9).

use super::CONTRACT_VERSION;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// The manifest of a file. [`Manifest::check`] says whether it can be believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the contract: "1.0".
    pub aios_contract_version: String,
    /// The blocks in the order of the file.
    pub blocks: Vec<ManifestBlock>,
}

/// A tensor, or a run of a tensor's rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestBlock {
    /// The tensor's name, or `NAME[a..b]` for its rows a to b − 1; see [`BlockId`].
    pub id: String,
    /// The fraction of decoded tokens that read the block, 0 to 1.
    pub access_frequency: f64,
    /// Where it should live.
    pub tier: BlockTier,
    /// Its first byte, counted from the start of the file.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// Where a block should live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum BlockTier {
    /// Kept in the caches as far as they reach.
    Hot,
    /// Kept in memory.
    Warm,
    /// Read when it is needed.
    Stream,
}

impl BlockTier {
    /// Every tier, the hottest first.
    pub const ALL: [Self; 3] = [Self::Hot, Self::Warm, Self::Stream];

    /// The word in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hot => "HOT",
            Self::Warm => "WARM",
            Self::Stream => "STREAM",
        }
    }

    /// The tier of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

/// What a block's id says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockId<'a> {
    /// The tensor.
    pub tensor: &'a str,
    /// The rows of it, or all of them.
    pub rows: Option<Range<u64>>,
}

impl<'a> BlockId<'a> {
    /// Reads an id; `None` if it has brackets that hold no run of rows.
    pub fn parse(id: &'a str) -> Option<Self> {
        let Some((tensor, rows)) = id.split_once('[') else {
            return (!id.is_empty()).then_some(Self { tensor: id, rows: None });
        };
        let (start, end) = rows.strip_suffix(']')?.split_once("..")?;
        let number =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok());
        let (start, end) = (number(start)??, number(end)??);
        (!tensor.is_empty() && start < end).then_some(Self { tensor, rows: Some(start..end) })
    }
}

/// What a manifest is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where tensor data lies, in bytes from the start of the file.
    pub data: Range<u64>,
    /// The sum of all tensors' bytes, without gaps.
    pub weight_bytes: u64,
}

/// Why a manifest cannot be believed. Blocks are counted from 0.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// It is of another version.
    #[error("the contract's version is not {CONTRACT_VERSION}; write the manifest again")]
    Version,
    /// It has no blocks.
    #[error("there are no blocks")]
    Empty,
    /// An id is no tensor's name and no run of rows.
    #[error("block {block}: the id is not NAME or NAME[a..b]")]
    Id {
        /// The block.
        block: usize,
    },
    /// An id occurs twice.
    #[error("block {block}: the id occurs twice")]
    DuplicateId {
        /// The later block.
        block: usize,
    },
    /// A frequency is no fraction.
    #[error("block {block}: the frequency {frequency} is not between 0 and 1")]
    Frequency {
        /// The block.
        block: usize,
        /// What it says.
        frequency: f64,
    },
    /// A block is read more often than the one before it.
    #[error("block {block} is read more often than the block before it; sort the file")]
    FrequencyOrder {
        /// The later block.
        block: usize,
    },
    /// A block is hotter than the one before it.
    #[error("block {block} has a hotter tier than the block before it")]
    TierOrder {
        /// The later block.
        block: usize,
    },
    /// A block has no bytes.
    #[error("block {block} has no bytes")]
    NoBytes {
        /// The block.
        block: usize,
    },
    /// A block reaches beyond the tensor data, or its end overflows.
    #[error("block {block} does not lie in the file's tensor data")]
    Outside {
        /// The block.
        block: usize,
    },
    /// A block begins before the one before it ends.
    #[error("block {block} begins before the end of the block before it")]
    Overlap {
        /// The later block.
        block: usize,
    },
    /// Some weights belong to no block.
    #[error("the blocks hold {covered} of the {weights} bytes of weights; list every tensor")]
    Incomplete {
        /// Bytes of all blocks.
        covered: u64,
        /// Bytes of all tensors.
        weights: u64,
    },
}

impl ManifestError {
    /// The field of the manifest that is wrong.
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Version => "aios_contract_version",
            Self::Empty => "blocks",
            Self::Id { .. } | Self::DuplicateId { .. } => "id",
            Self::Frequency { .. } | Self::FrequencyOrder { .. } => "access_frequency",
            Self::TierOrder { .. } => "tier",
            Self::Outside { .. } | Self::Overlap { .. } => "offset",
            Self::NoBytes { .. } | Self::Incomplete { .. } => "size",
        }
    }
}

impl Manifest {
    /// Whether this is the manifest of a file ordered by frequency: the version, each block for
    /// itself, the order of places, frequencies and tiers, and that no weight is left out.
    ///
    /// # Errors
    /// The first [`ManifestError`].
    pub fn check(&self, extent: &Extent) -> Result<(), ManifestError> {
        if self.aios_contract_version != CONTRACT_VERSION {
            return Err(ManifestError::Version);
        }
        if self.blocks.is_empty() {
            return Err(ManifestError::Empty);
        }
        let mut ids = HashSet::with_capacity(self.blocks.len());
        let (mut end, mut covered) = (extent.data.start, 0u64);
        for (i, block) in self.blocks.iter().enumerate() {
            if !ids.insert(block.id.as_str()) {
                return Err(ManifestError::DuplicateId { block: i });
            }
            check_block(i, block)?;
            let before = i.checked_sub(1).and_then(|before| self.blocks.get(before));
            if let Some(before) = before {
                check_order(i, before, block)?;
            }
            end = check_place(i, block, extent, end)?;
            // Blocks that do not overlap and lie in a file have fewer bytes than 2⁶⁴.
            covered += block.size;
        }
        if covered == extent.weight_bytes {
            Ok(())
        } else {
            Err(ManifestError::Incomplete { covered, weights: extent.weight_bytes })
        }
    }
}

/// What a block says of itself.
fn check_block(i: usize, block: &ManifestBlock) -> Result<(), ManifestError> {
    let frequency = block.access_frequency;
    if BlockId::parse(&block.id).is_none() {
        return Err(ManifestError::Id { block: i });
    }
    if !(0.0..=1.0).contains(&frequency) {
        return Err(ManifestError::Frequency { block: i, frequency });
    }
    if block.size == 0 {
        return Err(ManifestError::NoBytes { block: i });
    }
    Ok(())
}

/// A block beside the one before it: not more frequent, not hotter.
fn check_order(
    i: usize,
    before: &ManifestBlock,
    block: &ManifestBlock,
) -> Result<(), ManifestError> {
    if block.access_frequency > before.access_frequency {
        return Err(ManifestError::FrequencyOrder { block: i });
    }
    if block.tier < before.tier {
        return Err(ManifestError::TierOrder { block: i });
    }
    Ok(())
}

/// The end of a block that begins at `end` of the one before it or later, and lies in the file.
fn check_place(
    i: usize,
    block: &ManifestBlock,
    extent: &Extent,
    end: u64,
) -> Result<u64, ManifestError> {
    let own_end =
        block.offset.checked_add(block.size).filter(|own_end| *own_end <= extent.data.end);
    let Some(own_end) = own_end.filter(|_| block.offset >= extent.data.start) else {
        return Err(ManifestError::Outside { block: i });
    };
    if block.offset < end {
        return Err(ManifestError::Overlap { block: i });
    }
    Ok(own_end)
}

impl fmt::Display for Manifest {
    /// A sentence for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks in the order of their declared frequencies:", self.blocks.len())?;
        for (i, tier) in BlockTier::ALL.into_iter().enumerate() {
            let count = self.blocks.iter().filter(|block| block.tier == tier).count();
            write!(f, "{} {count} {}", if i == 0 { "" } else { "," }, tier.name())?;
        }
        f.write_str(".")
    }
}
