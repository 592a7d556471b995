//! Saved logits: the distributions that a reference run gave at every scored position, to compare
//! other runs with.
//!
//! The file, little-endian throughout: the magic `AIOSLOGP`; u32 version, vocabulary, window
//! (tokens), windows; SHA-256 of the model's file and of the tokens ([`Windows::sha256`]). Then a
//! record for each scored position: u32 the likeliest id; f32 its log-probability; f32 that of the
//! token that does follow; and for each id a u16 code c. Its log-probability lies
//! 32 · (c / 65535)² below the likeliest one's; what lies deeper is stored as 32.
//!
//! The square puts the finest steps where the probabilities are: at depth d the error is at most
//! √(32 d) / 65535, 9e-5 at a depth of 1 and 5e-4 at the very end. A position takes 12 bytes and
//! two for each id.

use crate::perplexity::{Scored, Windows};
use aios_engine::argmax;
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"AIOSLOGP";
const VERSION: u32 = 1;
/// Bytes of the header and of what precedes the codes in a record.
const HEADER_BYTES: u64 = 8 + 4 * 4 + 2 * 32;
const RECORD_HEAD: usize = 12;
/// Log-probabilities further below the likeliest one's are stored as this far.
const DEPTH_MAX: f64 = 32.0;
const CODE_MAX: f64 = u16::MAX as f64;

/// Why saved logits could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The file is something else.
    #[error("this is no file of saved logits; make one with --save-logits")]
    NotABase,
    /// The file is of another version.
    #[error("these saved logits have version {0}; this program reads {VERSION}: save them again")]
    Version(u32),
    /// The file was made with another vocabulary, window, or text.
    #[error("the saved logits are of {what} {found}, this run's is {expected}")]
    Different {
        /// What differs.
        what: &'static str,
        /// In the file.
        found: u64,
        /// In this run.
        expected: u64,
    },
    /// The tokens differ.
    #[error("the saved logits are of another text, or the model's tokenizer is another")]
    DifferentTokens,
    /// The file is cut off or has something behind it.
    #[error("the saved logits have {found} bytes where their header asks for {expected}")]
    Length {
        /// Bytes of the file.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// A record cannot be.
    #[error("record {0} of the saved logits is damaged; save them again")]
    Damaged(usize),
    /// Reading or writing failed.
    #[error("saved logits: {0}")]
    Io(#[from] io::Error),
}

/// What a file of saved logits says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Logits of a position.
    pub vocab: u32,
    /// Tokens of a window.
    pub window: u32,
    /// Windows.
    pub windows: u32,
    /// SHA-256 of the model's (first) file.
    pub model_sha256: [u8; 32],
    /// SHA-256 of the tokens.
    pub tokens_sha256: [u8; 32],
}

impl Header {
    /// The header for a run over `windows`; counts beyond u32 are not representable and saturate,
    /// which no file's length can then agree with.
    pub fn new(vocab: usize, windows: &Windows, model_sha256: [u8; 32]) -> Self {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            vocab: narrow(vocab),
            window: narrow(windows.window()),
            windows: narrow(windows.count()),
            model_sha256,
            tokens_sha256: windows.sha256(),
        }
    }

    /// Bytes of the whole file; `None` beyond u64.
    pub fn file_bytes(&self) -> Option<u64> {
        let window = u64::from(self.window);
        let scored = window.saturating_sub(1 + window / 2) * u64::from(self.windows);
        let record = RECORD_HEAD as u64 + 2 * u64::from(self.vocab);
        scored.checked_mul(record)?.checked_add(HEADER_BYTES)
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(MAGIC)?;
        for field in [VERSION, self.vocab, self.window, self.windows] {
            to.write_all(&field.to_le_bytes())?;
        }
        to.write_all(&self.model_sha256)?;
        to.write_all(&self.tokens_sha256)
    }

    fn read(from: &mut impl Read) -> Result<Self, BaseError> {
        let magic: [u8; 8] = take(from).map_err(|_| BaseError::NotABase)?;
        if magic != *MAGIC {
            return Err(BaseError::NotABase);
        }
        let mut field = || take(from).map(u32::from_le_bytes);
        let version = field()?;
        if version != VERSION {
            return Err(BaseError::Version(version));
        }
        let (vocab, window, windows) = (field()?, field()?, field()?);
        let (model_sha256, tokens_sha256) = (take(from)?, take(from)?);
        Ok(Self { vocab, window, windows, model_sha256, tokens_sha256 })
    }

    /// Whether logits saved under this header can be compared with a run under `ours`; the models
    /// may differ, since that is what is compared.
    fn check(&self, ours: &Self) -> Result<(), BaseError> {
        for (what, found, expected) in [
            ("a vocabulary of", self.vocab, ours.vocab),
            ("a window of", self.window, ours.window),
            ("windows numbering", self.windows, ours.windows),
        ] {
            if found != expected {
                let (found, expected) = (found.into(), expected.into());
                return Err(BaseError::Different { what, found, expected });
            }
        }
        if self.tokens_sha256 == ours.tokens_sha256 {
            Ok(())
        } else {
            Err(BaseError::DifferentTokens)
        }
    }
}

/// Writes saved logits, a position at a time.
#[derive(Debug)]
pub struct BaseWriter<W> {
    to: W,
    record: Vec<u8>,
}

impl<W: Write> BaseWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`BaseError::Io`].
    pub fn new(mut to: W, header: &Header) -> Result<Self, BaseError> {
        header.write(&mut to)?;
        Ok(Self { to, record: Vec::new() })
    }

    /// Writes the next position.
    ///
    /// # Errors
    /// [`BaseError::Io`].
    pub fn write(&mut self, scored: Scored<'_>) -> Result<(), BaseError> {
        let (top, _) = argmax(scored.logits);
        let top_logit = f64::from(scored.logits[top as usize]);
        self.record.clear();
        self.record.extend(top.to_le_bytes());
        for log_probability in [top_logit - scored.lse, -scored.loss()] {
            self.record.extend((log_probability as f32).to_le_bytes());
        }
        let code = |&logit: &f32| encode(top_logit - f64::from(logit)).to_le_bytes();
        self.record.extend(scored.logits.iter().flat_map(code));
        Ok(self.to.write_all(&self.record)?)
    }

    /// Writes out what is buffered and hands back the writer.
    ///
    /// # Errors
    /// [`BaseError::Io`].
    pub fn finish(mut self) -> Result<W, BaseError> {
        self.to.flush()?;
        Ok(self.to)
    }
}

/// Reads saved logits, a position at a time.
#[derive(Debug)]
pub struct BaseReader<R> {
    from: R,
    header: Header,
    record: Vec<u8>,
    read: usize,
    /// For each code the depth and e^−depth.
    depths: Vec<(f64, f64)>,
}

/// What was saved of a position.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The likeliest id.
    pub top: u32,
    /// Its log-probability.
    pub top_log_probability: f64,
    /// −ln of the probability of the token that does follow.
    pub loss: f64,
    codes: &'a [u8],
    depths: &'a [(f64, f64)],
}

impl<R: Read> BaseReader<R> {
    /// Reads the header of a file of `bytes` bytes and checks that it can be compared with a run
    /// whose header would be `ours`.
    ///
    /// # Errors
    /// [`BaseError`].
    pub fn new(mut from: R, bytes: u64, ours: &Header) -> Result<Self, BaseError> {
        let header = Header::read(&mut from)?;
        header.check(ours)?;
        match header.file_bytes() {
            Some(expected) if expected == bytes => (),
            expected => {
                let expected = expected.unwrap_or(u64::MAX);
                return Err(BaseError::Length { found: bytes, expected });
            }
        }
        let depths = (0..=u16::MAX).map(decode).map(|depth| (depth, libm::exp(-depth))).collect();
        let record = vec![0; RECORD_HEAD + 2 * header.vocab as usize];
        Ok(Self { from, header, record, read: 0, depths })
    }

    /// The header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The next position.
    ///
    /// # Errors
    /// [`BaseError::Io`], [`BaseError::Damaged`].
    pub fn next_record(&mut self) -> Result<Record<'_>, BaseError> {
        self.from.read_exact(&mut self.record)?;
        let (head, codes) = self.record.split_at(RECORD_HEAD);
        let mut head = head;
        let top = u32::from_le_bytes(take(&mut head)?);
        let top_log_probability = f64::from(f32::from_le_bytes(take(&mut head)?));
        let loss = -f64::from(f32::from_le_bytes(take(&mut head)?));
        if top >= self.header.vocab || !(top_log_probability.is_finite() && loss.is_finite()) {
            return Err(BaseError::Damaged(self.read));
        }
        self.read += 1;
        Ok(Record { top, top_log_probability, loss, codes, depths: &self.depths })
    }
}

impl Record<'_> {
    /// The Kullback-Leibler divergence, in nats, of the distribution of `scored` from this one:
    /// Σ p (ln p − ln q) with the saved p. The coding can move it by about 1e-4 either way, so
    /// that of a run from itself may come out slightly below 0.
    pub fn divergence(&self, scored: Scored<'_>) -> f64 {
        let scale = libm::exp(self.top_log_probability);
        let sum: f64 = (self.codes.chunks_exact(2).zip(scored.logits))
            .map(|(code, &logit)| {
                let code = u16::from_le_bytes([code[0], code[1]]);
                let (depth, weight) = self.depths[usize::from(code)];
                let log_p = self.top_log_probability - depth;
                weight * (log_p - (f64::from(logit) - scored.lse))
            })
            .sum();
        scale * sum
    }
}

/// The code of a log-probability that lies `depth` below the likeliest one's.
fn encode(depth: f64) -> u16 {
    ((depth.clamp(0.0, DEPTH_MAX) / DEPTH_MAX).sqrt() * CODE_MAX).round() as u16
}

/// The depth that a code stands for.
fn decode(code: u16) -> f64 {
    let fraction = f64::from(code) / CODE_MAX;
    DEPTH_MAX * fraction * fraction
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "base_tests.rs"]
mod tests;
