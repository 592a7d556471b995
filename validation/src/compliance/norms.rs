//! Frobenius norms of a file's tensors, and of products of two of them that are never formed.
//!
//! Elements are dequantised (SPEC.md, F20) and summed in f64 in the order of the file, so that a
//! norm is the same on every machine. The relative error of n elements is below n · 2⁻⁵².

use aios_engine::gguf::TensorInfo;
use aios_kernels::{Isa, dequantize};

/// Elements that are looked at together; a whole number of blocks of any dtype.
const CHUNK: usize = 4096;
/// The largest rank of a product, which bounds the work: rank² products an element.
pub const RANK_MAX: usize = 256;

/// Why there is no norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormFault {
    /// The data does not lie in the file.
    Outside,
    /// An element is infinite or NaN.
    NotFinite,
}

/// A tensor and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a> {
    isa: Isa,
    tensor: &'a TensorInfo,
    data: &'a [u8],
}

impl<'a> Elements<'a> {
    /// The elements of `tensor` in `file`.
    ///
    /// # Errors
    /// [`NormFault::Outside`] if the file is another, shorter one.
    pub fn of(tensor: &'a TensorInfo, file: &'a [u8]) -> Result<Self, NormFault> {
        let data = tensor.data(file).ok_or(NormFault::Outside)?;
        Ok(Self { isa: Isa::detect(), tensor, data })
    }

    /// Calls `see` with the elements of `data`, a whole number of blocks, in order and at most
    /// [`CHUNK`] at a time.
    fn each_chunk(&self, data: &[u8], mut see: impl FnMut(&[f32])) -> Result<(), NormFault> {
        let dtype = self.tensor.dtype;
        let chunk_bytes = CHUNK / dtype.block_len() * dtype.block_bytes();
        let mut elements = [0.0; CHUNK];
        for bytes in data.chunks(chunk_bytes) {
            let len = bytes.len() / dtype.block_bytes() * dtype.block_len();
            let elements = &mut elements[..len];
            dequantize(self.isa, dtype, bytes, elements).map_err(|_| NormFault::Outside)?;
            if !elements.iter().all(|x| x.is_finite()) {
                return Err(NormFault::NotFinite);
            }
            see(elements);
        }
        Ok(())
    }

    /// The Frobenius norm.
    ///
    /// # Errors
    /// [`NormFault`].
    pub fn norm(&self) -> Result<f64, NormFault> {
        let mut sum = 0.0;
        self.each_chunk(self.data, |elements| sum += squares(elements))?;
        Ok(sum.sqrt())
    }
}

fn squares(elements: &[f32]) -> f64 {
    elements.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}

/// A symmetric matrix of sums of products, row after row.
struct Gram {
    rank: usize,
    sums: Vec<f64>,
}

impl Gram {
    fn new(rank: usize) -> Self {
        Self { rank, sums: vec![0.0; rank * rank] }
    }

    /// Adds the outer product of `x`, \[rank\].
    fn add(&mut self, x: &[f64]) {
        for (sums, a) in self.sums.chunks_exact_mut(self.rank).zip(x) {
            for (sum, b) in sums.iter_mut().zip(x) {
                *sum += a * b;
            }
        }
    }
}

/// The Frobenius norm of left · right, with `left` \[rows\]\[rank\] and `right`
/// \[rank\]\[columns\]: the root of the trace of (leftᵀ · left) · (right · rightᵀ). `rank` is 1 to
/// [`RANK_MAX`].
///
/// # Errors
/// [`NormFault`].
pub fn product_norm(
    left: Elements<'_>,
    right: Elements<'_>,
    rank: usize,
) -> Result<f64, NormFault> {
    let mut of_left = Gram::new(rank);
    let mut row = Vec::with_capacity(rank);
    left.each_chunk(left.data, |elements| {
        for x in elements {
            row.push(f64::from(*x));
            if row.len() == rank {
                of_left.add(&row);
                row.clear();
            }
        }
    })?;
    let of_right = gram_of_columns(right, rank)?;
    let trace: f64 = of_left.sums.iter().zip(&of_right.sums).map(|(a, b)| a * b).sum();
    // Rounding may leave a hair less than nothing.
    Ok(trace.max(0.0).sqrt())
}

/// The sums of products of the rows of `right`, \[rank\]\[columns\], a few columns at a time.
fn gram_of_columns(right: Elements<'_>, rank: usize) -> Result<Gram, NormFault> {
    let dtype = right.tensor.dtype;
    let row_bytes = right.data.len() / rank;
    let chunk_bytes = CHUNK / dtype.block_len() * dtype.block_bytes();
    let mut gram = Gram::new(rank);
    let mut columns = vec![0.0; rank * CHUNK];
    for start in (0..row_bytes).step_by(chunk_bytes) {
        let end = row_bytes.min(start + chunk_bytes);
        let mut width = 0;
        for k in 0..rank {
            let bytes = &right.data[k * row_bytes + start..k * row_bytes + end];
            right.each_chunk(bytes, |elements| {
                width = elements.len();
                for (j, x) in elements.iter().enumerate() {
                    columns[j * rank + k] = f64::from(*x);
                }
            })?;
        }
        columns[..width * rank].chunks_exact(rank).for_each(|column| gram.add(column));
    }
    Ok(gram)
}
