//! Tokenizers: text to token ids and back, read from a GGUF file's metadata.
//!
//! Two kinds exist for models that generate, BPE (`gpt2`) and SentencePiece (`llama`), and one for
//! encoders, [`WordPiece`] (`bert`). SPEC.md states the rules (T1 to T14); ids are those of
//! llama.cpp, and of Hugging Face's `tokenizers` for WordPiece.
//!
//! Everything in the metadata is untrusted. A vocabulary that is accepted can encode any text and
//! render any of its ids without panicking, in time O(n log n) in the length of the text.

mod bert_table;
mod bert_text;
mod bpe;
mod byte_alphabet;
mod decode;
mod error;
mod merge;
mod pretokenize;
mod special;
mod special_ids;
mod spm;
mod unicode;
mod unicode_table;
mod vocab;
mod wordpiece;

pub use decode::Decoder;
pub use error::TokenizerError;
pub use vocab::TOKEN_BYTES_MAX;
pub use wordpiece::WordPiece;
pub(crate) use wordpiece::{WORD_START, WORDPIECE};

use std::ops::Range;

use self::bpe::Bpe;
use self::special::{Finder, Fragment};
use self::special_ids::{KEEPS_SPACE_AFTER, RESTRICTED, SpecialIds, strips_space_after_special};
use self::spm::Spm;
use self::vocab::{Attributes, Vocab, byte_of_spelling};
use crate::gguf::Metadata;

const MODEL_KEY: &str = "tokenizer.ggml.model";

/// The tokens that are looked for in a text before it is split into words.
const SPECIAL: Attributes = RESTRICTED.or(Attributes::USER_DEFINED);

/// Whether the spelling of a control token in a text means the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseSpecial {
    /// It does: for text whose author may write control tokens, such as a rendered template.
    Yes,
    /// It is text like any other. User-defined tokens are found all the same.
    No,
}

/// Whether control tokens appear when ids are rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenderSpecial {
    /// They are rendered as their spelling.
    Yes,
    /// They are rendered as nothing.
    No,
}

/// A model's tokenizer.
pub struct Tokenizer {
    vocab: Vocab,
    kind: Kind,
    special_ids: SpecialIds,
    /// Finds all special tokens.
    special: Finder,
    /// Finds those special tokens that any text may contain.
    user_defined: Finder,
}

enum Kind {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

impl Tokenizer {
    /// Reads the tokenizer from a file's metadata.
    ///
    /// # Errors
    /// One [`TokenizerError`] that names the key, token or merge found wrong.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let is_bpe = match metadata.require_str(MODEL_KEY)? {
            "gpt2" => true,
            "llama" => false,
            other => return Err(TokenizerError::UnknownModel { model: other.to_owned() }),
        };
        let mut vocab = Vocab::from_metadata(metadata)?;
        let (kind, special_ids) = if is_bpe {
            let bpe = Bpe::from_metadata(metadata, &vocab)?;
            let ids = SpecialIds::find(metadata, &mut vocab, bpe.add_bos())?;
            (Kind::Bpe(Box::new(bpe)), ids)
        } else {
            let ids = SpecialIds::find(metadata, &mut vocab, true)?;
            let spm = Spm::from_metadata(metadata, &vocab, ids.unknown)?;
            (Kind::Spm(Box::new(spm)), ids)
        };
        let strips = strips_space_after_special(metadata)?;
        let strips_after = |spelling: &str| strips && !KEEPS_SPACE_AFTER.contains(&spelling);
        let user_defined = vocab
            .ids_with(Attributes::USER_DEFINED)
            .filter(|&id| !vocab.attributes(id).has_any(RESTRICTED));
        Ok(Self {
            special: Finder::new(&vocab, vocab.ids_with(SPECIAL), strips_after),
            user_defined: Finder::new(&vocab, user_defined, strips_after),
            vocab,
            kind,
            special_ids,
        })
    }

    /// The number of tokens: valid ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
    }

    /// The token that starts a text, if the file names one.
    pub fn bos(&self) -> Option<u32> {
        self.special_ids.bos
    }

    /// The token that ends a text, if the file names one.
    pub fn eos(&self) -> Option<u32> {
        self.special_ids.eos
    }

    /// The token that ends a turn, if the file names one or the vocabulary has one with a
    /// well-known spelling.
    pub fn eot(&self) -> Option<u32> {
        self.special_ids.eot
    }

    /// Whether [`Self::encode_framed`] puts [`Self::bos`] in front.
    pub fn add_bos(&self) -> bool {
        self.special_ids.add_bos
    }

    /// Whether [`Self::encode_framed`] puts [`Self::eos`] at the end.
    pub fn add_eos(&self) -> bool {
        self.special_ids.add_eos
    }

    /// Whether `id` ends a generation. No id outside the vocabulary does.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.special_ids.ends.binary_search(&id).is_ok()
    }

    /// The tokens that end a generation, ascending.
    pub fn end_of_generation_ids(&self) -> &[u32] {
        &self.special_ids.ends
    }

    /// The spellings that mean more than their characters in some text: those of control, unknown,
    /// user-defined and end-of-generation tokens, by id. A layer that puts untrusted text into a
    /// text parsed with [`ParseSpecial::Yes`] must keep them from being found there.
    pub fn control_spellings(&self) -> impl Iterator<Item = &str> {
        let ids = self.vocab.ids();
        ids.filter(|&id| {
            self.vocab.attributes(id).has_any(SPECIAL) || self.is_end_of_generation(id)
        })
        .map(|id| self.vocab.spelling(id))
    }

    /// The token spelled exactly `spelling`, in the vocabulary's own alphabet.
    pub fn find(&self, spelling: &str) -> Option<u32> {
        self.vocab.find(spelling)
    }

    /// The spelling of `id` in the vocabulary's own alphabet, in which for instance `Ġ` or `▁`
    /// stands for a space. It comes from the file: escape it before printing.
    ///
    /// # Errors
    /// [`TokenizerError::TokenId`].
    pub fn spelling(&self, id: u32) -> Result<&str, TokenizerError> {
        self.check(id)?;
        Ok(self.vocab.spelling(id))
    }

    /// The ids of `text`, without BOS and EOS.
    pub fn encode(&self, text: &str, special: ParseSpecial) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_into(text, special, &mut ids);
        ids
    }

    /// The ids of `text` with BOS in front and EOS at the end as far as the file asks for them.
    pub fn encode_framed(&self, text: &str, special: ParseSpecial) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.bos().filter(|_| self.add_bos()));
        self.encode_into(text, special, &mut ids);
        ids.extend(self.eos().filter(|_| self.add_eos()));
        ids
    }

    /// The ids of a rendered conversation, without BOS and EOS: special tokens are parsed, except
    /// that the spelling of one that not any text may contain is text where it overlaps a range in
    /// `plain`. The ranges are ascending and disjoint, as [`crate::template::Rendered::plain`] is.
    pub fn encode_rendered(&self, text: &str, plain: &[Range<usize>]) -> Vec<u32> {
        let overlaps = |place: &Range<usize>| {
            let next = plain.partition_point(|range| range.end <= place.start);
            plain.get(next).is_some_and(|range| range.start < place.end)
        };
        let allowed = |id, place: Range<usize>| !overlaps(&place) || self.user_defined.has(id);
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_fragments(text, self.special.split_if(text, &allowed), &mut ids);
        ids
    }

    fn encode_into(&self, text: &str, special: ParseSpecial, ids: &mut Vec<u32>) {
        let finder = match special {
            ParseSpecial::Yes => &self.special,
            ParseSpecial::No => &self.user_defined,
        };
        self.encode_fragments(text, finder.split(text), ids);
    }

    fn encode_fragments(&self, text: &str, fragments: Vec<Fragment>, ids: &mut Vec<u32>) {
        let mut after_special = true;
        for fragment in fragments {
            match (fragment, &self.kind) {
                (Fragment::Token(id), _) => {
                    ids.push(id);
                    after_special = true;
                }
                (Fragment::Text(range), Kind::Bpe(bpe)) => {
                    bpe.encode(&self.vocab, &text[range], ids);
                }
                (Fragment::Text(range), Kind::Spm(spm)) => {
                    let prefixed = spm.space_prefix && after_special;
                    spm.encode(&self.vocab, &text[range], prefixed, ids);
                    after_special = false;
                }
            }
        }
    }

    /// The bytes that `id` adds to a text. They need not be whole characters.
    ///
    /// # Errors
    /// [`TokenizerError::TokenId`].
    pub fn token_bytes(&self, id: u32, special: RenderSpecial) -> Result<Vec<u8>, TokenizerError> {
        let mut bytes = Vec::new();
        self.render(id, special, false, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of the text that `ids` stand for, `ids` being a text from its start.
    ///
    /// # Errors
    /// [`TokenizerError::TokenId`] for the first id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], special: RenderSpecial) -> Result<Vec<u8>, TokenizerError> {
        let mut bytes = Vec::with_capacity(4 * ids.len());
        for (index, &id) in ids.iter().enumerate() {
            self.render(id, special, index == 0, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Appends the bytes of `id`. At the start of a text the space that a tokenizer puts in front
    /// is dropped.
    fn render(
        &self,
        id: u32,
        special: RenderSpecial,
        at_start: bool,
        bytes: &mut Vec<u8>,
    ) -> Result<(), TokenizerError> {
        self.check(id)?;
        let before = bytes.len();
        let (attributes, spelling) = (self.vocab.attributes(id), self.vocab.spelling(id));
        if attributes.has_any(RESTRICTED) {
            if special == RenderSpecial::Yes {
                bytes.extend_from_slice(spelling.as_bytes());
            }
        } else if attributes.has_any(Attributes::USER_DEFINED) {
            bytes.extend_from_slice(spelling.as_bytes());
        } else if attributes.has_any(Attributes::BYTE) {
            bytes.extend(byte_of_spelling(spelling));
        } else if attributes.has_any(Attributes::NORMAL) {
            match self.kind {
                Kind::Bpe(_) => bpe::render(spelling, bytes),
                Kind::Spm(_) => spm::render(spelling, bytes),
            }
        }
        let has_prefix = matches!(&self.kind, Kind::Spm(spm) if spm.space_prefix);
        if at_start && has_prefix && bytes.get(before) == Some(&b' ') {
            bytes.remove(before);
        }
        Ok(())
    }

    fn check(&self, id: u32) -> Result<(), TokenizerError> {
        if (id as usize) < self.vocab.len() {
            Ok(())
        } else {
            Err(TokenizerError::TokenId { id, len: self.vocab.len() })
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_len", &self.vocab_len()).finish_non_exhaustive()
    }
}
