//! No product is above its bound, on any instruction set, also where activations are made to meet
//! exactly what a sketch leaves out; and the bound is not looser than it must be.

use super::layout::{Codes, Front, levels};
use super::spread::Spread;
use super::*;
use crate::act::QuantRows;
use crate::matmul::{Input, Matrix, Product, matmul, scale_block};
use crate::testing::{Noise, weights};
use crate::{Isa, Pool, ScaleBlock};
use aios_contract::DType;

const SEED: u64 = 5;

/// 32 orthonormal directions of `cols` elements, by Gram and Schmidt.
fn directions(cols: usize, noise: &mut Noise) -> Vec<[f32; DIRECTIONS]> {
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for _ in 0..DIRECTIONS {
        let mut v: Vec<f64> = noise.floats(cols).into_iter().map(f64::from).collect();
        for _ in 0..2 {
            for other in &columns {
                let along: f64 = v.iter().zip(other).map(|(x, y)| x * y).sum();
                v.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
        }
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.iter_mut().for_each(|x| *x /= norm);
        columns.push(v);
    }
    (0..cols).map(|i| std::array::from_fn(|j| columns[j][i] as f32)).collect()
}

/// A matrix and its sketch.
struct Case {
    dtype: DType,
    shape: SketchShape,
    weights: Vec<u8>,
    directions: Vec<[f32; DIRECTIONS]>,
    scales: [f32; DIRECTIONS],
    sketch: Sketch,
    bytes: Vec<u8>,
}

impl Case {
    fn new(dtype: DType, rows: usize, cols: usize, noise: &mut Noise) -> Self {
        let weights = weights(dtype, rows * cols, noise, |noise| noise.word() as u8);
        Self::of(dtype, SketchShape { rows, cols }, weights, directions(cols, noise))
    }

    fn of(
        dtype: DType,
        shape: SketchShape,
        weights: Vec<u8>,
        directions: Vec<[f32; DIRECTIONS]>,
    ) -> Self {
        let scales = std::array::from_fn(|j| 0.5 + j as f32 / 16.0);
        let builder = SketchBuilder::new(dtype, shape, &directions, &scales, SEED);
        let mut bytes = front(&directions, &scales);
        let row_bytes = weights.len() / shape.rows;
        let mut limits = Limits::default();
        let mut refined = vec![0; shape.rows * shape.refined_bytes()];
        let parts = refined.chunks_mut(16 * shape.refined_bytes());
        for (rows, refined) in weights.chunks(16 * row_bytes).zip(parts) {
            let mut panel = vec![0; shape.panel_bytes()];
            limits = limits.with(builder.panel(rows, &mut panel, refined).expect("finite"));
            bytes.extend(panel);
        }
        bytes.extend(refined);
        let sketch = Sketch::open(shape, limits, SEED, &bytes).expect("sound");
        Self { dtype, shape, weights, directions, scales, sketch, bytes }
    }

    fn panels(&self) -> &[u8] {
        &self.bytes[self.shape.front_bytes()..][..self.shape.panels_bytes()]
    }

    fn refinements(&self) -> &[u8] {
        &self.bytes[self.shape.front_bytes() + self.shape.panels_bytes()..]
    }

    /// Canonical products for the rows of `x`, \[n\]\[cols\], their bounds and peaks, and their
    /// refined bounds.
    fn bounds(&self, isa: Isa, pool: &Pool, x: &[f32]) -> Bounded {
        let (n, SketchShape { rows, cols }) = (x.len() / self.shape.cols, self.shape);
        let block = scale_block(self.dtype);
        let quantise = |x: &[f32]| {
            block.map(|block| {
                let mut quantised = QuantRows::with_capacity(block, x.len() / cols, cols);
                quantised.quantize(isa, pool, x, cols);
                quantised
            })
        };
        let with = |x, quantised: &mut dyn FnMut(Input<'_>), rows: Option<QuantRows>| {
            let of = |wanted| rows.as_ref().filter(|_| block == Some(wanted));
            let (q32, q256) = (of(ScaleBlock::B32), of(ScaleBlock::B256));
            quantised(Input { x, len: cols, q32, q256, exact: false });
        };
        let mut products = vec![0.0; n * rows];
        let weights = Matrix::new(self.dtype, rows, cols, &self.weights).expect("a matrix");
        let mut multiply = |input: Input<'_>| {
            matmul(
                isa,
                pool,
                input,
                &mut [Product { weights, bias: None, out: &mut products }],
                &[],
            );
        };
        with(x, &mut multiply, quantise(x));
        let mut queries = vec![Query::default(); n];
        let mut activations = Activations::default();
        for (x, query) in x.chunks_exact(cols).zip(&mut queries) {
            let mut ask = |input: Input<'_>| {
                activations.fill(&input, self.dtype);
                assert!(query.fill(isa, &self.sketch, self.dtype, &activations));
            };
            with(x, &mut ask, quantise(x));
        }
        let (mut upper, mut peaks) =
            (vec![0.0; n * rows], vec![Peak::default(); n * self.shape.panels()]);
        upper_bounds(isa, pool, self.shape, self.panels(), &queries, &mut upper, &mut peaks);
        let (mut refined, mut all) = (upper.clone(), peaks.clone());
        let mut masks = vec![0; self.shape.panels()];
        let parts = refined.chunks_mut(rows).zip(all.chunks_mut(masks.len()));
        for (query, (upper, peaks)) in queries.iter().zip(parts) {
            let bounds = Bounds { upper, peaks, refined: &mut masks };
            let bar = f32::NEG_INFINITY;
            refine(isa, pool, self.shape, self.refinements(), query, bar, bounds);
            assert_eq!(masks.iter().map(|mask| mask.count_ones() as usize).sum::<usize>(), rows);
        }
        Bounded { products, upper, peaks, refined }
    }

    /// What the sketch of row `r` of the matrix, or with `part` 1 that of upper bits of its codes,
    /// leaves out of it, in the spread elements; κ, and what it leaves out of the products.
    fn left_out(&self, r: usize, floats: &[f32], part: usize) -> (Vec<f64>, f64, Vec<f64>) {
        let lower = &self.refinements()[r * self.shape.refined_bytes()..][4..];
        let panel = &self.panels()[r / 16 * self.shape.panel_bytes()..][..self.shape.panel_bytes()];
        let (front, codes): (&Front, &[Codes]) = super::layout::parts(panel);
        let wide = |x: [u8; 2]| half::bf16::from_le_bytes(x).to_f64();
        let (sigma, kappa, r) = (wide(front.sigma[r % 16]), wide(front.kappa[r % 16]), r % 16);
        let spread = Spread::new(self.shape.cols, SEED);
        let mut rest: Vec<f64> = floats.iter().map(|x| f64::from(*x)).collect();
        let along: Vec<f64> = (0..DIRECTIONS)
            .map(|j| rest.iter().zip(&self.directions).map(|(x, v)| x * f64::from(v[j])).sum())
            .collect();
        let strip = |x: &mut [f64], basis: &dyn Fn(usize, usize) -> f64| {
            for j in 0..DIRECTIONS {
                let along: f64 = x.iter().enumerate().map(|(i, x)| x * basis(i, j)).sum();
                x.iter_mut().enumerate().for_each(|(i, x)| *x -= along * basis(i, j));
            }
        };
        strip(&mut rest, &|i, j| f64::from(self.directions[i][j]));
        rest.resize(spread.padded_len(), 0.0);
        spread.apply(&mut rest, &mut vec![0.0; spread.padded_len()]);
        for (i, x) in rest.iter_mut().enumerate() {
            let (codes, k, byte) = (&codes[i / 32], i % 32 / 4, 4 * r + i % 4);
            let middle = (codes.middle[k / 4][byte] >> (2 * (k % 4))) & 3;
            let upper = middle | (codes.top[byte] >> k & 1) << 2;
            let code = (upper << 2) | (lower[i / 64 * 16 + i % 16] >> (2 * (i % 64 / 16))) & 3;
            *x -= sigma * levels(code)[part];
        }
        let rotated: Vec<Vec<f64>> = (0..DIRECTIONS)
            .map(|j| {
                let mut v: Vec<f64> = self.directions.iter().map(|v| f64::from(v[j])).collect();
                v.resize(spread.padded_len(), 0.0);
                spread.apply(&mut v, &mut vec![0.0; spread.padded_len()]);
                v
            })
            .collect();
        strip(&mut rest, &|i, j| rotated[j][i]);
        let missed = (along.iter().zip(&self.scales).enumerate())
            .map(|(j, (x, d))| {
                let stored = (front.products[j / 4][4 * r + j % 4] ^ 128).cast_signed();
                x / f64::from(*d) / kappa - f64::from(stored)
            })
            .collect();
        (rest, kappa, missed)
    }
}

/// Canonical products and what bounds them.
struct Bounded {
    products: Vec<f32>,
    upper: Vec<f32>,
    peaks: Vec<Peak>,
    refined: Vec<f32>,
}

#[test]
fn no_product_is_above_its_bound_and_bounds_are_the_same_everywhere() {
    let pool = Pool::new(2).expect("threads");
    for dtype in DType::ALL {
        let mut noise = Noise::new(17);
        // Not a whole number of panels, nor of the sketch's own blocks where the format allows it.
        let cols = if dtype.block_len() == 256 { 512 } else { 160 };
        let case = Case::new(dtype, 83, cols, &mut noise);
        let mut x = noise.floats(7 * cols);
        x[..cols].fill(0.0);
        x[cols..2 * cols].iter_mut().for_each(|x| *x *= 1e20);
        x[2 * cols..3 * cols].iter_mut().for_each(|x| *x *= 1e-20);
        x[3 * cols] = 3e3;
        let mut first = None;
        for isa in Isa::available() {
            let Bounded { products, upper, peaks, refined } = case.bounds(isa, &pool, &x);
            for (i, (y, u)) in products.iter().zip(&upper).enumerate() {
                assert!(y <= u && *y <= refined[i], "{dtype} {isa:?} {i}: {y} {u} {}", refined[i]);
            }
            for (row, peaks) in upper.chunks(83).zip(peaks.chunks(case.shape.panels())) {
                for (i, (rows, peak)) in row.chunks(16).zip(peaks).enumerate() {
                    assert_eq!(rows.iter().copied().fold(f32::MIN, f32::max), peak.upper);
                    assert!(peak.score <= peak.upper && peak.row as usize / 16 == i);
                }
            }
            // Looser than this, they would be of no use.
            for (bounds, most) in [(&upper, 7.0), (&refined, 3.5)] {
                let ordinary = 4 * 83..7 * 83;
                let squares: f32 = products[ordinary.clone()].iter().map(|y| y * y).sum();
                let gap = |i: usize| bounds[i] - products[i];
                let gaps: f32 = ordinary.map(|i| gap(i) * gap(i)).sum();
                let loose = (gaps / squares).sqrt();
                assert!(loose < most, "{dtype}: {loose}");
            }
            let bits: Vec<u32> = upper.iter().chain(&refined).map(|x| x.to_bits()).collect();
            let found = (bits, peaks);
            assert_eq!(*first.get_or_insert(found.clone()), found, "{dtype} {isa:?}");
        }
    }
}

/// The activations that become `v` once spread.
fn unspread(v: &[f64]) -> Vec<f32> {
    let spread = Spread::new(v.len(), SEED);
    let column = |i: usize| {
        let mut unit = vec![0.0; v.len()];
        unit[i] = 1.0;
        spread.apply(&mut unit, &mut vec![0.0; v.len()]);
        unit.iter().zip(v).map(|(x, v)| x * v).sum::<f64>() as f32
    };
    (0..v.len()).map(column).collect()
}

/// Activations that are made of what one row's sketch leaves out meet the bound up to 6 %, most of
/// which is what rounding them may have lost: a smaller ρ or norm fails here.
#[test]
fn the_bound_is_reached_and_not_passed() {
    let (pool, cols, rows) = (Pool::new(1).expect("a thread"), 128, 48);
    let mut noise = Noise::new(9);
    let case = Case::new(DType::F32, rows, cols, &mut noise);
    let (words, _) = case.weights.as_chunks::<4>();
    let floats: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let mut most_missed = (0.0, 0, Vec::new());
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (r, part) in (0..rows).flat_map(|r| [(r, 0), (r, 1)]) {
        let (rest, kappa, missed) = case.left_out(r, &floats[r * cols..(r + 1) * cols], part);
        // On the grid of 8-bit integers, so that little is lost by rounding to it.
        let largest = rest.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let grid: Vec<f64> = rest.iter().map(|x| (x / largest * 127.0).round()).collect();
        let found = case.bounds(Isa::SCALAR, &pool, &unspread(&grid));
        let upper = if part == 0 { &found.refined } else { &found.upper };
        let gap = f64::from(upper[r] - found.products[r]) / (norm(&rest) * norm(&grid));
        let most = if part == 0 { 0.2 } else { 0.06 };
        assert!((0.0..most).contains(&gap), "row {r}, part {part}: {gap}");
        let size = norm(&missed);
        if size > most_missed.0 {
            most_missed = (size, r, missed.iter().map(|m| m * kappa).collect());
        }
    }
    // Likewise along the directions, for the row whose products are stored worst.
    let (_, r, missed) = most_missed;
    let along = |v: &[f32; DIRECTIONS]| -> f32 {
        let parts = v.iter().zip(&missed).zip(&case.scales);
        parts.map(|((v, m), d)| f64::from(*v) * m / f64::from(*d)).sum::<f64>() as f32
    };
    let x: Vec<f32> = case.directions.iter().map(along).collect();
    let Bounded { products, upper, .. } = case.bounds(Isa::SCALAR, &pool, &x);
    let bound: f64 = missed.iter().map(|m| m * m).sum();
    let kappa = case.left_out(r, &floats[r * cols..(r + 1) * cols], 0).1;
    let gap = f64::from(upper[r] - products[r]) / (bound / kappa * kappa);
    assert!((0.0..0.5).contains(&gap), "{gap}");
}

/// A row that its sketch gives exactly, and activations of which rounding loses as much as it can,
/// in the direction of the row: only the bound's third term covers that.
#[test]
fn what_rounding_activations_loses_is_in_the_bound() {
    let (pool, cols) = (Pool::new(1).expect("a thread"), 128);
    let sign = |i: usize| if (i * 7 + i / 3).is_multiple_of(2) { 1.0 } else { -1.0 };
    // The directions are the first elements once spread; the row has nothing there.
    let columns: Vec<Vec<f32>> = (0..DIRECTIONS)
        .map(|j| unspread(&(0..cols).map(|i| f64::from(u8::from(i == j))).collect::<Vec<_>>()))
        .collect();
    let directions = (0..cols).map(|i| std::array::from_fn(|j| columns[j][i])).collect();
    let beyond = |i: usize, x: f64| if i < DIRECTIONS { 0.0 } else { x };
    // Levels of a scale of 1, which is what their mean square asks for.
    let level = |i: usize| if i < DIRECTIONS + 43 { 17.0 } else { 13.0 };
    let row: Vec<f64> = (0..cols).map(|i| beyond(i, level(i) * sign(i))).collect();
    let mut z: Vec<f64> = (0..cols).map(|i| beyond(i, 0.499 * sign(i))).collect();
    z[cols - 1] = 127.0 * sign(cols - 1);
    let weights = unspread(&row).iter().flat_map(|x| x.to_le_bytes()).collect();
    let case = Case::of(DType::F32, SketchShape { rows: 1, cols }, weights, directions);
    let Bounded { products, refined: upper, .. } = case.bounds(Isa::SCALAR, &pool, &unspread(&z));
    let rounded = DIRECTIONS..cols - 1;
    let lost: f64 = rounded.clone().map(|i| 0.499 * level(i)).sum();
    let gap = f64::from(upper[0] - products[0]) / lost;
    assert!((0.0..0.8).contains(&gap), "{gap}");
    let term = case.sketch.limits.levels * 0.499 * (rounded.len() as f64).sqrt();
    assert!(gap - term / lost < -0.4, "the term is not needed here: {gap}");
}

#[test]
fn activations_without_a_bound_are_refused() {
    let pool = Pool::new(1).expect("a thread");
    let mut noise = Noise::new(2);
    let case = Case::new(DType::Q8_0, 16, 64, &mut noise);
    for bad in [f32::NAN, f32::INFINITY, 1e36] {
        let mut x = noise.floats(64);
        x[7] = bad;
        let mut quantised = QuantRows::with_capacity(ScaleBlock::B32, 1, 64);
        quantised.quantize(Isa::SCALAR, &pool, &x, 64);
        let q32 = Some(&quantised);
        let input = Input { x: &x, len: 64, q32, q256: None, exact: false };
        let mut activations = Activations::default();
        activations.fill(&input, DType::Q8_0);
        let filled = Query::default().fill(Isa::SCALAR, &case.sketch, DType::Q8_0, &activations);
        assert!(!filled, "{bad}");
    }
}

#[test]
fn rows_that_are_not_finite_are_refused() {
    let mut noise = Noise::new(4);
    let shape = SketchShape { rows: 2, cols: 64 };
    let directions = directions(64, &mut noise);
    let builder = SketchBuilder::new(DType::F32, shape, &directions, &[1.0; 32], SEED);
    for bad in [f32::NAN, f32::NEG_INFINITY, 3e38] {
        let mut row = vec![1.0_f32; 128];
        row[100] = bad;
        let mut panel = vec![0; shape.panel_bytes()];
        let mut refined = vec![0; 2 * shape.refined_bytes()];
        let refused = builder.panel(bytemuck::cast_slice(&row), &mut panel, &mut refined);
        assert_eq!(refused, Err(NotFinite { row: 1 }));
    }
}

#[test]
fn an_unsound_sketch_is_refused() {
    let case = Case::new(DType::F32, 20, 64, &mut Noise::new(6));
    let limits = Limits { products: 1.0, levels: 200.0, magnitude: 3.0 };
    let open = |limits, bytes: &[u8]| Sketch::open(case.shape, limits, SEED, bytes);
    assert!(open(limits, &case.bytes).is_ok());
    let short = open(limits, &case.bytes[1..]);
    assert!(matches!(short, Err(SketchError::Size { .. })));
    for x in [f64::NAN, -1.0, f64::INFINITY] {
        let bad = open(Limits { magnitude: x, ..limits }, &case.bytes);
        assert_eq!(bad, Err(SketchError::Limit("magnitude")));
    }
    let mut bytes = case.bytes.clone();
    bytes[2] ^= 0x40;
    assert_eq!(open(limits, &bytes), Err(SketchError::Directions));
    let mut bytes = case.bytes.clone();
    bytes[4 * 32 * 64..4 * 32 * 64 + 4].fill(0);
    assert_eq!(open(limits, &bytes), Err(SketchError::Scales));
    for (rows, cols) in [(0, 64), (5, 0), (usize::MAX, 64), (5, usize::MAX), (1, 1 << 18)] {
        let shape = SketchShape { rows, cols };
        let bad = Sketch::open(shape, limits, SEED, &case.bytes);
        assert!(matches!(bad, Err(SketchError::Size { .. })));
    }
}
