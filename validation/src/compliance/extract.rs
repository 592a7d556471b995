//! What a GGUF file carries for the Model Contract: aliases (SPEC.md, R8) and the manifest (R9).
//! The file is taken for hostile; what is wrong is one error that names the key or the tensor.

use super::norms::{Elements, NormFault, RANK_MAX, product_norm};
use aios_contract::requirements::{
    Alias, Aliases, BlockId, BlockTier, CONTRACT_VERSION, Extent, Manifest, ManifestBlock,
    ManifestError, depth_band,
};
use aios_contract::{RoleGroup, TensorName};
use aios_engine::gguf::{Array, Escaped, Gguf, GgufError, Metadata, TensorInfo, Value};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

/// The version of the contract that the keys below follow: "1.0".
pub const VERSION_KEY: &str = "aios.contract.version";
/// Names of the tensors that are put together, and that the file does not hold.
pub const ALIAS_TENSORS_KEY: &str = "aios.alias.tensors";
/// For each of them the canonical tensor.
pub const ALIAS_CANONICAL_KEY: &str = "aios.alias.canonical";
/// Ids of the manifest's blocks; the four keys below are parallel to it.
pub const BLOCK_ID_KEY: &str = "aios.manifest.id";
/// Their access frequencies, f64.
pub const BLOCK_FREQUENCY_KEY: &str = "aios.manifest.access_frequency";
/// Their tiers.
pub const BLOCK_TIER_KEY: &str = "aios.manifest.tier";
/// Their offsets from the start of the file.
pub const BLOCK_OFFSET_KEY: &str = "aios.manifest.offset";
/// Their sizes.
pub const BLOCK_SIZE_KEY: &str = "aios.manifest.size";

/// What a dense delta's name adds to that of its tensor.
const DELTA: &str = ".delta";
/// The same for the two factors of a delta of low rank.
const DELTA_LEFT: &str = ".delta_left";
const DELTA_RIGHT: &str = ".delta_right";

/// The longest sidecar that is read, in bytes.
pub const SIDECAR_BYTES_MAX: usize = 32 << 20;
/// How much of a file's own text an error repeats, in characters.
const ECHO_CHARS_MAX: usize = 80;

/// Why a file's aliases or manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The file beside the model cannot be read.
    #[error("manifest file {path:?}: {source}")]
    SidecarFile {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A key is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The keys are of another version of the contract.
    #[error("metadata key {VERSION_KEY}: \"{found}\" is not \"{CONTRACT_VERSION}\"")]
    Version {
        /// What it says, escaped.
        found: String,
    },
    /// The file is one of several parts.
    #[error("metadata key {key} is of no use in a split model; join the parts into one file")]
    Split {
        /// The key.
        key: &'static str,
    },
    /// A key's array is not as long as the one that it belongs to.
    #[error("metadata key {key}: {found} elements where {beside} has {expected}")]
    Length {
        /// The key.
        key: &'static str,
        /// Its elements.
        found: usize,
        /// The key that it is parallel to.
        beside: &'static str,
        /// The elements of that.
        expected: usize,
    },
    /// An element of a key's array cannot be.
    #[error("metadata key {key}: element {element} {problem}")]
    Element {
        /// The key.
        key: &'static str,
        /// Which element, from 0.
        element: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A tensor cannot be what it is named for.
    #[error("tensor \"{name}\" {problem}")]
    Tensor {
        /// Its name, escaped.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The manifest in the metadata contradicts itself or the file.
    #[error("metadata key {key}: {source}")]
    Manifest {
        /// The key.
        key: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// The manifest beside the file does.
    #[error("manifest file, field {}: {source}", source.field())]
    SidecarManifest {
        /// What is wrong.
        source: ManifestError,
    },
    /// A block of the manifest beside the file is no part of a tensor.
    #[error("manifest file, field {field}: block {block} {problem}")]
    SidecarBlock {
        /// The field.
        field: &'static str,
        /// The block, from 0.
        block: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The manifest beside the file is no manifest.
    #[error("manifest file: {0}")]
    Sidecar(#[from] serde_json::Error),
    /// The manifest beside the file is too long.
    #[error("manifest file: {bytes} bytes; at most {SIDECAR_BYTES_MAX} are read")]
    SidecarLength {
        /// Its length.
        bytes: usize,
    },
    /// There are two manifests, and they are not the same.
    #[error("metadata key {BLOCK_ID_KEY} and the manifest file differ; remove one of them")]
    Differ,
}

fn escaped(text: &str) -> String {
    Escaped::shortened(text, ECHO_CHARS_MAX).to_string()
}

fn tensor_error(name: &str, problem: &'static str) -> ExtractError {
    ExtractError::Tensor { name: escaped(name), problem }
}

/// Whether the file's keys, of which `key` is one, can be believed at all.
fn check_file(metadata: &Metadata, key: &'static str) -> Result<(), ExtractError> {
    let version = metadata.require_str(VERSION_KEY)?;
    if version != CONTRACT_VERSION {
        return Err(ExtractError::Version { found: escaped(version) });
    }
    match metadata.u64("split.count")? {
        Some(2..) => Err(ExtractError::Split { key }),
        _ => Ok(()),
    }
}

fn check_length(
    key: &'static str,
    found: usize,
    beside: &'static str,
    expected: usize,
) -> Result<(), ExtractError> {
    if found == expected {
        Ok(())
    } else {
        Err(ExtractError::Length { key, found, beside, expected })
    }
}

/// The name of a matrix of a layer; `None` for any other name.
fn layer_matrix(name: &str) -> Option<(TensorName, u32)> {
    let parsed = TensorName::parse(name)?;
    let matrix = matches!(parsed.role.group(), RoleGroup::Attention | RoleGroup::Ffn)
        && parsed.role.suffix().ends_with(".weight");
    parsed.layer.filter(|_| matrix).map(|layer| (parsed, layer))
}

/// The aliases of a model of `layers` layers, with the norms of their weights; `None` if it has no
/// such keys. `header` is that of `file`. Takes a pass over the tensors concerned.
///
/// # Errors
/// [`ExtractError`].
pub fn aliases(header: &Gguf, file: &[u8], layers: usize) -> Result<Option<Aliases>, ExtractError> {
    let metadata = &header.metadata;
    let mut reader = AliasReader { header, file, layers, norms: BTreeMap::new() };
    let Some(tensors) = metadata.strings(ALIAS_TENSORS_KEY)? else {
        if metadata.get(ALIAS_CANONICAL_KEY).is_some() {
            return Err(GgufError::MissingKey { key: ALIAS_TENSORS_KEY.to_owned() }.into());
        }
        reader.check_deltas(&HashSet::new())?;
        return Ok(None);
    };
    check_file(metadata, ALIAS_TENSORS_KEY)?;
    let canonicals = metadata.require_strings(ALIAS_CANONICAL_KEY)?;
    check_length(ALIAS_CANONICAL_KEY, canonicals.len(), ALIAS_TENSORS_KEY, tensors.len())?;
    let mut owners = HashSet::with_capacity(tensors.len());
    let mut aliases = Vec::with_capacity(tensors.len());
    for (i, (tensor, canonical)) in tensors.iter().zip(canonicals).enumerate() {
        if !owners.insert(tensor.as_str()) {
            return Err(alias_error(i, "occurs twice"));
        }
        aliases.push(reader.alias(i, tensor, canonical)?);
    }
    reader.check_deltas(&owners)?;
    Ok(Some(Aliases { layers, stored_bytes: reader.stored_bytes(), aliases }))
}

fn alias_error(element: usize, problem: &'static str) -> ExtractError {
    ExtractError::Element { key: ALIAS_TENSORS_KEY, element, problem }
}

fn canonical_error(element: usize, problem: &'static str) -> ExtractError {
    ExtractError::Element { key: ALIAS_CANONICAL_KEY, element, problem }
}

struct AliasReader<'a> {
    header: &'a Gguf,
    file: &'a [u8],
    layers: usize,
    /// Norms of canonical tensors: many aliases may share one.
    norms: BTreeMap<&'a str, f64>,
}

impl<'a> AliasReader<'a> {
    fn alias(&mut self, i: usize, name: &str, canonical: &str) -> Result<Alias, ExtractError> {
        let Some((tensor, layer)) = layer_matrix(name) else {
            return Err(alias_error(i, "is no matrix of a layer"));
        };
        if layer as usize >= self.layers {
            return Err(alias_error(i, "is of a layer that the model does not have"));
        }
        if self.header.tensor(name).is_some() {
            return Err(alias_error(i, "is held whole by the file"));
        }
        let Some((canonical_name, _)) = layer_matrix(canonical) else {
            return Err(canonical_error(i, "is no matrix of a layer"));
        };
        if canonical_name.role != tensor.role {
            return Err(canonical_error(i, "has another role than its alias"));
        }
        let Some(whole) = self.header.tensor(canonical) else {
            return Err(canonical_error(i, "is not in the file"));
        };
        let (delta_norm, delta_bytes) = self.delta(name, whole)?;
        Ok(Alias {
            tensor,
            canonical: canonical_name,
            canonical_norm: self.canonical_norm(whole)?,
            delta_norm,
            whole_bytes: whole.bytes(),
            delta_bytes,
        })
    }

    fn canonical_norm(&mut self, tensor: &'a TensorInfo) -> Result<f64, ExtractError> {
        if let Some(norm) = self.norms.get(tensor.name.as_str()) {
            return Ok(*norm);
        }
        let norm = self.norm_of(tensor, |elements| elements.norm())?;
        self.norms.insert(&tensor.name, norm);
        Ok(norm)
    }

    /// What `norm` makes of the elements of `tensor`.
    fn norm_of(
        &self,
        tensor: &'a TensorInfo,
        norm: impl FnOnce(Elements<'a>) -> Result<f64, NormFault>,
    ) -> Result<f64, ExtractError> {
        Elements::of(tensor, self.file).and_then(norm).map_err(|fault| {
            tensor_error(
                &tensor.name,
                match fault {
                    NormFault::Outside => "lies outside of the file",
                    NormFault::NotFinite => "has elements that are infinite or NaN",
                },
            )
        })
    }

    /// Norm and bytes of the delta of `name`, whose canonical tensor is `whole`.
    fn delta(&self, name: &str, whole: &TensorInfo) -> Result<(f64, u64), ExtractError> {
        let part = |suffix: &str| self.header.tensor(&format!("{name}{suffix}"));
        match (part(DELTA), part(DELTA_LEFT), part(DELTA_RIGHT)) {
            (None, None, None) => Ok((0.0, 0)),
            (Some(dense), None, None) => {
                if dense.shape != whole.shape {
                    return Err(tensor_error(&dense.name, "has another shape than its canonical"));
                }
                Ok((self.norm_of(dense, |elements| elements.norm())?, dense.bytes()))
            }
            (None, Some(left), Some(right)) => {
                let rank = rank(left, right, whole)?;
                let right_elements = Elements::of(right, self.file);
                let norm = self.norm_of(left, |left| product_norm(left, right_elements?, rank))?;
                // Tensors do not overlap, so that their bytes together fit the file.
                Ok((norm, left.bytes() + right.bytes()))
            }
            (Some(dense), ..) => {
                Err(tensor_error(&dense.name, "stands beside a factor of low rank"))
            }
            (None, Some(one), None) | (None, None, Some(one)) => {
                Err(tensor_error(&one.name, "is one factor of a delta; the other is missing"))
            }
        }
    }

    /// Refuses deltas that belong to no alias: weights that nobody applies.
    fn check_deltas(&self, owners: &HashSet<&str>) -> Result<(), ExtractError> {
        for tensor in &self.header.tensors {
            let owner = [DELTA, DELTA_LEFT, DELTA_RIGHT]
                .into_iter()
                .find_map(|suffix| tensor.name.strip_suffix(suffix));
            if owner.is_some_and(|owner| !owners.contains(owner)) {
                return Err(tensor_error(&tensor.name, "is the delta of no alias"));
            }
        }
        Ok(())
    }

    /// Bytes of the matrices that the file holds whole in the layers that R3 looks at.
    fn stored_bytes(&self) -> u64 {
        let band = depth_band(self.layers);
        let inside = |tensor: &&TensorInfo| {
            layer_matrix(&tensor.name).is_some_and(|(_, layer)| band.contains(&(layer as usize)))
        };
        self.header.tensors.iter().filter(inside).map(TensorInfo::bytes).sum()
    }
}

/// The rank of a delta left · right of the shape of `whole`; rows of a tensor are its first
/// dimension.
fn rank(left: &TensorInfo, right: &TensorInfo, whole: &TensorInfo) -> Result<usize, ExtractError> {
    let ([columns, rows], [rank, left_rows], [right_columns, right_rank]) =
        (&whole.shape[..], &left.shape[..], &right.shape[..])
    else {
        return Err(tensor_error(&left.name, "and its other factor are not all matrices"));
    };
    if (left_rows, right_columns, right_rank) != (rows, columns, rank) {
        return Err(tensor_error(&left.name, "does not fit its other factor or its canonical"));
    }
    usize::try_from(*rank)
        .ok()
        .filter(|rank| *rank <= RANK_MAX)
        .ok_or_else(|| tensor_error(&left.name, "has a rank above 256; store a dense delta"))
}

/// Where the manifest beside the model `path` is looked for: `NAME.manifest.json`.
pub fn sidecar_path(path: &Path) -> PathBuf {
    path.with_extension("manifest.json")
}

/// The manifest of a file of `file_bytes` bytes, from its metadata or from `sidecar`, the text of
/// a JSON file beside it; `None` if there is neither. It has passed [`Manifest::check`], and each
/// block is a tensor or some rows of one.
///
/// # Errors
/// [`ExtractError`].
pub fn manifest(
    header: &Gguf,
    file_bytes: u64,
    sidecar: Option<&str>,
) -> Result<Option<Manifest>, ExtractError> {
    let inside = manifest_of_metadata(&header.metadata)?;
    let beside = sidecar.map(manifest_of_json).transpose()?;
    let place = if inside.is_some() { Place::Metadata } else { Place::Sidecar };
    let found = match (inside, beside) {
        (Some(inside), Some(beside)) if !is_same(&inside, &beside) => {
            return Err(ExtractError::Differ);
        }
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => return Ok(None),
    };
    let weight_bytes = header.tensors.iter().map(TensorInfo::bytes).sum();
    let extent = Extent { data: header.data_start..file_bytes, weight_bytes };
    found.check(&extent).map_err(|source| place.manifest_error(source))?;
    for (i, block) in found.blocks.iter().enumerate() {
        check_block(header, block)
            .map_err(|(field, problem)| place.block_error(i, field, problem))?;
    }
    Ok(Some(found))
}

/// Whether two manifests say the same. A frequency written as decimals may come back as one of the
/// neighbouring numbers.
fn is_same(a: &Manifest, b: &Manifest) -> bool {
    let place = |block: &ManifestBlock| (block.tier, block.offset, block.size);
    let near = |a: &ManifestBlock, b: &ManifestBlock| {
        a.id == b.id
            && place(a) == place(b)
            && (a.access_frequency - b.access_frequency).abs() <= f64::EPSILON
    };
    a.aios_contract_version == b.aios_contract_version
        && a.blocks.len() == b.blocks.len()
        && a.blocks.iter().zip(&b.blocks).all(|(a, b)| near(a, b))
}

/// Where a manifest was found, which is how its errors name their places.
#[derive(Clone, Copy)]
enum Place {
    Metadata,
    Sidecar,
}

impl Place {
    fn manifest_error(self, source: ManifestError) -> ExtractError {
        match (self, source.field()) {
            (Self::Sidecar, _) => ExtractError::SidecarManifest { source },
            (Self::Metadata, "blocks") => {
                ExtractError::Manifest { key: BLOCK_ID_KEY.to_owned(), source }
            }
            (Self::Metadata, field) => {
                ExtractError::Manifest { key: format!("aios.manifest.{field}"), source }
            }
        }
    }

    fn block_error(self, block: usize, field: &'static str, problem: &'static str) -> ExtractError {
        let key = match field {
            "id" => BLOCK_ID_KEY,
            "offset" => BLOCK_OFFSET_KEY,
            _ => BLOCK_SIZE_KEY,
        };
        match self {
            Self::Metadata => ExtractError::Element { key, element: block, problem },
            Self::Sidecar => ExtractError::SidecarBlock { field, block, problem },
        }
    }
}

/// Whether a block is what its id says; otherwise the field that is not.
fn check_block(header: &Gguf, block: &ManifestBlock) -> Result<(), (&'static str, &'static str)> {
    let id = BlockId::parse(&block.id).ok_or(("id", "is not NAME or NAME[a..b]"))?;
    let tensor = header.tensor(id.tensor).ok_or(("id", "names no tensor of the file"))?;
    let rows = id.rows.unwrap_or(0..tensor.rows());
    if rows.end > tensor.rows() {
        return Err(("id", "names rows that the tensor does not have"));
    }
    // The bytes of a tensor are those of its rows, so that none of these products overflows.
    let row_bytes = tensor.bytes() / tensor.rows();
    if block.offset != tensor.range.start + rows.start * row_bytes {
        return Err(("offset", "is not where its rows begin"));
    }
    if block.size != (rows.end - rows.start) * row_bytes {
        return Err(("size", "is not what its rows take"));
    }
    Ok(())
}

fn manifest_of_json(text: &str) -> Result<Manifest, ExtractError> {
    if text.len() > SIDECAR_BYTES_MAX {
        return Err(ExtractError::SidecarLength { bytes: text.len() });
    }
    Ok(serde_json::from_str(text)?)
}

fn manifest_of_metadata(metadata: &Metadata) -> Result<Option<Manifest>, ExtractError> {
    let Some(ids) = metadata.strings(BLOCK_ID_KEY)? else {
        let orphan = [BLOCK_FREQUENCY_KEY, BLOCK_TIER_KEY, BLOCK_OFFSET_KEY, BLOCK_SIZE_KEY]
            .into_iter()
            .any(|key| metadata.get(key).is_some());
        let missing = || GgufError::MissingKey { key: BLOCK_ID_KEY.to_owned() };
        return if orphan { Err(missing().into()) } else { Ok(None) };
    };
    check_file(metadata, BLOCK_ID_KEY)?;
    let frequencies = frequencies(metadata)?;
    let tiers = metadata.require_strings(BLOCK_TIER_KEY)?;
    let offsets = metadata.require_u64s(BLOCK_OFFSET_KEY)?;
    let sizes = metadata.require_u64s(BLOCK_SIZE_KEY)?;
    for (key, found) in [
        (BLOCK_FREQUENCY_KEY, frequencies.len()),
        (BLOCK_TIER_KEY, tiers.len()),
        (BLOCK_OFFSET_KEY, offsets.len()),
        (BLOCK_SIZE_KEY, sizes.len()),
    ] {
        check_length(key, found, BLOCK_ID_KEY, ids.len())?;
    }
    let mut blocks = Vec::with_capacity(ids.len());
    for (i, id) in ids.iter().enumerate() {
        let tier = BlockTier::from_name(&tiers[i]).ok_or(ExtractError::Element {
            key: BLOCK_TIER_KEY,
            element: i,
            problem: "is not HOT, WARM or STREAM",
        })?;
        let (id, access_frequency) = (id.clone(), frequencies[i]);
        let (offset, size) = (offsets[i], sizes[i]);
        blocks.push(ManifestBlock { id, access_frequency, tier, offset, size });
    }
    let aios_contract_version = CONTRACT_VERSION.to_owned();
    Ok(Some(Manifest { aios_contract_version, blocks }))
}

fn frequencies(metadata: &Metadata) -> Result<&[f64], GgufError> {
    let key = || BLOCK_FREQUENCY_KEY.to_owned();
    match metadata.get(BLOCK_FREQUENCY_KEY) {
        Some(Value::Array(Array::F64(values))) => Ok(values),
        Some(other) => {
            let (expected, found) = ("an array of f64", other.type_of());
            Err(GgufError::WrongType { key: key(), expected, found })
        }
        None => Err(GgufError::MissingKey { key: key() }),
    }
}

/// Writes `manifest` into `metadata`, as [`self::manifest()`] reads it.
pub fn set_manifest(metadata: &mut Metadata, manifest: &Manifest) {
    let blocks = &manifest.blocks;
    let column = |of: fn(&ManifestBlock) -> String| blocks.iter().map(of).collect::<Vec<_>>();
    let numbers = |of: fn(&ManifestBlock) -> u64| blocks.iter().map(of).collect::<Vec<_>>();
    let frequencies: Vec<f64> = blocks.iter().map(|block| block.access_frequency).collect();
    metadata.set(VERSION_KEY, manifest.aios_contract_version.as_str());
    metadata.set(BLOCK_ID_KEY, column(|block| block.id.clone()));
    metadata.set(BLOCK_FREQUENCY_KEY, frequencies);
    metadata.set(BLOCK_TIER_KEY, column(|block| block.tier.name().to_owned()));
    metadata.set(BLOCK_OFFSET_KEY, numbers(|block| block.offset));
    metadata.set(BLOCK_SIZE_KEY, numbers(|block| block.size));
}

#[cfg(test)]
#[path = "extract_tests.rs"]
mod tests;
