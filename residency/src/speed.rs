//! How fast a disk gives a file, read as streamed weights are (SPEC W10).

use crate::disk::{Access, DiskError, DiskFile};
use crate::pages::{PAGE, Pages};
use crate::tiers::BUFFER_BYTES;
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A measured read of a file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DiskSpeed {
    /// Bytes read.
    pub bytes: u64,
    /// The time they took, in seconds.
    pub seconds: f64,
    /// 10⁹ bytes per second.
    pub gb_per_s: f64,
    /// Whether the page cache was bypassed. Where it was not, the figure may be that of memory.
    pub direct: bool,
}

/// Reads the first `most` bytes of the file at `path`, or all, by as many threads and in pieces of
/// the same size as weights are streamed.
///
/// # Errors
/// [`DiskError`].
#[expect(clippy::cast_precision_loss, reason = "a report's figure")]
pub fn measure_disk(path: &Path, most: u64) -> Result<DiskSpeed, DiskError> {
    let wrong = |source| DiskError::Read { path: path.to_owned(), source };
    let file = DiskFile::open(path, Access::Direct)?;
    let len = std::fs::metadata(path).map_err(wrong)?.len();
    // A last page that is not whole is left out.
    let total = len.min(most) / PAGE as u64 * PAGE as u64;
    let next = AtomicU64::new(0);
    let work = || {
        let mut buffer = Pages::new(BUFFER_BYTES).map_err(wrong)?;
        // As for buffers of weights: a disk writes a huge page in fewer pieces.
        let _ = buffer.ask_for_huge();
        loop {
            let at = next.fetch_add(BUFFER_BYTES as u64, Ordering::Relaxed);
            let left = usize::try_from(total.saturating_sub(at)).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(());
            }
            let needed = left.min(BUFFER_BYTES);
            file.read(at, &mut buffer[..needed], needed)?;
        }
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let own: Result<(), DiskError> = work();
        match other.join() {
            Ok(outcome) => own.and(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    // A clock may be coarser than the read of a small file.
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    let gb_per_s = total as f64 / 1e9 / seconds;
    Ok(DiskSpeed { bytes: total, seconds, gb_per_s, direct: file.is_direct() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_as_far_as_asked() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), vec![1; 20_000_100]).expect("written");
        let speed = measure_disk(file.path(), u64::MAX).expect("read");
        assert_eq!(speed.bytes, 20_000_100 / 4096 * 4096);
        assert!(speed.gb_per_s > 0.0 && speed.gb_per_s.is_finite());
        assert_eq!(measure_disk(file.path(), 8192).expect("read").bytes, 8192);
        assert!(measure_disk(Path::new("/no/such/file"), 1).is_err());
    }
}
