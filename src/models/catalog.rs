//! The catalogue: which models can be had by name, and where their bytes come from. It is data
//! (`catalog.toml` beside this file, or the file that `AIOS_CATALOG` names), not code.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::Deserialize;

use super::Error;

/// The model that is used where none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// The encoder that is used where none is named.
pub const DEFAULT_EMBEDDER: &str = "all-minilm-l6-v2";

static BUILTIN: LazyLock<Catalog> = LazyLock::new(|| {
    Catalog::parse(include_str!("catalog.toml")).expect("a test parses the built-in catalogue")
});

/// A checked list of models with distinct names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    #[serde(rename = "model", default)]
    models: Vec<Model>,
}

/// One model: what its file is, under which terms, and where it comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name that `-m` and `aios pull` take.
    pub name: String,
    /// The name of the file as its publisher calls it.
    pub file: String,
    /// One line that says what the model is good for.
    pub about: String,
    /// The length of the file.
    pub bytes: u64,
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// The name of the licence or terms that the weights are under.
    pub licence: String,
    /// Where the licence or terms can be read.
    pub terms: String,
    /// Where the bytes can come from, the first to be tried first.
    #[serde(rename = "source", default)]
    pub sources: Vec<Source>,
}

/// One place that the bytes of a model can come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A file on this machine.
    Path(PathBuf),
    /// Pieces inside of binary Python packages, in the order in which they are joined.
    Wheels(Vec<WheelPart>),
    /// An encoder's folder inside a binary Python package, which is converted to one file.
    Encoder(WheelPart),
}

/// One piece of a model inside a wheel.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "(String, String, u64)")]
pub struct WheelPart {
    /// The package as pip is asked for it, `NAME==VERSION`.
    pub requirement: String,
    /// The name of the archive member that is unpacked, or the folder of an encoder's; everything
    /// else in it is ignored.
    pub member: String,
    /// The exact length of the unpacked member; of an encoder's folder, that of the weights.
    pub bytes: u64,
}

impl From<(String, String, u64)> for WheelPart {
    fn from((requirement, member, bytes): (String, String, u64)) -> Self {
        Self { requirement, member, bytes }
    }
}

impl Catalog {
    /// The catalogue that is built into the program.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// Reads a catalogue from a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Catalog`] if it is not a catalogue.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Self::parse(&text)
    }

    /// Parses and checks the text of a catalogue.
    ///
    /// # Errors
    /// [`Error::Catalog`] with the place and the reason.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let catalog: Self =
            toml::from_str(text).map_err(|e| Error::Catalog { reason: e.to_string() })?;
        let mut names = HashSet::new();
        for model in &catalog.models {
            model.check().map_err(|reason| Error::Catalog { reason })?;
            if !names.insert(model.name.as_str()) {
                let reason = format!("two models are called '{}'", model.name);
                return Err(Error::Catalog { reason });
            }
        }
        Ok(catalog)
    }

    /// Every model, in the order of the file.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The model of that name.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], which lists the names that exist.
    pub fn model(&self, name: &str) -> Result<&Model, Error> {
        self.models.iter().find(|model| model.name == name).ok_or_else(|| Error::UnknownModel {
            name: name.to_owned(),
            known: self.models.iter().map(|model| model.name.clone()).collect(),
        })
    }
}

impl Model {
    /// What serde cannot see: names that are safe as file names and as pip arguments, and lengths
    /// that agree with each other.
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        let plain = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric())
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if !plain(name) || name.to_ascii_lowercase().ends_with(".gguf") {
            return Err(format!("'{}' is not a usable model name", name.escape_debug()));
        }
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if self.sha256.len() != 64 || !self.sha256.bytes().all(hex) {
            return Err(format!("{name}: sha256 must be 64 lower-case hexadecimal digits"));
        }
        for source in &self.sources {
            let parts = match source {
                Source::Path(_) => continue,
                Source::Encoder(part) => std::slice::from_ref(part),
                Source::Wheels(parts) => {
                    let add = |sum: u64, part: &WheelPart| sum.checked_add(part.bytes);
                    if parts.iter().try_fold(0, add) != Some(self.bytes) {
                        let bytes = self.bytes;
                        return Err(format!("{name}: the pieces do not add up to {bytes} bytes"));
                    }
                    parts
                }
            };
            for part in parts {
                let exact = part.requirement.split_once("==");
                if !exact.is_some_and(|(package, version)| plain(package) && plain(version)) {
                    let got = part.requirement.escape_debug();
                    return Err(format!("{name}: '{got}' is not of the form NAME==VERSION"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(edit: impl Fn(String) -> String) -> Result<Catalog, Error> {
        let text = format!(
            "[[model]]\nname = \"tiny\"\nfile = \"t.gguf\"\nabout = \"a\"\nbytes = 3\n\
             sha256 = \"{}\"\nlicence = \"MIT\"\nterms = \"https://example.org\"\n\
             [[model.source]]\nwheels = [[\"pkg==1.0\", \"a.bin\", 1], [\"q==2\", \"b.bin\", 2]]\n",
            "0f".repeat(32)
        );
        Catalog::parse(&edit(text))
    }

    #[test]
    fn the_built_in_catalogue_holds_the_default_model_and_its_terms() {
        let catalog = Catalog::builtin();
        let model = catalog.model(DEFAULT_MODEL).unwrap();
        assert_eq!(model.bytes, 98_362_432);
        assert_eq!(model.licence, "Apache-2.0");
        assert_eq!(catalog.models().len(), 5);
        for model in catalog.models() {
            assert!(model.terms.starts_with("https://"), "{}", model.name);
            assert!(matches!(model.sources[0], Source::Path(_)), "{}", model.name);
            assert!(!matches!(model.sources[1], Source::Path(_)), "{}", model.name);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = Catalog::builtin().model("gpt-5").unwrap_err().to_string();
        assert!(error.contains("gpt-5") && error.contains(DEFAULT_MODEL), "{error}");
    }

    #[test]
    fn a_good_entry_is_taken_and_each_fault_is_named() {
        assert_eq!(one(|t| t).unwrap().model("tiny").unwrap().bytes, 3);
        let cases: [(&str, &str, &str); 8] = [
            ("name = \"tiny\"", "name = \"../tiny\"", "not a usable model name"),
            ("name = \"tiny\"", "name = \"tiny.gguf\"", "not a usable model name"),
            ("bytes = 3", "bytes = 4", "add up"),
            ("0f0f", "0F0F", "hexadecimal"),
            ("pkg==1.0", "pkg>=1.0", "NAME==VERSION"),
            ("pkg==1.0", "--index-url==1", "NAME==VERSION"),
            ("licence", "license", "unknown field"),
            ("wheels", "torrent", "unknown variant"),
        ];
        for (from, to, want) in cases {
            let error = one(|text| text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(want), "{from} -> {to}: {error}");
        }
        let twice = one(|text| format!("{text}{text}")).unwrap_err().to_string();
        assert!(twice.contains("two models"), "{twice}");
    }
}
