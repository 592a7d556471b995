//! Aliases: matrices that a file describes as another one of its matrices plus a delta (SPEC R8).

use crate::gguf::{Escaped, Gguf, GgufError, TensorInfo};
use aios_contract::{RoleGroup, TensorName};
use std::collections::BTreeMap;

/// The version of the contract that the keys follow.
const VERSION_KEY: &str = "aios.contract.version";
const VERSION: &str = "1.0";
/// Names of the matrices that are put together, and that the file does not hold.
const TENSORS_KEY: &str = "aios.alias.tensors";
/// For each of them the canonical matrix.
const CANONICAL_KEY: &str = "aios.alias.canonical";

/// What a dense delta's name adds to that of its matrix.
pub(super) const DELTA: &str = ".delta";
/// The same for the factors of a delta of low rank.
pub(super) const DELTA_LEFT: &str = ".delta_left";
/// See [`DELTA_LEFT`].
pub(super) const DELTA_RIGHT: &str = ".delta_right";
/// The largest rank of a delta in factors.
pub(super) const RANK_MAX: usize = 256;

/// What is wrong with a file's aliases.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    /// A key is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The keys are of another version of the contract.
    #[error("metadata key {VERSION_KEY}: \"{found}\" is not \"{VERSION}\"")]
    Version {
        /// What it says, escaped.
        found: String,
    },
    /// The file is one of several parts.
    #[error("metadata key {TENSORS_KEY}: a model in parts has no aliases; join the parts")]
    Split,
    /// The keys are not parallel.
    #[error("metadata key {CANONICAL_KEY}: {found} elements where {TENSORS_KEY} has {expected}")]
    Length {
        /// Elements of the second key.
        found: usize,
        /// Elements of the first.
        expected: usize,
    },
    /// An element of a key cannot be.
    #[error("metadata key {key}: element {element} {problem}")]
    Element {
        /// The key.
        key: &'static str,
        /// Which element, from 0.
        element: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A delta cannot be one.
    #[error("tensor {name} {problem}")]
    Delta {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The aliases of a model's files, each with its canonical matrix; empty if there are none.
///
/// # Errors
/// [`AliasError`].
pub(super) fn aliases(headers: &[Gguf]) -> Result<BTreeMap<TensorName, TensorName>, AliasError> {
    let header = &headers[0];
    let metadata = &header.metadata;
    let Some(tensors) = metadata.strings(TENSORS_KEY)? else { return Ok(BTreeMap::new()) };
    let version = metadata.require_str(VERSION_KEY)?;
    if version != VERSION {
        let found = Escaped::shortened(version, 80).to_string();
        return Err(AliasError::Version { found });
    }
    if headers.len() > 1 {
        return Err(AliasError::Split);
    }
    let canonical = metadata.require_strings(CANONICAL_KEY)?;
    if canonical.len() != tensors.len() {
        let (found, expected) = (canonical.len(), tensors.len());
        return Err(AliasError::Length { found, expected });
    }
    let mut found = BTreeMap::new();
    for (element, (name, canonical)) in tensors.iter().zip(canonical).enumerate() {
        let wrong = |key, problem| AliasError::Element { key, element, problem };
        let tensor = matrix(name).ok_or_else(|| wrong(TENSORS_KEY, "is no matrix of a layer"))?;
        let of = matrix(canonical);
        let of = of.ok_or_else(|| wrong(CANONICAL_KEY, "is no matrix of a layer"))?;
        if header.tensor(name).is_some() {
            return Err(wrong(TENSORS_KEY, "is held whole by the file"));
        }
        if of.role != tensor.role {
            return Err(wrong(CANONICAL_KEY, "has another role than its alias"));
        }
        if header.tensor(canonical).is_none() {
            return Err(wrong(CANONICAL_KEY, "is not in the file"));
        }
        if found.insert(tensor, of).is_some() {
            return Err(wrong(TENSORS_KEY, "occurs twice"));
        }
    }
    Ok(found)
}

/// The name of a matrix of a layer; `None` for any other name.
fn matrix(name: &str) -> Option<TensorName> {
    let parsed = TensorName::parse(name)?;
    let group = matches!(parsed.role.group(), RoleGroup::Attention | RoleGroup::Ffn);
    let matrix = group && parsed.role.suffix().ends_with(".weight");
    Some(parsed).filter(|parsed| matrix && parsed.layer.is_some())
}

/// Whether a tensor's name is that of a delta.
pub(super) fn is_delta(tensor: &TensorInfo) -> bool {
    [DELTA, DELTA_LEFT, DELTA_RIGHT].iter().any(|suffix| tensor.name.ends_with(suffix))
}

/// The rank of a delta in factors, from what its left one has in a row.
///
/// # Errors
/// [`AliasError::Delta`].
pub(super) fn rank(left: &TensorInfo) -> Result<usize, AliasError> {
    let rank = left.shape.first().and_then(|rank| usize::try_from(*rank).ok());
    rank.filter(|rank| *rank <= RANK_MAX).ok_or_else(|| AliasError::Delta {
        name: Escaped::new(&left.name).to_string(),
        problem: "has a rank above 256; store a dense delta",
    })
}
