//! WordPiece, the tokenizer of BERT and its descendants (SPEC.md, T13 and T14).

use super::bert_text::each_word;
use super::vocab::{Attributes, Vocab};
use super::{MODEL_KEY, TokenizerError};
use crate::gguf::Metadata;

/// What `tokenizer.ggml.model` says of it.
pub(crate) const WORDPIECE: &str = "bert";
/// In a file, the first piece of a word starts with this, and others with nothing.
pub(crate) const WORD_START: char = '\u{2581}';
/// Characters of a word, beyond which it is unknown.
const WORD_CHARS_MAX: usize = 100;

const UNKNOWN_KEY: &str = "tokenizer.ggml.unknown_token_id";
const SEPARATOR_KEY: &str = "tokenizer.ggml.seperator_token_id";
const CLASS_KEY: &str = "tokenizer.ggml.cls_token_id";
/// What llama.cpp's converter also calls the class token.
const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";

/// An encoder's tokenizer: from text to ids, without a way back, which encoders have no use for.
pub struct WordPiece {
    vocab: Vocab,
    /// Characters of the longest piece.
    piece_chars_max: usize,
    unknown: u32,
    class: u32,
    separator: u32,
}

impl WordPiece {
    /// Reads the tokenizer from a file's metadata.
    ///
    /// # Errors
    /// One [`TokenizerError`] that names the key or token found wrong.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let model = metadata.require_str(MODEL_KEY)?;
        if model != WORDPIECE {
            return Err(TokenizerError::NotWordPiece { model: model.to_owned() });
        }
        let vocab = Vocab::from_metadata(metadata)?;
        let special = |keys: &[&'static str]| {
            let key = keys.iter().find(|key| metadata.get(key).is_some()).unwrap_or(&keys[0]);
            let id = metadata.require_u64(key)?;
            let valid = u32::try_from(id).ok().filter(|id| (*id as usize) < vocab.len());
            valid.ok_or(TokenizerError::SpecialId { key, id, len: vocab.len() })
        };
        let (unknown, separator) = (special(&[UNKNOWN_KEY])?, special(&[SEPARATOR_KEY])?);
        let class = special(&[CLASS_KEY, BOS_KEY])?;
        let chars = vocab.ids().map(|id| vocab.spelling(id).chars().count());
        let piece_chars_max = chars.max().unwrap_or(0).min(WORD_CHARS_MAX + 1);
        Ok(Self { vocab, piece_chars_max, unknown, class, separator })
    }

    /// The number of tokens: ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
    }

    /// The ids of `text`, the class token in front and the separator at the end, and whether that
    /// is all of it: no more than `most` ids come out, whose last is the separator still. The
    /// spelling of a control token is text.
    ///
    /// # Panics
    /// If `most` is below 3.
    pub fn encode(&self, text: &str, most: usize) -> (Vec<u32>, bool) {
        assert!(most >= 3, "the frame takes two ids");
        let mut ids = vec![self.class];
        let mut spelling = String::new();
        each_word(text, |word| {
            self.word(word, &mut spelling, &mut ids);
            ids.len() < most
        });
        let whole = ids.len() < most;
        ids.truncate(most - 1);
        ids.push(self.separator);
        (ids, whole)
    }

    /// The longest piece that the word starts with, then the longest of the rest; a word with a
    /// rest that no piece starts is unknown as a whole.
    fn word(&self, word: &[char], spelling: &mut String, ids: &mut Vec<u32>) {
        let before = ids.len();
        let mut start = 0;
        while start < word.len() && word.len() <= WORD_CHARS_MAX {
            let longest = word.len().min(start + self.piece_chars_max);
            let piece = (start + 1..=longest).rev().find_map(|end| {
                spelling.clear();
                spelling.extend((start == 0).then_some(WORD_START));
                spelling.extend(&word[start..end]);
                Some((self.piece(spelling)?, end))
            });
            let Some((id, end)) = piece else { break };
            ids.push(id);
            start = end;
        }
        if start < word.len() {
            ids.truncate(before);
            ids.push(self.unknown);
        }
    }

    fn piece(&self, spelling: &str) -> Option<u32> {
        let id = self.vocab.find(spelling)?;
        self.vocab.attributes(id).has_any(Attributes::NORMAL).then_some(id)
    }
}

impl std::fmt::Debug for WordPiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordPiece").field("vocab_len", &self.vocab_len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
