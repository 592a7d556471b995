//! Models split over several files: which files they are, and whether they belong together.

use std::path::{Path, PathBuf};

use super::error::{GgufError, echo};
use super::{Gguf, sorted_unique};

const NO_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";
const ARCHITECTURE_KEY: &str = "general.architecture";

/// Why the parts of a split file do not form one model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitFault {
    /// The file name of a part does not follow `NAME-00001-of-0000N.gguf`.
    #[error("{} is part of a split file, but not named like NAME-00001-of-00002.gguf", echo(name))]
    Name {
        /// The file name.
        name: String,
    },
    /// The file name and the header disagree.
    #[error("{} is, by its header, part {part} of {count}: the file was renamed", echo(name))]
    Renamed {
        /// The file name.
        name: String,
        /// The header's part number, from 1.
        part: u64,
        /// The header's number of parts.
        count: u64,
    },
    /// A later part was given where the first is needed.
    #[error("this is part {part} of {count}; open part 1")]
    NotFirst {
        /// The part's number, from 1.
        part: u64,
        /// The number of parts.
        count: u64,
    },
    /// A part is not there.
    #[error("part {part} of {count} is missing: {}", echo(name))]
    Missing {
        /// The part's number, from 1.
        part: u64,
        /// The number of parts.
        count: u64,
        /// The file name it must have.
        name: String,
    },
    /// There are more parts than the first one announces.
    #[error("{found} parts were given, the first one announces {count}")]
    Extra {
        /// How many there are.
        found: u64,
        /// How many are announced.
        count: u64,
    },
    /// A part claims the place of an earlier one, as a link back to that file would.
    #[error("part {part} is part {claims} once more")]
    Repeated {
        /// The place at which the part was found, from 1.
        part: u64,
        /// The place that its header claims, from 1.
        claims: u64,
    },
    /// A part claims a place other than its own.
    #[error("part {part} says in its header that it is part {claims}")]
    Misplaced {
        /// The place at which the part was found, from 1.
        part: u64,
        /// The place that its header claims, from 1.
        claims: u64,
    },
    /// A key differs between the first part and another.
    #[error("part {part}: {key} is {found}, part 1 says {expected}")]
    Inconsistent {
        /// The part's number, from 1.
        part: u64,
        /// The key.
        key: &'static str,
        /// The value in the first part, escaped.
        expected: String,
        /// The value in this part, escaped.
        found: String,
    },
    /// The parts' tensors do not add up to the announced number.
    #[error("the parts hold {found} tensors, split.tensors.count says {expected}")]
    TensorCount {
        /// What part 1 announces.
        expected: u64,
        /// What the parts hold.
        found: u64,
    },
}

/// The parts of a split model, as the first part's name and header describe them. Parts are counted
/// from 1 as in their names, whereas `split.no` in their headers counts from 0.
///
/// The paths are made one at a time: a header may announce tens of thousands of parts, and opening
/// them in turn stops at the first that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitSet {
    folder: PathBuf,
    /// The file name up to the part's number.
    stem: String,
    count: u64,
    tensor_count: u64,
    architecture: Option<String>,
}

impl SplitSet {
    /// The split model whose first part is the file at `path` with header `first`; `None` if the
    /// header describes a model in one file, whatever its name.
    ///
    /// # Errors
    /// [`GgufError::Split`] if the name and the header disagree or this is a later part;
    /// [`GgufError::MissingKey`], [`GgufError::WrongType`] and [`GgufError::Negative`] for the
    /// `split.` keys.
    pub fn of(path: &Path, first: &Gguf) -> Result<Option<Self>, GgufError> {
        // Tools that join parts leave a count of 0 behind.
        let count = first.metadata.u64(COUNT_KEY)?.unwrap_or(0);
        if count <= 1 {
            return Ok(None);
        }
        let part = first.metadata.require_u64(NO_KEY)?.saturating_add(1);
        let tensor_count = first.metadata.require_u64(TENSORS_KEY)?;
        let name = path.file_name().unwrap_or_default();
        let Some(stem) = name.to_str().and_then(parse_name) else {
            return Err(SplitFault::Name { name: name.to_string_lossy().into_owned() }.into());
        };
        let stem = stem.to_owned();
        if name != part_name(&stem, part, count).as_str() {
            let name = name.to_string_lossy().into_owned();
            return Err(SplitFault::Renamed { name, part, count }.into());
        }
        if part != 1 {
            return Err(SplitFault::NotFirst { part, count }.into());
        }
        let architecture = first.metadata.str(ARCHITECTURE_KEY)?.map(str::to_owned);
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Some(Self { folder, stem, count, tensor_count, architecture }))
    }

    /// The number of parts: 2 or more.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The paths of all parts in order, the first one included.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        (1..=self.count).map(|part| self.path(part))
    }

    /// The path of part `part`, counted from 1.
    pub fn path(&self, part: u64) -> PathBuf {
        self.folder.join(part_name(&self.stem, part, self.count))
    }

    /// The error for a part that could not be found.
    pub fn missing(&self, part: u64) -> GgufError {
        let name = part_name(&self.stem, part, self.count);
        SplitFault::Missing { part, count: self.count, name }.into()
    }

    /// Checks that `header` is that of part `part`, counted from 1.
    ///
    /// # Errors
    /// [`GgufError::Split`] if it is another part's or another model's, and
    /// [`GgufError::MissingKey`], [`GgufError::WrongType`] and [`GgufError::Negative`] for its
    /// `split.` keys.
    pub fn check_part(&self, part: u64, header: &Gguf) -> Result<(), GgufError> {
        let claims = header.metadata.require_u64(NO_KEY)?.saturating_add(1);
        if claims < part {
            return Err(SplitFault::Repeated { part, claims }.into());
        }
        if claims > part {
            return Err(SplitFault::Misplaced { part, claims }.into());
        }
        let differs = |key, expected, found| {
            Err(SplitFault::Inconsistent { part, key, expected, found }.into())
        };
        let count = header.metadata.require_u64(COUNT_KEY)?;
        if count != self.count {
            return differs(COUNT_KEY, self.count.to_string(), count.to_string());
        }
        // Only the first part has to carry the keys that follow.
        match header.metadata.u64(TENSORS_KEY)? {
            Some(found) if found != self.tensor_count => {
                return differs(TENSORS_KEY, self.tensor_count.to_string(), found.to_string());
            }
            _ => {}
        }
        let expected = self.architecture.as_deref();
        match header.metadata.str(ARCHITECTURE_KEY)? {
            Some(found) if Some(found) != expected => differs(
                ARCHITECTURE_KEY,
                echo(expected.unwrap_or_default()).to_string(),
                echo(found).to_string(),
            ),
            _ => Ok(()),
        }
    }

    /// Checks that `parts`, in order and from the first on, are the whole model: every part in its
    /// place, as many tensors as announced, no name twice.
    ///
    /// # Errors
    /// Those of [`Self::check_part`], [`SplitFault::Missing`], [`SplitFault::Extra`],
    /// [`SplitFault::TensorCount`] and [`GgufError::DuplicateTensor`].
    pub fn check_whole(&self, parts: &[&Gguf]) -> Result<(), GgufError> {
        for (part, header) in (1..=self.count).zip(parts) {
            self.check_part(part, header)?;
        }
        let found = parts.len() as u64;
        if found < self.count {
            return Err(self.missing(found + 1));
        }
        if found > self.count {
            return Err(SplitFault::Extra { found, count: self.count }.into());
        }
        let tensors: Vec<_> = parts.iter().flat_map(|part| &part.tensors).collect();
        if tensors.len() as u64 != self.tensor_count {
            let (expected, found) = (self.tensor_count, tensors.len() as u64);
            return Err(SplitFault::TensorCount { expected, found }.into());
        }
        match sorted_unique(&tensors, |tensor| &tensor.name) {
            Ok(_) => Ok(()),
            Err(name) => Err(GgufError::DuplicateTensor { name: name.to_owned() }),
        }
    }
}

/// The stem of `NAME-00001-of-00002.gguf`, if `name` has that form. The numbers are not looked at:
/// the caller compares them by writing the name that the header calls for.
fn parse_name(name: &str) -> Option<&str> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let numeric = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (numeric(part) && numeric(count)).then_some(stem)
}

fn part_name(stem: &str, part: u64, count: u64) -> String {
    format!("{stem}-{part:05}-of-{count:05}.gguf")
}
