//! The format of a conversation: the model's own template, or another that was chosen.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use aios_engine::Model;
use aios_engine::template::{KNOWN, SOURCE_MAX, Template, known};
use aios_residency::plan::hex;
use anyhow::Context;
use sha2::{Digest, Sha256};

/// A chat template, and the digest of its text.
#[derive(Clone, Debug)]
pub struct Format {
    template: Template,
    sha256: String,
}

impl Format {
    /// The template that `model` carries.
    ///
    /// # Errors
    /// If it has none, or one that is not valid.
    pub fn of_model(model: &Model) -> anyhow::Result<Self> {
        let text = model.chat_template();
        let template = Template::of_model(text)?;
        Ok(Self { template, sha256: digest(text.unwrap_or_default()) })
    }

    /// The template that is built in as `named`, or else the one in the file `named`.
    ///
    /// # Errors
    /// A file that cannot be read or is no valid template, and the names that are built in.
    pub fn chosen(named: &Path) -> anyhow::Result<Self> {
        let text = match named.to_str().and_then(known) {
            Some(text) => text.to_owned(),
            None => read(named).with_context(|| {
                let shown = named.display().to_string();
                let names = KNOWN.join(", ");
                format!("no chat template {}: built in are {names}", shown.escape_debug())
            })?,
        };
        let invalid = || named.display().to_string();
        let template = Template::parse(&text).with_context(invalid)?;
        Ok(Self { template, sha256: digest(&text) })
    }

    /// The template.
    pub const fn template(&self) -> &Template {
        &self.template
    }

    /// The SHA-256 of its text.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// The text of a file, of which no more is read than a template may have.
fn read(path: &Path) -> anyhow::Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    // Opening a pipe would wait for a writer, so the kind is looked at first.
    let is_file = fs::metadata(path).with_context(unreadable)?.is_file();
    anyhow::ensure!(is_file, "{} is not a regular file", path.display());
    let mut text = String::new();
    let mut file = File::open(path).with_context(unreadable)?.take(SOURCE_MAX as u64 + 1);
    file.read_to_string(&mut text).with_context(unreadable)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_a_name_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jinja");
        std::fs::write(&path, "{{ messages[0].content }}").unwrap();
        let own = Format::chosen(&path).unwrap();
        assert_eq!(own.sha256(), digest("{{ messages[0].content }}"));
        for name in KNOWN {
            assert_ne!(Format::chosen(Path::new(name)).unwrap().sha256(), own.sha256());
        }
        let said = |path: &Path| format!("{:#}", Format::chosen(path).unwrap_err());
        let error = said(Path::new("gemme"));
        assert!(error.contains("gemme: built in are chatml, gemma, llama3, phi3"), "{error}");
        assert!(said(folder.path()).contains("is not a regular file"));
        std::fs::write(&path, "{% if %}").unwrap();
        assert!(said(&path).contains("not valid at line 1"), "{}", said(&path));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(said(&path).contains("own.jinja"));
        std::fs::write(&path, vec![b' '; SOURCE_MAX + 1]).unwrap();
        assert!(said(&path).contains("the limit is"), "{}", said(&path));
    }
}
