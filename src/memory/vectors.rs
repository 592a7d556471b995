//! Vectors as int8, and the scan over all of them.
//!
//! A vector of length 1 is kept as whole numbers from -127 to 127 and one scale. The scan sums
//! products of whole numbers, which is exact in any order, and multiplies by the two scales at the
//! end: the compiler may use what instructions it likes, and the score is the same everywhere.

use std::collections::HashMap;

/// A vector as whole numbers with one scale: `value = scale * quant`.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Vector {
    /// What a step of the quants is worth.
    pub scale: f32,
    /// One number for each dimension, from -127 to 127.
    pub quants: Vec<i8>,
}

impl Int8Vector {
    /// The nearest quants of `values`, which must be finite; zeros stay zeros.
    pub fn quantise(values: &[f32]) -> Self {
        let largest = values.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
        // The cast saturates, and the product is within 127 but for rounding.
        let quants = values.iter().map(|value| (value * inverse).round_ties_even() as i8).collect();
        Self { scale, quants }
    }

    /// The quants as bytes, two's complement.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.quants.iter().map(|quant| quant.cast_unsigned()).collect()
    }

    /// The vector that [`Int8Vector::bytes`] were written from.
    pub(super) fn from_bytes(scale: f32, bytes: &[u8]) -> Self {
        Self { scale, quants: bytes.iter().map(|byte| byte.cast_signed()).collect() }
    }
}

/// Finds the vectors that are nearest to one. In this process it is [`FlatIndex`]; a server of
/// vectors would be another.
pub trait VectorIndex: Send + Sync {
    /// How many vectors there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the vector of a fragment, or replaces it. Its length is the index's.
    fn insert(&mut self, id: i64, vector: &Int8Vector);

    /// The `k` fragments of the largest cosine to `query`, the largest first; ties go to the lower
    /// number.
    fn nearest(&self, query: &[f32], k: usize) -> Vec<(i64, f32)>;

    /// The cosine of one fragment's vector to `query`; `None` if it has none.
    fn cosine(&self, id: i64, query: &[f32]) -> Option<f32>;
}

/// All vectors in one piece of memory, which is read from end to end for each question.
#[derive(Debug)]
pub struct FlatIndex {
    dim: usize,
    /// [rows x dim]
    quants: Vec<i8>,
    scales: Vec<f32>,
    ids: Vec<i64>,
    rows: HashMap<i64, usize>,
}

impl FlatIndex {
    /// An index without vectors, for vectors of `dim` numbers, of which there is at least one.
    pub fn new(dim: usize) -> Self {
        assert!(dim > 0, "a vector has at least one number");
        Self { dim, quants: vec![], scales: vec![], ids: vec![], rows: HashMap::new() }
    }

    fn score(&self, row: usize, query: &Query) -> f32 {
        let quants = &self.quants[row * self.dim..(row + 1) * self.dim];
        dot(quants, &query.quants) as f32 * (self.scales[row] * query.scale)
    }
}

impl VectorIndex for FlatIndex {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn insert(&mut self, id: i64, vector: &Int8Vector) {
        assert_eq!(vector.quants.len(), self.dim, "the vector is of another embedder");
        match self.rows.get(&id) {
            Some(&row) => {
                self.quants[row * self.dim..(row + 1) * self.dim].copy_from_slice(&vector.quants);
                self.scales[row] = vector.scale;
            }
            None => {
                self.rows.insert(id, self.ids.len());
                self.ids.push(id);
                self.scales.push(vector.scale);
                self.quants.extend_from_slice(&vector.quants);
            }
        }
    }

    fn nearest(&self, query: &[f32], k: usize) -> Vec<(i64, f32)> {
        let query = Query::new(query, self.dim);
        let mut best: Vec<(i64, f32)> = Vec::with_capacity(k + 1);
        for (row, &id) in self.ids.iter().enumerate() {
            let score = self.score(row, &query);
            if best.len() == k && best.last().is_none_or(|last| !above((id, score), *last)) {
                continue;
            }
            let at = best.partition_point(|held| above(*held, (id, score)));
            best.insert(at, (id, score));
            best.truncate(k);
        }
        best
    }

    fn cosine(&self, id: i64, query: &[f32]) -> Option<f32> {
        let query = Query::new(query, self.dim);
        self.rows.get(&id).map(|&row| self.score(row, &query))
    }
}

/// Whether `a` ranks above `b`: by score, then by the lower number.
fn above(a: (i64, f32), b: (i64, f32)) -> bool {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)).is_lt()
}

/// A question's vector, widened once so that the inner loop multiplies pairs of 16 bits.
struct Query {
    quants: Vec<i16>,
    scale: f32,
}

impl Query {
    fn new(values: &[f32], dim: usize) -> Self {
        assert_eq!(values.len(), dim, "the question's vector is of another embedder");
        let vector = Int8Vector::quantise(values);
        Self { quants: vector.quants.into_iter().map(i16::from).collect(), scale: vector.scale }
    }
}

/// The sum of the products. 127² times any length of a vector in use is far within 32 bits.
fn dot(row: &[i8], query: &[i16]) -> i32 {
    row.iter().zip(query).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::unit_vector;

    #[test]
    fn quants_are_near_and_scores_are_cosines() {
        let (a, b) = (unit_vector(1, 384), unit_vector(2, 384));
        let mut index = FlatIndex::new(384);
        index.insert(1, &Int8Vector::quantise(&a));
        let exact: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
        assert!((index.cosine(1, &b).unwrap() - exact).abs() < 5e-3);
        assert!((index.cosine(1, &a).unwrap() - 1.0).abs() < 5e-3);
        assert_eq!(index.cosine(2, &a), None);
        let zero = Int8Vector::quantise(&[0.0; 4]);
        assert_eq!((zero.scale, zero.quants), (0.0, vec![0; 4]));
        let vector = Int8Vector::quantise(&a);
        assert_eq!(Int8Vector::from_bytes(vector.scale, &vector.bytes()), vector);
    }

    /// The plain way: every score, sorted.
    fn by_sorting(vectors: &[(i64, Vec<f32>)], query: &[f32], k: usize) -> Vec<i64> {
        let dim = query.len();
        let scored = |vector: &[f32]| {
            let mut one = FlatIndex::new(dim);
            one.insert(0, &Int8Vector::quantise(vector));
            one.cosine(0, query).unwrap()
        };
        let mut all: Vec<(f32, i64)> =
            vectors.iter().map(|(id, vector)| (-scored(vector), *id)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        all.into_iter().take(k).map(|(_, id)| id).collect()
    }

    #[test]
    fn the_nearest_are_those_of_sorting_and_ties_go_to_the_lower_number() {
        let mut vectors: Vec<(i64, Vec<f32>)> =
            (0..200).map(|i| (1000 - i, unit_vector(i as u64 % 90, 24))).collect();
        let mut index = FlatIndex::new(24);
        for (id, vector) in &vectors {
            index.insert(*id, &Int8Vector::quantise(vector));
        }
        for (seed, k) in [(500, 1), (501, 7), (3, 50), (502, 300)] {
            let query = unit_vector(seed, 24);
            let found: Vec<i64> = index.nearest(&query, k).iter().map(|hit| hit.0).collect();
            assert_eq!(found, by_sorting(&vectors, &query, k));
        }
        // A replaced vector is found where it is now.
        vectors[5].1 = unit_vector(777, 24);
        index.insert(vectors[5].0, &Int8Vector::quantise(&vectors[5].1));
        assert_eq!(index.nearest(&unit_vector(777, 24), 1)[0].0, vectors[5].0);
        assert_eq!((index.len(), index.nearest(&vectors[0].1, 0).len()), (200, 0));
    }
}
