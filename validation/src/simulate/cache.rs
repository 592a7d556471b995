//! One set-associative cache that drops the line which has not been used for longest.

use super::traffic::Group;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// The most lines that a cache may have: their tags take 512 MiB.
const LINES_MAX: u64 = 1 << 26;
/// The shortest line; with it a line's number and a mark fit a word.
const LINE_BYTES_MIN: u32 = 32;

/// The size and shape of a cache (SPEC B15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Geometry {
    bytes: u64,
    ways: u32,
    line_bytes: u32,
}

/// Why there is no such cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The line's length.
    #[error("lines of {0} bytes: it must be a power of two and at least {LINE_BYTES_MIN}")]
    Line(u32),
    /// No way, or a size that is not that of whole sets.
    #[error("{bytes} bytes are not a whole number of sets of {ways} lines of {line_bytes} bytes")]
    Sets {
        /// The size.
        bytes: u64,
        /// The ways.
        ways: u32,
        /// The line's length.
        line_bytes: u32,
    },
    /// More lines than are simulated.
    #[error("a cache of {0} lines: at most {LINES_MAX} are simulated")]
    Lines(u64),
    /// Text of another form.
    #[error("a cache is written SIZE,WAYS,LINE in bytes, such as 33554432,16,64")]
    Text,
}

impl Geometry {
    /// A cache of `bytes` bytes in sets of `ways` lines of `line_bytes` bytes.
    ///
    /// # Errors
    /// Those of [`GeometryError`] but [`GeometryError::Text`].
    pub const fn new(bytes: u64, ways: u32, line_bytes: u32) -> Result<Self, GeometryError> {
        if !line_bytes.is_power_of_two() || line_bytes < LINE_BYTES_MIN {
            return Err(GeometryError::Line(line_bytes));
        }
        let set_bytes = ways as u64 * line_bytes as u64;
        if bytes == 0 || set_bytes == 0 || !bytes.is_multiple_of(set_bytes) {
            return Err(GeometryError::Sets { bytes, ways, line_bytes });
        }
        let lines = bytes / line_bytes as u64;
        if lines > LINES_MAX {
            return Err(GeometryError::Lines(lines));
        }
        Ok(Self { bytes, ways, line_bytes })
    }

    /// Its size.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Lines of a set.
    pub const fn ways(self) -> u32 {
        self.ways
    }

    /// Bytes of a line.
    pub const fn line_bytes(self) -> u32 {
        self.line_bytes
    }

    /// Sets.
    pub const fn sets(self) -> u64 {
        self.bytes / (self.ways as u64 * self.line_bytes as u64)
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB of {} ways", self.bytes as f64 / 1024.0, self.ways)
    }
}

impl FromStr for Geometry {
    type Err = GeometryError;

    /// Reads `SIZE,WAYS,LINE` in bytes, as valgrind's options have it.
    fn from_str(text: &str) -> Result<Self, GeometryError> {
        let mut parts = text.split(',').map(str::trim);
        let mut part = || parts.next().ok_or(GeometryError::Text);
        let (bytes, ways, line) = (part()?, part()?, part()?);
        if part().is_ok() {
            return Err(GeometryError::Text);
        }
        let small = |text: &str| text.parse().map_err(|_| GeometryError::Text);
        let bytes = bytes.parse().map_err(|_| GeometryError::Text)?;
        Self::new(bytes, small(ways)?, small(line)?)
    }
}

/// A line that had to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// Its number: its address over the length of a line.
    pub line: u64,
    /// What was written into it last, if it was written.
    pub dirty: Option<Group>,
}

/// The lines that a cache holds. They are named by their number.
///
/// A set is a run of words, the line used last at its front and free places at its end. A word is
/// the line's number plus 1, then four bits: 0 of a line that was not written, else 1 more than
/// the place of what was written last in [`Group::ALL`]. The word 0 is a free place.
#[derive(Clone, Debug)]
pub struct Cache {
    words: Vec<u64>,
    ways: usize,
    sets: u64,
}

/// Bits of a word that say what was written.
const MARK_BITS: u32 = 4;
const MARK: u64 = (1 << MARK_BITS) - 1;
const _: () = assert!(Group::ALL.len() as u64 <= MARK);

const fn mark(dirty: Option<Group>) -> u64 {
    match dirty {
        Some(group) => group as u64 + 1,
        None => 0,
    }
}

/// What a word says was written into its line.
fn dirty(word: u64) -> Option<Group> {
    let place = usize::try_from((word & MARK).checked_sub(1)?).ok()?;
    Group::ALL.get(place).copied()
}

/// Whether a word is that of `line`.
const fn is(word: u64, line: u64) -> bool {
    word >> MARK_BITS == line + 1
}

const fn word(line: u64, dirty: Option<Group>) -> u64 {
    (line + 1) << MARK_BITS | mark(dirty)
}

impl Cache {
    /// An empty one.
    pub fn new(geometry: Geometry) -> Self {
        let ways = geometry.ways as usize;
        let sets = geometry.sets();
        // At most LINES_MAX words.
        let count = usize::try_from(sets).unwrap_or(usize::MAX).saturating_mul(ways);
        Self { words: vec![0; count], ways, sets }
    }

    fn set(&mut self, line: u64) -> &mut [u64] {
        let start = self.start(line);
        &mut self.words[start..start + self.ways]
    }

    /// Where a line's set starts.
    #[expect(clippy::cast_possible_truncation, reason = "a set's number indexes memory")]
    fn start(&self, line: u64) -> usize {
        // A division costs more than the search.
        let set =
            if self.sets.is_power_of_two() { line & (self.sets - 1) } else { line % self.sets };
        set as usize * self.ways
    }

    /// Whether it holds `line`; changes nothing.
    pub fn holds(&self, line: u64) -> bool {
        let start = self.start(line);
        let set = &self.words[start..start + self.ways];
        set.iter().any(|entry| is(*entry, line))
    }

    /// Uses `line` if it is there, marking it if something is written; says whether it is there.
    pub fn touch(&mut self, line: u64, written: Option<Group>) -> bool {
        let set = self.set(line);
        let Some(at) = set.iter().position(|entry| is(*entry, line)) else {
            return false;
        };
        let used = if written.is_some() { word(line, written) } else { set[at] };
        set.copy_within(..at, 1);
        set[0] = used;
        true
    }

    /// Takes in `line`, which must not be there, as the one used last.
    pub fn fill(&mut self, line: u64, written: Option<Group>) -> Option<Evicted> {
        let set = self.set(line);
        let last = set.len() - 1;
        let old = set[last];
        set.copy_within(..last, 1);
        set[0] = word(line, written);
        (old != 0).then(|| Evicted { line: (old >> MARK_BITS) - 1, dirty: dirty(old) })
    }

    /// Uses `line`, taking it in if it is not there: whether it was, and what had to make room.
    pub fn access(&mut self, line: u64, written: Option<Group>) -> (bool, Option<Evicted>) {
        if self.touch(line, written) { (true, None) } else { (false, self.fill(line, written)) }
    }

    /// Marks `line` as written without using it; says whether it is there.
    pub fn mark(&mut self, line: u64, written: Group) -> bool {
        let found = self.set(line).iter_mut().find(|entry| is(**entry, line));
        found.map(|entry| *entry = word(line, Some(written))).is_some()
    }

    /// Forgets `line`: `None` if it was not there, else what was written into it last, if anything.
    pub fn remove(&mut self, line: u64) -> Option<Option<Group>> {
        let set = self.set(line);
        let at = set.iter().position(|entry| is(*entry, line))?;
        let found = dirty(set[at]);
        set.copy_within(at + 1.., at);
        set[set.len() - 1] = 0;
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A set as a list, the line used last at its end.
    #[derive(Default)]
    struct Plain {
        sets: std::collections::BTreeMap<u64, Vec<(u64, Option<Group>)>>,
    }

    impl Plain {
        fn access(
            &mut self,
            geometry: Geometry,
            line: u64,
            written: Option<Group>,
        ) -> (bool, Option<Evicted>) {
            let set = self.sets.entry(line % geometry.sets()).or_default();
            let known = set.iter().position(|entry| entry.0 == line);
            let dirty = known.and_then(|at| set.remove(at).1);
            set.push((line, written.or(dirty)));
            let full = set.len() > geometry.ways() as usize;
            let evicted = full.then(|| set.remove(0));
            (known.is_some(), evicted.map(|(line, dirty)| Evicted { line, dirty }))
        }
    }

    proptest! {
        #[test]
        fn it_is_what_the_definition_says(
            sets in 1u64..6,
            ways in 1u32..5,
            trace in prop::collection::vec((0u64..40, 0usize..16, 0u8..10), 0..300),
        ) {
            let geometry = Geometry::new(sets * u64::from(ways) * 64, ways, 64).expect("a shape");
            let (mut cache, mut plain) = (Cache::new(geometry), Plain::default());
            for (line, write, removes) in trace {
                let write = Group::ALL.get(write).copied();
                if removes == 0 {
                    let set = plain.sets.entry(line % sets).or_default();
                    let known = set.iter().position(|entry| entry.0 == line);
                    prop_assert_eq!(cache.remove(line), known.map(|at| set.remove(at).1));
                    prop_assert!(!cache.holds(line));
                } else {
                    prop_assert_eq!(
                        cache.access(line, write),
                        plain.access(geometry, line, write)
                    );
                    prop_assert!(cache.holds(line));
                }
            }
        }
    }

    fn misses(cache: &mut Cache, lines: std::ops::Range<u64>) -> usize {
        lines.filter(|line| !cache.access(*line, None).0).count()
    }

    #[test]
    fn a_loop_that_fits_misses_once_and_one_of_twice_the_size_always() {
        for (bytes, ways) in [(64 << 10, 8), (36 << 10, 12), (64, 1)] {
            let geometry = Geometry::new(bytes, ways, 64).expect("a shape");
            let lines = bytes / 64;
            let mut cache = Cache::new(geometry);
            assert_eq!(misses(&mut cache, 1000..1000 + lines) as u64, lines);
            assert_eq!(misses(&mut cache, 1000..1000 + lines), 0);
            for _ in 0..3 {
                let twice = 5000..5000 + 2 * lines;
                assert_eq!(misses(&mut cache, twice) as u64, 2 * lines);
            }
        }
    }

    #[test]
    fn marking_does_not_make_a_line_young() {
        let mut cache = Cache::new(Geometry::new(128, 2, 64).expect("a shape"));
        cache.access(1, None);
        cache.access(2, None);
        assert!(cache.mark(1, Group::Keys) && !cache.mark(3, Group::Keys));
        assert_eq!(cache.fill(3, None), Some(Evicted { line: 1, dirty: Some(Group::Keys) }));
    }

    #[test]
    fn the_last_to_write_a_line_is_remembered_whatever_the_address() {
        let mut cache = Cache::new(Geometry::new(64, 2, 32).expect("a shape"));
        let last = (usize::MAX >> 5) as u64;
        for group in Group::ALL {
            cache.access(last, Some(group));
            cache.access(last, None);
            assert_eq!(cache.remove(last), Some(Some(group)));
        }
        cache.access(last, None);
        assert_eq!(cache.remove(last), Some(None));
    }

    #[test]
    fn shapes_are_checked() {
        let known: Geometry = "33554432,16,64".parse().expect("valgrind's form");
        assert_eq!((known.sets(), known.ways(), known.line_bytes()), (32768, 16, 64));
        assert_eq!(" 36864 , 12,64".parse::<Geometry>().expect("spaces").sets(), 48);
        for text in ["", "1", "1,2", "1,2,3,4", "a,16,64", "64,-1,64", "64,1,99999999999"] {
            assert_eq!(text.parse::<Geometry>(), Err(GeometryError::Text), "{text}");
        }
        assert_eq!(Geometry::new(96, 1, 48), Err(GeometryError::Line(48)));
        assert_eq!(Geometry::new(96, 1, 0), Err(GeometryError::Line(0)));
        assert_eq!(Geometry::new(96, 1, 16), Err(GeometryError::Line(16)));
        for (bytes, ways) in [(0, 1), (100, 1), (64, 0), (64, 2), (64, u32::MAX)] {
            let error = Geometry::new(bytes, ways, 64).expect_err("no whole sets");
            assert_eq!(error, GeometryError::Sets { bytes, ways, line_bytes: 64 });
        }
        assert_eq!(Geometry::new(1 << 40, 16, 64), Err(GeometryError::Lines(1 << 34)));
    }
}
