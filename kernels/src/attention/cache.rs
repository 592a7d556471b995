//! How keys and values lie in the cache.
//!
//! Keys of 16 neighbouring positions share a page: element d of all of them, then element d + 1,
//! so that a vector loads one element of 16 positions. Values lie a row a position, filled up
//! with zeros to a multiple of 16 elements. Both are stored per KV head.

use crate::format::{self, Float};
use crate::isa::{Isa, Op};
use crate::layers::SHARE_FROM;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::{F32s, LANES, Simd, bf16_bits, padded, prefetch_line};
use bytemuck::Pod;
use half::f16;
use std::marker::PhantomData;
use std::ops::Range;

use super::BLOCK;
use super::codes::{Codes, Eight, Four, Three};

/// How the cache stores an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the field's own names")]
pub enum CacheType {
    F32,
    F16,
    Bf16,
    /// i8 with a half-precision scale for each 32 elements of a head.
    Q8_0,
    /// Codes of 8 bits with a half-precision scale for a head, for rotated heads of a tier.
    Code8,
    /// Codes of 4 bits likewise.
    Code4,
    /// Codes of 3 bits likewise.
    Code3,
}

/// A cache type that this engine does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown cache type {0:?}; known are f32, f16, bf16, q8_0")]
pub struct UnknownCacheType(pub String);

impl CacheType {
    /// Every type that keys and values can have as they are written; codes are for colder tiers.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];

    /// The spelling on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Code8 => "code8",
            Self::Code4 => "code4",
            Self::Code3 => "code3",
        }
    }

    /// Whether heads of `len` elements can be stored so.
    pub const fn fits(self, len: usize) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => true,
            Self::Q8_0 => len.is_multiple_of(32),
            Self::Code8 | Self::Code4 | Self::Code3 => len.is_multiple_of(LANES),
        }
    }
}

impl std::str::FromStr for CacheType {
    type Err = UnknownCacheType;

    fn from_str(name: &str) -> Result<Self, UnknownCacheType> {
        let known = Self::ALL.into_iter().find(|cache| cache.name() == name);
        known.ok_or_else(|| UnknownCacheType(name.to_owned()))
    }
}

impl std::fmt::Display for CacheType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The shape of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// How keys are stored.
    pub key_type: CacheType,
    /// How values are stored.
    pub value_type: CacheType,
    /// Heads.
    pub kv_heads: usize,
    /// Elements of a key.
    pub key_len: usize,
    /// Elements of a value.
    pub value_len: usize,
    /// Positions, a multiple of 64.
    pub capacity: usize,
}

struct Bytes<'a>(&'a mut [usize; 2], usize, usize);

impl KvVisitor for Bytes<'_> {
    fn visit<K: KvFormat>(self) {
        *self.0 = [K::key_page_bytes(self.1), K::value_row_bytes(self.2)];
    }
}

impl CacheShape {
    fn bytes_of(&self, kind: CacheType) -> [usize; 2] {
        let mut bytes = [0; 2];
        visit(kind, Bytes(&mut bytes, self.key_len, self.value_len));
        bytes
    }

    /// Bytes of the keys of 16 positions of a head.
    pub fn key_page_bytes(&self) -> usize {
        self.bytes_of(self.key_type)[0]
    }

    /// Bytes of the value of a position of a head.
    pub fn value_row_bytes(&self) -> usize {
        self.bytes_of(self.value_type)[1]
    }

    /// Bytes of the keys and values of 64 positions, all heads.
    pub fn page_bytes(&self) -> usize {
        let head = BLOCK / LANES * self.key_page_bytes() + BLOCK * self.value_row_bytes();
        self.kv_heads * head
    }

    /// Writes a key to the `place`th of `keys`, which begin with a page.
    fn write_key(&self, isa: Isa, keys: &mut [u8], place: usize, key: &[f32]) {
        let page = self.key_page_bytes();
        let to = &mut keys[place / LANES * page..][..page];
        visit(self.key_type, WriteCall { isa, slot: Some(place % LANES), from: key, to });
    }

    /// Writes a value to the `place`th of `values`.
    fn write_value(&self, isa: Isa, values: &mut [u8], place: usize, value: &[f32]) {
        let row = self.value_row_bytes();
        let to = &mut values[place * row..][..row];
        visit(self.value_type, WriteCall { isa, slot: None, from: value, to });
    }

    /// Bytes of all keys.
    pub fn key_bytes(&self) -> usize {
        self.kv_heads * self.capacity / LANES * self.key_page_bytes()
    }

    /// Bytes of all values.
    pub fn value_bytes(&self) -> usize {
        self.kv_heads * self.capacity * self.value_row_bytes()
    }
}

/// One layer's cache.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer<'a> {
    /// Its shape.
    pub shape: CacheShape,
    /// Keys, \[kv_heads\]\[capacity / 16\] pages.
    pub keys: &'a [u8],
    /// Values, \[kv_heads\]\[capacity\] rows.
    pub values: &'a [u8],
    /// Whether they are read past the caches, so that what else these hold may stay.
    pub past: bool,
}

impl<'a> KvLayer<'a> {
    /// Keys and values of a head at `positions`, keys in whole pages.
    pub fn at(&self, head: usize, positions: Range<usize>) -> [&'a [u8]; 2] {
        let (page, row) = (self.shape.key_page_bytes(), self.shape.value_row_bytes());
        let first = head * self.shape.capacity;
        let pages = (first + positions.start) / LANES..(first + positions.end).div_ceil(LANES);
        let keys = &self.keys[pages.start * page..pages.end * page];
        let rows = first + positions.start..first + positions.end;
        [keys, &self.values[rows.start * row..rows.end * row]]
    }

    /// Asks for the memory that will be written at `position`.
    pub fn expect(&self, position: usize) {
        for head in 0..self.shape.kv_heads {
            for memory in self.at(head, position..position + 1) {
                (0..memory.len().div_ceil(64)).for_each(|line| prefetch_line(memory, 0, line));
            }
        }
    }

    /// Reads the key and value of a head at `position` as floats.
    pub(super) fn read(
        &self,
        isa: Isa,
        head: usize,
        position: usize,
        key: &mut [f32],
        value: &mut [f32],
    ) {
        let [keys, values] = self.at(head, position..position + 1);
        let slot = Some(position % LANES);
        visit(self.shape.key_type, ReadCall { isa, slot, from: keys, to: key });
        visit(self.shape.value_type, ReadCall { isa, slot: None, from: values, to: value });
    }

    /// The keys of block `block` of a head.
    pub(super) fn key_pages(&self, head: usize, block: usize) -> &'a [u8] {
        let block_bytes = BLOCK / LANES * self.shape.key_page_bytes();
        let at = (head * self.shape.capacity / BLOCK + block) * block_bytes;
        &self.keys[at..at + block_bytes]
    }

    /// The values of block `block` of a head.
    pub(super) fn value_rows(&self, head: usize, block: usize) -> &'a [u8] {
        let block_bytes = BLOCK * self.shape.value_row_bytes();
        let at = (head * self.shape.capacity / BLOCK + block) * block_bytes;
        &self.values[at..at + block_bytes]
    }
}

/// One layer's cache, to write.
#[derive(Debug)]
pub struct KvLayerMut<'a> {
    /// Its shape.
    pub shape: CacheShape,
    /// Keys, \[kv_heads\]\[capacity / 16\] pages.
    pub keys: &'a mut [u8],
    /// Values, \[kv_heads\]\[capacity\] rows.
    pub values: &'a mut [u8],
}

impl KvLayerMut<'_> {
    /// Writes the key and value of every head at `position`: `key` is \[kv_heads\]\[key_len\],
    /// `value` \[kv_heads\]\[value_len\].
    ///
    /// # Panics
    /// If the shapes do not fit or the position is beyond the capacity.
    pub fn write(&mut self, isa: Isa, position: usize, key: &[f32], value: &[f32]) {
        let shape = self.shape;
        assert!(position < shape.capacity);
        assert_eq!(key.len(), shape.kv_heads * shape.key_len);
        assert_eq!(value.len(), shape.kv_heads * shape.value_len);
        let values = value.chunks_exact(shape.value_len);
        for (head, (key, value)) in key.chunks_exact(shape.key_len).zip(values).enumerate() {
            self.write_head(isa, head, position, key, value);
        }
    }

    /// As [`Self::write`] for positions from `start` on, \[n\]\[kv_heads\]\[key_len\] and likewise,
    /// on the pool's threads; `place` says where a position lies in this cache.
    ///
    /// # Panics
    /// As [`Self::write`].
    pub fn write_rows(
        &mut self,
        isa: Isa,
        pool: &Pool,
        (start, place): (usize, &(dyn Fn(usize) -> usize + Sync)),
        (keys, values): (&[f32], &[f32]),
    ) {
        let shape = self.shape;
        let (key_row, value_row) =
            (shape.kv_heads * shape.key_len, shape.kv_heads * shape.value_len);
        let n = keys.len() / key_row;
        assert_eq!((keys.len(), values.len()), (n * key_row, n * value_row));
        if n < SHARE_FROM {
            let rows = keys.chunks_exact(key_row).zip(values.chunks_exact(value_row));
            return (start..)
                .zip(rows)
                .for_each(|(position, (key, value))| self.write(isa, place(position), key, value));
        }
        let (page, row) = (shape.key_page_bytes(), shape.value_row_bytes());
        let (pages, rows) = (shape.capacity / LANES * page, shape.capacity * row);
        let (to_keys, to_values) = (Shared::new(self.keys), Shared::new(self.values));
        pool.for_each(2 * shape.kv_heads, &|piece| {
            let head = piece / 2;
            if piece % 2 == 0 {
                // SAFETY: the keys of a head are one piece, which is given to one thread.
                let to = unsafe { to_keys.range(head * pages, pages) };
                for (position, key) in (start..).zip(keys.chunks_exact(key_row)) {
                    let key = &key[head * shape.key_len..(head + 1) * shape.key_len];
                    shape.write_key(isa, to, place(position), key);
                }
            } else {
                // SAFETY: so are its values.
                let to = unsafe { to_values.range(head * rows, rows) };
                for (position, value) in (start..).zip(values.chunks_exact(value_row)) {
                    let value = &value[head * shape.value_len..(head + 1) * shape.value_len];
                    shape.write_value(isa, to, place(position), value);
                }
            }
        });
    }

    /// Writes the key and value of one head.
    pub(super) fn write_head(
        &mut self,
        isa: Isa,
        head: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let place = head * self.shape.capacity + position;
        self.shape.write_key(isa, self.keys, place, key);
        self.shape.write_value(isa, self.values, place, value);
    }
}

/// Reads a key from a slot of a page, or a value from a row; only of types without a scale of
/// their own behind the elements.
struct ReadCall<'a> {
    isa: Isa,
    slot: Option<usize>,
    from: &'a [u8],
    to: &'a mut [f32],
}

struct Read<'a, K>(ReadCall<'a>, PhantomData<K>);

impl KvVisitor for ReadCall<'_> {
    fn visit<K: KvFormat>(self) {
        self.isa.run(Read::<K>(self, PhantomData));
    }
}

impl<K: KvFormat> Op for Read<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ReadCall { slot, from, to, .. } = self.0;
        let len = to.len();
        let mut lanes = [0.0; LANES];
        match slot {
            Some(slot) => {
                for (d, to) in to.iter_mut().enumerate() {
                    simd.store(K::load_key(simd, from, len, d), &mut lanes);
                    *to = lanes[slot];
                }
            }
            None => {
                for (part, to) in to.chunks_mut(LANES).enumerate() {
                    simd.store(K::load_value(simd, from, len, part), &mut lanes);
                    to.copy_from_slice(&lanes[..to.len()]);
                }
            }
        }
    }
}

/// Writes a key to a slot of a page, or a value to a row.
struct WriteCall<'a> {
    isa: Isa,
    slot: Option<usize>,
    from: &'a [f32],
    to: &'a mut [u8],
}

struct Write<'a, K>(WriteCall<'a>, PhantomData<K>);

impl KvVisitor for WriteCall<'_> {
    fn visit<K: KvFormat>(self) {
        self.isa.run(Write::<K>(self, PhantomData));
    }
}

impl<K: KvFormat> Op for Write<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let WriteCall { slot, from, to, .. } = self.0;
        // A key's elements lie 16 apart, a value's side by side.
        let (stride, offset) = slot.map_or((1, 0), |slot| (LANES, slot));
        K::write(simd, from, to, stride, offset);
    }
}

/// How a cache type lays out its elements: one run of elements, `stride` apart.
pub(super) trait KvFormat: 'static {
    /// Bytes of 16 keys.
    fn key_page_bytes(key_len: usize) -> usize;
    /// Bytes of a value.
    fn value_row_bytes(value_len: usize) -> usize;
    /// Element `d` of the 16 keys in a page.
    fn load_key<S: Simd>(simd: S, page: &[u8], key_len: usize, d: usize) -> S::F;
    /// Elements 16·part … of a value, zeros behind its end.
    fn load_value<S: Simd>(simd: S, row: &[u8], value_len: usize, part: usize) -> S::F;
    /// What the sums of products with the 16 keys of a page are yet to be multiplied with, if
    /// anything.
    #[inline(always)]
    fn key_scale<S: Simd>(simd: S, page: &[u8], key_len: usize) -> Option<S::F> {
        let _ = (simd, page, key_len);
        None
    }
    /// What the elements of the values in 16 rows are yet to be multiplied with, if anything.
    #[inline(always)]
    fn value_scales<S: Simd>(simd: S, rows: &[u8], value_len: usize) -> Option<S::F> {
        let _ = (simd, rows, value_len);
        None
    }
    /// Writes elements `offset + i·stride`.
    fn write<S: Simd>(simd: S, from: &[f32], to: &mut [u8], stride: usize, offset: usize);
}

/// A computation over a cache type.
pub(super) trait KvVisitor {
    /// For the type `K`.
    fn visit<K: KvFormat>(self);
}

/// Calls `visitor` for `kind`: the only list of cache formats.
pub(super) fn visit<V: KvVisitor>(kind: CacheType, visitor: V) {
    match kind {
        CacheType::F32 => visitor.visit::<Floats<format::F32>>(),
        CacheType::F16 => visitor.visit::<Floats<format::F16>>(),
        CacheType::Bf16 => visitor.visit::<Floats<format::Bf16>>(),
        CacheType::Q8_0 => visitor.visit::<Q8>(),
        CacheType::Code8 => visitor.visit::<Codes<Eight>>(),
        CacheType::Code4 => visitor.visit::<Codes<Four>>(),
        CacheType::Code3 => visitor.visit::<Codes<Three>>(),
    }
}

/// Elements of a float type, side by side.
struct Floats<F>(PhantomData<F>);

/// Float types that can be written.
trait WriteFloat: Float {
    /// Rounds 16 floats to nearest even and hands out their bytes.
    fn encode<S: Simd>(simd: S, x: &F32s) -> [Self::Element; LANES];
}

impl WriteFloat for format::F32 {
    #[inline(always)]
    fn encode<S: Simd>(_simd: S, x: &F32s) -> [[u8; 4]; LANES] {
        x.map(f32::to_le_bytes)
    }
}

impl WriteFloat for format::F16 {
    #[inline(always)]
    fn encode<S: Simd>(simd: S, x: &F32s) -> [[u8; 2]; LANES] {
        let mut bits = [0; LANES];
        simd.store_f16(simd.load(x), &mut bits);
        bits.map(u16::to_le_bytes)
    }
}

impl WriteFloat for format::Bf16 {
    #[inline(always)]
    fn encode<S: Simd>(_simd: S, x: &F32s) -> [[u8; 2]; LANES] {
        x.map(|x| bf16_bits(x).to_le_bytes())
    }
}

impl<F: WriteFloat> KvFormat for Floats<F> {
    fn key_page_bytes(key_len: usize) -> usize {
        LANES * key_len * size_of::<F::Element>()
    }
    fn value_row_bytes(value_len: usize) -> usize {
        value_len.next_multiple_of(LANES) * size_of::<F::Element>()
    }
    #[inline(always)]
    fn load_key<S: Simd>(simd: S, page: &[u8], key_len: usize, d: usize) -> S::F {
        let (vectors, _) = format::blocks::<F::Element>(page).as_chunks::<LANES>();
        // Checked with this length once a page, and not once an element.
        F::load(simd, &vectors[..key_len][d])
    }
    #[inline(always)]
    fn load_value<S: Simd>(simd: S, row: &[u8], _value_len: usize, part: usize) -> S::F {
        let (vectors, _) = format::blocks::<F::Element>(row).as_chunks::<LANES>();
        F::load(simd, &vectors[part])
    }
    #[inline(always)]
    fn write<S: Simd>(simd: S, from: &[f32], to: &mut [u8], stride: usize, offset: usize) {
        let to: &mut [F::Element] = bytemuck::cast_slice_mut(to);
        for (part, from) in from.chunks(LANES).enumerate() {
            let encoded = F::encode(simd, &padded(from));
            let at = LANES * part * stride + offset;
            for (i, element) in encoded.iter().take(from.len()).enumerate() {
                to[at + i * stride] = *element;
            }
        }
    }
}

/// i8 quants of all elements, then the half-precision scales, one for each 32 elements.
struct Q8;

impl Q8 {
    /// Vector `index` of elements of type `E`.
    #[inline(always)]
    fn lanes<E: Pod>(bytes: &[u8], index: usize) -> &[E; LANES] {
        &format::blocks::<E>(bytes).as_chunks::<LANES>().0[index]
    }
}

impl KvFormat for Q8 {
    fn key_page_bytes(key_len: usize) -> usize {
        LANES * (key_len + key_len / 32 * 2)
    }
    fn value_row_bytes(value_len: usize) -> usize {
        value_len + value_len / 32 * 2
    }
    #[inline(always)]
    fn load_key<S: Simd>(simd: S, page: &[u8], key_len: usize, d: usize) -> S::F {
        let (quants, scales) = page.split_at(LANES * key_len);
        let q = simd.load_i8(Self::lanes::<i8>(quants, d));
        let scale = simd.load_f16(&Self::lanes::<[u8; 2]>(scales, d / 32).map(u16::from_le_bytes));
        simd.mul(q, scale)
    }
    #[inline(always)]
    fn load_value<S: Simd>(simd: S, row: &[u8], value_len: usize, part: usize) -> S::F {
        let (quants, scales) = row.split_at(value_len);
        let q = simd.load_i8(Self::lanes::<i8>(quants, part));
        let scale = [scales[part / 2 * 2], scales[part / 2 * 2 + 1]];
        let scale = simd.load_f16(&[u16::from_le_bytes(scale); LANES]);
        simd.mul(q, scale)
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "quants are held within ±127")]
    fn write<S: Simd>(_simd: S, from: &[f32], to: &mut [u8], stride: usize, offset: usize) {
        let (quants, scales) = to.split_at_mut(from.len() * stride);
        let mut quants = quants.iter_mut().skip(offset).step_by(stride);
        let mut scales = scales.chunks_exact_mut(2).skip(offset).step_by(stride);
        for block in from.chunks_exact(32) {
            let largest = block.iter().fold(0.0_f32, |m, x| if x.abs() > m { x.abs() } else { m });
            let finite = block.iter().all(|x| x.is_finite());
            let scale = if finite { largest / 127.0 } else { f32::NAN };
            let half = f16::from_f32_const(scale);
            if let Some(slot) = scales.next() {
                slot.copy_from_slice(&half.to_bits().to_le_bytes());
            }
            let stored = half.to_f32_const();
            let inverse = if stored > 0.0 { 1.0 / stored } else { 0.0 };
            for x in block {
                let q = (x * inverse).round_ties_even().clamp(-127.0, 127.0);
                if let Some(slot) = quants.next() {
                    *slot = (q as i8).cast_unsigned();
                }
            }
        }
    }
}
