//! Random weights as blocks. Nothing is quantised: the quants of a block are random bits as they
//! stand in the file, and its scales are set so that the elements have the deviation asked for.
//!
//! Every element has mean 0 (but for a norm's gain): a format whose quants are not centred gets
//! scales of either sign, or minima at the middle of the range. Without that each matrix would
//! carry the mean of its input on, multiplied by the root of the row length, and the last layers
//! would see nothing else.
//!
//! The bytes of a block depend on the key of its tensor and its place in it alone. Numbers are
//! drawn as SplitMix64 draws them (Steele, Lea and Flood 2014), whose n-th number needs no state.

use aios_contract::DType;
use half::{bf16, f16};
use rayon::prelude::*;

/// Blocks are filled in groups that start at a multiple of this many, so that a group's bytes are
/// whole 64-bit words.
pub(super) const BLOCKS_ALIGN: usize = 8;
/// The blocks that one task fills.
const BLOCKS_PER_TASK: usize = 2048;
const _: () = assert!(BLOCKS_PER_TASK.is_multiple_of(BLOCKS_ALIGN));

/// Deviation of the block scales around their mean, as a part of it: uniform in 1 ± this.
const SCALE_SPREAD: f64 = 0.2;
/// Distinct scales of a tensor.
const SCALES: usize = 256;

/// What the elements of a tensor should be: uniform noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Noise {
    /// Their mean. Only plain floats may have one.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
}

/// Fills the blocks of one tensor.
#[derive(Clone, Debug)]
pub(super) struct Filler {
    dtype: DType,
    noise: Noise,
    /// The key of the quants, and that of the scales.
    keys: [u64; 2],
    /// The block scales to choose from, as f16 bits: d, and dmin (or m).
    scales: Vec<[u16; 2]>,
}

impl Filler {
    /// For the tensor `name` of a file made with `seed`.
    pub fn new(seed: u64, name: &str, dtype: DType, noise: Noise) -> Self {
        assert!(noise.mean == 0.0 || dtype.is_float());
        let key = name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
        let spread = (1.0 + SCALE_SPREAD * SCALE_SPREAD / 3.0).sqrt();
        let d_mean = f64::from(noise.deviation) / (mean_square(dtype).sqrt() * spread);
        let scale = |i: usize| {
            let place = (i as f64 + 0.5) / SCALES as f64;
            let d = f16::from_f64(d_mean * (1.0 + SCALE_SPREAD * (2.0 * place - 1.0)));
            // The minimum follows the scale as it was rounded, so that the mean stays at 0.
            let min = f16::from_f64(d.to_f64() * middle(dtype));
            let min = if matches!(dtype, DType::Q4_1 | DType::Q5_1) { -min } else { min };
            [d.to_bits(), min.to_bits()]
        };
        let scales = (0..SCALES).map(scale).collect();
        Self { dtype, noise, keys: [mix(key), mix(!key)], scales }
    }

    /// Writes the blocks from `first_block` (a multiple of [`BLOCKS_ALIGN`]) on to `out`, a whole
    /// number of blocks, on the threads of the current rayon pool.
    pub fn fill(&self, first_block: u64, out: &mut [u8]) {
        let block_bytes = self.dtype.block_bytes();
        assert!(first_block.is_multiple_of(BLOCKS_ALIGN as u64));
        assert!(out.len().is_multiple_of(block_bytes));
        let tasks = out.par_chunks_mut(BLOCKS_PER_TASK * block_bytes).enumerate();
        tasks.for_each(|(task, out)| self.task(first_block + (task * BLOCKS_PER_TASK) as u64, out));
    }

    fn task(&self, first_block: u64, out: &mut [u8]) {
        let block_bytes = self.dtype.block_bytes();
        let first_word = first_block * block_bytes as u64 / 8;
        for (word, bytes) in (first_word..).zip(out.chunks_mut(8)) {
            bytes.copy_from_slice(&nth(self.keys[0], word).to_le_bytes()[..bytes.len()]);
        }
        match self.dtype {
            DType::F32 => self.floats(out, |x: [u8; 4]| {
                f32::to_le_bytes(self.element(i32::from_le_bytes(x) as f32 / 2_147_483_648.0))
            }),
            DType::F16 => {
                self.floats(out, |x| f16::from_f32(self.element(fraction(x))).to_le_bytes())
            }
            DType::BF16 => {
                self.floats(out, |x| bf16::from_f32(self.element(fraction(x))).to_le_bytes())
            }
            _ => {
                for (block, bytes) in (first_block..).zip(out.chunks_exact_mut(block_bytes)) {
                    let draw = [0, 1, 2].map(|i| nth(self.keys[1], 3 * block + i));
                    self.set_scales(bytes, draw);
                }
            }
        }
    }

    /// Replaces every `N` random bytes by the float that `element` makes of them.
    fn floats<const N: usize>(&self, out: &mut [u8], element: impl Fn([u8; N]) -> [u8; N]) {
        let (elements, _) = out.as_chunks_mut::<N>();
        elements.iter_mut().for_each(|x| *x = element(*x));
    }

    /// The element for a number that is uniform between −1 and 1, whose deviation is 1/√3.
    fn element(&self, uniform: f32) -> f32 {
        self.noise.mean + uniform * (self.noise.deviation * 3f32.sqrt())
    }

    /// Sets the scales of a block whose other bits are random already; `draw` is random.
    fn set_scales(&self, block: &mut [u8], draw: [u64; 3]) {
        let [choice, bits, more] = draw;
        let [d, min] = self.scales[choice as usize % SCALES];
        let negative = (choice >> 8 & 1) as u16;
        let signed_d = (d | negative << 15).to_le_bytes();
        match self.dtype {
            DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL => {
                block[..2].copy_from_slice(&signed_d);
            }
            DType::Q4_1 | DType::Q5_1 => put_pair(&mut block[..4], [d, min]),
            DType::Q4_K | DType::Q5_K => {
                put_pair(&mut block[..4], [d, min]);
                block[4..16].copy_from_slice(&scales_and_mins(bits));
            }
            DType::Q2_K => {
                block[..16].copy_from_slice(&nibble_scales(bits));
                put_pair(&mut block[80..84], [d, min]);
            }
            DType::Q3_K => {
                block[96..108].copy_from_slice(&six_bit_scales(bits, more));
                block[108..110].copy_from_slice(&signed_d);
            }
            DType::Q6_K => {
                let bytes = [bits.to_le_bytes(), more.to_le_bytes()];
                for (scale, byte) in block[192..208].iter_mut().zip(bytes.as_flattened()) {
                    *scale = byte_scale(*byte).to_le_bytes()[0];
                }
                block[208..210].copy_from_slice(&signed_d);
            }
            DType::IQ4_XS => {
                block[..2].copy_from_slice(&signed_d);
                block[2..8].copy_from_slice(&split_scales(bits));
            }
            DType::F32 | DType::F16 | DType::BF16 => {}
        }
    }
}

/// A number uniform in −1 … 1 of two random bytes, never an end of that range.
fn fraction(bytes: [u8; 2]) -> f32 {
    (f32::from(i16::from_le_bytes(bytes)) + 0.5) / 32_768.0
}

fn put_pair(out: &mut [u8], [d, min]: [u16; 2]) {
    out[..2].copy_from_slice(&d.to_le_bytes());
    out[2..].copy_from_slice(&min.to_le_bytes());
}

/// The 12 bytes of Q4_K and Q5_K: eight scales of 32 to 63, with minima that differ from them by at
/// most 1.
fn scales_and_mins(bits: u64) -> [u8; 12] {
    let six = |s: usize| (bits >> (6 * s)) as u8;
    let scale = |s: usize| 32 | (six(s) & 15) << 1 | (six(s) >> 4 & 1);
    let min = |s: usize| 32 | (six(s) & 15) << 1 | (six(s) >> 5 & 1);
    std::array::from_fn(|i| match i / 4 {
        0 => scale(i) | (scale(i + 4) >> 4) << 6,
        1 => min(i - 4) | (min(i) >> 4) << 6,
        _ => scale(i - 4) & 15 | (min(i - 4) & 15) << 4,
    })
}

/// The 16 bytes of Q2_K: scales of 8 to 15, with minima that differ from them by at most 1.
fn nibble_scales(bits: u64) -> [u8; 16] {
    std::array::from_fn(|g| {
        let four = (bits >> (4 * g)) as u8;
        let pair = 8 | (four & 3) << 1;
        (pair | four >> 2 & 1) | (pair | four >> 3 & 1) << 4
    })
}

/// A scale of ±16 to ±31 as Q3_K and IQ4_XS keep it, 32 too large, of five random bits.
fn excess_scale(five: u8) -> u8 {
    let size = 16 + (five & 15);
    if five & 16 == 0 { 32 + size } else { 32 - size }
}

/// The 12 bytes of Q3_K.
fn six_bit_scales(bits: u64, more: u64) -> [u8; 12] {
    let scale = |g: usize| excess_scale(([bits, more][g / 8] >> (5 * (g % 8))) as u8);
    std::array::from_fn(|i| match i {
        0..8 => scale(i) & 15 | (scale(i + 8) & 15) << 4,
        _ => (0..4).map(|s| (scale(4 * s + i - 8) >> 4) << (2 * s)).sum(),
    })
}

/// The 6 bytes of IQ4_XS: `scales_h`, then `scales_l`.
fn split_scales(bits: u64) -> [u8; 6] {
    let scale = |s: usize| excess_scale((bits >> (5 * s)) as u8);
    std::array::from_fn(|i| match i {
        0 | 1 => (0..4).map(|s| (scale(4 * i + s) >> 4) << (2 * s)).sum(),
        _ => scale(2 * i - 4) & 15 | (scale(2 * i - 3) & 15) << 4,
    })
}

/// A scale of Q6_K: ±64 to ±127.
fn byte_scale(random: u8) -> i8 {
    let size = 64 + (random & 63).cast_signed();
    if random & 128 == 0 { size } else { -size }
}

/// The variance of whole numbers that are uniform over `count` values.
fn variance(count: u32) -> f64 {
    (f64::from(count) * f64::from(count) - 1.0) / 12.0
}

/// The mean square of whole numbers uniform in `first` … `last`.
fn square(first: u32, last: u32) -> f64 {
    let mean = f64::from(first + last) / 2.0;
    mean * mean + variance(last + 1 - first)
}

/// Half the largest quant of a format with minima: the minimum, in scales, that centres it.
fn middle(dtype: DType) -> f64 {
    match dtype {
        DType::Q2_K => 1.5,
        DType::Q4_1 | DType::Q4_K => 7.5,
        DType::Q5_1 | DType::Q5_K => 15.5,
        _ => 0.0,
    }
}

/// The mean square of IQ4_NL's sixteen values.
const IQ4: f64 = 4548.0;

/// The mean square of an element in units of d², for quants and scales as they are drawn here.
fn mean_square(dtype: DType) -> f64 {
    // Quants from −n to n − 1 have a mean of −1/2.
    let off_centre = |count: u32| variance(count) + 0.25;
    // A minimum that misses its scale by −1, 0, 0 or 1 moves the whole group.
    let moved = 0.5 * middle(dtype) * middle(dtype);
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => 1.0,
        DType::Q4_0 => off_centre(16),
        DType::Q5_0 => off_centre(32),
        DType::Q8_0 => off_centre(256),
        DType::Q4_1 => variance(16),
        DType::Q5_1 => variance(32),
        DType::IQ4_NL => IQ4,
        DType::Q2_K => variance(4) * square(8, 15) + moved,
        DType::Q3_K => off_centre(8) * square(16, 31),
        DType::Q4_K => variance(16) * square(32, 63) + moved,
        DType::Q5_K => variance(32) * square(32, 63) + moved,
        DType::Q6_K => off_centre(64) * square(64, 127),
        DType::IQ4_XS => IQ4 * square(16, 31),
    }
}

/// The `index`-th number of the sequence that starts at `key`.
fn nth(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// SplitMix64's output function, a bijection.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
