//! What can be wrong with a tokenizer's metadata, or with an id.

use crate::gguf::{Escaped, GgufError};

/// How many characters of a spelling an error message quotes.
const QUOTED_CHARS_MAX: usize = 64;

/// Why a file's tokenizer cannot be used, or an id cannot be rendered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// `tokenizer.ggml.model` names a kind of tokenizer that the engine does not have.
    #[error(
        "tokenizer.ggml.model is {}: only \"gpt2\" (BPE) and \"llama\" (SentencePiece) are \
         supported",
        quoted(model)
    )]
    UnknownModel {
        /// The value in the file.
        model: String,
    },
    /// The tokenizer of an encoder is another one than WordPiece.
    #[error("tokenizer.ggml.model is {}: encoders need \"bert\" (WordPiece)", quoted(model))]
    NotWordPiece {
        /// The value in the file.
        model: String,
    },
    /// `tokenizer.ggml.pre` names a way of splitting words that the engine does not have.
    #[error(
        "tokenizer.ggml.pre is {}: this pre-tokenizer is not supported, and another one would \
         give the model wrong token ids",
        quoted(pre)
    )]
    UnknownPre {
        /// The value in the file.
        pre: String,
    },
    /// The vocabulary has no tokens, or more than 2^31.
    #[error("tokenizer.ggml.tokens has {len} entries; a vocabulary has 1 to 2^31 - 1")]
    VocabularySize {
        /// The number of entries.
        len: usize,
    },
    /// An array that runs parallel to the tokens has another length.
    #[error("{key} has {found} entries, the vocabulary has {expected} tokens")]
    ArrayLength {
        /// The array's key.
        key: &'static str,
        /// The size of the vocabulary.
        expected: usize,
        /// The length of the array.
        found: usize,
    },
    /// A spelling is longer than any real one.
    #[error("token {id} is {len} bytes long, at most {limit} are read")]
    TokenTooLong {
        /// The token.
        id: u32,
        /// The length of its spelling in bytes.
        len: usize,
        /// The longest spelling that is read.
        limit: usize,
    },
    /// Two tokens have one spelling, so the text does not determine the id.
    #[error("tokens {first} and {second} are both spelled {}", quoted(spelling))]
    DuplicateToken {
        /// The smaller id.
        first: u32,
        /// The larger id.
        second: u32,
        /// Their spelling.
        spelling: String,
    },
    /// A token type that the format does not define.
    #[error("token {id} has type {code} in tokenizer.ggml.token_type; types are 0 to 6")]
    TokenType {
        /// The token.
        id: u32,
        /// The code in the file.
        code: i32,
    },
    /// A score is not a number.
    #[error("the score of token {id} in tokenizer.ggml.scores is not a number")]
    Score {
        /// The token.
        id: u32,
    },
    /// A token of type byte is not spelled `<0xNN>`.
    #[error("token {id} stands for a byte, but is spelled {}, not like <0x0A>", quoted(spelling))]
    ByteToken {
        /// The token.
        id: u32,
        /// Its spelling.
        spelling: String,
    },
    /// Neither a token for a byte nor an unknown token exists, so some texts have no ids.
    #[error(
        "no token stands for byte 0x{byte:02X}, and tokenizer.ggml.unknown_token_id is not set"
    )]
    NoByteFallback {
        /// The byte without a token.
        byte: u8,
    },
    /// A key names a token id that the vocabulary does not have.
    #[error("{key} is {id}, the vocabulary has {len} tokens")]
    SpecialId {
        /// The key.
        key: &'static str,
        /// The id in the file.
        id: u64,
        /// The size of the vocabulary.
        len: usize,
    },
    /// A token is to be added to every text, but the file does not say which.
    #[error("texts need a token in front or at the end ({flag}), but {key} is not set")]
    NoSpecialId {
        /// The flag that asks for the token.
        flag: &'static str,
        /// The key that is missing.
        key: &'static str,
    },
    /// A merge is not two pieces with a space between them.
    #[error("merge {index} in tokenizer.ggml.merges is {}, not two pieces", quoted(merge))]
    Merge {
        /// The merge's index, from 0.
        index: usize,
        /// The entry.
        merge: String,
    },
    /// A merge takes or makes a piece that is no token.
    #[error("merge {index} in tokenizer.ggml.merges needs {}, which is not a token", quoted(piece))]
    MergePiece {
        /// The merge's index, from 0.
        index: usize,
        /// The piece that the vocabulary does not have.
        piece: String,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {len} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        len: usize,
    },
}

/// `text` from a file in quotation marks, escaped and shortened.
fn quoted(text: &str) -> String {
    format!("\"{}\"", Escaped::shortened(text, QUOTED_CHARS_MAX))
}
