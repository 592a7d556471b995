//! Every method of every token against the scalar reference, with `==` on bits. Of a NaN only
//! that it is one is compared: payloads differ between instructions and nothing reads them.

use super::*;
use crate::isa::Isa;
use half::f16;

/// What a token computed, as named words; floats by their bits.
#[derive(Default)]
struct Log(Vec<(String, Vec<u32>)>);

impl Log {
    fn ints(&mut self, name: impl Into<String>, values: impl IntoIterator<Item = i32>) {
        let words = values.into_iter().map(i32::cast_unsigned).collect();
        self.0.push((name.into(), words));
    }

    fn floats(&mut self, name: impl Into<String>, values: impl IntoIterator<Item = f32>) {
        let bits = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
        self.0.push((name.into(), values.into_iter().map(bits).collect()));
    }

    fn vector<S: Simd>(&mut self, name: impl Into<String>, simd: S, v: S::F) {
        let mut lanes = [0.0; LANES];
        simd.store(v, &mut lanes);
        self.floats(name, lanes);
    }

    fn vector_int<S: Simd>(&mut self, name: impl Into<String>, simd: S, v: S::I) {
        let mut lanes = [0; LANES];
        simd.store_int(v, &mut lanes);
        self.ints(name, lanes);
    }
}

/// The first entry in which two logs differ, and its values there.
fn difference(expected: &Log, found: &Log) -> Option<String> {
    assert_eq!(expected.0.len(), found.0.len(), "logs of the same computation");
    for ((name, expected), (_, found)) in expected.0.iter().zip(&found.0) {
        assert_eq!(expected.len(), found.len(), "{name}");
        if let Some(at) = expected.iter().zip(found).position(|(a, b)| a != b) {
            return Some(format!("{name}[{at}]: {:#x} is {:#x}", expected[at], found[at]));
        }
    }
    None
}

/// Runs `op` on every token and compares with the reference.
fn check<O: Op<Output = Log> + Copy>(op: O) {
    let expected = Isa::SCALAR.run(op);
    assert!(!expected.0.is_empty());
    for isa in Isa::available() {
        let difference = difference(&expected, &isa.run(op));
        assert_eq!(difference, None, "{}", isa.description());
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included; one of the two in a quarter of all cases.
    fn within(&mut self, low: i32, high: i32) -> i32 {
        let [a, b] = [self.next(), self.next()];
        let span = u64::from(high.abs_diff(low)) + 1;
        let offset = match a % 8 {
            0 => 0,
            1 => span - 1,
            _ => b % span,
        };
        i32::try_from(i64::from(low) + offset.cast_signed()).expect("within i32")
    }

    fn byte(&mut self, low: i32, high: i32) -> u8 {
        self.within(low, high).to_le_bytes()[0]
    }

    fn short(&mut self, low: i32, high: i32) -> i16 {
        i16::try_from(self.within(low, high)).expect("within i16")
    }

    fn float(&mut self) -> f32 {
        f32::from_bits(self.next().to_le_bytes()[..4].try_into().map(u32::from_le_bytes).unwrap())
    }

    fn array<T, const N: usize>(&mut self, mut f: impl FnMut(&mut Self) -> T) -> [T; N] {
        std::array::from_fn(|_| f(self))
    }
}

/// Floats at which instructions could differ: zeros, subnormals, ties, limits, infinities, NaN.
fn special_floats() -> Vec<f32> {
    let positive = [
        0.0,
        f32::from_bits(1),
        f32::from_bits(0x007f_ffff),
        f32::MIN_POSITIVE,
        1.0e-30,
        f32::EPSILON,
        0.5,
        1.0 - f32::EPSILON / 2.0,
        1.0,
        1.0 + f32::EPSILON,
        1.5,
        2.5,
        3.0,
        16_777_215.0,
        16_777_217.0,
        1.0e30,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
    ];
    positive.into_iter().flat_map(|x| [x, -x]).collect()
}

/// Integers of at most 24 bits in lanes.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
fn load_int<S: Simd>(simd: S, x: &[i32; LANES]) -> S::I {
    simd.round_to_int(simd.load(&x.map(|x| x as f32)))
}

/// 16 lanes of `values` from `start` on, around its end.
fn lanes<T: Copy>(values: &[T], start: usize) -> [T; LANES] {
    std::array::from_fn(|i| values[(start + i) % values.len()])
}

#[derive(Clone, Copy)]
struct Arithmetic<'a>(&'a [[F32s; 3]]);

impl Op for Arithmetic<'_> {
    type Output = Log;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Log {
        let mut log = Log::default();
        for (at, [x, y, z]) in self.0.iter().enumerate() {
            let [a, b, c] = [x, y, z].map(|x| s.load(x));
            let mut entry = |name: &str, v| log.vector(format!("{name} of input {at}"), s, v);
            entry("load", a);
            entry("splat", s.splat(x[0]));
            entry("add", s.add(a, b));
            entry("sub", s.sub(a, b));
            entry("mul", s.mul(a, b));
            entry("div", s.div(a, b));
            entry("fma", s.fma(a, b, c));
            entry("max", s.max(a, b));
            entry("min", s.min(a, b));
            entry("abs", s.abs(a));
            entry("copysign", s.copysign(a, b));
            entry("select_gt", s.select_gt(a, b, c, a));
            log.floats("reduce_add", [s.reduce_add(a)]);
            if !x.iter().any(|x| x.is_nan()) {
                log.floats("reduce_max", [s.reduce_max(a)]);
            }
        }
        log
    }
}

#[test]
fn float_arithmetic() {
    let special = special_floats();
    let mut inputs = Vec::new();
    for start in 0..special.len() {
        for other in 0..special.len() {
            let third = 7 * start + 3 * other;
            inputs.push([start, other, third].map(|at| lanes(&special, at)));
        }
    }
    let mut random = Random(1);
    for _ in 0..2000 {
        inputs.push(random.array(|r| r.array(Random::float)));
        // Products near −c, where rounding once and rounding twice differ.
        let a: F32s = random.array(|r| 1.0 + r.float().abs().fract());
        let b: F32s = random.array(|r| 1.0 + r.float().abs().fract());
        inputs.push([a, b, std::array::from_fn(|i| -(a[i] * b[i]))]);
    }
    check(Arithmetic(&inputs));
}

#[test]
fn sums_follow_the_canonical_tree_and_not_another_order() {
    let x: F32s = std::array::from_fn(|i| 1.0 + [1.0e-7, 3.0e8, -3.0e8, 0.25][i % 4]);
    let lane = |i: usize| ((x[i] + x[i + 8]) + (x[i + 4] + x[i + 12])).to_bits();
    let [a, b, c, d] = [0, 1, 2, 3].map(lane).map(f32::from_bits);
    let tree = (a + c) + (b + d);
    assert_eq!(Scalar.reduce_add(x).to_bits(), tree.to_bits());
    assert_ne!(tree.to_bits(), x.iter().sum::<f32>().to_bits());
}

#[derive(Clone, Copy)]
struct Conversions<'a> {
    floats: &'a [F32s],
    ints: &'a [[i32; LANES]],
}

impl Op for Conversions<'_> {
    type Output = Log;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Log {
        let mut log = Log::default();
        for first in (0..=u16::MAX).step_by(LANES) {
            let bits: [u16; LANES] = std::array::from_fn(|i| first + i.to_le_bytes()[0] as u16);
            log.vector(format!("load_f16 {first:#x}"), s, s.load_f16(&bits));
            log.vector(format!("load_bf16 {first:#x}"), s, s.load_bf16(&bits));
            let [low, high] = [0, 8].map(|at| std::array::from_fn(|i| bits[at + i]));
            log.floats("f16x8", s.f16x8(&low).into_iter().chain(s.f16x8(&high)));
        }
        for first in (-128..=127_i8).step_by(LANES) {
            let bytes = std::array::from_fn(|i| first + i.to_le_bytes()[0].cast_signed());
            log.vector("load_i8", s, s.load_i8(&bytes));
        }
        let levels = std::array::from_fn(|i| f32::from(i.to_le_bytes()[0]) - 7.5);
        for byte in 0..=255_u8 {
            let codes: [u8; 8] =
                std::array::from_fn(|i| byte.wrapping_mul(2 * i.to_le_bytes()[0] + 1));
            log.vector(format!("levels16 {byte}"), s, s.levels16(&codes, &levels));
            let codes = std::array::from_fn(|i| codes[i]);
            log.vector(format!("levels8 {byte}"), s, s.levels8(&codes, &levels));
        }
        for first in (-126..=112_i32).step_by(LANES - 1) {
            let n = std::array::from_fn(|i| first + i32::from(i.to_le_bytes()[0]));
            log.vector("pow2", s, s.pow2(load_int(s, &n.map(|n: i32| n.min(127)))));
        }
        for (at, floats) in self.floats.iter().enumerate() {
            log.vector_int(format!("round input {at}"), s, s.round_to_int(s.load(floats)));
        }
        for (at, pair) in self.ints.windows(2).enumerate() {
            let [a, b] = [pair[0], pair[1]];
            let large = s.splat_int(a[0]);
            let mixed = s.sub_int(large, load_int(s, &b.map(|x| x >> 8)));
            log.vector_int(format!("splat_int {at}"), s, large);
            log.vector_int(format!("sub_int {at}"), s, mixed);
            log.vector(format!("int_to_float {at}"), s, s.int_to_float(mixed));
            log.ints(format!("reduce_int {at}"), [s.reduce_int(mixed)]);
        }
        log
    }
}

#[test]
fn conversions_and_integers() {
    let mut random = Random(2);
    let limit = 1_073_741_824.0;
    let mut floats: Vec<F32s> = vec![
        [
            0.5,
            1.5,
            2.5,
            3.5,
            -0.5,
            -1.5,
            -2.5,
            -3.5,
            0.0,
            -0.0,
            1e-40,
            -1e-40,
            0.499_999_97,
            -0.499_999_97,
            limit,
            -limit,
        ],
        [
            8_388_607.5,
            8_388_606.5,
            -8_388_607.5,
            -8_388_606.5,
            4_194_303.8,
            4_194_304.5,
            4_194_305.5,
            16_777_217.0,
            0.500_000_06,
            1.499_999_9,
            126.5,
            127.5,
            -126.5,
            -127.5,
            1e9,
            -1e9,
        ],
    ];
    for _ in 0..500 {
        floats.push(random.array(|r| r.float() % limit).map(|x| if x.is_nan() { 0.0 } else { x }));
        floats.push(random.array(|r| r.short(-30_000, 30_000).into()).map(|x: f32| x / 2.0));
    }
    let mut ints = vec![lanes(&[i32::MIN, i32::MAX, 0, -1, 1, 16_777_217, -16_777_219], 0)];
    for _ in 0..500 {
        ints.push(random.array(|r| r.within(i32::MIN, i32::MAX)));
    }
    check(Conversions { floats: &floats, ints: &ints });
}

#[derive(Clone, Copy)]
struct ToHalf<'a>(&'a [F32s]);

impl Op for ToHalf<'_> {
    type Output = Log;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Log {
        let mut log = Log::default();
        for (at, x) in self.0.iter().enumerate() {
            let mut bits = [0; LANES];
            s.store_f16(s.load(x), &mut bits);
            log.floats(
                format!("store_f16 of input {at}"),
                bits.map(|bits| f16::from_bits(bits).to_f32()),
            );
        }
        log
    }
}

/// Every half, every midpoint of two and its neighbours: where rounding changes its mind.
#[test]
fn halves_round_to_nearest_even_at_every_boundary() {
    let mut values = special_floats();
    for bits in 0..0x7c00_u16 {
        let low = f16::from_bits(bits).to_f32();
        // The step beyond the largest half is the one to 2^16, which becomes infinity.
        let high = if bits == 0x7bff { 65_536.0 } else { f16::from_bits(bits + 1).to_f32() };
        let middle = low + (high - low) / 2.0;
        values.extend([low, middle.next_down(), middle, middle.next_up()].map(|x| -x));
        values.extend([low, middle.next_down(), middle, middle.next_up()]);
    }
    let mut random = Random(3);
    values.extend((0..20_000).map(|_| random.float()));
    let rows: Vec<F32s> = (0..values.len()).step_by(LANES).map(|at| lanes(&values, at)).collect();
    check(ToHalf(&rows));
    let mut bits = [0; LANES];
    Scalar.store_f16([65_519.996; LANES], &mut bits);
    assert_eq!(bits, [0x7bff; LANES]);
    Scalar.store_f16([65_520.0; LANES], &mut bits);
    assert_eq!(bits, [0x7c00; LANES]);
}

#[derive(Clone, Copy)]
struct Bytes(u64);

impl Op for Bytes {
    type Output = Log;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Log {
        let mut log = Log::default();
        let mut random = Random(self.0);
        for first in (0..=255_u8).step_by(32) {
            let index = std::array::from_fn(|i| first + i.to_le_bytes()[0]);
            let table = random.array(|r| r.byte(-128, 127).cast_signed());
            log.ints("lookup32", s.lookup32(&index, &table).map(i32::from));
        }
        for _ in 0..200 {
            let packed = random.array(|r| r.byte(0, 255));
            log.ints("nibbles32", s.nibbles32(&packed).map(i32::from));
            let bytes = random.array(|r| r.byte(0, 255));
            log.ints("widen_twice", s.widen_twice(bytes).map(i32::from));
            let bits = random.array(|r| r.byte(0, 255));
            let yes = random.byte(0, 255);
            log.ints("bits32 random", s.bits32(bits, yes).map(i32::from));
        }
        for bit in 0..32 {
            let bits = (1_u32 << bit).to_le_bytes();
            log.ints(format!("bits32 {bit}"), s.bits32(bits, 16).map(i32::from));
        }
        log
    }
}

#[test]
fn bytes_are_looked_up_spread_and_widened() {
    check(Bytes(4));
    assert_eq!(Scalar.bits32([1, 0, 0, 0x80], 16)[..2], [16, 0]);
    assert_eq!(Scalar.bits32([1, 0, 0, 0x80], 16)[30..], [0, 16]);
}

/// Weights, activations and scales as large as any format makes them.
#[derive(Clone, Copy)]
struct Dots {
    seed: u64,
    /// The largest unsigned weight.
    max: i32,
    /// The largest scale.
    scale: i32,
}

impl Op for Dots {
    type Output = Log;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Log {
        let mut log = Log::default();
        let mut random = Random(self.seed);
        for round in 0..60 {
            // The first rounds are all extremes of one sign, the others mixed.
            let low = if round < 4 { self.max } else { 0 };
            let (x_low, x_high) = [(-127, -127), (127, 127), (-127, 127)][(round % 4).min(2)];
            let w: [u8; 256] = random.array(|r| r.byte(low, self.max));
            let bottom = if self.max == 127 { -128 } else { -self.max };
            let top = if round < 4 { bottom } else { self.max };
            let signed: [u8; 256] = random.array(|r| r.byte(bottom, top));
            let x: [i8; 256] = random.array(|r| r.byte(x_low, x_high).cast_signed());
            let scales: [i16; 16] = random.array(|r| r.short(-self.scale, self.scale));
            let pairs: [i16; 16] = std::array::from_fn(|i| scales[i / 2]);
            let sum = |v| [s.reduce_int(v)];
            log.ints("dot256_u8", sum(s.dot256_u8::<false>(&w, &x, &scales)));
            log.ints("dot256_u8 paired", sum(s.dot256_u8::<true>(&w, &x, &pairs)));
            log.ints("dot256_i8", sum(s.dot256_i8::<false>(&signed, &x, &scales)));
            log.ints("dot256_i8 paired", sum(s.dot256_i8::<true>(&signed, &x, &pairs)));
            log.ints("dot32x8_u8", s.dot32x8_u8(&w, &x));
            log.ints("dot32x8_i8", s.dot32x8_i8(&signed, &x));
            let mins: [i16; 16] = random.array(|r| r.short(-4096, 4096));
            let sums: [i16; 16] = random.array(|r| r.short(-2032, 2032));
            log.ints("dot16", [s.dot16(&mins, &sums)]);
            let (parts, _) = w.as_chunks::<64>();
            let added = parts
                .iter()
                .zip(x.as_chunks::<64>().0)
                .fold(s.splat_int(3), |acc, (w, x)| s.add_dots(acc, s.load_bytes(w), x));
            let mut lanes = [0; LANES];
            s.store_int(added, &mut lanes);
            log.ints("add_dots", lanes);
        }
        log
    }
}

#[test]
fn dot_products_of_one_row() {
    // 256 · 128 · 127 · 516 is just below 2^31, and so is 256 · 127 · 32767 twice.
    for (seed, max, scale) in [(5, 127, 516), (6, 63, 128), (7, 15, 63), (8, 1, 32_767)] {
        check(Dots { seed, max, scale });
    }
}

/// Sums of `adds` products of weights up to `max`, and of biased weights; scaled and not.
#[derive(Clone, Copy)]
struct Products {
    max: i32,
    adds: usize,
    scale: i32,
}

impl Op for Products {
    type Output = Log;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Log {
        let mut log = Log::default();
        let mut random = Random(9);
        for round in 0..12 {
            let low = if round < 3 { self.max } else { 0 };
            let (x_low, x_high) = [(-127, -127), (127, 127), (-127, 127)][round % 3];
            let x: [[u8; 4]; 8] = random.array(|r| r.array(|r| r.byte(x_low, x_high)));
            let scales: [i8; 16] =
                random.array(|r| r.byte(-self.scale, self.scale - 1).cast_signed());
            let scale = s.scale(&scales);
            let mut sums = s.start(0);
            for x in &x[..self.adds] {
                let w: [u8; 64] = random.array(|r| r.byte(low, self.max));
                sums = s.add_products(sums, s.load_bytes(&w), i32::from_le_bytes(*x));
            }
            log.vector_int("sum", s, s.sum(sums));
            log.vector_int("sum_scaled", s, s.sum_scaled(sums, scale));
            // One product of biased bytes at a time fits; wide sums start without the bias.
            let x = x[0];
            let total: i32 = x.iter().map(|x| i32::from(x.cast_signed())).sum();
            let w: [u8; 64] = random.array(|r| r.byte(if round < 3 { 0 } else { -128 }, 127));
            let w = w.map(|w| w ^ 128);
            let sums = s.start(if S::WIDE { -128 * total } else { 0 });
            let sums = s.add_biased(sums, s.load_bytes(&w), i32::from_le_bytes(x));
            log.vector_int("biased", s, s.sum(sums));
            log.vector_int("biased, scaled", s, s.sum_scaled(sums, scale));
        }
        log
    }
}

#[test]
fn products_of_sixteen_rows() {
    for (max, adds) in [(15, 8), (31, 4), (63, 2), (127, 1), (3, 8), (7, 1)] {
        check(Products { max, adds, scale: 128 });
    }
}

/// Bits of bytes, table look-ups, pairs and shifts.
#[derive(Clone, Copy)]
struct Turned;

impl Op for Turned {
    type Output = Log;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Log {
        let mut log = Log::default();
        let mut random = Random(10);
        for _ in 0..50 {
            let x: [u8; 64] = random.array(|r| r.byte(0, 255));
            let x = s.load_bytes(&x);
            let nibbles = s.bits(x, 4, 15);
            // Bytes are looked at four at a time through a product with one of them.
            let mut bytes = |name: &str, v: S::B| {
                for i in 0..4 {
                    let one = i32::from_le_bytes(std::array::from_fn(|j| u8::from(i == j)));
                    let sum = s.sum(s.add_products(s.start(0), v, one));
                    log.vector_int(format!("{name}, byte {i}"), s, sum);
                }
            };
            for (shift, mask) in [(0, 15), (4, 15), (-4, 16), (3, 16), (-4, 48), (6, 3), (7, 1)] {
                bytes(&format!("bits {shift} {mask}"), s.bits(x, shift, mask));
            }
            let table: [u8; 16] = random.array(|r| r.byte(0, 255));
            bytes("lookup", s.lookup(nibbles, &table));
            let turned = [nibbles, s.bits(x, 0, 15), s.bits(x, 3, 16), s.bits(x, 6, 3)];
            for (j, v) in s.interleave(turned).into_iter().enumerate() {
                bytes(&format!("interleave {j}"), v);
            }
            // Such products count as bytes only below 128.
            bytes("sub_bytes", s.bits(s.sub_bytes(x, 128), 0, 127));
            let scales: [i8; 16] = random.array(|r| r.byte(-128, 127).cast_signed());
            for (half, v) in s.scale_bytes(x, &scales).into_iter().enumerate() {
                bytes(&format!("scale_bytes {half}"), s.bits(v, 0, 127));
                bytes(&format!("scale_bytes {half}, top"), s.bits(v, 7, 1));
            }
            bytes("or", s.or(nibbles, s.bits(x, 0, 0x60)));
            let first: [i8; 16] = random.array(|r| r.byte(-128, 127).cast_signed());
            let second: [i8; 16] = random.array(|r| r.byte(-128, 127).cast_signed());
            let acc = load_int(s, &random.array(|r| r.within(-1_000_000, 1_000_000)));
            let x: [i16; 2] = random.array(|r| r.short(-16_256, 16_256));
            let pair = s.pair(&first, &second);
            let sum = s.add_pairs(acc, pair, bytemuck::cast(x));
            log.vector_int("add_pairs", s, sum);
            log.vector_int("add_int", s, s.add_int(acc, sum));
            for shift in [0, 1, 2, 5, 7] {
                log.vector_int("shift_left", s, s.shift_left(acc, shift));
            }
        }
        log
    }
}

#[test]
fn bytes_pairs_and_shifts() {
    check(Turned);
}

#[test]
fn the_comparison_sees_a_single_bit_and_a_nan() {
    let log = |x: f32, n: i32| {
        let mut log = Log::default();
        log.floats("x", [1.0, x]);
        log.ints("n", [n]);
        log
    };
    let expected = log(0.0, 3);
    assert_eq!(difference(&expected, &log(0.0, 3)), None);
    assert_eq!(difference(&expected, &log(-0.0, 3)).as_deref(), Some("x[1]: 0x0 is 0x80000000"));
    assert!(difference(&expected, &log(f32::from_bits(1), 3)).is_some());
    assert!(difference(&expected, &log(f32::NAN, 3)).is_some());
    assert!(difference(&expected, &log(0.0, 2)).is_some());
    assert_eq!(difference(&log(f32::NAN, 3), &log(-f32::NAN, 3)), None);
}
