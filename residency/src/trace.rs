//! What an executor touches, access by access, in order: what a model of a cache is fed with.

use aios_contract::TensorName;
use serde::Serialize;

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// A tensor of the model, or a part of one.
    Weights(TensorName),
    /// Keys of a layer.
    Keys(u32),
    /// Values of a layer.
    Values(u32),
    /// Vectors between the layers' parts: they stay in caches.
    Activations,
}

/// A run of bytes that is read or written from its start to its end.
///
/// The threads of a pass share an access among them, each a part of about the same size. What
/// follows it begins when all have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What lies there.
    pub data: Data,
    /// The address of its first byte in the process.
    pub start: usize,
    /// Its length.
    pub bytes: usize,
    /// Whether it is written.
    pub write: bool,
    /// Whether a disk has written it since it was last read, so that no cache holds it.
    pub fresh: bool,
    /// Whether it is read past the caches, leaving nothing of it behind.
    pub past: bool,
}

impl Access {
    /// Reading `memory`.
    pub fn read<T>(data: Data, memory: &[T]) -> Self {
        let start = memory.as_ptr().addr();
        Self { data, start, bytes: size_of_val(memory), write: false, fresh: false, past: false }
    }

    /// Writing `memory`.
    pub fn write<T>(data: Data, memory: &[T]) -> Self {
        Self { write: true, ..Self::read(data, memory) }
    }
}
