//! Lines that went between the caches and memory, by what they hold.

use aios_contract::RoleGroup;
use aios_residency::Data;
use serde::Serialize;

/// What a line holds, as reports group it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Rows of the token embedding.
    Embedding,
    /// Attention projections and their biases.
    Attention,
    /// Feed-forward projections and their biases.
    Ffn,
    /// Norm gains and biases.
    Norm,
    /// The output matrix.
    Head,
    /// Cached keys.
    Keys,
    /// Cached values.
    Values,
    /// Vectors between a layer's parts, and logits.
    Activations,
}

impl Group {
    /// Every group, in the order of reports.
    pub const ALL: [Self; 8] = [
        Self::Embedding,
        Self::Attention,
        Self::Ffn,
        Self::Norm,
        Self::Head,
        Self::Keys,
        Self::Values,
        Self::Activations,
    ];

    /// The group of some data.
    pub fn of(data: Data) -> Self {
        match data {
            Data::Weights(name) => match name.role.group() {
                RoleGroup::Embedding => Self::Embedding,
                RoleGroup::Attention => Self::Attention,
                RoleGroup::Ffn => Self::Ffn,
                RoleGroup::Norm => Self::Norm,
                RoleGroup::Head => Self::Head,
            },
            Data::Keys(_) => Self::Keys,
            Data::Values(_) => Self::Values,
            Data::Activations => Self::Activations,
        }
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Ffn => "ffn",
            Self::Norm => "norm",
            Self::Head => "head",
            Self::Keys => "keys",
            Self::Values => "values",
            Self::Activations => "activations",
        }
    }
}

/// Counts of lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    read: [u64; Group::ALL.len()],
    for_ownership: [u64; Group::ALL.len()],
    written: [u64; Group::ALL.len()],
}

impl Traffic {
    /// A line of `group` is read from memory, `for_ownership` if a store wants it.
    pub(super) fn fetch(&mut self, group: Group, for_ownership: bool) {
        let counts = if for_ownership { &mut self.for_ownership } else { &mut self.read };
        counts[group as usize] += 1;
    }

    /// A line goes to memory into which `group` was written last.
    pub(super) fn write(&mut self, group: Group) {
        self.written[group as usize] += 1;
    }

    /// Lines written to memory into which a group was written last.
    pub const fn written(&self, group: Group) -> u64 {
        self.written[group as usize]
    }

    /// Lines written to memory.
    pub fn writes(&self) -> u64 {
        self.written.iter().sum()
    }

    /// Lines of a group that loads read from memory.
    pub const fn read(&self, group: Group) -> u64 {
        self.read[group as usize]
    }

    /// Lines of a group that stores read from memory.
    pub const fn for_ownership(&self, group: Group) -> u64 {
        self.for_ownership[group as usize]
    }

    /// Lines that loads read from memory.
    pub fn reads(&self) -> u64 {
        self.read.iter().sum()
    }

    /// Lines that stores read from memory.
    pub fn reads_for_ownership(&self) -> u64 {
        self.for_ownership.iter().sum()
    }
}
