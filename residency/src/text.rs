//! Reading a small file whose name comes from elsewhere.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The text of a regular file of at most `most` bytes.
///
/// # Errors
/// The operating system's, and one for what is no regular file, is longer, or is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    // Opening a pipe would wait for a writer, so the kind is looked at first.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // What is in /proc and /sys does not tell its length.
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let what = format!("it has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_text_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "four").expect("written");
        assert_eq!(read_text(&path, 4).expect("text"), "four");
        let kind = |most| read_text(&path, most).expect_err("no text").kind();
        assert_eq!(kind(3), io::ErrorKind::FileTooLarge);
        // Longer than is read of it, and cut within a character.
        fs::write(&path, "éé").expect("written");
        assert_eq!((kind(3), kind(2)), (io::ErrorKind::FileTooLarge, io::ErrorKind::FileTooLarge));
        fs::write(&path, b"\xff").expect("written");
        assert_eq!(kind(4), io::ErrorKind::InvalidData);
        fs::remove_file(&path).expect("removed");
        assert_eq!(kind(4), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn what_never_ends_is_not_read() {
        let zero = read_text(Path::new("/dev/zero"), 4).expect_err("no file");
        assert_eq!(zero.to_string(), "it is not a regular file");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        assert_eq!(read_text(&path, 4).expect_err("no file").to_string(), zero.to_string());
    }
}
