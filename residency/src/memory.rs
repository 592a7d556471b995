//! Memory of our own: the KV cache, and what the process occupies.

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
    layers: Vec<[Vec<u8>; 2]>,
}

/// Zeroed bytes that become resident when they are touched.
fn zeroed(bytes: usize) -> Result<Vec<u8>, OutOfMemory> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let layout = std::alloc::Layout::array::<u8>(bytes).map_err(|_| OutOfMemory { bytes })?;
    // SAFETY: the layout's size is not zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return Err(OutOfMemory { bytes });
    }
    // SAFETY: `start` was allocated by the global allocator with the layout of `bytes` bytes, of
    // which all are initialised.
    Ok(unsafe { Vec::from_raw_parts(start, bytes, bytes) })
}

impl KvArena {
    /// Memory for layers of `key_bytes` and `value_bytes` each.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(layers: usize, key_bytes: usize, value_bytes: usize) -> Result<Self, OutOfMemory> {
        let layer = || Ok([zeroed(key_bytes)?, zeroed(value_bytes)?]);
        let total = key_bytes.saturating_add(value_bytes).saturating_mul(layers);
        let layers: Result<_, OutOfMemory> = (0..layers).map(|_| layer()).collect();
        Ok(Self { layers: layers.map_err(|_| OutOfMemory { bytes: total })? })
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> [&[u8]; 2] {
        self.layers[layer].each_ref().map(Vec::as_slice)
    }

    /// Keys and values of a layer, to write.
    pub fn layer_mut(&mut self, layer: usize) -> [&mut [u8]; 2] {
        self.layers[layer].each_mut().map(Vec::as_mut_slice)
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(Vec::len).sum()
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
