//! The configuration that suits a model and a machine: what fits its memory, with no loss unless
//! it would not fit otherwise.

use super::hardware::HardwareProfile;
use aios_contract::requirements::{KV_CONTEXT, kv_bytes};
use aios_contract::{ModelConfig, RoleGroup};
use aios_engine::gguf::TensorInfo;
use aios_kernels::{BLOCK, CacheShape, CacheType};
use serde::{Deserialize, Serialize};

/// The least context that is recommended, in positions, if the model was made for as many.
const CONTEXT_MIN: usize = 512;
/// Models whose file is smaller are not repacked (SPEC.md, L2).
const REPACK_BYTES_MIN: u64 = 16_000_000;

/// Bytes of a group of roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupBytes {
    /// The group.
    pub group: RoleGroup,
    /// Bytes in the file. A head that is the embedding has none of its own.
    pub stored: u64,
    /// Bytes that a decoded token reads, counted.
    pub read_per_token: u64,
}

/// The groups of a model with the tensors `tensors`; `per_token` is what
/// [`aios_engine::Model::bytes_per_token`] says. Tensors of unknown names are left out.
pub fn group_bytes(tensors: &[TensorInfo], per_token: &[(RoleGroup, u64)]) -> Vec<GroupBytes> {
    let group_of = |tensor: &TensorInfo| {
        aios_contract::TensorName::parse(&tensor.name).map(|name| name.role.group())
    };
    let sums = |group| {
        let own = tensors.iter().filter(|tensor| group_of(tensor) == Some(group));
        let read = per_token.iter().filter(|(other, _)| *other == group);
        GroupBytes {
            group,
            stored: own.map(TensorInfo::bytes).sum(),
            read_per_token: read.map(|(_, bytes)| bytes).sum(),
        }
    };
    RoleGroup::ALL.into_iter().map(sums).collect()
}

/// Where the weights of a token come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsFrom {
    /// They fit the last-level cache.
    Cache,
    /// They fit memory and stream from it.
    Memory,
    /// They do not fit memory: each token reads the disk.
    Disk,
}

impl WeightsFrom {
    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cache => "last-level cache",
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// A recommended configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recommendation {
    /// Positions (`-c`).
    pub context: usize,
    /// Type of cached keys (`-ctk`).
    pub cache_type_k: String,
    /// Type of cached values (`-ctv`).
    pub cache_type_v: String,
    /// Threads (`-t`).
    pub threads: usize,
    /// Whether to repack the weights; otherwise `--no-repack`.
    pub repack: bool,
    /// The above as options of the command line.
    pub options: String,
    /// Bytes that this engine reserves for the cache at that context: it gives windowed layers the
    /// whole context.
    pub cache_reserved_bytes: u64,
    /// Bytes of R2: half precision, at 4096 positions, windows counted.
    pub kv_bytes_at_4096: u64,
    /// Where the weights come from; `None` if the machine's memory is not known.
    pub weights_from: Option<WeightsFrom>,
    /// Decoded tokens per second that the streaming read cannot exceed: a projection, for weights
    /// that stream from memory.
    pub tokens_per_s_at_most: Option<f64>,
    /// Why, a sentence each.
    pub reasons: Vec<String>,
}

/// Bytes that an executor reserves for `context` positions (SPEC.md, B5). Saturates.
fn reserved(config: &ModelConfig, kind: CacheType, context: usize) -> u64 {
    let attention = &config.attention;
    let block = CacheShape {
        key_type: kind,
        value_type: kind,
        kv_heads: attention.kv_heads,
        key_len: attention.key_len,
        value_len: attention.value_len,
        capacity: BLOCK,
    };
    let bytes = (block.key_bytes() as u64).saturating_add(block.value_bytes() as u64);
    let blocks = context.div_ceil(BLOCK) as u64;
    bytes.saturating_mul(blocks).saturating_mul(config.layers as u64)
}

/// The largest context, of the model's own and its halves, whose cache takes `room` bytes or less.
fn context_in(config: &ModelConfig, kind: CacheType, room: u64) -> Option<usize> {
    let least = CONTEXT_MIN.min(config.context);
    let halves = std::iter::successors(Some(config.context), |context| Some(context / 2));
    let mut contexts = halves.take_while(|context| *context >= least && *context > 0);
    contexts.find(|context| reserved(config, kind, *context) <= room)
}

/// Context and cache type for `room` bytes of cache: half precision unless a usual context does
/// not fit so, 8 bits where they hold more.
fn cache_in(config: &ModelConfig, room: u64, reasons: &mut Vec<String>) -> (usize, CacheType) {
    let plain = context_in(config, CacheType::F16, room);
    if let Some(context) = plain.filter(|context| *context >= KV_CONTEXT.min(config.context)) {
        return (context, CacheType::F16);
    }
    let fits = |len| CacheType::Q8_0.fits(len);
    let attention = &config.attention;
    let short = (fits(attention.key_len) && fits(attention.value_len))
        .then(|| context_in(config, CacheType::Q8_0, room))
        .flatten();
    match (plain, short) {
        (plain, Some(context)) if plain.is_none_or(|plain| plain < context) => {
            let why = "The cache has 8 bits because half precision would not fit: this changes \
                       results, so measure the loss.";
            reasons.push(why.to_owned());
            (context, CacheType::Q8_0)
        }
        (Some(context), _) => (context, CacheType::F16),
        (None, _) => {
            reasons.push("No cache fits the memory: expect swapping.".to_owned());
            (CONTEXT_MIN.min(config.context), CacheType::F16)
        }
    }
}

/// Recommends a configuration for the model with these weights on `hardware`.
pub fn recommend(
    config: &ModelConfig,
    bytes: &[GroupBytes],
    hardware: &HardwareProfile,
) -> Recommendation {
    let sum = |of: fn(&GroupBytes) -> u64| bytes.iter().map(of).fold(0, u64::saturating_add);
    let (weights, per_token) = (sum(|group| group.stored), sum(|group| group.read_per_token));
    let mut reasons = Vec::new();
    let weights_from = weights_from(weights, per_token, hardware, &mut reasons);
    let (context, kind) = match hardware.memory_bytes {
        None => {
            reasons.push("The memory is not known: the context is that of R2.".to_owned());
            (KV_CONTEXT.min(config.context), CacheType::F16)
        }
        Some(memory) => cache_in(config, cache_room(weights, memory), &mut reasons),
    };
    let repack = weights >= REPACK_BYTES_MIN && weights_from != Some(WeightsFrom::Disk);
    if !repack {
        let why = "A second, repacked copy gains nothing for a file so small, or read from disk.";
        reasons.push(why.to_owned());
    }
    let threads = hardware.cores.max(1);
    let no_repack = if repack { "" } else { " --no-repack" };
    let streams = weights_from == Some(WeightsFrom::Memory) && per_token > 0;
    let bound = hardware.stream_gb_per_s.map(|gb_per_s| gb_per_s * 1e9 / per_token as f64);
    Recommendation {
        context,
        cache_type_k: kind.name().to_owned(),
        cache_type_v: kind.name().to_owned(),
        threads,
        repack,
        options: format!("-c {context} -ctk {kind} -ctv {kind} -t {threads}{no_repack}"),
        cache_reserved_bytes: reserved(config, kind, context),
        kv_bytes_at_4096: kv_bytes(config, KV_CONTEXT),
        weights_from,
        tokens_per_s_at_most: bound.filter(|_| streams),
        reasons,
    }
}

/// Four fifths of `memory`: the rest is for the system, activations and the tokenizer.
const fn usable(memory: u64) -> u64 {
    memory / 5 * 4
}

/// Bytes for the cache beside the weights; a quarter of what is usable where these do not fit and
/// are not kept.
const fn cache_room(weights: u64, memory: u64) -> u64 {
    match usable(memory).checked_sub(weights) {
        Some(room) => room,
        None => usable(memory) / 4,
    }
}

fn weights_from(
    weights: u64,
    per_token: u64,
    hardware: &HardwareProfile,
    reasons: &mut Vec<String>,
) -> Option<WeightsFrom> {
    let memory = hardware.memory_bytes?;
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    if weights > usable(memory) {
        reasons.push(format!(
            "The weights, {}, do not fit four fifths of the memory, {}.",
            megabytes(weights),
            megabytes(usable(memory))
        ));
        return Some(WeightsFrom::Disk);
    }
    match hardware.l3_bytes {
        Some(l3) if per_token <= l3 => {
            let (token, cache) = (megabytes(per_token), megabytes(l3));
            reasons.push(format!(
                "A token's weights, {token}, fit the last-level cache, {cache}: memory need not \
                 bound the speed."
            ));
            Some(WeightsFrom::Cache)
        }
        _ => Some(WeightsFrom::Memory),
    }
}
