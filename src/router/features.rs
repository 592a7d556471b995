//! What is measured of a prompt. Every feature is named, bounded and explained in words.

use serde::Serialize;

use super::lexicon::{Cue, Lexicon};
use super::text::{Text, Word};

/// Words before a cue within which a negation turns it off.
const NEGATION_REACH: usize = 4;

/// The features of a prompt, each from 0 to a small bound, so that no prompt, however long, can
/// outweigh the others by one feature alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Features {
    /// Doublings of the number of words, at most 8; a quoted word counts.
    pub length: f64,
    /// 1 if it greets, thanks or takes leave.
    pub greeting: f64,
    /// 1 if it asks for one fact and neither for an explanation nor for work.
    pub fact: f64,
    /// 1 if it asks for an explanation, a comparison or an analysis.
    pub explain: f64,
    /// 1 if a clause begins with a verb of design or proof.
    pub design: f64,
    /// 1 if a clause begins with a verb of other work.
    pub work: f64,
    /// Further verbs that ask for something after the first one, at most 4.
    pub further_tasks: f64,
    /// Words that name the size or a part of a long task, at most 5.
    pub scope: f64,
    /// 1 if it asks for steps or an order.
    pub steps: f64,
    /// Separated parts of a request to design or work, at most 6.
    pub parts: f64,
    /// `length` of a request to design or work; 0 for any other prompt.
    pub request_length: f64,
    /// 1 if code stands in it.
    pub code: f64,
    /// Numbers in a request to design or work, at most 4.
    pub numbers: f64,
}

/// How many features there are.
pub const FEATURES: usize = 13;

/// The names of the features, in the order of [`Features::values`].
pub const NAMES: [&str; FEATURES] = [
    "length",
    "greeting",
    "fact",
    "explain",
    "design",
    "work",
    "further_tasks",
    "scope",
    "steps",
    "parts",
    "request_length",
    "code",
    "numbers",
];

impl Features {
    /// The values in the order of [`NAMES`].
    pub const fn values(&self) -> [f64; FEATURES] {
        [
            self.length,
            self.greeting,
            self.fact,
            self.explain,
            self.design,
            self.work,
            self.further_tasks,
            self.scope,
            self.steps,
            self.parts,
            self.request_length,
            self.code,
            self.numbers,
        ]
    }

    /// Whether anything but its length was recognised.
    pub fn recognised(&self) -> bool {
        self.values()[1..].iter().any(|&value| value > 0.0)
    }

    /// The features of a cut-up prompt.
    pub(super) fn of(text: &Text, lexicon: &Lexicon) -> Self {
        let counts = Counts::of(text, lexicon);
        let request = counts.make + counts.work > 0;
        let when = |yes: bool, value: f64| if yes { value } else { 0.0 };
        let length = doublings(text.length());
        let asks = counts.make + counts.work + counts.explain;
        Self {
            length,
            greeting: when(counts.greeting > 0, 1.0),
            fact: when(counts.fact > 0 && asks == 0, 1.0),
            explain: when(counts.explain > 0, 1.0),
            design: when(counts.make > 0, 1.0),
            work: when(counts.work > 0, 1.0),
            further_tasks: bounded(asks.saturating_sub(1), 4),
            scope: bounded(counts.scope, 5),
            steps: when(counts.steps > 0, 1.0),
            parts: when(request, bounded(text.separators, 6)),
            request_length: when(request, length),
            code: when(text.code, 1.0),
            numbers: when(request, bounded(text.numbers, 4)),
        }
    }
}

/// How often each kind of cue counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    greeting: usize,
    fact: usize,
    explain: usize,
    make: usize,
    work: usize,
    scope: usize,
    steps: usize,
}

/// Where in its clause a word stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Whether only politeness stands before it.
    leads: bool,
    /// Words since the last negation in this clause.
    since_not: usize,
}

impl Counts {
    fn of(text: &Text, lexicon: &Lexicon) -> Self {
        let mut counts = Self::default();
        let mut place = Place { leads: true, since_not: usize::MAX };
        let mut at = 0;
        while let Some(word) = text.words.get(at) {
            if word.starts_clause {
                place = Place { leads: true, since_not: usize::MAX };
            }
            at += counts.read(word, &text.words[at..], &mut place, lexicon);
        }
        counts
    }

    /// Reads the first of `words` and gives how many words it took.
    fn read(&mut self, word: &Word, words: &[Word], place: &mut Place, lexicon: &Lexicon) -> usize {
        if word.dense {
            lexicon.in_run(&word.text).into_iter().for_each(|cue| self.add(cue, true));
            place.leads = false;
            return 1;
        }
        let Some(found) = lexicon.phrase(words) else {
            place.leads = false;
            place.since_not = place.since_not.saturating_add(1);
            return 1;
        };
        let negated = place.since_not < NEGATION_REACH;
        for &cue in found.cues.iter().filter(|cue| !negated || is_topic(**cue)) {
            self.add(cue, place.leads);
        }
        place.since_not = match found.cues.contains(&Cue::Not) {
            true => 0,
            false => place.since_not.saturating_add(found.words),
        };
        // After a greeting or a polite word a clause has not begun yet.
        place.leads &= found.cues.iter().any(|cue| matches!(cue, Cue::Polite | Cue::Greeting))
            || found.cues == [Cue::Steps];
        // What joins clauses begins one.
        place.leads |=
            matches!(word.text.as_str(), "and" | "then" | "und" | "et" | "y" | "e" | "en");
        found.words
    }

    fn add(&mut self, cue: Cue, leads: bool) {
        match cue {
            Cue::Greeting => self.greeting += 1,
            Cue::Fact => self.fact += 1,
            Cue::LeadingFact => self.fact += usize::from(leads),
            Cue::Explain => self.explain += 1,
            Cue::Make => self.make += usize::from(leads),
            Cue::Work => self.work += usize::from(leads),
            Cue::Scope => self.scope += 1,
            Cue::Steps => self.steps += 1,
            Cue::Not | Cue::Polite => {}
        }
    }
}

/// Whether a cue says what a prompt is about and not what it asks for: negation leaves it.
const fn is_topic(cue: Cue) -> bool {
    matches!(cue, Cue::Greeting | Cue::Polite | Cue::Not)
}

fn bounded(count: usize, most: u32) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX).min(most))
}

/// The base-two logarithm of `1 + count`, linear between powers of two, at most 8: exact
/// arithmetic, so that every machine gets the same score.
fn doublings(count: usize) -> f64 {
    let n = u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
    let whole = n.ilog2();
    let power = f64::from(1_u32 << whole);
    (f64::from(whole) + (f64::from(n) - power) / power).min(8.0)
}
