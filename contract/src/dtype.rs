//! Element types of GGUF tensors: the only table of their codes and block sizes.

use serde::{Deserialize, Serialize};

/// How the elements of a tensor are stored. A tensor row is a whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(non_camel_case_types, reason = "the field's own spelling, as files and tools print it")]
#[expect(missing_docs, reason = "each variant is one row of the table below")]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// One row of the table: (dtype, GGUF type code, name, elements a block, bytes a block).
type Row = (DType, u32, &'static str, usize, usize);

const TABLE: [Row; 15] = [
    (DType::F32, 0, "F32", 1, 4),
    (DType::F16, 1, "F16", 1, 2),
    (DType::BF16, 30, "BF16", 1, 2),
    (DType::Q4_0, 2, "Q4_0", 32, 18),
    (DType::Q4_1, 3, "Q4_1", 32, 20),
    (DType::Q5_0, 6, "Q5_0", 32, 22),
    (DType::Q5_1, 7, "Q5_1", 32, 24),
    (DType::Q8_0, 8, "Q8_0", 32, 34),
    (DType::Q2_K, 10, "Q2_K", 256, 84),
    (DType::Q3_K, 11, "Q3_K", 256, 110),
    (DType::Q4_K, 12, "Q4_K", 256, 144),
    (DType::Q5_K, 13, "Q5_K", 256, 176),
    (DType::Q6_K, 14, "Q6_K", 256, 210),
    (DType::IQ4_NL, 20, "IQ4_NL", 32, 18),
    (DType::IQ4_XS, 23, "IQ4_XS", 256, 136),
];

impl DType {
    /// Every dtype, in the order of the table.
    pub const ALL: [Self; 15] = {
        let mut all = [Self::F32; 15];
        let mut i = 0;
        while i < all.len() {
            all[i] = TABLE[i].0;
            i += 1;
        }
        all
    };

    const fn row(self) -> &'static Row {
        let row = &TABLE[self as usize];
        assert!(row.0 as usize == self as usize);
        row
    }

    /// The dtype with GGUF type code `code`, if this engine reads it.
    pub fn from_gguf(code: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    /// The type code in a GGUF tensor record.
    pub const fn gguf_code(self) -> u32 {
        self.row().1
    }

    /// The name that tools print, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements in a block; 1 for plain floats.
    pub const fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes in a block.
    pub const fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of a row of `elements`, or `None` if it is not a whole number of blocks or overflows.
    pub const fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether the elements are plain floats, so that activations stay unquantised.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = TABLE.iter().find(|row| row.2.eq_ignore_ascii_case(name));
        known.map(|row| row.0).ok_or_else(|| UnknownDType(name.to_owned()))
    }
}

/// A dtype name that is not in the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}")]
pub struct UnknownDType(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_indexed_by_the_enum_and_round_trips() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_gguf(dtype.gguf_code()), Some(dtype));
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert_eq!(DType::from_gguf(9), None);
        assert!("Q9_Z".parse::<DType>().is_err());
    }

    #[test]
    fn row_bytes_refuses_partial_blocks_and_overflow() {
        assert_eq!(DType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(DType::Q4_K.row_bytes(500), None);
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    }
}
