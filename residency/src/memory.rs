//! Memory of our own: the KV cache, and what the process occupies.

use crate::pages::Pages;
use std::io;

/// Memory that the system would not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the KV cache needs {bytes} bytes, which the system does not give; \
     use a shorter context (-c) or a smaller cache type (-ctk, -ctv)"
)]
pub struct OutOfMemory {
    /// What was asked for.
    pub bytes: usize,
}

/// The keys and values of every layer. Memory is reserved as a whole and becomes resident as
/// positions are written.
#[derive(Debug)]
pub struct KvArena {
    layers: Vec<[Pages; 2]>,
    /// Bytes of a layer's keys and of its values; the memory is whole pages.
    sides: [usize; 2],
}

impl KvArena {
    /// Memory for layers of `key_bytes` and `value_bytes` each.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(layers: usize, key_bytes: usize, value_bytes: usize) -> Result<Self, OutOfMemory> {
        let sides = [key_bytes, value_bytes];
        let layer = || Ok([Pages::new(key_bytes)?, Pages::new(value_bytes)?]);
        let bytes = key_bytes.saturating_add(value_bytes).saturating_mul(layers);
        let layers: io::Result<_> = (0..layers).map(|_| layer()).collect();
        Ok(Self { layers: layers.map_err(|_| OutOfMemory { bytes })?, sides })
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> [&[u8]; 2] {
        let [keys, values] = &self.layers[layer];
        [&keys[..self.sides[0]], &values[..self.sides[1]]]
    }

    /// Keys and values of a layer, to write.
    pub fn layer_mut(&mut self, layer: usize) -> [&mut [u8]; 2] {
        let [keys, values] = &mut self.layers[layer];
        [&mut keys[..self.sides[0]], &mut values[..self.sides[1]]]
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.layers.len() * (self.sides[0] + self.sides[1])
    }

    /// Keys and values in whole pages, to lay others over.
    pub(crate) fn pages_mut(&mut self) -> impl Iterator<Item = &mut Pages> {
        self.layers.iter_mut().flatten()
    }

    /// The number of layers, and bytes of a layer's keys and of its values.
    pub(crate) const fn shape(&self) -> (usize, [usize; 2]) {
        (self.layers.len(), self.sides)
    }
}

/// A line of `/proc/self/status` in bytes.
fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The most memory that this process ever had resident, mapped files included; `None` where the
/// system does not say.
pub fn peak_resident_bytes() -> Option<u64> {
    status_bytes("VmHWM")
}

/// The memory that this process has resident now, mapped files included.
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_zero_and_writable() {
        let mut arena = KvArena::new(2, 100, 0).expect("memory");
        assert_eq!(arena.bytes(), 200);
        arena.layer_mut(1)[0][99] = 7;
        assert_eq!((arena.layer(0)[0][99], arena.layer(1)[0][99]), (0, 7));
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(KvArena::new(1, usize::MAX, 1).is_err());
        assert!(KvArena::new(1, 1 << 60, 1).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn resident_memory_is_known() {
        assert!(peak_resident_bytes() >= resident_bytes().map(|now| now / 2));
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100_000));
    }
}
