//! The vocabulary: spellings, what kind each token is, and the way back from a spelling to its id.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::error::TokenizerError;
use crate::gguf::Metadata;

/// The longest spelling that is read, in bytes. Real ones stay under 1000; the cap bounds what
/// one look-up can cost.
pub const TOKEN_BYTES_MAX: usize = 4096;

const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";

/// What a token is. A control-looking token keeps the type that its file gives it and becomes a
/// control token as well, so this is a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes(u8);

impl Attributes {
    pub(super) const NORMAL: Self = Self(1);
    pub(super) const UNKNOWN: Self = Self(1 << 1);
    pub(super) const CONTROL: Self = Self(1 << 2);
    pub(super) const USER_DEFINED: Self = Self(1 << 3);
    pub(super) const BYTE: Self = Self(1 << 4);
    /// Neither parsed from text nor rendered: types undefined and unused.
    const NONE: Self = Self(0);

    fn from_code(code: i32) -> Option<Self> {
        Some(match code {
            0 | 5 => Self::NONE,
            1 => Self::NORMAL,
            2 => Self::UNKNOWN,
            3 => Self::CONTROL,
            4 => Self::USER_DEFINED,
            6 => Self::BYTE,
            _ => return None,
        })
    }

    pub(super) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn has_any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// All tokens of a model.
pub(super) struct Vocab {
    /// All spellings, one after the other.
    text: String,
    /// Where each spelling ends in `text`.
    ends: Vec<u32>,
    attributes: Vec<Attributes>,
    /// Ids by the hash of their spelling.
    by_spelling: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Vocab {
    /// Reads spellings and types.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let spellings = metadata.require_strings(TOKENS_KEY)?;
        if spellings.is_empty() || i32::try_from(spellings.len()).is_err() {
            return Err(TokenizerError::VocabularySize { len: spellings.len() });
        }
        let codes = metadata.require_i32s(TYPES_KEY)?;
        same_len(TYPES_KEY, spellings.len(), codes.len())?;
        let mut attributes = Vec::with_capacity(codes.len());
        for (id, &code) in (0..).zip(codes) {
            let of_code = Attributes::from_code(code);
            attributes.push(of_code.ok_or(TokenizerError::TokenType { id, code })?);
        }
        let mut vocab = Self {
            text: String::with_capacity(spellings.iter().map(String::len).sum()),
            ends: Vec::with_capacity(spellings.len()),
            attributes,
            by_spelling: HashTable::with_capacity(spellings.len()),
            hasher: DefaultHashBuilder::default(),
        };
        for (id, spelling) in (0..).zip(spellings) {
            if spelling.is_empty() {
                vocab.insert(id, &format!("[EMPTY_{id}]"))?;
            } else {
                vocab.insert(id, spelling)?;
            }
        }
        let misspelt = |&id: &u32| byte_of_spelling(vocab.spelling(id)).is_none();
        if let Some(id) = vocab.ids_with(Attributes::BYTE).find(misspelt) {
            return Err(TokenizerError::ByteToken { id, spelling: vocab.spelling(id).to_owned() });
        }
        Ok(vocab)
    }

    /// Appends the token `id`, which must be the number of tokens so far.
    fn insert(&mut self, id: u32, spelling: &str) -> Result<(), TokenizerError> {
        if spelling.len() > TOKEN_BYTES_MAX {
            let limit = TOKEN_BYTES_MAX;
            return Err(TokenizerError::TokenTooLong { id, len: spelling.len(), limit });
        }
        if let Some(first) = self.find(spelling) {
            let spelling = spelling.to_owned();
            return Err(TokenizerError::DuplicateToken { first, second: id, spelling });
        }
        self.text.push_str(spelling);
        let end = u32::try_from(self.text.len())
            .map_err(|_| TokenizerError::VocabularySize { len: self.ends.len() })?;
        self.ends.push(end);
        let hash = self.hasher.hash_one(spelling);
        let (text, ends, hasher) = (&self.text, &self.ends, &self.hasher);
        self.by_spelling
            .insert_unique(hash, id, |&other| hasher.hash_one(spelling_in(text, ends, other)));
        Ok(())
    }

    /// The number of tokens, at least 1.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// All ids.
    pub(super) fn ids(&self) -> std::ops::Range<u32> {
        // There are fewer than 2^31 tokens.
        0..self.len() as u32
    }

    /// The token spelled `spelling`.
    pub(super) fn find(&self, spelling: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(spelling);
        self.by_spelling.find(hash, |&id| self.spelling(id) == spelling).copied()
    }

    /// The spelling of `id`, which must be in the vocabulary.
    pub(super) fn spelling(&self, id: u32) -> &str {
        spelling_in(&self.text, &self.ends, id)
    }

    /// What `id` is, which must be in the vocabulary.
    pub(super) fn attributes(&self, id: u32) -> Attributes {
        self.attributes[id as usize]
    }

    /// Makes `id`, which must be in the vocabulary, a control token whatever else it is.
    pub(super) fn mark_control(&mut self, id: u32) {
        let attributes = &mut self.attributes[id as usize];
        *attributes = attributes.or(Attributes::CONTROL);
    }

    /// The ids with any of these attributes, ascending.
    pub(super) fn ids_with(&self, any: Attributes) -> impl Iterator<Item = u32> {
        self.ids().filter(move |&id| self.attributes(id).has_any(any))
    }

    /// Checks that an array under `key` has an entry per token.
    pub(super) fn check_len(&self, key: &'static str, len: usize) -> Result<(), TokenizerError> {
        same_len(key, self.len(), len)
    }
}

fn same_len(key: &'static str, expected: usize, found: usize) -> Result<(), TokenizerError> {
    if expected == found {
        Ok(())
    } else {
        Err(TokenizerError::ArrayLength { key, expected, found })
    }
}

fn spelling_in<'a>(text: &'a str, ends: &[u32], id: u32) -> &'a str {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] };
    &text[start as usize..ends[id] as usize]
}

/// The byte that a spelling like `<0x0A>` stands for.
pub(super) fn byte_of_spelling(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The spelling of the token that stands for `byte`.
pub(super) fn spelling_of_byte(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}
