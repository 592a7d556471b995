//! From documents to chunks: which can be read, in which encoding, and where they are cut
//! (SPEC.md, V5 and V6).

mod chunk;
mod decode;
mod markup;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::store::{Chunk, Document};
use super::{Error, Options};
use chunk::Section;

/// The largest document; what is larger is data.
const BYTES_MAX: u64 = 64 << 20;

/// What a document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Markdown,
    Html,
    Code,
}

/// Endings of file names. What is not among them is text, if it can be read as such.
const MARKDOWN: [&str; 3] = ["md", "markdown", "mdx"];
const HTML: [&str; 3] = ["html", "htm", "xhtml"];
const CODE: [&str; 54] = [
    "asm", "bash", "c", "cc", "clj", "cmake", "cpp", "cs", "css", "cu", "cxx", "dart", "el", "erl",
    "ex", "exs", "f90", "fs", "go", "gradle", "h", "hh", "hpp", "hs", "java", "jl", "js", "json",
    "jsx", "kt", "lisp", "lua", "m", "ml", "nim", "php", "pl", "ps1", "py", "r", "rb", "rs", "s",
    "scala", "sh", "sql", "swift", "tcl", "toml", "ts", "tsx", "vue", "yaml", "zig",
];

/// A document that was read and cut.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// Where it comes from.
    pub source: String,
    /// `text`, `markdown`, `html` or `code`.
    pub kind: &'static str,
    /// The encoding that it was read in.
    pub encoding: &'static str,
    /// Whether the encoding is a guess.
    pub guessed: bool,
    /// Its passages in order; none for a document without words.
    pub chunks: Vec<Chunk>,
    digest: [u8; 32],
    bytes: u64,
}

impl Parsed {
    /// The document as a store takes it.
    pub fn document(&self) -> Document<'_> {
        Document {
            source: &self.source,
            digest: self.digest,
            kind: self.kind,
            encoding: self.encoding,
            bytes: self.bytes,
        }
    }
}

/// Reads and cuts the file at `path`.
///
/// # Errors
/// [`Error::Io`], and [`Error::Refused`] for what cannot be imported.
pub fn read(path: &Path, options: &Options) -> Result<Parsed, Error> {
    let source = path.to_string_lossy().into_owned();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|e| Error::io("read", path, e))?;
    parse(&source, &bytes, options)
}

/// Cuts a document whose name tells what it is written in.
///
/// # Errors
/// [`Error::Refused`] for what cannot be imported.
pub fn parse(source: &str, bytes: &[u8], options: &Options) -> Result<Parsed, Error> {
    if bytes.len() as u64 > BYTES_MAX {
        return Err(Error::Refused {
            what: source.to_owned(),
            kind: "larger than 64 MiB",
            remedy: "cut it into parts",
        });
    }
    let by_name = kind_of(source);
    let decoded = decode::decode(source, bytes, by_name == Kind::Html)?;
    let kind = if decode::looks_like_html(&decoded.text) { Kind::Html } else { by_name };
    let name = Path::new(source).file_name().unwrap_or_default().to_string_lossy();
    let sections = match kind {
        Kind::Markdown => markup::markdown(&decoded.text, &name),
        Kind::Html => markup::html(source, &decoded.text, &name)?,
        Kind::Text => vec![Section::prose(&name, decoded.text)],
        Kind::Code => vec![Section::code(&name, decoded.text)],
    };
    Ok(Parsed {
        source: source.to_owned(),
        kind: match kind {
            Kind::Text => "text",
            Kind::Markdown => "markdown",
            Kind::Html => "html",
            Kind::Code => "code",
        },
        encoding: decoded.encoding,
        guessed: decoded.guessed,
        chunks: chunk::cut(&sections, options.chunk_chars, options.overlap_chars),
        digest: Sha256::digest(bytes).into(),
        bytes: bytes.len() as u64,
    })
}

fn kind_of(source: &str) -> Kind {
    let ending = Path::new(source).extension().unwrap_or_default();
    let ending = ending.to_string_lossy().to_lowercase();
    match &*ending {
        ending if MARKDOWN.contains(&ending) => Kind::Markdown,
        ending if HTML.contains(&ending) => Kind::Html,
        ending if CODE.contains(&ending) => Kind::Code,
        _ => Kind::Text,
    }
}

/// The file that `path` names, or all files in the folder and those below it, in the order of
/// their names. Hidden entries and links are not followed.
///
/// # Errors
/// [`Error::Io`] for `path` itself or a folder that cannot be listed.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let meta = fs::metadata(path).map_err(|e| Error::io("look at", path, e))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut found, mut folders) = (Vec::new(), vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        let list = |e| Error::io("list", &folder, e);
        for entry in fs::read_dir(&folder).map_err(list)? {
            let entry = entry.map_err(list)?;
            let kind = entry.file_type().map_err(list)?;
            match kind {
                _ if entry.file_name().as_encoded_bytes().starts_with(b".") => {}
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}
