//! Damages a valid file in more than 100,000 deterministic ways. No result may be a panic, take
//! more memory than G4 of SPEC.md allows, or take long; a file that is still accepted must keep
//! the reader's promises.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use aios_contract::DType;
use aios_engine::gguf::{Array, Gguf, Metadata, TensorSpec, Value, Writer};

/// Counts the bytes that each thread holds, and the most it ever held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every request is passed on to `System` unchanged; counting does not allocate, because
// the counters are constant-initialised and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from `alloc` above, hence from `System`, with this `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What G4 allows for a header that is no longer than `len` bytes.
fn heap_bytes_max(len: usize) -> isize {
    5 * len as isize + 1024
}

/// Parses `file` and checks all that holds for any input.
fn check(file: &[u8]) -> bool {
    let held = HELD.get();
    PEAK.set(held);
    let result = Gguf::parse(file);
    let taken = PEAK.get() - held;
    assert!(taken <= heap_bytes_max(file.len()), "{taken} bytes for a file of {}", file.len());
    match result {
        Ok(parsed) => {
            check_promises(&parsed, file);
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.chars().all(|c| !c.is_control()), "{text:?}");
            false
        }
    }
}

fn check_promises(parsed: &Gguf, file: &[u8]) {
    assert!(parsed.alignment >= 8 && parsed.alignment.is_power_of_two());
    let mut ranges: Vec<_> = parsed.tensors.iter().map(|tensor| tensor.range.clone()).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for tensor in &parsed.tensors {
        assert_eq!(parsed.tensor(&tensor.name), Some(tensor));
        assert_eq!(tensor.range.start % parsed.alignment, 0);
        let blocks = tensor.elements() / tensor.dtype.block_len() as u64;
        let data = tensor.data(file).expect("the range lies in the file");
        assert_eq!(data.len() as u64, blocks * tensor.dtype.block_bytes() as u64);
    }
    for (key, value) in parsed.metadata.iter() {
        assert_eq!(format!("{:?}", parsed.metadata.get(key)), format!("{:?}", Some(value)));
    }
}

/// A file of some 900 bytes with every metadata type, nesting, and three tensors.
fn sample() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("general.alignment", 8u32);
    metadata.set("u8", 1u8);
    metadata.set("i8", -1i8);
    metadata.set("u16", 2u16);
    metadata.set("i16", -2i16);
    metadata.set("i32", -3i32);
    metadata.set("f32", 1.5f32);
    metadata.set("u64", 4u64);
    metadata.set("i64", -4i64);
    metadata.set("f64", 2.5f64);
    metadata.set("bool", true);
    let tokens = ["", "a", "é", "\n"].map(str::to_owned).to_vec();
    metadata.set("tokens", tokens.clone());
    metadata.set("scores", vec![0.5f32; 4]);
    let inner = Array::Nested(vec![Array::U8(vec![1]), Array::String(tokens)]);
    metadata.set("nested", Value::Array(Array::Nested(vec![inner, Array::Bool(vec![true])])));
    let spec = |name: &str, shape: &[u64], dtype| TensorSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype,
    };
    let specs = [
        spec("norm", &[6], DType::F32),
        spec("attn.weight", &[32, 2, 1, 1], DType::Q4_0),
        spec("ffn", &[4, 3], DType::F16),
    ];
    let mut writer = Writer::new(Vec::new(), &metadata, &specs).unwrap();
    for spec in &specs {
        writer.tensor(&spec.name, &vec![0x5a; spec.bytes().unwrap() as usize]).unwrap();
    }
    writer.finish().unwrap()
}

/// Marsaglia's xorshift64: the same cases on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

const LENGTHS: [u64; 12] =
    [0, 1, 2, 8, 255, 1 << 16, 1 << 32, 1 << 60, 1 << 63, u64::MAX - 31, u64::MAX - 1, u64::MAX];

fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(file.len());
    match random.below(8) {
        0 => file[at] = random.next() as u8,
        1 => file[at] ^= 1 << random.below(8),
        2 => file[at] = file[at].wrapping_add(1),
        3 => file.truncate(at.max(1)),
        4 => put(file, at, &LENGTHS[random.below(LENGTHS.len())].to_le_bytes()),
        5 => put(file, at, &(random.below(20) as u32).to_le_bytes()),
        6 => {
            let end = (at + 1 + random.below(32)).min(file.len());
            let copy = file[at..end].to_vec();
            let to = random.below(file.len());
            put(file, to, &copy);
        }
        _ => {
            let end = (at + 1 + random.below(16)).min(file.len());
            file.drain(at..end);
            file.push(0);
        }
    }
}

/// Overwrites what fits.
fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    let room = &mut file[at..];
    let len = room.len().min(bytes.len());
    room[..len].copy_from_slice(&bytes[..len]);
}

#[test]
fn a_hundred_thousand_damaged_files() {
    const CASES: usize = 120_000;
    let sample = sample();
    assert!(check(&sample));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut slowest) = (0, Duration::ZERO);
    for _ in 0..CASES {
        let mut file = sample.clone();
        for _ in 0..1 + random.below(3) {
            mutate(&mut file, &mut random);
        }
        let start = Instant::now();
        accepted += usize::from(check(&file));
        slowest = slowest.max(start.elapsed());
    }
    println!("{accepted} of {CASES} still accepted, the slowest took {slowest:?}");
    // A case takes microseconds; the bound leaves room for a busy machine.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // If nearly all were accepted or refused, the mutations would miss the header or spoil it all.
    assert!((CASES / 20..CASES * 19 / 20).contains(&accepted), "{accepted}");
}

#[test]
fn every_byte_and_every_length_of_the_header() {
    let sample = sample();
    let header_len = Gguf::parse(&sample).unwrap().data_start as usize;
    for at in 0..header_len {
        for value in 0..=u8::MAX {
            let mut file = sample.clone();
            file[at] = value;
            check(&file);
        }
        for length in LENGTHS {
            let mut file = sample.clone();
            put(&mut file, at, &length.to_le_bytes());
            check(&file);
        }
        check(&sample[..at]);
    }
}

/// The densest headers: many entries that are as small as the format allows.
#[test]
fn memory_stays_within_bounds_where_entries_are_smallest() {
    let header = |tensors: u64, entries: u64| {
        [b"GGUF\x03\0\0\0".as_slice(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
    };
    let names = || (1u32..20_000).filter_map(char::from_u32).map(String::from);

    let mut keys = header(0, names().count() as u64);
    for key in names() {
        keys.extend([&(key.len() as u64).to_le_bytes(), key.as_bytes(), &[0; 5]].concat());
    }
    assert!(check(&keys));

    let mut tensors = header(names().count() as u64, 0);
    let one = [1u32.to_le_bytes().as_slice(), &1u64.to_le_bytes(), &[0; 4]].concat();
    for (index, name) in names().enumerate() {
        let offset = index as u64 * 32;
        let record = [name.as_bytes(), &one, &offset.to_le_bytes()].concat();
        tensors.extend([&(name.len() as u64).to_le_bytes(), record.as_slice()].concat());
    }
    // Without its data, so that the bound is that of the header alone.
    assert!(!check(&tensors));
    let header_len = tensors.len();
    tensors.resize(header_len.next_multiple_of(32) + names().count() * 32, 0);
    let before = HELD.get();
    PEAK.set(before);
    let parsed = Gguf::parse(&tensors).unwrap();
    assert!(PEAK.get() - before <= heap_bytes_max(header_len));
    assert_eq!(parsed.tensors.len(), names().count());
    drop(parsed);

    for (code, size) in [(0u32, 1), (7, 1), (8, 8), (12, 8)] {
        let count = 100_000u64;
        let mut array = header(0, 1);
        array.extend(b"\x01\0\0\0\0\0\0\0k\x09\0\0\0");
        array.extend(code.to_le_bytes());
        array.extend(count.to_le_bytes());
        array.resize(array.len() + count as usize * size, 0);
        assert!(check(&array), "elements of type {code}");
    }
    let mut nested = header(0, 1);
    nested.extend(b"\x01\0\0\0\0\0\0\0k\x09\0\0\0\x09\0\0\0");
    nested.extend(100_000u64.to_le_bytes());
    nested.resize(nested.len() + 1_200_000, 0);
    assert!(check(&nested));
}
