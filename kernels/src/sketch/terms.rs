//! How large the terms of a canonical product are: its roundings are relative to them.

use crate::format::{self, Float, Format32, Format256, Super, Visitor, f16_pair, quant};
use crate::simd::{LANES, Scalar};
use aios_contract::DType;

/// ‖d·s·(q − offset)‖ + ‖m‖ of a row as it stands in a file: each over all elements, m being an
/// element's minimum. The terms of N4's chain, times the activations' scales, add up to at most
/// this times the norm of the activations. For floats it is the row's norm.
pub(super) fn terms(dtype: DType, row: &[u8]) -> f64 {
    format::visit(dtype, Terms(row))
}

/// The number of roundings that a term of a row's canonical product passes through (N3, N4).
#[expect(clippy::cast_precision_loss, reason = "rows are far shorter than 2^53")]
pub(super) fn roundings(dtype: DType, cols: usize) -> f64 {
    match dtype.block_len() {
        1 => (cols.div_ceil(LANES) + 5) as f64,
        block => (cols.div_ceil(block) + 3) as f64,
    }
}

struct Terms<'a>(&'a [u8]);

impl Visitor for Terms<'_> {
    type Output = f64;

    fn float<F: Float>(self) -> f64 {
        let elements = self.0.len() / size_of::<F::Element>();
        let mut out = vec![0.0; elements];
        format::convert::<F, Scalar>(Scalar, format::blocks(self.0), &mut out);
        out.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
    }

    fn blocks32<F: Format32>(self) -> f64 {
        let (mut products, mut mins) = (0.0, 0.0);
        for block in format::blocks::<F::Block>(self.0) {
            let mut w = [0; 32];
            let [d, m] = f16_pair(Scalar, F::unpack(Scalar, block, &mut w)).map(f64::from);
            products += d * d * squares(&w, F::SIGNED, F::OFFSET);
            mins += if F::HAS_MIN { 32.0 * m * m } else { 0.0 };
        }
        products.sqrt() + mins.sqrt()
    }

    fn blocks256<F: Format256>(self) -> f64 {
        let (mut products, mut mins) = (0.0, 0.0);
        let mut unpacked = Super::ZERO;
        for block in format::blocks::<F::Block>(self.0) {
            F::unpack(Scalar, block, &mut unpacked);
            let [d, dmin] = f16_pair(Scalar, unpacked.d).map(f64::from);
            for (group, w) in unpacked.w.chunks_exact(16).enumerate() {
                let scale = d * f64::from(unpacked.scales[group]);
                let min = dmin * f64::from(unpacked.mins[group]);
                products += scale * scale * squares(w, F::SIGNED, F::OFFSET);
                mins += if F::HAS_MIN { 16.0 * min * min } else { 0.0 };
            }
        }
        products.sqrt() + mins.sqrt()
    }
}

/// The sum of the squares of quants, the offset subtracted.
fn squares(w: &[u8], signed: bool, offset: i32) -> f64 {
    w.iter().map(|w| f64::from((quant(*w, signed) - offset).pow(2))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dequantize;
    use crate::isa::Isa;
    use crate::testing::{Noise, weights};

    #[test]
    fn terms_are_at_least_the_norm_and_not_far_above_it() {
        let mut noise = Noise::new(3);
        for dtype in DType::ALL {
            let row = weights(dtype, 512, &mut noise, |noise| noise.word() as u8);
            let mut floats = vec![0.0; 512];
            dequantize(Isa::SCALAR, dtype, &row, &mut floats).expect("a row");
            let norm = floats.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let terms = terms(dtype, &row);
            assert!(terms >= norm * (1.0 - 1e-6) && terms < 8.0 * norm, "{dtype}: {terms} {norm}");
        }
    }
}
