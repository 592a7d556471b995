//! The file of repacked weights (SPEC L2): written once beside a digest of its source, mapped ever
//! after. What the pieces mean is the caller's business; this file keeps them apart and makes sure
//! that half a file is never taken for a whole one.
//!
//! ```text
//! byte 0        8           12      16        48         80
//!      | magic  | version   | count | stamp   | digest   | count × (offset, length) | checksum |
//!        8 B      u32         u32     32 B      32 B       u64, u64                   u64
//! ```
//!
//! All numbers are little-endian. Pieces follow in order, each at a multiple of 4096.

use crate::mapping::{MapError, Mapping};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"AIOSPANL";
const VERSION: u32 = 1;
/// Pieces begin at multiples of this, a page.
const ALIGN: u64 = 4096;
const FIXED: usize = 80;

/// What a file of repacked weights was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Identifies the source as it stands on the disk: a digest of names, lengths and times.
    pub stamp: [u8; 32],
    /// The SHA-256 of the source's bytes.
    pub digest: [u8; 32],
}

/// Why a file of repacked weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PanelError {
    /// It could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// It is not such a file, is of another version, or is damaged.
    #[error("{}: {what}", path.display())]
    Unsound {
        /// The file.
        path: PathBuf,
        /// The field at fault.
        what: &'static str,
    },
    /// It was made from another state of the source, or for other pieces.
    #[error("{}: it was made from another state of its source", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
    },
}

/// The pieces' places and the file's length.
fn layout(lengths: &[u64]) -> Option<(Vec<Range<u64>>, u64)> {
    let mut end = u64::try_from(FIXED + 16 * lengths.len() + 8).ok()?;
    let mut ranges = Vec::with_capacity(lengths.len());
    for length in lengths {
        let start = end.checked_next_multiple_of(ALIGN)?;
        end = start.checked_add(*length)?;
        ranges.push(start..end);
    }
    Some((ranges, end))
}

/// The bytes before the first piece.
fn header(origin: &Origin, ranges: &[Range<u64>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    // There is a piece for each matrix of a model, far fewer than 2^32.
    bytes.extend(u32::try_from(ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(origin.stamp);
    bytes.extend(origin.digest);
    for range in ranges {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend((range.end - range.start).to_le_bytes());
    }
    bytes.extend(checksum(&bytes).to_le_bytes());
    bytes
}

/// FNV-1a, which notices any damage to a byte; nobody forges the user's own cache.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A file of repacked weights, mapped.
#[derive(Debug)]
pub struct Panels {
    /// The file.
    pub mapping: Mapping,
    /// Where its pieces are.
    pub ranges: Vec<Range<usize>>,
    /// The SHA-256 of what it was made from.
    pub digest: [u8; 32],
}

/// Maps the file at `path`, made from the state `stamp` of its source, with pieces of these
/// lengths.
///
/// # Errors
/// [`PanelError`]: whatever it is, the file is to be made anew.
pub fn open_panels(path: &Path, stamp: &[u8; 32], lengths: &[u64]) -> Result<Panels, PanelError> {
    let unsound = |what| PanelError::Unsound { path: path.to_owned(), what };
    let mapping = Mapping::open(path)?;
    let bytes = mapping.bytes();
    let fixed = bytes.get(..FIXED).ok_or(unsound("it is too short"))?;
    if fixed[..8] != *MAGIC {
        return Err(unsound("it does not start with the mark of repacked weights"));
    }
    if fixed[8..12] != VERSION.to_le_bytes() {
        return Err(unsound("its version is another one"));
    }
    if fixed[16..48] != *stamp {
        return Err(PanelError::Stale { path: path.to_owned() });
    }
    let digest: [u8; 32] = fixed[48..80].try_into().expect("32 bytes");
    let (ranges, end) = layout(lengths).ok_or(unsound("its pieces are too long"))?;
    let expected = header(&Origin { stamp: *stamp, digest }, &ranges);
    if bytes.get(..expected.len()) != Some(&expected[..]) {
        return Err(unsound("its table of pieces is not that of the model"));
    }
    if u64::try_from(bytes.len()) != Ok(end) {
        return Err(unsound("its length is not that of its pieces"));
    }
    let place = |at: u64| usize::try_from(at).expect("within a mapping");
    let ranges = ranges.iter().map(|range| place(range.start)..place(range.end)).collect();
    Ok(Panels { mapping, ranges, digest })
}

/// What the file at `path` says that it was made from; `None` if it cannot be read or is no file of
/// repacked weights of this version. The rest of the file is not looked at.
pub fn panel_origin(path: &Path) -> Option<Origin> {
    let mut fixed = [0; FIXED];
    File::open(path).ok()?.read_exact(&mut fixed).ok()?;
    let known = fixed[..8] == *MAGIC && fixed[8..12] == VERSION.to_le_bytes();
    let part = |at: usize| fixed[at..at + 32].try_into().expect("32 bytes");
    known.then(|| Origin { stamp: part(16), digest: part(48) })
}

/// A file of repacked weights that is being written. Dropped before [`PanelWriter::finish`] it
/// leaves nothing behind.
#[derive(Debug)]
pub struct PanelWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    ranges: Vec<Range<u64>>,
    /// Bytes written, and the piece that comes next.
    at: u64,
    piece: usize,
}

impl PanelWriter {
    /// Starts a file that will be at `path`, with pieces of these lengths.
    ///
    /// # Errors
    /// The operating system's: no room, no permission.
    pub fn create(path: &Path, lengths: &[u64]) -> io::Result<Self> {
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "pieces too long");
        let (ranges, end) = layout(lengths).ok_or_else(too_long)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let temporary = path.with_file_name(name);
        let file = claim(&temporary)?;
        let mut writer = Self {
            path: path.to_owned(),
            temporary,
            file: None,
            at: u64::try_from(FIXED + 16 * ranges.len() + 8).map_err(|_| too_long())?,
            ranges,
            piece: 0,
        };
        // Room is asked for at once, so that a full disk shows before the work is done.
        reserve(&file, end)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&vec![0; usize::try_from(writer.at).map_err(|_| too_long())?])?;
        writer.file = Some(file);
        Ok(writer)
    }

    /// Starts the next piece; its bytes follow by [`Self::write`].
    ///
    /// # Errors
    /// The operating system's.
    ///
    /// # Panics
    /// If there is no next piece, or the one before it is not whole.
    pub fn start_piece(&mut self) -> io::Result<()> {
        if let Some(before) = self.piece.checked_sub(1) {
            assert_eq!(self.at, self.ranges[before].end, "the piece before is whole");
        }
        let start = self.ranges[self.piece].start;
        self.piece += 1;
        let gap = usize::try_from(start - self.at).expect("less than a page");
        self.write(&[0; ALIGN as usize][..gap])
    }

    /// Writes bytes of the present piece.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    /// Writes the header, hands everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// The operating system's.
    ///
    /// # Panics
    /// If a piece is not whole.
    pub fn finish(mut self, origin: &Origin) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        assert_eq!(self.piece, self.ranges.len(), "every piece is written");
        assert_eq!(Some(self.at), self.ranges.last().map(|range| range.end).or(Some(self.at)));
        let Some(file) = self.file.take() else { return Ok(()) };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.write_all_at(&header(origin, &self.ranges), 0)?;
        file.sync_all()?;
        // The lock goes with the descriptor, so the name changes first.
        fs::rename(&self.temporary, &self.path)?;
        self.temporary = PathBuf::new();
        Ok(())
    }
}

impl Drop for PanelWriter {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Opens and locks the file at `path`, which another process may be writing, may have given its
/// final name just now, or may have left behind when it was killed.
pub(crate) fn claim(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt as _;
    loop {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(|error| match error {
            fs::TryLockError::Error(error) => error,
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process is writing the same file",
            ),
        })?;
        // What was locked must still be what the name stands for.
        let (mine, named) = (file.metadata()?, fs::metadata(path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (mine.dev(), mine.ino())) {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

/// Makes sure that the disk has room for `len` bytes of `file`.
pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is that of a file that is open for as long as the call lasts.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
        0 | libc::EOPNOTSUPP | libc::EINVAL => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { stamp: [7; 32], digest: [9; 32] };
    const LENGTHS: [u64; 3] = [5000, 16, 4096];

    fn write(path: &Path) {
        let mut writer = PanelWriter::create(path, &LENGTHS).expect("created");
        for (i, length) in LENGTHS.iter().enumerate() {
            writer.start_piece().expect("written");
            for byte in 0..*length {
                writer.write(&[(byte as u8) ^ (i as u8)]).expect("written");
            }
        }
        writer.finish(&ORIGIN).expect("finished");
    }

    #[test]
    fn what_was_written_is_mapped() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deeper").join("x.panels");
        write(&path);
        let Panels { mapping, ranges, digest } =
            open_panels(&path, &ORIGIN.stamp, &LENGTHS).expect("sound");
        assert_eq!(digest, ORIGIN.digest);
        assert_eq!(panel_origin(&path), Some(ORIGIN));
        for ((i, range), length) in ranges.into_iter().enumerate().zip(LENGTHS) {
            assert!(range.start % 4096 == 0 && range.len() as u64 == length);
            let piece = &mapping.bytes()[range];
            assert!(piece.iter().enumerate().all(|(at, byte)| *byte == at as u8 ^ i as u8));
        }
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("read").count(), 1);
    }

    #[test]
    fn a_writer_that_gives_up_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.panels");
        let mut writer = PanelWriter::create(&path, &LENGTHS).expect("created");
        writer.start_piece().expect("written");
        drop(writer);
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 0);
        assert!(PanelWriter::create(Path::new("/proc/none/x.panels"), &LENGTHS).is_err());
        assert!(PanelWriter::create(&path, &[u64::MAX, 1]).is_err());
    }

    #[test]
    fn one_process_writes_at_a_time_and_takes_over_what_was_left_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.panels");
        let left = folder.path().join("x.panels.part");
        fs::write(&left, vec![1; 100_000]).expect("written");
        let first = PanelWriter::create(&path, &LENGTHS).expect("takes it over");
        let second = PanelWriter::create(&path, &LENGTHS).expect_err("the first one writes");
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        assert!(left.exists());
        drop(first);
        write(&path);
        assert!(!left.exists() && open_panels(&path, &ORIGIN.stamp, &LENGTHS).is_ok());
    }

    #[test]
    fn every_damage_to_the_header_and_every_truncation_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.panels");
        write(&path);
        let sound = fs::read(&path).expect("read");
        let header = FIXED + 16 * LENGTHS.len() + 8;
        for at in 0..header {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).expect("written");
            assert!(open_panels(&path, &ORIGIN.stamp, &LENGTHS).is_err(), "byte {at}");
        }
        for len in [0, 1, FIXED - 1, FIXED, header, 4096, sound.len() - 1] {
            fs::write(&path, &sound[..len]).expect("written");
            assert!(open_panels(&path, &ORIGIN.stamp, &LENGTHS).is_err(), "length {len}");
            assert_eq!(panel_origin(&path).is_some(), len >= FIXED, "length {len}");
        }
        fs::write(&path, &sound).expect("written");
        assert!(open_panels(&path, &ORIGIN.stamp, &LENGTHS).is_ok());
        assert!(open_panels(&path, &ORIGIN.stamp, &LENGTHS[..2]).is_err());
        let stale = open_panels(&path, &[8; 32], &LENGTHS);
        assert!(matches!(stale, Err(PanelError::Stale { .. })));
    }
}
