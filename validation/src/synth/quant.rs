//! Which dtype each tensor gets. Quantising "to Q4_K_M" gives a mix of dtypes; the rules here are
//! those that llama.cpp follows without an importance matrix, so that a synthetic file weighs what
//! a real one does. `validation/testdata/mixes.txt` has llama.cpp's own answers.

use aios_contract::{Architecture, DType, Role};

/// What a file is quantised to, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the field's own spelling, as files and tools print it")]
#[expect(missing_docs, reason = "each variant is one row of the table below")]
pub enum Quant {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K_M,
    Q4_K_M,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// One row of the table: (quant, name, value of `general.file_type`, dtype of most tensors).
type Row = (Quant, &'static str, u32, DType);

const TABLE: [Row; 15] = [
    (Quant::F32, "F32", 0, DType::F32),
    (Quant::F16, "F16", 1, DType::F16),
    (Quant::BF16, "BF16", 32, DType::BF16),
    (Quant::Q4_0, "Q4_0", 2, DType::Q4_0),
    (Quant::Q4_1, "Q4_1", 3, DType::Q4_1),
    (Quant::Q5_0, "Q5_0", 8, DType::Q5_0),
    (Quant::Q5_1, "Q5_1", 9, DType::Q5_1),
    (Quant::Q8_0, "Q8_0", 7, DType::Q8_0),
    (Quant::Q2_K, "Q2_K", 10, DType::Q2_K),
    (Quant::Q3_K_M, "Q3_K_M", 12, DType::Q3_K),
    (Quant::Q4_K_M, "Q4_K_M", 15, DType::Q4_K),
    (Quant::Q5_K_M, "Q5_K_M", 17, DType::Q5_K),
    (Quant::Q6_K, "Q6_K", 18, DType::Q6_K),
    (Quant::IQ4_NL, "IQ4_NL", 25, DType::IQ4_NL),
    (Quant::IQ4_XS, "IQ4_XS", 30, DType::IQ4_XS),
];

/// The tensor that a dtype is sought for: a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub architecture: Architecture,
    pub role: Role,
    /// The layer, 0 for a matrix of the whole model.
    pub layer: u32,
    /// Layers of the model.
    pub layers: u32,
    /// Elements in a row.
    pub row_len: u32,
    /// Query heads that share a key head.
    pub group: u32,
    /// Whether the embedding serves as the head.
    pub tied: bool,
}

impl Quant {
    /// Every quant, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    const fn row(self) -> &'static Row {
        let row = &TABLE[self as usize];
        assert!(row.0 as usize == self as usize);
        row
    }

    /// The name, such as `Q4_K_M`.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// The value of `general.file_type`.
    pub const fn file_type(self) -> u32 {
        self.row().2
    }

    /// The dtype of one matrix of a file.
    pub(super) fn dtype(self, site: &Site) -> DType {
        let base = self.row().3;
        if base.is_float() {
            return base;
        }
        let wanted = match site.role {
            Role::Head => head(base, site),
            Role::TokenEmbedding if site.tied => head(base, site),
            Role::AttnV | Role::AttnQkv => self.values(base, site),
            Role::AttnOutput if site.architecture != Architecture::Falcon => match self {
                Self::Q2_K => DType::Q3_K,
                Self::Q3_K_M => DType::Q4_K,
                _ => base,
            },
            Role::FfnDown => self.down(base, site),
            _ => base,
        };
        fitting(wanted, site.row_len)
    }

    /// The matrix that makes the values, alone or fused with queries and keys: it bears errors
    /// worst, and where many query heads share it, it is small.
    fn values(self, base: DType, site: &Site) -> DType {
        let shared = site.group >= 4;
        match self {
            Self::Q2_K if shared => DType::Q4_K,
            Self::Q2_K => DType::Q3_K,
            Self::Q3_K_M if site.layer < 2 => DType::Q5_K,
            Self::Q3_K_M => DType::Q4_K,
            Self::Q4_K_M | Self::Q5_K_M if site.spared() => DType::Q6_K,
            Self::IQ4_NL | Self::IQ4_XS if shared => DType::Q5_K,
            _ => base,
        }
    }

    fn down(self, base: DType, site: &Site) -> DType {
        let falcon = site.architecture == Architecture::Falcon;
        let first_16th = site.layer < site.layers / 16;
        let first_8th = site.layer < site.layers / 8;
        match self {
            Self::Q2_K => DType::Q3_K,
            Self::Q3_K_M if first_16th => DType::Q5_K,
            Self::Q3_K_M if !falcon || site.spared() => DType::Q4_K,
            Self::Q4_K_M if falcon && !first_16th && site.spared() => DType::Q5_K,
            Self::Q4_K_M if falcon && !first_16th => base,
            Self::Q4_K_M if falcon || site.spared() => DType::Q6_K,
            Self::Q5_K_M if site.spared() => DType::Q6_K,
            Self::IQ4_NL | Self::IQ4_XS if first_8th => DType::Q5_K,
            _ => base,
        }
    }
}

impl Site {
    /// Whether the layer is one of those that get more bits: the first and the last eighth, and
    /// every third between.
    fn spared(&self) -> bool {
        let eighth = self.layers / 8;
        self.layer < eighth || self.layer >= 7 * self.layers / 8 || (self.layer - eighth) % 3 == 2
    }
}

/// The head's dtype.
fn head(base: DType, site: &Site) -> DType {
    let whole = (site.row_len as usize).is_multiple_of(base.block_len());
    match base {
        _ if site.architecture == Architecture::Falcon || !whole => DType::Q8_0,
        DType::Q8_0 => base,
        _ => DType::Q6_K,
    }
}

/// `wanted`, or what stands in for it where a row is not a whole number of its blocks.
fn fitting(wanted: DType, row_len: u32) -> DType {
    let whole = |dtype: DType| (row_len as usize).is_multiple_of(dtype.block_len());
    if whole(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        DType::IQ4_XS => DType::IQ4_NL,
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        other => other,
    };
    if whole(smaller) { smaller } else { DType::F16 }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Quant {
    type Err = UnknownQuant;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name));
        known.map(|row| row.0).ok_or_else(|| UnknownQuant(name.to_owned()))
    }
}

/// A name that no quant has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown quant {0:?}; there are {names}", names = TABLE.map(|row| row.1).join(", "))]
pub struct UnknownQuant(pub String);
