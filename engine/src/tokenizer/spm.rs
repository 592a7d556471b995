//! SentencePiece's BPE: characters are joined to the pieces with the best scores, and what is no
//! piece is spelled in bytes.

use std::cmp::Ordering;

use super::error::TokenizerError;
use super::merge::Merger;
use super::special_ids::RESTRICTED;
use super::vocab::{Attributes, Vocab, spelling_of_byte};
use crate::gguf::Metadata;

const SCORES_KEY: &str = "tokenizer.ggml.scores";
const SPACE_PREFIX_KEY: &str = "tokenizer.ggml.add_space_prefix";

/// The character that stands for a space in spellings.
const SPACE: &str = "\u{2581}";

/// Tokens that text is not matched with: their spelling in a text is just that.
const NOT_PIECES: Attributes = RESTRICTED.or(Attributes::BYTE);

/// A SentencePiece tokenizer without its special tokens.
pub(super) struct Spm {
    /// By id; none is NaN.
    scores: Vec<Score>,
    /// What stands for each byte of a character that no piece has.
    byte_ids: [u32; 256],
    /// Whether a space goes in front of a text, and of text after a special token.
    pub(super) space_prefix: bool,
}

/// A score: finite or infinite, but a number, and without a negative zero.
#[derive(Clone, Copy, PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Spm {
    /// Reads the tokenizer; `unknown` is the token for bytes that have none of their own.
    pub(super) fn from_metadata(
        metadata: &Metadata,
        vocab: &Vocab,
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let scores = metadata.require_f32s(SCORES_KEY)?;
        vocab.check_len(SCORES_KEY, scores.len())?;
        if let Some(id) = vocab.ids().find(|&id| scores[id as usize].is_nan()) {
            return Err(TokenizerError::Score { id });
        }
        let mut byte_ids = [0; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut byte_ids) {
            let as_itself = || vocab.find(std::str::from_utf8(&[byte]).ok()?);
            *id = vocab
                .find(&spelling_of_byte(byte))
                .or_else(as_itself)
                .or(unknown)
                .ok_or(TokenizerError::NoByteFallback { byte })?;
        }
        Ok(Self {
            // Adding zero makes -0.0 the 0.0 that it equals.
            scores: scores.iter().map(|score| Score(score + 0.0)).collect(),
            byte_ids,
            space_prefix: metadata.bool(SPACE_PREFIX_KEY)?.unwrap_or(true),
        })
    }

    /// Appends the ids of `text`, in which special tokens are not looked for, with a space in
    /// front of it if `prefixed`.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, prefixed: bool, ids: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + SPACE.len());
        if prefixed {
            escaped.push_str(SPACE);
        }
        escaped.push_str(&text.replace(' ', SPACE));
        let piece = |start, end| {
            let id = vocab.find(&escaped[start..end])?;
            (!vocab.attributes(id).has_any(NOT_PIECES)).then_some(id)
        };
        let mut merger = Merger::new();
        for (start, c) in escaped.char_indices() {
            let end = start + c.len_utf8();
            merger.push(end, piece(start, end));
        }
        merger.run(
            |left, right| {
                let id = piece(left.start, right.end)?;
                Some((self.scores[id as usize], id))
            },
            |symbol| match symbol.id() {
                Some(id) => ids.push(id),
                None => ids.extend(
                    escaped[symbol.start..symbol.end]
                        .bytes()
                        .map(|byte| self.byte_ids[byte as usize]),
                ),
            },
        );
    }
}

/// Appends the text of a normal piece.
pub(super) fn render(spelling: &str, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(spelling.replace(SPACE, " ").as_bytes());
}
